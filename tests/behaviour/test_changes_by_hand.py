"""`update` is one step and leaves nothing behind if it fails; `touch` is a verb like the others."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from cacheguard import MISSING, CacheGuard, Policy
from cacheguard.errors import CodecError, Unreachable
from tests.conftest import OpenDoor
from tests.support.doors import Door

WHERES = ["redis", "memory", "l2 off"]


@pytest.fixture(params=[(where, copies) for where in WHERES for copies in (False, True)], ids=str)
async def hand(request: pytest.FixtureRequest, open_door: OpenDoor, redis_url: str) -> Door:
    """Either door; values are in Redis, in a process without Redis, or in this process beside Redis."""
    where, copies = request.param
    policy = Policy(jitter=0, l2=where != "l2 off")
    door = open_door(CacheGuard("memory://" if where == "memory" else redis_url, policy=policy, l1_copy=copies))
    if where == "l2 off":  # what it keeps before it hears of changes is dropped when it begins to
        await door.get("k")
        async with asyncio.timeout(10):
            while not door.guard.stats().bus_up:
                await asyncio.sleep(0.005)
    return door


@dataclass
class Basket:
    items: list[dict[str, int]]


CHANGES: dict[str, tuple[Callable[[], Any], Callable[[Any], Any]]] = {
    "dict": (lambda: {"n": 0}, lambda value: value.update(n=value["n"] + 1)),
    "list": (lambda: [0], lambda value: value.append(len(value))),
    "nested": (lambda: {"a": [{"n": 0}]}, lambda value: value["a"][0].update(n=value["a"][0]["n"] + 1)),
    "set": (lambda: {0}, lambda value: value.add(len(value))),
    "dataclass": (lambda: Basket([{"n": 0}]), lambda value: value.items.append({"n": len(value.items)})),
}


@pytest.mark.parametrize("kind", CHANGES)
async def test_a_change_in_place_that_raises_leaves_nothing(hand: Door, kind: str) -> None:
    make, change = CHANGES[kind]

    def fails(value: Any) -> Any:
        change(value)
        raise RuntimeError("after the change")

    held = await hand.get_or_set("k", make, returns=Basket if kind == "dataclass" else None)
    with pytest.raises(RuntimeError, match="after the change"):
        await hand.ask(hand.guard, "update", "k", fails)
    assert await hand.get("k") == held == make()


@pytest.mark.parametrize("kind", CHANGES)
async def test_a_change_in_place_does_not_reach_those_who_hold_the_value(hand: Door, kind: str) -> None:
    make, change = CHANGES[kind]
    changed = make()
    change(changed)

    def in_place(value: Any) -> Any:
        change(value)
        return value

    held = await hand.get_or_set("k", make, returns=Basket if kind == "dataclass" else None)
    assert await hand.ask(hand.guard, "update", "k", in_place) == changed
    assert await hand.get("k") == changed
    assert held == make()


async def test_changes_in_place_at_the_same_time_are_steps(hand: Door) -> None:
    guard = hand.guard
    at_once = threading.Barrier(4)

    def step(value: dict[str, int]) -> dict[str, int]:
        value["n"] += 1
        time.sleep(0.0003)  # lets the others in
        return value

    def steps() -> None:
        at_once.wait()
        for _ in range(15):
            guard.update("k", step)

    await hand.set("k", {"n": 0})
    async with asyncio.TaskGroup() as group:
        for _ in range(4):
            group.create_task(asyncio.to_thread(steps))
    assert await hand.get("k") == {"n": 60}


async def test_a_change_that_must_be_awaited_is_refused(hand: Door) -> None:
    async def later(value: dict[str, int]) -> dict[str, int]:
        return value

    async def twin(value: dict[str, int]) -> dict[str, int]:
        value["n"] = -1
        return value

    await hand.set("k", {"n": 1})
    for change in (later, lambda value: [later(value)][0], lambda value: (value.update(n=-1), twin(value))[1]):
        with pytest.raises(TypeError, match="change must be a plain function"):
            await hand.ask(hand.guard, "update", "k", change)
    assert await hand.get("k") == {"n": 1}


@pytest.mark.parametrize("copies", [False, True])
def test_a_value_without_a_copy_is_not_changed(copies: bool) -> None:
    with CacheGuard("memory://") as guard:
        guard.set("k", [threading.Lock()])
        with pytest.raises(CodecError, match="cannot be copied"):
            guard.update("k", lambda value: [*value, copies])
        assert len(guard.get("k")) == 1


# touch


async def test_a_touch_gives_time_and_nothing_else(hand: Door) -> None:
    await hand.set("k", {"a": 1}, tags=["t"], ttl=1000)
    assert await hand.ask(hand.guard, "touch", "k", ttl=5000) is True
    found = await hand.inspect("k")
    assert found.ttl_left == pytest.approx(5000, abs=30)
    assert (found.state, found.tags) == ("fresh", ("t",))
    await hand.invalidate_tags("t")
    assert await hand.ask(hand.guard, "touch", "k", ttl=5000) is False
    assert await hand.get("k") is None


async def test_a_touch_does_nothing_while_caching_is_off(hand: Door) -> None:
    await hand.set("k", 1, ttl=1000)
    with hand.guard.disabled():
        assert await hand.ask(hand.guard, "touch", "k", ttl=5000) is False
    left = (await hand.inspect("k")).ttl_left
    assert left is not None
    assert left <= 1000


async def test_what_is_not_there_or_is_stale_is_not_touched(hand: Door) -> None:
    assert await hand.ask(hand.guard, "touch", "k", ttl=5000) is False
    await hand.set("k", 1)
    await hand.expire("k")
    assert await hand.ask(hand.guard, "touch", "k", ttl=5000) is False
    assert (await hand.inspect("k")).state == "stale"


async def test_an_absence_is_touched_by_its_own_time(hand: Door) -> None:
    assert await hand.get_or_set("k", lambda: None) is None
    assert await hand.ask(hand.guard, "touch", "k", ttl=5000, null_ttl=70) is True
    assert (await hand.inspect("k")).ttl_left == pytest.approx(70, abs=10)
    assert await hand.ask(hand.guard, "touch", "k", null_ttl=None) is False


@pytest.mark.parametrize("policy", ["queue", "raise"])
@pytest.mark.parametrize("ttl", [5000, lambda _: 5000])
async def test_a_touch_without_redis_says_so_as_the_other_verbs_do(open_door: OpenDoor, policy: Any, ttl: Any) -> None:
    door = open_door(CacheGuard("redis://127.0.0.1:1/0", on_unreachable=policy))
    if policy == "raise":
        with pytest.raises(Unreachable):
            await door.ask(door.guard, "touch", "k", ttl=ttl)
    else:
        assert await door.ask(door.guard, "touch", "k", ttl=ttl) is False


async def test_a_touch_needs_no_type_of_the_value(open_door: OpenDoor, redis_url: str) -> None:
    door, other = open_door(CacheGuard(redis_url)), open_door(CacheGuard(redis_url))
    await door.get_or_set("k", lambda: Basket([]), returns=Basket)
    assert await other.get("k", MISSING) is MISSING, "this process has nothing that reads it"
    assert await other.ask(other.guard, "touch", "k", ttl=5000) is True
    assert (await other.inspect("k")).ttl_left == pytest.approx(5000, rel=0.11)


async def test_a_cancelled_touch_is_done_nevertheless(redis_url: str) -> None:
    async with CacheGuard(redis_url, policy=Policy(jitter=0)) as guard:
        await guard.aset("k", 1, ttl=1000)
        touching = asyncio.ensure_future(guard.atouch("k", ttl=5000))
        await asyncio.sleep(0)
        touching.cancel()
        with pytest.raises(asyncio.CancelledError):
            await touching
        async with asyncio.timeout(10):
            while (left := (await guard.ainspect("k")).ttl_left) is None or left < 4000:
                await asyncio.sleep(0.005)


@pytest.mark.parametrize("ttl", [1000, 9000])
async def test_other_processes_read_the_new_time(open_door: OpenDoor, redis_url: str, ttl: int) -> None:
    door, other = open_door(CacheGuard(redis_url)), open_door(CacheGuard(redis_url))
    await door.set("k", 1, ttl=5000)
    assert await other.get("k") == 1
    assert await door.ask(door.guard, "touch", "k", ttl=ttl) is True
    async with asyncio.timeout(10):
        while (await other.inspect("k")).ttl_left != pytest.approx(ttl, rel=0.11):
            await other.get("k")
            await asyncio.sleep(0.005)


async def test_what_is_touched_is_as_old_as_it_was(hand: Door) -> None:
    await hand.get_or_set("k", lambda: 1, ttl=5000)
    await hand.ask(hand.guard, "touch", "k", ttl=5000)
    await hand.get("k")
    age = (await hand.inspect("k")).age
    assert age is not None
    assert 0 <= age < 60
