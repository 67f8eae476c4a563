"""Invalidation bound to SQLAlchemy sessions, and a transactional outbox.

PYTEST_DONT_REWRITE: the distribution has a pytest plugin, so pytest would warn if this is imported before the plugin.
"""

from .invalidation import OnCommit, invalidate_on_commit
from .outbox import outbox_table
from .relay import OutboxRelay, OutboxSize, RelayStats
from .rules import Touches

__all__ = [
    "OnCommit",
    "OutboxRelay",
    "OutboxSize",
    "RelayStats",
    "Touches",
    "invalidate_on_commit",
    "outbox_table",
]
