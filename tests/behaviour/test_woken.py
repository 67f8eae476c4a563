"""Who waits for a load in another process is told when its value is there, and need not find out by asking."""

from __future__ import annotations

import threading
from typing import Any

import anyio
import pytest

from cacheguard import CacheGuard
from cacheguard.engine import rebuilding
from tests.conftest import OpenDoor


async def test_a_waiter_is_woken_by_the_fill(
    open_door: OpenDoor, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rebuilding, "poll_delay", lambda *_: 60.0)
    one, other = open_door(CacheGuard(redis_url)), open_door(CacheGuard(redis_url))
    with anyio.fail_after(10):
        while not (one.guard.stats().bus_up and other.guard.stats().bus_up):
            await one.get("k")
            await other.get("k")
            await anyio.sleep(0.01)
    go, answers = threading.Event(), list[Any]()

    def load() -> str:
        go.wait(10)
        return "loaded once"

    async def read(door: Any) -> None:
        answers.append(await door.get_or_set("k", load))

    with anyio.fail_after(30):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(read, one)
            while not one.guard.stats().loads:
                await anyio.sleep(0.01)
            tasks.start_soon(read, other)
            while not other.guard.stats().waits:
                await anyio.sleep(0.01)
            await anyio.sleep(0.1)  # between the answer to its question and its sleep it hears nothing
            go.set()
    assert answers == ["loaded once", "loaded once"]
    assert other.guard.stats().loads == 0
    assert not other.guard._hub.shared._sleepers  # noqa: SLF001 - what is left of the wait
