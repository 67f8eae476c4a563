"""Processes that read and write through one cache while something happens to it, and what they saw.

Each row of the "database" (a plain Redis) is the number of its last write. A write is acknowledged when its
invalidation is; whoever then reads an older number has read something stale.
"""

from __future__ import annotations

import json
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from tests.support.fleet import Process
from tests.support.redis_server import RedisServer

SCRIPT = """
import asyncio, json, os, random, sys, threading, time, traceback
import redis, redis.asyncio
from cacheguard import CacheGuard, Policy
from cacheguard.errors import Unreachable

url, db, colour, l1, rows, pause, seed, more = sys.argv[1:]
rows, pause, dice = int(rows), float(pause), random.Random(int(seed))
guard = CacheGuard(url, policy=Policy(ttl="1h", jitter=None, l1=l1 == "l1"), on_unreachable="raise",
                   max_loads=64, **json.loads(more))
ACK = ("local old = tonumber(redis.call('HGET', KEYS[1], 'version') or '0') if tonumber(ARGV[1]) > old then "
       "redis.call('HSET', KEYS[1], 'version', ARGV[1], 'at', ARGV[2]) end")
seen = {"reads": 0, "many": 0, "writes": 0, "queued": 0, "errors": [], "stale": [], "wrong": [], "slow": [],
        "acks": [], "sizes": []}
acked = {}   # by row: the acknowledged versions that this process knows of, and when they were
over = threading.Event()

def note_ack(row, found):
    if found[0] is not None:
        known = acked.setdefault(row, [])
        if not known or known[-1][0] < int(found[0]):
            known.append((int(found[0]), float(found[1])))

def judge(row, began, value):
    if value[0] != row:
        seen["wrong"].append([began, row, value])
    # Only what was acknowledged before this read began counts.
    newer = [at for version, at in acked.get(row, []) if version > value[1] and at <= began]
    if newer:
        seen["stale"].append([began, began - newer[0], row, value[1]])

def done(kind, began):
    took = time.monotonic() - began
    if took > 0.1:
        seen["slow"].append([began, kind, took])

def fail(kind, error):
    seen["errors"].append([time.monotonic(), kind, repr(error), traceback.format_exc()[-1500:]])

def tags_of(row):
    return [f"tag{row % 5}"] if row % 4 == 0 else []

def names():
    return [dice.randrange(rows) for _ in range(6)]

def size():
    seen["sizes"].append([time.monotonic(), len(os.listdir("/proc/self/fd")), threading.active_count()])

def blocking(writes):
    database = redis.Redis.from_url(db, socket_timeout=30)
    def load(row):
        return [row, int(database.get(f"db:{row}") or 0)]
    while not over.is_set():
        row, kind = dice.randrange(rows), "write" if writes else "read"
        began = time.monotonic()
        try:
            if writes:
                version = database.incr(f"db:{row}")
                began = time.monotonic()
                try:
                    if tags_of(row) and dice.random() < 0.5:
                        guard.invalidate_tags(*tags_of(row))
                    else:
                        guard.invalidate(f"row:{row}")
                except Unreachable:
                    seen["queued"] += 1
                else:
                    at = time.monotonic()
                    seen["acks"].append(at)
                    database.eval(ACK, 1, f"acked:{row}", version, at)
                seen["writes"] += 1
                done(kind, began)
                time.sleep(5 * pause * dice.random())
            elif dice.random() < 0.1:
                kind, some = "many", names()
                for each in some:
                    note_ack(each, database.hmget(f"acked:{each}", "version", "at"))
                began = time.monotonic()
                found = guard.get_or_set_many([f"row:{each}" for each in some if not tags_of(each)],
                    lambda keys: {key: load(int(key[4:])) for key in keys})
                done(kind, began)
                for key, value in found.items():
                    judge(int(key[4:]), began, value)
                seen["many"] += 1
            else:
                note_ack(row, database.hmget(f"acked:{row}", "version", "at"))
                began = time.monotonic()
                value = guard.get_or_set(f"row:{row}", lambda: load(row), tags=tags_of(row))
                done(kind, began)
                judge(row, began, value)
                seen["reads"] += 1
        except Exception as error:
            fail(kind, error)
        time.sleep(pause * dice.random())
    database.close()

async def running(writes):
    database = redis.asyncio.Redis.from_url(db, socket_timeout=30)
    async def load(row):
        return [row, int(await database.get(f"db:{row}") or 0)]
    async def load_many(keys):
        return {key: await load(int(key[4:])) for key in keys}
    while not over.is_set():
        row, kind = dice.randrange(rows), "awrite" if writes else "aread"
        began = time.monotonic()
        try:
            if writes:
                version = await database.incr(f"db:{row}")
                began = time.monotonic()
                try:
                    if tags_of(row) and dice.random() < 0.5:
                        await guard.ainvalidate_tags(*tags_of(row))
                    else:
                        await guard.ainvalidate(f"row:{row}")
                except Unreachable:
                    seen["queued"] += 1
                else:
                    at = time.monotonic()
                    seen["acks"].append(at)
                    await database.eval(ACK, 1, f"acked:{row}", version, at)
                seen["writes"] += 1
                done(kind, began)
                await asyncio.sleep(5 * pause * dice.random())
            elif dice.random() < 0.1:
                kind, some = "amany", names()
                for each in some:
                    note_ack(each, await database.hmget(f"acked:{each}", "version", "at"))
                began = time.monotonic()
                found = await guard.aget_or_set_many([f"row:{each}" for each in some if not tags_of(each)], load_many)
                done(kind, began)
                for key, value in found.items():
                    judge(int(key[4:]), began, value)
                seen["many"] += 1
            else:
                note_ack(row, await database.hmget(f"acked:{row}", "version", "at"))
                began = time.monotonic()
                value = await guard.aget_or_set(f"row:{row}", lambda: load(row), tags=tags_of(row))
                done(kind, began)
                judge(row, began, value)
                seen["reads"] += 1
        except Exception as error:
            fail(kind, error)
        await asyncio.sleep(pause * dice.random())
    await database.aclose()

def listen():
    sys.stdin.readline()
    over.set()

threading.Thread(target=listen, daemon=True).start()

def report():
    stats = guard.stats()
    names = ("loads", "l1_hits", "l2_hits", "redis_errors", "replayed", "invalidations_queued", "bus_gaps",
             "fills", "fills_refused", "replica_hits", "replica_passes")
    seen["stats"] = {name: getattr(stats, name, None) for name in names}
    for name in ("stale", "wrong", "errors", "slow"):
        seen[name] = seen[name][:2000]

async def in_a_loop():
    work = [asyncio.create_task(running(number == 0)) for number in range(4)]
    print("ready", flush=True)
    while not over.is_set():
        size()
        await asyncio.sleep(0.5)
    await asyncio.gather(*work)
    report()
    await guard.aclose()

if colour == "async":
    asyncio.run(in_a_loop())
else:
    work = [threading.Thread(target=blocking, args=(number == 0,)) for number in range(4)]
    for each in work: each.start()
    print("ready", flush=True)
    while not over.is_set():
        size()
        over.wait(0.5)
    for each in work: each.join()
    report()
    guard.close()
print(json.dumps(seen), flush=True)
"""


@dataclass
class Seen:
    """What all processes together saw; times are monotonic seconds, which all processes of a machine share."""

    processes: list[dict[str, Any]]
    kinds: list[tuple[str, str]]

    def total(self, name: str) -> int:
        return sum(each[name] for each in self.processes)

    def all(self, name: str) -> list[Any]:
        return sorted(one for each in self.processes for one in each[name])

    def stat(self, name: str) -> int:
        return sum(each["stats"][name] or 0 for each in self.processes)

    def stale(self, *, l1: str | None = None) -> list[Any]:
        """Reads of something older than acknowledged: when, for how long it had been acknowledged, which row, what."""
        pairs = zip(self.kinds, self.processes, strict=True)
        return sorted(one for (_, tier), each in pairs if l1 in {None, tier} for one in each["stale"])

    def first_acks_after(self, moment: float) -> list[float]:
        """By process, how many seconds later the next write was acknowledged."""
        return [
            min((at for at in each["acks"] if at > moment), default=float("inf")) - moment for each in self.processes
        ]

    def slow_after(self, moment: float, until: float) -> list[Any]:
        return [one for one in self.all("slow") if moment < one[0] < until]

    @property
    def summary(self) -> str:
        names = ("reads", "many", "writes", "queued")
        counts = ", ".join(f"{self.total(name)} {name}" for name in names)
        lists = ", ".join(f"{len(self.all(name))} {name}" for name in ("errors", "stale", "wrong"))
        stats = ", ".join(f"{name}={self.stat(name)}" for name in self.processes[0]["stats"])
        return f"{counts}; {lists}; {stats}"


@dataclass
class Traffic:
    """Readers and writers of both doors, with and without L1, each kind in a process of its own."""

    url: str
    database: RedisServer
    rows: int = 60
    pause: float = 0.02
    kinds: list[tuple[str, str]] = field(
        default_factory=lambda: [("blocking", "l1"), ("blocking", "no"), ("async", "l1"), ("async", "no")]
    )
    options: dict[str, Any] = field(default_factory=dict)

    def __enter__(self) -> Self:
        self.processes = [
            Process(
                SCRIPT, self.url, self.database.url, colour, l1, self.rows, self.pause, seed, json.dumps(self.options)
            )
            for seed, (colour, l1) in enumerate(self.kinds)
        ]
        for process in self.processes:
            assert process.hear() == "ready"
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.processes:
            process.kill()

    def stop(self) -> Seen:
        """Let all come to an end."""
        for process in self.processes:
            process.tell()
        outcomes: list[Any] = [None] * len(self.processes)

        def collect(at: int) -> None:
            outcomes[at] = self.processes[at].outcome(120)

        threads = [threading.Thread(target=collect, args=(at,)) for at in range(len(self.processes))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert None not in outcomes
        return Seen(outcomes, self.kinds)


def database_in(binary: Path, directory: Path) -> RedisServer:
    """A plain server that stands for the database."""
    return RedisServer(binary, directory).start()


def moment() -> float:
    return time.monotonic()
