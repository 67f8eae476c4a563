"""A bound on loads, shared by every thread and event loop of the process."""

from __future__ import annotations

import threading
from collections import deque

from ..errors import Overloaded
from ..ports import Runtime, Signal


class FairBulkhead:
    """At most *limit* loads at once; more wait in line, first come first served, at most *wait* seconds.

    The line is no longer than *room*.
    """

    patience: float

    def __init__(self, limit: int, wait: float, room: int) -> None:
        self._limit, self.patience, self._room = limit, wait, room
        self._lock = threading.RLock()
        self._active = 0
        self._gate: deque[Signal] = deque()

    async def enter(self, runtime: Runtime) -> None:
        """Take a permit; `Overloaded` if none comes free in time, or there is no room in the queue."""
        with self._lock:
            if self._active < self._limit:
                self._active += 1
                return
            if len(self._gate) >= self._room:
                msg = f"{self._limit} loads are running and {self._room} wait in line already"
                raise Overloaded(msg)
            turn = runtime.signal()
            self._gate.append(turn)
        try:
            if await turn.wait(self.patience):
                return
        except BaseException:
            self._step_out(turn)
            raise
        if self._step_out(turn, keep=True):
            return
        msg = f"{self._limit} loads are running and no permit came free within {self.patience:g} s"
        raise Overloaded(msg)

    def try_enter(self) -> bool:
        """Take a permit if one is free."""
        with self._lock:
            free = self._active < self._limit
            self._active += free
        return free

    def leave(self) -> None:
        """Give the permit to the next in the queue."""
        with self._lock:
            if self._gate:
                self._gate.popleft().set()
            else:  # a permit that was taken before a fork is given back in the child, too
                self._active = max(0, self._active - 1)

    def _step_out(self, turn: Signal, *, keep: bool = False) -> bool:
        """Leave the queue; true if a permit had been given already, which is kept or passed on."""
        with self._lock:
            try:
                self._gate.remove(turn)
            except ValueError:
                given = True
            else:
                given = False
        if given and not keep:
            self.leave()
        return given

    def reset(self) -> None:
        """Start empty, as a forked child must."""
        self._lock = threading.RLock()
        self._active = 0
        self._gate.clear()
