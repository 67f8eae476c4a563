"""PostgreSQL's own word on what has changed: LISTEN/NOTIFY into `CacheGuard.apply`, and the triggers that notify.

PYTEST_DONT_REWRITE: beside a pytest plugin, pytest would warn whoever imports this before it.
"""

from .feed import FeedStats, OnGap, PostgresFeed
from .trigger import trigger_sql

__all__ = ["FeedStats", "OnGap", "PostgresFeed", "trigger_sql"]
