"""What users test their applications with does what it says, on a real Redis where it needs one."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from cacheguard import CacheGuard
from cacheguard.testing import CountingLoader, StalenessChecker, VirtualClock
from tests.support.redis_server import RedisServer


class NaiveCache:
    """Cache-aside with delete after write, as everybody writes it first."""

    def __init__(self, load: Callable[[str], int]) -> None:
        self._load = load
        self._values: dict[str, int] = {}

    def read(self, key: str) -> int:
        value = self._values.get(key)
        if value is None:
            value = self._values[key] = self._load(key)
        return value

    def invalidate(self, key: str) -> None:
        self._values.pop(key, None)


class NaiveAsyncCache:
    def __init__(self, load: Callable[[str], Any]) -> None:
        self._load = load
        self._values: dict[str, int] = {}

    async def read(self, key: str) -> int:
        if key not in self._values:
            self._values[key] = await self._load(key)
        return self._values.get(key, 0)

    async def invalidate(self, key: str) -> None:
        self._values.pop(key, None)


# The checker


def test_a_read_that_misses_what_was_acknowledged_before_it_is_reported() -> None:
    checker = StalenessChecker()
    version = checker.commit("k")
    with checker.reading("k") as early:
        checker.acknowledged("k", version)
        early.got(0)  # began before: whatever it gets is right
    assert checker.stale == []
    with checker.reading("k") as late:
        late.got(0)
    (found,) = checker.stale
    assert (found.key, found.version, found.least) == ("k", 0, 1)
    with pytest.raises(AssertionError, match="1 of 2 reads were stale:\n  'k': version 0, although 1"):
        checker.verify()


def test_what_is_new_enough_or_not_there_is_not_stale() -> None:
    checker = StalenessChecker()
    checker.acknowledged("k", 5)
    for version in (5, 6, None):
        with checker.reading("k") as read:
            read.got(version)
    checker.acknowledged("k", 4)  # a slower writer, which was overtaken
    with checker.reading("k") as read:
        read.got(5)
    checker.verify()
    assert (checker.reads, checker.checked, checker.changes) == (4, 4, 2)


def test_a_read_that_raises_is_none() -> None:
    checker = StalenessChecker()
    checker.acknowledged("k", 1)
    with pytest.raises(ZeroDivisionError), checker.reading("k"):
        raise ZeroDivisionError
    assert checker.reads == 0


def test_a_check_in_which_nothing_could_be_stale_shows_nothing() -> None:
    checker = StalenessChecker()
    checker.check(checker.load, "k")
    with pytest.raises(AssertionError, match="nothing is shown"):
        checker.verify()


def test_within_the_grace_the_older_version_may_be_read() -> None:
    checker = StalenessChecker(grace=0.1)
    for version in (1, 2):
        checker.acknowledged("k", version)
    with checker.reading("k") as read:
        read.got(0)
    assert (checker.stale, checker.checked) == ([], 0)
    time.sleep(0.11)
    checker.acknowledged("k", 3)
    with checker.reading("k") as read:
        read.got(1)
    assert [(found.version, found.least) for found in checker.stale] == [(1, 2)]


def test_a_late_fill_of_a_naive_cache_is_found_in_the_one_order_that_shows_it() -> None:
    checker, loader = StalenessChecker(), CountingLoader()

    def load(key: str) -> int:
        version = checker.load(key)
        loader(key)
        return version

    cache = NaiveCache(load)
    loader.stand_still()
    early = threading.Thread(target=checker.check, args=(cache.read, "k"))
    early.start()
    loader.until_started()
    checker.change(cache.invalidate, "k")
    loader.go_on()
    early.join()
    assert checker.stale == []  # the reader began before the change
    checker.check(cache.read, "k")
    assert [(found.version, found.least) for found in checker.stale] == [(0, 1)]


def test_a_naive_cache_is_found_out_by_threads() -> None:
    checker = StalenessChecker(dawdle=0.005)
    cache = NaiveCache(checker.load)
    checker.exercise(cache.read, cache.invalidate, seconds=0.5)
    with pytest.raises(AssertionError, match="reads were stale"):
        checker.verify()


async def test_a_naive_cache_is_found_out_by_tasks() -> None:
    checker = StalenessChecker(dawdle=0.005)
    cache = NaiveAsyncCache(checker.aload)
    await checker.aexercise(cache.read, cache.invalidate, seconds=0.5)
    with pytest.raises(AssertionError, match="reads were stale"):
        checker.verify()


def test_a_guard_stands_the_check_by_threads(redis_url: str) -> None:
    checker = StalenessChecker(dawdle=0.005)
    with CacheGuard(redis_url) as guard:
        read = guard.cached("row:{key}")(checker.load)
        checker.exercise(read, read.invalidate, seconds=0.5)
    checker.verify()
    assert checker.changes > 20


async def test_a_guard_stands_the_check_by_tasks(redis_url: str) -> None:
    checker = StalenessChecker(dawdle=0.005)
    async with CacheGuard(redis_url) as guard:
        read = guard.cached("row:{key}")(checker.aload)
        await checker.aexercise(read, read.invalidate, seconds=0.5)
    checker.verify()
    assert checker.changes > 20


def test_what_the_cache_raises_ends_an_exercise() -> None:
    def invalidate(_key: str) -> None:
        raise ZeroDivisionError

    checker = StalenessChecker()
    with pytest.raises(ZeroDivisionError):
        checker.exercise(checker.load, invalidate, seconds=30)


# The loader


def test_a_loader_says_how_often_it_ran_and_with_what() -> None:
    loader = CountingLoader("value")
    with loader.expecting(2):
        assert (loader(1), loader(2, 3)) == ("value", "value")
    assert loader.calls == [(1,), (2, 3)]
    loader.assert_ran(2, peak=1)
    with pytest.raises(AssertionError, match=r"ran 2 times, expected 1; its arguments: \(1,\), \(2, 3\)"):
        loader.assert_ran(1)
    with pytest.raises(AssertionError, match="ran 0 times, expected 1; its arguments: none"), loader.expecting(1):
        pass
    assert CountingLoader()() == 1
    assert CountingLoader(None)() is None


def test_a_loader_fails_as_told_and_counts_that() -> None:
    loader = CountingLoader(error=KeyError("row"))
    with pytest.raises(KeyError):
        loader()
    loader.error = None
    assert loader() == 2


def test_a_loader_in_front_of_a_function_keeps_its_signature_and_counts_what_it_gets() -> None:
    loader = CountingLoader()

    @loader.counts
    def row(row_id: int, *, region: str = "eu") -> str:
        return f"{row_id} {region}"

    with CacheGuard("memory://") as guard:
        read = guard.cached("row:{row_id}:{region}")(row)
        assert (read(1), read(1, region="us"), read(row_id=1)) == ("1 eu", "1 us", "1 eu")
    assert loader.calls == [(1, "eu"), (1, "us")]
    loader.error = ZeroDivisionError()
    with pytest.raises(ZeroDivisionError):
        row(1)


async def test_a_loader_in_front_of_a_coroutine_function_stands_still_without_blocking_the_loop() -> None:
    loader = CountingLoader(seconds=0.001)

    @loader.counts
    async def row(row_id: int) -> int:
        return row_id

    loader.stand_still()
    async with CacheGuard("memory://") as guard:
        read = guard.cached("row:{row_id}")(row)
        asked = [asyncio.create_task(read(n % 2)) for n in range(10)]
        await loader.auntil_started()
        assert not any(task.done() for task in asked)
        loader.go_on()
        assert await asyncio.gather(*asked) == [n % 2 for n in range(10)]
    loader.assert_ran(2, peak=2)
    with pytest.raises(AssertionError, match="2 loads ran at a time, at most 1"):
        loader.assert_ran(2, peak=1)


async def test_a_loader_that_is_forgotten_standing_fails_the_test() -> None:
    loader = CountingLoader(patience=0.05)
    loader.stand_still()
    with pytest.raises(AssertionError, match="go_on"):
        loader()
    with pytest.raises(AssertionError, match="go_on"):
        await loader.acall()
    assert loader.active == 0


async def test_who_waits_for_a_load_that_does_not_begin_is_told() -> None:
    loader = CountingLoader()
    with pytest.raises(AssertionError, match="no load has begun"):
        loader.until_started(0.01)
    with pytest.raises(AssertionError, match="no load has begun"):
        await loader.auntil_started(0.01)
    loader()
    loader.until_started(0)
    await loader.auntil_started()


# The clock, in front of a real Redis


def test_what_the_process_decides_goes_by_the_virtual_clock(redis_server: RedisServer, redis_url: str) -> None:
    clock, loader = VirtualClock(), CountingLoader()
    with clock.guard(redis_url) as guard:
        guard.get_or_set("k", loader, ttl="1h", l1_ttl="2s")
        assert guard.inspect("k").tier == "l1"
        clock.advance("2s")
        assert guard.inspect("k").tier == "l2"  # Redis goes by its own clock
        clock.advance("1d")
        assert guard.get_or_set("k", loader, ttl="1h", l1_ttl="2s") == 1
        loader.error = ZeroDivisionError()
        for _ in range(2):
            with pytest.raises(ZeroDivisionError):
                guard.get_or_set("other", loader, error_backoff=("1m", "1m"), l2=False)
        loader.assert_ran(2)
        clock.advance("1m")
        with pytest.raises(ZeroDivisionError):
            guard.get_or_set("other", loader, l2=False)
        loader.assert_ran(3)


def test_l1_is_trusted_again_soon_after_the_clock_was_moved_past_the_horizon(redis_url: str) -> None:
    clock = VirtualClock()
    with clock.guard(redis_url) as guard:
        guard.set("k", 1, ttl="1h")
        deadline = time.monotonic() + 10
        for _ in range(2):
            while guard.get("k") is None or guard.inspect("k").tier != "l1":
                assert time.monotonic() < deadline
                time.sleep(0.01)
            clock.advance("10s")
            assert guard.inspect("k").tier == "l2"


def test_what_l1_keeps_serves_through_an_outage_as_long_as_the_clock_says(
    redis_server: RedisServer, redis_url: str
) -> None:
    clock, loader = VirtualClock(), CountingLoader()
    policy: dict[str, Any] = {"ttl": "10s", "jitter": None, "stale_if_error": "1m"}
    with clock.guard(redis_url) as guard:
        assert guard.get_or_set("k", loader, **policy) == 1
        redis_server.kill()
        clock.advance("69s")
        assert guard.get_or_set("k", loader, **policy) == 1
        clock.advance("1s")
        assert guard.get_or_set("k", loader, **policy) == 2
