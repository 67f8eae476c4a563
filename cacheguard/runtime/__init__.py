"""How to wait: the only code that knows threads and event loops."""

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
    finally:
        coroutine.close()
    msg = f"{coroutine!r} suspended under a blocking runtime"
    raise RuntimeError(msg)
