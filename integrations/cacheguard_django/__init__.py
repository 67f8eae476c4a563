"""Django cache backend, and invalidation bound to transactions.

PYTEST_DONT_REWRITE: the distribution has a pytest plugin, so pytest would warn if this is imported before the plugin.
"""

from .access import guard
from .backend import CacheGuardCache
from .guards import close_guards
from .saving import SavedRows, changed, invalidate_on_save
from .transactions import ainvalidate, invalidate, invalidates, writing

__all__ = [
    "CacheGuardCache",
    "SavedRows",
    "ainvalidate",
    "changed",
    "close_guards",
    "guard",
    "invalidate",
    "invalidate_on_save",
    "invalidates",
    "writing",
]
