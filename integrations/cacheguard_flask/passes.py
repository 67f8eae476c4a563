"""Keys whose pages are private. For a while the cache is bypassed for them."""

from __future__ import annotations

import contextlib
import time

PASS_FOR = 5.0  # seconds
MOST_PASSES = 10_000


class Passes:
    """Keys whose answers are private: a request must not wait there for the answer to another one."""

    def __init__(self) -> None:
        self._until: dict[str, float] = {}

    def has(self, key: str) -> bool:
        return self._until.get(key, 0.0) > time.monotonic()

    def note(self, key: str) -> None:
        self._until.pop(key, None)
        self._until[key] = time.monotonic() + PASS_FOR
        with contextlib.suppress(KeyError, RuntimeError):  # another thread may do the same now
            while len(self._until) > MOST_PASSES:
                self._until.pop(next(iter(self._until)), None)

    def forget(self, key: str) -> None:
        self._until.pop(key, None)
