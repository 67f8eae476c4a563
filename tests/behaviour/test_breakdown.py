"""A hot key that goes missing is loaded once, whoever asks, and whatever becomes of those who ask."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any

import anyio
import anyio.to_thread
import pytest

from cacheguard import CacheGuard
from cacheguard.errors import LoadTimeout, Overloaded, ReentrantLoad
from tests.conftest import OpenDoor
from tests.support.doors import Cached, Door
from tests.support.loader import Loader


async def started(loader: Loader) -> None:
    assert await anyio.to_thread.run_sync(loader.started.wait, 10)


async def until(condition: Any, seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come to that"
        await asyncio.sleep(0.005)


def of(door: Door, loader: Loader, **policy: Any) -> Cached:
    @door.cached("row:{row_id}", **policy)
    def row(row_id: int) -> int:
        result: int = loader(row_id)
        return result

    return row


async def test_one_load_serves_every_reader_of_a_cold_key(door: Door) -> None:
    loader = Loader(seconds=0.1)
    row = of(door, loader)
    assert await asyncio.gather(*(row(1) for _ in range(50))) == [1] * 50
    assert loader.runs == 1
    assert door.guard.stats().loads == 1
    assert door.guard.stats().fills == 1


async def test_one_load_serves_two_guards_that_share_a_redis(open_door: OpenDoor, redis_url: str) -> None:
    loader = Loader(seconds=0.3)
    rows = [of(open_door(CacheGuard(redis_url)), loader) for _ in range(3)]
    assert await asyncio.gather(*(row(1) for row in rows for _ in range(10))) == [1] * 30
    assert loader.runs == 1


async def test_threads_and_tasks_of_one_guard_share_one_load(redis_url: str) -> None:
    loader = Loader(seconds=0.2)
    async with CacheGuard(redis_url) as guard:
        asked = [asyncio.to_thread(guard.get_or_set, "k", loader) for _ in range(8)]
        # Not in the loop's own threads: on few cores there are fewer of them than readers who wait in them.
        asked += [guard.aget_or_set("k", lambda: anyio.to_thread.run_sync(loader)) for _ in range(8)]
        assert await asyncio.gather(*asked) == [1] * 16
    assert loader.runs == 1


async def test_a_load_of_one_key_holds_up_no_other(door: Door) -> None:
    slow, quick = Loader(), Loader()
    slow.stand_still()
    async with anyio.create_task_group() as group:
        group.start_soon(door.get_or_set, "slow", slow)
        await started(slow)
        assert await door.get_or_set("quick", quick) == 1
        slow.go_on()


async def test_a_failing_load_runs_once_for_all_who_wait_and_tells_each_its_exception(door: Door) -> None:
    loader = Loader(seconds=0.2, error=ValueError("no such table", 7))
    row = of(door, loader)
    outcomes = await asyncio.gather(*(row(1) for _ in range(20)), return_exceptions=True)
    assert loader.runs == 1
    assert {type(each) for each in outcomes} == {ValueError}
    assert {str(each) for each in outcomes} == {"('no such table', 7)"}


async def test_a_failing_load_elsewhere_is_told_to_those_who_waited_for_it(open_door: OpenDoor, redis_url: str) -> None:
    loader = Loader(error=ValueError("no such table"))
    loader.stand_still()
    here, there = (of(open_door(CacheGuard(redis_url)), loader) for _ in range(2))
    first = asyncio.ensure_future(here(1))
    await started(loader)
    second = asyncio.ensure_future(there(1))
    await asyncio.sleep(0.1)
    loader.go_on()
    for asked in (first, second):
        with pytest.raises(ValueError, match="no such table"):
            await asked
    assert loader.runs == 1


async def test_after_a_failure_nobody_loads_for_a_while_that_grows(door: Door) -> None:
    loader = Loader(error=ValueError("down"))
    row = of(door, loader, error_backoff=("200ms", "5s"))

    async def fails() -> None:
        with pytest.raises(ValueError, match="down"):
            await row(1)

    await fails()
    await fails()
    assert loader.runs == 1
    assert door.guard.stats().backoffs == 1
    await asyncio.sleep(0.21)
    await fails()
    assert loader.runs == 2
    await asyncio.sleep(0.21)
    await fails()
    assert loader.runs == 2  # the second pause is twice as long
    await asyncio.sleep(0.2)
    loader.error = None
    assert await row(1) == 3


async def test_without_backoff_every_call_loads(door: Door) -> None:
    loader = Loader(error=ValueError("down"))
    row = of(door, loader, error_backoff=None)
    for _ in range(3):
        with pytest.raises(ValueError, match="down"):
            await row(1)
    assert loader.runs == 3


async def test_an_invalidation_ends_the_backoff(door: Door) -> None:
    loader = Loader(error=ValueError("down"))
    row = of(door, loader)
    with pytest.raises(ValueError, match="down"):
        await row(1)
    loader.error = None
    await row.invalidate(1)
    assert await row(1) == 2


async def test_the_first_of_a_hundred_waiters_may_go_away() -> None:
    loads = 0
    async with CacheGuard() as guard:

        async def load() -> int:
            nonlocal loads
            loads += 1
            await asyncio.sleep(0.1)
            return loads

        waiters = [asyncio.ensure_future(guard.aget_or_set("k", load)) for _ in range(100)]
        await asyncio.sleep(0.02)
        waiters[0].cancel()
        outcomes = await asyncio.gather(*waiters, return_exceptions=True)
        assert isinstance(outcomes[0], asyncio.CancelledError)
        assert outcomes[1:] == [1] * 99
        assert loads == 1


async def test_when_every_waiter_goes_away_the_load_still_fills(redis_url: str) -> None:
    async with CacheGuard(redis_url) as guard:
        loader = Loader(seconds=0.1)
        waiters = [asyncio.ensure_future(guard.aget_or_set("k", lambda: asyncio.to_thread(loader))) for _ in range(5)]
        await started(loader)
        for waiter in waiters:
            waiter.cancel()
        await asyncio.gather(*waiters, return_exceptions=True)
        await until(lambda: guard.stats().fills == 1)
        assert await guard.aget("k") == 1


async def test_a_loader_that_cancels_itself_leaves_nobody_waiting() -> None:
    runs = 0

    async def load() -> int:
        nonlocal runs
        runs += 1
        await asyncio.sleep(0.02)
        if runs == 1:
            raise asyncio.CancelledError
        return runs

    async with CacheGuard() as guard, asyncio.timeout(5):
        answers = await asyncio.gather(*(guard.aget_or_set("k", load) for _ in range(5)), return_exceptions=True)
    assert set(answers) == {2}


def test_a_leader_that_is_interrupted_leaves_nobody_waiting(redis_url: str) -> None:
    begun, runs = threading.Event(), 0
    answers: list[Any] = []

    def load() -> int:
        nonlocal runs
        runs += 1
        if runs == 1:
            begun.set()
            time.sleep(0.1)
            raise KeyboardInterrupt
        return runs

    with CacheGuard(redis_url) as guard:

        def lead() -> None:
            with pytest.raises(KeyboardInterrupt):
                guard.get_or_set("k", load)

        leader = threading.Thread(target=lead)
        leader.start()
        assert begun.wait(5)
        waiters = [threading.Thread(target=lambda: answers.append(guard.get_or_set("k", load))) for _ in range(5)]
        for waiter in waiters:
            waiter.start()
        for thread in (leader, *waiters):
            thread.join(10)
    assert answers == [2] * 5
    assert runs == 2


async def test_a_waiter_with_a_wait_timeout_loads_for_itself_and_fills_nothing(door: Door) -> None:
    loader = Loader()
    loader.stand_still()
    row = of(door, loader)
    hasty = of(door, loader, wait_timeout="50ms")
    patient = asyncio.ensure_future(row(1))
    await started(loader)
    impatient = asyncio.ensure_future(hasty(1))
    await until(lambda: loader.runs == 2)
    loader.go_on()
    assert sorted([await patient, await impatient]) == [1, 2]
    assert door.guard.stats().fills == 1


async def test_a_load_beyond_its_hard_timeout_frees_waiters_and_lease(open_door: OpenDoor, redis_url: str) -> None:
    loader = Loader()
    loader.stand_still()
    row = of(open_door(CacheGuard(redis_url)), loader, hard_timeout="300ms", error_backoff=None)
    other = of(open_door(CacheGuard(redis_url)), loader, error_backoff=None)
    leader = asyncio.ensure_future(row(1))
    await started(loader)
    with pytest.raises(LoadTimeout):
        await row(1)
    second = asyncio.ensure_future(other(1))
    await until(lambda: loader.runs == 2)  # the lease was free
    loader.go_on()
    assert await second == 2
    outcome = (await asyncio.gather(leader, return_exceptions=True))[0]
    assert outcome == 1 or isinstance(outcome, LoadTimeout)
    assert await row(1) == 2


async def test_a_loader_that_reads_its_own_key_gets_an_error(redis_url: str) -> None:
    with CacheGuard(redis_url) as guard:

        @guard.cached("node:{node_id}")
        def node(node_id: int) -> int:
            return node(node_id)

        with pytest.raises(ReentrantLoad, match="node:1"):
            node(1)


async def test_a_coroutine_that_reads_its_own_key_gets_an_error(redis_url: str) -> None:
    async with CacheGuard(redis_url) as guard:

        @guard.cached("node:{node_id}")
        async def node(node_id: int) -> int:
            return await node(node_id)

        async with asyncio.timeout(5):
            with pytest.raises(ReentrantLoad):
                await node(1)


async def test_a_cycle_over_another_key_is_an_error_in_either_colour(redis_url: str) -> None:
    async with CacheGuard(redis_url) as guard:

        @guard.cached("egg")
        async def egg() -> int:
            return await hen()

        @guard.cached("hen")
        async def hen() -> int:
            return (await asyncio.gather(egg()))[0]

        @guard.cached("chicken")
        def chicken() -> int:
            return guard.get_or_set_many(["x"], lambda keys: {"x": guard.get_or_set("x", lambda: 1)})["x"] or 0

        async with asyncio.timeout(5):
            with pytest.raises(ReentrantLoad):
                await egg()
        with pytest.raises(ReentrantLoad):
            chicken()


async def test_a_loader_may_read_its_own_key_after_the_load(door: Door) -> None:
    loader = Loader()
    row = of(door, loader)
    assert await row(1) == 1
    assert await row(1) == 1
    await row.invalidate(1)
    assert await row(1) == 2


async def test_a_loader_may_invalidate_and_write_its_own_key(redis_url: str) -> None:
    with CacheGuard(redis_url) as guard:

        def load() -> str:
            guard.invalidate("k")
            guard.set("other", 1)
            return "loaded"

        assert guard.get_or_set("k", load) == "loaded"
        assert guard.get("k") is None
        assert guard.stats().fills_refused == 1


async def test_more_loads_than_the_bulkhead_holds_wait_in_line(open_door: OpenDoor, redis_url: str) -> None:
    loader = Loader(seconds=0.02)
    row = of(open_door(CacheGuard(redis_url, max_loads=3, load_wait="10s")), loader)
    assert len(await asyncio.gather(*(row(number) for number in range(20)))) == 20
    assert loader.runs == 20
    assert loader.peak <= 3


async def test_a_full_bulkhead_says_so_and_leaves_no_lease_behind(open_door: OpenDoor, redis_url: str) -> None:
    loader = Loader()
    loader.stand_still()
    door = open_door(CacheGuard(redis_url, max_loads=1, load_wait="50ms"))
    row = of(door, loader)
    first = asyncio.ensure_future(row(1))
    await started(loader)
    with pytest.raises(Overloaded):
        await row(2)
    assert door.guard.stats().overloads == 1
    loader.go_on()
    assert await first == 1
    begin = time.monotonic()
    assert await row(2) == 2
    assert time.monotonic() - begin < 1


async def test_a_full_bulkhead_serves_the_old_value_if_there_is_one(open_door: OpenDoor, redis_url: str) -> None:
    loader = Loader()
    row = of(open_door(CacheGuard(redis_url, max_loads=1, load_wait="50ms")), loader)
    assert await row(1) == 1
    await row.expire(1)
    loader.stand_still()
    first = asyncio.ensure_future(row(2))
    await started(loader)
    assert await row(1) == 1
    loader.go_on()
    assert await first == 2


async def test_a_nested_load_uses_the_place_of_the_one_around_it(redis_url: str) -> None:
    async with CacheGuard(redis_url, max_loads=1, load_wait="100ms") as guard:

        @guard.cached("inner:{number}")
        def inner(number: int) -> int:
            return number

        @guard.cached("outer")
        def outer() -> int:
            return inner(1) + inner(2)

        @guard.cached("ainner:{number}")
        async def ainner(number: int) -> int:
            return number

        @guard.cached("aouter")
        async def aouter() -> int:
            return await ainner(1) + await ainner(2)

        assert outer() == 3
        assert await aouter() == 3


async def test_nested_loads_side_by_side_use_the_place_of_the_one_around_them(redis_url: str) -> None:
    async with CacheGuard(redis_url, max_loads=1, load_wait="300ms") as guard:

        @guard.cached("inner:{number}")
        async def inner(number: int) -> int:
            await asyncio.sleep(0.01)
            return number

        @guard.cached("outer")
        async def outer() -> int:
            return sum(await asyncio.gather(inner(1), inner(2), inner(3)))

        assert await outer() == 6


async def test_a_load_waits_no_longer_than_load_wait_for_one_that_stands_in_line_behind_it(redis_url: str) -> None:
    gate = Loader()
    gate.stand_still()
    async with CacheGuard(redis_url, max_loads=1, load_wait="300ms") as guard:

        @guard.cached("inner")
        def part() -> str:
            return "part"

        @guard.cached("outer")
        def whole() -> str:
            gate()
            return part()

        outer = asyncio.ensure_future(asyncio.to_thread(whole))
        await started(gate)
        nested = asyncio.ensure_future(asyncio.to_thread(part))
        await until(lambda: guard.stats().misses == 2)
        gate.go_on()
        outcomes = await asyncio.gather(outer, nested, return_exceptions=True)
        assert all(outcome == "part" or isinstance(outcome, Overloaded) for outcome in outcomes)
        assert await asyncio.to_thread(part) == "part"


async def test_a_soft_timeout_without_an_old_value_waits(door: Door) -> None:
    loader = Loader(seconds=0.15)
    assert await of(door, loader, soft_timeout="20ms")(1) == 1


async def test_a_soft_timeout_serves_the_old_value_while_the_load_goes_on(door: Door) -> None:
    loader = Loader()
    row = of(door, loader, soft_timeout="30ms")
    assert await row(1) == 1
    await row.expire(1)
    loader.stand_still()
    assert await row(1) == 1
    assert await row(1) == 1
    loader.go_on()
    await until(lambda: door.guard.stats().fills == 2)
    assert await row(1) == 2
    assert loader.runs == 2
