"""Which door of the guard to use: inside a greenlet of SQLAlchemy's asyncio extension the one that is awaited."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from types import ModuleType
from typing import Any

from sqlalchemy.util import concurrency

# SQLAlchemy 2.1 has renamed it.
_await: Callable[[Awaitable[Any]], Any] = getattr(concurrency, "await_", None) or concurrency.await_only


def asyncio_extension() -> ModuleType | None:
    """SQLAlchemy's asyncio extension, which needs the greenlet package; without it there is nothing of it to meet."""
    try:
        from sqlalchemy.ext import asyncio
    except ImportError:
        return None
    return asyncio


def in_event_loop() -> bool:
    """Whether this runs for an `AsyncSession` or an `AsyncConnection`."""
    try:
        return bool(concurrency.in_greenlet())
    except ImportError:  # no greenlet package: nothing can run in one
        return False


def through(blocking: Callable[..., Any], waiting: Callable[..., Awaitable[Any]], *args: Any, **options: Any) -> Any:
    """Call *blocking*, or await *waiting* where SQLAlchemy runs in an event loop."""
    if in_event_loop():
        return _await(waiting(*args, **options))
    return blocking(*args, **options)
