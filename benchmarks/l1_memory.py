"""How many bytes does an entry of the in-process tier take (int to int)?"""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Callable
from functools import lru_cache
from threading import RLock
from typing import Any

from cachetools import TTLCache, cached
from common import claim, headline, options, private_redis

from cacheguard import CacheGuard, Policy

ENTRIES = 10_000
KEYS = range(1_000_000, 1_000_000 + ENTRIES)
TARGET = 260
POLICY = Policy(ttl="1h", l1_ttl="1h")


def load(number: int) -> int:
    return number + 1


def bytes_per_entry(fn: Callable[[int], object]) -> float:
    """What stays allocated after one call with each key; the numbers themselves are in it, for everyone alike."""
    fn(0)
    gc.collect()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for number in KEYS:
            fn(number)
        gc.collect()
        return (tracemalloc.get_traced_memory()[0] - before) / ENTRIES
    finally:
        tracemalloc.stop()


def from_redis(url: str) -> float:
    """L1 alone: the entries come out of Redis, into which another guard has put them."""
    with CacheGuard(url, policy=POLICY, operation_timeout=5) as filler:
        filling = filler.cached("row:{number}", l1=False)(load)
        for number in (0, *KEYS):
            filling(number)
    with CacheGuard(url, policy=POLICY, operation_timeout=5, l1_size=ENTRIES + 1) as guard:
        reading = guard.cached("row:{number}")(load)
        taken = bytes_per_entry(reading)
        if guard.stats().l1_entries != ENTRIES + 1 or guard.stats().loads:
            raise RuntimeError(f"each key should have come out of Redis into L1, got {guard.stats()}")
        return taken


def main() -> None:
    """Traced bytes by entries, beside `lru_cache` and cachetools."""
    options(__doc__ or "")
    with private_redis() as url:
        headline(__doc__ or "", url)
        print(f"  functools.lru_cache: {bytes_per_entry(lru_cache(ENTRIES + 1)(load)):.0f} B")
        rival = cached(TTLCache[Any, Any](ENTRIES + 1, 3_600), lock=RLock())(load)
        print(f"  cachetools TTLCache: {bytes_per_entry(rival):.0f} B")
        with CacheGuard("memory://", policy=POLICY, l1_size=ENTRIES + 1) as guard:
            both = bytes_per_entry(guard.cached("row:{number}")(load))
        print(f"  cacheguard on memory://, which also keeps what Redis would: {both:.0f} B")
        taken = from_redis(url)
        claim("cacheguard", f"{taken:.0f} B", f"≤ {TARGET} B", ok=taken <= TARGET)


if __name__ == "__main__":
    main()
