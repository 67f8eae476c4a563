"""Chooses the door of the guard: blocking, or awaited inside a greenlet of SQLAlchemy's asyncio extension."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from types import ModuleType
from typing import Any

from sqlalchemy.util import concurrency

# The name differs in SQLAlchemy 2.1.
_await: Callable[[Awaitable[Any]], Any] = getattr(concurrency, "await_", None) or concurrency.await_only


def asyncio_extension() -> ModuleType | None:
    """SQLAlchemy's asyncio extension; None without the greenlet package, which it needs."""
    try:
        from sqlalchemy.ext import asyncio
    except ImportError:
        return None
    return asyncio


def in_event_loop() -> bool:
    """True if this runs for an `AsyncSession` or an `AsyncConnection`."""
    try:
        return bool(concurrency.in_greenlet())
    except ImportError:  # no greenlet package: nothing can run in one
        return False


def through(blocking: Callable[..., Any], waiting: Callable[..., Awaitable[Any]], *args: Any, **options: Any) -> Any:
    """Call *blocking*, or await *waiting* if SQLAlchemy runs in an event loop."""
    if in_event_loop():
        return _await(waiting(*args, **options))
    return blocking(*args, **options)
