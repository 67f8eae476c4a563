from __future__ import annotations

import asyncio
from collections.abc import Callable
from decimal import Decimal
from inspect import getclosurevars, signature
from time import monotonic
from typing import Any, cast

import pytest

from cacheguard import CacheGuard
from cacheguard.doors.wrapper import IndexKey, caller, wrapper
from cacheguard.tiers.held import DEAD, Entry
from tests.support.entries import entry as entry_of

NEVER = float("inf")


def plain() -> None: ...
def two(a: int, b: int) -> None: ...
def positional(a: int, /, b: int, c: int = 3) -> None: ...
def only_positional(a: int, b: int = 2, /) -> None: ...
def named(a: int, *, b: int = 2) -> None: ...
def everything(a: int, /, b: int, *args: int, c: int = 3, **options: int) -> None: ...


class Made:
    """A wrapper, with what it asks of the slow way."""

    def __init__(self, fn: Callable[..., Any], *, texts: tuple[str, ...] = (), **options: Any) -> None:
        self.slow_calls: list[tuple[Any, ...]] = []
        self.key = IndexKey(list(signature(fn).parameters), texts)
        self.index: dict[Any, Entry] = {}
        self.call = wrapper(
            signature(fn),
            self.key,
            options.pop("index", self.index),
            options.pop("slow", self._slow),
            now=monotonic,
            **({"is_async": False, "touch": None, "copy": None} | options),
        )

    def _slow(self, values: tuple[Any, ...]) -> str:
        self.slow_calls.append(values)
        return "slow"

    def keep(self, value: Any, *arguments: Any, until: float = NEVER) -> Entry:
        entry = entry_of(value, until=until)
        found = self.key.of(arguments)
        assert found is not None
        arguments_key, entry.type = found
        self.index[arguments_key] = entry
        return entry


@pytest.mark.parametrize(
    ("fn", "args", "options", "values"),
    [
        (plain, (), {}, ()),
        (two, (1,), {"b": 2}, (1, 2)),
        (positional, (1, 2), {}, (1, 2, 3)),
        (only_positional, (1,), {}, (1, 2)),
        (named, (1,), {"b": 5}, (1, 5)),
        (everything, (1, 2, 7, 8), {"x": 9}, (1, 2, (7, 8), 3, {"x": 9})),
    ],
)
def test_a_wrapper_binds_as_its_function_does_and_a_caller_hands_the_values_on(
    fn: Callable[..., Any], args: tuple[Any, ...], options: dict[str, Any], values: tuple[Any, ...]
) -> None:
    made = Made(fn, index=None)
    assert made.call(*args, **options) == "slow"
    assert made.slow_calls == [values]
    seen: list[Any] = []
    caller(signature(fn))(lambda *given, **named_ones: seen.append((given, named_ones)), values)
    bound = signature(fn).bind(*seen[0][0], **seen[0][1])
    bound.apply_defaults()
    assert tuple(bound.arguments.values()) == values


def test_wrong_arguments_are_python_s_own_error() -> None:
    with pytest.raises(TypeError, match="missing 1 required positional argument"):
        Made(two).call(1)


def test_a_hit_is_answered_without_the_slow_way_and_counted() -> None:
    made = Made(two)
    entry = made.keep("hit", 1, 2)
    assert [made.call(1, 2), made.call(1, b=2)] == ["hit", "hit"]
    assert entry.hits == 2
    assert made.slow_calls == []


def test_an_entry_whose_time_is_over_is_no_hit() -> None:
    made = Made(two)
    made.keep("old", 1, 2, until=DEAD)
    assert made.call(1, 2) == "slow"


@pytest.mark.parametrize("other", [1.0, True, Decimal(1)])
def test_what_is_equal_but_of_another_type_is_no_hit(other: object) -> None:
    one, more = Made(only_positional), Made(two)
    one.key = IndexKey(["a"], ())
    single = Made(lambda a: None)
    single.keep("hit", 1)
    more.keep("hit", 1, 2)
    assert single.call(1) == "hit"
    assert single.call(other) == "slow"
    assert more.call(other, 2) == "slow"


def test_a_parameter_that_is_a_text_needs_no_type() -> None:
    key = IndexKey(["a", "b"], {"b"})
    assert key.of((1, "x")) == ((1, "x", int), None)
    assert key.source == "(a, b, a.__class__)"
    assert key.check == ""
    assert IndexKey(["a"], ()).check == " and _cg_entry.type is a.__class__"


def test_values_whose_equals_have_other_texts_are_not_bound() -> None:
    assert IndexKey(["a"], ()).of((0.0,)) is None
    assert IndexKey(["a", "b"], ()).of((1, Decimal(1))) is None


def test_what_cannot_be_hashed_goes_the_slow_way() -> None:
    made = Made(two)
    assert made.call([1], 2) == "slow"
    assert made.slow_calls == [([1], 2)]


def test_an_exception_of_the_slow_way_carries_no_key_error() -> None:
    def fail(values: tuple[Any, ...]) -> None:
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken") as caught:
        Made(two, slow=fail).call(1, 2)
    assert caught.value.__context__ is None


def test_each_use_may_be_told_and_each_caller_may_get_a_copy() -> None:
    used: list[Entry] = []
    made = Made(two, touch=used.append, copy=list)
    entry = made.keep([1], 1, 2)
    assert made.call(1, 2) == [1]
    assert made.call(1, 2) is not entry.value
    assert used == [entry, entry]


def test_a_coroutine_function_stays_one() -> None:
    async def slow(values: tuple[Any, ...]) -> str:
        return "slow"

    made = Made(two, slow=slow, is_async=True)
    made.keep("hit", 1, 2)

    async def both() -> list[str]:
        return [await made.call(1, 2), await made.call(3, 4)]

    assert asyncio.run(both()) == ["hit", "slow"]


def test_an_ordinary_guard_reads_the_clock_of_the_system_and_no_other() -> None:
    with CacheGuard("memory://") as guard:
        read = guard.cached("k:{n}")(_itself)
        assert read(1) == 1
        assert getclosurevars(cast("Any", read)).nonlocals["_cg_now"] is monotonic


def _itself(n: int) -> int:
    return n
