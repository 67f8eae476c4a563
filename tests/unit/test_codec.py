"""A value comes back as itself, as its annotation says, or is refused."""

from __future__ import annotations

import collections
import contextlib
import json
import math
import pickle
import sys
import typing
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass, field, make_dataclass
from datetime import UTC, date, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal
from enum import Enum, IntEnum, StrEnum
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Annotated, Any, ClassVar, Generic, Literal, NamedTuple, NewType, NotRequired, TypedDict, TypeVar
from uuid import UUID
from zoneinfo import ZoneInfo

import attrs
import msgspec
import pydantic
import pytest
from typing_extensions import TypeAliasType

from cacheguard.codec import TAGGED, Codec, CustomCodec, Registry, codec_for, return_codec
from cacheguard.codec.fidelity import difference
from cacheguard.codec.typed import RefusingCodec
from cacheguard.errors import CodecError, ConfigurationError

T = TypeVar("T")

BERLIN = ZoneInfo("Europe/Berlin")
SUMMER = datetime(2024, 7, 1, 12, 30, tzinfo=BERLIN)
NAN = float("nan")


class Color(Enum):
    RED = "r"
    GREEN = "g"


class Level(IntEnum):
    LOW = 1


class Word(StrEnum):
    HI = "hi"


@dataclass
class Point:
    x: int
    y: float = 0.0


@dataclass
class Deeper(Point):
    z: int = 3


@dataclass
class Tree:
    kind: ClassVar[str] = "tree"
    name: str
    children: list[Tree] = field(default_factory=list)


@dataclass
class Loose:
    x: int
    extra: dict[str, Any]


@dataclass(eq=False)
class Incomparable:
    x: float


@dataclass
class ById:
    id: int
    name: str = ""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ById) and self.id == other.id

    def __hash__(self) -> int:
        return self.id


@dataclass
class ByIdDeeper(ById):
    more: str = ""


@dataclass
class Raising:
    x: int

    __hash__ = None  # type: ignore[assignment]

    def __eq__(self, other: object) -> bool:
        raise RuntimeError


@dataclass
class Vague:
    x: int

    __hash__ = None  # type: ignore[assignment]

    def __eq__(self, other: object) -> typing.Any:
        return "perhaps"


@dataclass
class Forgetful:
    x: int
    secret: int = field(default=0, compare=False)

    def __post_init__(self) -> None:
        self.secret = 7


@dataclass(frozen=True, eq=False)
class Member:
    n: int


@dataclass
class Crew:
    members: set[Member]


@dataclass
class Page(Generic[T]):
    items: list[T]


@attrs.define
class Box:
    size: int
    tags: list[str] = attrs.field(factory=list)


@attrs.define(eq=False)
class PlainBox:
    size: int


@attrs.define
class CasedBox:
    name: str = attrs.field(eq=str.lower)


class Row(msgspec.Struct):
    id: int
    colors: set[Color]


class Movie(TypedDict):
    title: str
    year: NotRequired[int]
    score: float


class Pair(NamedTuple):
    a: int
    b: str = "b"


Untyped = collections.namedtuple("Untyped", "a")  # noqa: PYI024 - the untyped kind is the point

UserId = NewType("UserId", int)


class User(pydantic.BaseModel):
    id: int
    tags: set[str] = set()
    seen: datetime | None = None
    raw: bytes = b""
    _note: str = pydantic.PrivateAttr("")


class Admin(User):
    rights: int = 0


class Aliased(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid")
    user_name: str = pydantic.Field(validation_alias="userName", serialization_alias="user-name")

    @pydantic.computed_field  # type: ignore[prop-decorator]  # mypy knows no decorated properties
    @property
    def shout(self) -> str:
        return self.user_name.upper()


class Secretive(pydantic.BaseModel):
    password: pydantic.SecretStr


class Opaque:
    pass


def through(annotation: object, value: Any) -> Any:
    codec = codec_for(annotation)
    return codec.decode(memoryview(codec.encode(value)))


# ---- values with an annotation


@pytest.mark.parametrize(
    ("annotation", "value"),
    [
        (int, 5),
        (int, -(2**63)),
        (int, 2**200),
        (int, -(2**200)),
        (bool, True),
        (float, 1.5),
        (str, "ü"),
        (bytes, b"\x00\xff"),
        (bytearray, bytearray(b"x")),
        (None, None),
        (int | None, None),
        (Decimal, Decimal("1.10")),
        (UUID, UUID(int=7)),
        (date, date(2024, 2, 29)),
        (time, time(1, 2, 3, 4)),
        (time, time(1, 2, tzinfo=UTC)),
        (timedelta, timedelta.min),
        (datetime, datetime(2024, 1, 1)),  # noqa: DTZ001 - naive moments exist
        (datetime, datetime(1, 1, 1, tzinfo=UTC)),
        (Color, Color.RED),
        (Level, Level.LOW),
        (Word, Word.HI),
        (list[int], [1, 2]),
        (tuple[int, str], (1, "a")),
        (tuple[int, ...], (1, 2, 3)),
        (set[int], {1, 2}),
        (frozenset[str], frozenset({"a"})),
        (dict[int, str], {1: "a"}),
        (dict[tuple[int, int], Decimal], {(1, 2): Decimal("1.0")}),
        (Literal["a", 1], "a"),
        (UserId, 5),
        (Annotated[int, msgspec.Meta(ge=1)], 5),
        (TypeAliasType("Ids", list[int]), [1]),
        (Point, Point(1, 2.0)),
        (Point | None, Point(1, 2.0)),
        (Tree, Tree("a", [Tree("b")])),
        (Page[Point], Page([Point(1)])),
        (Box, Box(1, ["a"])),
        (CasedBox, CasedBox("Ann")),
        (Row, Row(1, {Color.RED})),
        (Movie, {"score": 1.0, "title": "M"}),
        (Pair, Pair(1)),
        (Untyped, Untyped(1)),
        (list[Pair], [Pair(1)]),
        (dict[str, list[Point]], {"a": [Point(1)]}),
        (User, User(id=1, tags={"a"}, seen=datetime(2024, 1, 1, tzinfo=UTC))),
        (list[User] | None, [User(id=1)]),
        (Aliased, Aliased.model_validate({"userName": "ann"})),
    ],
)
def test_an_annotated_value_comes_back_equal_and_of_its_type(annotation: object, value: Any) -> None:
    back = through(annotation, value)
    assert back == value
    assert type(back) is type(value)


@pytest.mark.parametrize(
    ("annotation", "value"),
    [
        (list[int], (1, 2)),
        (Sequence[int], (1, 2)),
        (Iterable[int], [1, 2]),
        (tuple[int, ...], [1, 2]),
        (float, 3),
        (float, 2**53 + 1),
        (float, True),
        (int, True),
        (list[Decimal], [1.5]),
        (set[int], [1]),
        (set[int], {1: 2}),
        (list[int], {1}),
        (frozenset[int], {1}),
        (dict[str, int], collections.Counter("aa")),
        (dict[str, int], collections.OrderedDict(a=1)),
        (Literal["a"], "b"),
        (Annotated[int, msgspec.Meta(ge=1)], 0),
        (Movie, {"title": "M", "score": 1.0, "unknown": 1}),
        (Path, Path("/a")),
        (complex, 1 + 2j),
    ],
)
def test_a_value_of_another_type_than_annotated_keeps_its_type(annotation: object, value: Any) -> None:
    back = through(annotation, value)
    assert back == value
    assert type(back) is type(value)


@pytest.mark.parametrize(
    ("annotation", "value"),
    [
        (int, "1"),
        (int, 1.0),
        (int, Level.LOW),
        (str, UUID(int=1)),
        (str, Color.RED),
        (str, Word.HI),
        (str, b"x"),
        (str, "\ud800"),
        (datetime, "2024-01-01T00:00:00"),
        (Decimal, 1.5),
        (bytes, bytearray(b"x")),
        (tuple[int, str], Pair(1)),
        (Point, Deeper(1)),
        (list[Point], [Deeper(1)]),
        (ById, ByIdDeeper(1)),
        (Forgetful, SimpleNamespace(x=1)),
        (User, Admin(id=1)),
        (Secretive, Secretive(password=pydantic.SecretStr("x"))),
        (Any, Point(1)),
        (Color, "r"),
    ],
)
def test_a_value_that_would_not_come_back_is_refused(annotation: object, value: Any) -> None:
    with pytest.raises(CodecError):
        codec_for(annotation).encode(value)


@pytest.mark.parametrize("value", [Incomparable(NAN), Incomparable(1.0), Vague(1), Raising(1)])
def test_a_class_that_cannot_be_compared_is_compared_by_its_fields(value: Any) -> None:
    back = through(type(value), value)
    assert back.x == value.x or math.isnan(back.x)
    assert type(back) is type(value)


def test_attrs_without_comparison_are_compared_by_their_fields() -> None:
    assert through(PlainBox, PlainBox(3)).size == 3


def test_a_comparison_by_id_does_not_hide_a_lost_field() -> None:
    back = through(ById, ById(1, "Ann"))
    assert back.name == "Ann"


def test_a_field_left_out_of_the_comparison_is_compared_all_the_same() -> None:
    value = Forgetful(1)
    value.secret = 8
    assert through(Forgetful, value).secret == 8
    assert through(Forgetful, Forgetful(1)).secret == 7


def test_a_model_keeps_its_private_attributes() -> None:
    noted = User(id=1)
    noted._note = "private"  # noqa: SLF001 - what users do within their models
    assert through(User, noted)._note == "private"  # noqa: SLF001 - as above


def test_nan_comes_back_in_every_place() -> None:
    assert through(float, NAN) != through(float, NAN)
    (back,) = through(set[float], {NAN})
    assert math.isnan(back)
    assert str(through(Decimal, Decimal("sNaN"))) == "sNaN"
    assert through(list[float], [NAN, 1.0])[1] == 1.0


def test_members_without_equality_are_matched_by_their_parts() -> None:
    crew = Crew({Member(1), Member(2)})
    assert {member.n for member in through(Crew, crew).members} == {1, 2}


def test_a_large_set_of_members_without_equality_is_refused() -> None:
    with pytest.raises(CodecError):
        codec_for(Crew).encode(Crew({Member(n) for n in range(40)}))


def test_a_set_whose_members_lose_their_zone_is_stored_in_the_form_that_keeps_it() -> None:
    (back,) = through(set[datetime], {SUMMER})
    assert back.tzinfo is BERLIN


@pytest.mark.parametrize("zone", [BERLIN, ZoneInfo("UTC"), UTC, timezone(timedelta(hours=2)), None])
def test_a_time_zone_is_kept(zone: tzinfo | None) -> None:
    moment = datetime(2024, 1, 1, tzinfo=zone)
    back = through(datetime, moment)
    assert back.replace(tzinfo=None) == moment.replace(tzinfo=None)
    assert back.utcoffset() == moment.utcoffset()
    if zone is BERLIN:
        assert back.tzinfo is BERLIN


def test_the_second_of_two_equal_hours_is_kept() -> None:
    assert through(datetime, datetime(2020, 10, 25, 2, 30, tzinfo=BERLIN, fold=1)).fold == 1
    assert through(time, time(2, 30, fold=1)).fold == 1


def test_a_model_keeps_zones_and_bytes_that_json_does_not_know() -> None:
    value = User(id=1, seen=SUMMER, raw=b"\xff\xfe")
    back = through(User, value)
    assert back == value
    assert back.seen.tzinfo == BERLIN


def test_a_typed_dict_may_have_its_keys_in_any_order() -> None:
    class Both(TypedDict):
        a: datetime
        b: int

    value = {"b": 1, "a": SUMMER}
    assert through(Both, value) == value


def test_parts_that_the_annotation_leaves_open_come_back_exactly_or_not_at_all() -> None:
    value = Loose(1, {"moment": SUMMER, "pair": (1, [2]), "id": UUID(int=1), "price": Decimal("1.10")})
    back = through(Loose, value)
    assert back == value
    assert type(back.extra["pair"]) is tuple
    for kept in (collections.OrderedDict(a=1), {1, 2}):
        assert type(through(Loose, Loose(1, {"kept": kept})).extra["kept"]) is type(kept)
    for lossy in (Color.RED, Word.HI, Point(1)):
        with pytest.raises(CodecError):
            codec_for(Loose).encode(Loose(1, {"lossy": lossy}))


def test_a_class_in_a_bare_container_is_not_guessed() -> None:
    with pytest.raises(CodecError, match="Page"):
        codec_for(Page).encode(Page([Point(1)]))


@pytest.mark.parametrize(
    "annotation",
    [Any, object, T, list, dict[str, Any], tuple, dict, typing.List, list[T], "User", 5, typing.Self, Sequence],  # type: ignore[valid-type]  # noqa: UP006
)
def test_an_annotation_that_says_nothing_leaves_the_value_to_the_tagged_form(annotation: object) -> None:
    assert codec_for(annotation) is TAGGED


@pytest.mark.parametrize("annotation", [str | datetime, list[str | date], set[int] | list[int], Path | None])
def test_builtin_values_that_no_typed_form_can_tell_apart_are_tagged(annotation: object) -> None:
    assert codec_for(annotation) is TAGGED


@pytest.mark.parametrize(
    ("value", "arm"), [(Point(1, 1.5), Point), (Box(1, ["a"]), Box), (None, type(None)), (User(id=1), User)]
)
def test_a_union_of_classes_remembers_which_it_was(value: Any, arm: type) -> None:
    codec = codec_for(Point | Box | Row | User | None)
    back = codec.decode(codec.encode(value))
    assert back == value
    assert type(back) is arm


def test_a_union_of_classes_refuses_strangers_and_foreign_bytes() -> None:
    codec = codec_for(Point | Box)
    assert "Point" in repr(codec)
    with pytest.raises(CodecError, match=r"Box.*Deeper|Deeper.*Box"):
        codec.encode(Deeper(1))
    for payload in (b"", b"\x02\x80", b"\x00\xc1"):
        with pytest.raises(CodecError):
            codec.decode(payload)


@pytest.mark.parametrize("annotation", [Opaque, list[Opaque], Opaque | complex, dict[str, Opaque]])
def test_an_annotation_that_cannot_be_stored_refuses_with_a_reason(annotation: object) -> None:
    codec = codec_for(annotation)
    with pytest.raises(CodecError, match=r"no form to store it in: return a dataclass .*serializer="):
        codec.encode(Opaque())
    with pytest.raises(CodecError, match="hold no"):
        codec.decode(b"\xc0")


@pytest.mark.parametrize("annotation", [Callable[[int], str], type[int], Iterable[int]])
def test_functions_and_classes_are_refused(annotation: object) -> None:
    for value in (len, int, Opaque()):
        with pytest.raises(CodecError, match="serializer="):
            codec_for(annotation).encode(value)


def test_a_union_stores_the_members_that_it_can() -> None:
    codec = codec_for(Point | Box | Opaque)
    assert codec.decode(codec.encode(Point(1))) == Point(1)
    with pytest.raises(CodecError, match="Opaque"):
        codec.encode(Opaque())


def test_a_field_whose_type_never_exists_is_a_reason_to_refuse() -> None:
    broken = make_dataclass("Broken", [("x", "Missing")])
    codec = codec_for(broken)
    assert isinstance(codec, RefusingCodec)
    with pytest.raises(CodecError, match="Missing"):
        codec.encode(broken(1))


def test_a_model_without_a_schema_is_a_reason_to_refuse() -> None:
    model = pydantic.create_model("Hooked", hook=(Callable[[], int], ...))
    with pytest.raises(CodecError, match="serializer="):
        codec_for(model).encode(model(hook=int))


def test_models_of_an_old_pydantic_are_stored_without_its_help(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pydantic, "VERSION", "2.10.6")
    assert through(User, User(id=1)) == User(id=1)


@pytest.mark.parametrize("annotation", [int, Point, User, Any, Point | Box, Opaque, list[datetime]])
@pytest.mark.parametrize(
    "payload",
    [b"", b"\xc1", b"\xc1\xc1", b"\x00\x01", b"\xff" * 40, b"\x91" * 100_000, b"\xdd\xff\xff\xff\xff", b"\xd8\x63"],
)
def test_bytes_that_cannot_be_decoded_are_an_error_of_ours(annotation: object, payload: bytes) -> None:
    codec = codec_for(annotation)
    for form in (payload, memoryview(payload)):
        with pytest.raises(CodecError):
            codec.decode(form)


def test_a_class_that_refuses_its_own_data_is_an_error_of_ours() -> None:
    @dataclass
    class Picky:
        x: int

        def __post_init__(self) -> None:
            if self.x > 5:
                raise KeyError(self.x)

    with pytest.raises(CodecError):
        codec_for(Picky).decode(msgspec.msgpack.encode({"x": 6}))


@pytest.mark.parametrize(
    ("given", "back", "is_same"),
    [
        ({1}, {1, 2}, False),
        ({1}, {2}, False),
        ({NAN}, {NAN, 1.0}, False),
        ({float("nan"), float("nan")}, {float("nan"), float("nan")}, True),
        ({float("nan"), 1.0}, {float("nan"), 2.0}, False),
        ({SUMMER}, {SUMMER.astimezone(UTC)}, False),
        ({"a": 1, "b": SUMMER}, {"b": SUMMER, "a": 1}, False),
        ({"a": 1, "b": SUMMER}, {"b": SUMMER.astimezone(UTC), "a": 1}, False),
        ({"a": 1}, {"b": 1}, False),
        ({"a": 1}, {}, False),
        ({"a": 1}, {"a": 2}, False),
        ([1], [1, 2], False),
        ((1, 2), (1, 3), False),
        (time(1, tzinfo=UTC), time(1), False),
        (Decimal("1.0"), Decimal("1.00"), False),
        (Opaque(), Opaque(), True),
        (object(), object(), False),
        (True, 1, False),
    ],
)
def test_values_are_compared_part_by_part(given: object, back: object, is_same: bool) -> None:
    assert (difference(given, back) is None) is is_same


# ---- fingerprints


def test_fingerprints_are_the_same_in_every_process() -> None:
    assert codec_for(dict[str, int]).schema.hex() == "c88c873d1dcec7ea"
    assert codec_for(Row | None).schema.hex() == "fd958d26306a9f1b"
    assert TAGGED.schema.hex() == "9d3e219cffcec7ea"
    assert CustomCodec(pickle).schema.hex() == "c049f663c6cec7ea"


def test_the_order_of_a_union_and_a_default_do_not_change_the_fingerprint() -> None:
    assert codec_for(int | None).schema == codec_for(None | int).schema
    one = make_dataclass("Thing", [("x", int, field(default=1))])
    two = make_dataclass("Thing", [("x", int, field(default=2))])
    assert codec_for(one).schema == codec_for(two).schema


def test_a_default_of_a_model_changes_its_fingerprint_and_a_docstring_does_not() -> None:
    def model(default: set[str], doc: str) -> type[pydantic.BaseModel]:
        fields: Any = {"default": (int, ...), "tags": (set[str], default)}
        return pydantic.create_model("Thing", __doc__=doc, **fields)

    one = codec_for(model({"a", "b"}, "One.")).schema
    assert one == codec_for(model({"b", "a"}, "Two.")).schema
    assert one != codec_for(model({"a", "c"}, "One.")).schema  # a field that was not set is not stored


def _knot(back_to: str) -> type:
    """A class that contains another, which contains one of the two."""
    source = f"""
@dataclass
class Outer:
    inner: "Inner"

@dataclass
class Inner:
    back: "{back_to}"
"""
    module = ModuleType(f"knot_of_{back_to}")
    sys.modules[module.__name__] = module
    vars(module).update(dataclass=dataclass, __name__=module.__name__)
    exec(source, vars(module))
    knot: type = vars(module)["Outer"]
    return knot


def _thing(*fields: Any, name: str = "Thing") -> type:
    return make_dataclass(name, fields)


_VERSIONS = [
    _thing(("x", int)),
    _thing(("x", str)),
    _thing(("y", int)),
    _thing(("x", int), ("y", int)),
    _thing(("y", int), ("x", int)),
    _thing(("x", int, field(default=1))),
    _thing(("x", int | None)),
    _thing(("x", list[int])),
    _thing(("x", int), name="Other"),
    list[_thing(("x", int))],  # type: ignore[misc]
    msgspec.defstruct("Thing", [("x", int)]),
    msgspec.defstruct("Thing", [("x", int)], tag=True),
    msgspec.defstruct("Thing", [("x", int)], array_like=True),
    pydantic.create_model("Thing", x=int),
    pydantic.create_model("Thing", x=str),
    pydantic.create_model("Thing", x=(int, 1)),
    pydantic.create_model("Thing", default=(int, ...)),
    pydantic.create_model("Thing", default=(str, ...)),
    Enum("Thing", {"A": 1}),
    Enum("Thing", {"A": 2}),
    Enum("Thing", {"B": 1}),
    Literal[1],
    Literal[2],
    Literal["1"],
    int,
    bool,
    tuple[int, str],
    tuple[int, ...],
    tuple[str, int],
    Annotated[int, msgspec.Meta(ge=1)],
    Page[int],
    Page[str],
    Tree,
    _knot("Outer"),
    _knot("Inner"),
    Any,
    Point | Box,
    Box | Row,
    Opaque,
]


def test_another_version_of_a_type_has_another_fingerprint() -> None:
    schemas = {codec_for(version).schema for version in _VERSIONS}
    assert len(schemas) == len(_VERSIONS)
    assert {len(schema) for schema in schemas} == {8}


# ---- values without an annotation


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        0,
        2**64 - 1,
        2**64,
        -(2**63) - 1,
        1.0,
        float("inf"),
        "ü",
        b"x",
        [1, [2]],
        {"a": {"b": None}},
        {1: 1, "1": 2, 1.5: 3, None: 4, (1, 2): 5, frozenset({1}): 6, b"x": 7},
        (1, (2,)),
        {1, "a"},
        frozenset({(1, 2)}),
        Decimal("-1.10E+5"),
        datetime(2024, 1, 1),  # noqa: DTZ001
        SUMMER,
        datetime(2024, 1, 1, tzinfo=timezone(timedelta(hours=2, microseconds=1))),
        datetime(2024, 1, 1, tzinfo=timezone(timedelta(hours=2), "CEST")),
        date(1, 1, 1),
        time(1, 2, 3, 4, tzinfo=UTC),
        time(1, 2, 3, 4, tzinfo=BERLIN),
        timedelta(days=-1, seconds=5, microseconds=7),
        UUID(int=2**127),
        [],
        {},
        set(),
        (),
    ],
)
def test_a_tagged_value_comes_back_with_its_exact_type(value: Any) -> None:
    back = TAGGED.decode(memoryview(TAGGED.encode(value)))
    assert back == value
    assert type(back) is type(value)
    assert repr(back) == repr(value) or isinstance(value, (set, frozenset))


def test_numbers_that_are_equal_keep_their_types_in_the_tagged_form() -> None:
    back = TAGGED.decode(TAGGED.encode([1, 1.0, True]))
    assert [type(part) for part in back] == [int, float, bool]


def test_the_tagged_form_keeps_nan_and_the_second_of_two_equal_hours() -> None:
    assert TAGGED.decode(TAGGED.encode(NAN)) != NAN
    assert TAGGED.decode(TAGGED.encode(datetime(2020, 10, 25, 2, 30, tzinfo=BERLIN, fold=1))).fold == 1
    assert TAGGED.decode(TAGGED.encode(time(2, 30, fold=1))).fold == 1


class Unfixed(tzinfo):
    """A zone that neither has a key nor a fixed offset."""

    def utcoffset(self, moment: datetime | None) -> timedelta | None:
        return None

    def tzname(self, moment: datetime | None) -> None:
        return None

    def dst(self, moment: datetime | None) -> None:
        return None


class Fixed(tzinfo):
    """A zone of somebody else's making, with a fixed offset and no name."""

    def utcoffset(self, moment: datetime | None) -> timedelta:
        return timedelta(hours=1)

    def tzname(self, moment: datetime | None) -> None:
        return None

    def dst(self, moment: datetime | None) -> None:
        return None


def test_a_foreign_zone_is_refused_with_the_way_out() -> None:
    with pytest.raises(CodecError, match=r"Fixed, a time zone .*zoneinfo"):
        TAGGED.encode([datetime(2024, 1, 1, tzinfo=Fixed())])


@pytest.mark.parametrize(
    "value",
    [
        Color.RED,
        Level.LOW,
        Word.HI,
        Point(1),
        Pair(1),
        collections.defaultdict(lambda: 1),
        memoryview(b"x"),
        Opaque(),
        int,
        [Opaque()],
        {"a": Opaque()},
        {Opaque(): 1},
        {Color.RED},
        "\ud800",
        ["\udfff"],
        datetime(2024, 1, 1, tzinfo=Unfixed()),
        datetime(2024, 1, 1, tzinfo=tzinfo()),  # type: ignore[abstract]  # half a zone
    ],
)
def test_a_value_of_another_type_is_refused_by_the_tagged_form(value: Any) -> None:
    with pytest.raises(CodecError):
        TAGGED.encode(value)


def test_the_refusal_names_the_type_and_the_way_out() -> None:
    with pytest.raises(CodecError, match=r"\[1\]\['a'\] is a .*Point, .*annotate .*serializer="):
        TAGGED.encode([1, {"a": Point(1)}])
    assert repr(TAGGED) == "TAGGED"


def test_a_value_that_contains_itself_is_refused() -> None:
    loop: list[Any] = []
    loop += [loop, loop]
    knot: dict[Any, Any] = {}
    knot[1] = (knot, knot)
    for value in (loop, knot):
        with pytest.raises(CodecError, match="contains itself"):
            TAGGED.encode(value)
    with pytest.raises(CodecError):
        codec_for(Loose).encode(Loose(1, {"loop": loop}))


def test_values_nest_to_a_bound_and_no_further() -> None:
    def nested(levels: int) -> Any:
        value: Any = ()
        for _ in range(levels - 1):
            value = (value,)
        return value

    assert TAGGED.decode(TAGGED.encode(nested(100))) == nested(100)
    with pytest.raises(CodecError, match="100 levels"):
        TAGGED.encode(nested(101))


@pytest.mark.parametrize("zone", ["../../etc/passwd", "No/Where", "", [1, 2, 3], {}, 2**63, -1.5])
def test_a_zone_made_up_by_somebody_else_is_an_error_of_ours(zone: Any) -> None:
    moment = msgspec.msgpack.encode([2024, 1, 1, 0, 0, 0, 0, 0, zone])
    with pytest.raises(CodecError):
        TAGGED.decode(msgspec.msgpack.encode(msgspec.msgpack.Ext(7, moment)))


@pytest.mark.parametrize("code", [*range(-3, 14), 100])
@pytest.mark.parametrize("data", [b"", b"\xc1", b"\x91\x01", b"\x93\xa1a\x01\x01", b"\x91\x91\x80"])
def test_foreign_tags_are_an_error_of_ours_or_a_value(code: int, data: bytes) -> None:
    if code == -1:
        return  # MessagePack's own moments, which msgspec reads
    with contextlib.suppress(CodecError):
        TAGGED.decode(msgspec.msgpack.encode(msgspec.msgpack.Ext(code, data)))


# ---- serializers of the user


def test_a_serializer_of_the_user_is_taken_as_it_is() -> None:
    codec = CustomCodec(pickle)
    assert codec.decode(memoryview(codec.encode(Point(1)))) == Point(1)
    assert "pickle" in repr(codec)


def test_a_serializer_may_write_text() -> None:
    codec = CustomCodec(json)
    assert codec.decode(codec.encode({"a": 1})) == {"a": 1}


def test_what_a_serializer_raises_or_returns_wrongly_is_an_error_of_ours() -> None:
    codec = CustomCodec(json)
    with pytest.raises(CodecError, match="Opaque"):
        codec.encode(Opaque())
    with pytest.raises(CodecError, match="cannot read"):
        codec.decode(b"{")
    wrong = CustomCodec(SimpleNamespace(dumps=lambda value: 5, loads=lambda payload: None))
    with pytest.raises(CodecError, match="must return bytes"):
        wrong.encode(1)
    assert CustomCodec(SimpleNamespace(dumps=lambda value: bytearray(b"x"), loads=len)).encode(1) == b"x"


@pytest.mark.parametrize("serializer", [object(), SimpleNamespace(dumps=pickle.dumps), "pickle"])
def test_a_serializer_without_both_halves_is_a_mistake_of_configuration(serializer: Any) -> None:
    with pytest.raises(ConfigurationError, match="dumps"):
        CustomCodec(serializer)


# ---- the codec of a function


def test_a_function_is_read_by_its_return_annotation() -> None:
    def find(id: int, other: Missing) -> Point | None: ...  # type: ignore[name-defined]  # noqa: A002, F821

    codec = return_codec(find)
    assert codec.schema == codec_for(Point | None).schema
    assert codec.decode(codec.encode(Point(1))) == Point(1)


def test_a_coroutine_function_and_one_that_returns_an_awaitable_are_read_alike() -> None:
    async def find() -> Point:
        raise AssertionError("only its annotation is read")

    def begin() -> Awaitable[Point]:
        raise AssertionError("only its annotation is read")

    def start() -> Coroutine[Any, Any, Point]:
        raise AssertionError("only its annotation is read")

    assert return_codec(find).schema == return_codec(begin).schema == return_codec(start).schema


def test_the_original_function_behind_a_decorator_is_read() -> None:
    def find() -> Point:
        raise AssertionError("only its annotation is read")

    def wrapper() -> Any: ...

    wrapper.__wrapped__ = find  # type: ignore[attr-defined]
    assert return_codec(wrapper).schema == codec_for(Point).schema


def test_a_function_without_a_usable_annotation_is_tagged() -> None:
    def bare():  # type: ignore[no-untyped-def]  # noqa: ANN202
        ...

    def strange() -> 5: ...  # type: ignore[valid-type]

    def broken() -> "1 +": ...  # type: ignore[valid-type] # noqa: F722

    assert return_codec(bare) is TAGGED
    assert return_codec(strange) is TAGGED
    assert return_codec(broken) is TAGGED
    assert return_codec(len) is TAGGED


def test_a_class_of_the_enclosing_function_is_found_if_the_function_uses_it() -> None:
    @dataclass
    class Local:
        x: int

    def find() -> Local:
        return Local(1)

    codec = return_codec(find)
    assert codec.decode(codec.encode(find())) == Local(1)


def test_a_name_that_is_defined_later_is_resolved_at_the_first_use() -> None:
    scope: dict[str, Any] = {}
    exec("def find() -> 'Later': return Later", scope)
    codec = return_codec(scope["find"])
    assert "find" in repr(codec)
    scope["Later"] = Point
    assert codec.schema == codec_for(Point).schema
    assert codec.decode(codec.encode(Point(1))) == Point(1)


def test_a_class_that_is_defined_later_is_found_through_its_closure() -> None:
    def outer() -> tuple[Callable[[], Any], Codec]:
        def find() -> Local:
            return Local(1)

        codec = return_codec(find)

        @dataclass
        class Local:
            x: int

        return find, codec

    find, codec = outer()
    assert codec.decode(codec.encode(find())) == find()


def test_a_name_that_never_appears_leaves_the_value_to_the_tagged_form() -> None:
    def find() -> Missing: ...  # type: ignore[name-defined]  # noqa: F821

    codec = return_codec(find)
    assert codec.schema == TAGGED.schema
    assert codec.decode(codec.encode((1,))) == (1,)


def test_a_model_that_is_completed_later_is_resolved_at_the_first_use() -> None:
    scope: dict[str, Any] = {"BaseModel": pydantic.BaseModel}
    exec("class Half(BaseModel):\n    other: 'Other'\n\ndef find() -> Half: ...", scope)
    codec = return_codec(scope["find"])
    scope["Other"] = Point
    scope["Half"].model_rebuild(_types_namespace=scope)
    value = scope["Half"](other=Point(1))
    assert codec.decode(codec.encode(value)) == value


# ---- the codecs of a guard


def test_a_payload_is_read_by_the_codec_that_wrote_it() -> None:
    registry = Registry()
    codec = codec_for(Point)
    registry.register(codec)
    registry.register(codec_for(Point))
    assert registry.by_schema(codec.schema) is codec
    assert registry.by_schema(TAGGED.schema) is TAGGED
    assert registry.by_schema(b"unknown!") is None


def test_a_value_is_written_by_the_codec_whose_type_it_has() -> None:
    registry = Registry()
    for annotation in (list[Row], Point | None, Box | Row, int, Opaque):
        registry.register(codec_for(annotation))
    registry.register(CustomCodec(pickle))
    assert registry.for_value(Point(1)).schema == codec_for(Point | None).schema
    assert registry.for_value(Box(1)).schema == codec_for(Box | Row).schema
    for value in (Deeper(1), 5, [Row(1, set())], None, Opaque()):
        assert registry.for_value(value) is TAGGED


def test_a_late_codec_is_found_as_soon_as_it_can_be_resolved() -> None:
    scope: dict[str, Any] = {}
    exec("def find() -> 'Later': return Later", scope)
    registry = Registry()
    registry.register(return_codec(scope["find"]))
    schema = codec_for(Point).schema
    assert registry.by_schema(schema) is None
    assert registry.for_value(Point(1)) is TAGGED
    scope["Later"] = Point
    assert registry.for_value(Point(1)).schema == schema
    found = registry.by_schema(schema)
    assert found is not None
    assert found.schema == schema


def test_a_late_codec_is_found_by_its_schema_too() -> None:
    scope: dict[str, Any] = {"Later": Point}
    exec("def find() -> 'Missing': ...", scope)
    registry = Registry()
    registry.register(return_codec(scope["find"]))
    scope["Missing"] = Point
    assert registry.by_schema(codec_for(Point).schema) is not None
