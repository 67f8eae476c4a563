"""What every benchmark shares: rounds that take turns, a private Redis, and a table that says where it was measured."""

from __future__ import annotations

import argparse
import asyncio
import gc
import os
import platform
import sys
import tempfile
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import quantiles
from time import perf_counter
from typing import Any

import redis

from cacheguard.testing import NoRedisError, RedisServer, find_binaries

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("cacheguard", "redis", "hiredis", "cachetools", "msgspec")
UNITS = ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"), (0.0, "ns"))
SCALES = {"s": 1.0, "ms": 1e3, "µs": 1e6, "ns": 1e9}


@dataclass
class Samples:
    """Measurements of one contestant, in seconds."""

    values: list[float] = field(default_factory=list)

    @property
    def least(self) -> float:
        return min(self.values)

    def percentile(self, percent: int) -> float:
        """Inclusive: never beyond what was measured."""
        if len(self.values) == 1:
            return self.values[0]
        return quantiles(self.values, n=100, method="inclusive")[percent - 1]


def options(question: str) -> argparse.Namespace:
    """The command line of a benchmark; ``--full`` measures about five times as long."""
    parser = argparse.ArgumentParser(description=question)
    parser.add_argument("--full", action="store_true", help="more rounds, for a figure worth quoting")
    return parser.parse_args()


def rounds(chosen: argparse.Namespace, quick: int) -> int:
    """How many rounds to run."""
    return quick * 5 if chosen.full else quick


def race(contestants: dict[str, Callable[[], float]], count: int) -> dict[str, Samples]:
    """Let the contestants take turns, *count* rounds each, after one that does not count.

    Noise of the machine then meets them alike. A contestant runs one short round and returns seconds per operation.
    """
    samples = {name: Samples() for name in contestants}
    for at in range(count + 1):
        for name, run in contestants.items():
            gc.collect()
            gc.disable()
            try:
                seconds = run()
            finally:
                gc.enable()
            if at:
                samples[name].values.append(seconds)
    return samples


def calls_of(fn: Callable[[Any], object], arguments: Sequence[Any]) -> Callable[[], float]:
    """A round that calls *fn* with each of *arguments*."""

    def run() -> float:
        began = perf_counter()
        for argument in arguments:
            fn(argument)
        return (perf_counter() - began) / len(arguments)

    return run


def once(fn: Callable[[], object], operations: int) -> Callable[[], float]:
    """A round that calls *fn* one time and counts it as so many operations."""

    def run() -> float:
        began = perf_counter()
        fn()
        return (perf_counter() - began) / operations

    return run


def awaits_of(
    runner: asyncio.Runner, fn: Callable[[Any], Coroutine[Any, Any, object]], arguments: Sequence[Any]
) -> Callable[[], float]:
    """A round that awaits *fn* with each of *arguments*, one after another."""

    async def each() -> float:
        began = perf_counter()
        for argument in arguments:
            await fn(argument)
        return (perf_counter() - began) / len(arguments)

    return lambda: runner.run(each())


@contextmanager
def private_redis() -> Iterator[str]:
    """The URL of a server of our own, which ends with the block."""
    try:
        server = RedisServer()
    except NoRedisError as error:
        sys.exit(str(error))
    with server:
        yield server.url


@contextmanager
def private_cluster() -> Iterator[str]:
    """The URL of a cluster of three masters of our own, which ends with the block."""
    if str(ROOT) not in sys.path:
        sys.path.append(str(ROOT))
    clusters = import_module("tests.support.clusters")
    with tempfile.TemporaryDirectory() as directory:
        cluster = clusters.RedisCluster(next(iter(find_binaries().values())), Path(directory)).start()
        try:
            yield cluster.url
        finally:
            cluster.stop()


def headline(question: str, url: str | None = None) -> None:
    """Say what is measured, by which versions, on which machine."""
    print(f"\n{question}")
    parts = [f"{platform.python_implementation()} {platform.python_version()}"]
    if url is not None and url.startswith("redis+cluster"):
        parts.append("a cluster of redis-servers")
    elif url is not None:
        with redis.Redis.from_url(url) as client:
            parts.append(f"redis-server {client.info('server')['redis_version']}")
    parts += [f"{'redis-py' if name == 'redis' else name} {_version(name)}" for name in PACKAGES]
    print("  " + ", ".join(parts))
    load = os.getloadavg()[0]
    print(f"  {platform.system()} {platform.machine()}, {_processor()}, {os.cpu_count()} cores, load {load:.1f}\n")


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "absent"


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or "unknown processor"


@dataclass(frozen=True)
class Target:
    """What a contestant's least time may be, as a multiple of the baseline's."""

    name: str
    ratio: float


def table(samples: dict[str, Samples], baseline: str, *targets: Target) -> None:
    """Least, median and 99th percentile of each contestant's rounds, and least by the baseline's least."""
    asked = {target.name: target.ratio for target in targets}
    width = max(map(len, samples))
    print(f"  {'':{width}}  {'min':>9} {'p50':>9} {'p99':>9} {'ratio':>7}  target")
    for name, each in samples.items():
        ratio = each.least / samples[baseline].least
        shown = each.least, each.percentile(50), each.percentile(99)
        figures = " ".join(f"{pretty(seconds):>9}" for seconds in shown)
        aim = f"≤ {asked[name]:.2f}x {verdict(ok=ratio <= asked[name])}" if name in asked else ""
        print(f"  {name:{width}}  {figures} {ratio:6.2f}x  {aim}".rstrip())
    print()


def claim(what: str, value: str, aim: str, *, ok: bool) -> None:
    """One figure that is no ratio, against what was promised."""
    print(f"  {what}: {value}  (target {aim}: {verdict(ok=ok)})")


def verdict(*, ok: bool) -> str:
    return "reached" if ok else "MISSED"


def pretty(seconds: float) -> str:
    """*seconds* with three digits or so and a unit."""
    unit = next(name for bound, name in UNITS if seconds >= bound)
    amount = seconds * SCALES[unit]
    return f"{amount:.{0 if amount >= 100 else 1 if amount >= 10 else 2}f} {unit}"
