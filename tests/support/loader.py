"""A loader that tells how it was used, and does what a test wants of a database."""

from __future__ import annotations

import threading
import time
from typing import Any

PATIENCE = 20.0  # seconds; a test that gets here has failed


class Loader:
    """Counts its runs; may be slow, fail, or stand still until the test opens its gate.

    Its value is `value`, or the number of the run if there is none.
    """

    def __init__(self, value: Any = None, *, seconds: float = 0.0, error: Exception | None = None) -> None:
        self.value, self.seconds, self.error = value, seconds, error
        self.calls: list[tuple[Any, ...]] = []
        self.active = self.peak = 0
        self.started = threading.Event()
        self.gate = threading.Event()
        self.gate.set()
        self._lock = threading.Lock()

    @property
    def runs(self) -> int:
        return len(self.calls)

    def stand_still(self) -> None:
        """Every run from now on waits for `go_on`."""
        self.started.clear()
        self.gate.clear()

    def go_on(self) -> None:
        self.gate.set()

    def __call__(self, *args: Any) -> Any:
        with self._lock:
            self.calls.append(args)
            run = len(self.calls)
            self.active += 1
            self.peak = max(self.peak, self.active)
            value, error = self.value, self.error
        self.started.set()
        try:
            assert self.gate.wait(PATIENCE), "the test forgot to open the gate"
            time.sleep(self.seconds)
        finally:
            with self._lock:
                self.active -= 1
        if error is not None:
            raise error
        return run if value is None else value
