"""The judge is judged: codecs that lose something are planted, and not one of their payloads is stored."""

from __future__ import annotations

import collections
import typing
import uuid
from collections.abc import Callable
from datetime import UTC, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import IntEnum
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

import pytest

from cacheguard.codec.fidelity import difference
from cacheguard.codec.objects import objects_form
from cacheguard.codec.tagged import Tagged
from cacheguard.codec.typed import Form, TypedCodec, codec_for
from cacheguard.errors import CodecError
from tests.support import value_classes as c


class Grade(IntEnum):
    A = 1


BERLIN = ZoneInfo("Europe/Berlin")
AT = datetime(2024, 7, 1, 12, 30, tzinfo=BERLIN)
AUTUMN = datetime(2020, 10, 25, 2, 30, tzinfo=BERLIN, fold=1)


def dropped(name: str) -> Callable[[Any], Any]:
    def spoil(value: Any) -> Any:
        vars(value).pop(name)
        return value

    return spoil


def changed(name: str, to: Any) -> Callable[[Any], Any]:
    def spoil(value: Any) -> Any:
        object.__setattr__(value, name, to)
        return value

    return spoil


def with_more(value: Any, **more: Any) -> Any:
    vars(value).update(more)
    return value


def inside(spoil: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda value: {"a": [1, spoil(value["a"][1])]}


def failure(cause: Exception | None = None, **attributes: Any) -> Exception:
    error = with_more(ValueError("x"), **attributes)
    error.__cause__ = cause
    return error  # type: ignore[no-any-return]


PLANTED: list[tuple[str, Callable[[], Any], Callable[[Any], Any], str]] = [
    ("a tuple becomes a list", lambda: [(1, 2)], lambda value: [list(value[0])], "[0]"),
    ("a set becomes frozen", lambda: {"a": {1}}, lambda value: {"a": frozenset(value["a"])}, "['a']"),
    ("a bool becomes an int", lambda: [0, True], lambda _: [0, 1], "[1]"),
    ("an int becomes a float", lambda: [1], lambda _: [1.0], "[0]"),
    ("a member becomes its value", lambda: [1, Grade.A], lambda _: [1, 1], "[1]"),
    ("a subclass of str becomes a str", lambda: {"a": c.Label("x")}, lambda _: {"a": "x"}, "['a']"),
    ("a zero loses its sign", lambda: [1.0, -0.0], lambda _: [1.0, 0.0], "[1]"),
    ("nan becomes None", lambda: {"a": float("nan")}, lambda _: {"a": None}, "['a']"),
    ("a decimal loses its zeros", lambda: [Decimal("1.10")], lambda _: [Decimal("1.1")], "[0]"),
    ("the order of a dict", lambda: {"b": 1, "a": 2}, lambda value: dict(sorted(value.items())), ".keys()"),
    ("the second of two equal hours", lambda: AUTUMN, lambda value: value.replace(fold=0), ""),
    (
        "a zone becomes its offset",
        lambda: [AT],
        lambda value: [value[0].replace(tzinfo=timezone(value[0].utcoffset()))],
        "[0].tzinfo",
    ),
    (
        "the name of a zone",
        lambda: time(1, tzinfo=timezone(timedelta(0), "X")),
        lambda value: value.replace(tzinfo=UTC),
        ".tzinfo",
    ),
    (
        "ZoneInfo('UTC') becomes UTC",
        lambda: [AT.astimezone(ZoneInfo("UTC"))],
        lambda value: [value[0].astimezone(UTC)],
        "[0].tzinfo",
    ),
    ("a named tuple becomes a tuple", lambda: [c.Pt(1)], lambda value: [tuple(value[0])], "[0]"),
    ("a subclass becomes its base", lambda: [c.Point3(1)], lambda _: [c.Point(1)], "[0]"),
    (
        "an attribute beside the fields",
        lambda: {"a": [1, with_more(c.Point(1), note=5)]},
        inside(dropped("note")),
        "['a'][1].note",
    ),
    (
        "an attribute that is no field changes",
        lambda: with_more(c.WithBase(1), perms=["w"]),
        changed("perms", []),
        ".perms",
    ),
    ("a private field", lambda: c.Private(1, "t"), changed("_secret", "s"), "._secret"),
    ("a field that comparison ignores", lambda: c.ById(1, "Ann"), changed("name", ""), ".name"),
    ("the dictionary beside slots", lambda: with_more(c.Roomy(1), note=5), dropped("note"), ".note"),
    (
        "which fields were set",
        lambda: c.Patch(age=1),
        changed("__pydantic_fields_set__", {"age", "name"}),
        ".__pydantic_fields_set__",
    ),
    (
        "which fields were set, one instead of another",
        lambda: c.Patch(age=1),
        changed("__pydantic_fields_set__", {"name"}),
        ".__pydantic_fields_set__{…}",
    ),
    ("the extras of a model", lambda: c.Loose(id=1, more=2), changed("__pydantic_extra__", {}), ".__pydantic_extra__"),  # type: ignore[call-arg]
    (
        "the private attributes of a model",
        lambda: c.Noted(id=1),
        changed("__pydantic_private__", {"_note": "x", "_seen": []}),
        ".__pydantic_private__['_note']",
    ),
    ("the attributes of an exception", lambda: [failure(pk=1)], lambda _: [failure()], "[0].pk"),
    ("the cause of an exception", lambda: [failure(KeyError(1))], lambda _: [failure()], "[0].__cause__"),
    (
        "the cause of an exception, another",
        lambda: [failure(KeyError(1))],
        lambda _: [failure(KeyError(2))],
        "[0].__cause__.args[0]",
    ),
    (
        "the factory of a defaultdict",
        lambda: collections.defaultdict(list),
        lambda _: collections.defaultdict(set),
        ".default_factory",
    ),
    ("the length of a deque", lambda: collections.deque([1], 3), lambda _: collections.deque([1]), ".maxlen"),
    ("an OrderedDict becomes a dict", lambda: [collections.OrderedDict(a=1)], lambda value: [dict(value[0])], "[0]"),
    ("attributes of a Counter", lambda: with_more(collections.Counter("a"), note=1), dropped("note"), ".note"),
    ("whether a UUID is safe", lambda: [UUID(int=1, is_safe=uuid.SafeUUID.safe)], lambda _: [UUID(int=1)], "[0]"),
    ("the arguments of a generic class", lambda: c.Page[int]([1]), dropped("__orig_class__"), ".__orig_class__"),
]


@pytest.mark.parametrize(("make", "spoil", "path"), [row[1:] for row in PLANTED], ids=[row[0] for row in PLANTED])
def test_a_planted_codec_that_loses_something_is_caught(
    make: Callable[[], Any], spoil: Callable[[Any], Any], path: str
) -> None:
    assert difference(make(), make()) is None
    assert difference(make(), spoil(make())) == path
    planted = Form(lambda _: b"planted", lambda _: spoil(make()))
    codec = TypedCodec("planted", b"12345678", planted, objects_form((), (), lambda _: "which is unknown here"), None)
    try:
        payload = codec.encode(make())
    except CodecError:
        return
    assert payload != b"planted"
    assert difference(make(), codec.decode(payload)) is None  # stored in the form that keeps it


def test_a_part_that_cannot_be_seen_counts_as_different() -> None:
    import threading

    for make in (threading.Lock, lambda: iter([1]), object, lambda: (each for each in [1])):
        assert difference(make(), make()) == ""


def test_generic_classes_are_what_they_say() -> None:
    one = c.Page[int]
    for clear in typing._cleanups:  # type: ignore[attr-defined]  # noqa: SLF001 - what makes another object of the same words
        clear()
    assert one is not c.Page[int]
    codec_for(one)  # msgspec leaves a cache on it
    assert difference(one, c.Page[int]) is None
    assert difference(one, c.Page[str]) == ""
    assert difference(list[int], list[int]) is None


def test_what_is_written_in_c_is_compared_by_what_pickle_would_ask_for() -> None:
    import pydantic_core

    assert difference(pydantic_core.Url("http://a/b"), pydantic_core.Url("http://a/b")) is None
    assert difference(pydantic_core.Url("http://a/b"), pydantic_core.Url("http://a/c")) == ""


def test_what_describes_itself_is_read_back_before_it_is_stored() -> None:
    """A form that loses something, as that of `Counter` once did, is refused with the path."""
    loses = Tagged({Decimal: lambda form, value, room: form.lower(str(value), room)})
    with pytest.raises(CodecError, match=r"\['price'\]"):
        loses.encode({"price": Decimal("1.5")})
    assert Tagged().decode(Tagged().encode({"price": Decimal("1.5")})) == {"price": Decimal("1.5")}


def test_a_combined_flag_that_is_another_object_is_the_same_by_its_value() -> None:
    def made(value: int) -> c.Bits:  # as Python up to 3.11.3 makes those with unknown bits, each time anew
        bits: Any = int.__new__(c.Bits, value)
        bits._name_, bits._value_ = None, value
        made: c.Bits = bits
        return made

    assert difference(made(8), made(8)) is None
    assert difference([made(8)], [made(16)]) == "[0]"
    assert difference(made(8), 8) == ""
