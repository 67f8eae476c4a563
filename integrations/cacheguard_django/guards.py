"""The guards of this process.

Django makes a cache object for every thread and every request. The guard that they share is stored here, one for each
setting.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from typing import Any

from cacheguard import CacheGuard

from .options import Settings, read_settings, secrets


class Opened:
    """A guard, its settings, and a plain Redis client."""

    guard: CacheGuard
    settings: Settings

    def __init__(self, settings: Settings, guard: CacheGuard, params: Mapping[str, Any]) -> None:
        self.settings, self.guard = settings, guard
        self._params = params  # a reference, so that no other object can get the same id
        self._client: Any = None

    def client(self) -> Any:
        """The redis-py client of the process."""
        with _lock:
            if self._client is None:
                self._client = self.guard.new_client()
            return self._client

    def close(self) -> None:
        """Close the guard and the client."""
        self.guard.close()
        if self._client is not None:
            self._client.close()


_opened: dict[str, Opened] = {}
_lock = threading.RLock()


def _after_fork() -> None:
    global _lock  # noqa: PLW0603 - a thread of the parent may have held it
    _lock = threading.RLock()


os.register_at_fork(after_in_child=_after_fork)


def opened(location: object, params: Mapping[str, Any], timeout: int | None) -> Opened:
    """The guard for these settings, made at the first call. Equal settings share one guard."""
    name = repr((location, timeout, sorted(params.get("OPTIONS", {}).items()), secrets()))
    found = _opened.get(name)
    if found is None or found.guard.closed:
        with _lock:
            found = _opened.get(name)
            if found is None or found.guard.closed:
                settings = read_settings(location, params, timeout)
                found = _opened[name] = Opened(settings, settings.open(), params)
    return found


def close_guards() -> None:
    """Close all guards of this process, with their threads and connections. A later use makes a new guard."""
    with _lock:
        everyone = list(_opened.values())
        _opened.clear()
    for each in everyone:
        each.close()
