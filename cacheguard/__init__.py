"""Cache-aside that keeps the database up: two tiers, one load at a time, and no stale value left behind.

PYTEST_DONT_REWRITE: beside a pytest plugin, pytest would warn whoever imports this before it.
"""

from .bloom import BloomFilter
from .current_load import Load, current_load
from .errors import CacheGuardError
from .events import Stats
from .feed import Change
from .guard import CacheGuard, Inspection
from .missing import MISSING
from .policy import Policy

__all__ = [
    "MISSING",
    "BloomFilter",
    "CacheGuard",
    "CacheGuardError",
    "Change",
    "Inspection",
    "Load",
    "Policy",
    "Stats",
    "current_load",
]
