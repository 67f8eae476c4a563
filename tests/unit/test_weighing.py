"""The bytes that a value is said to take are those that the process grows by."""

from __future__ import annotations

import gc
import logging
import threading
import tracemalloc
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from enum import Enum
from functools import reduce
from typing import Any, NamedTuple
from uuid import uuid4

import attrs
import msgspec
import pydantic
import pytest

from cacheguard.tiers.weighing import AT_ONCE, weigh

MANY = 2000


@dataclass
class Row:
    a: int
    b: str
    c: list[int]


@dataclass(slots=True)
class Slotted:
    a: int
    b: str
    c: list[int]


@attrs.define
class Attrs:
    a: int
    b: str
    c: list[int]


class Struct(msgspec.Struct):
    a: int
    b: str
    c: list[int]


class Untracked(msgspec.Struct, gc=False):
    a: int
    b: str
    c: list[int]


class Model(pydantic.BaseModel):
    a: int
    b: str
    c: list[int]


class Named(NamedTuple):
    a: int
    b: str
    c: list[int]


class Mapped(dict[str, int]):
    pass


def rows(kind: Callable[..., Any]) -> Callable[[int], Any]:
    return lambda many: [kind(a=number + 1000, b=f"row {number}", c=[number + 1000]) for number in range(many)]


def linked(inner: object, number: int) -> Any:
    return [inner, number + 1000]


SHAPES: dict[str, Callable[[int], Any]] = {
    "ints": lambda many: list(range(1000, 1000 + many)),
    "floats": lambda many: [float(number) for number in range(many)],
    "texts": lambda many: [f"{number}" * 10 for number in range(many)],
    "one text many times": lambda many: [f"{many}" * 10] * many,
    "umlauts": lambda many: [f"ä€{number}" for number in range(many)],
    "bytes": lambda many: [b"%d" % number * 20 for number in range(many)],
    "bytearray": lambda many: [bytearray(100) for _ in range(many)],
    "memoryview": lambda many: [memoryview(b"%d" % number * 50) for number in range(many)],
    "one long text": lambda many: "x" * 100 * many,
    "dict": lambda many: {number + 1000: f"v{number}" for number in range(many)},
    "json": lambda many: [{"id": number + 1000, "tags": [f"a{number}", "b"]} for number in range(many)],
    "nested": lambda many: {
        str(number): {"a": [number + 1000, {"b": (float(number), None)}]} for number in range(many)
    },
    "small numbers": lambda many: [[each % 256 for each in range(40)] for _ in range(many)],
    "letters": lambda many: [list("abcdefghij") for _ in range(many)],
    "sets": lambda many: [{number + 1000} for number in range(many)],
    "frozensets": lambda many: [frozenset({number + 1000}) for number in range(many)],
    "tuples": lambda many: tuple((number + 1000, str(number)) for number in range(many)),
    "decimals": lambda many: [Decimal(number) / 7 for number in range(many)],
    "datetimes": lambda many: [datetime(2020, 1, 1, tzinfo=UTC) + timedelta(number) for number in range(many)],
    "uuids": lambda many: [uuid4() for _ in range(many)],
    "deques": lambda many: [deque([number + 1000]) for number in range(many)],
    "defaultdicts": lambda many: [defaultdict(list, {number: [number + 1000]}) for number in range(many)],
    "ordered dicts": lambda many: [OrderedDict(a=number + 1000) for number in range(many)],
    "dict subclass": lambda many: [Mapped(a=number + 1000) for number in range(many)],
    "a deep chain": lambda many: reduce(linked, range(many), None),
    "dataclasses": rows(Row),
    "dataclasses with slots": rows(Slotted),
    "attrs": rows(Attrs),
    "msgspec": rows(Struct),
    "msgspec without gc": rows(Untracked),
    "pydantic": rows(Model),
    "named tuples": rows(Named),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_a_value_weighs_what_the_process_grows_by(shape: str) -> None:
    make = SHAPES[shape]
    make(3)
    gc.collect()
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    value = make(MANY)
    gc.collect()
    used = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert used / 1.25 < weigh(value) < used * 1.25


class Colour(Enum):
    RED = "red" * 10_000


class Mapper:
    def __init__(self) -> None:
        self.everything = ["x" * 10_000 + str(number) for number in range(100)]


class Entity:
    mapper = Mapper()
    log = logging.getLogger("cacheguard.tests")

    def __init__(self) -> None:
        self.state = {"mapper": self.mapper, "log": self.log, "kind": Entity, "method": threading.Thread.start}


@pytest.mark.parametrize("value", [Entity(), Colour.RED, Mapper, threading, weigh, [Colour.RED, Entity(), {1: Entity}]])
def test_what_values_share_does_not_count(value: object) -> None:
    assert weigh(value) < 5_000


def test_a_value_that_holds_itself_is_weighed_once() -> None:
    ring: list[Any] = ["x" * 10_000]
    ring += [ring, {"again": ring}]
    assert 10_000 < weigh(ring) < 11_000


def test_a_value_that_weighs_too_much_is_not_looked_at_to_its_end() -> None:
    value = [["x" * 1000 + str(number)] for number in range(20 * AT_ONCE)]
    assert 100_000 < weigh(value, 100_000) < weigh(value) / 3


class Odd:
    def __init__(self) -> None:
        self.text = "x" * 10_000

    def __sizeof__(self) -> int:
        raise RuntimeError("a size is not known")


class Shy:
    __slots__ = ("text",)

    def __init__(self) -> None:
        self.text = "x" * 10_000

    def __getattribute__(self, name: str) -> Any:
        raise RuntimeError(f"{name} is asked for")


@pytest.mark.parametrize("kind", [Odd, Shy])
def test_the_code_of_a_value_is_no_harm(kind: type[Any]) -> None:
    assert 10_000 < weigh([kind(), 1]) < 12_000
