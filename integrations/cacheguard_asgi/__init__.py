"""A shared HTTP cache as pure ASGI middleware.

PYTEST_DONT_REWRITE: the distribution has a pytest plugin, so pytest would warn if this is imported before the plugin.
"""

from .middleware import HTTPCacheMiddleware
from .request import url_key

__all__ = ["HTTPCacheMiddleware", "url_key"]
