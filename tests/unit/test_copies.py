"""What copies are made of: by the codec, by pickle, by deepcopy; or not at all."""

from __future__ import annotations

import json
import pickle
import threading
from copy import deepcopy
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from enum import Enum
from types import SimpleNamespace
from typing import Any

import pytest

from cacheguard.codec import TAGGED, Codec, CustomCodec, Registry, codec_for, return_codec
from cacheguard.codec.fidelity import difference
from cacheguard.errors import CodecError
from cacheguard.tiers.copies import Copier, Master, a_copy, copied, master_of

copier = Copier(Registry())


@dataclass
class Row:
    id: int
    tags: list[str]


class Colour(Enum):
    RED = "red"


class Fetched:
    """It fetches when it is pickled, and begins anew when it is deep-copied."""

    def __init__(self, error: Exception | None = None) -> None:
        self.rows: list[int] | None = None
        self.error = error

    def __getstate__(self) -> dict[str, Any]:
        if self.error is not None:
            raise self.error
        self.rows = self.rows or [1]
        return self.__dict__

    def __deepcopy__(self, memo: object) -> Fetched:
        return Fetched()


class Stubborn:
    """What neither pickle nor deepcopy takes."""

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise TypeError("cannot pickle")


class OtherOnce(list[int]):
    """Pickled, it becomes a list."""

    def __reduce_ex__(self, protocol: Any) -> Any:
        return list, ([*self],)


def local() -> Any:
    @dataclass
    class Local:
        rows: list[int]

    return Local([1])


COPIED: dict[str, tuple[Any, Codec | None, Any]] = {
    "plain": ({"a": [1, (2, {3})]}, None, TAGGED.decode),
    "typed": ([Row(1, ["a"])], codec_for(list[Row]), codec_for(list[Row]).decode),
    "a class that the codec does not know": ([Row(1, ["a"])], None, pickle.loads),
    "in another class": ([Colour.RED], None, pickle.loads),
    "a local class": (local(), None, deepcopy),
    "a lambda inside": ([len, lambda: 1, [1]], None, deepcopy),
    "a serializer of the user's": ([(1, 2)], CustomCodec(json), pickle.loads),
}


@pytest.mark.parametrize("kind", COPIED)
def test_a_copy_is_the_value_and_shares_nothing_with_it(kind: str) -> None:
    value, codec, make = COPIED[kind]
    master = copier.master(value, codec)
    assert master is not None
    assert getattr(master.make_of, "__name__", "") == getattr(make, "__name__", "")
    first, second = master.make(), copied(master)
    assert difference(value, first) is None or kind == "a lambda inside"
    assert len({id(value), id(first), id(second)}) == 3
    assert type(first) is type(value)
    assert master.weight(1_000_000) > 0


@pytest.mark.parametrize("value", [None, True, 1, 1.5, "a", b"a", Decimal(1), date(2026, 5, 4), 1j], ids=repr)
def test_what_nobody_can_change_needs_no_copy(value: object) -> None:
    assert copier.master(value, None) is None
    assert master_of(b"", TAGGED, value) is None
    assert copied(value) is a_copy(value) is copier.copy(value) is value


def test_what_has_fetched_its_rows_is_pickled_not_deep_copied() -> None:
    for codec in (None, CustomCodec(pickle)):
        value = Fetched()
        master = copier.master(value, codec)
        assert master is not None
        assert (master.make().rows, value.rows) == ([1], [1])


def test_trouble_of_the_object_itself_is_no_reason_for_another_way() -> None:
    with pytest.raises(CodecError, match=r"a Fetched cannot be copied \(RuntimeError\('no query here'\)\)"):
        copier.master(Fetched(RuntimeError("no query here")), None)


def test_what_cannot_be_copied_says_so() -> None:
    values: list[Any] = [threading.Lock(), [threading.Lock()], Stubborn(), {}.keys()]
    for value in values:
        with pytest.raises(CodecError, match="cannot be copied"):
            copier.master(value, None)
        with pytest.raises(CodecError, match="cannot be copied"):
            a_copy(value)
        assert copier.copy(value) is value


def test_what_becomes_something_else_is_no_copy() -> None:
    with pytest.raises(CodecError, match="its copy is a list"):
        copier.master(OtherOnce([1]), None)


def test_a_serializer_is_the_last_way() -> None:
    own = SimpleNamespace(dumps=lambda value: b"x", loads=lambda data: Stubborn())
    master = copier.master(Stubborn(), CustomCodec(own))
    assert master is not None
    assert type(master.make()) is Stubborn
    other = SimpleNamespace(dumps=lambda value: b"x", loads=lambda data: 1)
    with pytest.raises(CodecError, match="cannot be copied"):
        copier.master(Stubborn(), CustomCodec(other))


def test_a_copy_does_not_depend_on_what_an_annotation_means_later() -> None:
    def load() -> set[Late]:  # type: ignore[name-defined]  # noqa: F821 - it comes later
        return set()

    codec = return_codec(load)
    masters = [copier.master({1}, codec), master_of(codec.encode({1}), codec, {1})]
    load.__globals__["Late"] = int
    try:
        codec.encode({2})  # it is resolved by now
        assert [each.make() if isinstance(each, Master) else None for each in masters] == [{1}, {1}]
    finally:
        del load.__globals__["Late"]
