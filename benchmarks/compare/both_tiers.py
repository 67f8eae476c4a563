"""Reads per second over both tiers, when some ids are far more popular than others."""

from __future__ import annotations

import asyncio
import pickle
import random
from collections.abc import Callable
from contextlib import AsyncExitStack, ExitStack
from itertools import cycle
from typing import Any

from benchmarks.compare.figures import Measured
from benchmarks.compare.peers.setting import TEXT, TTL, reason
from benchmarks.compare.racing import Contestant, Run, arace, awaits, calls, race
from cacheguard import CacheGuard, Policy

IDS, L1_SIZE, A_ROUND, SLICES, ROUNDS = 10_000, 1_000, 2_000, 10, 20


def ids() -> list[int]:
    """Popularity 1/rank, the same draw for everyone."""
    weights = [1 / rank for rank in range(1, IDS + 1)]
    return random.Random(7).choices(range(IDS), weights, k=A_ROUND * SLICES)


def slices(each: list[int]) -> list[list[int]]:
    return [each[at : at + A_ROUND] for at in range(0, len(each), A_ROUND)]


def turning(fn: Callable[[Any], Any]) -> Run:
    """Each round reads other ids, so that no process learns the sequence by heart."""
    runs = cycle([calls(fn, each) for each in slices(ids())])

    def run() -> Any:
        return next(runs)()

    return run


def aturning(fn: Callable[[Any], Any]) -> Any:
    """The same, awaited."""
    runs = cycle([awaits(fn, each) for each in slices(ids())])

    def run() -> Any:
        return next(runs)()

    return run


def _fill_plain(client: Any) -> None:
    with client.pipeline(transaction=False) as pipe:
        for number in range(IDS):
            pipe.set(f"plain:{number}", pickle.dumps(TEXT), ex=TTL)
        pipe.execute()


def _redis_py(stack: ExitStack, url: str) -> Contestant:
    import redis

    client: Any = redis.Redis.from_url(url)
    stack.callback(client.close)
    _fill_plain(client)
    return Contestant(
        "redis", "GET + pickle.loads, no tier in the process",
        turning(lambda number: pickle.loads(client.get(f"plain:{number}"))),
    )  # fmt: skip


def _redis_py_tracking(stack: ExitStack, url: str) -> Contestant:
    import redis
    from redis.cache import CacheConfig

    client: Any = redis.Redis.from_url(url, protocol=3, cache_config=CacheConfig(max_size=L1_SIZE))
    stack.callback(client.close)
    client.get("plain:0")  # it raises where the server is older than 7.4
    return Contestant(
        "redis", "GET with cache_config + pickle.loads",
        turning(lambda number: pickle.loads(client.get(f"plain:{number}"))),
    )  # fmt: skip


def _ours(stack: ExitStack, url: str) -> Contestant:
    policy = Policy(ttl="1h", l1_ttl="1h")
    guard = stack.enter_context(CacheGuard(url, policy=policy, l1_size=L1_SIZE, operation_timeout=5))

    def load(number: int) -> str:
        return TEXT

    cached = guard.cached("row:{number}")(load)
    for at in range(0, IDS, 1_000):
        cached.many(range(at, at + 1_000))
    return Contestant("cacheguard", "@guard.cached", turning(cached))


async def _aredis_py(stack: AsyncExitStack, url: str) -> Contestant:
    import redis
    import redis.asyncio

    with redis.Redis.from_url(url) as filler:
        _fill_plain(filler)
    client: Any = redis.asyncio.Redis.from_url(url)
    stack.push_async_callback(client.aclose)

    async def read(number: int) -> Any:
        return pickle.loads(await client.get(f"plain:{number}"))

    return Contestant("redis", "GET + pickle.loads, no tier in the process", aturning(read))


async def _acashews(stack: AsyncExitStack, url: str) -> Contestant:
    from cashews import Cache
    from cashews.backends.memory import Memory

    cache: Any = Cache()
    cache.setup(url, client_side=True, local_cache=Memory(size=L1_SIZE))
    await cache.init()
    stack.push_async_callback(cache.close)
    for number in range(IDS):
        await cache.set(f"row:{number}", TEXT, expire=TTL)
    return Contestant("cashews", "cache.get, client_side=True", aturning(lambda number: cache.get(f"row:{number}")))


async def _aours(stack: AsyncExitStack, url: str) -> Contestant:
    policy = Policy(ttl="1h", l1_ttl="1h")
    guard = await stack.enter_async_context(CacheGuard(url, policy=policy, l1_size=L1_SIZE, operation_timeout=5))

    async def load(number: int) -> str:
        return TEXT

    cached = guard.cached("row:{number}")(load)
    for at in range(0, IDS, 1_000):
        await cached.many(range(at, at + 1_000))
    return Contestant("cacheguard", "@guard.cached", aturning(cached))


BLOCKING = {"redis-py": _redis_py, "redis-py, client-side": _redis_py_tracking, "cacheguard": _ours}
AWAITING = {"redis-py": _aredis_py, "cashews": _acashews, "cacheguard": _aours}


def run(row: str, url: str, share: float) -> Measured:
    """Measure *row*; *share* of its rounds are run."""
    rounds = max(3, round(ROUNDS * share))
    return asyncio.run(awaiting(row, url, rounds)) if row.endswith("async") else blocking(row, url, rounds)


def blocking(row: str, url: str, rounds: int) -> Measured:
    """One thread."""
    contestants: dict[str, Contestant] = {}
    absent = {}
    with ExitStack() as stack:
        for name, opener in BLOCKING.items():
            try:
                contestants[name] = opener(stack, url)
            except Exception as error:
                absent[name] = reason(error)
        measured = race(row, contestants, rounds)
    measured.absent = absent
    return measured


async def awaiting(row: str, url: str, rounds: int) -> Measured:
    """One task."""
    contestants: dict[str, Contestant] = {}
    absent = {}
    async with AsyncExitStack() as stack:
        for name, opener in AWAITING.items():
            try:
                contestants[name] = await opener(stack, url)
            except Exception as error:
                absent[name] = reason(error)
        measured = await arace(row, contestants, rounds)
    measured.absent = absent
    return measured
