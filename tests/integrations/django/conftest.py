"""A Django project: one app, SQLite, caches on the server that the test asks for."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import django
import pytest
from django.conf import settings
from django.core.cache import caches
from django.core.management import call_command
from django.core.management.color import no_style
from django.core.management.sql import sql_flush
from django.db import connections
from django.test import override_settings

from cacheguard_django import CacheGuardCache, close_guards

BACKEND = "cacheguard_django.CacheGuardCache"

_home = tempfile.TemporaryDirectory(prefix="cacheguard-django-", ignore_cleanup_errors=True)

if not settings.configured:
    settings.configure(
        SECRET_KEY="a secret of the tests",
        DEBUG=True,
        ALLOWED_HOSTS=["*"],
        ROOT_URLCONF="tests.integrations.django.urls",
        INSTALLED_APPS=[
            "django.contrib.contenttypes",
            "django.contrib.sessions",
            "django.contrib.staticfiles",
            "debug_toolbar",
            "cacheguard_django",
            "tests.integrations.django.shop",
        ],
        MIDDLEWARE=[],
        STATIC_URL="/static/",
        TEMPLATES=[
            {
                "BACKEND": "django.template.backends.django.DjangoTemplates",
                "APP_DIRS": True,
                "OPTIONS": {"context_processors": ["django.template.context_processors.request"]},
            }
        ],
        DATABASES={
            name: {
                "ENGINE": "django.db.backends.sqlite3",
                "NAME": str(Path(_home.name) / f"{name}.sqlite3"),
                "OPTIONS": {"timeout": 30, "init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=OFF"},
            }
            for name in ("default", "other")
        },
        DEFAULT_AUTO_FIELD="django.db.models.BigAutoField",
        USE_TZ=True,
        CACHES={"default": {"BACKEND": BACKEND, "LOCATION": "memory://"}},
    )
    django.setup()


import_module("tests.integrations.django.shop.more_models")  # before the tables are made


@pytest.fixture(scope="session")
def tables() -> Iterator[None]:
    for name in ("default", "other"):
        call_command("migrate", database=name, run_syncdb=True, verbosity=0)
    connections.close_all()
    yield
    connections.close_all()


def _empty(connection: Any) -> None:
    """Delete all rows, and count anew. Django's own ``flush`` takes ten times as long for the events that it sends."""
    statements = sql_flush(no_style(), connection, reset_sequences=True, allow_cascade=False)
    connection.ops.execute_sql_flush(statements)


@pytest.fixture
def database(tables: None) -> Iterator[None]:
    """Empty tables in two databases."""
    yield
    for name in ("default", "other"):
        _empty(connections[name])
    connections.close_all()


Configure = Callable[..., CacheGuardCache]


@pytest.fixture
def configure(redis_url: str) -> Iterator[Configure]:
    """Makes ``CACHES["default"]`` from keyword settings, on a clean Redis unless they say otherwise."""
    overridden: list[Any] = []

    def make(others: dict[str, Any] | None = None, **entry: Any) -> CacheGuardCache:
        override = override_settings(
            CACHES={"default": {"BACKEND": BACKEND, "LOCATION": redis_url, **entry}, **(others or {})}
        )
        override.enable()
        overridden.append(override)
        cache = caches["default"]
        assert isinstance(cache, CacheGuardCache)
        return cache

    yield make
    for override in reversed(overridden):
        override.disable()
    close_guards()


@pytest.fixture
def cache(configure: Configure) -> CacheGuardCache:
    """The default cache, with no settings but its address."""
    return configure()
