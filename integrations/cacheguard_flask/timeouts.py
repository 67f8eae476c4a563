"""What Flask means by a timeout, as fields of a policy."""

from __future__ import annotations

from datetime import timedelta
from typing import Any, TypeAlias

from cacheguard.extending import seconds, seconds_up_to_forever

Timeout: TypeAlias = float | str | timedelta
"""Seconds, a `timedelta`, or text like ``"5m"``; 0: until it is deleted. (None, where allowed, is the default.)"""


def is_never(timeout: Timeout) -> bool:
    """Whether *timeout* means: never expires."""
    if isinstance(timeout, timedelta):
        return not timeout
    return isinstance(timeout, int | float) and not isinstance(timeout, bool) and timeout == 0


def ttl_of(timeout: Timeout | None, name: str = "timeout") -> dict[str, Any]:
    """*timeout* as the field ``ttl``, nothing for None; `ConfigurationError` by *name* for what is no timeout."""
    if timeout is None:
        return {}
    return {"ttl": None if is_never(timeout) else seconds(timeout, name)}


def ttl_of_call(timeout: Timeout | None) -> dict[str, Any]:
    """`ttl_of` for a timeout that comes with a call: one that is too long is cut, which is logged once."""
    if timeout is None:
        return {}
    return {"ttl": None if is_never(timeout) else seconds_up_to_forever(timeout, "timeout")}
