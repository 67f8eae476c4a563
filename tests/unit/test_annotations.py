"""What a name in an annotation means, when it can be said, and what is said when it cannot."""

from __future__ import annotations

import importlib
import sys
import textwrap
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, Generic, NamedTuple, Self, TypeVar

import pydantic
import pytest
from typing_extensions import TypeAliasType

from cacheguard import CacheGuard, Policy
from cacheguard.codec import TAGGED, class_codecs, codec_for, return_codec
from cacheguard.errors import CodecError
from tests.conftest import OpenDoor

T = TypeVar("T")
U = TypeVar("U")


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Any]]:
    """Makes the modules of a package named ``pkg``; imports the one asked for."""
    monkeypatch.syspath_prepend(tmp_path)

    def make(imported: str, **modules: str) -> Any:
        (tmp_path / "pkg").mkdir()
        for name, source in {"__init__": "", **modules}.items():
            (tmp_path / "pkg" / f"{name}.py").write_text(textwrap.dedent(source))
        importlib.invalidate_caches()
        return importlib.import_module(imported)

    yield make
    for name in [each for each in sys.modules if each.partition(".")[0] == "pkg"]:
        del sys.modules[name]


MODELS = "from dataclasses import dataclass\n@dataclass\nclass Late:\n    id: int\n"


@pytest.mark.parametrize(
    ("statement", "name"),
    [
        ("from .models import Late", "Late"),
        ("from .models import Late as L", "L | None"),
        ("from pkg.models import Late", "list[Late]"),
        ("from . import models", "models.Late"),
        ("import pkg.models", "pkg.models.Late"),
        ("import pkg.models as m", "m.Late"),
        ("x = 1; import pkg.models as m", "m.Late"),
    ],
)
def test_a_name_for_type_checkers_is_found_once_its_module_is_imported(
    package: Callable[..., Any], statement: str, name: str
) -> None:
    source = f"""
        from __future__ import annotations
        import typing
        if not typing:
            import nothing
        if typing.TYPE_CHECKING:
            import os
            {statement}
        def load() -> {name}: ...
    """
    service = package("pkg.service", models=MODELS, service=source)
    codec = return_codec(service.load)
    with pytest.raises(CodecError, match="cannot be resolved here: import it outside of TYPE_CHECKING"):
        codec.encode(object())
    assert codec.decode(codec.encode((1, 2))) == (1, 2)  # builtin values need no annotation
    late = importlib.import_module("pkg.models").Late
    value = [late(1)] if name.startswith("list") else late(1)
    assert codec.decode(codec.encode(value)) == value
    assert codec.classes == (late,)  # type: ignore[attr-defined]


def test_a_field_for_type_checkers_is_found_too(package: Callable[..., Any]) -> None:
    source = """
        from __future__ import annotations
        from dataclasses import dataclass
        from typing import TYPE_CHECKING
        if TYPE_CHECKING:
            from pkg.models import Late
        @dataclass
        class Holder:
            late: Late
        def load() -> Holder: ...
    """
    service = package("pkg.service", models=MODELS, service=source)
    codec = return_codec(service.load)
    holder = service.Holder(importlib.import_module("pkg.models").Late(1))
    assert codec.decode(codec.encode(holder)) == holder


def test_a_package_may_name_its_own_modules_for_type_checkers(package: Callable[..., Any]) -> None:
    source = """
        from __future__ import annotations
        import typing
        if typing.TYPE_CHECKING:
            from .models import Late
        def load() -> Late: ...
    """
    pkg = package("pkg", models=MODELS, __init__=source)
    late = importlib.import_module("pkg.models").Late
    codec = return_codec(pkg.load)
    assert codec.decode(codec.encode(late(1))) == late(1)


def test_classes_of_the_enclosing_function_are_found_while_it_runs() -> None:
    @dataclass
    class Line:
        x: int

    @dataclass
    class Order:
        lines: list[Line]

    class Repository:
        @dataclass
        class Row:
            order: Order

        def find(self) -> Row: ...  # type: ignore[empty-body]

        codec = return_codec(find)

    def find() -> list[Order]: ...  # type: ignore[empty-body]

    codec = return_codec(find)
    assert codec.decode(codec.encode([Order([Line(1)])])) == [Order([Line(1)])]
    row = Repository.Row(Order([Line(1)]))
    assert Repository.codec.decode(Repository.codec.encode(row)) == row


def test_self_is_the_class_of_the_method() -> None:
    @dataclass
    class Node:
        x: int

        def itself(self) -> Self: ...  # type: ignore[empty-body]

        def all(self) -> dict[str, list[Self] | None]: ...  # type: ignore[empty-body]

        codec = return_codec(itself)

    for late, value in ((Node.codec, Node(1)), (return_codec(Node.all), {"a": [Node(1)], "b": None})):
        assert late.decode(late.encode(value)) == value

    @dataclass
    class Deeper(Node):
        y: int = 0

    with pytest.raises(CodecError):
        return_codec(Node.itself).encode(Deeper(1))

    def strange() -> Self: ...  # type: ignore[misc]

    assert return_codec(strange).schema == TAGGED.schema


@dataclass
class Outer:
    @dataclass
    class Nested:
        x: int

        def itself(self) -> Self: ...  # type: ignore[empty-body]


def test_self_of_a_nested_class_is_found_by_its_path() -> None:
    codec = return_codec(Outer.Nested.itself)
    assert codec.decode(codec.encode(Outer.Nested(1))) == Outer.Nested(1)


@dataclass
class Point:
    x: int


@dataclass
class Box:
    point: Point


class Colour(Enum):
    RED = 1


def of_kind(kind: type[T], other: type[U], key: Nowhere) -> list[T | U] | None: ...  # type: ignore[name-defined]  # noqa: F821


def awaited(kind: type[T]) -> Awaitable[T]: ...  # type: ignore[empty-body]


def test_the_class_of_the_result_may_be_an_argument() -> None:
    codecs = class_codecs(of_kind)
    assert codecs is not None
    assert list(codecs.variables) == ["kind", "other"]
    codec = codecs.of((Point, Box))
    assert codec is codecs.of((Point, Box))
    value = [Point(1), Box(Point(2))]
    assert codec.decode(codec.encode(value)) == value
    plain = class_codecs(awaited)
    assert plain is not None
    assert plain.of((Colour,)).decode(plain.of((Colour,)).encode(Colour.RED)) is Colour.RED


def test_without_such_an_argument_the_annotation_alone_counts() -> None:
    def unsaid(kind: type[Point]) -> T: ...  # type: ignore[empty-body,type-var]

    def said(kind: type[T]) -> Point: ...  # type: ignore[empty-body]

    def broken(kind: type[T]) -> Nowhere: ...  # type: ignore[name-defined]  # noqa: F821

    for fn in (unsaid, said, broken, len):
        assert class_codecs(fn) is None


async def test_functions_of_a_class_are_cached_by_their_argument(open_door: OpenDoor, redis_url: str) -> None:
    door = open_door(CacheGuard(redis_url, policy=Policy(l1=False)))
    loads: list[Any] = []

    def fetch(kind: type[T], number: int) -> T:
        loads.append(kind)
        return kind(number)  # type: ignore[call-arg]

    cached = door.cached("{kind}:{number}")(fetch)
    for _ in range(2):
        assert await cached(Point, 1) == Point(1)
        assert await cached(Box, 1) == Box(1)  # type: ignore[arg-type]
    assert len(loads) == 2
    await cached.put(Point(5), Point, 1)
    assert await cached.peek(Point, 1) == Point(5)


@dataclass
class Page(Generic[T]):
    items: list[T]


Rows = TypeAliasType("Rows", list[T], type_params=(T,))
Twice = TypeAliasType("Twice", Rows[Page[T]], type_params=(T,))
Ids = TypeAliasType("Ids", list[Point])


def test_aliases_are_seen_through() -> None:
    for annotation, value in (
        (Rows[Point], [Point(1)]),
        (Twice[Point], [Page([Point(1)])]),
        (dict[str, Ids], {"a": [Point(1)]}),
        (tuple[Ids, Ids], ([Point(1)], [])),
    ):
        codec = codec_for(annotation)
        assert codec.decode(codec.encode(value)) == value
    assert codec_for(Rows[Point]).schema != codec_for(Rows[Box]).schema


def test_an_alias_that_contains_itself_ends() -> None:
    class Knot:
        """Like the alias of a ``type`` statement, whose value is evaluated late."""

        __value__: Any

    Knot.__name__ = "TypeAliasType"
    knot = Knot()
    knot.__value__ = list[Point] | dict[str, knot]  # type: ignore[valid-type]
    codec = codec_for(knot)
    value = {"a": {"b": [Point(1)]}}
    assert codec.decode(codec.encode(value)) == value


def test_a_private_attribute_whose_type_is_not_known_is_kept() -> None:
    scope: dict[str, Any] = {"pydantic": pydantic}
    exec("class Odd(pydantic.BaseModel):\n    id: int\n    _note: 'Nowhere' = pydantic.PrivateAttr(None)", scope)
    value = scope["Odd"](id=1)
    value._note = (1,)  # noqa: SLF001 - what users do within their models
    codec = codec_for(scope["Odd"])
    assert codec.decode(codec.encode(value))._note == (1,)  # noqa: SLF001 - as above


def test_the_attributes_of_a_named_tuple_are_no_items() -> None:
    class Deep(NamedTuple):
        x: int

    class Deeper(Deep):
        pass

    plain, noted = Deeper(1), Deeper(1)
    noted.note = 5  # type: ignore[attr-defined]
    codec = codec_for(Deeper)
    assert codec.decode(codec.encode(plain)) == plain
    with pytest.raises(CodecError, match=r"attributes beside its items \(note\)"):
        codec.encode(noted)


def test_a_member_that_its_class_does_not_know_is_refused() -> None:
    stray = object.__new__(Colour)
    stray._name_, stray._value_ = "STRAY", 5
    with pytest.raises(CodecError, match="none of the members"):
        codec_for(Colour | Point).encode(stray)


def test_an_alias_that_the_annotation_does_not_name_is_refused() -> None:
    with pytest.raises(CodecError, match="__orig_class__"):
        codec_for(Page[int]).encode(Page[str]([]))


def test_a_default_without_a_text_is_described_by_its_type() -> None:
    class Mute:
        def __repr__(self) -> str:
            raise RuntimeError

    model = pydantic.create_model("Odd", x=(Any, Mute()))
    assert codec_for(model).schema == codec_for(pydantic.create_model("Odd", x=(Any, Mute()))).schema
