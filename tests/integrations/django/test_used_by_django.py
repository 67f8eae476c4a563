"""What Django itself does with a cache: sessions, whole pages, fragments; and what its limits are used for."""

from __future__ import annotations

from typing import Any

import pytest
from django.conf import settings
from django.contrib.sessions.backends.cache import SessionStore
from django.contrib.sessions.backends.cached_db import SessionStore as CachedDatabaseStore
from django.core.cache import caches
from django.template import Context, Template
from django.test import Client, override_settings

from cacheguard_django import CacheGuardCache
from tests.integrations.django import urls

SESSIONS = ["django.contrib.sessions.middleware.SessionMiddleware"]
PAGES = [
    "django.middleware.cache.UpdateCacheMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.cache.FetchFromCacheMiddleware",
]


@pytest.fixture(autouse=True)
def no_counts(cache: CacheGuardCache) -> None:
    urls.counts.clear()


@pytest.mark.parametrize("engine", ["cache", "cached_db"])
@pytest.mark.usefixtures("database")
def test_sessions_live_in_it(engine: str) -> None:
    with override_settings(SESSION_ENGINE=f"django.contrib.sessions.backends.{engine}", MIDDLEWARE=SESSIONS):
        client, other = Client(), Client()
        assert [client.get("/session/").content for _ in range(3)] == [b"1", b"2", b"3"]
        assert other.get("/session/").content == b"1"
        key = client.cookies[settings.SESSION_COOKIE_NAME].value
        kind: Any = SessionStore if engine == "cache" else CachedDatabaseStore
        assert kind(key).load() == {"visits": 3}
        kind().delete(key)
        assert client.get("/session/").content == b"1"


async def test_sessions_can_be_awaited(cache: CacheGuardCache) -> None:
    session: Any = SessionStore()
    if not hasattr(session, "asave"):
        pytest.skip("sessions have no async methods before Django 5.1")
    await session.acreate()
    await session.aset("visits", 1)
    await session.asave()
    again: Any = SessionStore(session.session_key)
    assert await again.aget("visits") == 1
    await again.adelete()
    assert await SessionStore(session.session_key).aget("visits") is None


def test_a_view_is_rendered_once() -> None:
    client = Client()
    assert {client.get("/page/").content for _ in range(3)} == {b"page 1"}
    caches["default"].clear()
    assert client.get("/page/").content == b"page 2"


def test_the_cache_middleware_stores_whole_pages() -> None:
    with override_settings(MIDDLEWARE=PAGES, CACHE_MIDDLEWARE_SECONDS=60):
        client = Client()
        bodies = {client.get("/fragment/", {"user": "a"}).content for _ in range(3)}
    assert bodies == {b"1"}
    assert urls.counts["fragment"] == 1


def test_a_fragment_is_rendered_once_for_each_of_its_keys() -> None:
    client = Client()
    assert [client.get("/fragment/", {"user": user}).content for user in "aab"] == [b"1", b"1", b"3"]


def test_a_fragment_can_use_a_cache_by_its_name(cache: CacheGuardCache) -> None:
    template = Template('{% load cache %}{% cache 60 side using="default" %}{{ number }}{% endcache %}')
    assert [template.render(Context({"number": number})) for number in (1, 2)] == ["1", "1"]


def test_a_limit_of_requests_counts_right(cache: CacheGuardCache) -> None:
    """As rate-limit packages do: add, then incr, then the time that is left."""

    def allowed(limit: int) -> bool:
        added = cache.add("rate:1.2.3.4", 1, timeout=60)
        return (1 if added else cache.incr("rate:1.2.3.4")) <= limit

    assert [allowed(3) for _ in range(5)] == [True, True, True, False, False]
    assert 50 < (cache.ttl("rate:1.2.3.4") or 0) <= 60
