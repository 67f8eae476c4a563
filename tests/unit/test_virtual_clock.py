"""A guard under a virtual clock ages when the test says so, and not otherwise."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from inspect import getclosurevars
from typing import Any, cast

import pytest

from cacheguard import MISSING, CacheGuard, Policy
from cacheguard.coordination.breaker import Breaker
from cacheguard.errors import ConfigurationError, LoadTimeout, Overloaded
from cacheguard.testing import ClockStoodStillError, CountingLoader, VirtualClock

Build = Callable[..., CacheGuard]
EXACT: dict[str, Any] = {"jitter": None, "stale_if_error": None}


class DatabaseDownError(Exception):
    pass


@pytest.fixture
def clock() -> VirtualClock:
    return VirtualClock()


@pytest.fixture
def guard(clock: VirtualClock) -> Generator[CacheGuard]:
    with clock.guard() as guard:
        yield guard


@pytest.fixture
def loader() -> Generator[CountingLoader]:
    loader = CountingLoader()
    yield loader
    loader.go_on()


def test_an_entry_lives_exactly_as_long_as_the_clock_says(
    clock: VirtualClock, guard: CacheGuard, loader: CountingLoader
) -> None:
    for _ in range(200):
        value = guard.get_or_set("k", loader, ttl="300ms", **EXACT)
        clock.advance("299ms")
        assert guard.get_or_set("k", loader, ttl="300ms", **EXACT) == value
        clock.advance("1ms")
        assert guard.get("k") is None
        assert guard.get_or_set("k", loader, ttl="300ms", **EXACT) == value + 1
        guard.invalidate("k")
        clock.advance(0.0123)


def test_time_that_is_moved_in_parts_adds_up(clock: VirtualClock) -> None:
    begun = clock.now()
    for _ in range(1000):
        clock.advance(0.1)
    assert begun + 100 <= clock.now() < begun + 100.001


def test_real_time_does_not_age_an_entry(guard: CacheGuard, loader: CountingLoader) -> None:
    guard.get_or_set("k", loader, ttl="1ms", **EXACT)
    time.sleep(0.02)
    assert guard.get_or_set("k", loader, ttl="1ms", **EXACT) == 1


def test_a_decorated_function_ages_with_the_clock(clock: VirtualClock, guard: CacheGuard) -> None:
    loader = CountingLoader()

    @guard.cached("row:{row_id}", ttl="10s", **EXACT)
    @loader.counts
    def row(row_id: int) -> int:
        return row_id

    assert row(1) == row(1) == 1  # the second one by the generated hit
    assert getclosurevars(cast("Any", row)).nonlocals["_cg_now"] == clock.now
    clock.advance("9999ms")
    row(1)
    loader.assert_ran(1)
    clock.advance("1ms")
    row(1)
    loader.assert_ran(2)


async def test_a_coroutine_function_ages_with_the_clock(clock: VirtualClock, guard: CacheGuard) -> None:
    loader = CountingLoader()

    @guard.cached("row:{row_id}", ttl="10s", **EXACT)
    @loader.counts
    async def row(row_id: int) -> int:
        return row_id

    assert await row(1) == await row(1) == 1
    clock.advance("10s")
    await row(1)
    assert loader.calls == [(1,), (1,)]
    await guard.aclose()


def test_l1_ages_by_itself(clock: VirtualClock, guard: CacheGuard, loader: CountingLoader) -> None:
    guard.get_or_set("k", loader, ttl="1h", l1_ttl="10s", jitter=None)
    clock.advance("4s")
    assert guard.inspect("k").tier == "l1"
    assert guard.inspect("k").age == pytest.approx(4, abs=0.01)
    assert guard.inspect("k").ttl_left == pytest.approx(3596, abs=0.01)
    clock.advance("6s")
    assert guard.inspect("k").tier == "l2"
    assert guard.inspect("k").age == pytest.approx(10, abs=0.01)
    assert guard.inspect("k").ttl_left == pytest.approx(3590, abs=0.01)


def test_stale_windows_open_and_close_with_the_clock(
    clock: VirtualClock, guard: CacheGuard, loader: CountingLoader
) -> None:
    policy: dict[str, Any] = {"ttl": "10s", "jitter": None, "stale_if_error": "1m"}
    assert guard.get_or_set("k", loader, **policy) == 1
    loader.error = DatabaseDownError()
    clock.advance("69s")
    assert guard.get_or_set("k", loader, **policy) == 1
    clock.advance("1s")
    with pytest.raises(DatabaseDownError):
        guard.get_or_set("k", loader, **policy)


def test_an_old_value_is_served_while_one_reloads(
    clock: VirtualClock, guard: CacheGuard, loader: CountingLoader
) -> None:
    policy: dict[str, Any] = {"ttl": "10s", "jitter": None, "stale_while_revalidate": "20s"}
    guard.get_or_set("k", loader, **policy)
    clock.advance("29s")
    loader.stand_still()
    assert guard.get_or_set("k", loader, **policy) == 1
    loader.until_started()
    loader.go_on()


def test_a_failed_load_pauses_by_the_clock(clock: VirtualClock, guard: CacheGuard, loader: CountingLoader) -> None:
    loader.error = DatabaseDownError()

    def read() -> None:
        with pytest.raises(DatabaseDownError):
            guard.get_or_set("k", loader, error_backoff=("1s", "4s"))

    for pause, runs in ((1, 2), (2, 3), (4, 4), (4, 5)):
        read()
        clock.advance(pause - 0.001)
        read()
        loader.assert_ran(runs - 1)
        clock.advance(0.001)
    read()
    loader.assert_ran(5)


def test_a_breaker_that_is_built_under_the_clock_goes_by_it(clock: VirtualClock) -> None:
    with clock:
        breaker = Breaker(minimum=1, pause="10s", slow_after="1s", slow_rate=0.1)

    def fail() -> None:
        with breaker:
            raise DatabaseDownError

    with pytest.raises(DatabaseDownError):
        fail()
    states = [breaker.state]
    with pytest.raises(Overloaded), breaker:
        pass
    clock.advance("10s")
    with breaker:
        pass
    states.append(breaker.state)
    with breaker:
        clock.advance("2s")  # slow
    states.append(breaker.state)
    assert states == ["open", "closed", "open"]


def test_the_breaker_of_a_function_goes_by_the_clock(clock: VirtualClock, loader: CountingLoader) -> None:
    with clock:
        breaker = Breaker(minimum=2, pause="10s")
    with clock.guard(policy=Policy(breaker=breaker, error_backoff=None)) as guard:
        loader.error = DatabaseDownError()
        for _ in range(2):
            with pytest.raises(DatabaseDownError):
                guard.get_or_set("k", loader)
        with pytest.raises(Overloaded):
            guard.get_or_set("k", loader)
        loader.error = None
        clock.advance("10s")
        assert guard.get_or_set("k", loader) == 3


def test_an_absence_and_a_put_age_too(clock: VirtualClock, guard: CacheGuard) -> None:
    guard.set("there", 1, ttl="5s", jitter=None)
    guard.get_or_set("absent", lambda: None, null_ttl="3s", jitter=None)
    clock.advance("3s")
    assert guard.inspect("absent").state == "missing"
    assert guard.get("there") == 1
    clock.advance("2s")
    assert guard.get("there", MISSING) is MISSING


def test_a_quarantine_ends_with_the_clock(clock: VirtualClock, guard: CacheGuard, loader: CountingLoader) -> None:
    guard.invalidate("k", settle="2s")
    guard.get_or_set("k", loader, ttl="1h")
    assert guard.inspect("k").state == "fresh"
    clock.advance("2s")
    assert guard.inspect("k").state == "missing"


def test_a_load_that_takes_too_long_is_given_up_when_the_clock_says(
    clock: VirtualClock, guard: CacheGuard, loader: CountingLoader
) -> None:
    loader.stand_still()
    with ThreadPoolExecutor(3) as threads:
        answers = [threads.submit(guard.get_or_set, "k", loader, hard_timeout="30s") for _ in range(3)]
        loader.until_started()
        until(lambda: guard.stats().shared == 2)
        clock.advance("29s")
        assert not any(answer.done() for answer in answers)
        clock.advance("1s")
        errors = [answer for answer in answers if done_with(answer, LoadTimeout)]
        assert len(errors) == 2  # the one who loads is told when the loader returns
        loader.go_on()


def done_with(answer: Any, kind: type[Exception]) -> bool:
    try:
        return isinstance(answer.exception(timeout=0.5), kind)
    except TimeoutError:
        return False


def moved(clock: VirtualClock, duration: str) -> bool:
    clock.advance(duration)
    return True


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, "it did not come to that"
        time.sleep(0.001)


async def test_a_coroutine_that_takes_too_long_is_cancelled_when_the_clock_says(
    clock: VirtualClock, guard: CacheGuard, loader: CountingLoader
) -> None:
    loader.stand_still()
    asked = [asyncio.create_task(guard.aget_or_set("k", loader.acall, hard_timeout="30s")) for _ in range(3)]
    await loader.auntil_started()
    await clock.aadvance("29s")
    assert not any(task.done() for task in asked)
    await clock.aadvance("1s")
    assert all(isinstance(task.exception(), LoadTimeout) for task in asked)
    assert loader.active == 0
    await guard.aclose()


def test_a_long_load_keeps_its_lease_while_the_clock_moves(
    clock: VirtualClock, guard: CacheGuard, loader: CountingLoader
) -> None:
    loader.stand_still()
    with ThreadPoolExecutor(1) as threads:
        answer = threads.submit(guard.get_or_set, "k", loader, hard_timeout="10m")
        loader.until_started()
        clock.advance("9m")
        loader.go_on()
        assert answer.result(10) == 1
    assert guard.get("k") == 1
    assert guard.stats().fills == 1


async def test_a_long_coroutine_keeps_its_lease_while_the_clock_moves(
    clock: VirtualClock, guard: CacheGuard, loader: CountingLoader
) -> None:
    loader.stand_still()
    asked = asyncio.create_task(guard.aget_or_set("k", loader.acall, hard_timeout="10m"))
    await loader.auntil_started()
    await clock.aadvance("9m")
    loader.go_on()
    assert await asked == 1
    assert await guard.aget("k") == 1
    await guard.aclose()


def test_who_waits_in_line_is_turned_away_when_the_clock_says(clock: VirtualClock, loader: CountingLoader) -> None:
    loader.stand_still()
    with clock.guard(max_loads=1, load_wait="1s") as guard, ThreadPoolExecutor(2) as threads:
        first = threads.submit(guard.get_or_set, "first", loader)
        loader.until_started()
        second = threads.submit(guard.get_or_set, "second", loader)
        until(lambda: len(clock._timers) >= 4)  # noqa: SLF001 - both have begun to wait
        clock.advance("999ms")
        assert not done_with(second, Overloaded)
        clock.advance("1ms")
        assert isinstance(second.exception(10), Overloaded)
        loader.go_on()
        assert first.result(10) == 1


def test_a_slow_load_is_answered_with_the_old_value_when_the_clock_says(
    clock: VirtualClock, guard: CacheGuard, loader: CountingLoader
) -> None:
    policy: dict[str, Any] = {"ttl": "10s", "jitter": None, "stale_if_error": "1h", "soft_timeout": "100ms"}
    guard.get_or_set("k", loader, **policy)
    clock.advance("10s")
    loader.stand_still()
    with ThreadPoolExecutor(1) as threads:
        answer = threads.submit(lambda: guard.get_or_set("k", loader, **policy))
        loader.until_started()
        clock.advance("99ms")
        assert not answer.done()
        until(lambda: moved(clock, "1ms") and answer.done())
        assert answer.result() == 1
        loader.go_on()


def test_a_wait_that_nobody_ends_says_so(loader: CountingLoader) -> None:
    clock = VirtualClock(patience="50ms")
    loader.stand_still()
    with clock.guard(max_loads=1) as guard, ThreadPoolExecutor(1) as threads:
        first = threads.submit(guard.get_or_set, "first", loader)
        loader.until_started()
        with pytest.raises(ClockStoodStillError, match="advance"):
            guard.get_or_set("second", loader)
        loader.go_on()
        assert first.result(10) == 1


async def test_a_task_whose_wait_nobody_ends_says_so(loader: CountingLoader) -> None:
    clock = VirtualClock(patience="50ms")
    loader.stand_still()
    async with clock.guard(max_loads=1) as guard:
        first = asyncio.create_task(guard.aget_or_set("first", loader.acall))
        await loader.auntil_started()
        with pytest.raises(ClockStoodStillError, match="advance"):
            await guard.aget_or_set("second", loader.acall)
        loader.go_on()
        assert await first == 1


async def test_a_task_that_polls_for_a_threads_load_needs_no_clock(guard: CacheGuard, loader: CountingLoader) -> None:
    loader.stand_still()
    thread = asyncio.create_task(asyncio.to_thread(guard.get_or_set, "k", loader))
    await loader.auntil_started()
    task = asyncio.create_task(guard.aget_or_set("k", loader.acall))
    await asyncio.sleep(0.05)
    loader.go_on()
    assert (await thread, await task) == (1, 1)
    loader.assert_ran(1)
    await guard.aclose()


async def test_what_is_stopped_while_it_waits_for_its_loop_does_not_happen(
    clock: VirtualClock, guard: CacheGuard
) -> None:
    beats = list[float]()

    async def beat() -> None:
        beats.append(clock.now())

    begun = clock.now()
    watch = guard._hub.running().runtime.watch(beat, 1.0, beat, None)  # noqa: SLF001
    await clock.aadvance(2)
    assert beats == [begun + 1, begun + 2]
    clock.advance(1)
    watch.stop()
    await clock.aadvance(5)
    assert len(beats) == 2
    await guard.aclose()


def test_the_second_removal_of_a_double_delete_comes_with_the_clock(clock: VirtualClock, guard: CacheGuard) -> None:
    @guard.invalidates("k", mode="double", delay="1h")
    def write() -> None:
        pass

    write()
    guard.set("k", "loaded from a lagging replica", ttl="1d")
    assert guard.get("k") is not None
    until(lambda: moved(clock, "1h") and guard.get("k") is None)


def test_only_what_is_built_under_the_clock_goes_by_it(clock: VirtualClock) -> None:
    with clock:
        under = CacheGuard("memory://", policy=Policy(ttl="1m"))
    with under, CacheGuard("memory://", policy=Policy(ttl="1m")) as outside:
        outside.set("k", 1)
        under.set("k", 1)
        clock.advance("1d")
        assert outside.get("k") == 1
        assert under.get("k") is None


def test_a_child_goes_by_the_clock_of_its_guard(clock: VirtualClock, guard: CacheGuard) -> None:
    child = guard.namespace("child", policy=Policy(ttl="1m", **EXACT))
    child.set("k", 1)
    clock.advance("1m")
    assert child.get("k") is None


def test_blocks_nest(clock: VirtualClock) -> None:
    other = VirtualClock()
    with clock:
        with other, CacheGuard("memory://") as inner:
            pass
        with CacheGuard("memory://") as outer:
            pass
    assert inner._hub.now() == other.now()  # noqa: SLF001
    clock.advance(1)
    assert outer._hub.now() == clock.now()  # noqa: SLF001
    assert inner._hub.now() == other.now() != clock.now()  # noqa: SLF001


def test_the_clock_takes_every_way_of_saying_how_long(clock: VirtualClock) -> None:
    begun = clock.now()
    for duration in (1, 1.0, "1s", timedelta(seconds=1)):
        clock.advance(duration)
    assert clock.now() == begun + 4


@pytest.mark.parametrize("duration", [0, -1, True, float("nan"), "soon", None])
def test_the_clock_does_not_move_by_what_is_no_duration(clock: VirtualClock, duration: Any) -> None:
    with pytest.raises(ConfigurationError, match="duration"):
        clock.advance(duration)


def test_an_impatient_clock_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="patience"):
        VirtualClock(patience=0)


def test_what_is_due_happens_in_its_order_at_its_time(clock: VirtualClock) -> None:
    begun, seen = clock.now(), list[tuple[str, float]]()

    def first() -> None:
        note("a")()
        clock.call_later(1, note("b"))

    def note(name: str) -> Callable[[], None]:
        return lambda: seen.append((name, clock.now() - begun))

    clock.call_later(3, note("c"))
    clock.call_later(1, first)
    clock.call_later(2.5, note("never")).cancel()
    clock.call_later(9, note("later"))
    clock.advance(5)
    assert seen == [("a", 1), ("b", 2), ("c", 3)]
    assert clock.now() == begun + 5


def test_several_threads_may_move_the_clock(clock: VirtualClock) -> None:
    def move() -> None:
        for _ in range(100):
            clock.advance(0.5)

    begun = clock.now()
    threads = [threading.Thread(target=move) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert clock.now() == begun + 200


def test_a_load_that_cannot_be_looked_after_does_not_stop_the_clock(
    clock: VirtualClock, guard: CacheGuard, loader: CountingLoader, caplog: pytest.LogCaptureFixture
) -> None:
    async def broken() -> None:
        raise DatabaseDownError

    begun = clock.now()
    watch = guard._hub.blocking().runtime.watch(broken, 1.0, broken, 5.0)  # noqa: SLF001
    clock.advance(10)
    watch.stop()
    assert clock.now() == begun + 10
    assert len([record for record in caplog.records if "looked after" in record.message]) == 5


async def test_a_loop_that_has_ended_does_not_stop_the_clock(
    clock: VirtualClock, guard: CacheGuard, loader: CountingLoader
) -> None:
    def leave_a_load() -> None:
        async def begin() -> None:
            task = asyncio.create_task(guard.aget_or_set("k", loader.acall))
            await loader.auntil_started()
            task.cancel()

        asyncio.run(begin())

    loader.stand_still()
    await asyncio.to_thread(leave_a_load)
    clock.advance("1h")
    loader.go_on()
    await guard.aclose()
