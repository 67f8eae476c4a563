"""A loader that records its calls and behaves like the database that a test needs: slow, failing or hanging."""

from __future__ import annotations

import asyncio
import functools
import inspect
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from typing import Any, ParamSpec, TypeVar, cast

from ..missing import MISSING

P = ParamSpec("P")
R = TypeVar("R")

PATIENCE = 20.0  # seconds; a test that waits longer has failed
MOST_SHOWN = 10


class Flag:
    """A `threading.Event` that tasks of event loops may wait for, too."""

    def __init__(self) -> None:
        self._event = threading.Event()
        self._lock = threading.Lock()
        self._waiting: list[tuple[asyncio.AbstractEventLoop, asyncio.Future[None]]] = []

    def is_set(self) -> bool:
        return self._event.is_set()

    def set(self) -> None:
        with self._lock:
            self._event.set()
            waiting, self._waiting = self._waiting, []
        for loop, future in waiting:
            with suppress(RuntimeError):  # the loop is closed: nothing waits there any more
                loop.call_soon_threadsafe(_wake, future)

    def clear(self) -> None:
        self._event.clear()

    def wait(self, timeout: float | None = None) -> bool:
        """Block until the flag is up, at most *timeout* seconds; False if it is still down."""
        return self._event.wait(timeout)

    async def await_set(self, timeout: float | None = None) -> bool:
        """`wait`, for a task."""
        with self._lock:
            if self._event.is_set():
                return True
            loop = asyncio.get_running_loop()
            future = loop.create_future()
            self._waiting.append((loop, future))
        try:
            async with asyncio.timeout(timeout):
                await future
        except TimeoutError:
            return False
        return True


def _wake(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


class CountingLoader:
    """A loader that counts its runs. It may be slow, fail, or stand still until the test lets it go on.

    Use it as a function (``guard.get_or_set("k", loader)``), use `acall` as a coroutine function, or wrap your own
    function, ``def`` or ``async def``, with `counts`. Attributes may be changed while it is in use.

    Args:
        value: the result; by default the number of the run.
        seconds: how long a run takes, in real time.
        error: an exception to raise instead.
        patience: the longest time, in seconds, that a run stands still before it fails the test.

    Attributes:
        calls: the arguments of each run, in the order of their beginning.
        active: the number of current runs.
        peak: the largest number of concurrent runs.
        started: up once a run has begun; `stand_still` lowers it until the next run begins.
        gate: up unless runs stand still.
    """

    active: int
    error: Exception | None
    gate: Flag
    patience: float
    peak: int
    seconds: float
    started: Flag
    value: Any

    def __init__(
        self,
        value: Any = MISSING,
        *,
        seconds: float = 0.0,
        error: Exception | None = None,
        patience: float = PATIENCE,
    ) -> None:
        self.value, self.seconds, self.error, self.patience = value, seconds, error, patience
        self.calls: list[tuple[Any, ...]] = []
        self.active = self.peak = 0
        self.started, self.gate = Flag(), Flag()
        self.gate.set()
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f"<CountingLoader, {self.runs} runs, {self.active} of them under way>"

    @property
    def runs(self) -> int:
        """The number of runs that have begun."""
        return len(self.calls)

    def stand_still(self) -> None:
        """Make every run from now on wait for `go_on`."""
        self.started.clear()
        self.gate.clear()

    def go_on(self) -> None:
        """Let the waiting runs go on, and do not stop later ones."""
        self.gate.set()

    def until_started(self, timeout: float = PATIENCE) -> None:
        """Wait until a run has begun; `AssertionError` after *timeout* seconds."""
        if not self.started.wait(timeout):
            raise AssertionError(f"no load has begun within {timeout:g} s")

    async def auntil_started(self, timeout: float = PATIENCE) -> None:
        """`until_started`, to be awaited."""
        if not await self.started.await_set(timeout):
            raise AssertionError(f"no load has begun within {timeout:g} s")

    def assert_ran(self, times: int, *, peak: int | None = None) -> None:
        """Raise `AssertionError`, with the arguments of the calls, unless it has run *times* times.

        Args:
            times: the expected number of runs.
            peak: the largest number of concurrent runs that is allowed; None: any number.
        """
        self._assert(self.calls, times)
        if peak is not None and self.peak > peak:
            raise AssertionError(f"{self.peak} loads ran at a time, at most {peak} were expected")

    @contextmanager
    def expecting(self, times: int) -> Generator[None]:
        """Raise `AssertionError` unless it runs exactly *times* times in the block: ``with loader.expecting(1): …``."""
        before = self.runs
        yield
        self._assert(self.calls[before:], times)

    def _assert(self, calls: list[tuple[Any, ...]], times: int) -> None:
        if len(calls) != times:
            shown = ", ".join(map(repr, calls[:MOST_SHOWN])) + (", …" if len(calls) > MOST_SHOWN else "")
            raise AssertionError(
                f"the loader ran {len(calls)} times, expected {times}; its arguments: {shown or 'none'}"
            )

    def __call__(self, *args: Any) -> Any:
        """Run once."""
        run = self._begin(args)
        try:
            self._check(stood_still=not self.gate.wait(self.patience))
            time.sleep(self.seconds)
        finally:
            self._end()
        return self._outcome(run)

    async def acall(self, *args: Any) -> Any:
        """Run once, as a coroutine."""
        run = self._begin(args)
        try:
            self._check(stood_still=not await self.gate.await_set(self.patience))
            await asyncio.sleep(self.seconds)
        finally:
            self._end()
        return self._outcome(run)

    def counts(self, function: Callable[P, R]) -> Callable[P, R]:
        """Wrap *function*: its runs are counted here, and are slow, fail or stand still as set here.

        ``@guard.cached("user:{user_id}")`` goes above ``@loader.counts``. `calls` holds the values of all parameters.
        `value` is not used.
        """
        signature = inspect.signature(function)

        def values(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
            bound = signature.bind(*args, **kwargs)
            bound.apply_defaults()
            return tuple(bound.arguments.values())

        if inspect.iscoroutinefunction(function):

            @functools.wraps(function)
            async def acounted(*args: Any, **kwargs: Any) -> Any:
                await self.acall(*values(args, kwargs))
                return await function(*args, **kwargs)

            return cast("Callable[P, R]", acounted)

        @functools.wraps(function)
        def counted(*args: P.args, **kwargs: P.kwargs) -> R:
            self(*values(args, kwargs))
            return function(*args, **kwargs)

        return counted

    def _begin(self, args: tuple[Any, ...]) -> tuple[int, Any, Exception | None]:
        with self._lock:
            self.calls.append(args)
            self.active += 1
            self.peak = max(self.peak, self.active)
            run = self.runs, self.value, self.error
        self.started.set()
        return run

    def _end(self) -> None:
        with self._lock:
            self.active -= 1

    def _check(self, *, stood_still: bool) -> None:
        if stood_still:
            raise AssertionError(f"a load stood still for {self.patience:g} s: the test has not called go_on()")

    def _outcome(self, run: tuple[int, Any, Exception | None]) -> Any:
        number, value, error = run
        if error is not None:
            raise error
        return number if value is MISSING else value
