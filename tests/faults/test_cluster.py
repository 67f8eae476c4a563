"""Redis Cluster: keys live on several nodes, slots move, nodes die."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
import redis.asyncio
import redis.cluster

from cacheguard import CacheGuard
from cacheguard.errors import ConfigurationError
from tests.conftest import OpenDoor
from tests.support.clusters import RedisCluster
from tests.support.doors import Door
from tests.support.loader import Loader

ROWS = [f"row:{number}" for number in range(30)]


@pytest.fixture
def cluster_door(open_door: OpenDoor, cluster_url: str) -> Door:
    return open_door(CacheGuard(cluster_url))


@pytest.fixture
def elsewhere(cluster_url: str) -> Iterator[CacheGuard]:
    """Another process."""
    with CacheGuard(cluster_url) as guard:
        yield guard


async def until(holds: Any, seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not await asyncio.to_thread(holds):
        assert time.monotonic() < deadline, "it did not become true"
        await asyncio.sleep(0.02)


def key_of(door: Door, text: str) -> str:
    """The Redis key of an entry."""
    return f"cg:cacheguard:e:{text}"


async def test_values_are_spread_and_read_by_everybody(
    cluster_door: Door, redis_cluster: RedisCluster, elsewhere: CacheGuard
) -> None:
    loader = Loader()
    assert await cluster_door.get_or_set("row:1", lambda: loader(1)) == 1
    values = await cluster_door.get_or_set_many(ROWS, lambda keys: dict.fromkeys(keys, "many"))
    assert values == dict.fromkeys(ROWS, "many") | {"row:1": 1}
    assert await asyncio.to_thread(elsewhere.get_many, ROWS) == values
    assert await cluster_door.get_many(ROWS) == values
    assert all(node.entries() for node in redis_cluster.masters())
    stats = cluster_door.guard.stats()
    assert stats.redis_errors == 0
    assert stats.fills == len(ROWS)


async def test_an_invalidation_reaches_every_process_whatever_the_slot(
    cluster_door: Door, elsewhere: CacheGuard
) -> None:
    await cluster_door.set_many(dict.fromkeys(ROWS, "old"))
    assert len(await asyncio.to_thread(elsewhere.get_many, ROWS)) == len(ROWS)
    await until(lambda: elsewhere.stats().bus_up)
    assert len(await asyncio.to_thread(elsewhere.get_many, ROWS)) == len(ROWS)
    await cluster_door.invalidate(*ROWS)
    assert await cluster_door.get_many(ROWS) == {}
    await until(lambda: elsewhere.stats().bus_messages >= len(ROWS))
    assert await asyncio.to_thread(elsewhere.get_many, ROWS) == {}


async def test_a_tag_voids_entries_of_every_slot(cluster_door: Door, elsewhere: CacheGuard) -> None:
    for row in ROWS:
        await cluster_door.get_or_set(row, lambda: "old", tags=["all"])
    assert len(await asyncio.to_thread(elsewhere.get_many, ROWS)) == len(ROWS)
    await cluster_door.invalidate_tags("all", "other")
    assert await cluster_door.get_many(ROWS) == {}
    assert await cluster_door.get_or_set(ROWS[0], lambda: "new", tags=["all"]) == "new"
    await until(lambda: elsewhere.get_many(ROWS) == {ROWS[0]: "new"})


async def test_a_bloom_filter_works(cluster_door: Door, elsewhere: CacheGuard) -> None:
    mine, theirs = (guard.bloom("ids", capacity=1000) for guard in (cluster_door.guard, elsewhere))
    await cluster_door.ask(mine, "rebuild", range(100))
    assert not await asyncio.to_thread(theirs.absent, 5)
    assert await asyncio.to_thread(theirs.absent, "nobody")
    await cluster_door.ask(mine, "add", "somebody")
    assert not await asyncio.to_thread(theirs.absent, "somebody")
    assert await cluster_door.ask(mine, "absent", "nobody")


async def test_a_slot_that_moves_is_followed(
    cluster_door: Door, redis_cluster: RedisCluster, elsewhere: CacheGuard
) -> None:
    await cluster_door.get_or_set_many(ROWS, lambda keys: dict.fromkeys(keys, "old"))
    key = key_of(cluster_door, "row:7")
    source = redis_cluster.owner_of(key)
    target = next(node for node in redis_cluster.masters() if node is not source)
    redis_cluster.move(key, target)
    assert await cluster_door.get_many(ROWS) == dict.fromkeys(ROWS, "old")
    await cluster_door.invalidate("row:7")
    assert await asyncio.to_thread(elsewhere.get, "row:7") is None
    assert await cluster_door.get_or_set("row:7", lambda: "new") == "new"
    assert cluster_door.guard.stats().redis_errors == 0
    redis_cluster.move(key, source)
    assert await cluster_door.get("row:7") == "new"


async def test_a_slot_on_its_way_is_asked_for_where_it_goes(cluster_door: Door, redis_cluster: RedisCluster) -> None:
    guard = cluster_door.guard
    await cluster_door.set("row:8", "old")
    key = key_of(cluster_door, "row:8")
    source = redis_cluster.owner_of(key)
    target = next(node for node in redis_cluster.masters() if node is not source)
    redis_cluster.move(key, target, finish=False)
    with CacheGuard(redis_cluster.url) as fresh:
        assert await asyncio.to_thread(fresh.get, "row:8") == "old"
    await cluster_door.invalidate("row:8")
    assert await cluster_door.get_or_set("row:8", lambda: "new") == "new"
    assert guard.stats().redis_errors == 0
    assert guard.stats().invalidations_queued == 0
    redis_cluster.move(key, target)


async def test_clients_lend_their_settings(open_door: OpenDoor, redis_cluster: RedisCluster, cluster_url: str) -> None:
    port = redis_cluster.nodes[0].port
    client = redis.cluster.RedisCluster(host="127.0.0.1", port=port)
    aclient = redis.asyncio.RedisCluster(host="127.0.0.1", port=port)
    door = open_door(CacheGuard(client=client, aclient=aclient))
    await door.set_many(dict.fromkeys(ROWS, 1))
    assert await door.get_many(ROWS) == dict.fromkeys(ROWS, 1)
    await aclient.aclose()
    client.close()
    assert await door.get_or_set("more", lambda: 2) == 2


@pytest.fixture
async def loop_only(redis_cluster: RedisCluster, cluster_url: str) -> AsyncIterator[CacheGuard]:
    aclient = redis.asyncio.RedisCluster(host="127.0.0.1", port=redis_cluster.nodes[0].port)
    async with CacheGuard(aclient=aclient) as guard:
        yield guard
    await aclient.aclose()


async def test_a_guard_for_event_loops_alone_hears_of_invalidations(
    loop_only: CacheGuard, elsewhere: CacheGuard
) -> None:
    await loop_only.aget("k")  # the first read begins to listen
    await loop_only.aset("k", "old")
    await until(lambda: loop_only.stats().bus_up)
    assert await loop_only.aget("k") == "old"
    await asyncio.to_thread(elsewhere.invalidate, "k")
    await until(lambda: loop_only.stats().bus_messages > 0)
    assert await loop_only.aget("k") is None
    with pytest.raises(ConfigurationError, match="client="):
        loop_only.get("k")


@pytest.mark.chaos
async def test_a_dead_master_is_replaced_by_its_replica(
    cluster_door: Door, redis_cluster: RedisCluster, elsewhere: CacheGuard
) -> None:
    await cluster_door.set_many(dict.fromkeys(ROWS, "old"))
    await asyncio.sleep(0.2)  # for the replicas
    victim = redis_cluster.owner_of(key_of(cluster_door, "row:1"))
    await cluster_door.invalidate("row:1")
    victim.kill()
    loads = Loader()
    deadline = time.monotonic() + 30
    while redis_cluster.owner_of(key_of(cluster_door, "row:1")) is victim:
        assert time.monotonic() < deadline
        assert await cluster_door.get_or_set("row:1", lambda: loads(1)) != "old"
        await cluster_door.invalidate("row:1")
        await asyncio.sleep(0.05)
    await until(lambda: elsewhere.get_or_set("row:1", lambda: "new") == "new")
    await cluster_door.invalidate("row:1")
    assert await cluster_door.get_or_set("row:1", lambda: "newer") == "newer"
    assert cluster_door.guard.stats().invalidations_queued == 0
    assert cluster_door.guard.stats().replayed > 0
