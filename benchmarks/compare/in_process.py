"""Rows of the tier in the process, and of the filter."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AsyncExitStack, ExitStack
from datetime import timedelta
from functools import lru_cache
from threading import RLock
from time import perf_counter
from typing import Any

from benchmarks.compare.figures import Measured, Timed
from benchmarks.compare.peers.setting import reason
from benchmarks.compare.racing import Contestant, arace, awaits, calls, race
from cacheguard import CacheGuard

SIZE, TTL, PASSES, ROUNDS = 10_000, 3_600, 4, 60


def numbers() -> list[int]:
    """Equal to those of the calls before, yet other objects, as ids out of requests are."""
    return [int(str(number)) for _ in range(PASSES) for number in range(1_000, 2_000)]


Decorate = Callable[[Any], Any]


def _functools(stack: Any) -> tuple[str, str, Decorate]:
    return "python", "functools.lru_cache", lru_cache(SIZE)


def _cachetools(stack: Any) -> tuple[str, str, Decorate]:
    from cachetools import TTLCache, cached

    return "cachetools", "@cached(TTLCache, RLock)", cached(TTLCache[Any, Any](SIZE, TTL), lock=RLock())


def _cachebox(stack: Any) -> tuple[str, str, Decorate]:
    import cachebox

    return "cachebox", "@cached(TTLCache)", cachebox.cached(cachebox.TTLCache(SIZE, TTL))


def _theine(stack: Any) -> tuple[str, str, Decorate]:
    from theine import Memoize

    return "theine", "@Memoize", Memoize(SIZE, timedelta(seconds=TTL))


def _theine_by_key(stack: Any) -> tuple[str, str, Decorate]:
    from theine import Memoize

    def decorate(fn: Any) -> Any:
        wrapped: Any = Memoize(SIZE, timedelta(seconds=TTL))(fn)
        wrapped.key(lambda number: number)
        return wrapped

    return "theine", "@Memoize with a key function", decorate


def _ours(stack: Any, template: str, name: str) -> tuple[str, str, Decorate]:
    guard = stack.enter_context(CacheGuard("memory://", namespace=name))
    return "cacheguard", "@guard.cached", guard.cached(template, ttl=TTL, l1_ttl=TTL)


BLOCKING: dict[str, Callable[[Any], tuple[str, str, Decorate]]] = {
    "functools": _functools,
    "cachetools": _cachetools,
    "cachebox": _cachebox,
    "theine": _theine,
    "theine, key": _theine_by_key,
    "cacheguard": lambda stack: _ours(stack, "one:{number}", "one"),
}


def _async_lru(stack: Any) -> tuple[str, str, Decorate]:
    from async_lru import alru_cache

    return "async-lru", "@alru_cache", alru_cache(SIZE, ttl=TTL)


def _cashews(stack: Any) -> tuple[str, str, Decorate]:
    from cashews import Cache

    cache: Any = Cache()
    cache.setup("mem://", size=SIZE)
    return "cashews", "@cache on mem://", cache(ttl=TTL, key="one:{number}")


def _aiocache(stack: Any) -> tuple[str, str, Decorate]:
    from aiocache import Cache, cached

    return "aiocache", "@cached(Cache.MEMORY)", cached(
        ttl=TTL, cache=Cache.MEMORY, key_builder=lambda fn, number: f"one:{number}"
    )  # fmt: skip


AWAITING: dict[str, Callable[[Any], tuple[str, str, Decorate]]] = {
    "bare await": lambda stack: ("python", "await f()", lambda fn: fn),
    "cachebox": _cachebox,
    "theine": _theine,
    "async-lru": _async_lru,
    "cashews": _cashews,
    "aiocache": _aiocache,
}


def _named(fn: Any, arguments: list[int]) -> Any:
    def run() -> Timed:
        began = perf_counter()
        for argument in arguments:
            fn(argument, region="eu")
        return Timed(perf_counter() - began, len(arguments))

    return run


def blocking(row: str, rounds: int) -> Measured:
    """``f(int)``, or ``f(int, kw=str)``; a load in a round that counts would be an error."""
    arguments, by_name, absent = numbers(), row == "l1-kw", {}
    contestants: dict[str, Contestant] = {}
    loads = 0

    def load(number: int) -> int:
        nonlocal loads
        loads += 1
        return number + 1

    def load_named(number: int, *, region: str) -> int:
        nonlocal loads
        loads += 1
        return number + 1

    openers = dict(BLOCKING)
    if by_name:
        openers["cacheguard"] = lambda stack: _ours(stack, "two:{number}:{region}", "two")
        del openers["theine, key"]
    with ExitStack() as stack:
        for name, opener in openers.items():
            try:
                library, how, decorate = opener(stack)
            except Exception as error:
                absent[name] = reason(error)
                continue
            fn = decorate(load_named if by_name else load)
            run = _named(fn, arguments) if by_name else calls(fn, arguments)
            run()
            before = loads
            run()
            if loads != before:
                absent[name] = "loaded again what it had"
                continue
            contestants[name] = Contestant(library, how, run)
        before = loads
        measured = race(row, contestants, rounds)
        if loads != before:
            raise RuntimeError(f"{loads - before} loads in rounds of hits")
    measured.absent = absent
    return measured


async def awaiting(row: str, rounds: int) -> Measured:
    """``await f(int)``."""
    arguments, absent = numbers()[:1_000], {}  # some take a hundred times as long as the fastest
    contestants: dict[str, Contestant] = {}

    async def load(number: int) -> int:
        return number + 1

    async with AsyncExitStack() as stack:
        for name, opener in AWAITING.items():
            try:
                library, how, decorate = opener(stack)
                run = awaits(decorate(load), arguments)
                await run()
            except Exception as error:
                absent[name] = reason(error)
                continue
            contestants[name] = Contestant(library, how, run)
        guard = await stack.enter_async_context(CacheGuard("memory://"))
        ours = guard.cached("one:{number}", ttl=TTL, l1_ttl=TTL)(load)
        contestants["cacheguard"] = Contestant("cacheguard", "@guard.cached", awaits(ours, arguments))
        measured = await arace(row, contestants, rounds)
    measured.absent = absent
    return measured


def bloom(row: str, url: str, rounds: int) -> Measured:
    """Ids that the filter knows to be absent."""
    there, asked = range(100_000), [int(str(number)) for number in range(200_000, 202_000)]
    contestants: dict[str, Contestant] = {}
    absent = {}
    with CacheGuard(url, operation_timeout=5) as guard:
        orders = guard.bloom("orders", capacity=100_000, error_rate=0.001)
        orders.rebuild(there)
        loads = 0

        def load(order_id: int) -> int | None:
            nonlocal loads
            loads += 1
            return order_id

        cached = guard.cached("order:{order_id}", bloom=orders)(load)
        for number in asked:
            cached(number)
        # What the filter takes for existing is no part of the question.
        absent_ids = [number for number in asked if cached(number) is None]
        contestants["cacheguard"] = Contestant(
            "cacheguard", "@guard.cached(bloom=…), a call", calls(cached, absent_ids)
        )
        contestants["cacheguard, filter"] = Contestant("cacheguard", "filter.absent", calls(orders.absent, absent_ids))
        for name, opener in (("pybloom_live", _pybloom), ("rbloom", _rbloom)):
            try:
                library, filled = opener(there)
            except Exception as error:
                absent[name] = reason(error)
                continue
            contestants[name] = Contestant(library, "item in filter", calls(filled.__contains__, absent_ids))
        before = loads
        measured = race(row, contestants, rounds)
        if loads != before:
            raise RuntimeError(f"{loads - before} loads for ids that the filter knows to be absent")
    measured.absent = absent
    return measured


def _pybloom(there: Any) -> tuple[str, Any]:
    from pybloom_live import BloomFilter

    filled = BloomFilter(100_000, 0.001)
    for number in there:
        filled.add(number)
    return "pybloom-live", filled


def _rbloom(there: Any) -> tuple[str, Any]:
    from rbloom import Bloom

    filled = Bloom(100_000, 0.001)
    filled.update(there)
    return "rbloom", filled


def run(row: str, url: str, share: float) -> Measured:
    """Measure *row*; *share* of its rounds are run."""
    rounds = max(3, round(ROUNDS * share))
    if row == "bloom":
        return bloom(row, url, rounds)
    return asyncio.run(awaiting(row, rounds)) if row == "l1-async" else blocking(row, rounds)
