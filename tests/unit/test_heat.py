"""The hottest keys: what a small table says of a long stream, and what a policy does with it."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cacheguard import CacheGuard, Hot, HotKey, Policy
from cacheguard.errors import ConfigurationError
from cacheguard.testing import VirtualClock
from cacheguard.tiers.heat import ENOUGH, HALF_LIFE, MOST, Heat


def heat(most: int = MOST, every: int = 1, at: list[float] | None = None) -> Heat:
    clock = [0.0] if at is None else at
    return Heat(lambda: clock[0], Random(1).random, most=most, every=every)


@given(
    reads=st.lists(st.tuples(st.sampled_from("abcdefghijklmnop"), st.integers(1, 50)), max_size=200),
    most=st.integers(1, 8),
)
def test_a_count_is_never_too_low_and_too_high_by_its_error_at_most(reads: list[tuple[str, int]], most: int) -> None:
    table, exact = heat(most), Counter[str]()
    for key, count in reads:
        table.add(key, count)
        exact[key] += count
    assert table.total == exact.total()
    counters = table._counters  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]
    assert len(counters) <= most
    assert sum(each.count for each in counters.values()) == table.total
    for key, each in counters.items():
        assert exact[key] <= each.count <= exact[key] + each.error
        assert each.error <= table.total / most
    for key, count in exact.items():
        assert key in counters or count <= table.total / most


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_ten_hottest_of_a_zipf_stream_are_found(seed: int) -> None:
    draw = Random(seed)
    keys = [str(number) for number in range(10_000)]
    weights = [1 / (number + 1) ** 1.1 for number in range(len(keys))]
    table = Heat(lambda: 0.0, draw.random)
    stream = draw.choices(keys, weights, k=200_000)
    for key in stream:
        table.read(key)
    exact = Counter(stream)
    found = table.top(10)
    most = {key for key, _ in exact.most_common(12)}
    assert {each.key for each in found} <= most
    assert [each.key for each in found[:3]] == ["0", "1", "2"]
    for each in found:
        assert each.share == pytest.approx(exact[each.key] / len(stream), abs=1 / MOST + 0.005)


def test_reads_of_many_at_once_are_sampled_as_those_of_one() -> None:
    one, many = Heat(lambda: 0.0, Random(5).random), Heat(lambda: 0.0, Random(5).random)
    keys = [str(number % 7) for number in range(5_000)]
    for key in keys:
        one.read(key)
    for at in range(0, len(keys), 20):
        many.read_all(keys[at : at + 20])
    assert one.top(7) == many.top(7)
    assert one.gap == many.gap
    assert one.total == pytest.approx(5_000, abs=40)


def test_a_batch_that_is_read_again_and_again_makes_none_of_its_keys_hot() -> None:
    table = Heat(lambda: 0.0, Random(5).random)
    keys = [str(number) for number in range(100)]
    for _ in range(2_000):
        table.read_all(keys)
    assert table.total == pytest.approx(200_000, rel=0.02)
    shares = [each.share for each in table.top(100)]
    assert len(shares) == 100
    assert max(shares) < 0.013
    assert min(shares) > 0.007


def test_what_was_hot_is_not_hot_for_ever() -> None:
    at = [0.0]
    table = heat(at=at)
    table.add("old", 1000)
    at[0] += 4 * HALF_LIFE
    table.add("new", 1000)
    assert [each.key for each in table.top(2)] == ["new", "old"]
    assert table.top(2)[1].share == pytest.approx(1 / 17)


def test_few_reads_make_no_key_hot() -> None:
    table = heat()
    table.add("k", ENOUGH - 1)
    assert table.share("k") == 0.0
    table.add("k", 1)
    assert table.share("k") == 1.0
    assert table.share("another") == 0.0


def test_hits_of_the_generated_wrapper_are_counted_without_a_step_more() -> None:
    with CacheGuard("memory://") as guard:

        @guard.cached("row:{number}")
        def row(number: int) -> int:
            return number

        @guard.cached("page:{number}")
        def page(number: int) -> list[int]:
            return [number]

        for number in range(5):
            for _ in range(100 * (number + 1)):
                row(number)
        for _ in range(300):
            page(1)
        found = guard.hot(3)
        assert [each.key for each in found[:2]] == ["row:4", "row:3"]
        assert {(each.key, each.template) for each in guard.hot(6)} >= {("page:1", "page:{number}")}
        assert found[0].share == pytest.approx(500 / 1800, abs=0.05)
        assert guard.hot(1) == [HotKey("row:4", "row:{number}", found[0].share)]
        assert guard.stats().l1_hits == pytest.approx(1800, abs=12)


def test_hits_survive_the_entry() -> None:
    with CacheGuard("memory://") as guard:

        @guard.cached("row:{number}")
        def row(number: int) -> int:
            return number

        for _ in range(1000):
            row(1)
        guard.invalidate("row:1")
        assert guard.hot(1)[0].key == "row:1"


async def test_a_namespace_sees_its_own_keys_at_both_doors_and_without_l1() -> None:
    async with CacheGuard("memory://") as guard:
        inner = guard.namespace("inner", Policy(l1=False))
        await inner.aset("far", 1)
        guard.set("near", 1)
        for _ in range(600):
            await inner.aget("far")
            guard.get("near")
        (far,), (near,) = inner.hot(), guard.hot()
        assert (far.key, near.key, far.template) == ("far", "near", "")
        assert far.share + near.share == pytest.approx(1, abs=1e-9)
        assert far.share == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize("count", [0, -1, True, 1.5, "10"])
def test_a_count_that_is_none_is_refused(count: Any) -> None:
    with CacheGuard("memory://") as guard, pytest.raises(ConfigurationError, match="count must be"):
        guard.hot(count)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"share": 0.001}, "Hot.share"),
        ({"share": 2}, "Hot.share"),
        ({"share": "1%"}, "Hot.share"),
        ({"l1_ttl": "soon"}, "Hot.l1_ttl"),
        ({"l1_ttl": None}, "Hot.l1_ttl"),
        ({"refresh_at": 0}, "Hot.refresh_at"),
        ({"refresh_at": 1.1}, "Hot.refresh_at"),
    ],
)
def test_terms_that_cannot_work_are_refused_by_name(options: dict[str, Any], message: str) -> None:
    with pytest.raises((ConfigurationError, TypeError, ValueError), match=message):
        Hot(**options)


@pytest.mark.parametrize("hot", [0.01, "yes", 1, Hot])
def test_hot_is_terms_or_yes_or_no(hot: Any) -> None:
    with pytest.raises(ConfigurationError, match="hot must be"):
        Policy(hot=hot)


class Served:
    """A function of a policy under a clock that the test moves, with what it has cost."""

    def __init__(self, clock: VirtualClock, guard: CacheGuard, **options: Any) -> None:
        self.clock, self.guard, self.loads = clock, guard, 0
        self.row = guard.cached("row:{number}", ttl=100, jitter=None, l1_ttl=10, **options)(self._load)

    def _load(self, number: int) -> str:
        self.loads += 1
        return f"{number} {self.loads}"

    def heat(self) -> None:
        for _ in range(2 * ENOUGH):
            self.row(1)

    def until(self, loads: int) -> None:
        """A reload in the background has a thread of its own."""
        for _ in range(2_000):
            if self.loads >= loads and self.guard.stats().fills >= loads:
                break
            time.sleep(0.001)
        assert self.loads == loads

    def l2_hits(self) -> int:
        return self.guard.stats().l2_hits


async def test_a_hot_key_of_a_coroutine_function_is_loaded_ahead_of_its_end(clock: VirtualClock) -> None:
    loads = 0
    async with clock.guard() as guard:

        @guard.cached("row:{number}", ttl=100, jitter=None, l1_ttl=10, hot=Hot(share=0.1, l1_ttl=40, refresh_at=0.5))
        async def row(number: int) -> str:
            nonlocal loads
            loads += 1
            return f"{number} {loads}"

        for _ in range(2):
            for _ in range(2 * ENOUGH):
                await row(1)
            clock.advance(30)
        assert (await row.many([1]), loads) == (["1 1"], 1)  # a batch starts it as well
        for _ in range(50):
            await asyncio.sleep(0)
        assert (await row(1), loads) == ("1 2", 2)


def test_what_is_hot_is_told_by_every_guard_on_its_own() -> None:
    with CacheGuard("memory://") as one, CacheGuard("memory://") as other:
        one.set("k", 1)
        for _ in range(50):
            one.get("k")
        assert ([each.key for each in one.hot()], other.hot()) == (["k"], [])


@pytest.fixture
def clock() -> VirtualClock:
    return VirtualClock()


def test_l1_holds_a_hot_key_longer_and_other_keys_no_longer(clock: VirtualClock) -> None:
    with clock.guard() as guard:
        served = Served(clock, guard, hot=Hot(share=0.1, l1_ttl=40))
        served.heat()
        clock.advance(11)
        assert served.row(1) == "1 1"  # from Redis' place, where it is seen to be hot
        asked = served.l2_hits()
        served.row(2)
        for _ in range(3):
            clock.advance(11)
            assert served.row(1) == "1 1"
            served.row(2)
        assert served.l2_hits() == asked + 3  # those of the other key
        assert served.loads == 2


def test_a_hot_key_is_loaded_ahead_of_its_end_and_nobody_waits(clock: VirtualClock) -> None:
    for hot, loads in ((None, 1), (Hot(share=0.1, l1_ttl=40, refresh_at=0.5), 2)):
        with clock.guard() as guard:
            served = Served(clock, guard, hot=hot)
            served.heat()
            clock.advance(45)
            served.heat()
            clock.advance(15)
            assert served.row(1) == "1 1"  # the old one, at once
            served.until(loads)
            clock.advance(2)
            assert served.row(1) == f"1 {loads}"


def test_a_hot_key_never_outlives_its_own_end_nor_an_invalidation(clock: VirtualClock) -> None:
    with clock.guard() as guard:
        served = Served(clock, guard, hot=Hot(share=0.1, l1_ttl="1h", refresh_at=1))
        served.heat()
        clock.advance(50)
        served.heat()
        guard.invalidate("row:1")
        assert served.row(1) == "1 2"
        served.heat()
        clock.advance(101)
        assert served.row(1) == "1 3"


def test_after_a_long_time_without_a_read_there_are_no_hot_keys() -> None:
    at = [0.0]
    table = heat(at=at)
    for _ in range(3):
        for _ in range(ENOUGH):
            table.add("k", 1)
        assert table.share("k") == 1
        at[0] += 1e5  # as a process that sleeps over night: what is left of its reads rounds to nothing
        assert table.share("k") == 0
        assert table.top(3) == []


@pytest.mark.parametrize("gap", [0, -1, -2, -100])
def test_a_batch_is_counted_while_other_reads_are_about_to_be(gap: int) -> None:
    table = heat(every=16)
    table.gap = gap  # which readers take off without the lock, before one of them samples
    table.read_all(["a", "b"])
    assert 1 <= len(table.top(3)) <= 2
    assert table.gap > 0
