"""An entry past its time: who waits, who gets the old value, who reloads; and how long anything lives."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import pytest
import redis

from cacheguard import CacheGuard, Policy
from tests.conftest import OpenDoor
from tests.support.doors import Cached, Door
from tests.support.layout import claims_of
from tests.support.loader import Loader


def of(door: Door, loader: Loader, **policy: Any) -> Cached:
    @door.cached("row:{row_id}", **policy)
    def row(row_id: int) -> Any:
        return loader(row_id)

    return row


@pytest.fixture(params=["redis", "memory"])
def either(request: pytest.FixtureRequest, open_door: OpenDoor, redis_url: str) -> Door:
    return open_door(CacheGuard(redis_url if request.param == "redis" else "memory://"))


async def until(condition: Callable[[], object], seconds: float = 5.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come to that"
        await asyncio.sleep(0.005)


async def past_its_ttl(seconds: float = 0.12) -> None:
    await asyncio.sleep(seconds)


SHORT: dict[str, Any] = {"ttl": "100ms", "jitter": 0.0}


async def test_logical_readers_get_the_old_value_at_once_while_one_reloads(either: Door) -> None:
    loader = Loader()
    row = of(either, loader, rebuild="logical", **SHORT)
    assert await row(1) == 1
    await past_its_ttl()
    loader.seconds = 0.3
    begin = time.monotonic()
    assert await asyncio.gather(*(row(1) for _ in range(20))) == [1] * 20
    assert await row(1) == 1
    assert time.monotonic() - begin < 0.25
    await until(lambda: either.guard.stats().fills == 2)
    assert await row(1) == 2
    assert loader.runs == 2
    assert either.guard.stats().refreshes == 1


async def test_a_logical_entry_stays_for_a_day(door: Door, redis_url: str) -> None:
    await of(door, Loader(), rebuild="logical", **SHORT)(1)
    with redis.Redis.from_url(redis_url) as client:
        assert 86_000_000 < client.pttl("cg:cacheguard:e:row:1") <= 86_400_100


async def test_two_guards_reload_a_logical_entry_once(open_door: OpenDoor, redis_url: str) -> None:
    loader = Loader()
    rows = [of(open_door(CacheGuard(redis_url)), loader, rebuild="logical", l1=False, **SHORT) for _ in range(3)]
    assert await rows[0](1) == 1
    await past_its_ttl()
    loader.seconds = 0.2
    assert await asyncio.gather(*(row(1) for row in rows for _ in range(5))) == [1] * 15
    await until(lambda: loader.active == 0 and loader.runs == 2)
    await asyncio.sleep(0.3)
    assert {await row(1) for row in rows} <= {2, 3}


async def test_a_reload_behind_that_fails_leaves_the_old_value(either: Door) -> None:
    loader = Loader()
    row = of(either, loader, rebuild="logical", **SHORT)
    assert await row(1) == 1
    await past_its_ttl()
    loader.error = ValueError("down")
    assert await row(1) == 1
    await until(lambda: either.guard.stats().load_failures == 1)
    assert [await row(1) for _ in range(5)] == [1] * 5
    assert loader.runs == 2  # backoff holds for reloads, too


async def test_stale_while_revalidate_ends(either: Door) -> None:
    loader = Loader()
    row = of(either, loader, stale_while_revalidate="150ms", stale_if_error=None, error_backoff=None, **SHORT)
    assert await row(1) == 1
    await past_its_ttl()
    assert await row(1) == 1
    await until(lambda: either.guard.stats().fills == 2)
    assert await row(1) == 2
    await past_its_ttl(0.3)
    loader.error = ValueError("down")
    with pytest.raises(ValueError, match="down"):
        await row(1)


async def test_without_a_window_an_entry_past_its_ttl_is_loaded_anew(either: Door) -> None:
    loader = Loader()
    row = of(either, loader, **SHORT)
    assert await row(1) == 1
    await past_its_ttl()
    assert await row(1) == 2
    assert either.guard.stats().stale_hits == 0


async def test_stale_if_error_serves_the_old_value_instead_of_a_failure(either: Door) -> None:
    loader = Loader()
    row = of(either, loader, stale_if_error="400ms", **SHORT)
    assert await row(1) == 1
    await past_its_ttl()
    loader.error = ValueError("down")
    assert await asyncio.gather(*(row(1) for _ in range(5))) == [1] * 5
    assert loader.runs == 2
    assert await row(1) == 1
    await past_its_ttl(0.6)
    with pytest.raises(ValueError, match="down"):
        await row(1)


async def test_without_stale_if_error_a_failure_is_a_failure(either: Door) -> None:
    loader = Loader()
    row = of(either, loader, stale_if_error=None, **SHORT)
    assert await row(1) == 1
    await past_its_ttl()
    loader.error = ValueError("down")
    with pytest.raises(ValueError, match="down"):
        await row(1)


async def test_a_batch_falls_back_on_old_values_key_by_key(either: Door) -> None:
    def load(keys: list[str]) -> dict[str, str]:
        return dict.fromkeys(keys, "old")

    def fail(keys: list[str]) -> dict[str, str]:
        raise ValueError("down")

    await either.get_or_set_many(["a", "b"], load, **SHORT)
    await past_its_ttl()
    assert await either.get_or_set_many(["a", "b"], fail, **SHORT) == {"a": "old", "b": "old"}


async def test_early_entries_are_reloaded_before_they_end(either: Door) -> None:
    loader = Loader(seconds=0.1)
    row = of(either, loader, rebuild="early", ttl="1s", jitter=0.0)
    assert await row(1) == 1
    slowest = 0.0
    end = time.monotonic() + 1.6
    while time.monotonic() < end:
        begin = time.monotonic()
        await row(1)
        slowest = max(slowest, time.monotonic() - begin)
        await asyncio.sleep(0.005)
    assert loader.runs in range(2, 9)
    assert loader.peak == 1
    assert slowest < 0.07  # nobody waited for a load


async def test_the_process_never_holds_an_entry_longer_than_redis(open_door: OpenDoor, redis_url: str) -> None:
    first, second = (open_door(CacheGuard(redis_url)) for _ in range(2))
    loader = Loader()
    rows = [of(each, loader, ttl="400ms", jitter=0.0) for each in (first, second)]
    assert await rows[0](1) == 1
    await asyncio.sleep(0.3)
    assert await rows[1](1) == 1  # from Redis, with 100 ms left
    await asyncio.sleep(0.15)
    assert await rows[1](1) == 2


async def test_l1_ttl_bounds_the_stay_in_the_process(either: Door) -> None:
    row = of(either, Loader(), l1_ttl="50ms")
    assert await row(1) == 1
    assert (await either.inspect("row:1")).tier == "l1"
    await asyncio.sleep(0.07)
    assert (await either.inspect("row:1")).tier == "l2"
    assert await row(1) == 1
    assert either.guard.stats().l2_hits == 1


async def test_jitter_is_in_milliseconds_and_never_longer_than_asked(door: Door, redis_url: str) -> None:
    await door.set_many({f"k{number}": 1 for number in range(300)}, ttl=10, jitter=0.5, stale_if_error=5)
    with redis.Redis.from_url(redis_url) as client:
        keys = set(client.scan_iter("*:e:*"))
        left = [client.pttl(key) for key in keys]
    assert len(left) == 300
    assert all(9_000 < each <= 15_000 for each in left)
    assert len(set(left)) > 150
    assert max(left) - min(left) > 4_000
    assert len({each % 1000 for each in left}) > 100


async def test_without_jitter_the_ttl_is_the_one_asked_for(door: Door, redis_url: str) -> None:
    await door.set("k", 1, ttl="7s", jitter=None, stale_if_error=None)
    with redis.Redis.from_url(redis_url) as client:
        assert 6_000 < client.pttl("cg:cacheguard:e:k") <= 7_000


async def test_the_ttl_may_depend_on_the_value(either: Door) -> None:
    async def left(value: Any) -> float:
        await either.invalidate("k")
        await either.get_or_set("k", lambda: value, ttl=lambda each: each["ttl"], jitter=0.0)
        seconds: float = (await either.inspect("k")).ttl_left
        return seconds

    assert 95 < await left({"ttl": 100}) <= 100
    assert 40 < await left({"ttl": "45s"}) <= 45
    assert await left({"ttl": None}) > 86_400


@pytest.mark.parametrize("answer", [0, -1, "soon", True, float("nan"), KeyError("x")])
async def test_a_ttl_function_that_answers_nonsense_costs_the_cache_not_the_value(either: Door, answer: object) -> None:
    def ttl(value: object) -> Any:
        if isinstance(answer, Exception):
            raise answer
        return answer

    assert await either.get_or_set("k", lambda: "value", ttl=ttl) == "value"
    assert await either.get("k") is None
    begin = time.monotonic()
    assert await either.get_or_set("k", lambda: "again", ttl=ttl) == "again"
    assert time.monotonic() - begin < 1


async def test_a_stale_entry_survives_the_lease_under_which_it_is_renewed(open_door: OpenDoor, redis_url: str) -> None:
    door = open_door(CacheGuard(redis_url, policy=Policy(stale_if_error="1s", **SHORT)))
    loader = Loader()
    row = of(door, loader)
    assert await row(1) == 1
    await past_its_ttl()
    loader.error = ValueError("down")
    assert await row(1) == 1
    with redis.Redis.from_url(redis_url) as client:
        raw: Any = client.get("cg:cacheguard:e:row:1")
        assert "l" not in claims_of(raw)
    await asyncio.sleep(1.1)
    with pytest.raises(ValueError, match="down"):
        await row(1)
