"""Prepares values for the cache, with the errors of Django's own backends."""

from __future__ import annotations

import logging
from collections.abc import Callable, Coroutine, Generator
from contextlib import contextmanager
from typing import Any, cast

from django.db.models import QuerySet

from cacheguard import MISSING
from cacheguard.errors import CodecError
from cacheguard.extending import Oversize

log: logging.Logger = logging.getLogger("cacheguard")
_MOST_TOLD = 1000
_told: dict[str, None] = {}


async def evaluated(value: Any) -> Any:
    """Return *value*. A queryset runs its query here, because pickling could not run it in an event loop."""
    if _is_queryset(value):
        async for _ in value:
            break
    return value


def evaluating(load: Callable[[], Any]) -> Callable[[], Coroutine[Any, Any, Any]]:
    """*load*, with the query of a queryset that it returns."""

    async def evaluate() -> Any:
        made = load()
        return await evaluated(await made if hasattr(made, "__await__") else made)

    return evaluate


def _is_queryset(value: Any) -> bool:
    return isinstance(value, QuerySet)


def too_large(text: str, error: Oversize) -> None:
    """Log that a value was not stored, once for each of the last thousand keys. It is counted as ``oversize``."""
    if text not in _told:
        if len(_told) >= _MOST_TOLD:
            _told.clear()
        _told[text] = None
        log.warning("%s is not cached: %s", text, error)


@contextmanager
def serializer_errors() -> Generator[None]:
    """Raise the serializer's own error for a value that cannot be stored, as Django's backends do."""
    try:
        yield
    except CodecError as error:
        if error.__cause__ is not None and not isinstance(error, Oversize):
            raise error.__cause__ from None
        raise


def adding(delta: int) -> Callable[[Any], Any]:
    """A function that adds *delta* to a value."""
    return lambda value: value + delta


def counted(value: Any, key: Any) -> int:
    """Return *value*, the result of `incr`; `ValueError` if there was no value to count."""
    if value is MISSING:
        raise ValueError(f"Key {key!r} not found")
    return cast("int", value)
