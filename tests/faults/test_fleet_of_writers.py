"""Whole processes that read and write at the same time, are stopped, and are killed."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.support.fleet import Process
from tests.support.redis_server import RedisServer

Start = Callable[..., Process]


@pytest.fixture
def start() -> Iterator[Start]:
    running: list[Process] = []

    def start_one(script: str, *words: object) -> Process:
        running.append(Process(script, *words))
        return running[-1]

    yield start_one
    for process in running:
        process.kill()


# The "database" is a hash in the same server, past the cache; a row is the number of its last write.
RACING = """
import asyncio, json, random, sys, threading, time
import redis
from cacheguard import CacheGuard, Policy

url, colour, count, mode, seed = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4], int(sys.argv[5])
database = redis.Redis.from_url(url)
guard = CacheGuard(url, operation_timeout=10, policy=Policy(ttl="1h", jitter=None), max_loads=64)
dice = random.Random(seed)

@guard.cached("row:{number}")
def row(number: int) -> int:
    value = int(database.hget("db", number) or 0)
    time.sleep(random.random() * 0.05)
    return value

def write(number: int) -> None:
    with guard.writing(f"row:{number}", mode=mode):
        database.hincrby("db", number, 1)

@guard.cached("arow:{number}")
async def arow(number: int) -> int:
    value = int(await asyncio.to_thread(database.hget, "db", number) or 0)
    await asyncio.sleep(random.random() * 0.05)
    return value

async def awrite(number: int) -> None:
    async with guard.writing(f"arow:{number}", mode=mode):
        await asyncio.to_thread(database.hincrby, "db", number, 1)

def race(keys):
    for number in keys:
        row(number)
        if dice.random() < 0.5:
            write(number)
        row(number)

async def arace(keys):
    for number in keys:
        await arow(number)
        if dice.random() < 0.5:
            await awrite(number)
        await arow(number)

def stale() -> int:
    return sum(row(number) != int(database.hget("db", number) or 0) for number in range(count))

async def astale() -> int:
    return sum([await arow(number) != int(database.hget("db", number) or 0) for number in range(count)])

shares = [list(range(count))[at::32] for at in range(32)]
for share in shares:
    dice.shuffle(share)

def say(what):
    print(json.dumps(what), flush=True)

async def in_a_loop():
    await arow(0)
    say("ready"); await asyncio.to_thread(sys.stdin.readline)
    await asyncio.gather(*(arace(share) for share in shares))
    say("raced"); await asyncio.to_thread(sys.stdin.readline)
    say(await astale())
    await guard.aclose()

if colour == "async":
    asyncio.run(in_a_loop())
else:
    row(0)
    say("ready"); sys.stdin.readline()
    threads = [threading.Thread(target=race, args=(share,)) for share in shares]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
    say("raced"); sys.stdin.readline()
    say(stale())
    guard.close()
database.close()
"""


@pytest.mark.parametrize("keys", [100, pytest.param(2000, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("colour", "mode"),
    [
        ("blocking", "fence"),
        pytest.param("async", "delete", marks=pytest.mark.slow),
        pytest.param("blocking", "delete", marks=pytest.mark.slow),
        pytest.param("async", "fence", marks=pytest.mark.slow),
    ],
)
def test_raced_keys_are_stale_in_neither_process(
    redis_url: str, start: Start, colour: str, mode: str, keys: int
) -> None:
    pair = [start(RACING, redis_url, colour, keys, mode, seed) for seed in (1, 2)]
    for said in ('"ready"', '"raced"'):
        for process in pair:
            assert process.hear() == said
        time.sleep(0.2 if said == '"raced"' else 0.0)  # the last messages arrive
        for process in pair:
            process.tell()
    assert [process.outcome() for process in pair] == [0, 0]


STOPPED = """
import json, random, sys, threading, time
import redis
from cacheguard import CacheGuard, Policy

url, how, seconds, seed = sys.argv[1], sys.argv[2], float(sys.argv[3]), int(sys.argv[4])
database = redis.Redis.from_url(url, socket_timeout=30)
guard = CacheGuard(url, operation_timeout=30, namespace="fleet", policy=Policy(l1=False, ttl="1h"))
dice = random.Random(seed)
reads = stale = writes = 0

def load(key):
    return int(database.get(f"db:{key}") or 0)

def read_naively(key):
    found = database.get(f"naive:{key}")
    if found is not None:
        return int(found)
    value = load(key)
    database.set(f"naive:{key}", value)
    return value

def read(key):
    return read_naively(key) if how == "naive" else guard.get_or_set(key, lambda: load(key))

def write(key):
    version = database.incr(f"db:{key}") if how != "fence" else None
    if how == "naive":
        database.delete(f"naive:{key}")
    elif how == "delete":
        guard.invalidate(key)
    else:
        with guard.writing(key, intent="60s"):
            version = database.incr(f"db:{key}")
    acknowledge(keys=[f"acked:{key}"], args=[version])

acknowledge = database.register_script(
    "local old = tonumber(redis.call('GET', KEYS[1]) or '0') "
    "if tonumber(ARGV[1]) > old then redis.call('SET', KEYS[1], ARGV[1]) end"
)
print("ready", flush=True)
sys.stdin.readline()
until = time.monotonic() + seconds
while time.monotonic() < until:
    key = f"k{dice.randrange(8)}"
    if dice.random() < 0.03:
        write(key)
        writes += 1
    else:
        least = int(database.get(f"acked:{key}") or 0)
        stale += read(key) < least
        reads += 1
print(json.dumps([reads, stale, writes]), flush=True)
guard.close()
database.close()
"""


def stopped_fleet(start: Start, url: str, how: str, seconds: float) -> tuple[int, int]:
    """Reads, and those that were older than an acknowledged write, of eight processes that are stopped at random."""
    fleet = [start(STOPPED, url, how, seconds, seed) for seed in range(8)]
    for process in fleet:
        assert process.hear() == "ready"
    for process in fleet:
        process.tell()
    dice, until = random.Random(0), time.monotonic() + seconds
    while time.monotonic() < until:
        victim = dice.choice(fleet)
        os.kill(victim.pid, signal.SIGSTOP)
        time.sleep(dice.random() * 0.03)
        os.kill(victim.pid, signal.SIGCONT)
    outcomes: list[list[int]] = [process.outcome(60) for process in fleet]
    print(how, outcomes)  # noqa: T201 - figures worth knowing
    return sum(each[0] for each in outcomes), sum(each[1] for each in outcomes)


@pytest.mark.chaos
@pytest.mark.parametrize("how", ["delete", "fence"])
def test_eight_processes_that_are_stopped_at_random_read_nothing_stale(redis_url: str, start: Start, how: str) -> None:
    reads, stale = stopped_fleet(start, redis_url, how, 60)
    assert stale == 0
    assert reads > 50_000


@pytest.mark.chaos
def test_plain_delete_after_write_fails_the_same_run(redis_url: str, start: Start) -> None:
    _, stale = stopped_fleet(start, redis_url, "naive", 60)
    assert stale > 0


DYING = """
import json, os, random, signal, sys, time
import redis
from cacheguard import CacheGuard, Policy
from cacheguard.doors.writing import Write

url, mode, runs = sys.argv[1], sys.argv[2], int(sys.argv[3])
policy = Policy(ttl="1s", jitter=None, stale_if_error=None, l1=False)

def child(step):
    database = redis.Redis.from_url(url)
    guard = CacheGuard(url, policy=policy)
    guard.get("warm")
    die = lambda: os.kill(os.getpid(), signal.SIGKILL)
    if step == 0: die()
    with guard.writing("row", mode=mode, intent="400ms"):
        if step == 1: die()
        database.incr("db")
        if step == 2: die()
    if step == 3: die()
    os._exit(0)

stale = late = 0
for run in range(runs):
    database = redis.Redis.from_url(url)
    guard = CacheGuard(url, policy=policy)
    read = lambda: guard.get_or_set("row", lambda: int(database.get("db") or 0))
    read()
    database.close(); guard.close()
    pid = os.fork()
    if pid == 0:
        try:
            child(run % 4)
        finally:
            os._exit(1)
    os.waitpid(pid, 0)
    database = redis.Redis.from_url(url)
    guard = CacheGuard(url, policy=policy)
    read = lambda: guard.get_or_set("row", lambda: int(database.get("db") or 0))
    old = read() != int(database.get("db") or 0)
    stale += old
    if old:
        time.sleep(1.1)
        late += read() != int(database.get("db") or 0)
    elif run % 4 == 2:
        time.sleep(0.45)  # the intent has ended by itself
        late += read() != int(database.get("db") or 0)
        late += guard.inspect("row").state != "fresh"
    database.close(); guard.close()
print(json.dumps([stale, late]))
"""


@pytest.mark.parametrize("deaths", [8, pytest.param(40, marks=pytest.mark.slow)])
@pytest.mark.parametrize("mode", ["fence", "delete"])
def test_a_writer_that_is_killed_at_any_step_leaves_nothing_old_behind_a_fence(
    redis_url: str, start: Start, mode: str, deaths: int
) -> None:
    stale, late = start(DYING, redis_url, mode, deaths).outcome(300)
    assert late == 0  # once the TTL, or the intent, is over, all is well in either mode
    assert (stale == 0) is (mode == "fence")  # without a fence the old value lives until its TTL ends


def test_a_lost_marker_is_a_miss_and_never_an_old_entry(redis_server: RedisServer, redis_url: str) -> None:
    from cacheguard import CacheGuard

    with CacheGuard(redis_url) as guard, CacheGuard(redis_url) as other:
        values: dict[str, Any] = {f"row:{number}": number for number in range(1000)}
        guard.set_many(values, tags=["red"])
        redis_server.command("DEL", "cg:cacheguard:m:red")
        assert other.get_many(values) == {}
        guard.get_or_set("new", lambda: 1, tags=["red"])  # the marker is there again, and says something else
        assert other.get_many([*values, "new"]) == {"new": 1}
        guard.set_many(values, tags=["red"])
        redis_server.command("DEL", "cg:cacheguard:m")
        assert CacheGuard.get_many(other, ["nothing"]) == {}
        with CacheGuard(redis_url) as third:
            assert third.get_many(values) == {}
            assert third.get_or_set("row:1", lambda: "new", tags=["red"]) == "new"
            assert third.get_many(["row:1", "row:2"]) == {"row:1": "new"}
