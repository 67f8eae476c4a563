"""``read_from="replica"``: what a replica may answer, and what it may not."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from cacheguard import CacheGuard, Policy
from cacheguard.errors import ConfigurationError
from tests.conftest import OpenDoor
from tests.support.clusters import RedisCluster
from tests.support.doors import Door
from tests.support.redis_server import RedisServer
from tests.support.sentinels import Sentinels

HARDLY_KEPT = Policy(l1_ttl=0.001)  # so that what is read here has not been kept here


async def until(holds: Callable[[], Any], seconds: float = 15) -> None:
    deadline = time.monotonic() + seconds
    while not await asyncio.to_thread(holds):
        assert time.monotonic() < deadline, "it did not become true"
        await asyncio.sleep(0.02)


class Near:
    """A guard that reads from replicas, and another process that writes."""

    def __init__(self, door: Door, elsewhere: CacheGuard) -> None:
        self.door, self.elsewhere = door, elsewhere

    @property
    def hits(self) -> int:
        return self.door.guard.stats().replica_hits

    async def read(self, key: str) -> Any:
        """A read past L1."""
        await asyncio.sleep(0.005)
        return await self.door.get(key)

    async def ready(self, key: str = "probe") -> None:
        """Wait until replicas are read from."""
        await asyncio.to_thread(self.elsewhere.set, key, "there")
        deadline = time.monotonic() + 15
        before = self.hits
        while self.hits == before:
            assert time.monotonic() < deadline, "no replica is read from"
            assert await self.read(key) == "there"
            await asyncio.sleep(0.05)

    async def comes_from_a_replica(self, key: str, value: Any, within: float = 5) -> None:
        deadline, before = time.monotonic() + within, self.hits
        while self.hits == before:
            assert time.monotonic() < deadline, "no replica answers"
            assert await self.read(key) == value
            await asyncio.sleep(0.05)


@pytest.fixture
def elsewhere(sentinel_url: str) -> Iterator[CacheGuard]:
    with CacheGuard(sentinel_url) as guard:
        yield guard


@pytest.fixture
async def near(open_door: OpenDoor, sentinel_url: str, elsewhere: CacheGuard) -> Near:
    made = Near(open_door(CacheGuard(sentinel_url, read_from="replica", policy=HARDLY_KEPT)), elsewhere)
    await made.ready()
    return made


def replicas_of(group: Sentinels) -> list[RedisServer]:
    return [server for server in group.servers if server is not group.master]


async def test_what_is_fresh_is_read_from_a_replica(near: Near, sentinels: Sentinels) -> None:
    await asyncio.to_thread(near.elsewhere.set, "k", "v")
    await near.comes_from_a_replica("k", "v")
    said = [server.command("INFO", "commandstats") for server in replicas_of(sentinels)]
    assert any("cmdstat_get:" in each for each in said)
    assert near.door.guard.stats().redis_errors == 0


async def test_an_invalidation_is_honoured_although_the_replicas_have_not_heard_of_it(
    near: Near, sentinels: Sentinels
) -> None:
    await asyncio.to_thread(near.elsewhere.set, "k", "old")
    await asyncio.to_thread(near.elsewhere.get_or_set, "tagged", lambda: "old", tags=["t"])
    await near.comes_from_a_replica("k", "old")
    replicas = sentinels.cut_off()
    messages = near.door.guard.stats().bus_messages
    await asyncio.to_thread(near.elsewhere.invalidate, "k")
    await until(lambda: near.door.guard.stats().bus_messages > messages)
    assert all("cg:cacheguard:e:k" in server.entries() for server in replicas)
    for _ in range(20):
        assert await near.read("k") is None
    assert await near.door.get_or_set("k", lambda: "new") == "new"
    assert await near.read("k") == "new"


@pytest.mark.chaos
async def test_nothing_older_than_the_horizon_is_believed_whether_anything_was_heard_of_it_or_not(
    near: Near, sentinels: Sentinels
) -> None:
    sentinels.cut_off()
    await asyncio.sleep(3.2)
    hits = near.hits
    assert await near.read("probe") == "there"
    assert near.hits == hits


async def test_what_this_process_has_written_it_reads(near: Near, sentinels: Sentinels) -> None:
    await near.door.set("k", -1)
    await near.comes_from_a_replica("k", -1)
    sentinels.cut_off()
    for number in range(20):
        await near.door.set("k", number)
        assert await near.read("k") == number
        await near.door.invalidate("k")
        assert await near.read("k") is None


async def test_a_policy_without_l1_reads_from_the_master(near: Near, sentinels: Sentinels) -> None:
    await asyncio.to_thread(near.elsewhere.set, "k", "v")
    hits = near.hits
    for _ in range(20):
        assert await near.door.get_or_set("k", lambda: "never", l1=False) == "v"
    assert near.hits == hits


async def test_a_key_behind_a_fence_or_in_quarantine_is_read_from_the_master(near: Near) -> None:
    await asyncio.to_thread(near.elsewhere.invalidate, "k", settle="30s")
    await asyncio.to_thread(near.elsewhere.get_or_set, "k", lambda: "v")
    await asyncio.sleep(1.5)
    hits = near.hits
    for _ in range(10):
        assert await near.read("k") == "v"
    assert near.hits == hits
    await near.comes_from_a_replica("probe", "there")


@pytest.mark.chaos
async def test_frozen_replicas_cost_one_timeout_and_nothing_else(near: Near, sentinels: Sentinels) -> None:
    await asyncio.to_thread(near.elsewhere.set, "k", "v")
    await near.comes_from_a_replica("k", "v")
    for server in replicas_of(sentinels):
        server.freeze()
    slow = 0
    for _ in range(40):
        began = time.monotonic()
        assert await near.read("k") == "v"
        slow += time.monotonic() - began > 0.15
    assert slow <= 4  # each replica, and as many once more if the bus thread was in the middle of it
    for server in replicas_of(sentinels):
        server.thaw()
    await near.comes_from_a_replica("k", "v", 15)
    assert near.door.guard.stats().invalidations_queued == 0


# In a cluster


async def test_a_cluster_is_read_from_its_replicas(
    open_door: OpenDoor, cluster_url: str, redis_cluster: RedisCluster
) -> None:
    with CacheGuard(cluster_url) as elsewhere:
        near = Near(open_door(CacheGuard(cluster_url, read_from="replica", policy=HARDLY_KEPT)), elsewhere)
        await near.ready()
        rows = {f"row:{number}": number for number in range(12)}
        await asyncio.to_thread(elsewhere.set_many, rows)
        for row, number in rows.items():
            await near.comes_from_a_replica(row, number)
        hits = near.hits
        await asyncio.sleep(1.2)
        assert await near.door.get_many(rows) == rows
        assert near.hits >= hits + len(rows) - 1
        for node in redis_cluster.nodes:
            if node not in redis_cluster.masters():
                node.freeze()
        await asyncio.to_thread(elsewhere.invalidate, *rows)
        await until(lambda: near.door.guard.stats().bus_messages >= len(rows))
        assert await near.door.get_many(rows) == {}
        assert near.door.guard.stats().invalidations_queued == 0


@pytest.mark.parametrize("url", ["memory://", "redis://127.0.0.1:1/0", "unix:///nowhere"])
def test_where_there_are_no_replicas_to_be_found_it_is_said(url: str) -> None:
    with pytest.raises(ConfigurationError, match="read_from='replica' needs replicas"):
        CacheGuard(url, read_from="replica")


def test_what_is_neither_is_said() -> None:
    with pytest.raises(ConfigurationError, match="read_from must be 'master' or 'replica', got 'slave'"):
        CacheGuard("memory://", read_from="slave")  # type: ignore[arg-type]


def test_a_guard_for_the_master_alone_writes_no_beats(sentinels: Sentinels, sentinel_url: str) -> None:
    with CacheGuard(sentinel_url, policy=Policy(l1=False)) as guard:
        guard.set("k", 1)
        time.sleep(1.2)
        assert not [key for key in sentinels.master.command("KEYS", "*") if ":b:" in key]
