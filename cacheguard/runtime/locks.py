"""Locks, for parts that must not know threads."""

from __future__ import annotations

import threading
from contextlib import AbstractContextManager
from typing import Any


def new_lock() -> AbstractContextManager[Any]:
    """A lock for threads that may be taken again by its holder, such as a signal handler that comes in between."""
    return threading.RLock()
