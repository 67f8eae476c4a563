"""What the single questions share: a private server, and a table that says where it was measured."""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.compare import machine
from benchmarks.compare.figures import Figure, pretty_seconds
from benchmarks.compare.racing import AsyncRun, Run
from cacheguard.testing import NoRedisError, RedisServer, find_binary

PACKAGES = ("cacheguard", "redis", "hiredis", "cachetools", "msgspec")


def options(question: str) -> argparse.Namespace:
    """The command line of a benchmark; ``--full`` measures about five times as long."""
    parser = argparse.ArgumentParser(description=question)
    parser.add_argument("--full", action="store_true", help="more rounds, for a figure worth quoting")
    return parser.parse_args()


def rounds(chosen: argparse.Namespace, quick: int) -> int:
    """How many rounds to run."""
    return quick * 5 if chosen.full else quick


def awaited(runner: asyncio.Runner, run: AsyncRun) -> Run:
    """A round that is awaited, as one that is called."""
    return lambda: runner.run(run())


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
def private_cluster(masters: int = 3) -> Iterator[str]:
    """The URL of a cluster of our own, which ends with the block."""
    from tests.support.clusters import RedisCluster

    binary = find_binary()
    if binary is None:
        sys.exit("a cluster needs a redis-server")
    with tempfile.TemporaryDirectory() as directory:
        cluster = RedisCluster(binary, Path(directory), masters).start()
        try:
            yield cluster.url
        finally:
            cluster.stop()


def headline(question: str, url: str | None = None) -> None:
    """Say what is measured, by which versions, on which machine."""
    server = "a cluster of redis-servers" if url and url.startswith("redis+cluster") else url and machine.server_at(url)
    about = machine.describe(server or "")
    versions = [f"{'redis-py' if name == 'redis' else name} {about['versions'][name] or 'absent'}" for name in PACKAGES]
    print(f"\n{question}")
    print("  " + ", ".join(part for part in (about["python"], about["server"], *versions) if part))
    print(f"  {about['system']}, {about['processor']}, {about['cores']} cores, load {about['load']:.1f}\n")


@dataclass(frozen=True)
class Target:
    """What a contestant's p10 may be, as a multiple of the baseline's."""

    name: str
    ratio: float


def table(figures: dict[str, Figure], baseline: str, *targets: Target) -> None:
    """p10, median and spread of each contestant's rounds, and its p10 by that of the baseline."""
    asked = {target.name: target.ratio for target in targets}
    width = max(map(len, figures))
    print(f"  {'':{width}}  {'p10':>9} {'median':>9} {'spread':>7} {'ratio':>7}  target")
    for name, each in figures.items():
        ratio = each.p10 / figures[baseline].p10
        marks = f"{pretty_seconds(each.p10):>9} {pretty_seconds(each.p50):>9} {each.spread:7.0%}"
        aim = f"≤ {asked[name]:.2f}x {verdict(ok=ratio <= asked[name])}" if name in asked else ""
        print(f"  {name:{width}}  {marks} {ratio:6.2f}x  {aim}".rstrip())
    print()


def claim(what: str, value: str, aim: str, *, ok: bool) -> None:
    """One figure that is no ratio, against what was promised."""
    print(f"  {what}: {value}  (target {aim}: {verdict(ok=ok)})")


def verdict(*, ok: bool) -> str:
    return "reached" if ok else "MISSED"
