"""Sentinel, and a server that comes back as another one."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis.asyncio
import redis.asyncio.sentinel
import redis.sentinel

from cacheguard import CacheGuard, Policy
from cacheguard.errors import ConfigurationError
from tests.conftest import OpenDoor
from tests.support.doors import Door
from tests.support.redis_server import RedisServer
from tests.support.sentinels import SERVICE, Sentinels

ROWS = [f"row:{number}" for number in range(10)]


async def until(holds: Any, seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not await asyncio.to_thread(holds):
        assert time.monotonic() < deadline, "it did not become true"
        await asyncio.sleep(0.02)


# One server, restarted


@pytest.fixture
def own_server(redis_server: RedisServer, tmp_path: Path) -> Iterator[RedisServer]:
    """A server that may keep something on disk."""
    server = RedisServer(redis_server.binary, tmp_path).start()
    yield server
    server.stop()


async def come_back_with_old_data(door: Door, server: RedisServer) -> None:
    assert await door.get_or_set("k", lambda: "old", tags=["t"]) == "old"
    assert await door.get_or_set("by tag", lambda: "old", tags=["t"]) == "old"
    server.command("SAVE")
    await door.invalidate("k")
    await door.invalidate_tags("t")
    server.kill()
    server.start()
    assert server.entries()


async def test_what_was_invalidated_stays_invalid_when_a_server_comes_back_with_old_data(
    open_door: OpenDoor, own_server: RedisServer
) -> None:
    door = open_door(CacheGuard(own_server.url, policy=Policy(l1=False)))
    await come_back_with_old_data(door, own_server)
    assert await door.get_many(["k", "by tag"]) == {}
    with CacheGuard(own_server.url) as elsewhere:
        assert await asyncio.to_thread(elsewhere.get_many, ["k", "by tag"]) == {}
    assert door.guard.stats().replayed >= 2
    assert door.guard.stats().redis_errors == 0


async def test_a_server_that_came_back_is_told_even_if_nobody_asks(
    open_door: OpenDoor, own_server: RedisServer
) -> None:
    door = open_door(CacheGuard(own_server.url))
    await come_back_with_old_data(door, own_server)
    await until(lambda: door.guard.stats().replayed >= 2 and not door.guard.stats().invalidations_queued)
    with CacheGuard(own_server.url) as elsewhere:
        assert await asyncio.to_thread(elsewhere.get_many, ["k", "by tag"]) == {}


async def test_a_bloom_filter_outlives_a_restart(open_door: OpenDoor, own_server: RedisServer) -> None:
    door = open_door(CacheGuard(own_server.url))
    ids = door.guard.bloom("ids", capacity=1000)
    await door.ask(ids, "rebuild", range(10))
    own_server.restart()
    assert not await door.ask(ids, "absent", 5)
    await door.ask(ids, "add", 11)
    await door.ask(ids, "rebuild", range(12))
    assert not await door.ask(ids, "absent", 11)


async def test_a_server_that_does_not_tell_who_it_is_works(open_door: OpenDoor, own_server: RedisServer) -> None:
    own_server.command("ACL", "SETUSER", "default", "-info")
    door = open_door(CacheGuard(own_server.url))
    assert await door.get_or_set("k", lambda: 1) == 1
    own_server.command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
    assert await door.get_or_set("l", lambda: 2) == 2
    assert door.guard.stats().redis_errors == 0
    assert door.guard.stats().fills == 2


async def test_a_lost_connection_is_no_other_server(open_door: OpenDoor, own_server: RedisServer) -> None:
    door = open_door(CacheGuard(own_server.url, policy=Policy(l1=False)))
    await door.set("k", 1)
    await door.invalidate("k")
    for _ in range(3):
        own_server.command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        assert await door.get("k") is None
    assert door.guard.stats().replayed == 0


async def test_a_guard_for_event_loops_alone_hears_of_invalidations(own_server: RedisServer) -> None:
    aclient = redis.asyncio.Redis.from_url(own_server.url)
    async with CacheGuard(aclient=aclient) as guard:
        await guard.aget("k")  # the first read begins to listen
        await guard.aset("k", "old")
        await until(lambda: guard.stats().bus_up)
        assert await guard.aget("k") == "old"
        with CacheGuard(own_server.url) as elsewhere:
            await asyncio.to_thread(elsewhere.invalidate, "k")
        await until(lambda: guard.stats().bus_messages > 0)
        assert await guard.aget("k") is None
        with pytest.raises(ConfigurationError, match="client="):
            guard.get("k")
    await aclient.aclose()


# Sentinel


@pytest.fixture
def sentinel_door(open_door: OpenDoor, sentinel_url: str) -> Door:
    return open_door(CacheGuard(sentinel_url))


@pytest.fixture
def elsewhere(sentinel_url: str) -> Iterator[CacheGuard]:
    """Another process."""
    with CacheGuard(sentinel_url) as guard:
        yield guard


async def test_the_master_is_found_and_everything_works(
    sentinel_door: Door, sentinels: Sentinels, elsewhere: CacheGuard
) -> None:
    values = await sentinel_door.get_or_set_many(ROWS, lambda keys: dict.fromkeys(keys, "old"))
    assert await asyncio.to_thread(elsewhere.get_many, ROWS) == values
    await until(lambda: elsewhere.stats().bus_up)
    assert await asyncio.to_thread(elsewhere.get_many, ROWS) == values
    assert len(sentinels.master.entries()) == len(ROWS)
    await sentinel_door.invalidate(*ROWS)
    await until(lambda: elsewhere.stats().bus_messages >= len(ROWS))
    assert await asyncio.to_thread(elsewhere.get_many, ROWS) == {}
    await sentinel_door.get_or_set("tagged", lambda: "old", tags=["t"])
    await sentinel_door.invalidate_tags("t")
    assert await sentinel_door.get("tagged") is None
    ids = sentinel_door.guard.bloom("ids", capacity=1000)
    await sentinel_door.ask(ids, "rebuild", range(10))
    assert not await sentinel_door.ask(ids, "absent", 5)
    assert await sentinel_door.ask(ids, "absent", 50)
    assert sentinel_door.guard.stats().redis_errors == 0


async def test_one_dead_sentinel_does_not_matter(open_door: OpenDoor, sentinels: Sentinels, sentinel_url: str) -> None:
    sentinels.sentinels[0].kill()
    door = open_door(CacheGuard(sentinel_url))
    await door.set("k", 1)
    assert await door.get("k") == 1
    assert len(sentinels.master.entries()) == 1
    assert door.guard.stats().redis_errors == 0


async def test_clients_lend_their_settings(open_door: OpenDoor, sentinels: Sentinels, sentinel_url: str) -> None:
    addresses = [("127.0.0.1", each.port) for each in sentinels.sentinels]
    known: Any = redis.sentinel.Sentinel(addresses)  # type: ignore[no-untyped-call]
    aknown: Any = redis.asyncio.sentinel.Sentinel(addresses)  # type: ignore[no-untyped-call]
    client, aclient = known.master_for(SERVICE), aknown.master_for(SERVICE)
    door = open_door(CacheGuard(client=client, aclient=aclient))
    await door.set("k", 1)
    assert await door.get("k") == 1
    assert len(sentinels.master.entries()) == 1
    with pytest.raises(ConfigurationError, match="master_for"):
        CacheGuard(client=known.slave_for(SERVICE))


@pytest.mark.chaos
async def test_reads_and_writes_go_on_after_a_failover(
    sentinel_door: Door, sentinels: Sentinels, elsewhere: CacheGuard
) -> None:
    await sentinel_door.get_or_set_many(ROWS, lambda keys: dict.fromkeys(keys, "old"))
    await asyncio.sleep(0.2)  # for the replicas
    old = sentinels.master
    # The replicas do not hear of it: what comes back has the value from before.
    for replica in sentinels.servers:
        if replica is not old:
            replica.freeze()
    await sentinel_door.invalidate("row:1")
    old.kill()
    for replica in sentinels.servers:
        if replica is not old:
            replica.thaw()
    assert await sentinel_door.get_or_set("row:1", lambda: "new") == "new"
    new = await asyncio.to_thread(sentinels.wait_for_another, old)
    await until(lambda: _works(new, elsewhere))
    assert await sentinel_door.get_or_set("row:2", lambda: "never") == "old"
    assert await sentinel_door.get_or_set("row:1", lambda: "newer") in {"new", "newer"}
    await until(lambda: elsewhere.get_or_set("row:1", lambda: "newer") != "old")
    await sentinel_door.set("row:3", "after")
    assert await asyncio.to_thread(elsewhere.get, "row:3") == "after"
    await until(lambda: sentinel_door.guard.stats().bus_up)
    assert sentinel_door.guard.stats().invalidations_queued == 0
    assert sentinel_door.guard.stats().replayed > 0


def _works(master: RedisServer, guard: CacheGuard) -> bool:
    guard.set("probe", 1)
    return any(key.endswith(":probe") for key in master.entries())


@pytest.mark.chaos
async def test_a_master_that_was_demoted_behind_our_back_is_left(sentinel_door: Door, sentinels: Sentinels) -> None:
    await sentinel_door.set("k", "old")
    old = sentinels.master
    sentinels.sentinels[0].command("SENTINEL", "FAILOVER", SERVICE)
    await asyncio.to_thread(sentinels.wait_for_another, old)

    def demoted() -> bool:
        return bool(old.command("ROLE")[0] == "slave")

    await until(demoted, 30)  # so long the sentinels wait before they do it
    await sentinel_door.invalidate("k")
    assert await sentinel_door.get("k") is None
    await sentinel_door.set("k", "new")
    assert sentinels.master.entries()
    assert sentinel_door.guard.stats().invalidations_queued == 0
