"""Waiting by yielding to the event loop."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import os
import random
import threading
import time
from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from inspect import isawaitable
from typing import Any, Protocol

from ..errors import CacheGuardError
from ..ports import Commands, Signal
from .homes import LoopHome, Pulse
from .together import together

PATIENCE_AT_CLOSE = 1.5  # seconds for all of it
A_MOMENT = 0.2  # seconds in which a task that was cancelled ends


class Wire(Protocol):
    """A connection that belongs to one event loop."""

    async def aclose(self) -> None: ...

    def abandon(self) -> None: ...


class Timer(Protocol):
    """What will be called, unless it is cancelled before."""

    def cancel(self) -> None: ...


class TaskSignal:
    """A flag that tasks of one loop wait for, and that any thread may raise."""

    __slots__ = ("_call_later", "_loop", "_up", "_waiters")

    def __init__(self, call_later: Callable[..., Timer]) -> None:
        self._loop = asyncio.get_running_loop()
        self._call_later = call_later
        self._waiters: list[asyncio.Future[None]] = []
        self._up = False

    def set(self) -> None:
        self._up = True
        try:
            here = asyncio.get_running_loop() is self._loop
        except RuntimeError:
            here = False
        if here:
            self._wake()
        else:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits there any more
                self._loop.call_soon_threadsafe(self._wake)

    def _wake(self) -> None:
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)
        self._waiters.clear()

    async def wait(self, timeout: float | None) -> bool:
        if self._up:
            return True
        waiter = self._loop.create_future()
        self._waiters.append(waiter)
        if timeout is None:
            await waiter
            return True
        timer = self._call_later(timeout, _give_up, waiter)
        try:
            await waiter
        finally:
            timer.cancel()
            if not self._up:
                self._waiters.remove(waiter)
        return self._up


def _give_up(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)


class TaskWatch:
    """The timers beside one running load."""

    def __init__(self, runtime: AsyncRuntime, beat: Any, every: float, late: Any, deadline: float | None) -> None:
        self._runtime, self._beat, self._every, self._late = runtime, beat, every, late
        self._load = asyncio.current_task()
        self._next = runtime.timer(every, self._on_beat)
        self._end = None if deadline is None else runtime.timer(deadline, self._on_end)

    def stop(self) -> None:
        self._next.cancel()
        if self._end is not None:
            self._end.cancel()

    def _on_beat(self) -> None:
        self._runtime.spawn(self._beat())
        self._next = self._runtime.call_later(self._every, self._on_beat)

    def _on_end(self) -> None:
        self.stop()
        self._runtime.spawn(self._finish())

    async def _finish(self) -> None:
        await self._late()
        if self._load is not None:
            self._load.cancel()


class AsyncRuntime:
    """The tasks of one event loop. Every load is a task of its own, so a caller that goes away takes nothing along."""

    def __init__(self, commands: Commands, wire: Wire | None = None) -> None:
        self.commands = commands
        self._wire = wire  # ours to close
        self._closed = False
        self.loop: asyncio.AbstractEventLoop = asyncio.get_running_loop()
        self._home = LoopHome(Pulse(self.loop))
        self.now: Callable[[], float] = time.monotonic
        self.call_later: Callable[..., Timer] = self.loop.call_later
        self.random: Callable[[], float] = random.Random(os.urandom(16)).random
        self._tasks: set[asyncio.Task[Any]] = set()
        self._duties: set[asyncio.Task[Any]] = set()  # to be done whatever happens, and soon
        # Loops close the async generators that they have seen begin: that is how we hear of the end of ours.
        self._end = self._until_the_loop_ends()
        with contextlib.suppress(StopIteration):
            self._end.__anext__().send(None)

    def token(self) -> str:
        return os.urandom(16).hex()

    def here(self) -> LoopHome:
        home = self._home
        if home.thread != threading.get_ident():  # the loop goes on in another thread
            home = self._home = LoopHome(home.pulse)
        return home

    def later(self, seconds: float, what: Callable[[], None]) -> None:
        self.timer(seconds, what)

    def timer(self, seconds: float, what: Callable[[], None]) -> Timer:
        """Call *what* later, outside of the caller's context: an event loop keeps a timer after it was cancelled."""
        return contextvars.Context().run(self.call_later, seconds, what)

    async def sleep(self, seconds: float, until: Signal | None = None) -> None:
        await (asyncio.sleep(seconds) if until is None else until.wait(seconds))

    def signal(self) -> TaskSignal:
        return TaskSignal(self.call_later)

    async def start(self, work: Coroutine[Any, Any, None], *, detached: bool) -> bool:  # noqa: ARG002 - a task always is
        if self._closed:
            work.close()
            raise CacheGuardError("this guard is closed")
        self.spawn(work)
        return True

    def spawn(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Run *work* as a task that somebody holds on to."""
        task = self.loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._over)
        return task

    def _over(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        # A loader's SystemExit ends the program by way of the loop. Whatever else comes here is a fault of ours.
        if error is not None and not isinstance(error, SystemExit | KeyboardInterrupt):
            self.loop.call_exception_handler({"message": "a task of cacheguard failed", "exception": error})

    async def through(self, work: Coroutine[Any, Any, Any]) -> Any:
        task = self.loop.create_task(work)
        self._duties.add(task)
        task.add_done_callback(self._duties.discard)
        cancelled: asyncio.CancelledError | None = None
        while not task.done():
            try:
                await asyncio.wait([task])
            except asyncio.CancelledError as error:
                cancelled = error
        if cancelled is not None:
            if not task.cancelled():
                task.exception()  # looked at: the cancellation is what the caller hears of
            raise cancelled
        return task.result()

    async def call(self, load: Callable[[], Any]) -> Any:
        value = load()
        return await value if isawaitable(value) else value

    def watch(
        self,
        beat: Callable[[], Coroutine[Any, Any, None]],
        every: float,
        late: Callable[[], Coroutine[Any, Any, None]],
        deadline: float | None,
    ) -> TaskWatch:
        return TaskWatch(self, beat, every, late, deadline)

    async def _until_the_loop_ends(self) -> AsyncGenerator[None]:
        try:
            yield
        finally:
            await self.aclose()

    async def aclose(self, until: float | None = None) -> None:
        """Cancel the tasks and see them end; who waited for them hears that the guard is closed.

        Args:
            until: monotonic seconds, how long to wait for what must be done whatever happens.
        """
        self._closed = True
        until = time.monotonic() + PATIENCE_AT_CLOSE if until is None else until
        # A task that is cancelled before its first step never gets to tell those who wait for it.
        await asyncio.sleep(0)
        if self._duties:
            await asyncio.wait(list(self._duties), timeout=max(0.0, until - time.monotonic()))
        tasks = [task for task in self._tasks | self._duties if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=max(A_MOMENT, until - time.monotonic()))
        if self._wire is not None:
            await self._wire.aclose()

    def abandon(self) -> None:
        """Let go of a connection whose event loop is over."""
        if self._wire is not None:
            self._wire.abandon()

    async def each(self, works: Sequence[Callable[[], Coroutine[Any, Any, Any]]], most: int) -> list[Any]:
        """Run *works*, so many at once; their results in order. The first exception is raised when all ended."""
        line = asyncio.Semaphore(most)

        async def one(work: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
            async with line:
                return await work()

        results = await together(one(work) for work in works)
        for result in results:
            if isinstance(result, BaseException):
                raise result
        return results
