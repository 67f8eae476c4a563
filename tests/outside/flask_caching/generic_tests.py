"""What Flask-Caching asks of each of its backends, asked of CacheGuardBackend."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import pytest
from flask import Flask
from test_backend_cache import GenericCacheTests  # type: ignore[import-not-found]  # beside it when it runs

from cacheguard_flask import CacheGuardBackend

SETTINGS = {"CACHEGUARD_URL": os.environ.get("CONFORMANCE_REDIS_URL"), "SECRET_KEY": "a secret of this test run"}


class TestCacheGuardBackend(GenericCacheTests):  # type: ignore[misc]  # for the reason above
    @pytest.fixture
    def make_cache(self) -> Iterator[Callable[[], CacheGuardBackend]]:
        made: list[CacheGuardBackend] = []

        def make() -> CacheGuardBackend:
            made.append(CacheGuardBackend.factory(Flask("generic"), SETTINGS, [], {}))
            made[-1].clear()
            return made[-1]

        yield make
        for cache in made:
            cache.close()


del GenericCacheTests
