"""An invalidation that Redis has not acknowledged is not forgotten, whatever happens."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from cacheguard import CacheGuard, Policy
from cacheguard.errors import Unreachable
from tests.conftest import OpenDoor
from tests.faults.test_bus import tier, until
from tests.support.doors import Door
from tests.support.faults import Fault, FaultProxy
from tests.support.fleet import Process
from tests.support.redis_server import RedisServer


@pytest.fixture
def other(redis_url: str) -> Iterator[CacheGuard]:
    with CacheGuard(redis_url) as guard:
        yield guard


async def test_what_is_owed_is_delivered_even_if_nobody_asks_for_anything(
    redis_server: RedisServer, door: Door, other: CacheGuard
) -> None:
    await door.set("row", "old")
    await door.set("tagged", "old", tags=["red"])
    redis_server.freeze()
    await door.invalidate("row")
    await door.invalidate_tags("red")
    await door.write(lambda _: None, "other")
    assert door.guard.stats().invalidations_queued >= 3
    redis_server.thaw()
    until(lambda: door.guard.stats().invalidations_queued == 0)
    assert other.get_many(["row", "tagged"]) == {}


async def test_who_wants_to_know_is_told_and_the_write_went_on(
    redis_server: RedisServer, redis_url: str, other: CacheGuard
) -> None:
    other.set("row", "old")
    written: list[int] = []
    with CacheGuard(redis_url, on_unreachable="raise") as guard:
        guard.get("row")
        redis_server.freeze()
        with pytest.raises(Unreachable, match="queued"), guard.writing("row"):
            written.append(1)
        with pytest.raises(Unreachable, match="queued"):
            guard.invalidate_tags("red")
        redis_server.thaw()
        until(lambda: guard.stats().breaker == "closed")
        assert written == [1]
        assert guard.get("row") is None
        assert other.inspect("row").state == "missing"


@pytest.mark.parametrize("number", [2_000, pytest.param(10_000, marks=pytest.mark.slow)])
def test_thousands_are_delivered_before_anything_is_read(
    redis_server: RedisServer, redis_url: str, other: CacheGuard, number: int
) -> None:
    keys = [f"row:{each}" for each in range(number)]
    other.set_many(dict.fromkeys(keys, "old"))
    with CacheGuard(redis_url) as guard:
        guard.get("warm")
        redis_server.freeze()
        for at in range(0, len(keys), 2_500):
            guard.invalidate(*keys[at : at + 2_500])
        assert guard.stats().invalidations_queued == number
        redis_server.thaw()
        until(lambda: guard.get_many(keys[:1]) == {} and guard.stats().l2_up)
        assert guard.stats().invalidations_queued == 0
        assert redis_server.entries() == []


LEAVING = """
import sys
from cacheguard import CacheGuard

guard = CacheGuard(sys.argv[1], outbox=sys.argv[2])
print(guard.get("row"), flush=True)
sys.stdin.readline()
guard.invalidate("row")
with guard.writing("written", tags=["red"]):
    pass
print("owed", flush=True)
sys.stdin.readline()
"""


def test_a_file_keeps_what_a_killed_process_owed(
    redis_server: RedisServer, redis_url: str, other: CacheGuard, tmp_path: Path
) -> None:
    file = tmp_path / "outbox.db"
    other.set_many({"row": "old", "written": "old"})
    other.set("tagged", "old", tags=["red"])
    process = Process(LEAVING, redis_url, file)
    assert process.hear() == "old"
    redis_server.freeze()
    process.tell()
    assert process.hear() == "owed"
    os.kill(process.pid, signal.SIGKILL)
    process.kill()
    redis_server.thaw()
    assert other.get_many(["row", "written", "tagged"]) == {"row": "old", "written": "old", "tagged": "old"}
    with CacheGuard(redis_url, outbox=file) as heir:
        assert heir.stats().invalidations_queued >= 3
        assert heir.get("row") is None
        assert heir.stats().invalidations_queued == 0
        until(lambda: other.get_many(["row", "written", "tagged"]) == {})
    with CacheGuard(redis_url, outbox=file) as late:
        assert late.stats().invalidations_queued == 0


def test_a_file_with_a_line_that_cannot_be_read_costs_the_whole_namespace(redis_url: str, tmp_path: Path) -> None:
    import sqlite3

    file = tmp_path / "outbox.db"
    with CacheGuard(redis_url, outbox=file) as guard:
        guard.set("row", "old")
    with sqlite3.connect(file) as rows:
        rows.execute("INSERT INTO owed (root, item) VALUES ('cg:cacheguard:m', '{broken')")
    rows.close()
    with CacheGuard(redis_url, outbox=file) as guard:
        assert guard.get("row") is None


def test_a_file_that_is_no_database_is_said_at_once(tmp_path: Path, redis_url: str) -> None:
    file = tmp_path / "outbox.db"
    file.write_bytes(b"nothing of the kind" * 100)
    with pytest.raises(ValueError, match="cannot be used as an SQLite file"):
        CacheGuard(redis_url, outbox=file)


def refuse_writes(server: RedisServer) -> None:
    server.command("CONFIG", "SET", "min-replicas-to-write", 1)


def take_writes(server: RedisServer) -> None:
    server.command("CONFIG", "SET", "min-replicas-to-write", 0)


async def test_where_redis_takes_no_writes_all_processes_go_past_what_was_invalidated(
    redis_server: RedisServer, door: Door, other: CacheGuard
) -> None:
    await door.set("row", "old")
    await door.set("tagged", "old", tags=["red"])
    await door.set("innocent", "same")
    assert other.get_many(["row", "tagged", "innocent"]) == {"row": "old", "tagged": "old", "innocent": "same"}
    refuse_writes(redis_server)
    await door.invalidate("row")
    await door.invalidate_tags("red")
    until(lambda: tier(other) != "l1" and tier(other, "tagged") != "l1", 1.0)
    assert (other.get("row"), other.get("tagged")) == (None, None)
    assert other.get_many(["row", "innocent"]) == {"innocent": "same"}
    assert other.get_many(["row", "tagged", "innocent"]) == {"innocent": "same"}
    loads: list[int] = []

    def load() -> str:
        loads.append(1)
        return "new"

    assert other.get_or_set("row", load) == "new"
    assert other.get_or_set("tagged", load, tags=["red"]) == "new"
    assert other.get("innocent") == "same"
    assert await door.get_or_set("row", lambda: "new") == "new"
    take_writes(redis_server)
    until(lambda: door.guard.stats().invalidations_queued == 0, 5.0)
    until(lambda: other.get("row") != "old")
    assert other.get_or_set("row", lambda: "newer") in {"new", "newer"}
    await asyncio.sleep(0.1)
    assert other.get_or_set("row", lambda: "newest") == other.get_or_set("row", lambda: "newest")  # clean again


async def test_what_was_removed_is_removed_even_if_redis_goes_away_before_it_was_counted(
    proxy: FaultProxy, open_door: OpenDoor, other: CacheGuard
) -> None:
    other.set("row", "old", tags=["red"])
    door = open_door(CacheGuard(proxy.url, policy=Policy(l1=False)))
    await door.get("warm")
    proxy.inject(Fault.LOSE_REPLY, times=2, only=b"m:red")  # its tags are asked for in a second round trip
    assert await door.ask(door.guard, "remove", "row") == 0
    assert door.guard.stats().redis_errors == 1
    assert door.guard.stats().invalidations_queued == 0
    assert other.inspect("row").state == "missing"


@pytest.mark.parametrize("fault", [Fault.LOSE_REPLY, Fault.HALF_REPLY, Fault.GARBAGE])
def test_a_write_whose_reply_is_lost_is_said_again(proxy: FaultProxy, other: CacheGuard, fault: Fault) -> None:
    with CacheGuard(proxy.url) as guard:
        for number in range(10):
            other.set("row", number)
            guard.get("row")
            proxy.inject(fault, times=1, only=b"EVALSHA")
            with guard.writing("row"):
                pass
            assert guard.get("row") is None
            assert other.get_or_set("row", lambda: "new") == "new"
            other.invalidate("row")
            assert other.inspect("row").state == "missing"
