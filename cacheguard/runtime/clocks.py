"""Whose time a guard goes by: the system's, unless a test says otherwise."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextvars import ContextVar
from typing import Protocol

from ..ports import Commands
from .aio import AsyncRuntime, Wire
from .blocking import BlockingRuntime


class Clock(Protocol):
    """What a guard asks for the time, and for ways to wait that end by it."""

    def now(self) -> float:
        """Monotonic seconds."""
        ...

    def threads(self, commands: Commands) -> BlockingRuntime:
        """A way to wait for threads."""
        ...

    def tasks(self, commands: Commands, wire: Wire | None = None) -> AsyncRuntime:
        """A way to wait for the tasks of the event loop that runs here."""
        ...


class SystemClock:
    """The monotonic clock. `now` is the built-in itself, so that whoever binds it pays for nothing else."""

    threads = BlockingRuntime
    tasks = AsyncRuntime

    def __init__(self) -> None:
        self.now: Callable[[], float] = time.monotonic


CLOCK: ContextVar[Clock] = ContextVar("cacheguard_clock", default=SystemClock())  # noqa: B039 - it has no state
"""The clock of guards that are built here; a guard keeps the one it was built under."""
