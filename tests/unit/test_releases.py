"""Another release of a class is a miss for all that decides what its bytes mean, and for nothing else."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import pytest

from cacheguard.codec import Codec, Registry, codec_for, return_codec

HEADER = """
from __future__ import annotations
import dataclasses, enum, typing
from dataclasses import dataclass, field
from typing import Annotated, Any, Generic, Literal, NamedTuple, NotRequired, Required, TypeVar
from typing_extensions import TypedDict
import attrs, msgspec, pydantic
T = TypeVar("T")
"""


def module_of(source: str, name: str = "release") -> Any:
    module = ModuleType(name)
    sys.modules[name] = module
    exec(HEADER + source, vars(module))
    return module


@pytest.fixture(autouse=True)
def _no_modules_are_left() -> Iterator[None]:
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if name.startswith("release"):
            del sys.modules[name]


def codec_of(source: str, name: str = "release", annotation: str = "Thing") -> Codec:
    return return_codec(module_of(f"{source}\ndef load() -> {annotation}: ...", name).load)


DATA = "@dataclass\nclass Thing:\n    "
MODEL = "class Thing(pydantic.BaseModel):\n    "
STRUCT = "class Thing(msgspec.Struct"

# What the class is in one release and in the next.
RELEASES: dict[str, tuple[str, str]] = {
    "one more field": (f"{DATA}a: int", f"{DATA}a: int\n    b: int = 0"),
    "a field that goes": (f"{DATA}a: int\n    b: int = 0", f"{DATA}a: int"),
    "another type": (f"{DATA}a: int", f"{DATA}a: str"),
    "another name": (f"{DATA}a: int", f"{DATA}b: int"),
    "another order": (f"{DATA}a: int\n    b: int", f"{DATA}b: int\n    a: int"),
    "a default comes": (f"{DATA}a: int", f"{DATA}a: int = 0"),
    "another kind of class": (f"{DATA}a: int", "@attrs.define\nclass Thing:\n    a: int"),
    "a field under Any": (f"{DATA}a: Any", f"{DATA}a: Any\n    b: Any = None"),
    "a container under Any": (f"{DATA}a: list[Any]", f"{DATA}a: tuple[Any, ...]"),
    "a hand-written __post_init__": (f"{DATA}a: int", f"{DATA}a: int\n    def __post_init__(self): self.b = 1"),
    "a base that sets more": (
        f"class Base:\n    def __init__(self): self.perms = []\n{DATA.replace('Thing', 'Thing(Base)')}a: int",
        f"class Base:\n    def __init__(self): self.rights = []\n{DATA.replace('Thing', 'Thing(Base)')}a: int",
    ),
    "another base": (
        f"class A: pass\n{DATA.replace('Thing', 'Thing(A)')}a: int",
        f"class B: pass\n{DATA.replace('Thing', 'Thing(B)')}a: int",
    ),
    "a nested class": (
        f"@dataclass\nclass PartOfThing:\n    a: int\n{DATA}a: dict[str, list[PartOfThing]]",
        f"@dataclass\nclass PartOfThing:\n    b: int\n{DATA}a: dict[str, list[PartOfThing]]",
    ),
    "a nested class under a plain one": (
        f"@dataclass\nclass PartOfThing:\n    a: int\n{DATA}a: PartOfThing | complex",
        f"@dataclass\nclass PartOfThing:\n    b: int\n{DATA}a: PartOfThing | complex",
    ),
    "an argument of a generic class": (
        (f"@dataclass\nclass Of(Generic[T]):\n    a: T\n{DATA}a: Of[int]"),
        (f"@dataclass\nclass Of(Generic[T]):\n    a: T\n{DATA}a: Of[str]"),
    ),
    "the bound of a type variable": (
        f"U = TypeVar('U', bound=int)\n@dataclass\nclass Of(Generic[U]):\n    a: U\n{DATA}a: Of",
        f"U = TypeVar('U', bound=str)\n@dataclass\nclass Of(Generic[U]):\n    a: U\n{DATA}a: Of",
    ),
    "a literal": (f"{DATA}a: Literal['x']", f"{DATA}a: Literal['x', 'y']"),
    "a literal of another type": (f"{DATA}a: Literal[1]", f"{DATA}a: Literal[True]"),
    "a member of a union": (f"{DATA}a: int | str", f"{DATA}a: int | None"),
    "a bound of a number": (
        f"{DATA}a: Annotated[int, msgspec.Meta(ge=1)]",
        f"{DATA}a: Annotated[int, msgspec.Meta(ge=2)]",
    ),
    "the value of a member": ("class Thing(enum.Enum):\n    A = 1", "class Thing(enum.Enum):\n    A = 2"),
    "the name of a member": ("class Thing(enum.Enum):\n    A = 1", "class Thing(enum.Enum):\n    B = 1"),
    "one more member": ("class Thing(enum.Enum):\n    A = 1", "class Thing(enum.Enum):\n    A = 1\n    B = 2"),
    "members that change places": (
        "class Thing(enum.Enum):\n    A = 1\n    B = 2",
        "class Thing(enum.Enum):\n    A = 2\n    B = 1",
    ),
    "another kind of enum": ("class Thing(enum.Enum):\n    A = 1", "class Thing(enum.IntEnum):\n    A = 1"),
    "a value that is a tuple": (
        "class Thing(enum.Enum):\n    A = (1, 'a')",
        "class Thing(enum.Enum):\n    A = (1, 'b')",
    ),
    "totality": ("class Thing(TypedDict):\n    a: int", "class Thing(TypedDict, total=False):\n    a: int"),
    "a key that need not be there": (
        "class Thing(TypedDict):\n    a: int",
        "class Thing(TypedDict):\n    a: NotRequired[int]",
    ),
    "totality under Any": ("class Thing(TypedDict):\n    a: Any", "class Thing(TypedDict, total=False):\n    a: Any"),
    "a key of a TypedDict": ("class Thing(TypedDict):\n    a: Any", "class Thing(TypedDict):\n    b: Any"),
    "the order of a NamedTuple": (
        "class Thing(NamedTuple):\n    a: int\n    b: int",
        "class Thing(NamedTuple):\n    b: int\n    a: int",
    ),
    "a rename": (f"{STRUCT}):\n    a_b: int", f"{STRUCT}, rename='camel'):\n    a_b: int"),
    "a tag": (f"{STRUCT}):\n    a: int", f"{STRUCT}, tag='x'):\n    a: int"),
    "an array": (f"{STRUCT}):\n    a: int", f"{STRUCT}, array_like=True):\n    a: int"),
    "the default of what is left out": (
        f"{STRUCT}, omit_defaults=True):\n    a: int = 1",
        f"{STRUCT}, omit_defaults=True):\n    a: int = 2",
    ),
    "a private field": ("@attrs.define\nclass Thing:\n    _a: int = 1", "@attrs.define\nclass Thing:\n    _b: int = 1"),
    "a converter": (
        "@attrs.define\nclass Thing:\n    a: str",
        "@attrs.define\nclass Thing:\n    a: str = attrs.field(converter=str)",
    ),
    "a validator": (
        "@attrs.define\nclass Thing:\n    a: int",
        "@attrs.define\nclass Thing:\n    a: int = attrs.field(validator=print)",
    ),
    "a default of a model": (f"{MODEL}a: int = 1", f"{MODEL}a: int = 2"),
    "a factory of a model": (
        f"{MODEL}a: list[int] = pydantic.Field(default_factory=lambda: [1])",
        f"{MODEL}a: list[int] = pydantic.Field(default_factory=lambda: [2])",
    ),
    "an alias": (f"{MODEL}a: int", f"{MODEL}a: int = pydantic.Field(alias='A')"),
    "a set and a list": (f"{MODEL}a: set[int]", f"{MODEL}a: list[int]"),
    "a set and a frozen one": (f"{MODEL}a: set[int]", f"{MODEL}a: frozenset[int]"),
    "a validator of a model": (
        f"{MODEL}a: int",
        f"{MODEL}a: int\n    @pydantic.field_validator('a')\n    def check(cls, value): return value",
    ),
    "a private attribute": (f"{MODEL}a: int", f"{MODEL}a: int\n    _b: int = pydantic.PrivateAttr(1)"),
    "the default of a private attribute": (f"{MODEL}a: int\n    _b: int = 1", f"{MODEL}a: int\n    _b: int = 2"),
    "the factory of a private attribute": (
        f"{MODEL}a: int\n    _b: list = pydantic.PrivateAttr(default_factory=lambda: [])",
        f"{MODEL}a: int\n    _b: list = pydantic.PrivateAttr(default_factory=lambda: [1])",
    ),
    "model_post_init beside private attributes": (
        f"{MODEL}a: int\n    _b: int = 1\n    def model_post_init(self, context): self._b = self.a + self.a",
        f"{MODEL}a: int\n    _b: int = 1\n    def model_post_init(self, context): self._b = self.a - self.a",
    ),
    "an operator in __post_init__": (
        f"{DATA}a: int\n    b: int = 0\n    def __post_init__(self): self.b = self.a + self.a",
        f"{DATA}a: int\n    b: int = 0\n    def __post_init__(self): self.b = self.a - self.a",
    ),
    "what a validator of a model does": (
        f"{MODEL}a: str\n    @pydantic.field_validator('a')\n    def check(cls, value): return value.upper()",
        f"{MODEL}a: str\n    @pydantic.field_validator('a')\n    def check(cls, value): return value.lower()",
    ),
    "what a validator in an annotation does": (
        f"{MODEL}a: Annotated[str, pydantic.AfterValidator(lambda value: value.upper())]",
        f"{MODEL}a: Annotated[str, pydantic.AfterValidator(lambda value: value.lower())]",
    ),
    "an operator in a factory": (
        f"{MODEL}a: int = pydantic.Field(default_factory=lambda: 2 + int('3'))",
        f"{MODEL}a: int = pydantic.Field(default_factory=lambda: 2 * int('3'))",
    ),
    "a tuple in a factory": (
        f"{MODEL}a: tuple = pydantic.Field(default_factory=lambda: (1, 2))",
        f"{MODEL}a: tuple = pydantic.Field(default_factory=lambda: (1, 3))",
    ),
    "a default whose text hides a part": (
        f"@dataclass\nclass In:\n    x: int = field(repr=False)\n{MODEL}a: list[In] = [In(1)]",
        f"@dataclass\nclass In:\n    x: int = field(repr=False)\n{MODEL}a: list[In] = [In(2)]",
    ),
    "a member whose text hides a part": (
        "@dataclass(repr=False, frozen=True)\nclass In:\n    x: int\nclass Thing(enum.Enum):\n    A = In(1)",
        "@dataclass(repr=False, frozen=True)\nclass In:\n    x: int\nclass Thing(enum.Enum):\n    A = In(2)",
    ),
    "a default that is validated": (
        f"{MODEL}a: str = pydantic.Field(' x', validate_default=True)",
        f"{MODEL}a: str = pydantic.Field(' x', validate_default=False)",
    ),
    "the order in which a model tries a union": (
        f"class A(pydantic.BaseModel):\n    x: int\nclass B(pydantic.BaseModel):\n    x: int\n{MODEL}a: A | B",
        f"class A(pydantic.BaseModel):\n    x: int\nclass B(pydantic.BaseModel):\n    x: int\n{MODEL}a: B | A",
    ),
    "extras": (f"{MODEL}a: int", f"{MODEL}model_config = pydantic.ConfigDict(extra='allow')\n    a: int"),
    "a subclass of a builtin": ("class Thing(str): pass", "class Thing(str):\n    def __init__(self, *a): self.b = 1"),
}


@pytest.mark.parametrize("name", RELEASES)
def test_another_release_is_a_miss(name: str) -> None:
    for annotation in ("Thing", "list[Thing] | None", "dict[str, Thing | float]"):
        one, other = (codec_of(source, annotation=annotation) for source in RELEASES[name])
        assert not Registry().reads(other, one.schema)
        assert not Registry().reads(one, other.schema)


SAME: dict[str, tuple[str, str]] = {
    "a docstring": (f"{DATA}a: int", f'{DATA}"""Text."""\n    a: int'),
    "a method": (f"{DATA}a: int", f"{DATA}a: int\n    def b(self): return 1"),
    "the default of what is always stored": (f"{DATA}a: int = 1", f"{DATA}a: int = 2"),
    "the order of a union": (f"{DATA}a: int | str", f"{DATA}a: str | int"),
    "the spelling of a union": (f"{DATA}a: int | None", f"{DATA}a: typing.Optional[int]"),
    "the order of a set of defaults": (
        f"{MODEL}a: set[str] = {{'x', 'y', 'z'}}",
        f"{MODEL}a: set[str] = {{'z', 'y', 'x'}}",
    ),
}


@pytest.mark.parametrize("name", SAME)
def test_what_does_not_change_the_bytes_is_no_other_release(name: str) -> None:
    one, other = (codec_of(source) for source in SAME[name])
    assert one.schema == other.schema


EACH: list[Callable[[str], str]] = [
    lambda name: f"{DATA}a: int",
    lambda name: "class Thing(enum.Enum):\n    A = (1, 'x')",
    lambda name: f"{MODEL}a: int",
    lambda name: f"@dataclass\nclass PartOfThing:\n    a: int\n{DATA}a: list[PartOfThing | complex]",
]


@pytest.mark.parametrize("source", EACH)
def test_a_class_may_move_to_another_module(source: Callable[[str], str]) -> None:
    stored = codec_of(source("old"), "release_old").schema
    del sys.modules["release_old"]
    here = codec_of(source("new"), "release_new")
    assert here.schema != stored
    registry = Registry()
    registry.register(here)
    others = [
        name
        for name, each in list(sys.modules.items())
        if {"Thing", "PartOfThing"} & set(getattr(each, "__dict__", ()))
    ]
    assert registry.reads(here, stored), f"these modules have a class of that name: {others}"
    assert registry.by_schema(stored) is here


@pytest.mark.parametrize("source", EACH)
def test_two_classes_of_one_name_and_shape_are_two(source: Callable[[str], str]) -> None:
    one = codec_of(source("one"), "release_one")
    two = codec_of(source("two"), "release_two")
    assert not Registry().reads(two, one.schema)  # this process has both
    registry = Registry()
    registry.register(one)
    registry.register(two)
    assert registry.by_schema(one.schema) is one
    assert registry.by_schema(two.schema) is two


def test_two_classes_of_one_name_in_one_union_are_told_apart() -> None:
    one: Any = module_of(f"{DATA}a: int", "release_one").Thing
    two: Any = module_of(f"{DATA}a: int", "release_two").Thing
    for annotation in (one | two, two | one, list[one | two], dict[str, one | two]):
        codec = codec_for(annotation)
        for kind in (one, two):
            value: Any = (
                kind(1)
                if annotation in (one | two, two | one)
                else [kind(1)]
                if annotation == list[one | two]
                else {"a": kind(1)}
            )
            back = codec.decode(codec.encode(value))
            assert back == value
    assert codec_for(one | two).schema == codec_for(two | one).schema


def test_a_local_class_that_has_moved_is_a_miss() -> None:
    source = "def outer():\n    @dataclass\n    class Thing:\n        a: int\n    return Thing\nThing = outer()"
    stored = codec_of(source, "release_old").schema
    assert not Registry().reads(codec_of(source, "release_new"), stored)


@pytest.mark.slow
def test_fingerprints_do_not_depend_on_the_order_of_hashes() -> None:
    text = "from tests.unit.test_releases import *; print_all()"
    made = {
        subprocess.run(
            [sys.executable, "-W", "ignore", "-c", text],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "PYTHONHASHSEED": seed},
        ).stdout
        for seed in ("1", "2")
    }
    (lines,) = made
    assert len(re.findall(r"^[0-9a-f]{16}$", lines, re.MULTILINE)) == 2 * (len(RELEASES) + len(SAME))


def print_all() -> None:
    """Print the fingerprint of every class above."""
    for pair in (RELEASES | SAME).values():
        for source in pair:
            print(codec_of(source).schema.hex())  # noqa: T201 - the parent reads it
