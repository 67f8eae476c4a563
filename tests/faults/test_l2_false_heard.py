"""Who has only functions with ``l2=False`` hears what others invalidate, and keeps nothing while it cannot."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from cacheguard import CacheGuard
from tests.conftest import OpenDoor
from tests.faults.test_bus import until
from tests.support.doors import Door
from tests.support.faults import FaultProxy
from tests.support.redis_server import RedisServer


def nothing(_: object) -> None:
    """The body of a write."""


VERBS: dict[str, Callable[[Door, Any], Any]] = {
    "fn.invalidate": lambda door, fn: door.call(fn.invalidate),
    "fn.expire": lambda door, fn: door.call(fn.expire),
    "fn.put": lambda door, fn: door.call(fn.put, "new"),
    "fn.refresh": lambda door, fn: door.call(fn.refresh),
    "invalidate": lambda door, fn: door.invalidate(fn.key()),
    "invalidate with a lag": lambda door, fn: door.ask(door.guard, "invalidate", fn.key(), settle="1s"),
    "expire": lambda door, fn: door.ask(door.guard, "expire", fn.key()),
    "set": lambda door, fn: door.set(fn.key(), "new"),
    "remove": lambda door, fn: door.ask(door.guard, "remove", fn.key()),
    "apply": lambda door, fn: door.ask(door.guard, "apply", [(fn.key(), 7)]),
    "invalidate_tags": lambda door, _: door.invalidate_tags("t"),
    "clear": lambda door, _: door.ask(door.guard, "clear"),
    "writing": lambda door, fn: door.write(nothing, fn.key()),
}


class Rows:
    """A row, a process that reads it by a function with ``l2=False``, and another one that does the same."""

    def __init__(self, door: Door, reader: CacheGuard, **policy: Any) -> None:
        self.value = "old"
        self.door, self.reader = door, reader
        options: dict[str, Any] = {"tags": ["t"], "l2": False, "stale_if_error": None} | policy
        self.here = door.guard.cached("k", **options)(door.lift(lambda: self.value))
        self.there = reader.cached("k", **options)(lambda: self.value)

    async def read(self) -> tuple[str, str]:
        return await self.door.call(self.here), await asyncio.to_thread(self.there)

    async def kept(self) -> None:
        """Both have the old value, and hear."""
        await self.read()
        await asyncio.to_thread(until, lambda: self.door.guard.stats().bus_up and self.reader.stats().bus_up)
        assert await self.read() == ("old", "old")
        self.value = "new"


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("l2", [False, True])
async def test_each_verb_is_news_to_every_process(open_door: OpenDoor, redis_url: str, verb: str, *, l2: bool) -> None:
    with CacheGuard(redis_url) as reader:
        rows = Rows(open_door(CacheGuard(redis_url)), reader, l2=l2)
        await rows.kept()
        await VERBS[verb](rows.door, rows.here)
        await asyncio.to_thread(until, lambda: rows.there() == "new", 2.0)
        assert await rows.read() == ("new", "new")


async def test_who_met_no_redis_at_first_hears_as_soon_as_there_is_one(
    open_door: OpenDoor, own_server: RedisServer
) -> None:
    own_server.kill()
    with CacheGuard(own_server.url) as reader:
        rows = Rows(open_door(CacheGuard(own_server.url)), reader)
        assert await rows.read() == ("old", "old")
        own_server.start()
        await rows.kept()
        await rows.door.call(rows.here.invalidate)
        await asyncio.to_thread(until, lambda: rows.there() == "new", 2.0)


async def test_nothing_is_kept_while_the_bus_is_dead_but_redis_answers(
    open_door: OpenDoor, redis_url: str, proxy: FaultProxy
) -> None:
    with CacheGuard(proxy.url) as reader:
        rows = Rows(open_door(CacheGuard(redis_url)), reader)
        await rows.kept()
        proxy.deafen()
        await rows.door.call(rows.here.invalidate)
        await asyncio.to_thread(until, lambda: rows.there() == "new", 4.0)


async def test_who_may_not_subscribe_keeps_nothing(
    open_door: OpenDoor, redis_server: RedisServer, redis_url: str
) -> None:
    redis_server.command("ACL", "SETUSER", "deaf", "on", ">secret", "~*", "&*", "+@all", "-subscribe")
    try:
        with CacheGuard(redis_url.replace("redis://", "redis://deaf:secret@")) as reader:
            rows = Rows(open_door(CacheGuard(redis_url)), reader)
            assert await rows.read() == ("old", "old")

            def many(number: int) -> tuple[int, str]:
                return number, rows.value

            row = reader.cached("many:{number}", l2=False)(many)
            assert await asyncio.to_thread(row.many, [1, 2]) == [(1, "old"), (2, "old")]
            rows.value = "new"
            await rows.door.call(rows.here.invalidate)
            assert await rows.read() == ("new", "new")
            assert await asyncio.to_thread(row.many, [1, 2]) == [(1, "new"), (2, "new")]
    finally:
        redis_server.command("ACL", "DELUSER", "deaf")


@pytest.fixture
def own_server(redis_server: RedisServer, tmp_path: Any) -> Any:
    server = RedisServer(redis_server.binary, tmp_path).start()
    yield server
    server.stop()
