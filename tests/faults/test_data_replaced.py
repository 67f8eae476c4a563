"""Data that are replaced under a running server, or that it comes back with: nothing from before an invalidation."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from cacheguard import CacheGuard, Policy
from cacheguard.delivery import journal
from cacheguard.protocol.names import namespace_scope
from tests.conftest import OpenDoor
from tests.faults.test_sentinel import until
from tests.support.clusters import RedisCluster
from tests.support.doors import Door
from tests.support.fleet import Process
from tests.support.redis_server import RedisServer
from tests.support.rings import RingOfServers

NO_L1 = Policy(l1=False, ttl="30m")


@pytest.fixture
def own_server(redis_server: RedisServer, tmp_path: Path) -> Iterator[RedisServer]:
    """A server that may keep something on disk, and reload it."""
    old = str(redis_server.command("INFO", "server")["redis_version"]).startswith("6")
    may_debug = {} if old else {"enable_debug_command": "local"}
    server = RedisServer(redis_server.binary, tmp_path / "one", **may_debug).start()
    yield server
    server.stop()


async def repeated(door: Door, before: int = 0) -> None:
    """What was invalidated is repeated, and has arrived."""
    guard = door.guard
    await until(lambda: guard.stats().replayed > before and not guard.stats().invalidations_queued, 3.0)


Replace = Callable[[RedisServer, Path], Callable[[], object]]


def by_a_copy(server: RedisServer, directory: Path) -> Callable[[], object]:
    copy = RedisServer(server.binary, directory / "copy", repl_diskless_sync_delay=0).start()
    server.command("CONFIG", "SET", "repl-diskless-sync-delay", 0)
    _follow(copy, server)

    def back() -> None:
        _follow(server, copy)
        copy.stop()

    return back


def _follow(server: RedisServer, source: RedisServer) -> None:
    server.command("REPLICAOF", "127.0.0.1", source.port)
    deadline = time.monotonic() + 10
    while server.command("ROLE")[3] != "connected":
        assert time.monotonic() < deadline
        time.sleep(0.02)
    server.command("REPLICAOF", "NO", "ONE")


def raw(server: RedisServer) -> Any:
    """A client that returns bytes, as DUMP needs."""
    make: Any = redis.Redis
    return make(port=server.port)


def save(server: RedisServer) -> None:
    """Write a snapshot; one that the server writes for a replica goes first."""
    until = time.monotonic() + 10
    while server.command("INFO", "persistence")["rdb_bgsave_in_progress"]:
        assert time.monotonic() < until, "the snapshot for a replica is not written"
        time.sleep(0.02)
    server.command("SAVE")


def by_its_snapshot(server: RedisServer, _: Path) -> Callable[[], object]:
    save(server)
    return lambda: server.command("DEBUG", "RELOAD", "NOSAVE")


def by_a_backup(server: RedisServer, _: Path) -> Callable[[], object]:
    with raw(server) as client:
        dumps: Any = {key: client.dump(key) for key in client.keys("*")}

    def back() -> None:
        with raw(server) as client:
            client.flushall()
            for key, dump in dumps.items():
                client.restore(key, 1_800_000, dump)

    return back


def by_another_database(server: RedisServer, _: Path) -> Callable[[], object]:
    with raw(server) as client:
        for key in client.keys("*"):
            client.copy(key, key, destination_db=1)
    return lambda: server.command("SWAPDB", 0, 1)


WAYS: dict[str, Replace] = {
    "copy": by_a_copy,
    "snapshot": by_its_snapshot,
    "backup": by_a_backup,
    "database": by_another_database,
}


async def old_data_come_back(door: Door, server: RedisServer, way: str, directory: Path) -> None:
    """What was invalidated since comes back in a server that goes on running."""
    assert await door.get_or_set("k", lambda: "old") == "old"
    assert await door.get_or_set("by tag", lambda: "old", tags=["t"]) == "old"
    back = await asyncio.to_thread(WAYS[way], server, directory)
    await door.invalidate("k")
    await door.invalidate_tags("t")
    await asyncio.sleep(1.1)  # a heartbeat has seen the server as it was
    await asyncio.to_thread(back)


@pytest.mark.parametrize("way", WAYS)
async def test_data_that_are_replaced_in_place_hold_nothing_from_before_an_invalidation(
    open_door: OpenDoor, own_server: RedisServer, tmp_path: Path, way: str
) -> None:
    door = open_door(CacheGuard(own_server.url, policy=NO_L1))
    await old_data_come_back(door, own_server, way, tmp_path)
    await repeated(door)
    assert await door.get_many(["k", "by tag"]) == {}
    with CacheGuard(own_server.url) as elsewhere:
        assert await asyncio.to_thread(elsewhere.get_many, ["k", "by tag"]) == {}


async def test_data_that_may_be_older_than_the_journal_cost_the_whole_namespace(
    open_door: OpenDoor, own_server: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal, "JOURNALED_FOR", 0.5)
    monkeypatch.setattr(journal, "LONGEST_JOURNAL", 0.5)
    door = open_door(CacheGuard(own_server.url, policy=NO_L1))
    await old_data_come_back(door, own_server, "copy", tmp_path)
    await door.invalidate("something else")
    await repeated(door)
    with CacheGuard(own_server.url) as elsewhere:
        assert await asyncio.to_thread(elsewhere.get_many, ["k", "by tag"]) == {}


async def test_a_snapshot_older_than_a_failover_takes_holds_nothing_from_before_an_invalidation(
    open_door: OpenDoor, own_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal, "JOURNALED_FOR", 0.5)
    own_server.command("CONFIG", "SET", "save", "3600 1")
    door = open_door(CacheGuard(own_server.url, policy=NO_L1))
    for key in ("k", "later"):
        assert await door.get_or_set(key, lambda: "old") == "old"
    save(own_server)
    await asyncio.sleep(1.1)
    await door.invalidate("k")
    await asyncio.sleep(1.1)
    await door.invalidate("later")
    own_server.kill()
    own_server.start()
    await repeated(door)
    with CacheGuard(own_server.url) as elsewhere:
        assert await asyncio.to_thread(elsewhere.get_many, ["k", "later"]) == {}


async def test_a_process_that_only_invalidates_notices_it_too(
    open_door: OpenDoor, own_server: RedisServer, redis_server: RedisServer
) -> None:
    with CacheGuard(own_server.url, policy=NO_L1) as elsewhere:
        await asyncio.to_thread(elsewhere.set, "k", "old")
        save(own_server)
        door = open_door(CacheGuard(own_server.url))
        await door.invalidate("k")
        own_server.kill()
        own_server.start()
        await repeated(door)
        assert await asyncio.to_thread(elsewhere.get, "k") is None


async def test_one_node_of_a_ring_whose_data_are_replaced_is_noticed(
    open_door: OpenDoor, ring: RingOfServers, tmp_path: Path
) -> None:
    door = open_door(CacheGuard(ring.url(), policy=NO_L1))
    assert await door.get_or_set("k", lambda: "old") == "old"
    server = ring.home_of("k")
    back = await asyncio.to_thread(by_a_copy, server, tmp_path)
    await door.invalidate("k")
    await asyncio.sleep(1.1)
    await asyncio.to_thread(back)
    await repeated(door)
    assert await door.get("k") is None


async def test_one_master_of_a_cluster_whose_data_are_replaced_is_noticed(
    open_door: OpenDoor, redis_cluster: RedisCluster, cluster_url: str
) -> None:
    door = open_door(CacheGuard(cluster_url, policy=NO_L1))
    assert await door.get_or_set("k", lambda: "old") == "old"
    server = redis_cluster.owner_of(namespace_scope("cacheguard").key("k"))
    back = by_a_backup(server, Path())
    await door.invalidate("k")
    await asyncio.sleep(1.1)
    await asyncio.to_thread(back)
    await repeated(door)
    assert await door.get("k") is None


async def test_what_others_do_to_a_running_server_repeats_nothing(
    open_door: OpenDoor, own_server: RedisServer, tmp_path: Path
) -> None:
    door = open_door(CacheGuard(own_server.url))
    assert await door.get_or_set("k", lambda: "value") == "value"
    await door.invalidate("another")
    await asyncio.sleep(1.1)
    await asyncio.to_thread(by_a_copy, own_server, tmp_path)
    save(own_server)
    own_server.command("CONFIG", "RESETSTAT")
    with raw(own_server) as client:
        client.restore("theirs", 0, client.dump(namespace_scope("cacheguard").key("k")))
    await asyncio.sleep(1.1)
    assert door.guard.stats().replayed == 0
    assert door.guard.stats().bus_gaps == 0


HEIR = """
import sys, time
from cacheguard import CacheGuard

guard = CacheGuard(sys.argv[1], outbox=sys.argv[2])
print(guard.get("k"), flush=True)
sys.stdin.readline()
guard.invalidate("k")
if sys.argv[3] == "close":
    guard.close()
else:
    time.sleep(2.1)
print("done", flush=True)
sys.stdin.readline()
"""


@pytest.mark.parametrize("end", ["close", "kill"])
async def test_with_a_file_the_journal_outlives_its_process(
    open_door: OpenDoor, own_server: RedisServer, tmp_path: Path, end: str
) -> None:
    file = tmp_path / "outbox.db"
    with CacheGuard(own_server.url, policy=NO_L1) as elsewhere:
        await asyncio.to_thread(elsewhere.set, "k", "old")
        save(own_server)
        process = Process(HEIR, own_server.url, file, end)
        assert await asyncio.to_thread(process.hear) == "old"
        process.tell()
        assert await asyncio.to_thread(process.hear) == "done"
        process.kill()
        own_server.kill()
        own_server.start()
        door = open_door(CacheGuard(own_server.url, policy=NO_L1, outbox=file))
        assert await door.get("k") is None
        assert door.guard.stats().replayed == 1
        assert await asyncio.to_thread(elsewhere.get, "k") is None


async def test_with_a_file_nothing_is_repeated_to_the_server_that_has_acknowledged_it(
    open_door: OpenDoor, own_server: RedisServer, tmp_path: Path
) -> None:
    for _ in range(2):
        door = open_door(CacheGuard(own_server.url, policy=NO_L1, outbox=tmp_path / "outbox.db"))
        assert await door.get("k") is None
        await door.invalidate("k")
        await door.close()
        assert door.guard.stats().replayed == 0
