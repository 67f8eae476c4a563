"""Many processes, one load."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from statistics import quantiles

import pytest

from cacheguard import CacheGuard
from tests.support.fleet import Process
from tests.support.redis_server import RedisServer

READERS = """
import asyncio, json, sys, threading, time
import redis
from cacheguard import CacheGuard

url, colour, readers, seconds, fails = sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4]), sys.argv[5]
counter = redis.Redis.from_url(url)
guard = CacheGuard(url, policy=None)
counter.ping()
answers, waits = [], []

def load():
    counter.incr("loads")
    time.sleep(seconds)
    if fails == "fails":
        raise ValueError("down")
    return "row"

async def aload():
    return await asyncio.to_thread(load)

def note(begin, value):
    waits.append(time.monotonic() - begin)
    answers.append(value)

def read():
    begin = time.monotonic()
    try:
        value = guard.get_or_set("hot", load)
    except ValueError as error:
        value = f"error {error}"
    note(begin, value)

async def aread():
    begin = time.monotonic()
    try:
        value = await guard.aget_or_set("hot", aload)
    except ValueError as error:
        value = f"error {error}"
    note(begin, value)

async def all_of_them():
    await asyncio.gather(*(aread() for _ in range(readers)))
    await guard.aclose()

print("ready", flush=True)
sys.stdin.readline()
if colour == "async":
    asyncio.run(all_of_them())
else:
    threads = [threading.Thread(target=read) for _ in range(readers)]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
    guard.close()
counter.close()
print(json.dumps([answers, waits]))
"""

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


def stampede(start: Start, url: str, colour: str, size: tuple[int, int], seconds: float, how: str) -> list[str]:
    processes, readers = size
    fleet = [start(READERS, url, colour, readers, seconds, how) for _ in range(processes)]
    for process in fleet:
        assert process.hear() == "ready"
    for process in fleet:
        process.tell()
    outcomes = [process.outcome() for process in fleet]
    waits = [wait for _, each in outcomes for wait in each]
    if len(waits) > 1:
        slowest = quantiles(waits, n=100)[98] * 1000
        print(f"{colour}: p99 of a cold read {slowest:.0f} ms, its load {seconds * 1000:.0f} ms")  # noqa: T201 - worth knowing
    return [answer for answers, _ in outcomes for answer in answers]


@pytest.mark.parametrize(
    ("colour", "processes"),
    [
        ("async", 2),
        *(pytest.param(*each, marks=pytest.mark.slow) for each in (("blocking", 2), ("blocking", 8), ("async", 8))),
    ],
)
def test_one_load_serves_several_processes_of_25_readers(
    redis_server: RedisServer, redis_url: str, start: Start, colour: str, processes: int
) -> None:
    answers = stampede(start, redis_url, colour, (processes, 25), 0.15, "works")
    assert answers == ["row"] * 25 * processes
    assert redis_server.command("GET", "loads") == "1"


def test_one_failing_load_serves_several_processes(redis_server: RedisServer, redis_url: str, start: Start) -> None:
    answers = stampede(start, redis_url, "blocking", (2, 15), 0.5, "fails")
    assert answers == ["error down"] * 30
    assert redis_server.command("GET", "loads") == "1"


@pytest.mark.chaos
@pytest.mark.parametrize("colour", ["blocking", "async"])
def test_a_load_longer_than_a_lease_is_still_one_load(
    redis_server: RedisServer, redis_url: str, start: Start, colour: str
) -> None:
    assert stampede(start, redis_url, colour, (2, 5), 7, "works") == ["row"] * 10
    assert redis_server.command("GET", "loads") == "1"


HANGING = """
import sys, time
from cacheguard import CacheGuard

guard = CacheGuard(sys.argv[1])

def load():
    print("loading", flush=True)
    time.sleep(60)

guard.get_or_set("hot", load)
"""


def test_a_dead_leader_is_replaced_when_its_lease_ends(redis_server: RedisServer, redis_url: str, start: Start) -> None:
    leader = start(HANGING, redis_url)
    assert leader.hear() == "loading"
    leader.kill()
    begin, loads = time.monotonic(), 0

    def load() -> str:
        nonlocal loads
        loads += 1
        return "row"

    with CacheGuard(redis_url) as guard:
        assert guard.get_or_set("hot", load) == "row"
        assert time.monotonic() - begin <= 5.5
        assert loads == 1
        assert guard.stats().waits == 1


FORKING = """
import asyncio, json, os, sys, threading
from cacheguard import CacheGuard

guard = CacheGuard(sys.argv[1])
loads = []

@guard.cached("row:{number}")
def row(number: int) -> int:
    loads.append(number)
    return number

@guard.cached("arow:{number}")
async def arow(number: int) -> int:
    return number

async def use():
    return await arow(1), await guard.aget("row:1")

row(1)
busy = threading.Event()
hold = threading.Event()

def slow():
    busy.set()
    hold.wait(20)
    return "slow"

thread = threading.Thread(target=guard.get_or_set, args=("slow", slow))
thread.start()
busy.wait(10)

def child():
    assert row(1) == 1 and loads == [1], loads          # from Redis, over a connection of its own
    assert row(os.getpid()) == os.getpid()
    row.invalidate(2)
    assert asyncio.run(use()) == (1, 1)
    guard.close()

pids = []
for _ in range(5):
    pid = os.fork()
    if pid == 0:
        try:
            child()
        except BaseException as error:
            print(repr(error), file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(0)
    pids.append(pid)
codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
hold.set()
thread.join()
assert guard.get("slow") == "slow"
assert row(1) == 1 and loads == [1]
assert row(3) == 3
guard.close()
print(json.dumps(codes))
"""


def test_forked_children_start_clean_and_leave_the_parent_alone(redis_url: str, start: Start) -> None:
    assert start(FORKING, redis_url).outcome() == [0] * 5
