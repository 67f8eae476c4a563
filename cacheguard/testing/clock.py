"""A clock that only moves when the test moves it, and waits that end by this clock."""

from __future__ import annotations

import asyncio
import heapq
import itertools
import math
import threading
from collections.abc import Callable, Coroutine
from contextlib import suppress
from contextvars import Token
from functools import partial
from types import TracebackType
from typing import Any, Self

from ..durations import NOW, Duration, seconds
from ..events import log
from ..guard import CacheGuard
from ..ports import Commands, Signal, Watch
from ..runtime import run_now
from ..runtime.aio import AsyncRuntime, TaskSignal, Wire
from ..runtime.blocking import BlockingRuntime
from ..runtime.clocks import CLOCK, Clock

BEGINNING = 1024  # seconds; far enough from zero that "a minute ago" is a time, too
# A power of two, so that all times and sums of times are exact: a timer of 0.3 s has ended when the clock has been
# moved by 0.3 s.
TICKS = 2**20  # in a second
BREATHS = 20  # turns of the event loop after each step

Step = Callable[[], Coroutine[Any, Any, None]]


class ClockStoodStillError(AssertionError):
    """Something waited for the virtual clock, but the test did not move it."""


class Timer:
    """An action that runs when the clock reaches its time, unless it is cancelled before."""

    __slots__ = ("at", "cancelled", "happen")

    at: int
    cancelled: bool
    happen: Callable[[], object]

    def __init__(self, at: int, happen: Callable[[], object]) -> None:
        self.at, self.happen, self.cancelled = at, happen, False

    def cancel(self) -> None:
        self.cancelled = True


class VirtualClock:
    """The clock of the guards that are built under it. It only moves with `advance`.

    A guard on ``memory://`` uses it for everything: TTLs, stale windows, the ages of L1 entries, leases, write intents
    and quarantines, the back-off after a failed load, and every timeout. On Redis, it only moves times that the process
    measures. TTLs, leases and what a failed load leaves for other processes follow Redis's own clock; the checks of
    Redis's health follow real time.

    Timeouts (``hard_timeout``, ``soft_timeout``, ``wait_timeout``, ``load_wait``) and lease renewals only follow this
    clock. Pauses between two polls (while waiting for another caller's load) end when the clock has been moved that
    far, or after as much real time, so the test need not move the clock for them.

    ``with clock:`` makes every guard and every `Breaker` that is built in the block, in this thread or task, use it;
    `guard` builds one. They keep the clock that they were built under. Any thread may move the clock.

    The idea is from Twisted's `task.Clock` and Trio's `MockClock`.

    Args:
        patience: real time that a wait for a timeout gives the test to move the clock, before it raises
            `ClockStoodStillError`.

    Raises:
        ConfigurationError: *patience* is not a duration.
    """

    def __init__(self, *, patience: Duration = "30s") -> None:
        self.patience: float = seconds(patience, "patience")
        self._ticks = BEGINNING * TICKS
        self._lock = threading.Lock()
        self._moving = threading.RLock()
        self._timers: list[tuple[int, int, Timer]] = []
        self._numbers = itertools.count()
        self._outer: list[tuple[Token[Clock], Token[Callable[[], float]]]] = []

    def __repr__(self) -> str:
        return f"<VirtualClock moved by {self.now() - BEGINNING:g} s>"

    def __enter__(self) -> Self:
        self._outer.append((CLOCK.set(self), NOW.set(self.now)))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        clock, now = self._outer.pop()
        NOW.reset(now)
        CLOCK.reset(clock)

    def guard(self, url: str = "memory://", **options: Any) -> CacheGuard:
        """Build a guard that uses this clock; *options* are those of `CacheGuard`. Close it at the end."""
        with self:
            return CacheGuard(url, **options)

    def now(self) -> float:
        """Return monotonic seconds; only `advance` changes them."""
        return self._ticks / TICKS

    def advance(self, duration: Duration) -> None:
        """Move the clock. All timers that become due run at their time and in order.

        Lease renewals and timeouts of blocking loads happen before this returns. Tasks of an event loop are woken, but
        only run when their loop gets to them; in a coroutine, use `aadvance`.

        Args:
            duration: seconds, a `timedelta`, or text like ``"250ms"``; at least a millisecond.

        Raises:
            ConfigurationError: *duration* is not a duration above zero.
        """
        with self._moving:
            end = self._end(duration)
            while self._step(end):
                pass

    async def aadvance(self, duration: Duration) -> None:
        """`advance`; after each timer the tasks of this event loop get time to run."""
        end = self._end(duration)
        going = True
        while going:
            with self._moving:
                going = self._step(end)
            for _ in range(BREATHS):
                await asyncio.sleep(0)

    def _end(self, duration: Duration) -> int:
        return self._ticks + math.ceil(seconds(duration, "duration") * TICKS)

    def _step(self, end: int) -> bool:
        """Move to the next timer and run it; False if none was due before *end*."""
        with self._lock:
            while self._timers and self._timers[0][2].cancelled:
                heapq.heappop(self._timers)
            if not self._timers or self._timers[0][0] > end:
                self._ticks = max(self._ticks, end)
                return False
            timer = heapq.heappop(self._timers)[2]
            self._ticks = max(self._ticks, timer.at)
        timer.happen()
        return True

    def call_later(self, delay: float, happen: Callable[[], object]) -> Timer:
        """Run *happen* in *delay* seconds, in the thread that moves the clock."""
        with self._lock:
            timer = Timer(self._ticks + math.ceil(delay * TICKS), happen)
            heapq.heappush(self._timers, (timer.at, next(self._numbers), timer))
        return timer

    def stood_still(self, delay: float) -> ClockStoodStillError:
        """The error for a wait during which the clock was not moved."""
        return ClockStoodStillError(
            f"a wait of {delay:g} s by the virtual clock was not over after {self.patience:g} s of real time: "
            "move the clock (advance) from another thread or task than the one that waits"
        )

    def threads(self, commands: Commands) -> BlockingRuntime:
        return _Threads(self, commands)

    def tasks(self, commands: Commands, wire: Wire | None = None) -> AsyncRuntime:
        return _Tasks(self, commands, wire)


class _ThreadSignal:
    """A flag that threads wait for, with timeouts by the virtual clock."""

    __slots__ = ("_changed", "_clock", "_up")

    def __init__(self, clock: VirtualClock) -> None:
        self._clock, self._changed, self._up = clock, threading.Condition(), False

    def set(self) -> None:
        with self._changed:
            self._up = True
            self._changed.notify_all()

    async def wait(self, timeout: float | None) -> bool:
        if timeout is None:
            with self._changed:
                return self._changed.wait_for(lambda: self._up)
        over = threading.Event()
        timer = self._clock.call_later(timeout, partial(self._expire, over))
        try:
            with self._changed:
                if not self._changed.wait_for(lambda: self._up or over.is_set(), self._clock.patience):
                    raise self._clock.stood_still(timeout)
                return self._up
        finally:
            timer.cancel()

    def _expire(self, over: threading.Event) -> None:
        with self._changed:
            over.set()
            self._changed.notify_all()


class _ThreadWatch:
    """The timers of one running load; they run in the thread that moves the clock."""

    def __init__(self, clock: VirtualClock, beat: Step, every: float, late: Step, deadline: float | None) -> None:
        self._clock, self._beat, self._every, self._late = clock, beat, every, late
        self._next = clock.call_later(every, self._on_beat)
        self._end = None if deadline is None else clock.call_later(deadline, self._on_end)
        self._stopped = False

    def stop(self) -> None:
        self._stopped = True
        self._next.cancel()
        if self._end is not None:
            self._end.cancel()

    def _on_beat(self) -> None:
        self._next = self._clock.call_later(self._every, self._on_beat)
        if self._stopped:
            self._next.cancel()
        else:
            self._do(self._beat)

    def _on_end(self) -> None:
        self.stop()
        self._do(self._late)

    def _do(self, what: Step) -> None:
        try:
            run_now(what())
        except Exception:  # noqa: BLE001 - whatever it is, the clock must be moved on
            log.exception("a load could not be looked after")


class _Threads(BlockingRuntime):
    """Threads that wait by a virtual clock."""

    def __init__(self, clock: VirtualClock, commands: Commands) -> None:
        super().__init__(commands)
        self._clock, self.now = clock, clock.now

    async def sleep(self, seconds: float, until: Signal | None = None) -> None:  # noqa: ARG002 - who polls may look late
        over = threading.Event()
        timer = self._clock.call_later(seconds, over.set)
        over.wait(seconds)
        timer.cancel()

    def signal(self) -> Signal:
        return _ThreadSignal(self._clock)

    def later(self, seconds: float, what: Callable[[], None]) -> None:
        self._clock.call_later(seconds, what)

    def watch(self, beat: Step, every: float, late: Step, deadline: float | None) -> Watch:
        return _ThreadWatch(self._clock, beat, every, late, deadline)


class _TaskSignal(TaskSignal):
    """A flag that tasks wait for, with timeouts by the virtual clock."""

    __slots__ = ("_clock",)

    def __init__(self, clock: VirtualClock, call_later: Callable[..., Timer]) -> None:
        super().__init__(call_later)
        self._clock = clock

    async def wait(self, timeout: float | None) -> bool:
        if timeout is None:
            return await super().wait(None)
        try:
            async with asyncio.timeout(self._clock.patience):
                return await super().wait(timeout)
        except TimeoutError:
            raise self._clock.stood_still(timeout) from None


class _Tasks(AsyncRuntime):
    """Tasks that wait by a virtual clock."""

    def __init__(self, clock: VirtualClock, commands: Commands, wire: Wire | None) -> None:
        super().__init__(commands, wire)
        self._clock, self.now, self.call_later = clock, clock.now, self._call_later

    def _call_later(self, delay: float, callback: Callable[..., object], *args: Any) -> Timer:
        timer = self._clock.call_later(delay, lambda: self._tell(timer, partial(callback, *args)))
        return timer

    def _tell(self, timer: Timer, happen: Callable[[], object]) -> None:
        def here() -> None:
            if not timer.cancelled:
                happen()

        with suppress(RuntimeError):  # the loop is closed: nothing waits there any more
            self.loop.call_soon_threadsafe(here)

    def signal(self) -> TaskSignal:
        return _TaskSignal(self._clock, self._call_later)

    async def sleep(self, seconds: float, until: Signal | None = None) -> None:  # noqa: ARG002 - who polls may look late
        over = asyncio.Event()
        timers = self._call_later(seconds, over.set), self.loop.call_later(seconds, over.set)
        try:
            await over.wait()
        finally:
            for timer in timers:
                timer.cancel()
