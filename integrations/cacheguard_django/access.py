"""The guard behind a cache of ``CACHES``."""

from __future__ import annotations

from django.core.cache import caches
from django.core.exceptions import ImproperlyConfigured

from cacheguard import CacheGuard

from .backend import CacheGuardCache


def guard(alias: str = "default") -> CacheGuard:
    """Return the guard behind a cache of ``CACHES``: for ``@guard().cached(…)``, tags, Bloom filters, statistics.

    Raises:
        ImproperlyConfigured: the cache has another backend.
    """
    cache = caches[alias]
    if not isinstance(cache, CacheGuardCache):
        raise ImproperlyConfigured(
            f"CACHES[{alias!r}] has no guard: its BACKEND must be 'cacheguard_django.CacheGuardCache', "
            f"got {type(cache).__module__}.{type(cache).__qualname__}"
        )
    return cache.guard
