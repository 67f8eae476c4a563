"""What a process keeps follows what others invalidate, and when it cannot be sure of that, it keeps nothing."""

from __future__ import annotations

import asyncio
import gc
import os
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import redis
import redis.asyncio

from cacheguard import CacheGuard, Policy
from cacheguard.delivery.bus import HORIZON
from tests.conftest import OpenDoor
from tests.support.doors import Door
from tests.support.faults import FaultProxy
from tests.support.redis_server import RedisServer


@pytest.fixture
def other(redis_url: str) -> Iterator[CacheGuard]:
    """Another process, as far as Redis and the bus can tell."""
    with CacheGuard(redis_url) as guard:
        yield guard


def until(holds: Callable[[], object], seconds: float = 10.0) -> float:
    """Wait until something holds; how long that took."""
    begin = time.monotonic()
    while not holds():
        assert time.monotonic() - begin < seconds, "it never came true"
        time.sleep(0.0005)
    return time.monotonic() - begin


def _is_kept(guard: CacheGuard, key: str) -> bool:
    return bool(guard.get(key)) and tier(guard, key) == "l1"


def _is_not_kept(guard: CacheGuard, key: str) -> bool:
    return tier(guard, key) != "l1"


def tier(guard: CacheGuard, key: str = "row") -> str | None:
    return guard.inspect(key).tier


async def test_other_processes_drop_what_is_invalidated(door: Door, other: CacheGuard) -> None:
    keys = {name: name for name in ("key", "tagged", "written", "expired", "set", "cleared")}
    for key in keys:
        await door.set(key, "old", tags=["red"] if key == "tagged" else [])
        assert other.get(key) == "old"
    # News of what was set just now may still be on its way, and cost a fresh copy.
    await asyncio.to_thread(until, lambda: all(other.get(key) and tier(other, key) == "l1" for key in keys))
    ways: dict[str, Callable[[], Any]] = {
        "key": lambda: door.invalidate("key"),
        "tagged": lambda: door.invalidate_tags("red"),
        "written": lambda: door.write(lambda _: None, "written"),
        "expired": lambda: door.expire("expired"),
        "set": lambda: door.set("set", "new"),
        "cleared": door.clear,
    }
    for key, tell in ways.items():
        await asyncio.to_thread(until, partial(_is_kept, other, key))
        await tell()
        await asyncio.to_thread(until, partial(_is_not_kept, other, key))
    assert other.stats().bus_messages >= len(ways)


OF_ANOTHER_RELEASE = [
    "3 drop there.1 0 0 - cg:cacheguard:e:row",
    "1 drop there.1 cg:cacheguard:e:row",
    "2 renamed cg:cacheguard:e:row",
    "2 drop there.1 later 0 - cg:cacheguard:e:row",
    "drop there.1 cg:cacheguard:e:row",
    "gibberish",
    "",
]


@pytest.mark.parametrize("message", OF_ANOTHER_RELEASE)
async def test_a_message_of_another_release_may_be_about_anything_so_nothing_is_kept(
    door: Door, other: CacheGuard, redis_server: RedisServer, message: str
) -> None:
    await door.set_many({"row": "value", "another": "value"})
    await asyncio.to_thread(until, lambda: all(_is_kept(other, key) for key in ("row", "another")))
    gaps = other.stats().bus_gaps
    redis_server.command("PUBLISH", "cg:cacheguard:bus", message)
    await asyncio.to_thread(until, lambda: other.stats().bus_gaps == gaps + 1)
    # It is counted first.
    await asyncio.to_thread(until, lambda: [tier(other, key) for key in ("row", "another")] == ["l2", "l2"])
    assert other.get("row") == "value"
    assert tier(other) == "l1"  # it can go on: what is read from now on is as new as any


async def test_what_is_loaded_while_a_message_of_another_release_comes_is_not_kept(
    door: Door, redis_server: RedisServer
) -> None:
    guard = door.guard
    await door.set("row", "value")
    await asyncio.to_thread(until, lambda: _is_kept(guard, "row"))

    def load() -> str:
        gaps = guard.stats().bus_gaps
        redis_server.command("PUBLISH", "cg:cacheguard:bus", "3 something else")
        until(lambda: guard.stats().bus_gaps == gaps + 1)
        return "loaded"

    assert await door.get_or_set("loaded", load) == "loaded"
    assert tier(guard, "loaded") != "l1"


async def test_ones_own_writes_do_not_cost_ones_own_fresh_entries(door: Door) -> None:
    for number in range(50):
        await door.invalidate("row")
        assert await door.get_or_set("row", lambda number=number: number) == number
        await asyncio.sleep(0.002)
        assert tier(door.guard) == "l1"
    assert door.guard.stats().bus_messages == 0


async def test_an_idle_process_keeps_its_entries_as_long_as_the_bus_is_proven(door: Door) -> None:
    await door.get_or_set("row", lambda: 1)
    await asyncio.sleep(HORIZON + 0.7)
    assert tier(door.guard) == "l1"
    before = door.guard.stats()
    assert await door.get_or_set("row", lambda: 2) == 1
    assert door.guard.stats().l1_hits == before.l1_hits + 1
    assert (before.bus_up, before.bus_gaps) == (True, 0)


def test_a_killed_subscription_is_noticed_before_an_old_value_is_served(
    redis_server: RedisServer, redis_url: str, other: CacheGuard
) -> None:
    rounds = 100 if os.environ.get("CACHEGUARD_HYPOTHESIS_PROFILE") == "night" else 25
    with CacheGuard(redis_url) as reader:
        reader.get("row")
        for number in range(rounds):
            other.set("row", number)
            until(lambda: reader.stats().bus_up)
            assert reader.get("row") == number
            gaps = reader.stats().bus_gaps
            redis_server.command("CLIENT", "KILL", "TYPE", "pubsub")
            until(lambda gaps=gaps: reader.stats().bus_gaps > gaps, 1.0)  # type: ignore[misc]
            other.invalidate("row")
            assert reader.get("row") is None
        until(lambda: reader.stats().bus_up)
        assert reader.stats().bus_gaps >= rounds
        assert len([thread for thread in threading.enumerate() if thread.name == "cacheguard-bus"]) <= 2


def test_a_subscription_that_falls_silent_closes_the_tier_in_time(
    redis_url: str, proxy: FaultProxy, other: CacheGuard
) -> None:
    with CacheGuard(proxy.url) as reader:
        other.set("row", "old")
        assert reader.get("row") == "old"
        proxy.deafen()
        begin = time.monotonic()
        other.set("row", "new")
        time.sleep(0.1)
        assert reader.get("row") == "old"  # nobody could know yet
        until(lambda: reader.get("row") == "new")
        assert time.monotonic() - begin <= HORIZON + 0.2
        until(lambda: reader.stats().bus_gaps == 1 and reader.stats().bus_up)  # another subscription is proven
        reader.get("row")
        other.invalidate("row")
        until(lambda: tier(reader) != "l1")
        assert reader.stats().bus_gaps == 1


def test_a_process_that_was_stopped_finds_its_tier_closed(redis_url: str, other: CacheGuard) -> None:
    with CacheGuard(redis_url) as reader:
        other.set("row", "old")
        assert reader.get("row") == "old"
        local = reader._hub.local  # noqa: SLF001 - a clock that jumps is what being stopped looks like
        honest = local._now  # noqa: SLF001
        local._now = lambda: honest() + HORIZON  # noqa: SLF001
        assert local.peek("cg:cacheguard:e:row") is None


@pytest.mark.parametrize("decodes", [False, True])
@pytest.mark.parametrize("protocol", [2, 3])
def test_it_works_under_both_protocols(redis_url: str, protocol: int, decodes: bool, other: CacheGuard) -> None:
    made = redis.Redis.from_url(redis_url, protocol=protocol, decode_responses=decodes)
    with made as client, CacheGuard(client=client) as reader:
        other.set("row", "old")
        assert reader.get("row") == "old"
        assert tier(reader) == "l1"
        other.invalidate("row")
        until(lambda: tier(reader) != "l1")
        other.invalidate(*(f"row:{number}" for number in range(500)))  # many messages in one piece
        until(lambda: reader.stats().bus_messages >= 501)
        assert reader.stats().bus_gaps == 0


async def test_a_guard_with_only_an_asyncio_client_hears_as_well(redis_url: str, other: CacheGuard) -> None:
    client = redis.asyncio.Redis.from_url(redis_url)
    async with CacheGuard(aclient=client) as reader:
        other.set("row", "old")
        assert await reader.aget("row") == "old"
        assert (await reader.ainspect("row")).tier == "l1"
        await asyncio.to_thread(other.invalidate, "row")
        end = time.monotonic() + 5
        while (await reader.ainspect("row")).tier == "l1":
            assert time.monotonic() < end
            await asyncio.sleep(0.001)
    await client.aclose()


def test_a_user_who_may_not_subscribe_goes_without_the_tier_and_is_told(
    redis_server: RedisServer, redis_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    redis_server.command("ACL", "SETUSER", "deaf", "on", ">pw", "~*", "+@all", "-subscribe", "resetchannels", "&*")
    try:
        url = redis_url.replace("://", "://deaf:pw@")
        with CacheGuard(url) as guard:
            assert guard.get_or_set("row", lambda: 1) == 1
            assert guard.get_or_set("row", lambda: 2) == 1
            assert tier(guard) == "l2"
            assert not guard.stats().bus_up
        assert [record for record in caplog.records if "in-process tier stays off" in record.message]
        assert "pw" not in caplog.text
    finally:
        redis_server.command("ACL", "DELUSER", "deaf")


def test_a_guard_that_nobody_holds_any_more_is_collected_and_its_thread_ends(redis_url: str) -> None:
    guard = CacheGuard(redis_url)
    guard.get_or_set("row", lambda: 1)
    assert [thread for thread in threading.enumerate() if thread.name == "cacheguard-bus"]
    del guard
    until(
        lambda: gc.collect() < 0 or not [thread for thread in threading.enumerate() if thread.name == "cacheguard-bus"]
    )


def test_a_forked_child_listens_for_itself(redis_url: str, other: CacheGuard) -> None:
    with CacheGuard(redis_url) as guard:
        other.set("row", "old")
        assert guard.get("row") == "old"
        read_end, write_end = os.pipe()
        child = os.fork()
        if child == 0:
            code = 1
            try:
                assert guard.get("row") == "old"
                assert tier(guard) == "l1"
                os.write(write_end, b"!")
                until(lambda: tier(guard) != "l1")
                code = 0
            finally:
                os._exit(code)
        assert os.read(read_end, 1) == b"!"
        other.invalidate("row")
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        until(lambda: tier(guard) != "l1")
        os.close(read_end)
        os.close(write_end)


async def test_a_thousand_fills_publish_nothing(open_door: OpenDoor, redis_server: RedisServer, redis_url: str) -> None:
    door = open_door(CacheGuard(redis_url, policy=Policy(l1=False)))
    await door.get_or_set("warm", lambda: 1)

    def calls(name: str) -> int:
        stats = redis_server.command("INFO", "commandstats")
        return int(stats.get(f"cmdstat_{name}", {"calls": 0})["calls"])

    before = calls("publish")
    await door.get_or_set_many([f"row:{number}" for number in range(1000)], dict.fromkeys, tags=["red"])
    assert calls("publish") - before < 100  # heartbeats
    assert door.guard.stats().fills == 1001
