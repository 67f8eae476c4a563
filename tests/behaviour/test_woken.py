"""Who waits for a load in another process is told when it has ended, and need not find out by asking.

If nobody tells it, it finds out: it asks from time to time.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import anyio
import pytest
import redis

from cacheguard import CacheGuard, Policy
from cacheguard.engine import rebuilding
from tests.conftest import OpenDoor

NEVER = 60.0  # seconds until a waiter asks on its own account


@contextmanager
def no_polls() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rebuilding, "poll_delay", lambda *_, **__: NEVER)
        yield


class Wait:
    """One process loads "k" and takes its time, another one waits for it."""

    def __init__(self, one: Any, other: Any) -> None:
        self.one, self.other = one, other
        self.go, self.answers = threading.Event(), list[Any]()
        self.fails = False

    def load(self) -> str:
        self.go.wait(10)
        if self.fails:
            raise LookupError("no such row")
        return "loaded"

    async def read(self, door: Any) -> None:
        try:
            self.answers.append(await door.get_or_set("k", self.load))
        except LookupError as error:
            self.answers.append(str(error))


@asynccontextmanager
async def waiting(one: Any, other: Any, *, heard: bool = True) -> Any:
    """*other* waits for the load of *one*; at the end, both must get an answer."""
    with anyio.fail_after(10):
        while heard and not (one.guard.stats().bus_up and other.guard.stats().bus_up):
            await one.get("k")
            await other.get("k")
            await anyio.sleep(0.01)
    wait = Wait(one, other)
    with anyio.fail_after(30):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(wait.read, one)
            while not one.guard.stats().loads:
                await anyio.sleep(0.001)
            tasks.start_soon(wait.read, other)
            while not other.guard.stats().waits:
                await anyio.sleep(0.001)
            yield wait
            wait.go.set()
    assert not other.guard._hub.shared._sleepers  # noqa: SLF001 - what is left of the wait


async def test_a_waiter_is_woken_by_the_fill(open_door: OpenDoor, redis_url: str) -> None:
    one, other = open_door(CacheGuard(redis_url)), open_door(CacheGuard(redis_url))
    with no_polls():
        async with waiting(one, other) as wait:
            pass
    assert wait.answers == ["loaded", "loaded"]
    assert other.guard.stats().loads == 0


async def test_a_waiter_is_woken_by_a_load_that_fails(open_door: OpenDoor, redis_url: str) -> None:
    one, other = open_door(CacheGuard(redis_url)), open_door(CacheGuard(redis_url))
    with no_polls():
        async with waiting(one, other) as wait:
            wait.fails = True
    assert wait.answers == ["no such row", "no such row"]
    assert other.guard.stats().loads == 0


async def test_a_waiter_is_woken_by_what_ends_the_lease(open_door: OpenDoor, redis_url: str) -> None:
    one, other = open_door(CacheGuard(redis_url)), open_door(CacheGuard(redis_url))
    with no_polls(), CacheGuard(redis_url) as third:
        async with waiting(one, other) as wait:
            third.set("k", "set by hand")
            while not wait.answers:
                await anyio.sleep(0.001)
    assert wait.answers == ["set by hand", "loaded"]


async def test_a_waiter_of_the_same_process_is_woken_without_a_server(open_door: OpenDoor) -> None:
    door = open_door(CacheGuard("memory://"))
    go, answers = threading.Event(), list[Any]()

    def load() -> str:
        go.wait(10)
        return "loaded"

    with no_polls(), anyio.fail_after(20):
        thread = threading.Thread(target=lambda: answers.append(door.guard.get_or_set("k", load)))
        thread.start()
        while not door.guard.stats().loads:
            await anyio.sleep(0.001)
        threading.Timer(0.05, go.set).start()
        answers.append(await door.guard.aget_or_set("k", load))
        thread.join(10)
    assert answers == ["loaded", "loaded"]
    assert door.guard.stats().loads == 1


def lost(guard: CacheGuard, _url: str) -> CacheGuard:
    """The message never arrives."""
    shared: Any = guard._hub.shared  # noqa: SLF001 - where it would come in
    shared.wake = lambda _key: None
    return guard


def deaf(guard: CacheGuard, url: str) -> CacheGuard:
    """Redis does not let it subscribe."""
    guard.close()
    client: Any = redis.Redis.from_url(url)
    client.execute_command("ACL", "SETUSER", "deaf", "on", "nopass", "~*", "&*", "+@all", "-subscribe")
    client.close()
    return CacheGuard(url.replace("redis://", "redis://deaf:any@"))


def without_l1(guard: CacheGuard, url: str) -> CacheGuard:
    """It keeps nothing in the process, and hears nothing."""
    guard.close()
    return lost(CacheGuard(url, policy=Policy(l1=False)), url)


@pytest.mark.parametrize("without_bus", [lost, deaf, without_l1])
async def test_a_waiter_that_is_not_told_finds_out(
    open_door: OpenDoor, redis_url: str, without_bus: Callable[[CacheGuard, str], CacheGuard]
) -> None:
    one, other = open_door(CacheGuard(redis_url)), open_door(without_bus(CacheGuard(redis_url), redis_url))
    async with waiting(one, other, heard=False) as wait:
        pass
    assert wait.answers == ["loaded", "loaded"]
    assert other.guard.stats().loads == 0
    client: Any = redis.Redis.from_url(redis_url)
    client.execute_command("ACL", "DELUSER", "deaf")
    client.close()


async def test_a_waiter_whose_leader_has_died_takes_over(open_door: OpenDoor, redis_url: str) -> None:
    one, other = open_door(CacheGuard(redis_url)), open_door(CacheGuard(redis_url))
    client = redis.Redis.from_url(redis_url)
    async with waiting(one, other) as wait:
        for key in client.scan_iter("*k"):
            client.delete(key)  # as when its lease has run out: nobody says a word
        while not other.guard.stats().loads:
            await anyio.sleep(0.001)
    client.close()
    assert wait.answers == ["loaded", "loaded"]


async def test_a_load_that_nobody_waits_for_is_not_spoken_of(open_door: OpenDoor, redis_url: str) -> None:
    one, other = open_door(CacheGuard(redis_url)), open_door(CacheGuard(redis_url))
    client: Any = redis.Redis.from_url(redis_url)
    bus = client.pubsub()
    bus.psubscribe("*")

    def said() -> list[str]:
        client.publish("test", "over")
        texts = list[str]()
        while not texts or texts[-1] != "over":
            message: Any = bus.get_message(timeout=10)
            texts += [message["data"].decode()] if message["type"] == "pmessage" else []
        return [text.rsplit(":", 1)[-1] for text in texts if text.startswith("2 ")]

    def fail() -> None:
        raise LookupError("no such row")

    assert await one.get_or_set("a", lambda: 1) == 1
    assert await other.get_or_set("a", lambda: 2) == 1
    with pytest.raises(LookupError):
        await one.get_or_set("b", fail)
    assert said() == []
    async with waiting(one, other):
        pass
    assert [text.endswith("k") for text in said()] == [True]
    bus.close()
    client.close()
