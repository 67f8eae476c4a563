"""Waiting by blocking the thread. Nothing here ever suspends."""

from __future__ import annotations

import contextvars
import math
import os
import random
import threading
import time
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from inspect import isawaitable
from typing import Any

from ..errors import CacheGuardError
from ..events import log
from ..ports import Commands, Signal, Watch
from . import run_now
from .bell import Bell
from .homes import ThreadHome

MOST_DETACHED = 32


class ThreadSignal:
    """A flag that is set once, and that threads wait for, each at a lock of its own.

    Those who wake up at one moment need nothing of each other: a `Bell` would hand them its one lock in turn. A signal
    handler may set it while it is being set.
    """

    __slots__ = ("_up", "_waiting")

    def __init__(self) -> None:
        self._up = False
        self._waiting: list[Any] = []  # locks, each held for the thread that waits at it

    def set(self) -> None:
        self._up = True
        waiting = self._waiting
        while waiting:
            try:
                lock = waiting.pop(0)
            except IndexError:  # another thread has taken the last one
                return
            lock.release()

    async def wait(self, timeout: float | None) -> bool:
        if self._up:
            return True
        lock = threading.Lock()
        lock.acquire()
        self._waiting.append(lock)
        if self._up:  # whoever has set it meanwhile may have looked before this lock was there
            return True
        try:
            lock.acquire(timeout=-1 if timeout is None else min(max(0.0, timeout), threading.TIMEOUT_MAX))
        finally:
            if not self._up:
                with suppress(ValueError):
                    self._waiting.remove(lock)
        return self._up


class _Job:
    """One running load under the keeper's eyes."""

    __slots__ = ("beat", "deadline", "due", "every", "jobs", "late")

    def __init__(self, jobs: set[_Job], beat: Any, every: float, late: Any, deadline: float | None) -> None:
        now = time.monotonic()
        self.jobs = jobs
        self.beat, self.every, self.late = beat, every, late
        self.due = now + every
        self.deadline = None if deadline is None else now + deadline

    def stop(self) -> None:
        self.jobs.discard(self)


class _Keeper:
    """One thread that renews the leases of every load in this process and ends those that take too long.

    It sleeps until the next thing is due, at most a second, and ends when it has been idle for a while.
    """

    IDLE = 5.0

    def __init__(self) -> None:
        self.jobs: set[_Job] = set()
        self._lock = threading.RLock()
        self._wake = Bell()
        self._thread: threading.Thread | None = None
        self._next = 0.0
        self._closed = False

    def add(self, job: _Job) -> None:
        soonest = job.due if job.deadline is None else min(job.due, job.deadline)
        with self._lock:
            self.jobs.add(job)
            if self._thread is None and not self._closed:
                self._thread = threading.Thread(target=self._run, name="cacheguard-keeper", daemon=True)
                self._thread.start()
        if soonest < self._next:
            self._wake.set()

    def _run(self) -> None:
        idle_since = time.monotonic()
        while True:
            now = time.monotonic()
            if self._look_after_all(now):
                idle_since = now
            with self._lock:
                if self._closed or (not self.jobs and now - idle_since > self.IDLE):
                    self._thread = None
                    return
            self._next = min((job.due for job in list(self.jobs)), default=now + 1.0)
            self._next = min([self._next, now + 1.0, *(job.deadline for job in list(self.jobs) if job.deadline)])
            self._wake.pause(max(0.0, self._next - time.monotonic()))
            self._wake.clear()

    def _look_after_all(self, now: float) -> bool:
        """Whether there was any: what this thread holds on to while it sleeps, nobody can let go of."""
        jobs = list(self.jobs)
        for job in jobs:
            try:
                self._look_after(job, now)
            except Exception:  # noqa: BLE001 - whatever it is, the other loads must be looked after
                log.exception("a load could not be looked after")
        return bool(jobs)

    def _look_after(self, job: _Job, now: float) -> None:
        if job.deadline is not None and now >= job.deadline:
            job.stop()
            run_now(job.late())
        elif now >= job.due:
            job.due = now + job.every
            run_now(job.beat())

    def close(self, until: float) -> None:
        with self._lock:
            self._closed = True
            thread = self._thread
        self._wake.set()
        if thread is not None and thread is not threading.current_thread():
            thread.join(max(0.0, until - time.monotonic()))


class BlockingRuntime:
    """Threads. A load runs in the thread of the caller that started it; only detached work gets its own."""

    random: Callable[[], float]

    def __init__(self, commands: Commands) -> None:
        self.commands = commands
        self.thread_ends: Sequence[Callable[[], object]] = ()  # called in each of our threads that has run loads
        self.now: Callable[[], float] = time.monotonic
        self.closed: bool = False
        self._reset()

    def _reset(self) -> None:
        self.random = random.Random(os.urandom(16)).random  # anew in a forked child, or all of them would draw alike
        self._keeper = _Keeper()
        self._detached: set[threading.Thread] = set()

    def token(self) -> str:
        return os.urandom(16).hex()

    def here(self) -> ThreadHome:
        return ThreadHome()

    def later(self, seconds: float, what: Callable[[], None]) -> None:
        async def late() -> None:
            what()

        self._keeper.add(_Job(self._keeper.jobs, late, math.inf, late, seconds))

    async def sleep(self, seconds: float, until: Signal | None = None) -> None:
        if until is None:
            time.sleep(seconds)
        else:
            await until.wait(seconds)

    def signal(self) -> Signal:
        return ThreadSignal()

    async def start(self, work: Coroutine[Any, Any, None], *, detached: bool) -> bool:
        if not detached:
            await work
            return True
        if self.closed or len(self._detached) >= MOST_DETACHED:
            work.close()
            return False
        context = contextvars.copy_context()
        thread = threading.Thread(target=lambda: self._run(context, work), name="cacheguard-load", daemon=True)
        self._detached.add(thread)
        try:
            thread.start()
        except RuntimeError:  # the system has no thread to give
            self._detached.discard(thread)
            work.close()
            return False
        return True

    def _run(self, context: contextvars.Context, work: Coroutine[Any, Any, None]) -> None:
        try:
            context.run(run_now, work)
        finally:
            context.run(self._thread_ends)
            self._detached.discard(threading.current_thread())

    def _thread_ends(self) -> None:
        """Let others close what the loads have opened in this thread: nobody else can."""
        for end in tuple(self.thread_ends):
            try:
                end()
            except Exception:  # noqa: BLE001 - whatever it is, the others must be called
                log.exception("%r failed at the end of a thread that has run loads", end)

    async def through(self, work: Coroutine[Any, Any, Any]) -> Any:
        return await work

    async def call(self, load: Callable[[], Any]) -> Any:
        value = load()
        if isawaitable(value):
            close = getattr(value, "close", None)
            if close is not None:
                close()
            what = getattr(value, "__qualname__", None) or type(value).__qualname__
            raise CacheGuardError(
                f"a load returned an awaitable, {what}, to a blocking call: "
                "decorate an `async def`, or use the a… method"
            )
        return value

    def watch(
        self,
        beat: Callable[[], Coroutine[Any, Any, None]],
        every: float,
        late: Callable[[], Coroutine[Any, Any, None]],
        deadline: float | None,
    ) -> Watch:
        job = _Job(self._keeper.jobs, beat, every, late, deadline)
        self._keeper.add(job)
        return job

    async def each(self, works: Sequence[Callable[[], Coroutine[Any, Any, Any]]], most: int) -> list[Any]:
        """Run *works* and return their results in order; with *most* above one, in so many threads."""
        if most == 1 or len(works) < 2:  # noqa: PLR2004 - nothing to share out
            return [await work() for work in works]
        with ThreadPoolExecutor(min(most, len(works)), "cacheguard-each") as threads:
            return list(threads.map(self._run_each, works))

    def _run_each(self, work: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
        try:
            return run_now(work())
        finally:
            self._thread_ends()

    @property
    def busy(self) -> bool:
        """Whether `close` would have to wait."""
        return bool(self._detached)

    def close(self, until: float) -> None:
        """End the keeper; wait *until* (monotonic seconds) for detached loads, which nothing can interrupt."""
        self.closed = True
        self._keeper.close(until)
        for thread in list(self._detached):
            if thread is not threading.current_thread():
                thread.join(max(0.0, until - time.monotonic()))

    def after_fork(self) -> None:
        """Forget the parent's threads, none of which exist here, and draw other lots than it."""
        self._reset()
