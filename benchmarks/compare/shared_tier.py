"""Rows of the tier in Redis: hits, batches and misses, through threads' and through the event loop's door."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, ExitStack
from itertools import count
from time import perf_counter
from typing import Any

import redis

from benchmarks.compare.figures import Measured, Timed
from benchmarks.compare.peers import awaiting, blocking
from benchmarks.compare.peers.setting import RECORDS, TEXT, Opened, Setting, Store, aopen_all, open_all
from benchmarks.compare.racing import AsyncRun, Contestant, Run, arace, awaits, calls, race

NUMBERS = range(1_000, 1_100)
CROWD = 50

Openers = dict[str, Any]
MakeRun = Callable[[Store], tuple[str, Run | AsyncRun] | None]


class Commands:
    """How many commands the server has executed for clients: a hit that asks nobody is no hit in Redis."""

    def __init__(self, url: str) -> None:
        self._client: Any = redis.Redis.from_url(url)

    def count(self) -> int:
        """All but what this class and background work ask: INFO, PING, CLIENT, and the like."""
        quiet = ("info", "ping", "client", "hello", "subscribe", "publish", "config", "auth", "select", "command")
        stats = self._client.info("commandstats")
        return sum(each["calls"] for name, each in stats.items() if not name[8:].startswith(quiet))

    def close(self) -> None:
        self._client.close()


def hit_rounds(store: Store) -> tuple[str, Run]:
    return store.how, calls(store.hit, NUMBERS)


def ahit_rounds(store: Store) -> tuple[str, AsyncRun]:
    return store.how, awaits(store.hit, NUMBERS)


def crowd_rounds(store: Store) -> tuple[str, AsyncRun]:
    """50 tasks at once, until the numbers are used up."""
    groups = [NUMBERS[at : at + CROWD] for at in range(0, len(NUMBERS), CROWD)]

    async def run() -> Timed:
        done, began = 0, perf_counter()
        for group in groups:
            done += len(await asyncio.gather(*(store.hit(number) for number in group)))
        return Timed(perf_counter() - began, done)

    return store.how, run


def many_rounds(store: Store) -> tuple[str, Run] | None:
    """One batch, which has to find every key."""
    if store.many is None:
        return None
    read = store.many(NUMBERS)
    _check(store, len(read()))

    def run() -> Timed:
        began = perf_counter()
        read()
        return Timed(perf_counter() - began, 1)

    return store.how_many, run


def amany_rounds(store: Store) -> tuple[str, AsyncRun] | None:
    """The same, awaited; it is checked by `_check_answers`."""
    if store.many is None:
        return None
    read: Callable[[], Awaitable[Any]] = store.many(NUMBERS)

    async def run() -> Timed:
        began = perf_counter()
        found = await read()
        took = perf_counter() - began
        _check(store, len(found))
        return Timed(took, 1)

    return store.how_many, run


def miss_rounds(store: Store) -> tuple[str, Run] | None:
    """Numbers that nobody has asked for."""
    if store.miss is None:
        return None
    fresh, miss = count(10_000), store.miss
    return store.how_miss, calls(lambda _: miss(next(fresh)), NUMBERS)


def amiss_rounds(store: Store) -> tuple[str, AsyncRun] | None:
    """The same, awaited."""
    if store.miss is None:
        return None
    fresh, miss = count(10_000), store.miss
    return store.how_miss, awaits(lambda _: miss(next(fresh)), NUMBERS)


def _check(store: Store, found: int) -> None:
    if found != len(NUMBERS):
        raise RuntimeError(f"{store.library}: a batch has to find all {len(NUMBERS)} keys, got {found}")


def _line_up(opened: Opened, make: MakeRun) -> dict[str, Contestant]:
    contestants = {}
    for name, store in opened.stores.items():
        made = make(store)
        if made is None:
            continue
        how, run = made
        contestants[name] = Contestant(store.library, how, run)
    return contestants


def measure(row: str, setting: Setting, openers: Openers, make: MakeRun, rounds: int) -> Measured:
    """Open, fill, check that each gives back the value, race, and count the commands of one more round."""
    with ExitStack() as stack:
        opened = open_all(stack, openers, setting)
        for store in opened.stores.values():
            for number in NUMBERS:
                store.fill(number)
            if store.hit(NUMBERS[0]) != setting.value:
                raise RuntimeError(f"{store.library}: a hit gave something else than was stored")
        contestants = _line_up(opened, make)
        measured = race(row, contestants, rounds)
        commands = Commands(setting.url)
        for name, each in contestants.items():
            before = commands.count()
            timed = each.run()
            measured.figures[name].extra["commands"] = round((commands.count() - before) / timed.operations, 2)
        commands.close()
    measured.absent = opened.absent
    return measured


async def ameasure(row: str, setting: Setting, openers: Openers, make: MakeRun, rounds: int) -> Measured:
    """The same through the event loop."""
    async with AsyncExitStack() as stack:
        opened = await aopen_all(stack, openers, setting)
        for store in opened.stores.values():
            for number in NUMBERS:
                await store.fill(number)
            if await store.hit(NUMBERS[0]) != setting.value:
                raise RuntimeError(f"{store.library}: a hit gave something else than was stored")
        contestants = _line_up(opened, make)
        measured = await arace(row, contestants, rounds)
        commands = Commands(setting.url)
        for name, each in contestants.items():
            before = commands.count()
            timed = await each.run()
            measured.figures[name].extra["commands"] = round((commands.count() - before) / timed.operations, 2)
        commands.close()
    measured.absent = opened.absent
    return measured


# row → value, who takes part, what a round does, and its rounds
SYNC: dict[str, tuple[Any, Openers, MakeRun, int]] = {
    "l2-100B": (TEXT, blocking.ALL, hit_rounds, 80),
    "l2-10kB": (RECORDS, {**blocking.ALL, **blocking.ANNOTATED}, hit_rounds, 50),
    "many-100B": (TEXT, blocking.ALL, many_rounds, 100),
    "many-10kB": (RECORDS, {**blocking.ALL, **blocking.ANNOTATED}, many_rounds, 30),
    "miss": (TEXT, blocking.ALL, miss_rounds, 30),
    "tags": (TEXT, blocking.TAGGED, hit_rounds, 80),
    "secret": (TEXT, blocking.SECRET, hit_rounds, 80),
    "nested": (TEXT, blocking.NESTED, hit_rounds, 80),
    "features-miss": (TEXT, blocking.EVERYTHING, miss_rounds, 30),
}
ASYNC: dict[str, tuple[Any, Openers, MakeRun, int]] = {
    "l2-100B-async": (TEXT, awaiting.ALL, ahit_rounds, 60),
    "l2-10kB-async": (RECORDS, awaiting.ALL, ahit_rounds, 40),
    "l2-50-tasks": (
        TEXT,
        {name: each for name, each in awaiting.ALL.items() if name != "bare streams"},
        crowd_rounds,
        60,
    ),
    "many-100B-async": (TEXT, awaiting.ALL, amany_rounds, 60),
    "many-10kB-async": (RECORDS, awaiting.ALL, amany_rounds, 30),
    "miss-async": (TEXT, awaiting.ALL, amiss_rounds, 25),
    "tags-async": (TEXT, awaiting.TAGGED, ahit_rounds, 60),
    "secret-async": (TEXT, awaiting.SECRET, ahit_rounds, 60),
    "nested-async": (TEXT, awaiting.NESTED, ahit_rounds, 60),
}


def run(row: str, url: str, share: float) -> Measured:
    """Measure *row*; *share* of its rounds are run."""
    value, openers, make, rounds = (SYNC | ASYNC)[row]
    count = max(3, round(rounds * share))
    if row in SYNC:
        return measure(row, Setting(url, value), openers, make, count)
    return asyncio.run(ameasure(row, Setting(url, value), openers, make, count))
