"""When the database is in trouble: it is left alone, and callers get what there is instead."""

from __future__ import annotations

import asyncio
from typing import Any

import anyio
import anyio.to_thread
import pytest

from cacheguard import Breaker, CacheGuard
from cacheguard.errors import ConfigurationError, LoadTimeout, Overloaded
from tests.conftest import OpenDoor
from tests.support.doors import Cached, Door
from tests.support.loader import Loader
from tests.support.redis_server import RedisServer


def of(door: Door, loader: Loader, **policy: Any) -> Cached:
    @door.cached("row:{row_id}", **policy)
    def row(row_id: int) -> Any:
        return loader(row_id)

    return row


def impatient(**options: Any) -> Breaker:
    terms: dict[str, Any] = {"minimum": 3, "window": 3, "failure_rate": 1, "pause": "50ms", "longest_pause": "100ms"}
    return Breaker("db", **terms | options)


async def started(loader: Loader) -> None:
    assert await anyio.to_thread.run_sync(loader.started.wait, 10)


async def test_a_loader_that_keeps_failing_is_left_alone_for_a_while(door: Door) -> None:
    breaker, loader = impatient(), Loader(error=OSError("no database"))
    row = of(door, loader, breaker=breaker, error_backoff=None)
    for number in range(3):
        with pytest.raises(OSError, match="no database"):
            await row(number)
    with pytest.raises(Overloaded, match="the breaker of db is open"):
        await row(9)
    assert loader.runs == 3
    stats = door.guard.stats()
    assert (stats.breaker_rejects, stats.overloads, stats.loads) == (1, 1, 3)
    loader.error = None
    await asyncio.sleep(breaker.retry_after)
    assert await row(9) == 4
    assert breaker.state == "closed"


async def test_functions_share_a_breaker_and_others_are_not_concerned(door: Door) -> None:
    breaker, loader = impatient(pause="1m", longest_pause="1m"), Loader(error=OSError("down"))
    one, other, third = of(door, loader, breaker=breaker), Loader("well"), Loader("well")
    for number in range(3):
        with pytest.raises(OSError, match="down"):
            await one(number)
    with pytest.raises(Overloaded):
        await door.get_or_set("other", other, breaker=breaker)
    with pytest.raises(Overloaded):
        await door.get_or_set_many(["a", "b"], lambda keys: dict.fromkeys(keys, 1), breaker=breaker)
    assert await door.get_or_set("third", third) == "well"
    assert (other.runs, third.runs) == (0, 1)


async def test_while_the_breaker_is_open_what_is_stale_is_served(door: Door) -> None:
    breaker, loader = impatient(pause="1m", longest_pause="1m"), Loader()
    row = of(door, loader, breaker=breaker, ttl="50ms", jitter=None, stale_if_error="1m", error_backoff=None)
    assert await row(1) == 1
    loader.error = OSError("down")
    for number in range(2, 5):
        with pytest.raises(OSError, match="down"):
            await row(number)
    await asyncio.sleep(0.1)
    assert breaker.state == "open"
    assert await row(1) == 1
    assert loader.runs == 4


async def test_what_does_not_exist_and_who_goes_away_is_no_failure(door: Door) -> None:
    breaker, loader = impatient(), Loader(error=LookupError("no such row"))
    row = of(door, loader, breaker=breaker, not_found=LookupError)
    for number in range(6):
        with pytest.raises(LookupError):
            await row(number)
    assert breaker.state == "closed"


async def test_a_load_that_takes_too_long_is_a_failure_of_what_it_loads_from(door: Door) -> None:
    breaker, loader = impatient(minimum=1, window=1, pause="1m", longest_pause="1m"), Loader()
    loader.stand_still()
    asked = asyncio.ensure_future(door.get_or_set("k", loader, breaker=breaker, hard_timeout="100ms"))
    await started(loader)
    with anyio.fail_after(10):
        while breaker.state == "closed":
            await asyncio.sleep(0.01)
    loader.go_on()
    await asyncio.gather(asked, return_exceptions=True)
    assert breaker.state == "open"


# In the place of an error


async def test_a_fallback_stands_in_for_a_full_bulkhead(open_door: OpenDoor, redis_url: str) -> None:
    door, slow = open_door(CacheGuard(redis_url, max_loads=1, load_wait="50ms")), Loader("slow")
    slow.stand_still()
    first = asyncio.ensure_future(door.get_or_set("slow", slow))
    await started(slow)
    quick = Loader("quick")
    assert await door.get_or_set("k", quick, fallback=[]) == []
    assert await door.get_or_set("k", quick, fallback=lambda error: type(error).__name__) == "Overloaded"
    assert await door.get_or_set_many(["k", "l"], lambda keys: dict.fromkeys(keys, 1), fallback=0) == {"k": 0, "l": 0}
    assert await of(door, quick, fallback="instead")(1) == "instead"
    with pytest.raises(Overloaded):
        await door.get_or_set("k", quick)
    assert door.guard.stats().fallbacks == 5
    slow.go_on()
    assert await first == "slow"
    assert await door.get_or_set("k", quick, fallback=[]) == "quick"  # and it was not cached
    assert quick.runs == 1


async def test_a_fallback_stands_in_for_a_load_that_takes_too_long_but_not_for_its_own_errors(door: Door) -> None:
    loader = Loader("value")
    loader.stand_still()
    leading = asyncio.ensure_future(door.get_or_set("k", loader, hard_timeout="100ms", fallback="instead"))
    await started(loader)
    assert await door.get_or_set("k", loader, hard_timeout="100ms", fallback="instead") == "instead"
    with pytest.raises(LoadTimeout):
        await door.get_or_set("k", loader, hard_timeout="100ms")
    loader.go_on()
    assert await leading in {"value", "instead"}  # a thread cannot be interrupted: its own caller gets what it brings
    with pytest.raises(ValueError, match="its own"):
        await door.get_or_set("other", Loader(error=ValueError("its own")), fallback="instead")


async def test_a_fallback_may_be_a_coroutine_function_for_coroutines() -> None:
    async def instead(error: Exception) -> str:
        await asyncio.sleep(0)
        return f"instead of {type(error).__name__}"

    breaker = impatient(minimum=1, window=1, pause="1m", longest_pause="1m")
    with pytest.raises(ValueError, match="x"), breaker:
        raise ValueError("x")
    async with CacheGuard() as guard:
        assert await guard.aget_or_set("k", Loader(1), breaker=breaker, fallback=instead) == "instead of Overloaded"


async def test_the_line_in_front_of_the_database_has_an_end(open_door: OpenDoor, redis_url: str) -> None:
    door, slow = open_door(CacheGuard(redis_url, max_loads=1, load_wait="30s", load_queue=3)), Loader("slow")
    slow.stand_still()
    first = asyncio.ensure_future(door.get_or_set("slow", slow))
    await started(slow)
    waiting = [asyncio.ensure_future(door.get_or_set(f"k{number}", Loader(number))) for number in range(5)]
    done, _ = await asyncio.wait(waiting, timeout=10, return_when=asyncio.FIRST_EXCEPTION)
    with anyio.fail_after(10):
        while sum(task.done() for task in waiting) < 2:
            await asyncio.sleep(0.005)
    refused = [task for task in waiting if task.done()]
    assert done
    assert len(refused) == 2
    for task in refused:
        with pytest.raises(Overloaded, match="3 wait in line already"):
            task.result()
    slow.go_on()
    assert await first == "slow"
    assert sorted(await asyncio.gather(*(task for task in waiting if task not in refused))) == [
        number for number, task in enumerate(waiting) if task not in refused
    ]


@pytest.mark.parametrize("options", [{"breaker": "db"}, {"breaker": 3}])
def test_what_is_no_breaker_is_refused_when_decorating(options: dict[str, Any]) -> None:
    with CacheGuard() as guard, pytest.raises(ConfigurationError, match="breaker must be a Breaker or None"):
        guard.cached("k", **options)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"load_queue": 0}, "load_queue must be a whole number >= 1, got 0"),
        ({"on_state_change": 3}, "on_state_change must be a plain function"),
    ],
)
def test_options_that_cannot_work_are_refused_by_name(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        CacheGuard(**options)


async def test_without_redis_threads_and_event_loops_share_one_load(redis_server: RedisServer, redis_url: str) -> None:
    loader = Loader("value", seconds=0.2)
    async with CacheGuard(redis_url) as guard:
        redis_server.kill()
        asked: list[Any] = [anyio.to_thread.run_sync(guard.get_or_set, "k", loader) for _ in range(4)]
        asked += [guard.aget_or_set("k", lambda: anyio.to_thread.run_sync(loader)) for _ in range(4)]
        asked += [anyio.to_thread.run_sync(_in_a_loop_of_its_own, guard, loader) for _ in range(2)]
        assert await asyncio.gather(*asked) == ["value"] * 10
    assert loader.runs == 1


def _in_a_loop_of_its_own(guard: CacheGuard, loader: Loader) -> Any:
    return asyncio.run(guard.aget_or_set("k", lambda: asyncio.to_thread(loader)))


async def test_without_redis_a_failing_load_fails_for_threads_and_event_loops_alike(
    redis_server: RedisServer, redis_url: str
) -> None:
    loader = Loader(error=ValueError("no such table"), seconds=0.2)
    async with CacheGuard(redis_url) as guard:
        redis_server.kill()
        asked: list[Any] = [anyio.to_thread.run_sync(guard.get_or_set, "k", loader)]
        asked += [guard.aget_or_set("k", lambda: anyio.to_thread.run_sync(loader))]
        for outcome in await asyncio.gather(*asked, return_exceptions=True):
            assert str(outcome) == "no such table"
    assert loader.runs == 1
