"""Stands beside Flask-Caching's tests: their app has the backend that CONFORMANCE_CACHE_TYPE names."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import flask
import pytest
import redis
from passing_time import let_pass  # type: ignore[import-not-found]  # beside it when it runs

TYPE = os.environ["CONFORMANCE_CACHE_TYPE"]
URL = os.environ.get("CONFORMANCE_REDIS_URL")


@pytest.fixture
def app(request: pytest.FixtureRequest) -> Iterator[flask.Flask]:
    if URL is not None:
        with redis.Redis.from_url(URL) as client:
            client.flushall()
    app = flask.Flask(request.module.__name__, template_folder=str(Path(__file__).parent))
    app.testing = True
    app.config["CACHE_TYPE"] = TYPE
    app.config["SECRET_KEY"] = "a secret for the signatures of this test run"
    if URL is not None:
        app.config["CACHEGUARD_URL"] = URL
        app.config["CACHE_REDIS_URL"] = URL
    yield app
    for cache in app.extensions.get("cache", {}).values():
        if hasattr(cache, "guard"):
            cache.close()


@pytest.fixture
def clock(clock: Any) -> Any:
    """Their clock, which the backends of cachelib read, and everybody else's."""
    theirs = clock.advance

    def advance(seconds: float) -> None:
        theirs(seconds)
        let_pass(seconds, URL)

    clock.advance = advance
    return clock
