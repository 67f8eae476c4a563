"""A flag that may be raised at any moment."""

from __future__ import annotations

import threading


class Bell:
    """A flag that threads wait for; unlike `threading.Event`, a signal handler may ring it while it is being rung."""

    __slots__ = ("_condition", "_up")

    def __init__(self) -> None:
        self._condition = threading.Condition(threading.RLock())
        self._up = False

    def set(self) -> None:
        with self._condition:
            self._up = True
            self._condition.notify_all()

    def clear(self) -> None:
        with self._condition:
            self._up = False

    def pause(self, timeout: float | None) -> bool:
        """Wait until the flag is up, at most *timeout* seconds; whether it is."""
        with self._condition:
            return self._up or self._condition.wait_for(lambda: self._up, timeout)
