"""Closing keeps its promise of two seconds while every server hangs, whatever is pending."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

import pytest

from cacheguard import CacheGuard
from tests.behaviour.test_lifecycle import threads
from tests.conftest import OpenDoor
from tests.faults.test_bus import until
from tests.support.clusters import RedisCluster
from tests.support.redis_server import RedisServer
from tests.support.rings import RingOfServers
from tests.support.sentinels import Sentinels

PROMISE = 2.0  # seconds
PENDING = pytest.mark.parametrize("pending", [False, True], ids=["nothing pending", "pending"])
AFTER = pytest.mark.parametrize("after", [0.0, 0.5, pytest.param(4.0, marks=pytest.mark.slow)])


async def is_closed_in_time(
    open_door: OpenDoor, url: str, servers: Sequence[RedisServer], after: float, *, pending: bool
) -> None:
    guard = CacheGuard(url)
    door = open_door(guard)
    await asyncio.to_thread(guard.get_or_set, "row", lambda: 1)  # threads and an event loop
    await door.get_many([f"row:{number}" for number in range(20)])
    for server in servers:
        server.freeze()
    try:
        if pending:
            for number in range(20):
                await door.invalidate(f"row:{number}")
        await asyncio.sleep(after)
        began = time.monotonic()
        await door.close()
        took = time.monotonic() - began
    finally:
        for server in servers:
            server.thaw()
    assert took <= PROMISE
    await asyncio.to_thread(until, lambda: not threads() & {"cacheguard-bus", "cacheguard-probe"})


@PENDING
@AFTER
async def test_a_guard_is_closed_in_time_while_its_server_hangs(
    open_door: OpenDoor, redis_server: RedisServer, redis_url: str, after: float, *, pending: bool
) -> None:
    await is_closed_in_time(open_door, redis_url, [redis_server], after, pending=pending)


@PENDING
@AFTER
async def test_a_guard_on_a_ring_is_closed_in_time_while_all_nodes_hang(
    open_door: OpenDoor, ring: RingOfServers, after: float, *, pending: bool
) -> None:
    await is_closed_in_time(open_door, ring.url(), ring.servers, after, pending=pending)


@PENDING
@AFTER
async def test_a_guard_on_a_cluster_is_closed_in_time_while_all_nodes_hang(
    open_door: OpenDoor, redis_cluster: RedisCluster, cluster_url: str, after: float, *, pending: bool
) -> None:
    await is_closed_in_time(open_door, cluster_url, redis_cluster.nodes, after, pending=pending)


@PENDING
async def test_a_guard_is_closed_in_time_while_its_sentinels_hang_as_well(
    open_door: OpenDoor, sentinels: Sentinels, sentinel_url: str, *, pending: bool
) -> None:
    nodes = [*sentinels.servers, *sentinels.sentinels]
    await is_closed_in_time(open_door, sentinel_url, nodes, 1.0, pending=pending)
