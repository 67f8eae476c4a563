"""System checks, ``manage.py cacheguard``, and the panel of the debug toolbar."""

from __future__ import annotations

import pickle
from io import StringIO
from typing import Any

import pytest
import redis
from django.conf import settings
from django.core import checks
from django.core.cache import caches
from django.core.cache.backends.base import InvalidCacheBackendError
from django.core.management import CommandError, call_command
from django.test import Client, RequestFactory, override_settings

from cacheguard import CacheGuard
from cacheguard_django import CacheGuardCache
from cacheguard_django.checks import check_caches
from cacheguard_django.panels import CacheGuardPanel
from cacheguard_django.recording import recording
from tests.integrations.django.conftest import BACKEND, Configure
from tests.support.redis_server import RedisServer


def ids() -> list[str | None]:
    return [message.id for message in check_caches(None)]


# Checks


def test_the_checks_run_with_the_others(configure: Configure) -> None:
    configure(OPTIONS={"secret": None})
    found = checks.run_checks(tags=[checks.Tags.caches])
    assert [message.id for message in found] == ["cacheguard.W003"]


def test_settings_that_cannot_work_end_the_start(configure: Configure) -> None:
    configure({"broken": {"BACKEND": BACKEND, "LOCATION": "http://nowhere"}})
    with pytest.raises(InvalidCacheBackendError, match="url must begin with"):
        checks.run_checks(tags=[checks.Tags.caches])


def test_good_settings_are_not_complained_about(configure: Configure) -> None:
    configure(
        {
            "locmem": {"BACKEND": "django.core.cache.backends.locmem.LocMemCache"},
            "gone": {"BACKEND": "no.such.Backend"},
            "second": {"BACKEND": BACKEND, "LOCATION": "redis://localhost", "OPTIONS": {"l1": True}},
        }
    )
    assert ids() == []


def test_a_cache_for_one_process_is_complained_about_in_production(configure: Configure) -> None:
    configure(LOCATION="memory://")
    assert ids() == []
    with override_settings(DEBUG=False):
        assert ids() == ["cacheguard.W001"]


def test_sessions_in_a_cache_that_may_lag_are_complained_about(configure: Configure) -> None:
    configure(OPTIONS={"l1": True})
    assert ids() == []
    with override_settings(SESSION_ENGINE="django.contrib.sessions.backends.cache"):
        assert ids() == ["cacheguard.W002", "cacheguard.W006"]
    with override_settings(SESSION_ENGINE="django.contrib.sessions.backends.cached_db"):
        assert ids() == ["cacheguard.W002"]


def test_sessions_that_are_in_the_cache_alone_are_complained_about(configure: Configure) -> None:
    configure()
    with override_settings(SESSION_ENGINE="django.contrib.sessions.backends.cache"):
        assert ids() == ["cacheguard.W006"]
    with override_settings(SESSION_ENGINE="django.contrib.sessions.backends.cached_db"):
        assert ids() == []


@pytest.mark.parametrize("serializer", ["pickle", pickle])
def test_pickles_without_a_signature_are_complained_about(configure: Configure, serializer: Any) -> None:
    configure(OPTIONS={"secret": None, "serializer": serializer})
    assert ids() == ["cacheguard.W003"]
    configure(OPTIONS={"secret": None, "serializer": None})
    assert ids() == []


def test_requests_in_transactions_are_complained_about(configure: Configure, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(settings.DATABASES["default"], "ATOMIC_REQUESTS", True)
    configure()
    assert ids() == ["cacheguard.W004"]
    configure(OPTIONS={"fill_in_atomic": True})
    assert ids() == []


def test_caches_that_cannot_read_one_another_are_complained_about(configure: Configure, redis_url: str) -> None:
    configure({"other": {"BACKEND": BACKEND, "LOCATION": redis_url, "OPTIONS": {"secret": b"another secret!!"}}})
    assert ids() == ["cacheguard.W005"]


# The command


def run(*arguments: str) -> str:
    out = StringIO()
    call_command("cacheguard", *arguments, stdout=out, no_color=True)
    return out.getvalue()


def test_stats_say_how_many_entries_there_are(cache: CacheGuardCache) -> None:
    cache.set_many({"a": 1, "b": 2})
    said = run("stats")
    assert "entries                2\n" in said
    assert "maxmemory_policy" in said


def test_clear_removes_everything_in_the_namespace(cache: CacheGuardCache) -> None:
    cache.set("a", 1)
    assert run("clear") == "cleared django\n"
    assert cache.get("a") is None


def test_inspect_says_what_is_cached(cache: CacheGuardCache) -> None:
    cache.guard.set(":1:a", 1, tags=["t"], ttl=60, jitter=0)
    said = run("inspect", "a")
    assert "key                    :1:a\n" in said
    assert "state                  fresh\n" in said
    assert "tags                   t\n" in said
    assert "state                  missing\n" in run("inspect", "a", "--version", "2")


@pytest.fixture
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A round trip on a busy machine may take as long as it likes."""
    monkeypatch.setattr("cacheguard_django.management.commands.cacheguard.SLOW", 10.0)


@pytest.mark.usefixtures("_patient")
def test_the_doctor_finds_nothing_wrong_with_a_good_server(cache: CacheGuardCache) -> None:
    cache.get("anything")
    said = run("doctor")
    assert "ok     Redis answers\n" in said
    assert "ok     it can be deleted\n" in said
    assert cache.keys() == []


@pytest.mark.usefixtures("_patient")
def test_the_doctor_finds_a_server_that_will_be_full(cache: CacheGuardCache, redis_url: str) -> None:
    client = redis.Redis.from_url(redis_url)
    client.config_set("maxmemory", "100mb")
    client.config_set("maxmemory-policy", "noeviction")
    client.close()
    with pytest.raises(CommandError, match="1 of these are wrong"):
        run("doctor")


def test_the_doctor_finds_a_replica(cache: CacheGuardCache, redis_server: RedisServer) -> None:
    client = redis.Redis.from_url(redis_server.url)
    client.replicaof("127.0.0.1", "1")
    try:
        with pytest.raises(CommandError, match="are wrong"):
            run("doctor")
    finally:
        client.replicaof("NO", "ONE")
        client.close()


@pytest.mark.parametrize("action", ["stats", "clear", "inspect", "doctor"])
def test_a_command_says_that_redis_is_away(configure: Configure, action: str) -> None:
    configure(LOCATION="redis://127.0.0.1:1/0")
    with pytest.raises(CommandError):
        run(action, *(["a"] if action == "inspect" else []))


def test_a_cache_in_the_process_can_be_looked_after_too(configure: Configure) -> None:
    configure(LOCATION="memory://")
    assert "none: memory://" in run("stats")
    assert "ok     it can be counted\n" in run("doctor")


def test_a_cache_that_is_not_ours_is_refused(configure: Configure) -> None:
    configure({"locmem": {"BACKEND": "django.core.cache.backends.locmem.LocMemCache"}})
    with pytest.raises(CommandError, match=r"CACHES\['locmem'\] is a LocMemCache"):
        run("stats", "--alias", "locmem")
    with pytest.raises(CommandError, match="there is no cache 'nothing'"):
        run("stats", "--alias", "nothing")


# The panel


TOOLBAR = {
    "MIDDLEWARE": ["debug_toolbar.middleware.DebugToolbarMiddleware"],
    "DEBUG_TOOLBAR_PANELS": ["cacheguard_django.panels.CacheGuardPanel"],
    "DEBUG_TOOLBAR_CONFIG": {"SHOW_TOOLBAR_CALLBACK": lambda _request: True, "IS_RUNNING_TESTS": False},
    "INTERNAL_IPS": ["127.0.0.1"],
}


def test_the_toolbar_shows_what_a_request_asked_for(cache: CacheGuardCache) -> None:
    with override_settings(**TOOLBAR):
        body = Client().get("/toolbar/").content.decode()
    assert "4 calls in" in body


def test_the_panel_counts_and_describes(cache: CacheGuardCache) -> None:
    from debug_toolbar.toolbar import DebugToolbar

    request = RequestFactory().get("/")
    with override_settings(**TOOLBAR):
        answer: Any = None
        toolbar = DebugToolbar(request, lambda request: answer)
        panel: Any = CacheGuardPanel(toolbar, lambda request: answer)
        panel.enable_instrumentation()
        cache.set("a", 1)
        cache.get("a")
        cache.get("b")
        cache.get_many(["a", "c"])
        cache.guard.get_or_set("loaded", lambda: 1)
        panel.disable_instrumentation()
        cache.get("after-the-end")
        panel.generate_stats(request, None)
        stats: Any = panel.get_stats()
        content = panel.content
    calls = [(call["name"], call["key"], call["outcome"]) for call in stats["calls"]]
    assert calls == [("set", "a", ""), ("get", "a", "hit"), ("get", "b", "miss"), ("get_many", "a, c", "hit")]
    counts = dict(zip(stats["counters"], stats["guards"][0]["counts"], strict=True))
    assert counts["loads"] == 1
    assert counts["l2_hits"] == 2
    assert "<code>a, c</code>" in content
    assert panel.nav_subtitle.startswith("4 calls in")


async def test_what_is_awaited_is_written_down_too(cache: CacheGuardCache) -> None:
    with recording() as records:
        await cache.aset("a", 1)
        await cache.aget("a")
        await cache.aget("b")
        await cache.ahas_key(key="b")
    assert [(record.name, record.key, record.outcome) for record in records] == [
        ("aset", "a", ""),
        ("aget", "a", "hit"),
        ("aget", "b", "miss"),
        ("ahas_key", "b", "miss"),
    ]
    await cache.aget("unheard")
    assert len(records) == 4


def test_the_guard_behind_a_cache_is_a_guard_like_others(cache: CacheGuardCache) -> None:
    assert isinstance(cache.guard, CacheGuard)
    assert caches["default"] is cache

    @cache.guard.cached("twice:{number}")
    def twice(number: int) -> int:
        return 2 * number

    assert twice(4) == 8
    assert twice.peek(4) == 8
