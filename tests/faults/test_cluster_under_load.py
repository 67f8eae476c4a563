"""A cluster whose slots move and whose masters fail, under readers and writers of both doors."""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from redis.crc import key_slot

from tests.faults.test_failovers_under_load import AFTER, judge, lateness
from tests.support.clusters import RedisCluster
from tests.support.crowd import Seen, Traffic
from tests.support.redis_server import RedisServer, find_binaries

ROWS = 60
ENTRIES = [f"cg:cacheguard:e:row:{number}" for number in range(ROWS)]
MARKERS = ["cg:cacheguard:m", *(f"cg:cacheguard:m:tag{number}" for number in range(5))]


@pytest.fixture
def database(tmp_path: Path) -> Iterator[RedisServer]:
    server = RedisServer(next(iter(find_binaries().values())), tmp_path).start()
    yield server
    server.stop()


def figures(name: str, seen: Seen) -> None:
    slow = sorted(one[2] for one in seen.all("slow"))
    print(f"{name}: {seen.summary}; {len(slow)} took over 0.1 s, slowest {slow[-1:]}")  # noqa: T201 - worth knowing


def keep_moving(cluster: RedisCluster, moves: int, linger: float) -> None:
    """Move slots from master to master, those in use above all."""
    dice = random.Random(1)
    used = sorted({key_slot(key.encode()) for key in (*ENTRIES, *MARKERS)})
    for number in range(moves):
        slot = used[number % len(used)] if number % 3 else dice.randrange(16384)
        source = cluster.owner_of_slot(slot)
        target = dice.choice([node for node in cluster.masters() if node is not source])
        cluster.move_slot(slot, target, linger=linger)


@pytest.mark.chaos
@pytest.mark.timeout(600)
def test_a_thousand_slots_move_and_nobody_notices(
    redis_cluster: RedisCluster, cluster_url: str, database: RedisServer
) -> None:
    with Traffic(cluster_url, database, rows=ROWS) as traffic:
        time.sleep(0.5)
        began = time.monotonic()
        keep_moving(redis_cluster, 1000, 0.005)
        took = time.monotonic() - began
        time.sleep(0.5)
        seen = traffic.stop()
    figures(f"1,000 slots in {took:.0f} s", seen)
    judge(seen, [])
    assert seen.total("queued") == 0
    assert seen.stat("replayed") == 0
    assert seen.total("writes") > 500


def answers_as_master(server: RedisServer) -> bool:
    with contextlib.suppress(redis.RedisError):
        return bool(server.command("ROLE")[0] == "master")
    return False


def until(what: str, holds: object, seconds: float = 40) -> None:
    deadline = time.monotonic() + seconds
    while not holds():  # type: ignore[operator]
        assert time.monotonic() < deadline, what
        time.sleep(0.01)


@pytest.mark.chaos
@pytest.mark.timeout(600)
@pytest.mark.parametrize("how", ["kill", "freeze", "ask"])
def test_masters_fail_over_and_nobody_notices(
    redis_cluster: RedisCluster, cluster_url: str, database: RedisServer, how: str
) -> None:
    windows: list[tuple[float, float]] = []
    with Traffic(cluster_url, database, rows=ROWS) as traffic:
        time.sleep(0.5)
        for _ in range(6):
            old = redis_cluster.owner_of(random.choice(ENTRIES))
            replica = redis_cluster.replica_of(old)
            if how == "ask":
                began = time.monotonic()
                replica.command("CLUSTER", "FAILOVER")
            else:
                replica.freeze()  # what is acknowledged now is lost
                began = time.monotonic()
                time.sleep(0.3)
                getattr(old, how)()
                replica.thaw()
            until("no other master", lambda replica=replica: answers_as_master(replica))
            windows.append((began, time.monotonic()))
            time.sleep(0.5)
            old.start()
            old.thaw()
            until("the cluster is not whole", redis_cluster.is_whole)
        time.sleep(AFTER + 0.5)
        seen = traffic.stop()
    figures(f"6 failovers ({how})", seen)
    print(f"  until another answers: {[round(b - a, 2) for a, b in windows]}")  # noqa: T201
    print(f"  stale, longest after that: {lateness(seen, windows)}")  # noqa: T201
    normal = [round(max(seen.first_acks_after(promoted)), 2) for _, promoted in windows]
    print(f"  writes acknowledged by all, after that: {normal}")  # noqa: T201
    judge(seen, windows)
    assert max(normal) <= AFTER
