"""The options of the middleware, checked: an error names the option that cannot work."""

from __future__ import annotations

import re
from typing import Any

from cacheguard import CacheGuard
from cacheguard.errors import ConfigurationError

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9._-]*")  # a token of RFC 8941


def guard_of(guard: object) -> CacheGuard:
    """Return *guard* if it is one, else raise `ConfigurationError`; so do the others here."""
    if not isinstance(guard, CacheGuard):
        raise ConfigurationError(f"guard must be a CacheGuard, got {guard!r}")
    return guard


def field_names(name: str, value: Any) -> tuple[bytes, ...]:
    """Names of fields, in lower case."""
    if isinstance(value, str) or not all(isinstance(each, str) and each.isascii() and each for each in value):
        raise ConfigurationError(f"{name} must be a tuple of field names, got {value!r}")
    return tuple(each.lower().encode() for each in value)


def share_of(value: object) -> float:
    """The option ``heuristic``; 0 for None."""
    if value is None:
        return 0.0
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 1:
        raise ConfigurationError(f"heuristic must be a share in (0, 1] or None, got {value!r}")
    return float(value)


def name_of(value: object) -> bytes | None:
    """The option ``status``."""
    if value is None:
        return None
    if not isinstance(value, str) or _NAME.fullmatch(value) is None:
        raise ConfigurationError(
            f"status must be a name for Cache-Status (letters, digits, -_.; a letter first) or None, got {value!r}"
        )
    return value.encode()


def root_of(app: Any) -> str:
    """The root_path that *app* sets by itself, as FastAPI(root_path=…) does, when the middleware wraps it; else ""."""
    for _ in range(100):  # middlewares, one inside the other
        root = getattr(app, "root_path", "")
        if isinstance(root, str) and root:
            return root
        app = getattr(app, "app", None)
        if app is None:
            break
    return ""
