"""Waiting, and nothing else: for threads, event loops, a free permit, and the time.

`blocking` and `aio` are the two runtimes of the engine, `bulkhead` bounds the loads that run at once, and `clocks` says
whose time it is; `bell` and `together` are what these are made with. What waits for a server is in `client`.

Inner: not for import; use `cacheguard` or `cacheguard.extending`.
"""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


def run_now(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine whose every step blocks instead of suspending."""
    try:
        coroutine.send(None)
    except StopIteration as stop:
        value: T = stop.value
        return value
    coroutine.close()
    msg = f"{coroutine!r} suspended under a blocking runtime"
    raise RuntimeError(msg)
