from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from flask import Flask

from cacheguard_flask import CacheGuardFlask

MakeApp = Callable[..., Flask]


@pytest.fixture(autouse=True)
def _no_url_around(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CACHEGUARD_URL", raising=False)


@pytest.fixture
def make_app() -> Iterator[MakeApp]:
    """Makes apps that share the caches of one extension, and closes them in the end."""
    made: list[Flask] = []

    def make(extension: CacheGuardFlask | None = None, name: str = "shop", **settings: Any) -> Flask:
        app = Flask(name)
        app.testing = True
        app.config.update(SECRET_KEY="a secret of the tests, long enough")
        app.config.update({f"CACHEGUARD_{key.upper()}": value for key, value in settings.items()})
        (extension or CacheGuardFlask()).init_app(app)
        made.append(app)
        return app

    yield make
    for app in made:
        app.extensions["cacheguard"].close()


@pytest.fixture(params=["memory", "redis"])
def url(request: pytest.FixtureRequest, redis_url: str) -> str:
    return "memory://" if request.param == "memory" else redis_url


@pytest.fixture
def extension() -> CacheGuardFlask:
    return CacheGuardFlask()


@pytest.fixture
def app(make_app: MakeApp, extension: CacheGuardFlask, url: str) -> Flask:
    return make_app(extension, url=url)
