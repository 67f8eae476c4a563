"""Eight processes with 25 readers each, who all read one key at one moment: how many loads, and how long do they wait?

All readers of a turn are sent off at one moment that was agreed before; how late they began is in `p99_scheduled`. The
next turn begins when everybody has come back, so nobody reads beside the stragglers of another library.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import pickle
import time
from collections.abc import Callable
from contextlib import AsyncExitStack, ExitStack
from dataclasses import dataclass
from importlib import import_module
from threading import Thread
from typing import Any

from benchmarks.compare.figures import Figure, Measured, percentile
from benchmarks.compare.peers.setting import reason
from cacheguard import CacheGuard

PROCESSES, READERS = 8, 25
LOAD_TIME = 0.1  # seconds
PATIENCE = 120.0  # seconds that a process or a turn may take
WARM_UP = 2  # rounds that do not count: connections are made in them
TIMEOUT = 5  # seconds for an operation: 200 readers on two cores are the subject here, not a slow Redis
ROUNDS = 8
AHEAD, REST = 0.25, 0.25  # seconds from the agreement to the moment, and after the last answer
TTL, LONG = 1.0, 60.0  # seconds: how long a hot key is fresh, and how long what may be served stale is kept
LIBRARIES = {"redis-py": "redis"}

Note = Callable[[], None]  # that a load began


@dataclass(frozen=True)
class Plan:
    """What the crowd does; a round is one turn of each of *names*."""

    row: str
    url: str
    names: tuple[str, ...]
    rounds: int

    @property
    def hot(self) -> bool:
        return self.row.startswith("hot")

    @property
    def tasks(self) -> bool:
        return self.row.endswith("tasks")

    def turns(self) -> list[tuple[int, int]]:
        """Round and contestant of each turn."""
        return [(at, name) for at in range(WARM_UP + self.rounds) for name in range(len(self.names))]


def _port(url: str) -> int:
    return int(url.rsplit(":", 1)[1].partition("/")[0])


def _redis_py(stack: ExitStack, plan: Plan, load: Callable[[int], int]) -> Callable[[int], Any]:
    """Unprotected cache-aside, for comparison."""
    import redis

    client: Any = redis.Redis.from_url(plan.url)
    stack.callback(client.close)

    def read(key: int) -> Any:
        raw = client.get(f"plain:{key}")
        if raw is not None:
            return pickle.loads(raw)
        value = load(key)
        client.set(f"plain:{key}", pickle.dumps(value), px=int((TTL if plan.hot else LONG) * 1000))
        return value

    return read


def _dogpile(stack: ExitStack, plan: Plan, load: Callable[[int], int]) -> Callable[[int], Any]:
    from dogpile.cache import make_region

    arguments = {"url": plan.url, "distributed_lock": True, "thread_local_lock": False, "redis_expiration_time": 600}
    region: Any = make_region().configure(
        "dogpile.cache.redis", expiration_time=TTL if plan.hot else LONG, arguments=arguments
    )
    return lambda key: region.get_or_create(f"dogpile:{key}", lambda: load(key))


def _ours(stack: ExitStack, plan: Plan, load: Callable[[int], int]) -> Callable[[int], Any]:
    guard = stack.enter_context(CacheGuard(plan.url, namespace=plan.row, operation_timeout=TIMEOUT))
    options: Any = {"ttl": TTL, "jitter": None, "rebuild": "logical"} if plan.hot else {"ttl": LONG}
    return guard.cached("crowd:{key}", **options)(load)


async def _aiocache(stack: AsyncExitStack, plan: Plan, load: Callable[[int], Any]) -> Callable[[int], Any]:
    from aiocache import Cache, cached_stampede
    from aiocache.serializers import PickleSerializer

    read: Any = cached_stampede(
        lease=2,
        ttl=LONG,
        cache=Cache.REDIS,
        key_builder=lambda fn, key: f"stampede:{key}",
        endpoint="127.0.0.1",
        port=_port(plan.url),
        serializer=PickleSerializer(),
    )(load)
    stack.push_async_callback(read.cache.close)
    return read  # type: ignore[no-any-return]


async def _cashews(stack: AsyncExitStack, plan: Plan, load: Callable[[int], Any]) -> Callable[[int], Any]:
    from cashews import Cache

    cache: Any = Cache()
    cache.setup(plan.url, client_side=False)
    await cache.init()
    stack.push_async_callback(cache.close)
    if plan.hot:
        return cache.early(ttl=LONG, early_ttl=TTL, key="early:{key}")(load)  # type: ignore[no-any-return]
    return cache(ttl=LONG, key="load:{key}", lock=True)(load)  # type: ignore[no-any-return]


async def _aours(stack: AsyncExitStack, plan: Plan, load: Callable[[int], Any]) -> Callable[[int], Any]:
    guard = await stack.enter_async_context(CacheGuard(plan.url, namespace=plan.row, operation_timeout=TIMEOUT))
    options: Any = {"ttl": TTL, "jitter": None, "rebuild": "logical"} if plan.hot else {"ttl": LONG}
    return guard.cached("crowd:{key}", **options)(load)


OPENERS: dict[str, dict[str, tuple[str, Any]]] = {
    "cold-threads": {
        "redis-py": ("GET + SET, unprotected", _redis_py),
        "dogpile.cache": ("region.get_or_create, distributed lock", _dogpile),
        "cacheguard": ("@guard.cached", _ours),
    },
    "cold-tasks": {
        "aiocache": ("@cached_stampede", _aiocache),
        "cashews": ("@cache(lock=True)", _cashews),
        "cacheguard": ("@guard.cached", _aours),
    },
    "hot-threads": {
        "redis-py": ("GET + SET, unprotected", _redis_py),
        "dogpile.cache": ("region.get_or_create, distributed lock", _dogpile),
        "cacheguard": ('@guard.cached(rebuild="logical")', _ours),
    },
    "hot-tasks": {
        "cashews": ("@cache.early", _cashews),
        "cacheguard": ('@guard.cached(rebuild="logical")', _aours),
    },
}

Seen = list[tuple[int, int, float, float]]  # contestant, round, seconds of the call, seconds since it was due


def run(row: str, url: str, share: float) -> Measured:
    """Send *row*'s contestants off in turn; *share* of its rounds are run."""
    absent = {}
    for name in OPENERS[row]:
        module = {"redis-py": "redis", "dogpile.cache": "dogpile.cache"}.get(name, name)
        try:
            import_module(module)
        except Exception as error:
            absent[name] = reason(error)
    names = tuple(name for name in OPENERS[row] if name not in absent)
    plan = Plan(row, url, names, max(3, round(ROUNDS * share)))
    context = multiprocessing.get_context("spawn")
    start, there = context.Value("d", 0.0), context.Barrier(PROCESSES + 1)
    loads = context.Array("i", len(names) * (WARM_UP + plan.rounds))
    answers: Any = context.Queue()
    crowd = [context.Process(target=_process, args=(plan, start, there, loads, answers)) for _ in range(PROCESSES)]
    for process in crowd:
        process.start()
    began = dict.fromkeys(range(len(names)), 0.0)
    for _, name in plan.turns():
        there.wait(PATIENCE)
        # What has been filled in the turn before has to be out of date again.
        time.sleep(
            max(
                REST + 2 * LOAD_TIME if plan.hot else REST,
                began[name] + TTL + 5 * LOAD_TIME - time.monotonic() if plan.hot else 0.0,
            )
        )
        began[name] = start.value = time.monotonic() + AHEAD
        there.wait(PATIENCE)
    seen: Seen = []
    for _ in crowd:
        seen += answers.get(timeout=PATIENCE)
    for process in crowd:
        process.join(PATIENCE)
    width = WARM_UP + plan.rounds
    counted = [list(loads)[at * width + WARM_UP : (at + 1) * width] for at in range(len(names))]
    measured = Measured(row, absent=absent)
    for at, name in enumerate(names):
        mine = [each for each in seen if each[0] == at and each[1] >= WARM_UP]
        measured.figures[name] = crowd_figure(name, OPENERS[row][name][0], mine, counted[at])
    return measured


def crowd_figure(name: str, how: str, seen: Seen, loads: list[int]) -> Figure:
    """Percentiles of the rounds' 99th percentiles, and the 99th percentile of all reads."""
    by_round: dict[int, list[float]] = {}
    for _, at, took, _ in seen:
        by_round.setdefault(at, []).append(took)
    worst = [percentile(each, 99) for each in by_round.values()]
    marks = [percentile(worst, percent) for percent in (10, 50, 90)]
    took, late = [each[2] for each in seen], [each[3] for each in seen]
    extra = {
        "p99": percentile(took, 99),
        "p50_read": percentile(took, 50),
        "p99_scheduled": percentile(late, 99),
        "loads": loads,
        "most_loads": max(loads),
    }
    return Figure(LIBRARIES.get(name, name), how, "seconds", *marks, len(worst), len(seen), extra)


@dataclass
class Ledger:
    """Loads of each contestant and round, of all processes; *at* is the round of this process."""

    plan: Plan
    loads: Any
    at: int = 0

    def noting(self, name: int) -> Note:
        def note() -> None:
            with self.loads.get_lock():
                self.loads[name * (WARM_UP + self.plan.rounds) + self.at] += 1

        return note


def _process(plan: Plan, start: Any, there: Any, loads: Any, answers: Any) -> None:
    ledger = Ledger(plan, loads)
    if plan.tasks:
        answers.put(asyncio.run(_in_tasks(plan, start, there, ledger)))
    else:
        answers.put(_in_threads(plan, start, there, ledger))


def _in_threads(plan: Plan, start: Any, there: Any, ledger: Ledger) -> Seen:
    seen: Seen = []

    def reader(name: int, at: int, due: float) -> None:
        time.sleep(max(0.0, due - time.monotonic()))
        began = time.monotonic()
        reads[name](0 if plan.hot else at)
        ended = time.monotonic()
        seen.append((name, at, ended - began, ended - due))

    with ExitStack() as stack:
        reads = [
            OPENERS[plan.row][text][1](stack, plan, _loader(ledger.noting(name)))
            for name, text in enumerate(plan.names)
        ]
        for at, name in plan.turns():
            there.wait(PATIENCE)
            ledger.at = at
            there.wait(PATIENCE)
            threads = [Thread(target=reader, args=(name, at, start.value)) for _ in range(READERS)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        time.sleep(REST + 2 * LOAD_TIME)  # a load in the background belongs to the last round, too
    return seen


def _loader(note: Note) -> Callable[[int], int]:
    def load(key: int) -> int:
        note()
        time.sleep(LOAD_TIME)
        return key

    return load


async def _in_tasks(plan: Plan, start: Any, there: Any, ledger: Ledger) -> Seen:
    seen: Seen = []

    async def reader(name: int, at: int, due: float) -> None:
        await asyncio.sleep(max(0.0, due - time.monotonic()))
        began = time.monotonic()
        await reads[name](0 if plan.hot else at)
        ended = time.monotonic()
        seen.append((name, at, ended - began, ended - due))

    async with AsyncExitStack() as stack:
        reads = [
            await OPENERS[plan.row][text][1](stack, plan, _aloader(ledger.noting(name)))
            for name, text in enumerate(plan.names)
        ]
        for at, name in plan.turns():
            await asyncio.to_thread(there.wait, PATIENCE)
            ledger.at = at
            await asyncio.to_thread(there.wait, PATIENCE)
            await asyncio.gather(*(reader(name, at, start.value) for _ in range(READERS)))
        await asyncio.sleep(REST + 2 * LOAD_TIME)  # a load in the background belongs to the last round, too
    return seen


def _aloader(note: Note) -> Callable[[int], Any]:
    async def load(key: int) -> int:
        note()
        await asyncio.sleep(LOAD_TIME)
        return key

    return load
