"""A server that is killed, frozen, full, refusing or locked: readers go on, and nothing stale is left behind."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from typing import Any

import pytest

from cacheguard import CacheGuard, Policy
from tests.conftest import OpenDoor
from tests.support.doors import Cached, Door, well_again
from tests.support.loader import Loader
from tests.support.redis_server import RedisServer


def of(door: Door, loader: Loader, **policy: Any) -> Cached:
    @door.cached("row:{row_id}", **policy)
    def row(row_id: int) -> Any:
        return loader(row_id)

    return row


@pytest.fixture
def elsewhere(redis_url: str) -> Iterator[CacheGuard]:
    """Another process' eyes."""
    with CacheGuard(redis_url, policy=Policy(l1=False)) as guard:
        yield guard


async def test_readers_go_on_while_redis_is_down_and_use_it_when_it_is_back(
    door: Door, redis_server: RedisServer, elsewhere: CacheGuard
) -> None:
    loader = Loader()
    row = of(door, loader)
    assert await row(1) == 1
    redis_server.kill()
    while door.guard.stats().bus_up:  # what is loaded at this very moment is not kept
        await asyncio.sleep(0.001)
    assert await row(1) == 1
    assert await row(2) == 2
    assert await door.get("row:3") is None
    assert await door.get_many(["row:1", "row:3"]) == {"row:1": 1}
    assert await row.many([1, 2, 4]) == [1, 2, 3]
    assert (await door.inspect("row:9")).state == "missing"
    assert not door.guard.stats().l2_up
    redis_server.start()
    await well_again(door.guard)
    assert await row(5) == 4
    assert door.guard.stats().l2_up
    assert elsewhere.get("row:5") == 4


async def test_a_server_that_was_down_from_the_start_is_no_error(
    open_door: OpenDoor, redis_server: RedisServer, redis_url: str
) -> None:
    redis_server.kill()
    door = open_door(CacheGuard(redis_url))
    assert await of(door, Loader())(1) == 1
    redis_server.start()
    assert await of(door, Loader())(2) == 1


async def test_a_frozen_server_costs_one_timeout_each_and_no_answer(
    door: Door, redis_server: RedisServer, elsewhere: CacheGuard
) -> None:
    loader = Loader()
    row = of(door, loader)
    assert await row(1) == 1
    redis_server.freeze()
    begin = time.monotonic()
    assert await asyncio.gather(*(row(2) for _ in range(20))) == [2] * 20
    assert time.monotonic() - begin < 1
    await row.invalidate(1)
    redis_server.thaw()
    await well_again(door.guard)
    assert await row(1) == 3
    assert await asyncio.to_thread(elsewhere.get, "row:1") == 3


async def test_a_server_frozen_in_the_middle_of_a_load_costs_no_answer(door: Door, redis_server: RedisServer) -> None:
    loader = Loader()
    loader.stand_still()
    row = of(door, loader)
    asked = asyncio.ensure_future(row(1))
    await asyncio.to_thread(loader.started.wait, 10)
    redis_server.freeze()
    loader.go_on()
    assert await asked == 1
    redis_server.thaw()
    assert loader.runs == 1


async def test_a_restart_without_data_is_a_miss(door: Door, redis_server: RedisServer) -> None:
    loader = Loader()
    row = of(door, loader, l1=False)
    assert await row(1) == 1
    redis_server.restart()
    assert await row(1) == 2
    assert await row(1) == 2
    assert door.guard.stats().redis_errors == 0


async def test_a_restart_in_the_middle_of_a_load_refuses_its_fill(door: Door, redis_server: RedisServer) -> None:
    loader = Loader()
    loader.stand_still()
    row = of(door, loader)
    asked = asyncio.ensure_future(row(1))
    await asyncio.to_thread(loader.started.wait, 10)
    redis_server.restart()
    loader.go_on()
    assert await asked == 1
    assert door.guard.stats().fills_refused == 1
    assert await row(1) == 2


async def test_forgotten_scripts_are_not_noticed(door: Door, redis_server: RedisServer) -> None:
    loader = Loader()
    row = of(door, loader, l1=False)
    for number in range(1, 4):
        redis_server.command("SCRIPT", "FLUSH")
        assert await row(number) == number
        redis_server.command("SCRIPT", "FLUSH")
        await row.invalidate(number)
        redis_server.command("SCRIPT", "FLUSH")
        await door.set_many({"a": 1, "b": 2})
        redis_server.command("SCRIPT", "FLUSH")
        assert await door.touch("a")
        redis_server.command("SCRIPT", "FLUSH")
        await door.expire("a", "b")
    assert door.guard.stats().redis_errors == 0
    assert door.guard.stats().fills == 3


async def test_a_full_server_still_answers_and_still_invalidates(
    door: Door, redis_server: RedisServer, elsewhere: CacheGuard
) -> None:
    loader = Loader()
    row = of(door, loader)
    assert await row(1) == 1
    redis_server.command("CONFIG", "SET", "maxmemory", "1")
    assert elsewhere.get("row:1") == 1
    assert await row(2) == 2
    assert await row(2) == 2
    await row.invalidate(1)
    assert door.guard.stats().invalidations_queued == 0
    assert elsewhere.get("row:1") is None
    await door.set("row:2", 7)
    assert await door.get_or_set_many(["x", "y"], lambda keys: dict.fromkeys(keys, 1)) == {"x": 1, "y": 1}
    redis_server.command("CONFIG", "SET", "maxmemory", "0")
    assert await row(1) == 3
    assert elsewhere.get("row:1") == 3


async def test_a_server_that_fills_up_during_a_load_keeps_nobody_waiting(
    door: Door, redis_server: RedisServer, elsewhere: CacheGuard
) -> None:
    def load(*_: Any) -> str:
        redis_server.command("CONFIG", "SET", "maxmemory", "1")
        return "row"

    assert await door.get_or_set("k", load) == "row"
    begin = time.monotonic()
    assert await asyncio.to_thread(elsewhere.get_or_set, "k", lambda: "theirs") == "theirs"
    redis_server.command("CONFIG", "SET", "maxmemory", "0")
    assert await door.get_or_set_many(["a", "b"], lambda keys: dict.fromkeys(keys, load())) == {"a": "row", "b": "row"}
    assert await asyncio.to_thread(elsewhere.get_or_set, "a", lambda: "theirs") == "theirs"
    assert time.monotonic() - begin < 2


async def test_a_server_that_refuses_writes_is_told_later(
    door: Door, redis_server: RedisServer, elsewhere: CacheGuard
) -> None:
    loader = Loader()
    row = of(door, loader)
    assert await row(1) == 1
    redis_server.command("CONFIG", "SET", "min-replicas-to-write", "1")
    await row.invalidate(1)
    assert door.guard.stats().invalidations_queued == 1
    assert await row(1) == 2
    assert await row(2) == 3
    redis_server.command("CONFIG", "SET", "min-replicas-to-write", "0")
    assert await row(3) == 4
    assert door.guard.stats().invalidations_queued == 0
    assert elsewhere.get("row:1") is None


async def test_a_replica_is_told_later(door: Door, redis_server: RedisServer) -> None:
    loader = Loader()
    row = of(door, loader, l1=False)
    assert await row(1) == 1
    redis_server.command("CONFIG", "SET", "replica-serve-stale-data", "yes")
    redis_server.command("REPLICAOF", "127.0.0.1", "1")
    await row.invalidate(1)
    assert door.guard.stats().invalidations_queued == 1
    assert await row(1) == 2
    redis_server.command("REPLICAOF", "NO", "ONE")
    assert await row(1) == 3
    assert door.guard.stats().invalidations_queued == 0


async def test_a_wrong_password_costs_no_answer_and_is_not_shown(
    open_door: OpenDoor, redis_server: RedisServer, redis_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    redis_server.command("CONFIG", "SET", "requirepass", "right")
    door = open_door(CacheGuard(redis_url.replace("redis://", "redis://:wr0ngpass@")))
    assert await of(door, Loader())(1) == 1
    await door.invalidate("row:1")
    assert not door.guard.stats().l2_up
    assert "wr0ngpass" not in caplog.text
    assert "wr0ngpass" not in repr(door.guard)


async def test_a_right_password_works(open_door: OpenDoor, redis_server: RedisServer, redis_url: str) -> None:
    redis_server.command("CONFIG", "SET", "requirepass", "right")
    door = open_door(CacheGuard(redis_url.replace("redis://", "redis://:right@")))
    assert await of(door, Loader())(1) == 1
    assert door.guard.stats().fills == 1


async def test_killed_connections_are_not_noticed(door: Door, redis_server: RedisServer) -> None:
    loader = Loader()
    row = of(door, loader, l1=False)
    assert await row(1) == 1
    for _ in range(3):
        redis_server.command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        assert await row(1) == 1
    assert loader.runs == 1
    assert door.guard.stats().redis_errors == 0


async def test_one_line_is_logged_for_each_change_of_state(
    door: Door, redis_server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    row = of(door, Loader())
    assert await row(0) == 1
    redis_server.kill()
    for number in range(1, 6):
        await row(number)
    redis_server.start()
    await well_again(door.guard)
    for number in range(6, 9):
        await row(number)
    assert [record.levelname for record in caplog.records if record.name == "cacheguard"] == ["WARNING", "WARNING"]


async def test_without_redis_loads_are_bounded(open_door: OpenDoor, redis_server: RedisServer, redis_url: str) -> None:
    loader = Loader(seconds=0.02)
    row = of(open_door(CacheGuard(redis_url, max_loads=4, load_wait="10s")), loader)
    redis_server.kill()
    await asyncio.gather(*(row(number) for number in range(40)))
    assert loader.runs == 40
    assert loader.peak <= 4
