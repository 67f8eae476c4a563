"""What Flask-Caching's users do with a key, where a guard has no such call."""

from __future__ import annotations

from typing import Any

from cacheguard import MISSING, CacheGuard

ATTEMPTS = 3  # somebody else may begin, and end, in between


def counted(guard: CacheGuard, key: str, delta: int, rules: dict[str, Any]) -> int | None:
    """Add *delta* to the integer under *key*, which begins at 0; the sum, or None if Redis cannot be asked."""

    def more(value: Any) -> int:
        return (value if type(value) is int else 0) + delta

    for _ in range(ATTEMPTS):
        total: Any = guard.update(key, more)
        if total is not MISSING:
            return int(total)
        if guard.add(key, delta, **rules):
            return delta
    return None
