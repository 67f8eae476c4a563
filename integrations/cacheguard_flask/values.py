"""What Flask-Caching's users do with a key, where a guard has no such call."""

from __future__ import annotations

from typing import Any

from cacheguard import CacheGuard


def added(guard: CacheGuard, key: str, value: Any, rules: dict[str, Any]) -> bool:
    """Store *value* if *key* has none; whether it had none.

    A load of which the whole fleet makes one, and which nothing outdated may stand in for, is just that.
    """
    ran: list[bool] = []

    def load() -> Any:
        ran.append(True)
        return value

    policy: Any = {**rules, "rebuild": "mutex", "stale_while_revalidate": None, "soft_timeout": None}
    guard.get_or_set(key, load, bounded=False, **policy)
    return bool(ran)


def counted(guard: CacheGuard, key: str, delta: int, rules: dict[str, Any]) -> int | None:
    """Add *delta* to the integer under *key*, which begins at 0; the sum."""
    found = guard.get(key)
    value = (found if type(found) is int else 0) + delta
    guard.set(key, value, **rules)
    return value
