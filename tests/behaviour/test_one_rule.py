"""All verbs by hand mean the same by `disabled()`, ``on_unreachable``, ``l2=False`` and cancellation."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import pytest

from cacheguard import MISSING, CacheGuard, Policy
from cacheguard.errors import Unreachable
from tests.conftest import OpenDoor
from tests.support.doors import Cached, Door
from tests.support.faults import Fault, FaultProxy

NOBODY = "redis://127.0.0.1:1/0"


class Process:
    """A guard of its own, and a function whose values it keeps out of Redis."""

    def __init__(self, door: Door, database: dict[str, str], **policy: Any) -> None:
        self.door = door

        @door.cached("row", tags=["t"], l2=False, stale_if_error=None, **policy)
        def row() -> str:
            return database["row"]

        self.row = row

    async def hears(self, value: str) -> None:
        """Wait until the function says *value*."""
        with anyio.fail_after(5):
            while await self.row() != value:
                await anyio.sleep(0.005)


Change = Callable[[Door, Cached], Awaitable[Any]]

CHANGES: dict[str, Change] = {
    "fn.invalidate": lambda _, row: row.invalidate(),
    "fn.expire": lambda _, row: row.expire(),
    "fn.put": lambda _, row: row.put("new"),
    "invalidate": lambda door, _: door.invalidate("row"),
    "expire": lambda door, _: door.expire("row"),
    "remove": lambda door, _: door.ask(door.guard, "remove", "row"),
    "invalidate_tags": lambda door, _: door.invalidate_tags("t"),
    "clear": lambda door, _: door.clear(),
    "apply": lambda door, _: door.ask(door.guard, "apply", [("row", 2)]),
    "set": lambda door, _: door.set("row", "new", l2=False),
    "set in Redis": lambda door, _: door.set("row", "new"),
}


@pytest.mark.parametrize("name", CHANGES)
async def test_news_of_a_function_without_l2_reaches_every_process(
    open_door: OpenDoor, redis_url: str, name: str
) -> None:
    database = {"row": "old"}
    processes = [Process(open_door(CacheGuard(redis_url)), database) for _ in range(3)]
    writer, listener, _ = processes
    await writer.door.get("other")
    await listener.door.get("other")  # the third one knows nothing but its function, and must hear all the same
    assert [await each.row() for each in processes] == ["old"] * 3
    database["row"] = "new"
    await CHANGES[name](writer.door, writer.row)
    assert await writer.row() == "new"
    for each in processes:
        await each.hears("new")


async def test_what_a_namespace_without_redis_changes_is_news(open_door: OpenDoor, redis_url: str) -> None:
    one, other = (open_door(CacheGuard(redis_url, policy=Policy(l2=False))) for _ in range(2))
    for each in (one, other):
        await each.get("listens")
        assert await each.ask(each.guard, "add", "k", 1) is True
    with anyio.fail_after(5):  # the news of what the other one has added is here by then
        while await one.get("k") is not None:
            await anyio.sleep(0.005)
    heard = one.guard.stats().bus_messages
    assert await other.ask(other.guard, "update", "k", lambda value: value + 1) == 2
    assert await other.get("k") == 2
    with anyio.fail_after(5):  # what is added here before the news of the update comes is ended by it
        while one.guard.stats().bus_messages == heard:
            await anyio.sleep(0.005)
    assert await one.ask(one.guard, "add", "k", 5) is True
    assert await one.get("k") == 5
    with anyio.fail_after(5):
        while await other.get("k") is not None:
            await anyio.sleep(0.005)
    assert await one.ask(one.guard, "touch", "k", ttl="1h") is True
    assert await one.ask(one.guard, "remove", "k") == 1
    assert await one.get("k") is None


async def test_expiring_leaves_the_old_value_for_when_a_load_fails_without_l2_too(
    open_door: OpenDoor, redis_url: str
) -> None:
    door = open_door(CacheGuard(redis_url))
    answers = ["old", RuntimeError("the database is away")]

    @door.cached("row", l2=False)
    def row() -> str:
        answer = answers.pop(0)
        if isinstance(answer, RuntimeError):
            raise answer
        return str(answer)

    assert await row() == "old"
    await row.expire()
    assert await row() == "old"
    assert not answers


async def test_in_memory_a_value_that_was_put_stays_where_it_was_put(open_door: OpenDoor) -> None:
    database = {"row": "old"}
    process = Process(open_door(CacheGuard("memory://")), database)
    await process.row()
    await process.row.put("new")
    assert await process.row() == "new"
    assert await process.door.ask(process.door.guard, "remove", "row") == 1
    assert await process.row() == "old"


async def test_what_a_process_has_missed_does_not_outlive_the_gap_without_l2(
    open_door: OpenDoor, proxy: FaultProxy, redis_url: str
) -> None:
    database = {"row": "old"}
    deaf, writer = (Process(open_door(CacheGuard(url)), database) for url in (proxy.url, redis_url))
    assert await deaf.row() == "old"
    with anyio.fail_after(5):
        while not deaf.door.guard.stats().bus_up:
            await anyio.sleep(0.01)
    proxy.inject(Fault.REFUSE)
    database["row"] = "new"
    await writer.row.invalidate()
    proxy.heal()
    await deaf.hears("new")


# Redis is away

AWAY: dict[str, tuple[Change, Any]] = {
    "set": (lambda door, _: door.set("k", 1), None),
    "set_many": (lambda door, _: door.set_many({"k": 1, "l": 2}), None),
    "add": (lambda door, _: door.ask(door.guard, "add", "k", 1), False),
    "update": (lambda door, _: door.ask(door.guard, "update", "k", lambda value: value), MISSING),
    "touch": (lambda door, _: door.touch("k", ttl="1h"), False),
    "remove": (lambda door, _: door.ask(door.guard, "remove", "k"), 0),
    "invalidate": (lambda door, _: door.invalidate("k"), None),
    "expire": (lambda door, _: door.expire("k"), None),
    "invalidate_tags": (lambda door, _: door.invalidate_tags("t"), None),
    "clear": (lambda door, _: door.clear(), None),
    "apply": (lambda door, _: door.ask(door.guard, "apply", [("k", 1)]), 1),
    "fn.put": (lambda _, row: row.put("new"), None),
    "fn.invalidate": (lambda _, row: row.invalidate(), None),
    "fn.expire": (lambda _, row: row.expire(), None),
}


@pytest.mark.parametrize("l2", [True, False])
@pytest.mark.parametrize("name", AWAY)
async def test_who_wants_to_know_hears_that_redis_is_away(open_door: OpenDoor, name: str, *, l2: bool) -> None:
    door = open_door(CacheGuard(NOBODY, on_unreachable="raise"))
    row = door.cached("row", l2=l2)(lambda: "old")
    with pytest.raises(Unreachable):
        await AWAY[name][0](door, row)


@pytest.mark.parametrize("name", AWAY)
async def test_who_does_not_gets_an_answer(open_door: OpenDoor, name: str) -> None:
    door = open_door(CacheGuard(NOBODY))
    change, answer = AWAY[name]
    assert await change(door, door.cached("row")(lambda: "old")) == answer


async def test_all_keys_are_queued_even_if_the_first_thousand_were_not_acknowledged(open_door: OpenDoor) -> None:
    door = open_door(CacheGuard(NOBODY, on_unreachable="raise"))
    with pytest.raises(Unreachable):
        await door.ask(door.guard, "remove", *map(str, range(2500)))
    assert door.guard.stats().invalidations_queued == 2500


# Caching is off


async def test_while_caching_is_off_nothing_is_stored_and_nothing_older_stays(
    open_door: OpenDoor, redis_url: str
) -> None:
    door = open_door(CacheGuard(redis_url))
    row = door.cached("row", l2=False)(lambda: "new")
    for key in ("set", "added", "updated", "touched"):
        await door.set(key, "old", ttl="1m")
    await row.put("old")
    with door.guard.disabled():
        await door.set("set", "new")
        assert await door.ask(door.guard, "add", "added", "new") is True
        assert await door.ask(door.guard, "update", "updated", lambda _: "new") is MISSING
        assert await door.touch("touched", ttl="1h") is False
        await row.put("off")
    assert await door.get("set") is None
    assert await door.get("added") is None
    assert await door.get("updated") == "old"
    assert (await door.inspect("touched")).ttl_left <= 60
    assert await row() == "new"


@pytest.mark.parametrize("name", ["fn.invalidate", "fn.expire", "invalidate", "expire", "remove", "clear"])
async def test_while_caching_is_off_invalidations_go_on(open_door: OpenDoor, redis_url: str, name: str) -> None:
    database = {"row": "old"}
    processes = [Process(open_door(CacheGuard(redis_url)), database) for _ in range(2)]
    assert [await each.row() for each in processes] == ["old"] * 2
    database["row"] = "new"
    with processes[0].door.guard.disabled():
        await CHANGES[name](processes[0].door, processes[0].row)
    for each in processes:
        await each.hears("new")


# The caller is cancelled


async def test_a_touch_goes_on_to_its_end_if_its_caller_is_cancelled(proxy: FaultProxy) -> None:
    async with CacheGuard(proxy.url, policy=Policy(l1=False, jitter=None), operation_timeout="2s") as guard:
        await guard.aset("k", 1, ttl="1m")
        proxy.inject(Fault.DELAY, seconds=0.1, only=b"MGET")
        task = asyncio.create_task(guard.atouch("k", ttl="1h"))
        await asyncio.sleep(0.05)  # it has asked what there is, and has changed nothing yet
        task.cancel()
        began = time.monotonic()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert proxy.struck
        assert time.monotonic() - began < 1
        left = (await guard.ainspect("k")).ttl_left
        assert left is not None
        assert left > 60


async def test_a_value_without_l2_is_news_even_if_its_caller_is_cancelled(proxy: FaultProxy, redis_url: str) -> None:
    async with CacheGuard(proxy.url) as guard, CacheGuard(redis_url) as other:
        await other.aset("k", "old")
        assert await guard.aget("k") == "old"
        proxy.inject(Fault.DELAY, seconds=0.1, only=b"drop ")
        task = asyncio.create_task(guard.aset("k", "new", l2=False))
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await other.aget("k") is None
