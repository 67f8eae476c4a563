"""An argument whose text does not tell two values apart is refused; equal arguments have one text."""

from __future__ import annotations

import collections
import functools
import itertools
import logging
import types
from collections.abc import Callable, Iterator, Mapping
from dataclasses import InitVar, dataclass, field
from decimal import Decimal
from enum import StrEnum
from typing import Any, NamedTuple
from uuid import UUID

import attrs
import msgspec
import pydantic
import pytest
from werkzeug.datastructures import MultiDict

from cacheguard.errors import KeyTemplateError
from cacheguard.keys import compile_key


def anything(x: Any) -> None: ...


def text_of(value: Any) -> str:
    return compile_key(None, anything).text_of(value)


# State that no field declares


@dataclass
class Filter:
    x: int
    secret: InitVar[str] = ""

    def __post_init__(self, secret: str) -> None:
        self._secret = secret


@dataclass
class Point:
    x: int
    hidden: int = field(default=0, compare=False, repr=False)

    @functools.cached_property
    def twice(self) -> int:
        return 2 * self.x


@attrs.define(slots=False)
class Loose:
    x: int
    _private: int = attrs.field(default=0, eq=False, repr=False, alias="private")


@attrs.define
class Tight:
    x: int

    @functools.cached_property
    def twice(self) -> int:
        return 2 * self.x


class Struct(msgspec.Struct, dict=True):
    x: int


class Model(pydantic.BaseModel):
    x: int = 1
    hidden: int = pydantic.Field(default=0, exclude=True, repr=False)
    _private: int = pydantic.PrivateAttr(0)

    @functools.cached_property
    def twice(self) -> int:
        return 2 * self.x


class Open(pydantic.BaseModel, extra="allow"):
    x: int = 1


class Pair(NamedTuple):
    x: int


class NamedPair(Pair):
    pass


class Tenant:
    """Equal to nothing but itself, and its repr shows a part of it."""

    def __init__(self, id: int, name: str = "ann") -> None:  # noqa: A002
        self.id, self.name = id, name

    def __repr__(self) -> str:
        return f"Tenant({self.id})"


class Slotted:
    __slots__ = ("__own", "id")

    def __init__(self, id: int, own: str = "ann") -> None:  # noqa: A002
        self.id, self.__own = id, own

    def __repr__(self) -> str:
        return f"Slotted({self.id})"


class Whole(Tenant):
    def __repr__(self) -> str:
        return f"Whole({self.id}, {self.name!r})"


class Money:
    """Its class says when two are equal."""

    def __init__(self, cents: int) -> None:
        self._cents = cents

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Money) and self._cents == other._cents

    def __hash__(self) -> int:
        return hash(self._cents)

    def __repr__(self) -> str:
        return f"Money('{self._cents / 100}')"


class Text(str):
    __slots__ = ("__dict__", "part")


def with_attribute(value: Any, name: str = "extra", of: Any = 1) -> Any:
    setattr(value, name, of)
    return value


def private(value: Any) -> Any:
    return with_attribute(value, "_private", 7)


@pytest.mark.parametrize(
    ("value", "found"),
    [
        (Filter(1, "a"), "InitVar secret"),
        ([Filter(1, "a")], "InitVar secret"),
        (with_attribute(Point(1)), "extra"),
        (with_attribute(Loose(1)), "extra"),
        (with_attribute(Struct(1)), "extra"),
        (with_attribute(NamedPair(1)), "extra"),
        (Tenant(1), "does not show its name"),
        ({"a": Tenant(1)}, "does not show its name"),
        (Slotted(1), "does not show its _Slotted__own"),
        (functools.partial(int, "1"), "does not tell it apart"),
    ],
    ids=str,
)
def test_state_that_a_key_does_not_show_is_refused(value: Any, found: str) -> None:
    with pytest.raises(KeyTemplateError, match=found):
        text_of(value)


def test_an_init_var_is_refused_when_decorating() -> None:
    def find(rows: list[Filter] | None) -> None: ...

    find.__annotations__["rows"] = list[Filter] | None
    with pytest.raises(KeyTemplateError, match="does not say what its InitVar secret was"):
        compile_key(None, find)
    assert compile_key("{rows[0].x}", find).text_of([Filter(1, "a")]) == "1"


NEIGHBOURS: list[list[Callable[[], Any]]] = [
    [lambda: Point(1), lambda: Point(1, 5), lambda: Point(2)],
    [lambda: Loose(1), lambda: Loose(1, 5)],
    [lambda: Struct(1), lambda: Struct(2)],
    [
        Model,
        lambda: Model(x=1),
        lambda: Model(x=1, hidden=0),
        lambda: Model(hidden=5),
        lambda: private(Model()),
    ],
    [
        Open,
        lambda: Open.model_validate({"y": 1}),
        lambda: Open.model_validate({"y": 2}),
        lambda: Open.model_validate({"z": 1}),
    ],
    [lambda: Pair(1), lambda: NamedPair(1)],
    [lambda: Whole(1), lambda: Whole(1, "bob"), lambda: Whole(2)],
    [lambda: Money(100), lambda: Money(200)],
    [lambda: Text("a"), lambda: with_attribute(Text("a")), lambda: with_attribute(Text("a"), "part")],
    [lambda: collections.defaultdict(int, a=1), lambda: collections.defaultdict(list, a=1), lambda: {"a": 1}],
    [
        lambda: collections.OrderedDict(a=1, b=2),
        lambda: collections.OrderedDict(b=2, a=1),
        lambda: {"a": 1, "b": 2},
    ],
    [lambda: MultiDict([("a", "1"), ("a", "2")]), lambda: MultiDict([("a", "1"), ("a", "3")])],
]


@pytest.mark.parametrize("makers", NEIGHBOURS, ids=lambda makers: type(makers[0]()).__name__)
def test_neighbours_have_texts_of_their_own(makers: list[Callable[[], Any]]) -> None:
    texts = [text_of(make()) for make in makers]
    assert len(set(texts)) == len(texts)
    assert texts == [text_of(make()) for make in makers]


@pytest.mark.parametrize("make", [lambda: Point(1), lambda: Tight(1), Model])
def test_what_is_computed_once_is_no_state(make: Callable[[], Any]) -> None:
    value = make()
    before = text_of(value)
    assert value.twice == 2
    assert text_of(value) == before


# Order


class Sub(dict[Any, Any]):
    pass


class OwnRepr(dict[Any, Any]):
    def __repr__(self) -> str:
        return f"OwnRepr({dict(self)})"


class OwnText(dict[Any, Any]):
    def __str__(self) -> str:
        return f"{sorted(self)}"


class SubSet(set[Any]):
    pass


class Read(Mapping[str, int]):
    def __init__(self, items: Any) -> None:
        self._items = dict(items)

    def __getitem__(self, key: str) -> int:
        found: int = self._items[key]
        return found

    def __iter__(self) -> Iterator[str]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)

    def __repr__(self) -> str:
        return f"Read({self._items})"


def nested(items: Any) -> Any:
    return [{"all": (dict(items), {"one": dict(items)})}]


PAIRS = [("a", 1), ("b", 2), ("c", 3)]
TEMPLATES = ("{x}", "{x!r}", "{x!s}", "{x!a}", "{x!s:>5}")
IN_ANY_ORDER: list[Callable[[Any], Any]] = [
    dict,
    nested,
    Sub,
    OwnText,
    collections.Counter,
    collections.UserDict,
    lambda items: types.MappingProxyType(dict(items)),
    lambda items: collections.ChainMap(dict(items[:1]), dict(items[1:])),
    lambda items: collections.defaultdict(int, items),
    lambda items: {key for key, _ in items},
    lambda items: SubSet(key for key, _ in items),
    lambda items: frozenset(key for key, _ in items),
    lambda items: ({"in": {key for key, _ in items}},),
]


@pytest.mark.parametrize("make", IN_ANY_ORDER)
@pytest.mark.parametrize("template", TEMPLATES)
def test_equal_containers_have_one_text_in_templates(make: Callable[[Any], Any], template: str) -> None:
    if make is OwnText and template != "{x}":
        return
    key = compile_key(template, anything)
    texts = {key.text_of(make(list(items))) for items in itertools.permutations(PAIRS)}
    assert len(texts) == 1
    assert texts != {key.text_of(make([("a", 1), ("b", 2), ("d", 3)]))}


def test_an_order_that_means_something_stays() -> None:
    key = compile_key("{x}", anything)
    texts = {key.text_of(collections.OrderedDict(items)) for items in itertools.permutations(PAIRS)}
    assert len(texts) == 6
    assert key.text_of(collections.OrderedDict(a=1)) == "OrderedDict(%7B'a'%3A 1%7D)"
    assert key.text_of([1, 2]) != key.text_of([2, 1])


REFUSED: list[Callable[[], Any]] = [
    lambda: dict(PAIRS).keys(),
    lambda: dict(PAIRS).items(),
    lambda: dict(PAIRS).values(),
    lambda: OwnRepr(PAIRS),
    lambda: Read(PAIRS),
    lambda: MultiDict([("a", "1")]),
    lambda: Point({1, 2}),  # type: ignore[arg-type]
    lambda: [Point(dict(PAIRS))],  # type: ignore[arg-type]
    lambda: Model.model_construct(x=dict(PAIRS)),
    lambda: Loose([dict(PAIRS)]),  # type: ignore[arg-type]
    lambda: Struct({1, 2}),  # type: ignore[arg-type]
    lambda: Pair(dict(PAIRS)),  # type: ignore[arg-type]
    lambda: collections.deque([{1, 2}]),
    lambda: Tenant({1, 2}),  # type: ignore[arg-type]
]


@pytest.mark.parametrize("make", REFUSED, ids=lambda make: type(make()).__name__)
@pytest.mark.parametrize("template", TEMPLATES)
def test_a_text_that_depends_on_an_order_is_refused(make: Callable[[], Any], template: str) -> None:
    with pytest.raises(KeyTemplateError, match="depends on the order"):
        compile_key(template, anything).text_of(make())


def test_what_a_template_names_of_it_is_not() -> None:
    assert compile_key("{x.x[a]}", anything).text_of(Point({"a": 1, "b": 2})) == "1"  # type: ignore[arg-type]
    assert compile_key("{x}", anything).text_of(Point(1)) == "Point(x=1)"


@pytest.mark.parametrize("value", [len, Tenant(1).__init__, Tenant(1).__repr__, "a".upper, anything])  # type: ignore[misc]
@pytest.mark.parametrize("template", TEMPLATES)
def test_a_function_is_no_value(value: Any, template: str) -> None:
    with pytest.raises(KeyTemplateError, match="pass what it returns"):
        compile_key(template, anything).text_of(value)


# Types that annotations state


class Word(StrEnum):
    HI = "hi"


@pytest.mark.parametrize(
    ("hint", "right", "wrong"),
    [
        (str, "42", 42),
        (str, "hi", Word.HI),
        (int, 42, "42"),
        (int, 1, True),
        (float, 1.0, 1),
        (str | None, None, 5),
        (UUID, UUID(int=1), str(UUID(int=1))),
        (int | str, "1", 1.0),
        (Decimal, Decimal(1), 1),
    ],
)
def test_a_value_of_another_type_than_annotated_is_told_once(
    hint: Any, right: Any, wrong: Any, caplog: pytest.LogCaptureFixture
) -> None:
    def find(x: Any, *rest: int, **more: str) -> None: ...

    find.__annotations__["x"] = hint
    key = compile_key(None, find)
    assert key.text_of(right, (1,), {"a": "b"}) != key.text_of(wrong, (), {})
    key.text_of(wrong, (), {})
    key.text_of(None, (), {})
    (record,) = [each for each in caplog.records if each.levelno == logging.WARNING]
    assert "its parameter x is annotated" in record.getMessage()
    assert "different types have different entries" in record.getMessage()


def test_a_template_makes_one_text_of_them_and_tells_nothing(caplog: pytest.LogCaptureFixture) -> None:
    def find(x: str) -> None: ...

    key = compile_key("{x}", find)
    assert key.text_of("42") == key.text_of(42) == "42"
    assert not caplog.records
