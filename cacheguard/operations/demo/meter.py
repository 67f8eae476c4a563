"""Counting at the database, for all processes together."""

from __future__ import annotations

import time
from collections.abc import Generator
from contextlib import contextmanager
from multiprocessing.context import SpawnContext
from typing import Any, Protocol

BUCKET = 0.1  # seconds
BUCKETS = 1200  # two minutes


class Gate(Protocol):
    """A lock or semaphore that processes share."""

    def acquire(self) -> bool: ...
    def release(self) -> None: ...


class Meter:
    """Numbers in shared memory: queries in all, at the peak and per 100 ms, requests answered, prices acknowledged.

    Made once by the parent and handed to each worker as it is spawned. Nothing is counted before `start`.
    """

    def __init__(self, context: SpawnContext, products: int, slots: int) -> None:
        # Raw shared arrays of ctypes numbers have no useful static type.
        self._gate: Gate = context.Lock()
        self._slots: Gate = context.Semaphore(slots)
        self._began: Any = context.RawValue("d", 0.0)
        self._total: Any = context.RawValue("q", 0)
        self._active: Any = context.RawValue("q", 0)
        self._peak: Any = context.RawValue("q", 0)
        self._answered: Any = context.RawArray("q", 64)
        self._queries: Any = context.RawArray("q", BUCKETS)
        self._acknowledged: Any = context.RawArray("q", products + 1)

    def reset(self) -> None:
        """Forget what the last run counted; no worker may be busy."""
        self._began.value = 0.0
        self._total.value = self._peak.value = 0
        self._answered[:] = [0] * len(self._answered)
        self._queries[:] = [0] * BUCKETS

    def start(self, began: float) -> None:
        """Count from *began* (monotonic seconds) on."""
        self._began.value = began

    @contextmanager
    def query(self) -> Generator[None]:
        """One query from its arrival at the database to its answer; it waits in line if the database is busy."""
        self._arrive()
        try:
            self._slots.acquire()
            try:
                yield
            finally:
                self._slots.release()
        finally:
            self._gate.acquire()
            self._active.value -= 1
            self._gate.release()

    def _arrive(self) -> None:
        now, began = time.monotonic(), self._began.value
        self._gate.acquire()
        try:
            self._active.value += 1
            if 0 < began <= now:
                self._total.value += 1
                self._peak.value = max(self._peak.value, self._active.value)
                self._queries[min(BUCKETS - 1, int((now - began) / BUCKET))] += 1
        finally:
            self._gate.release()

    def answered(self, worker: int) -> None:
        """Note one answered request; for the eyes only, so threads of one worker may overlook each other."""
        self._answered[worker] += 1

    def acknowledge(self, product: int, revision: int) -> None:
        """*revision* of a product is committed and its invalidation has returned."""
        self._gate.acquire()
        try:
            self._acknowledged[product] = max(self._acknowledged[product], revision)
        finally:
            self._gate.release()

    def acknowledged(self, product: int) -> int:
        """The newest revision of a product that every reader from now on must see."""
        revision: int = self._acknowledged[product]
        return revision

    @property
    def total(self) -> int:
        """Queries since the start."""
        return int(self._total.value)

    @property
    def peak(self) -> int:
        """Most queries at the database at one moment, running or waiting."""
        return int(self._peak.value)

    @property
    def done(self) -> int:
        """Requests answered, roughly."""
        return sum(self._answered)

    def timeline(self) -> list[int]:
        """Queries in each 100 ms since the start, up to the last that had any."""
        counts = list(self._queries)
        while counts and counts[-1] == 0:
            counts.pop()
        return counts
