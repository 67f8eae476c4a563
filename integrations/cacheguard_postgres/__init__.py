"""A change feed from PostgreSQL: LISTEN/NOTIFY into `CacheGuard.apply`, and the SQL of the triggers that notify.

PYTEST_DONT_REWRITE: the distribution has a pytest plugin, so pytest would warn if this is imported before the plugin.
"""

from .feed import FeedStats, OnGap, PostgresFeed
from .trigger import trigger_sql

__all__ = ["FeedStats", "OnGap", "PostgresFeed", "trigger_sql"]
