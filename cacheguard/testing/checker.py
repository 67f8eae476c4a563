"""Detects stale reads: values older than an invalidation that was acknowledged before the read."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from bisect import bisect_right
from collections.abc import Awaitable, Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

MOST_KEPT = 1000
MOST_SHOWN = 5
LONGEST_PAUSE = 0.002  # seconds between two changes


@dataclass(frozen=True, slots=True)
class StaleRead:
    """A read that returned an older version than it may.

    Args:
        key: the key that was read.
        version: the version that was returned.
        least: the newest version that had been acknowledged when the read began.
        began: start of the read, in seconds since the checker was made.
        ended: end of the read, likewise.
        reader: the thread or the task.
    """

    key: str
    version: int
    least: int
    began: float
    ended: float
    reader: str


class Reading:
    """One read that is under way."""

    __slots__ = ("began", "key", "least", "version")

    began: float
    key: str
    least: int

    def __init__(self, key: str, began: float, least: int) -> None:
        self.key, self.began, self.least = key, began, least
        self.version: int | None = None

    def got(self, version: int | None) -> None:
        """Report what the read returned. None: no value, which is never stale."""
        self.version = version


class StalenessChecker:
    """Detects stale reads: a read that begins after an invalidation was acknowledged, and returns an older version.

    Versions of a key are numbers that only grow. The checker contains a database of them (`load`, `commit`). The cache
    under test caches `load`; a change is `commit`, the cache's invalidation, then `acknowledged`: see `change`. `check`
    reads and checks, `exercise` does all of it from several threads, `aexercise` from several tasks; `verify` raises if
    a read was stale. With your own database, report what happens with `acknowledged` and `reading`.

    Jepsen checks the histories of registers in the same way: a read that misses a write which ended before it began.

    Args:
        dawdle: longest time, in seconds, between the moment when a load reads the database and its return; random for
            each load. This is the race: a loaded value may be old before it reaches the cache.
        grace: seconds after an acknowledgement in which the older version may still be read, such as from the L1 of
            another process, which receives the invalidation a moment later.
        seed: of the random numbers.
    """

    changes: int
    checked: int
    dawdle: float
    grace: float
    reads: int

    def __init__(self, *, dawdle: float = 0.0, grace: float = 0.0, seed: int = 0) -> None:
        self.dawdle, self.grace = dawdle, grace
        self.stale: list[StaleRead] = []
        self.reads = self.checked = self.changes = 0
        self._random = random.Random(seed)
        self._lock = threading.Lock()
        self._database: dict[str, int] = {}
        self._acknowledged: dict[str, tuple[list[float], list[int]]] = {}  # times and versions: both only grow
        self._began = time.monotonic()

    # The database

    def load(self, key: str) -> int:
        """The version of *key* in the database, 0 before the first change; what the cache under test caches."""
        version = self._database.get(key, 0)
        time.sleep(self._random.random() * self.dawdle)
        return version

    async def aload(self, key: str) -> int:
        """`load`, to be awaited."""
        version = self._database.get(key, 0)
        await asyncio.sleep(self._random.random() * self.dawdle)
        return version

    def commit(self, key: str) -> int:
        """Give *key* a new version in the database, and return it."""
        with self._lock:
            version = self._database[key] = self._database.get(key, 0) + 1
        return version

    # What happens to the cache

    def acknowledged(self, key: str, version: int) -> None:
        """Report that the invalidation for *version* of *key* has returned: later reads must not be older."""
        with self._lock:
            self.changes += 1
            times, versions = self._acknowledged.setdefault(key, ([], []))
            if versions and versions[-1] >= version:
                return
            times.append(time.monotonic())
            versions.append(version)
            forgotten = bisect_right(times, times[-1] - self.grace) - 1
            if forgotten > 0:
                del times[:forgotten], versions[:forgotten]

    @contextmanager
    def reading(self, key: str) -> Generator[Reading]:
        """Report one read: ``with checker.reading(key) as read: read.got(…)``. A read that raises does not count."""
        began = time.monotonic()
        read = Reading(key, began, self._least(key, began))
        yield read
        self._judge(read)

    def _least(self, key: str, began: float) -> int:
        with self._lock:
            times, versions = self._acknowledged.get(key, ((), ()))
            known = bisect_right(times, began - self.grace)
            return versions[known - 1] if known else 0

    def _judge(self, read: Reading) -> None:
        ended = time.monotonic()
        with self._lock:
            self.reads += 1
            self.checked += read.least > 0
            if read.version is not None and read.version < read.least and len(self.stale) < MOST_KEPT:
                began, ended = read.began - self._began, ended - self._began
                self.stale.append(StaleRead(read.key, read.version, read.least, began, ended, _who()))

    def check(self, read: Callable[[str], int | None], key: str) -> int | None:
        """Read *key* through the cache, check the version, and return it."""
        with self.reading(key) as reading:
            reading.got(read(key))
        return reading.version

    async def acheck(self, read: Callable[[str], Awaitable[int | None]], key: str) -> int | None:
        """`check`, with a coroutine function."""
        with self.reading(key) as reading:
            reading.got(await read(key))
        return reading.version

    def change(self, invalidate: Callable[[str], object], key: str) -> int:
        """Commit a new version of *key*, invalidate it in the cache, and report it as acknowledged. Return it."""
        version = self.commit(key)
        invalidate(key)
        self.acknowledged(key, version)
        return version

    async def achange(self, invalidate: Callable[[str], Awaitable[object]], key: str) -> int:
        """`change`, with a coroutine function."""
        version = self.commit(key)
        await invalidate(key)
        self.acknowledged(key, version)
        return version

    # Concurrently

    def exercise(
        self,
        read: Callable[[str], int | None],
        invalidate: Callable[[str], object],
        *,
        keys: Sequence[str] = ("a", "b", "c"),
        readers: int = 4,
        writers: int = 2,
        seconds: float = 1.0,
    ) -> None:
        """Read and change *keys* from several threads for *seconds*; then read each key once more.

        Args:
            read: reads a key through the cache, which loads by `load`.
            invalidate: invalidates a key in the cache.
            keys: use few, so that readers and writers meet.
            readers: the number of threads that read.
            writers: the number of threads that change.
            seconds: of real time.

        Raises:
            Exception: the first one that *read* or *invalidate* raised.
        """
        end, errors = time.monotonic() + seconds, list[BaseException]()

        def until_the_end(step: Callable[[str], object], longest_pause: float) -> None:
            draw = random.Random(self._random.random())
            try:
                while time.monotonic() < end and not errors:
                    step(draw.choice(keys))
                    time.sleep(draw.random() * longest_pause)
            except BaseException as error:  # noqa: BLE001 - raised again in the thread that asked for it
                errors.append(error)

        def one_read(key: str) -> object:
            return self.check(read, key)

        def one_change(key: str) -> object:
            return self.change(invalidate, key)

        threads = [threading.Thread(target=until_the_end, args=(one_read, 0.0)) for _ in range(readers)]
        threads += [threading.Thread(target=until_the_end, args=(one_change, LONGEST_PAUSE)) for _ in range(writers)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if errors:
            raise errors[0]
        for key in keys:
            self.check(read, key)

    async def aexercise(
        self,
        read: Callable[[str], Awaitable[int | None]],
        invalidate: Callable[[str], Awaitable[object]],
        *,
        keys: Sequence[str] = ("a", "b", "c"),
        readers: int = 4,
        writers: int = 2,
        seconds: float = 1.0,
    ) -> None:
        """`exercise` with coroutine functions, from tasks; their exceptions are raised as an `ExceptionGroup`."""
        end = time.monotonic() + seconds

        async def until_the_end(step: Callable[[str], Awaitable[object]], longest_pause: float) -> None:
            while time.monotonic() < end:
                await step(self._random.choice(keys))
                await asyncio.sleep(self._random.random() * longest_pause)

        async with asyncio.TaskGroup() as group:
            for _ in range(readers):
                group.create_task(until_the_end(lambda key: self.acheck(read, key), 0.0))
            for _ in range(writers):
                group.create_task(until_the_end(lambda key: self.achange(invalidate, key), LONGEST_PAUSE))
        for key in keys:
            await self.acheck(read, key)

    def verify(self) -> None:
        """Raise `AssertionError` if a read was stale, or if no read was made that could have been stale."""
        if self.stale:
            shown = "\n".join(map(_said, self.stale[:MOST_SHOWN]))
            raise AssertionError(f"{len(self.stale)} of {self.reads} reads were stale:\n{shown}")
        if not self.checked:
            raise AssertionError(
                f"no read began after an acknowledged invalidation ({self.reads} reads): nothing is shown"
            )


def _said(read: StaleRead) -> str:
    return (
        f"  {read.key!r}: version {read.version}, although {read.least} was acknowledged before the read began "
        f"(from {read.began:.4f} s to {read.ended:.4f} s, in {read.reader})"
    )


def _who() -> str:
    try:
        task: asyncio.Task[Any] | None = asyncio.current_task()
    except RuntimeError:
        task = None
    return threading.current_thread().name if task is None else task.get_name()
