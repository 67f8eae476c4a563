"""A shared HTTP cache as pure ASGI middleware."""

from .middleware import HTTPCacheMiddleware
from .request import url_key

__all__ = ["HTTPCacheMiddleware", "url_key"]
