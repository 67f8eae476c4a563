"""An attribute that a template reads and that the annotated class does not have is refused when decorating."""

from __future__ import annotations

import enum
from abc import ABC, abstractmethod
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any, Generic, NamedTuple, NewType, Optional, Protocol, TypedDict, TypeVar

import attrs
import msgspec
import pydantic
import pytest
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from cacheguard import CacheGuard
from cacheguard.errors import KeyTemplateError
from cacheguard.keys import compile_key

T = TypeVar("T")


class Plain:
    kind = None

    def __init__(self, a: int) -> None:
        self.a = a

    @property
    def shown(self) -> Inner:
        return Inner(1)

    def full(self) -> str:
        return "full"


class Child(Plain):
    pass


@dataclass
class Inner:
    a: int


@dataclass(frozen=True)
class Frozen:
    a: int
    inner: Inner
    perhaps: Inner | None = None


@dataclass(slots=True)
class WithSlots:
    a: int


class Slots:
    __slots__ = ("a",)


@attrs.frozen
class Attrs:
    a: int


class Struct(msgspec.Struct, frozen=True):
    a: int


class Model(pydantic.BaseModel, frozen=True):
    a: int


class OpenModel(pydantic.BaseModel, extra="allow"):
    a: int


class Pair(NamedTuple):
    a: int


class Generous(Generic[T]):
    a: T


class Dynamic:
    a: int

    def __getattr__(self, name: str) -> str:
        return name


class Writer:
    def __init__(self, **parts: Any) -> None:
        for name, part in parts.items():
            setattr(self, name, part)


class Interface(Protocol):
    a: int


class Abstract(ABC):
    @property
    @abstractmethod
    def a(self) -> int: ...


class Base(DeclarativeBase):
    pass


class Row(Base):
    __tablename__ = "row"
    a: Mapped[int] = mapped_column(primary_key=True)


class Color(enum.Enum):
    RED = 1


class Keys(TypedDict):
    a: int


UserId = NewType("UserId", Inner)


def compiled(hint: Any, template: str) -> Any:
    def find(x: Any) -> None: ...

    find.__annotations__["x"] = hint
    return compile_key(template, find)


CLOSED = [Plain, Child, Inner, Frozen, WithSlots, Slots, Attrs, Struct, Model, Pair, Generous[int], UserId]
OPEN = [OpenModel, Dynamic, Writer, Interface, Abstract, Row, Any, object, None, type[Inner], "Unknown", T]


@pytest.mark.parametrize("hint", [*CLOSED, *OPEN])
def test_an_attribute_that_may_be_there_is_no_obstacle(hint: Any) -> None:
    for of in (hint, Optional[hint], Annotated[hint, 1]) if hint is not None else (hint,):  # noqa: UP045
        assert compiled(of, "{x.a}").fields == ("x",)


@pytest.mark.parametrize("hint", CLOSED)
def test_an_attribute_that_is_missing_is_refused(hint: Any) -> None:
    for of in (hint, Optional[hint], Annotated[hint, 1]):  # noqa: UP045
        with pytest.raises(KeyTemplateError, match=r"\{x.nope\} cannot be made: \w+ has no attribute nope"):
            compiled(of, "{x.nope}")


@pytest.mark.parametrize("hint", OPEN)
def test_a_class_that_does_not_say_what_it_has_is_no_obstacle(hint: Any) -> None:
    assert compiled(hint, "{x.nope}").fields == ("x",)


@pytest.mark.parametrize(
    ("hint", "template"),
    [
        (Plain, "{x.kind}"),
        (Plain, "{x.shown.a}"),
        (Frozen, "{x.inner.a}"),
        (Frozen, "{x.perhaps.a}"),
        (Inner | int, "{x.a}"),
        (int, "{x.real}"),
        (datetime, "{x.year}"),
        (Color, "{x.name}"),
        (Keys, "{x[a]}"),
        (Keys | None, "{x[a]}"),
        (dict[str, int], "{x[b]}"),
        (list[Inner], "{x[0].b}"),
    ],
)
def test_paths_that_lead_somewhere(hint: Any, template: str) -> None:
    assert compiled(hint, template).fields == ("x",)


@pytest.mark.parametrize(
    ("hint", "template", "reason"),
    [
        (Plain, "{x.shown.b}", "Inner has no attribute b"),
        (Frozen, "{x.inner.b}", "Inner has no attribute b"),
        (Frozen, "{x.perhaps.b}", "Inner has no attribute b"),
        (Inner | Pair, "{x.b}", "Inner | Pair has no attribute b"),
        (int, "{x.id}", "int has no attribute id"),
        (Color, "{x.id}", "Color has no attribute id"),
        (Plain, "{x.full}", "full is a method of Plain"),
        (str, "{x.upper}", "upper is a method of str"),
        (Keys, "{x[b]}", "Keys has no key b"),
        (Keys, "{x.a}", "dict has no attribute a"),
    ],
)
def test_paths_that_lead_nowhere(hint: Any, template: str, reason: str) -> None:
    with pytest.raises(KeyTemplateError) as caught:
        compiled(hint, template)
    assert reason in str(caught.value)


def test_annotations_are_resolved_one_by_one() -> None:
    def find(x: Inner, y: Unknown) -> None: ...  # type: ignore[name-defined]  # noqa: F821

    with pytest.raises(KeyTemplateError, match="has no attribute nope"):
        compile_key("{x.nope}", find)
    assert compile_key("{y.nope}", find).fields == ("y",)


def test_tags_and_writers_are_checked_as_well() -> None:
    def find(x: Inner) -> int:
        return x.a

    with CacheGuard("memory://") as guard:
        for decorate in (
            guard.cached("k:{x.a}", tags=["t:{x.nope}"]),
            guard.invalidates("k:{x.nope}"),
            guard.invalidates("k:{x.a}", tags=["t:{x.nope}"]),
        ):
            with pytest.raises(KeyTemplateError, match="has no attribute nope"):
                decorate(find)


def test_what_only_the_call_shows_is_an_error_that_names_the_field() -> None:
    with pytest.raises(KeyTemplateError, match=r"\{x.nope\} cannot be made of a Plain"):
        compiled(Any, "{x.nope}").text_of(Plain(1))
    with pytest.raises(KeyTemplateError, match=r"\{x.a\} cannot be made of a NoneType"):
        compiled(Inner | None, "{x.a}").text_of(None)
