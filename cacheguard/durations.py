"""Conversion of durations to seconds, and the clock that measures them."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable
from contextvars import ContextVar
from datetime import timedelta
from typing import TypeAlias

from .errors import ConfigurationError

Duration: TypeAlias = float | str | timedelta

DAY = 86_400.0
FOREVER = 365 * DAY  # a Redis key always keeps some TTL, so "no expiry" is a year

NOW: ContextVar[Callable[[], float]] = ContextVar("cacheguard_now", default=time.monotonic)
"""The clock (monotonic seconds) that new objects use: the system's, unless a test sets another."""

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": DAY}
_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
_WHOLE = re.compile(rf"(?:{_PART.pattern})+")


def seconds(value: object, name: str) -> float:
    """Return *value* in seconds; `ConfigurationError` with *name* unless it is a duration above zero, at most a year.

    A duration below a millisecond counts as one.
    """
    number = any_seconds(value, name)
    if number > FOREVER:
        msg = f"{name} must be at most 365 days (where None is allowed, it means no limit), got {value!r}"
        raise ConfigurationError(msg)
    return number


def any_seconds(value: object, name: str) -> float:
    """`seconds` without the upper limit."""
    if isinstance(value, bool):
        number = math.nan
    elif isinstance(value, int | float):
        number = _float(value)
    elif isinstance(value, timedelta):
        number = value.total_seconds()
    elif isinstance(value, str) and _WHOLE.fullmatch(value.strip()):
        number = sum(float(amount) * _UNITS[unit] for amount, unit in _PART.findall(value))
    else:
        number = math.nan
    if not 0 < number < math.inf:
        msg = (
            f"{name} must be a duration > 0 (seconds, a timedelta, or text like '250ms', '30s', '1h30m'), got {value!r}"
        )
        raise ConfigurationError(msg)
    return max(number, 0.001)


def _float(value: float) -> float:
    try:
        return float(value)
    except OverflowError:  # an int that no float can hold
        return math.inf
