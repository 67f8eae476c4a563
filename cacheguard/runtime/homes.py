"""Where work goes on: a thread, or an event loop. Whoever would wait for work of his own thread waits for himself."""

from __future__ import annotations

import asyncio
import math
import threading
import time
from asyncio import events

from ..ports import STANDS_STILL, Home

BETWEEN_QUESTIONS = 0.1  # seconds


class ThreadHome:
    """A thread that does one piece of work at a time."""

    __slots__ = ("inside", "thread")

    loop = None

    def __init__(self) -> None:
        self.thread: int = threading.get_ident()
        # An event loop beneath it does not turn while it waits. Asked without a call into Python code.
        self.inside: bool = events._get_running_loop() is not None  # noqa: SLF001 - documented for event loops

    def held_up_by(self, waiter: Home) -> bool:
        """True if this is the very thread of *waiter*: a signal handler, a finalizer, a greenlet or a nested loop."""
        return self.thread == waiter.thread

    def stands_still(self) -> bool:
        """Never: a thread goes on, as far as anybody can tell."""
        return False


class LoopHome:
    """An event loop, in the thread that it runs in."""

    __slots__ = ("loop", "pulse", "thread")

    inside = False

    def __init__(self, pulse: Pulse) -> None:
        self.thread: int = threading.get_ident()
        self.pulse = pulse
        self.loop: asyncio.AbstractEventLoop = pulse.loop

    def held_up_by(self, waiter: Home) -> bool:
        """True if *waiter* stops this loop: a blocking call in its thread, or a task of another loop nested in it."""
        return self.thread == waiter.thread and self.loop is not waiter.loop

    def stands_still(self) -> bool:
        """True if the loop has not turned for a second; it finds out from the first question on."""
        return self.pulse.stands_still()


class Pulse:
    """Tells whether an event loop turns: at most one question waits in it for an answer, and nobody pays before."""

    __slots__ = ("_answered_at", "_asked_at", "loop")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        # By the system's clock, whatever clock a test moves.
        self._asked_at: float | None = None
        self._answered_at = -math.inf

    def stands_still(self) -> bool:
        """True if it left a question unanswered for a second, or is closed."""
        now, asked_at = time.monotonic(), self._asked_at
        if asked_at is not None:
            return now >= asked_at + STANDS_STILL
        if now < self._answered_at + BETWEEN_QUESTIONS:
            return False
        self._asked_at = now
        try:
            self.loop.call_soon_threadsafe(self._answer)
        except RuntimeError:  # closed
            self._asked_at = -math.inf
            return True
        return False

    def _answer(self) -> None:
        self._asked_at, self._answered_at = None, time.monotonic()
