"""Bytes of a process per entry of its own tier, by RSS; and bytes of Redis per entry, by MEMORY USAGE."""

from __future__ import annotations

import asyncio
import gc
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import AsyncExitStack, ExitStack
from functools import lru_cache
from threading import RLock
from typing import Any

import redis

from benchmarks.compare.figures import Figure, Measured, Timed, summary
from benchmarks.compare.peers import awaiting, blocking
from benchmarks.compare.peers.setting import TEXT, Setting, aopen_all, open_all, reason
from cacheguard import CacheGuard, Policy

ENTRIES = 100_000
FIRST = 1_000_000
ROUNDS = 3
STORED = range(10_000, 11_000)
POLICY = Policy(ttl="1h", l1_ttl="1h")
OURS = "cacheguard"


def load(number: int) -> int:
    return number + 1


def resident() -> int:
    """Bytes of this process in memory."""
    import psutil

    gc.collect()
    return int(psutil.Process().memory_info().rss)


def _cachetools() -> Callable[[int], int]:
    from cachetools import TTLCache, cached

    return cached(TTLCache[Any, Any](ENTRIES + 10_000, 3_600), lock=RLock())(load)


def _cachebox() -> Callable[[int], int]:
    import cachebox

    return cachebox.cached(cachebox.TTLCache(ENTRIES + 10_000, 3_600))(load)


def _theine() -> Callable[[int], int]:
    from datetime import timedelta

    from theine import Memoize

    return Memoize(ENTRIES + 10_000, timedelta(hours=1))(load)  # type: ignore[no-any-return]


CACHES: dict[str, tuple[str, str, Callable[[], Callable[[int], int]]]] = {
    "functools": ("python", "functools.lru_cache", lambda: lru_cache(ENTRIES + 10_000)(load)),
    "cachetools": ("cachetools", "@cached(TTLCache, RLock)", _cachetools),
    "cachebox": ("cachebox", "@cached(TTLCache)", _cachebox),
    "theine": ("theine", "@Memoize", _theine),
}


def grown_by(fn: Callable[[int], int], many: Callable[[list[int]], object] = len) -> float:
    """Bytes per entry: the value is part of it, the key is the caller's own object and is not."""
    numbers = list(range(FIRST, FIRST + ENTRIES))
    for number in range(1_000):  # what is allocated once is no part of an entry
        fn(number)
    before = resident()
    for at in range(0, ENTRIES, 1_000):
        chunk = numbers[at : at + 1_000]
        many(chunk)  # in one round trip; the calls find the entries in the process
        for number in chunk:
            fn(number)
    return (resident() - before) / ENTRIES


def grown_over_redis(url: str) -> float:
    """Entries come out of Redis, into which another process has put them."""
    with CacheGuard(url, policy=POLICY, l1_size=ENTRIES + 10_000, operation_timeout=5) as guard:
        reading = guard.cached("row:{number}")(load)
        grown = grown_by(reading, reading.many)
        if guard.stats().l1_entries < ENTRIES:
            raise RuntimeError(f"each key should be in the process, got {guard.stats().l1_entries} entries")
        return grown


def fill(url: str) -> None:
    """Put every entry into Redis."""
    with CacheGuard(url, policy=POLICY, operation_timeout=5) as guard:
        filling = guard.cached("row:{number}", l1=False)(load)
        for numbers in (range(1_000), *(range(at, at + 1_000) for at in range(FIRST, FIRST + ENTRIES, 1_000))):
            filling.many(numbers)


def child(name: str, url: str) -> float:
    """Measure one cache in a process of its own, with one arena: what grows is then held by it."""
    command = [sys.executable, "-m", "benchmarks.compare.memory", name, url]
    environment = {**os.environ, "MALLOC_ARENA_MAX": "1", "PYTHONHASHSEED": "0"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=300)
    if done.returncode:
        raise RuntimeError((done.stderr.strip().splitlines() or ["it ended without a word"])[-1])
    return float(done.stdout)


def in_process(row: str, url: str, share: float) -> Measured:
    """Each cache in turn, each time in a new process."""
    fill(url)
    names = {name: (library, how) for name, (library, how, _) in CACHES.items()}
    names[OURS] = ("cacheguard", "@guard.cached over Redis")
    taken: dict[str, list[Timed]] = {}
    measured = Measured(row)
    for _ in range(max(1, round(ROUNDS * share))):
        for name in names:
            if name in measured.absent:
                continue
            try:
                grown = child(name, url)
            except RuntimeError as error:
                if name == OURS:
                    raise
                measured.absent[name] = reason(error)
                continue
            taken.setdefault(name, []).append(Timed(grown * ENTRIES, ENTRIES))
    measured.figures = {name: summary(*names[name], each, "bytes") for name, each in taken.items()}
    return measured


class Keys:
    """What a library leaves in Redis."""

    def __init__(self, url: str) -> None:
        self._client: Any = redis.Redis.from_url(url)
        self._known = set(self._client.scan_iter(count=1_000))

    def new(self) -> tuple[int, int]:
        """How many keys there are since, and their bytes."""
        found = set(self._client.scan_iter(count=1_000)) - self._known
        with self._client.pipeline(transaction=False) as pipe:
            for name in found:
                pipe.memory_usage(name, samples=0)
            sizes = pipe.execute()
        self._known |= found
        return len(found), sum(size or 0 for size in sizes)


def _stored(library: str, how: str, keys: Keys) -> Figure:
    count, size = keys.new()
    each = size / len(STORED)
    return Figure(library, how, "bytes", each, each, each, 1, len(STORED), {"keys": round(count / len(STORED), 2)})


async def in_redis(row: str, url: str) -> Measured:
    """A thousand entries of a text of 100 characters, stored as each library does it."""
    setting, keys, measured = Setting(url, TEXT), Keys(url), Measured(row)
    with ExitStack() as stack:
        wanted = {name: each for name, each in blocking.ALL.items() if name not in {"bare socket", "valkey-glide"}}
        opened = open_all(stack, wanted, setting)
        keys.new()
        for name, store in opened.stores.items():
            for number in STORED:
                store.fill(number)
            measured.figures[name] = _stored(store.library, store.how, keys)
    measured.absent = opened.absent
    async with AsyncExitStack() as stack:
        wanted = {name: awaiting.PEERS[name] for name in ("aiocache", "cashews")}
        opened = await aopen_all(stack, wanted, setting)
        keys.new()
        for name, store in opened.stores.items():
            for number in STORED:
                await store.fill(number)
            measured.figures[name] = _stored(store.library, store.how, keys)
    measured.absent |= opened.absent
    return measured


def run(row: str, url: str, share: float) -> Measured:
    """Measure *row*; *share* of its rounds are run."""
    return asyncio.run(in_redis(row, url)) if row == "redis-memory" else in_process(row, url, share)


def main() -> None:
    """In the child: print the bytes per entry of one cache."""
    name, url = sys.argv[1:]
    print(grown_over_redis(url) if name == OURS else grown_by(CACHES[name][2]()))


if __name__ == "__main__":
    main()
