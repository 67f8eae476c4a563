"""What does a hit in the in-process tier cost?"""

from __future__ import annotations

import asyncio
from functools import lru_cache
from threading import RLock
from time import perf_counter
from typing import Any

from cachetools import TTLCache, cached
from common import Target, awaits_of, calls_of, headline, options, race, rounds, table

from cacheguard import CacheGuard

PASSES = 4


def load(number: int) -> int:
    return number + 1


def load_named(number: int, *, region: str) -> int:
    return number + 1


async def aload(number: int) -> int:
    return number + 1


def fresh_numbers() -> list[int]:
    """Equal to those of the call before, yet other objects, as ids out of requests are."""
    return [int(str(number)) for _ in range(PASSES) for number in range(1_000, 2_000)]


def named(fn: Any, arguments: list[int]) -> Any:
    def run() -> float:
        began = perf_counter()
        for argument in arguments:
            fn(argument, region="eu")
        return (perf_counter() - began) / len(arguments)

    return run


def main() -> None:
    """Three tables: one argument, one and a keyword, and one that is awaited."""
    chosen = options(__doc__ or "")
    headline(__doc__ or "")
    count = rounds(chosen, 60)
    arguments = fresh_numbers()
    with CacheGuard("memory://") as guard, asyncio.Runner() as runner:
        contestants: dict[str, Any] = {
            "functools.lru_cache f(int)": lru_cache(10_000)(load),
            "cacheguard f(int)": guard.cached("one:{number}", ttl="1h", l1_ttl="1h")(load),
            "cachetools TTLCache + RLock f(int)": cached(TTLCache[Any, Any](10_000, 3_600), lock=RLock())(load),
        }
        times = race({name: calls_of(fn, arguments) for name, fn in contestants.items()}, count)
        table(times, "functools.lru_cache f(int)", Target("cacheguard f(int)", 3.0))

        by_name = {
            "functools.lru_cache f(int, kw=str)": lru_cache(10_000)(load_named),
            "cacheguard f(int, kw=str)": guard.cached("two:{number}:{region}", ttl="1h", l1_ttl="1h")(load_named),
        }
        times = race({name: named(fn, arguments) for name, fn in by_name.items()}, count)
        table(times, "functools.lru_cache f(int, kw=str)", Target("cacheguard f(int, kw=str)", 1.2))

        awaited: dict[str, Any] = {
            "bare await f(int)": aload,
            "cacheguard await f(int)": guard.cached("three:{number}", ttl="1h", l1_ttl="1h")(aload),
        }
        times = race({name: awaits_of(runner, fn, arguments) for name, fn in awaited.items()}, count)
        table(times, "bare await f(int)", Target("cacheguard await f(int)", 2.6))
        runner.run(guard.aclose())


if __name__ == "__main__":
    main()
