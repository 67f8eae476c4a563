"""Converts the timeouts of Django and django-redis."""

from __future__ import annotations

import math
import time
from typing import Any

from django.core.cache.backends.base import DEFAULT_TIMEOUT

from cacheguard import Inspection
from cacheguard.extending import FOREVER

_INFINITE = (math.inf,)
AGES = FOREVER / 2  # an entry that lives longer was stored without expiry


def seconds_of(timeout: Any) -> float | None:
    """*timeout* in seconds, at least 0; None: no expiry, as for Django's own backends also if it is infinite.

    `ValueError` for nan and for text that is no number, `TypeError` for what cannot be one.
    """
    if timeout is None:
        return None
    try:
        number = float(timeout)
    except OverflowError:  # a whole number that no float can hold
        number = math.inf if timeout > 0 else -math.inf
    if math.isnan(number):
        raise ValueError(f"timeout must be a number of seconds or None, got {timeout!r}")
    return None if number == math.inf else max(0.0, number)


def without_infinity(params: dict[str, Any]) -> dict[str, Any]:
    """The settings of a cache, with None for an infinite ``TIMEOUT``, which Django's base class cannot read."""
    infinite = {name: None for name in ("timeout", "TIMEOUT") if params.get(name) in _INFINITE}
    return {**params, **infinite}


def milliseconds_left(found: Inspection) -> int | None:
    """The remaining lifetime of an entry in milliseconds: None without expiry, 0 if there is no entry."""
    if found.state not in {"fresh", "null"} or found.ttl_left is None:
        return 0
    return None if found.ttl_left > AGES else max(0, round(found.ttl_left * 1000))


def rounded_seconds(milliseconds: int | None) -> int | None:
    """The same in seconds."""
    return None if milliseconds is None else round(milliseconds / 1000)


def in_seconds(timeout: Any, parts: int = 1) -> Any:
    """Convert *timeout*, in 1/*parts* of a second or a `timedelta`, to seconds; None and the default stay."""
    if timeout is None or timeout is DEFAULT_TIMEOUT:
        return timeout
    return float(timeout.total_seconds() if hasattr(timeout, "total_seconds") else timeout / parts)


def until(when: Any, parts: int = 1) -> float:
    """The seconds until *when*, in 1/*parts* of a second since 1970 or a `datetime`."""
    return float(when.timestamp() if hasattr(when, "timestamp") else when / parts) - time.time()
