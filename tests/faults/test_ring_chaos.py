"""Nodes of a ring freeze, die and come back at random: nobody reads older than what it has invalidated itself."""

from __future__ import annotations

import random
import threading
import time

import pytest

from cacheguard import CacheGuard, Policy
from tests.support.redis_server import RedisServer
from tests.support.rings import RingOfServers

pytestmark = pytest.mark.chaos

SECONDS = 30.0
WRITERS, KEYS_EACH = 6, 8


class Traffic:
    """Writers that each own some rows of a database in memory, and look at what they have just written."""

    def __init__(self, guards: list[CacheGuard]) -> None:
        self.guards = guards
        self.rows = {f"row:{owner}:{number}": 0 for owner in range(WRITERS) for number in range(KEYS_EACH)}
        self.over = threading.Event()
        self.wrong: list[str] = []
        self.errors: list[BaseException] = []
        self.reads = self.writes = 0

    def run(self, owner: int) -> None:
        guard, draw = self.guards[owner % len(self.guards)], random.Random(owner)
        mine = [f"row:{owner}:{number}" for number in range(KEYS_EACH)]
        try:
            while not self.over.is_set():
                row = draw.choice(mine)
                if draw.random() < 0.3:
                    self._write(guard, row, draw.randrange(5))
                else:
                    self._read(guard, draw.choice([row, draw.choice(list(self.rows))]), mine)
        except BaseException as error:  # noqa: BLE001 - no caller may see one
            self.errors.append(error)

    def _write(self, guard: CacheGuard, row: str, how: int) -> None:
        self.writes += 1
        if how == 0:
            with guard.writing(row):
                self.rows[row] += 1
        elif how == 1:
            self.rows[row] += 1
            guard.set(row, self.rows[row], tags=["all"])
        elif how == 2:
            self.rows[row] += 1
            guard.remove(row)
        elif how == 3 and self.writes % 20 == 0:
            self.rows[row] += 1
            guard.invalidate_tags("all")
            guard.invalidate(row)
        else:
            self.rows[row] += 1
            guard.invalidate(row)

    def _read(self, guard: CacheGuard, row: str, mine: list[str]) -> None:
        self.reads += 1
        least = self.rows[row]
        found = guard.get_or_set(row, lambda: self.rows[row], tags=["all"])
        if row in mine and found < least:
            self.wrong.append(f"{row}: {found} after {least}")


def break_something(server: RedisServer, draw: random.Random) -> None:
    if draw.random() < 0.7:
        server.freeze()
    else:
        server.kill()


def mend(server: RedisServer) -> None:
    if server.running:
        server.thaw()
    else:
        server.start()


def break_and_mend(servers: RingOfServers, draw: random.Random) -> int:
    """One or two nodes at a time, until the time is over; how many there were."""
    broken, end = 0, time.monotonic() + SECONDS
    while time.monotonic() < end:
        victims = draw.sample(servers.servers, draw.choice([1, 1, 2]))
        for server in victims:
            break_something(server, draw)
            broken += 1
        time.sleep(draw.uniform(0.3, 2.5))
        for server in victims:
            mend(server)
        time.sleep(draw.uniform(0.2, 4.0))
    return broken


def wait_until_all_is_said(guards: list[CacheGuard], rows: list[str]) -> None:
    deadline = time.monotonic() + 30
    while any(each.stats().invalidations_queued or not each.stats().bus_up for each in guards):
        for guard in guards:
            guard.get_many(rows)
        assert time.monotonic() < deadline
        time.sleep(0.05)
    time.sleep(0.2)  # for the bus


@pytest.mark.timeout(180)
@pytest.mark.parametrize("on_dead", ["miss", "move"])
def test_nobody_reads_older_than_what_it_has_written(ring: RingOfServers, on_dead: str) -> None:
    servers = ring
    policy = Policy(ttl="10m", error_backoff=None)
    url = servers.url(query=f"?on_dead={on_dead}")
    guards = [CacheGuard(url, policy=policy, max_loads=500) for _ in range(2)]
    traffic = Traffic(guards)
    threads = [threading.Thread(target=traffic.run, args=(owner,)) for owner in range(WRITERS)]
    for thread in threads:
        thread.start()
    broken = break_and_mend(servers, random.Random(5))
    traffic.over.set()
    for thread in threads:
        thread.join()
    stats = [guard.stats() for guard in guards]
    print(  # noqa: T201 - the figures are what a run of chaos is about
        f"\non_dead={on_dead}: {traffic.reads} reads, {traffic.writes} writes, {broken} nodes broken, "
        f"{sum(each.l1_hits + each.l2_hits for each in stats)} hits, {sum(each.loads for each in stats)} loads, "
        f"{len(traffic.wrong)} wrong, {len(traffic.errors)} errors"
    )
    assert traffic.errors == []
    assert traffic.wrong == []
    assert broken >= 5
    # When all is over and said, everybody sees the newest, in both tiers and in every node that could be asked.
    rows = list(traffic.rows)
    wait_until_all_is_said(guards, rows)
    for guard in guards:
        assert guard.get_or_set_many(rows, lambda keys: {key: traffic.rows[key] for key in keys}) == traffic.rows
        guard.close()
    for server in servers.servers:  # one node after the other goes, so that what only a standby has is looked at, too
        server.kill()
        with CacheGuard(url, policy=policy, max_loads=500) as late:
            for _ in range(4):
                found = late.get_or_set_many(rows, lambda keys: {key: traffic.rows[key] for key in keys})
                assert found == traffic.rows
        server.start()
