"""Eight processes with 25 readers each, who all read at one moment; `stampede.py` and `logical.py` send them off."""

from __future__ import annotations

import asyncio
import multiprocessing
import pickle
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from threading import Barrier, Thread
from typing import Any, Literal

import redis
from common import Samples

from cacheguard import CacheGuard

PROCESSES = 8
READERS = 25
START_UP = 60.0  # seconds that the processes may take to be there
WARM_UP = 2  # rounds that do not count: connections are made in them
TIMEOUT = 5  # seconds for an operation: 200 readers on two cores are the subject here, not a slow Redis

How = Literal["plain", "threads", "tasks"]


@dataclass(frozen=True)
class Plan:
    """What the crowd does.

    Args:
        how: cache-aside with bare redis-py in threads, or cacheguard in threads or in tasks.
        url: the Redis.
        load_time: seconds that the loader takes.
        every: seconds from one round to the next.
        rounds: how many rounds count.
        reads: reads of one reader in a round, `pause` seconds apart.
        policy: fields of the policy of the function that is read.
        one_key: every round reads the same key, which has expired meanwhile; else each has a cold one.
    """

    how: How
    url: str
    load_time: float
    every: float
    rounds: int
    reads: int
    pause: float
    policy: dict[str, Any]
    one_key: bool

    def key(self, at: int) -> int:
        return 0 if self.one_key else at


@dataclass(frozen=True)
class Outcome:
    """Loads of each round that counts, and how long all reads took."""

    loads: list[int]
    reads: Samples


def send_off(plan: Plan) -> Outcome:
    """Run *plan* in processes of its own."""
    context = multiprocessing.get_context("spawn")
    start, there = context.Value("d", 0.0), context.Barrier(PROCESSES + 1)
    answers: Any = context.Queue()
    processes = [context.Process(target=_process, args=(plan, start, there, answers)) for _ in range(PROCESSES)]
    for process in processes:
        process.start()
    there.wait(START_UP)
    start.value = time.monotonic() + 0.3
    there.wait(START_UP)
    took = [seconds for _ in processes for seconds in answers.get(timeout=START_UP + plan.every * plan.rounds)]
    for process in processes:
        process.join(START_UP)
    with redis.Redis.from_url(plan.url) as client:
        loads = [int(client.hget(_ledger(plan), str(at)) or 0) for at in range(WARM_UP, WARM_UP + plan.rounds)]
        client.delete(_ledger(plan))
    return Outcome(loads, Samples(took))


def _process(plan: Plan, start: Any, there: Any, answers: Any) -> None:
    there.wait(START_UP)
    there.wait(START_UP)
    ledger = redis.Redis.from_url(plan.url)
    round_of = _clock(plan, start.value)

    def note() -> None:
        ledger.hincrby(_ledger(plan), str(round_of()), 1)

    answers.put(_SHOWS[plan.how](plan, start.value, note))
    ledger.close()


def _clock(plan: Plan, start: float) -> Callable[[], int]:
    return lambda: max(0, int((time.monotonic() - start) / plan.every))


def _ledger(plan: Plan) -> str:
    return f"ledger:{plan.how}"


def _in_threads(plan: Plan, start: float, read: Callable[[int], object]) -> list[float]:
    took: list[float] = []
    ready = Barrier(READERS)

    def reader() -> None:
        ready.wait()
        for at in range(WARM_UP + plan.rounds):
            for turn in range(plan.reads):
                time.sleep(max(0.0, start + at * plan.every + turn * plan.pause - time.monotonic()))
                began = time.perf_counter()
                read(plan.key(at))
                if at >= WARM_UP:
                    took.append(time.perf_counter() - began)

    threads = [Thread(target=reader) for _ in range(READERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return took


def _plain(plan: Plan, start: float, note: Callable[[], None]) -> list[float]:
    client = redis.Redis.from_url(plan.url)
    ttl = int(plan.policy["ttl"] * 1000)

    def read(key: int) -> Any:
        raw: Any = client.get(f"plain:{key}")
        if raw is not None:
            return pickle.loads(raw)
        note()
        time.sleep(plan.load_time)
        client.set(f"plain:{key}", pickle.dumps(key), px=ttl)
        return key

    try:
        return _in_threads(plan, start, read)
    finally:
        client.close()


def _threads(plan: Plan, start: float, note: Callable[[], None]) -> list[float]:
    def load(key: int) -> int:
        note()
        time.sleep(plan.load_time)
        return key

    with CacheGuard(plan.url, namespace="threads", operation_timeout=TIMEOUT) as guard:
        return _in_threads(plan, start, guard.cached("crowd:{key}", **plan.policy)(load))


def _tasks(plan: Plan, start: float, note: Callable[[], None]) -> list[float]:
    return asyncio.run(_in_tasks(plan, start, note))


async def _in_tasks(plan: Plan, start: float, note: Callable[[], None]) -> list[float]:
    took: list[float] = []

    async def load(key: int) -> int:
        note()
        await asyncio.sleep(plan.load_time)
        return key

    async def reader(read: Callable[[int], Coroutine[Any, Any, int]]) -> None:
        for at in range(WARM_UP + plan.rounds):
            for turn in range(plan.reads):
                await asyncio.sleep(max(0.0, start + at * plan.every + turn * plan.pause - time.monotonic()))
                began = time.perf_counter()
                await read(plan.key(at))
                if at >= WARM_UP:
                    took.append(time.perf_counter() - began)

    async with CacheGuard(plan.url, namespace="tasks", operation_timeout=TIMEOUT) as guard:
        read = guard.cached("crowd:{key}", **plan.policy)(load)
        await asyncio.gather(*(reader(read) for _ in range(READERS)))
    return took


_SHOWS: dict[How, Callable[[Plan, float, Callable[[], None]], list[float]]] = {
    "plain": _plain,
    "threads": _threads,
    "tasks": _tasks,
}
