"""Callers that are cancelled at any moment, in any call: nobody gets another's reply, nothing is left behind."""

from __future__ import annotations

import asyncio
import gc
import random
import time
import warnings
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import pytest
import redis

from cacheguard import CacheGuard
from tests.support.faults import Fault, FaultProxy
from tests.support.layout import claims_of
from tests.support.redis_server import RedisServer

KEYS = 40
Call = Callable[[], Awaitable[bool]]


class Callers:
    """Calls of every kind, on a few keys; each says whether its answer was its own."""

    def __init__(self, guard: CacheGuard, draws: random.Random) -> None:
        self.guard, self.draws = guard, draws

        @guard.cached("row:{number}", ttl="40ms", l1=False, tags=["rows"])
        async def row(number: int) -> str:
            await asyncio.sleep(draws.random() * 0.004)
            return f"row:{number}"

        @guard.invalidates("row:{number}")
        async def change(number: int) -> str:
            await asyncio.sleep(draws.random() * 0.004)
            return f"row:{number}"

        self.row, self.change = row, change

    async def load(self, key: str) -> str:
        await asyncio.sleep(self.draws.random() * 0.004)
        return key

    def any(self) -> Call:
        number = self.draws.randrange(KEYS)
        return self.draws.choice([
            self.read, self.read, self.read_many, self.call, self.call_many, self.invalidate, self.invalidate_tag,
            self.write, self.write_decorated, self.set, self.peek,
        ])(number)  # fmt: skip

    def read(self, number: int) -> Call:
        async def run() -> bool:
            return bool(
                await self.guard.aget_or_set(f"k{number}", lambda: self.load(f"k{number}"), ttl=0.05) == f"k{number}"
            )

        return run

    def read_many(self, number: int) -> Call:
        names = [f"k{number}", f"k{(number + 1) % KEYS}"]

        async def load(keys: list[str]) -> dict[str, str]:
            await asyncio.sleep(self.draws.random() * 0.004)
            return {key: key for key in keys}

        async def run() -> bool:
            found = await self.guard.aget_or_set_many(names, load, ttl=0.05, l1=False)
            return found == {name: name for name in names}

        return run

    def call(self, number: int) -> Call:
        async def run() -> bool:
            return bool(await self.row(number) == f"row:{number}")

        return run

    def call_many(self, number: int) -> Call:
        async def run() -> bool:
            return await self.row.many([number, (number + 1) % KEYS]) == [f"row:{number}", f"row:{(number + 1) % KEYS}"]

        return run

    def invalidate(self, number: int) -> Call:
        async def run() -> bool:
            await self.guard.ainvalidate(f"k{number}", f"row:{number}")
            return True

        return run

    def invalidate_tag(self, _: int) -> Call:
        async def run() -> bool:
            await self.guard.ainvalidate_tags("rows")
            return True

        return run

    def write(self, number: int) -> Call:
        async def run() -> bool:
            async with self.guard.writing(f"k{number}"):
                await asyncio.sleep(self.draws.random() * 0.004)
            return True

        return run

    def write_decorated(self, number: int) -> Call:
        async def run() -> bool:
            return bool(await self.change(number) == f"row:{number}")

        return run

    def set(self, number: int) -> Call:
        async def run() -> bool:
            await self.guard.aset(f"k{number}", f"k{number}", ttl=0.05)
            return True

        return run

    def peek(self, number: int) -> Call:
        names = [f"k{number}", f"k{(number + 7) % KEYS}"]

        async def run() -> bool:
            found = await self.guard.aget_many(names)
            return all(value == name for name, value in found.items())

        return run


async def cancelled_by_its_task(call: Call, seconds: float) -> bool | None:
    task = asyncio.ensure_future(call())
    await asyncio.sleep(seconds)
    task.cancel()
    try:
        return await task
    except asyncio.CancelledError:
        return None


async def cancelled_by_a_timeout(call: Call, seconds: float) -> bool | None:
    try:
        async with asyncio.timeout(seconds):
            return await call()
    except TimeoutError:
        return None


async def cancelled_by_a_scope(call: Call, seconds: float) -> bool | None:
    with anyio.move_on_after(seconds):
        return await call()
    return None


WAYS = [cancelled_by_its_task, cancelled_by_a_timeout, cancelled_by_a_scope]


async def cancel_often(guard: CacheGuard, number: int, seed: int) -> Counter[bool | None]:
    """Make calls, 20 at a time, until so many were cancelled; how many had their own answer, another's, or none."""
    draws = random.Random(seed)
    callers, outcomes = Callers(guard, draws), Counter[bool | None]()

    async def one() -> None:
        while outcomes[None] < number:
            outcomes[await draws.choice(WAYS)(callers.any(), draws.random() * draws.choice([0.004, 0.03, 0.3]))] += 1

    await asyncio.gather(*(one() for _ in range(20)))
    return outcomes


def clients(server: RedisServer) -> int:
    return len(str(server.command("CLIENT", "LIST")).splitlines())


def left_over(server: RedisServer) -> list[str]:
    """Leases and announced writes that still stand."""
    with redis.Redis.from_url(server.url) as client:
        held: list[Any] = [(key, client.get(key)) for key in server.entries()]
    return [f"{key} {claim}" for key, raw in held if raw for claim in claims_of(raw) & {"w", "l"}]


def run(server: RedisServer, proxy: FaultProxy, number: int) -> None:
    complaints: list[Any] = []

    async def main() -> Counter[bool | None]:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
        async with CacheGuard(proxy.url, operation_timeout=5) as guard:
            assert await guard.aget_or_set("first", lambda: 1) == 1
            await asyncio.sleep(0.2)
            before = clients(server)
            proxy.inject(Fault.DELAY, seconds=0.002)
            outcomes = await cancel_often(guard, number, 13)
            proxy.heal()
            until = time.monotonic() + 6
            while (left := left_over(server)) and time.monotonic() < until:  # loads behind a cancelled caller go on
                await asyncio.sleep(0.05)
            assert left == []
            assert clients(server) <= before
            stats = guard.stats()
            assert (stats.redis_errors, stats.invalidations_queued, stats.breaker) == (0, 0, "closed")
        assert asyncio.all_tasks() == {asyncio.current_task()}
        return outcomes

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        outcomes = asyncio.run(main())
        gc.collect()
    figures = f"cancelled {outcomes[None]}, answered {outcomes[True]}, wrong {outcomes[False]}"
    print(f"{figures}; complaints {complaints[:3]}")  # noqa: T201
    assert outcomes[False] == 0
    assert outcomes[None] >= number
    assert outcomes[True] >= number / 10
    assert complaints == []


def test_whoever_is_cancelled_leaves_nothing_behind(redis_server: RedisServer, proxy: FaultProxy) -> None:
    run(redis_server, proxy, 600)


@pytest.mark.chaos
def test_ten_thousand_cancels_through_a_slow_wire(redis_server: RedisServer, proxy: FaultProxy) -> None:
    run(redis_server, proxy, 10_000)
