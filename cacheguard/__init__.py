"""Cache-aside that keeps the database up: two tiers, one load at a time, and no stale value left behind.

Import from here, from `cacheguard.errors` and, in tests, from `cacheguard.testing`; an integration may also use
`cacheguard.extending`. All other modules are inner: they may move or change in any release.

PYTEST_DONT_REWRITE: beside a pytest plugin, pytest would warn whoever imports this before it.
"""

from .coordination.breaker import Breaker
from .current_load import Load, current_load
from .doors.bloom import BloomFilter
from .doors.feed import Change
from .engine.looking import Inspection
from .errors import CacheGuardError
from .events import StateChange, Stats
from .guard import CacheGuard
from .missing import MISSING
from .policy import Hot, Policy
from .tiers.heat import HotKey

__all__ = [
    "MISSING",
    "BloomFilter",
    "Breaker",
    "CacheGuard",
    "CacheGuardError",
    "Change",
    "Hot",
    "HotKey",
    "Inspection",
    "Load",
    "Policy",
    "StateChange",
    "Stats",
    "current_load",
]
