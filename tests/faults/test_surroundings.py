"""A wrong clock, a server without room, an empty restart under load, a patched interpreter."""

from __future__ import annotations

import importlib.util
import os
import random
import subprocess
import sys
import threading
import time
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest
import redis

from cacheguard import CacheGuard, Policy
from cacheguard.testing.redis_server import RedisServer as Server
from tests.faults.test_bus import until
from tests.faults.test_outage import own_server
from tests.support.fleet import ROOT, Process
from tests.support.traffic import Database, Traffic

__all__ = ["own_server"]  # a fixture

# Where libfaketime is installed it moves every clock of the process but the monotonic one; elsewhere Python's own.
LIBRARY = Path("/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1")

LIVING = """
import select, sys, time
hours = 0.0 if sys.argv[3] == "patched" else float(sys.argv[2])
if sys.argv[3] == "patched":  # right at first; it jumps while there is something that could be taken for old
    real, real_ns = time.time, time.time_ns
    time.time, time.time_ns = (lambda: real() + hours * 3600), (lambda: real_ns() + int(hours * 3600e9))
from cacheguard import CacheGuard

guard = CacheGuard(sys.argv[1])
loads = 0

def load():
    global loads
    loads += 1
    return "value"

def read(**policy):
    return guard.get_or_set("row", load, jitter=0.0, **policy)

assert read(ttl="1s") == "value"
hours = float(sys.argv[2])
print(time.time(), flush=True)
for _ in range(50):
    assert read(ttl="1s") == "value"
assert loads == 1, loads
assert guard.stats().l1_hits >= 40, guard.stats()
sys.stdin.readline()          # the other one has read it, from Redis
assert guard.get("theirs") == "their value"
select.select([], [], [], 1.05)  # libfaketime breaks the sleep of Python 3.11
assert read(ttl="1s") == "value"
assert loads == 2, loads      # it has lived for a second, not for an hour more or less
with guard.writing("theirs", settle="200ms", intent="2s"):
    pass
assert guard.get("theirs") is None
assert guard.get_or_set("theirs", lambda: "new") == "new"
guard.close()
print('"well"')
"""


@pytest.mark.parametrize(("how", "hours"), [("faketime", -1), ("faketime", 1), ("patched", -1)])
def test_a_client_whose_clock_is_an_hour_off_lives_like_the_others(
    redis_url: str, monkeypatch: pytest.MonkeyPatch, how: str, hours: int
) -> None:
    if how == "faketime":
        if not LIBRARY.exists():
            pytest.skip("libfaketime is not installed")
        monkeypatch.setenv("LD_PRELOAD", str(LIBRARY))
        monkeypatch.setenv("FAKETIME", f"{hours:+d}h")
        monkeypatch.setenv("FAKETIME_DONT_FAKE_MONOTONIC", "1")
    process = Process(LIVING, redis_url, hours, how)
    monkeypatch.undo()
    told = float(process.hear())
    assert abs(told - time.time() - hours * 3600) < 60  # its clock is wrong indeed
    with CacheGuard(redis_url, policy=Policy(l1=False)) as honest:
        assert honest.get("row") == "value"  # it is as fresh for us as it is for them
        honest.set("theirs", "their value")
        process.tell()
        until(lambda: honest.get("row") is None, 3)
        assert process.outcome() == "well"
        until(lambda: honest.get("theirs") is None, 1)  # what was loaded in the quarantine dies with it, on time


def test_a_lease_that_is_evicted_refuses_its_fill_and_costs_no_answer(own_server: Server) -> None:
    """Memory runs out while a load is under way, and the key with its lease is what goes."""
    with CacheGuard(own_server.url, policy=Policy(l1=False)) as guard:
        assert guard.get_or_set("warm", lambda: 1) == 1

        def load() -> str:
            before = own_server.command("INFO", "stats")["evicted_keys"]
            own_server.command("CONFIG", "SET", "maxmemory-policy", "allkeys-random")
            own_server.command("CONFIG", "SET", "maxmemory", "1")  # everything goes at the next write
            end = time.monotonic() + 5
            while own_server.entries():
                assert time.monotonic() < end, "nothing was evicted"
                with suppress(redis.RedisError):  # it is refused; what is evicted for it is what counts
                    own_server.command("SET", "filler", "x")
            assert own_server.command("INFO", "stats")["evicted_keys"] > before
            own_server.command("CONFIG", "SET", "maxmemory", "0")
            return "loaded"

        assert guard.get_or_set("row", load) == "loaded"
        assert guard.stats().fills_refused == 1
        assert guard.get_or_set("row", lambda: "again") == "again"


def test_a_server_that_evicts_all_the_time_costs_loads_and_no_wrong_value(own_server: Server) -> None:
    own_server.command("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
    used = int(own_server.command("INFO", "memory")["used_memory"])
    own_server.command("CONFIG", "SET", "maxmemory", str(used + 1_500_000))
    problems: list[object] = []
    with CacheGuard(own_server.url, policy=Policy(l1=False), operation_timeout=2) as guard:

        def read(seed: int) -> None:
            for turn in range(400):
                key = f"row:{(seed * 7919 + turn * 31) % 2000}"
                got = guard.get_or_set(key, partial(_padded, key))
                if got != _padded(key):
                    problems.append((key, str(got)[:50]))
                if turn % 10 == 0:
                    guard.invalidate(key)

        readers = [threading.Thread(target=read, args=(seed,)) for seed in range(4)]
        for each in readers:
            each.start()
        for each in readers:
            each.join(30)
        assert problems == []
        assert int(own_server.command("INFO", "stats")["evicted_keys"]) > 100
        assert guard.stats().invalidations_queued == 0
        assert guard.stats().fills > 500


def _padded(key: str) -> str:
    return f"{key} " + random.Random(key).randbytes(1000).hex()  # which nothing makes much smaller


def test_an_empty_restart_under_load_keeps_to_the_bulkhead(own_server: Server) -> None:
    database = Database(seconds=0.02)
    with (
        CacheGuard(own_server.url, policy=Policy(ttl="1m", l1=False), max_loads=8, operation_timeout=0.5) as guard,
        Traffic(guard, database, keys=100, rate=300) as traffic,
    ):
        until(lambda: len(database.per_key(0, float("inf"))) >= 80, 20)
        own_server.restart()
        begin = time.monotonic()
        before = guard.stats()
        time.sleep(2)
        after = guard.stats()
        hits = after.l2_hits - before.l2_hits
        ratio = hits / max(1, hits + after.misses - before.misses)
    print(f"peak {database.peak} of 8, {len(database.between(begin, begin + 2))} loads, hits {ratio:.0%}")  # noqa: T201
    assert traffic.problems == []
    assert database.peak <= 8
    assert max(database.per_key(begin + 0.5, begin + 2).values(), default=0) <= 2
    assert ratio >= 0.3


GEVENT = """
from gevent import monkey
monkey.patch_all()
import random, sys, time
import gevent
from cacheguard import CacheGuard

guard = CacheGuard(sys.argv[1], operation_timeout=2)
wrong, counts = [], {"answered": 0, "timed out": 0}

@guard.cached("row:{number}", ttl="30ms", l1=False)
def row(number):
    time.sleep(random.random() * 0.004)
    return f"row:{number}"

def use():
    for _ in range(25):
        number = random.randrange(30)
        try:
            with gevent.Timeout(random.choice([0.001, 0.01, 0.5])):
                got = row(number)
                if got != f"row:{number}":
                    wrong.append((number, got))
                if number % 5 == 0:
                    guard.invalidate(f"row:{number}")
                counts["answered"] += 1
        except gevent.Timeout:
            counts["timed out"] += 1

users = [gevent.spawn(use) for _ in range(20)]
gevent.joinall(users, timeout=30, raise_error=True)
assert all(user.ready() for user in users)
assert wrong == [], wrong
assert min(counts.values()) > 50, counts
assert guard.stats().redis_errors == 0
assert guard.get_or_set("heard", lambda: 1) == 1
other = CacheGuard(sys.argv[1])
other.invalidate("heard")
with gevent.Timeout(2):
    while guard.inspect("heard").tier == "l1":
        time.sleep(0.001)
guard.close()
other.close()
print("well")
"""


# There are no wheels for the newest Python on its first day; where the group `dev` has it, it is tested.
@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("gevent") is None, reason="gevent is not installed")
def test_a_process_that_gevent_has_patched_works_and_its_timeouts_mix_up_nothing(redis_url: str) -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", GEVENT, redis_url]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=50, env=environment)
    assert done.stdout.strip() == "well", done.stderr
