"""Cache-aside that keeps the database up: two tiers, one load at a time, and no stale value left behind."""

from .bloom import BloomFilter
from .errors import CacheGuardError
from .events import Stats
from .guard import CacheGuard, Inspection
from .missing import MISSING
from .policy import Policy

__all__ = ["MISSING", "BloomFilter", "CacheGuard", "CacheGuardError", "Inspection", "Policy", "Stats"]
