"""Django cache backend, and invalidation bound to transactions.

PYTEST_DONT_REWRITE: beside a pytest plugin, pytest would warn whoever imports this before it.
"""

from .access import guard
from .backend import CacheGuardCache
from .guards import close_guards
from .saving import SavedRows, invalidate_on_save
from .transactions import invalidate, invalidates, writing

__all__ = [
    "CacheGuardCache",
    "SavedRows",
    "close_guards",
    "guard",
    "invalidate",
    "invalidate_on_save",
    "invalidates",
    "writing",
]
