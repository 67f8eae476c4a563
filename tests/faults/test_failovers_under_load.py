"""Sentinel failovers under readers and writers of both doors, in several processes, with and without L1."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import pytest
import redis

from tests.support.crowd import Seen, Traffic
from tests.support.redis_server import RedisServer, find_binaries
from tests.support.sentinels import CALM_MS, Sentinels

BUS_DELAY = 0.5  # seconds
AFTER = 2.0  # seconds after the new master answers


@pytest.fixture
def database(tmp_path: Path) -> Iterator[RedisServer]:
    server = RedisServer(next(iter(find_binaries().values())), tmp_path).start()
    yield server
    server.stop()


@pytest.fixture(scope="module")
def calm_sentinels(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sentinels]:
    group = Sentinels(
        next(iter(find_binaries().values())), tmp_path_factory.mktemp("calm"), down_after_ms=CALM_MS
    ).start()
    yield group
    group.stop()


def answers_as_master(server: RedisServer) -> bool:
    with contextlib.suppress(redis.RedisError):
        return bool(server.command("ROLE")[0] == "master")
    return False


def named(group: Sentinels, among: list[RedisServer]) -> list[RedisServer]:
    """Those that one of the sentinels names as the master."""
    ports: set[int] = set()
    for sentinel in group.sentinels:
        with contextlib.suppress(redis.RedisError):
            ports.add(sentinel.address()[1])
    return [server for server in among if server.port in ports]


def fail_over(group: Sentinels, how: str) -> tuple[RedisServer, float, float]:
    """Cut replication, lose the master; the old one, when the cut began, and since when another one answers."""
    old = group.master
    others = [server for server in group.servers if server is not old]
    for replica in others:
        replica.freeze()
    began = time.monotonic()
    time.sleep(0.3)  # what is acknowledged now is lost
    getattr(old, how)()
    for replica in others:
        replica.thaw()
    deadline = time.monotonic() + 40
    while not any(map(answers_as_master, named(group, others))):
        assert time.monotonic() < deadline, "no other master"
        time.sleep(0.01)
    return old, began, time.monotonic()


class Roles:
    """Who has been a master, and since when."""

    def __init__(self, group: Sentinels) -> None:
        self._group, self._over = group, threading.Event()
        self.changes: list[tuple[float, int, str]] = []
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        known: dict[int, str] = {}
        while not self._over.wait(0.02):
            for server in self._group.servers:
                role = "gone"
                with contextlib.suppress(redis.RedisError):
                    role = str(server.command("ROLE")[0])
                if known.get(server.port) != role:
                    self.changes.append((time.monotonic(), server.port, role))
                known[server.port] = role

    def promotions(self) -> list[float]:
        """When somebody became a master who had not been one."""
        last: dict[int, str] = {}
        found: list[float] = []
        for at, port, role in self.changes:
            if role == "master" and last.get(port) == "slave":
                found.append(at)
            if role != "gone":
                last[port] = role
        return found


def come_back(group: Sentinels, old: RedisServer) -> None:
    """The old one is there again, first as a master of its own mind, then as a replica."""
    old.start()
    old.thaw()
    deadline = time.monotonic() + 60
    while not group.is_settled():
        assert time.monotonic() < deadline, "the old master did not become a replica"
        time.sleep(0.05)


def old_values(seen: Seen) -> list[list[Any]]:
    """What was read although something newer had been acknowledged.

    Another process's L1 follows within the bus delay; on two busy cores that is not a millisecond.
    """
    return [*seen.stale(l1="no"), *(one for one in seen.stale(l1="l1") if one[1] > BUS_DELAY)]


def judge(seen: Seen, windows: list[tuple[float, float]]) -> None:
    def outside(at: float, after: float) -> bool:
        return not any(begun <= at <= promoted + after for begun, promoted in windows)

    stale = [one for one in old_values(seen) if outside(one[0], AFTER)]
    assert not seen.all("wrong")
    assert not seen.all("errors"), seen.all("errors")[:3]
    assert not stale, stale[:20]


def lateness(seen: Seen, windows: list[tuple[float, float]]) -> list[float]:
    """For each failover, how long after the new master answers something stale was read, before the next one begins."""
    found: list[float] = []
    ends = [*(begun for begun, _ in windows[1:]), float("inf")]
    for (begun, promoted), end in zip(windows, ends, strict=True):
        late = [one[0] - promoted for one in old_values(seen) if begun < one[0] < end]
        found.append(round(max(late, default=0.0), 2))
    return found


@pytest.mark.chaos
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("how", ["kill", "freeze"])
def test_ten_failovers_that_lose_invalidations(calm_sentinels: Sentinels, database: RedisServer, how: str) -> None:
    sentinels = calm_sentinels
    sentinels.reset()
    windows: list[tuple[float, float]] = []
    with Roles(sentinels) as roles, Traffic(sentinels.url, database) as traffic:
        time.sleep(1)
        for _ in range(10):
            old, began, promoted = fail_over(sentinels, how)
            windows.append((began, promoted))
            # Long dead, or awake again a moment later, and still a master of its own mind.
            time.sleep(2 if how == "kill" else 0.2)
            come_back(sentinels, old)
        time.sleep(AFTER + 1)
        seen = traffic.stop()
    normal = [round(max(seen.first_acks_after(promoted)), 2) for _, promoted in windows]
    sizes = [(each["sizes"][3][1:], each["sizes"][-2][1:]) for each in seen.processes]
    planned = len(windows)
    # A second failover while the first is under way leaves two masters alive, until Sentinel has settled it.
    windows += [(at - 1, at + 2) for at in roles.promotions() if all(abs(at - promoted) > 1 for _, promoted in windows)]
    print(f"{how}: {seen.summary}; {planned} failovers, {len(windows) - planned} more by themselves")  # noqa: T201 - figures worth knowing
    print(f"  cut until promoted: {[round(b - a, 2) for a, b in windows]}")  # noqa: T201
    print(f"  stale, longest after promotion: {lateness(seen, windows)}")  # noqa: T201
    print(f"  writes acknowledged by all, after promotion: {normal}")  # noqa: T201
    print(f"  descriptors and threads, at first and at last: {sizes}")  # noqa: T201
    print(f"  slow: {seen.slow_after(0, 1e12)[-5:]}")  # noqa: T201
    assert seen.all("stale"), "nothing was ever lost: replication was not cut"
    judge(seen, windows)
    assert max(normal) <= AFTER
    for (fds, threads), (fds_then, threads_then) in sizes:
        assert fds_then <= fds + 8
        assert threads_then <= threads + 2
