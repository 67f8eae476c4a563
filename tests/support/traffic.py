"""Requests that come by the clock, whatever becomes of those before: from threads and from an event loop at once."""

from __future__ import annotations

import asyncio
import itertools
import random
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Self

from cacheguard import CacheGuard


@dataclass(slots=True)
class Answer:
    """One request: when it began and how long it took, in seconds, and what went wrong."""

    at: float
    took: float
    key: str
    problem: str = ""


@dataclass
class Database:
    """What all requests fall on in the end: every value names its key, every load is written down."""

    seconds: float = 0.02
    loads: list[tuple[float, float, str]] = field(default_factory=list)
    active: int = 0
    peak: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def begin(self) -> float:
        with self._lock:
            self.active += 1
            self.peak = max(self.peak, self.active)
        return time.monotonic()

    def end(self, began: float, key: str) -> str:
        with self._lock:
            self.active -= 1
            self.loads.append((began, time.monotonic(), key))
        return f"value of {key}"

    def load(self, key: str) -> str:
        began = self.begin()
        time.sleep(self.seconds)
        return self.end(began, key)

    async def aload(self, key: str) -> str:
        began = self.begin()
        await asyncio.sleep(self.seconds)
        return self.end(began, key)

    def between(self, begin: float, end: float) -> list[tuple[float, float, str]]:
        return [load for load in self.loads if begin <= load[0] < end]

    def per_key(self, begin: float, end: float) -> Counter[str]:
        return Counter(key for _, _, key in self.between(begin, end))


class Traffic:
    """So many requests a second, half of them from threads, half from the tasks of one event loop.

    Args:
        keys: how many there are; each request draws one.
        rate: requests in a second.
        threads: of the blocking half; they must suffice for what is slow.
    """

    def __init__(
        self,
        guard: CacheGuard,
        database: Database,
        *,
        keys: int = 100,
        rate: float = 500,
        threads: int = 24,
        **policy: Any,
    ) -> None:
        self.guard, self.database = guard, database
        self.answers: list[Answer] = []
        self._policy, self._keys, self._rate = policy, keys, rate
        self._over = threading.Event()
        self._numbers = itertools.count()
        self._draws = random.Random(3)
        self._began = 0.0

        @guard.cached("row:{key}", **policy)
        def row(key: str) -> str:
            return database.load(key)

        @guard.cached("arow:{key}", **policy)
        async def arow(key: str) -> str:
            return await database.aload(key)

        self.row, self.arow = row, arow
        self._threads = [threading.Thread(target=self._block, daemon=True) for _ in range(threads)]
        self._threads.append(threading.Thread(target=lambda: asyncio.run(self._loop()), daemon=True))

    def __enter__(self) -> Self:
        self._began = time.monotonic()
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(10)
        hanging = [thread for thread in self._threads if thread.is_alive()]
        assert not hanging, f"{len(hanging)} threads hang"

    def _key(self) -> str:
        return str(self._draws.randrange(self._keys))

    def _note(self, at: float, key: str, got: object) -> None:
        problem = "" if got == f"value of {key}" else repr(got)
        self.answers.append(Answer(at, time.monotonic() - at, key, problem))

    def _block(self) -> None:
        while not self._over.is_set():
            due = self._began + next(self._numbers) * 2 / self._rate
            time.sleep(max(0.0, due - time.monotonic()))
            key, at = self._key(), time.monotonic()
            try:
                got: object = self.row(key)
            except BaseException as error:  # noqa: BLE001 - it is reported
                got = error
            self._note(at, key, got)

    async def _loop(self) -> None:
        tasks: set[asyncio.Task[None]] = set()
        for number in itertools.count():
            if self._over.is_set():
                break
            await asyncio.sleep(max(0.0, self._began + number * 2 / self._rate - time.monotonic()))
            task = asyncio.ensure_future(self._request())
            tasks.add(task)
            task.add_done_callback(tasks.discard)
        await asyncio.gather(*tasks)

    async def _request(self) -> None:
        key, at = self._key(), time.monotonic()
        try:
            got: object = await self.arow(key)
        except BaseException as error:  # noqa: BLE001 - it is reported
            got = error
        self._note(at, key, got)

    def between(self, begin: float, end: float) -> list[Answer]:
        return [answer for answer in self.answers if begin <= answer.at < end]

    @property
    def problems(self) -> list[str]:
        """Wrong values and exceptions."""
        return [f"{answer.key}: {answer.problem}" for answer in self.answers if answer.problem]


def percentile(values: list[float], share: float) -> float:
    """The value below which *share* of *values* lie."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0
