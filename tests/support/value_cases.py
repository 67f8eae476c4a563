"""The matrix of values: pairs of a value and the annotation of the function that returns it, by family.

Each either comes back from Redis in another process as itself, or is refused with a path and a reason.
"""

from __future__ import annotations

import collections
import fractions
import ipaddress
import re
import threading
import typing
import uuid
import zoneinfo
from collections.abc import Callable, Collection, Iterable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal
from pathlib import Path, PurePosixPath, PureWindowsPath
from types import FunctionType
from typing import Annotated, Any, Literal, Optional, TypeVar, Union
from uuid import UUID

import msgspec
import pydantic

from tests.support import value_classes as c

T = TypeVar("T")
Decorate = Callable[[Callable[[], Any]], Any]

BERLIN = zoneinfo.ZoneInfo("Europe/Berlin")
AT = datetime(2024, 7, 1, 12, 30, tzinfo=UTC)
NAN = float("nan")


@dataclass(frozen=True)
class Case:
    """One pair of the matrix."""

    family: str
    shown: str
    """The pair, as the documentation shows it."""
    make: Callable[[], Any]
    annotation: Any = None
    define: Callable[[Decorate], Any] | None = None
    """Decorates the function; None: one that returns what *make* makes and has the annotation."""
    path: str | None = None
    """Where the value has the part that cannot be stored; None: it comes back."""
    reason: str = ""
    """Why it is refused, in one sentence for the documentation."""

    @property
    def name(self) -> str:
        return f"{self.family}: {self.shown}"

    def decorated(self, decorate: Decorate) -> Any:
        """The cached function; called without arguments it loads."""
        if self.define is not None:
            return self.define(decorate)
        make = self.make

        def load() -> Any:
            return make()

        load.__annotations__ = {} if self.annotation is None else {"return": self.annotation}
        return decorate(load)


CASES: list[Case] = []


def _named(annotation: Any) -> str:
    text = (
        annotation.__qualname__
        if isinstance(annotation, type) and not hasattr(annotation, "__args__")
        else str(annotation)
    )
    for prefix in (f"{c.__name__}.", "typing.", "collections.abc.", "collections.", "datetime.", "pathlib."):
        text = text.replace(prefix, "")
    return re.sub(r" at 0x\w+", "", text)


def kept(family: str, annotation: Any, *makers: Callable[[], Any]) -> None:
    """Pairs that come back."""
    for number, make in enumerate(makers):
        shown = _named(annotation) if annotation is not None else "no annotation"
        CASES.append(Case(family, f"{shown} #{number + 1}" if len(makers) > 1 else shown, make, annotation))


def refused(family: str, shown: str, annotation: Any, make: Callable[[], Any], path: str, reason: str) -> None:
    """A pair that stays out of Redis."""
    CASES.append(Case(family, shown, make, annotation, path=path, reason=reason))


def defined(family: str, shown: str, make: Callable[[], Any], define: Callable[[Decorate], Any]) -> None:
    """A pair that comes back, of a function with a shape of its own."""
    CASES.append(Case(family, shown, make, define=define))


def with_more(value: Any, **more: Any) -> Any:
    """*value* with attributes that nobody has declared."""
    for name, each in more.items():
        setattr(value, name, each)
    return value


def _knot() -> c.Cyclic:
    knot = c.Cyclic()
    knot.me = knot
    return knot


SCALARS = "numbers, text and bytes"
kept(SCALARS, int, lambda: 5, lambda: -(2**63), lambda: 2**200, lambda: -(2**70), lambda: True)
kept(SCALARS, bool, lambda: True, lambda: False)
kept(SCALARS, float, lambda: 1.5, lambda: -0.0, lambda: NAN, lambda: float("-inf"), lambda: 3, lambda: 2**53 + 1)
kept(SCALARS, complex, lambda: 1 - 2j, lambda: complex(-0.0, NAN))
kept(SCALARS, str, lambda: "", lambda: "ü\0😀")
kept(SCALARS, bytes, lambda: b"\x00\xff")
kept(SCALARS, bytearray, lambda: bytearray(b"x"))
kept(SCALARS, Decimal, lambda: Decimal("1.10"), lambda: Decimal("-0"), lambda: Decimal("sNaN"), lambda: Decimal("1E+5"))
kept(SCALARS, fractions.Fraction, lambda: fractions.Fraction(1, 3))
kept(SCALARS, UUID, lambda: UUID(int=7), lambda: UUID(int=7, is_safe=uuid.SafeUUID.unsafe))
kept(SCALARS, range, lambda: range(1, 9, 2))
kept(SCALARS, re.Pattern, lambda: re.compile("a+", re.IGNORECASE))
refused(
    SCALARS, "half a surrogate pair", list[str], lambda: ["a", "\ud800"], "[1]", "Text that is no Unicode has no bytes."
)
refused(SCALARS, "int, returned as text", int, lambda: "1", "", "The value is no instance of what is annotated.")

MOMENTS = "dates, times and zones"
kept(
    MOMENTS, datetime,
    lambda: AT, lambda: datetime(2024, 1, 1), lambda: AT.astimezone(BERLIN), lambda: datetime(2020, 10, 25, 2, 30, tzinfo=BERLIN, fold=1),  # noqa: E501, DTZ001
    lambda: AT.astimezone(timezone(timedelta(hours=2))), lambda: AT.astimezone(timezone(timedelta(hours=2), "CEST")),
    lambda: AT.astimezone(zoneinfo.ZoneInfo("UTC")), lambda: AT.replace(tzinfo=timezone(timedelta(0), "UTC")),
    lambda: AT.replace(tzinfo=pydantic.TypeAdapter(datetime).validate_python("2024-01-01T00:00:00+02:00").tzinfo),
    lambda: datetime.min, lambda: datetime(2024, 1, 1, fold=1),  # noqa: DTZ001, DTZ901
)  # fmt: skip
kept(MOMENTS, date, lambda: date(2024, 2, 29), lambda: AT)
kept(MOMENTS, time, lambda: time(1, 2, 3, 4), lambda: time(1, tzinfo=UTC), lambda: time(1, tzinfo=BERLIN, fold=1))
kept(MOMENTS, timedelta, lambda: timedelta.min, lambda: timedelta(microseconds=1))
kept(MOMENTS, tzinfo, lambda: UTC, lambda: BERLIN)
kept(MOMENTS, zoneinfo.ZoneInfo, lambda: zoneinfo.ZoneInfo("UTC"))


class Fixed(tzinfo):
    """A time zone of the user."""

    def dst(self, _at: datetime | None) -> None:
        return None

    def tzname(self, _at: datetime | None) -> str:
        return "fixed"

    def utcoffset(self, _at: datetime | None) -> timedelta:
        return timedelta(hours=1)


refused(MOMENTS, "a time zone class of one's own", list[datetime], lambda: [AT.replace(tzinfo=Fixed())], "[0]",
        "Another process cannot name that zone: use `datetime.timezone` or `zoneinfo.ZoneInfo`.")  # fmt: skip

CONTAINERS = "containers"
kept(CONTAINERS, list[int], lambda: [1, 2], lambda: (1, 2), list, lambda: [True, 1], lambda: {1})
kept(CONTAINERS, tuple[int, str], lambda: (1, "a"))
kept(CONTAINERS, tuple[int, ...], lambda: (1, 2, 3), lambda: [1])
kept(CONTAINERS, set[int], lambda: {1, 2}, lambda: frozenset({1}))
kept(CONTAINERS, frozenset[str], lambda: frozenset({"a"}))
kept(CONTAINERS, set[float], lambda: {NAN, 1.0})
kept(CONTAINERS, dict[str, int], lambda: {"b": 1, "a": 2}, dict)
kept(CONTAINERS, dict[int, str], lambda: {1: "a"})
kept(CONTAINERS, dict[tuple[int, int], Decimal], lambda: {(1, 2): Decimal("1.0")})
kept(CONTAINERS, dict[date, list[set[int]]], lambda: {date(2024, 1, 1): [{1}, set()]})
kept(CONTAINERS, Sequence[int], lambda: [1, 2], lambda: (1, 2))
kept(CONTAINERS, Iterable[str], lambda: ["a"], lambda: {"a"}, lambda: ("a", "b"))
kept(CONTAINERS, Collection[int], lambda: [1], lambda: {1})
kept(CONTAINERS, Mapping[str, int], lambda: {"a": 1}, lambda: collections.Counter("aa"))
kept(CONTAINERS, MutableMapping[str, date], lambda: {"a": date(2024, 1, 1)})
refused(CONTAINERS, "a view of a dict", Collection[str], {"a": 1}.keys, "", "A view belongs to a dict: return a list.")
refused(
    CONTAINERS,
    "a memoryview",
    Any,
    lambda: [memoryview(b"x")],
    "[0]",
    "It is a window into other memory: return bytes.",
)

COLLECTIONS = "collections"
kept(COLLECTIONS, collections.OrderedDict[str, int], lambda: collections.OrderedDict(b=1, a=2))
kept(COLLECTIONS, collections.Counter[str], lambda: collections.Counter("abca"))
kept(COLLECTIONS, collections.Counter[str], lambda: collections.Counter(a=-1, b=0, c=2))
kept(COLLECTIONS, collections.defaultdict[str, list[int]], lambda: collections.defaultdict(list, {"a": [1]}))
kept(COLLECTIONS, collections.deque[int], lambda: collections.deque([1, 2]), lambda: collections.deque([1], 3))
kept(COLLECTIONS, dict[str, int], lambda: collections.OrderedDict(a=1), lambda: collections.defaultdict(int, a=1))
refused(COLLECTIONS, "defaultdict with a function", dict[str, Any], lambda: {"a": collections.defaultdict(lambda: 1)}, "['a']",  # noqa: E501 - one case, one line
        "A function is no data: return a dict, or a defaultdict of a builtin type.")  # fmt: skip
refused(
    COLLECTIONS, "ChainMap", Any, lambda: collections.ChainMap({"a": 1}), "", "It is a view of dicts: return a dict."
)

PLACES = "paths and addresses"
kept(PLACES, Path, lambda: Path("/a/b"), lambda: Path("x\udc80"))
kept(PLACES, PurePosixPath, lambda: PurePosixPath("a"))
kept(PLACES, list[PureWindowsPath], lambda: [PureWindowsPath("c:\\a")])
kept(PLACES, ipaddress.IPv4Address, lambda: ipaddress.ip_address("10.0.0.1"))
kept(PLACES, ipaddress.IPv6Address, lambda: ipaddress.ip_address("fe80::1%eth0"))
kept(PLACES, ipaddress.IPv4Network, lambda: ipaddress.ip_network("10.0.0.0/8"))
kept(PLACES, ipaddress.IPv6Network | ipaddress.IPv4Interface, lambda: ipaddress.ip_interface("10.0.0.1/8"))

ENUMS = "enums"
kept(ENUMS, c.Colour, lambda: c.Colour.RED)
kept(ENUMS, c.Mixed, lambda: c.Mixed.NUMBER, lambda: c.Mixed.TEXT, lambda: c.Mixed.NOTHING, lambda: c.Mixed.PAIR)
kept(ENUMS, c.Planet, lambda: c.Planet.EARTH)
kept(ENUMS, c.Level, lambda: c.Level.LOW)
kept(ENUMS, c.Word, lambda: c.Word.HI)
kept(ENUMS, c.Tone, lambda: c.Tone.SOFT)
kept(ENUMS, c.Rights, lambda: c.Rights.READ | c.Rights.WRITE, lambda: c.Rights(0), lambda: c.Rights.READ)
kept(ENUMS, c.Bits, lambda: c.Bits.A | c.Bits.B, lambda: c.Bits(8))
kept(ENUMS, c.Named, lambda: c.Named.ALIAS)
kept(ENUMS, dict[c.Colour, c.Level], lambda: {c.Colour.RED: c.Level.HIGH})
kept(ENUMS, Literal[c.Colour.RED], lambda: c.Colour.RED)
refused(ENUMS, "int, returned as IntEnum", list[int], lambda: [1, c.Level.LOW], "[1]",
        "A subclass is not its base: name it in the annotation (`list[int | Level]`).")  # fmt: skip
refused(ENUMS, "str, returned as StrEnum", dict[str, str], lambda: {"a": c.Word.HI}, "['a']",
        "A subclass is not its base: name it in the annotation.")  # fmt: skip

DATACLASSES = "dataclasses"
kept(DATACLASSES, c.Point, lambda: c.Point(1), lambda: c.Point(1, 2), lambda: c.Point(True, NAN))
kept(DATACLASSES, c.Point3, lambda: c.Point3(1, 2.0, 3))
kept(DATACLASSES, c.Frozen, lambda: c.Frozen(1, frozenset({"a"})))
kept(DATACLASSES, c.Slots, lambda: c.Slots(1, "a"))
kept(DATACLASSES, c.Tight, lambda: c.Tight(id=1))
kept(DATACLASSES, c.Private, lambda: c.Private(1, "t").hide(4))
kept(DATACLASSES, c.Counted, lambda: c.Counted(1, start=5))
kept(DATACLASSES, c.WithBase, lambda: c.WithBase(1), lambda: with_more(c.WithBase(1), role="admin", perms=["w"]))
kept(
    DATACLASSES,
    c.Lazy,
    lambda: c.Lazy(2),
    lambda: with_more(c.Lazy(2), double=4),
    lambda: with_more(c.Lazy(2), note=AT),
)
kept(DATACLASSES, c.ById, lambda: c.ById(1, "Ann"))
kept(DATACLASSES, c.Tree, lambda: c.Tree("a", [c.Tree("b"), c.Tree("c", [c.Tree("d")])]))
kept(DATACLASSES, c.Anything, lambda: c.Anything((1, {2})), lambda: c.Anything(rows=[(1,), b"x"], more={1: AT}))
kept(
    DATACLASSES,
    c.Order,
    lambda: c.Order(
        [c.Point(1), c.Slots(2)],
        AT.astimezone(BERLIN),
        Decimal("1.10"),
        Path("/a"),
        c.Level.LOW,
        {"a": c.Tone.SOFT, "b": "c"},
    ),
)
kept(DATACLASSES, list[c.Point], lambda: [c.Point(1), c.Point(2)], list)
kept(DATACLASSES, dict[str, list[c.Frozen]], lambda: {"a": [c.Frozen(1)]})
kept(DATACLASSES, set[c.Frozen], lambda: {c.Frozen(1), c.Frozen(2)})
kept(DATACLASSES, c.Strict, lambda: c.Strict(1, date(2024, 1, 1)))
kept(DATACLASSES, c.MaybePoint, lambda: c.Point(1))
refused(DATACLASSES, "a subclass", list[c.Point], lambda: [c.Point(1), c.Point3(1)], "[1]",
        "The annotation does not name the subclass: annotate `list[Point | Point3]`.")  # fmt: skip
refused(DATACLASSES, "a class under Any", c.Anything, lambda: c.Anything(rows=[c.Point(1)]), ".rows[0]",
        "`Any` and bare containers name no class: annotate the field.")  # fmt: skip
refused(DATACLASSES, "a plain class inside", c.HasPlain, lambda: c.HasPlain(c.Plain(1)), ".plain",
        "A class without declared fields does not say what its next release has: make it a dataclass.")  # fmt: skip
refused(DATACLASSES, "an object that contains itself", c.Cyclic, _knot, ".me",
        "Values are trees, not deeper than 100 levels.")  # fmt: skip


ATTRS = "attrs"
kept(ATTRS, c.Box, lambda: c.Box(1, ["a"]))
kept(ATTRS, c.Hidden, lambda: c.Hidden(1, "q"))
kept(ATTRS, c.Open, lambda: c.Open(1), lambda: with_more(c.Open(1), note=5))
kept(ATTRS, c.Hashed, lambda: c.Hashed(1))
kept(ATTRS, set[c.Hashed], lambda: {c.Hashed(1), c.Hashed(2)})
kept(ATTRS, set[c.HashedOpen], lambda: {c.HashedOpen(1)})
kept(ATTRS, c.Upper, lambda: c.Upper("ann"), lambda: with_more(c.Upper("ann"), name="X"))
kept(ATTRS, c.Holder, lambda: c.Holder(c.Hidden(1)), lambda: c.Holder(c.Colour.RED), lambda: c.Holder(c.Box(1)))
refused(
    *(ATTRS, "a lock in a field", c.Open, lambda: with_more(c.Open(1), id=threading.Lock()), ".id"),
    "A lock is no data: keep it elsewhere.",
)

STRUCTS = "msgspec.Struct"
kept(STRUCTS, c.Row, lambda: c.Row(1, {c.Colour.RED}))
kept(STRUCTS, c.Thin, lambda: c.Thin(1, "a"))
kept(STRUCTS, c.Renamed, lambda: c.Renamed("a", 1), c.Renamed)
kept(STRUCTS, c.Roomy, lambda: c.Roomy(1), lambda: with_more(c.Roomy(1), note=[1]))
kept(STRUCTS, c.Cat | c.Dog, lambda: c.Cat(9), lambda: c.Dog("x"))
kept(STRUCTS, list[c.Cat | c.Dog], lambda: [c.Cat(9), c.Dog("x")])
kept(STRUCTS, list[c.Row | c.Thin], lambda: [c.Row(1), c.Thin(2)])
kept(STRUCTS, c.Checked, lambda: c.Checked(1), lambda: c.Checked(1, 5))
kept(STRUCTS, c.Pair[int], lambda: c.Pair(1, 2))
kept(STRUCTS, c.Row, lambda: c.Row(1, [c.Colour.RED]))  # type: ignore[arg-type]
refused(STRUCTS, "a plain class in a field", c.Roomy, lambda: with_more(c.Roomy(1), note=c.Closed(1)), ".note",
        "A class without declared fields does not say what its next release has.")  # fmt: skip

MODELS = "pydantic"
kept(MODELS, c.User, lambda: c.User(id=1), lambda: c.User(id=1, name="a", tags=["b"]), lambda: c.User(id=1, tags=[]))
kept(
    MODELS, c.User, lambda: c.User.model_construct(id="not an int"), lambda: c.User(id=1).model_copy(update={"name": 5})
)
kept(MODELS, c.Patch, c.Patch, lambda: c.Patch(name=None), lambda: c.Patch(age=1))
kept(MODELS, list[c.Patch], lambda: [c.Patch(age=1), c.Patch()])
kept(MODELS, dict[str, c.Patch], lambda: {"a": c.Patch(name="b")})
kept(MODELS, c.Loose, lambda: c.Loose(id=1), lambda: c.Loose(id=1, more=[1]), lambda: c.Loose(id=1, at=AT))  # type: ignore[call-arg]
kept(MODELS, c.Noted, lambda: c.Noted(id=1), lambda: with_more(c.Noted(id=1), _note="n", _seen=[1]))
kept(MODELS, c.Aliased, lambda: c.Aliased(userName="a"))
kept(
    MODELS,
    c.Times,
    lambda: c.Times(at=AT),
    lambda: c.Times(at=AT.astimezone(BERLIN), raw=b"\xff"),
    lambda: c.Times(where=Path("/a")),
)
kept(MODELS, c.Times, lambda: c.Times.model_validate({"at": "2024-01-01T00:00:00Z"}), lambda: c.Times(any=(1, {2: AT})))
kept(
    MODELS,
    c.Times,
    lambda: c.Times(number=c.Level.LOW),
    lambda: c.Times(text=c.Tone.SOFT),
    lambda: c.Times(number=1, text="soft"),
)
kept(MODELS, c.Validated, lambda: c.Validated(name="a"))
kept(MODELS, c.Envelope[int], lambda: c.Envelope[int](data=1), lambda: c.Envelope(data=1))
kept(MODELS, c.Envelope[c.Patch], lambda: c.Envelope[c.Patch](data=c.Patch(age=1)))
kept(MODELS, c.Names, lambda: c.Names(["a"]))
kept(MODELS, c.Frost, lambda: c.Frost(id=1))
kept(MODELS, c.Zoo, lambda: c.Zoo(animal=c.DogModel()))
kept(MODELS, c.Shouting, lambda: c.Shouting(first="a"))
kept(MODELS, c.Owner, lambda: c.Owner(point=c.Point(1), box=c.Patch(age=1)))
kept(MODELS, c.HasModel, lambda: c.HasModel(c.Patch(name="a")))
kept(MODELS, c.User | c.Point | None, lambda: c.User(id=1), lambda: c.Point(1))
kept(MODELS, tuple[c.User, int], lambda: (c.User(id=1), 5))
kept(MODELS, c.Linked, lambda: c.Linked(url="https://example.org/a"))  # type: ignore[arg-type]
refused(MODELS, "SecretStr", c.Secret, lambda: c.Secret(password=pydantic.SecretStr("x")), ".password",
        "A secret is not written down unless it is a plain `str`.")  # fmt: skip
refused(
    MODELS,
    "a model under Any",
    c.Times,
    lambda: c.Times(any=c.Patch()),
    ".any",
    "`Any` names no class: annotate the field.",
)

ROWS = "TypedDict"
kept(ROWS, c.Movie, lambda: {"title": "a"}, lambda: {"year": 1, "title": "a"}, lambda: {"title": "a", "unknown": 1})
kept(ROWS, c.Partial, dict, lambda: {"at": AT.astimezone(BERLIN)})
kept(ROWS, c.Deep, lambda: {"movie": {"title": "a"}, "points": [c.Point(1)], "rest": (1,)})
kept(ROWS, list[c.Movie], lambda: [{"title": "a"}, {"title": "b", "year": 1}])
refused(ROWS, "a class that the TypedDict does not name", c.Deep, lambda: {"movie": {}, "points": [], "rest": c.Box(1)}, "['rest']",  # noqa: E501 - one case, one line
        "`Any` names no class: annotate the key.")  # fmt: skip

TUPLES = "NamedTuple"
kept(TUPLES, c.Pt, lambda: c.Pt(1))
kept(TUPLES, c.Nested, lambda: c.Nested(c.Pt(1), c.Colour.RED))
kept(TUPLES, c.Untyped, lambda: c.Untyped(1, (2,)))
kept(TUPLES, list[c.Pt], lambda: [c.Pt(1), c.Pt(2, 3)])
kept(TUPLES, dict[c.Pt, int], lambda: {c.Pt(1): 1})
refused(TUPLES, "tuple, returned as NamedTuple", list[tuple[int, int]], lambda: [c.Pt(1)], "[0]",
        "A subclass is not its base: name it in the annotation.")  # fmt: skip
refused(TUPLES, "a plain class inside", c.Untyped, lambda: c.Untyped(1, c.Plain(2)), ".b",
        "A class without declared fields does not say what its next release has.")  # fmt: skip

UNIONS = "unions"
kept(UNIONS, int | c.Level, lambda: c.Level.LOW, lambda: 1)
kept(UNIONS, str | c.Tone, lambda: c.Tone.SOFT, lambda: "soft")
kept(UNIONS, list[int] | c.Pt, lambda: c.Pt(1, 2), lambda: [1, 2])
kept(UNIONS, tuple[int, int] | c.Pt, lambda: c.Pt(1, 2), lambda: (1, 2))
kept(UNIONS, dict[str, int | c.Level], lambda: {"a": c.Level.LOW, "b": 1})
kept(UNIONS, list[c.Point | c.Box], lambda: [c.Point(1), c.Box(2)])
kept(UNIONS, c.Point | c.Point3, lambda: c.Point(1), lambda: c.Point3(1))
kept(UNIONS, c.Point | c.Box | c.Row | c.User | None, lambda: c.Box(1), lambda: c.Row(1), lambda: c.User(id=1))
kept(UNIONS, str | datetime | None, lambda: AT, lambda: "2024-07-01")
kept(UNIONS, Union[int, str, list[Union[int, str]]], lambda: [1, "a"])  # noqa: UP007
kept(UNIONS, Optional[c.Colour], lambda: c.Colour.RED)  # noqa: UP045
kept(UNIONS, set[int] | list[int] | frozenset[int], lambda: frozenset({1}))
kept(UNIONS, Literal["a", 1] | c.Point, lambda: "a", lambda: c.Point(1))
kept(UNIONS, bytes | UUID | Decimal, lambda: UUID(int=1))
refused(UNIONS, "a class that is no member", c.Point | c.Box, lambda: c.Row(1), "", "The annotation does not name it.")

GENERICS = "generics and aliases"
kept(GENERICS, c.Page[int], lambda: c.Page([1]), lambda: c.Page[int]([1]))
kept(GENERICS, c.Page[c.Point], lambda: c.Page([c.Point(1)], "n"), lambda: c.Page[c.Point]([c.Point(1)]))
kept(GENERICS, c.Both[c.Colour, c.Pt], lambda: c.Both(c.Colour.RED, c.Pt(1)))
kept(GENERICS, c.Page[c.Page[int]], lambda: c.Page([c.Page([1])]))
kept(GENERICS, c.Points, lambda: [c.Point(1)])
kept(GENERICS, c.Rows[c.Box], lambda: [c.Box(1)])
kept(GENERICS, c.Json, lambda: [{"a": None, "b": ["c"]}])
kept(GENERICS, c.UserId, lambda: c.UserId(5))
kept(GENERICS, Annotated[int, msgspec.Meta(ge=1)], lambda: 5)
kept(GENERICS, Annotated[list[c.Point], "a note"], lambda: [c.Point(1)])
defined(GENERICS, "-> Self", lambda: c.Shop(1), lambda decorate: decorate(_returning(c.Shop.itself, lambda: c.Shop(1))))
defined(
    GENERICS,
    "-> list[Self]",
    lambda: [c.Shop(1)],
    lambda decorate: decorate(_returning(c.Shop.branches, lambda: [c.Shop(1)])),
)
defined(
    GENERICS,
    "-> Shop, in its own class",
    lambda: c.Shop(2),
    lambda decorate: decorate(_returning(c.Shop.other, lambda: c.Shop(2))),
)
defined(
    GENERICS,
    "kind: type[T] -> T",
    lambda: c.Point(1),
    lambda decorate: _of_kind(decorate, c.of_kind, c.Point, c.Point(1)),
)
defined(
    GENERICS,
    "kind: type[T] -> Iterable[T]",
    lambda: [c.Box(1)],
    lambda decorate: _of_kind(decorate, c.many_of_kind, c.Box, [c.Box(1)]),
)
refused(GENERICS, "an argument that is not stated", c.Page, lambda: c.Page([c.Point(1)]), ".items[0]",
        "A bare generic names no class: annotate `Page[Point]`.")  # fmt: skip

NAMES = "names that resolve late"
defined(NAMES, "under TYPE_CHECKING", c.late, lambda decorate: decorate(c.late))
defined(NAMES, "under TYPE_CHECKING, in a list", c.late_list, lambda decorate: decorate(c.late_list))
defined(NAMES, "classes of the enclosing function", c.local_class(lambda find: find), c.local_class)
refused(
    NAMES,
    "a name that does not exist",
    "Nowhere",
    lambda: c.Point(1),
    "",
    "Nobody knows the class: import it where the function is.",
)

SUBCLASSES = "subclasses of builtins"
kept(SUBCLASSES, c.Label, lambda: c.Label("a"), lambda: with_more(c.Label("a"), lang="en"))
kept(SUBCLASSES, c.Number, lambda: c.Number(5))
kept(SUBCLASSES, c.Ratio, lambda: c.Ratio(-0.0))
kept(SUBCLASSES, c.Ids, lambda: c.Ids([1, 2]), lambda: with_more(c.Ids([1]), owner="x"))
kept(SUBCLASSES, c.Settings, lambda: c.Settings(b=1, a=2))
kept(SUBCLASSES, c.Couple, lambda: c.Couple((1, 2)))
kept(SUBCLASSES, list[str | c.Label], lambda: ["a", c.Label("b")])
refused(
    SUBCLASSES,
    "str, returned as its subclass",
    list[str],
    lambda: [c.Label("a")],
    "[0]",
    "A subclass is not its base: name it in the annotation.",
)

UNSAID = "no annotation, or one that says nothing"
kept(
    UNSAID,
    None,
    lambda: 1,
    lambda: [1, (2, {3: "x"})],
    lambda: {"at": AT, "d": Decimal(1)},
    lambda: {1, 1.5},
    lambda: [Path("a")],
)
kept(UNSAID, Any, lambda: {"a": [1, b"x", None, AT.astimezone(BERLIN)]}, lambda: collections.OrderedDict(a=(1,)))
kept(UNSAID, dict[str, Any], lambda: {"a": {1, 2}, "b": [(1,), [2]]})
kept(UNSAID, list, lambda: [1, "a", (2.5,)])
kept(UNSAID, object, lambda: frozenset({(1, 2)}))
kept(UNSAID, tuple, lambda: (1, [2]))
kept(UNSAID, dict, lambda: {(1, 2): {3}})
refused(
    UNSAID, "a dataclass", None, lambda: {"a": [c.Point(1)]}, "['a'][0]", "Bytes name no class: annotate the function."
)
refused(UNSAID, "an enum", Any, lambda: [c.Colour.RED], "[0]", "Bytes name no class: annotate the function.")
refused(UNSAID, "a class in a set", None, lambda: {c.Frozen(1)}, "{…}", "Bytes name no class: annotate the function.")
refused(
    UNSAID, "a class as a key", None, lambda: {c.Pt(1): 1}, ".keys()", "Bytes name no class: annotate the function."
)

OTHERS = "what is no data"
refused(OTHERS, "a function", Callable[[], int], lambda: _named, "", "A function is code.")
refused(OTHERS, "a class", type[c.Point], lambda: c.Point, "", "A class is code.")
refused(OTHERS, "a module", Any, lambda: re, "", "A module is code.")
refused(OTHERS, "a lock", Any, threading.Lock, "", "A lock belongs to its process.")
refused(
    OTHERS, "a plain class", c.Plain, lambda: c.Plain(1), "", "It does not declare its fields: make it a dataclass."
)
refused(
    OTHERS,
    "a plain class with slots",
    list[c.Closed],
    lambda: [c.Closed(1)],
    "[0]",
    "It does not declare its fields: make it a dataclass.",
)
refused(
    OTHERS,
    "an exception as a value",
    Exception,
    lambda: c.Failure("x"),
    "",
    "An exception is raised, or its text is returned.",
)
refused(OTHERS, "an object()", Any, lambda: [object()], "[0]", "It is nothing but an identity.")


def _returning(method: Any, make: Callable[[], Any]) -> Callable[[], Any]:
    def load() -> Any:
        return make()

    load.__annotations__ = {"return": method.__annotations__["return"]}
    load.__qualname__, load.__module__ = method.__qualname__, method.__module__
    return _in_module(load, method)


def _in_module(load: Any, method: Any) -> Callable[[], Any]:
    """*load* as if it had been written beside *method*."""
    made = FunctionType(load.__code__, {**method.__globals__}, load.__name__, (), load.__closure__)
    made.__annotations__, made.__qualname__, made.__module__ = load.__annotations__, load.__qualname__, load.__module__
    return made


def _of_kind(decorate: Any, written: Any, kind: type[Any], value: Any) -> Any:
    """A function of a class, and its own arguments bound, as `decorate` expects a function without any."""

    def load(kind: Any, key: int = 1) -> Any:
        return value

    load.__annotations__ = {name: typing.get_type_hints(written)[name] for name in ("kind", "return")}
    return Bound(decorate(load), kind)


class Bound:
    """A decorated function with its argument."""

    def __init__(self, fn: Any, kind: type[Any]) -> None:
        self.fn, self.kind = fn, kind

    def __call__(self) -> Any:
        return self.fn(self.kind)

    def peek(self) -> Any:
        return self.fn.peek(self.kind)
