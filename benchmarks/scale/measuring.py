"""One function for each curve; a point is p10 of a few rounds."""

from __future__ import annotations

import gc
import multiprocessing
import os
import pickle
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import count
from typing import Any

import psutil
import redis

from benchmarks.common import private_cluster
from benchmarks.compare.figures import percentile
from benchmarks.scale.curves import Curve
from cacheguard import CacheGuard, Policy
from cacheguard.testing import RedisServer

TEXT = "x" * 100
READS, ROUNDS = 200, 15
TTL = 3_600
PATIENCE = 120.0  # seconds that a process may take


def load(number: int) -> str:
    return TEXT


def each_took(fn: Callable[[Any], Any], arguments: Sequence[Any], rounds: int = ROUNDS) -> float:
    """Seconds of one call: p10 of the rounds."""
    taken = []
    for at in range(rounds + 1):
        gc.collect()
        began = time.perf_counter()
        for argument in arguments:
            fn(argument)
        if at:
            taken.append((time.perf_counter() - began) / len(arguments))
    return percentile(taken, 10)


def spaced(size: int) -> list[int]:
    """Some numbers below *size*, spread over all of them, as other objects than those that were stored."""
    return [int(str(at * size // READS)) for at in range(READS)]


@contextmanager
def opened() -> Iterator[tuple[Any, CacheGuard]]:
    """A client and a guard without L1, on a new server."""
    with ExitStack() as stack:
        url = stack.enter_context(RedisServer()).url
        client: Any = stack.enter_context(redis.Redis.from_url(url))
        policy = Policy(ttl=TTL, l1=False)
        yield client, stack.enter_context(CacheGuard(url, policy=policy, operation_timeout=10))


def l1_keys(curve: Curve, sizes: Sequence[int]) -> None:
    """Hits in a full L1."""
    for size in sizes:
        policy = Policy(ttl=TTL, l1_ttl=TTL, l2=False)
        with CacheGuard("memory://", policy=policy, l1_size=size + 1_000) as guard:
            cached = guard.cached("row:{number}")(load)
            for at in range(0, size, 1_000):
                cached.many(range(at, at + 1_000))
            curve.add("a hit", size, each_took(cached, spaced(size) * 5))


def l1_bytes(curve: Curve, sizes: Sequence[int]) -> None:
    """What an entry adds to the resident size; each in a process of its own, over a Redis."""
    context = multiprocessing.get_context("spawn")
    for size in sizes:
        with RedisServer() as server, context.Pool(1) as pool:
            curve.add("an entry of 100 B", size, pool.apply(_grown, (server.url, size)))


def _grown(url: str, size: int) -> float:
    policy = Policy(ttl=TTL, l1_ttl=TTL)
    with CacheGuard(url, policy=policy, l1_size=size + 2_000, operation_timeout=10) as guard:

        def fresh(number: int) -> str:
            return f"{number:0100d}"

        cached = guard.cached("row:{number}")(fresh)
        cached.many(range(-1_000, 0))
        gc.collect()
        before = psutil.Process().memory_info().rss
        for at in range(0, size, 1_000):
            cached.many(range(at, at + 1_000))
        gc.collect()
        return float(psutil.Process().memory_info().rss - before) / size


def l2_keys(curve: Curve, sizes: Sequence[int]) -> None:
    """Hits in Redis, beside GET."""
    with opened() as (client, guard):
        filled = 0
        for size in sizes:
            for at in range(filled, size, 1_000):
                guard.set_many({f"row:{number}": TEXT for number in range(at, at + 1_000)})
            filled = size
            for number in spaced(size):
                client.set(f"plain:{number}", pickle.dumps(TEXT))
            curve.add("guard.get", size, each_took(lambda number: guard.get(f"row:{number}"), spaced(size)))
            curve.add(
                "redis-py GET", size,
                each_took(lambda number: pickle.loads(client.get(f"plain:{number}")), spaced(size)),
            )  # fmt: skip


def l2_bytes(curve: Curve, sizes: Sequence[int]) -> None:
    """Memory that Redis uses for an entry, its share of the dictionary included."""
    with opened() as (client, guard):
        guard.set("warm", TEXT)
        before, filled = client.info("memory")["used_memory"], 0
        for size in sizes:
            for at in range(filled, size, 1_000):
                guard.set_many({f"row:{number}": TEXT for number in range(at, at + 1_000)})
            filled = size
            curve.add("an entry of 100 B", size, (client.info("memory")["used_memory"] - before) / size)


def value_size(curve: Curve, sizes: Sequence[int]) -> None:
    """Hits in Redis of texts that do not compress."""
    with opened() as (client, guard):
        for size in sizes:
            value = os.urandom(size // 2).hex()
            client.set(f"plain:{size}", pickle.dumps(value))
            guard.set(f"row:{size}", value)
            times = [size] * max(3, min(100, 10_000_000 // size))
            curve.add("guard.get", size, each_took(lambda size: guard.get(f"row:{size}"), times))
            curve.add("redis-py GET", size, each_took(lambda size: pickle.loads(client.get(f"plain:{size}")), times))


def tags(curve: Curve, sizes: Sequence[int]) -> None:
    """Hits and misses of entries with so many tags."""
    with opened() as (_, guard):
        for size in sizes:
            names = [f"tag{at}" for at in range(size)]
            cached = guard.cached(f"tags{size}:{{number}}", tags=names)(load)
            for number in range(READS):
                cached(number)
            curve.add("a hit in Redis", size, each_took(cached, range(READS)))
            curve.add("a miss", size, each_took(_missing(cached), range(READS // 4)))


def _missing(cached: Callable[[int], Any]) -> Callable[[int], Any]:
    fresh = count(READS)
    return lambda _: cached(next(fresh))


def processes(curve: Curve, sizes: Sequence[int]) -> None:
    """Reads per second of so many processes together, one thread each."""
    with RedisServer() as server, redis.Redis.from_url(server.url) as client:
        with CacheGuard(server.url, policy=Policy(ttl=TTL, l1=False), operation_timeout=10) as guard:
            for number in range(READS):
                guard.set(f"row:{number}", TEXT)
                client.set(f"plain:{number}", pickle.dumps(TEXT))
        for size in sizes:
            for how in ("guard.get", "redis-py GET"):
                curve.add(how, size, _together(server.url, how, size))


def _together(url: str, how: str, size: int) -> float:
    """Executed reads by the time from the first to the last."""
    context = multiprocessing.get_context("spawn")
    ready, answers = context.Barrier(size), context.Queue()
    crowd = [context.Process(target=_reader, args=(url, how, ready, answers)) for _ in range(size)]
    for process in crowd:
        process.start()
    seen = [answers.get(timeout=PATIENCE) for _ in crowd]
    for process in crowd:
        process.join(PATIENCE)
    began, ended = min(each[0] for each in seen), max(each[1] for each in seen)
    return float(sum(each[2] for each in seen) / (ended - began))


def _reader(url: str, how: str, ready: Any, answers: Any, seconds: float = 1.5) -> None:
    client: Any = redis.Redis.from_url(url)
    with CacheGuard(url, policy=Policy(ttl=TTL, l1=False), operation_timeout=10) as guard:

        def ours(number: int) -> Any:
            return guard.get(f"row:{number}")

        def plain(number: int) -> Any:
            return pickle.loads(client.get(f"plain:{number}"))

        read = ours if how == "guard.get" else plain
        read(0)
        ready.wait(PATIENCE)
        began = now = time.monotonic()
        done = 0
        while now - began < seconds:
            for number in range(50):
                read(number)
            done += 50
            now = time.monotonic()
    answers.put((began, now, done))


def bus(curve: Curve, sizes: Sequence[int]) -> None:
    """Invalidations per second of one writer with so many processes that listen."""
    context = multiprocessing.get_context("spawn")
    with RedisServer() as server:
        for size in sizes:
            stop, ready, answers = context.Event(), context.Barrier(size + 1), context.Queue()
            crowd = [context.Process(target=_listener, args=(server.url, ready, stop, answers)) for _ in range(size)]
            for process in crowd:
                process.start()
            with CacheGuard(server.url, operation_timeout=10) as guard:
                guard.invalidate("row:0")
                ready.wait(PATIENCE)
                took = each_took(lambda number: guard.invalidate(f"row:{number}"), range(READS))
                stop.set()
            heard = [answers.get(timeout=PATIENCE) for _ in crowd]
            for process in crowd:
                process.join(PATIENCE)
            curve.add("invalidations, one by one", size, 1 / took)
            # What a listener could follow if it did nothing else.
            curve.add("messages that one listener can follow", size, 1 / max(1e-9, percentile(heard, 50)))


def _listener(url: str, ready: Any, stop: Any, answers: Any) -> None:
    """Reports its processor time for one message."""
    with CacheGuard(url, operation_timeout=10) as guard:
        guard.set("warm", 1)
        guard.get("warm")
        ready.wait(PATIENCE)
        began = time.process_time()
        stop.wait(PATIENCE)
        answers.put((time.process_time() - began) / (READS * (ROUNDS + 1)))


def nodes(curve: Curve, sizes: Sequence[int]) -> None:
    """A hit, and a batch of 1,000 keys, on a cluster of so many masters."""
    for size in sizes:
        with (
            private_cluster(size) as url,
            CacheGuard(url, policy=Policy(ttl=TTL, l1=False), operation_timeout=10) as guard,
        ):
            names = [f"row:{number}" for number in range(1_000)]
            guard.set_many(dict.fromkeys(names, TEXT))
            curve.add("a hit", size, each_took(guard.get, names[:READS]))
            curve.add("get_many of 1,000", size, each_took(guard.get_many, [names] * 3))


Measure = Callable[[Curve, Sequence[int]], None]

# name → title, over what, unit, sizes, how many of them are quick, how it is measured
CURVES: dict[str, tuple[str, str, Any, tuple[int, ...], int, Measure]] = {
    "l1-keys": ("A hit in the process", "keys in L1", "seconds", (1_000, 10_000, 100_000, 1_000_000), 3, l1_keys),
    "l1-bytes": ("Process memory per entry", "keys in L1", "bytes", (1_000, 10_000, 100_000, 1_000_000), 3, l1_bytes),
    "l2-keys": (
        "A hit in Redis", "keys in Redis", "seconds", (1_000, 10_000, 100_000, 1_000_000, 10_000_000), 3, l2_keys,
    ),
    "l2-bytes": (
        "Redis memory per entry", "keys in Redis", "bytes",
        (1_000, 10_000, 100_000, 1_000_000, 10_000_000), 3, l2_bytes,
    ),
    "value-size": (
        "A hit in Redis, by size", "bytes of the value", "seconds",
        (100, 1_000, 10_000, 100_000, 1_000_000, 4_000_000), 4, value_size,
    ),
    "processes": ("Reads of all processes", "processes", "per second", (1, 2, 4, 8, 16), 3, processes),
    "tags": ("An entry with tags", "tags of the entry", "seconds", (0, 1, 2, 4, 8, 16, 32, 64), 4, tags),
    "bus": ("The bus", "listening processes", "per second", (1, 2, 4, 8, 16), 3, bus),
    "nodes": ("A cluster on one machine", "masters", "seconds", (1, 3, 6, 12), 2, nodes),
}  # fmt: skip


def measure(name: str, *, quick: bool, largest: int) -> Curve:
    """Measure one curve, up to *largest* keys."""
    title, over, unit, sizes, few, how = CURVES[name]
    wanted = [size for size in (sizes[:few] if quick else sizes) if "keys" not in over or size <= largest]
    curve = Curve(name, title, over, unit)
    how(curve, wanted)
    return curve
