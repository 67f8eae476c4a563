"""Flask extension, and a backend for Flask-Caching.

PYTEST_DONT_REWRITE: the distribution has a pytest plugin, so pytest would warn if this is imported before the plugin.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .app_cache import AppCache
from .extension import CacheGuardFlask
from .fragments import make_template_fragment_key

if TYPE_CHECKING:
    from .backend import CacheGuardBackend, TypedSerializer

__all__ = ["AppCache", "CacheGuardBackend", "CacheGuardFlask", "TypedSerializer", "make_template_fragment_key"]

_OF_FLASK_CACHING = ("CacheGuardBackend", "TypedSerializer")


def __getattr__(name: str) -> Any:
    """Import the names that need Flask-Caching at their first use."""
    if name not in _OF_FLASK_CACHING:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        from . import backend
    except ModuleNotFoundError as error:
        raise ImportError(f"{name} needs Flask-Caching: pip install flask-caching") from error
    return getattr(backend, name)
