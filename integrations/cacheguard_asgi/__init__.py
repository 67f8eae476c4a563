"""A shared HTTP cache as pure ASGI middleware.

PYTEST_DONT_REWRITE: beside a pytest plugin, pytest would warn whoever imports this before it.
"""

from .middleware import HTTPCacheMiddleware
from .request import url_key

__all__ = ["HTTPCacheMiddleware", "url_key"]
