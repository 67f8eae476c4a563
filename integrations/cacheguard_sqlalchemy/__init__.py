"""Invalidation bound to SQLAlchemy sessions, and a transactional outbox.

PYTEST_DONT_REWRITE: beside a pytest plugin, pytest would warn whoever imports this before it.
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
