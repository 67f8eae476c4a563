"""Count calls and instructions of the everyday paths, and compare them with figures.json."""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import sys
from collections.abc import Awaitable, Callable
from itertools import count
from pathlib import Path
from typing import Any

from benchmarks.gate.comparing import Figures, compare, merged
from benchmarks.gate.counting import Calls, Instructions, of_cacheguard
from cacheguard import CacheGuard, Policy
from cacheguard.testing import NoRedisError, RedisServer

BOOK = Path(__file__).with_name("figures.json")
VALUE = "x" * 100
KEYS = list(range(1_000, 1_100))
WARM_UP = 20  # calls before one is counted: connections are made, scripts are loaded, caches are filled
# Calls that are counted. Chance (a heartbeat of the bus, a reply in two pieces) only ever adds steps: the fewest count.
REPEAT = 40
REPEAT_BATCH = 10  # a batch is long enough to see that it is the same each time

Counter = type[Calls] | type[Instructions]


def load(number: int) -> str:
    return VALUE


async def aload(number: int) -> str:
    return VALUE


def blocking_rows(url: str) -> dict[str, Callable[[], object]]:
    """The blocking door, on keys that have been read once."""
    fresh = count()
    guard = CacheGuard(url, namespace="gate", policy=Policy(ttl="1h", l1_ttl="1h", jitter=None), operation_timeout=5)
    near = guard.cached("near:{number}")(load)
    far = guard.cached("far:{number}", l1=False)(load)
    cold = guard.cached("cold:{number}")(load)
    names = [far.key(number) for number in KEYS]
    far.many(KEYS)
    outer = guard.namespace("lean", Policy(l1=False))
    outer.set_many({f"many:{number}": VALUE for number in KEYS})
    many = [f"many:{number}" for number in KEYS]
    return {
        "L1 hit": lambda: near(1),
        "L2 hit": lambda: far(KEYS[0]),
        "L2 hit, guard.get": lambda: outer.get(many[0]),
        "L2 hit, get_many of 100": lambda: outer.get_many(many),
        "L2 hit, fn.many of 100": lambda: far.many(KEYS),
        "miss": lambda: cold(next(fresh)),
        "invalidate": lambda: guard.invalidate(names[0] + "x"),
        "set": lambda: outer.set("set", VALUE),
        "close": guard.close,
    }


async def async_rows(url: str) -> dict[str, Callable[[], Awaitable[object]]]:
    """The same through the async door."""
    fresh = count()
    guard = CacheGuard(url, namespace="agate", policy=Policy(ttl="1h", l1_ttl="1h", jitter=None), operation_timeout=5)
    near = guard.cached("near:{number}")(aload)
    far = guard.cached("far:{number}", l1=False)(aload)
    cold = guard.cached("cold:{number}")(aload)
    await far.many(KEYS)
    outer = guard.namespace("lean", Policy(l1=False))
    await outer.aset_many({f"many:{number}": VALUE for number in KEYS})
    many = [f"many:{number}" for number in KEYS]
    return {
        "L1 hit, async": lambda: near(1),
        "L2 hit, async": lambda: far(KEYS[0]),
        "L2 hit, guard.aget": lambda: outer.aget(many[0]),
        "L2 hit, aget_many of 100": lambda: outer.aget_many(many),
        "L2 hit, fn.many of 100, async": lambda: far.many(KEYS),
        "miss, async": lambda: cold(next(fresh)),
        "invalidate, async": lambda: guard.ainvalidate("gone"),
        "set, async": lambda: outer.aset("set", VALUE),
        "close": guard.aclose,
    }


def times(row: str) -> int:
    return REPEAT_BATCH if "of 100" in row else REPEAT


def fewest(work: Callable[[], object], counter: Counter, repeat: int) -> int:
    """The least that *work* took of all repetitions."""
    counts = []
    for _ in range(repeat):
        with counter(of_cacheguard) as counting:
            work()
        counts.append(counting.count)
    return min(counts)


async def afewest(work: Callable[[], Awaitable[object]], counter: Counter, repeat: int) -> int:
    """The same for what is awaited; what the event loop calls meanwhile is in it."""
    counts = []
    for _ in range(repeat):
        with counter(of_cacheguard) as counting:
            await work()
        counts.append(counting.count)
    return min(counts)


def count_blocking(url: str) -> Figures:
    """Every row of the blocking door."""
    rows = blocking_rows(url)
    close = rows.pop("close")
    found = {}
    for row, work in rows.items():
        for _ in range(WARM_UP):
            work()
        repeat = times(row)
        found[row] = {"calls": fewest(work, Calls, repeat), "instructions": fewest(work, Instructions, repeat)}
    close()
    return found


async def count_async(url: str) -> Figures:
    """Every row of the async door."""
    rows = await async_rows(url)
    close = rows.pop("close")
    found = {}
    for row, work in rows.items():
        for _ in range(WARM_UP):
            await work()
        repeat = times(row)
        calls, instructions = await afewest(work, Calls, repeat), await afewest(work, Instructions, repeat)
        found[row] = {"calls": calls, "instructions": instructions}
    await close()
    return found


def main() -> int:
    """Returns 1 if a count is higher than committed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gate", description=__doc__)
    parser.add_argument("--update", action="store_true", help="write what is counted now to figures.json")
    chosen = parser.parse_args()
    try:
        server = RedisServer()
    except NoRedisError as error:
        print(error, file=sys.stderr)
        return 1
    with server:
        gc.disable()  # what a collection calls is not the cost of this call
        found = count_blocking(server.url) | asyncio.run(count_async(server.url))
        gc.enable()
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    book: dict[str, Any] = json.loads(BOOK.read_text(encoding="utf-8")) if BOOK.exists() else {}
    verdict = compare(found, book.get(version), version)
    print("\n".join(verdict.lines))
    if chosen.update:
        BOOK.write_text(json.dumps(merged(book, version, found), indent=2) + "\n", encoding="utf-8")
        print(f"wrote the figures of Python {version} to {BOOK.name}")
        return 0
    return 0 if verdict.ok else 1


if __name__ == "__main__":
    sys.exit(main())
