"""One extension, several apps; and what their settings come to."""

from __future__ import annotations

import gc
import hashlib
import weakref
from typing import Any

import pytest
from flask import Flask
from redis import Redis

from cacheguard import Breaker, CacheGuard, Policy
from cacheguard.errors import CacheGuardError, ConfigurationError
from cacheguard_flask import AppCache, CacheGuardFlask
from tests.integrations.flask.conftest import MakeApp


def test_each_app_has_a_guard_of_its_own_and_the_context_says_which(make_app: MakeApp) -> None:
    extension = CacheGuardFlask()
    one, other = make_app(extension, "one"), make_app(extension, "other")
    with one.app_context():
        extension.set("k", 1)
        of_one = extension.guard
        with other.app_context():
            assert extension.get("k") is None
            extension.set("k", 2)
            assert extension.guard is not of_one
        assert extension.get("k") == 1
    assert isinstance(one.extensions["cacheguard"], AppCache)
    assert one.extensions["cacheguard"].guard is of_one


def test_apps_of_other_names_share_a_redis_without_meeting(make_app: MakeApp, redis_url: str) -> None:
    extension = CacheGuardFlask()
    runs: list[str] = []

    @extension.memoize()
    def work(number: int) -> str:
        runs.append("run")
        return f"result {number}"

    one, other = make_app(extension, "one", url=redis_url), make_app(extension, "other", url=redis_url)
    for app in (one, other, one, other):
        with app.app_context():
            assert work(1) == "result 1"
    assert len(runs) == 2
    with one.app_context():
        extension.clear()
    with other.app_context():
        work(1)
    assert len(runs) == 2


def test_workers_of_one_app_share_what_is_in_redis(make_app: MakeApp, redis_url: str) -> None:
    extension = CacheGuardFlask()
    one, other = make_app(extension, url=redis_url), make_app(extension, url=redis_url)
    with one.app_context():
        extension.set("k", {"a": (1, 2)})
    with other.app_context():
        assert extension.get("k") == {"a": (1, 2)}


def test_without_a_context_an_app_given_to_the_constructor_is_meant(make_app: MakeApp) -> None:
    app = Flask("alone")
    extension = CacheGuardFlask(app)
    extension.set("k", 1)
    assert extension.get("k") == 1
    other = make_app(extension, "other")
    with other.app_context():
        assert extension.get("k") is None
    assert extension.get("k") == 1
    app.extensions["cacheguard"].close()


def test_without_a_context_and_without_an_app_it_is_said_what_is_missing(make_app: MakeApp) -> None:
    extension = CacheGuardFlask()
    make_app(extension)
    with pytest.raises(RuntimeError, match=r"app\.app_context\(\)"):
        _ = extension.guard


def test_an_app_of_another_extension_is_refused(make_app: MakeApp) -> None:
    with make_app().app_context(), pytest.raises(RuntimeError, match="init_app"):
        CacheGuardFlask().get("k")


def test_an_app_takes_one_extension_once(make_app: MakeApp) -> None:
    app = make_app()
    with pytest.raises(ConfigurationError, match="already"):
        CacheGuardFlask().init_app(app)


def test_an_extension_keeps_no_app_alive_and_the_end_of_an_app_closes_its_guard() -> None:
    extension = CacheGuardFlask()
    app = Flask("short")
    extension.init_app(app)
    guard = app.extensions["cacheguard"].guard
    with app.app_context():
        extension.set("k", 1)
    gone = weakref.ref(app)
    del app
    gc.collect()
    assert gone() is None
    with pytest.raises(CacheGuardError, match="closed"):
        guard.set("k", 1)


def test_closing_an_app_twice_is_once(make_app: MakeApp) -> None:
    cache = make_app().extensions["cacheguard"]
    cache.close()
    cache.close()
    with pytest.raises(CacheGuardError, match="closed"):
        cache.guard.set("k", 1)


# Settings

GOOD: dict[str, Any] = {
    "URL": "memory://",
    "NAMESPACE": "other",
    "L1_SIZE": 10,
    "L1_MAX_BYTES": 10_000,
    "L1_EVICTION": "lfu",
    "L1_COPY": True,
    "SECRET": "sixteen bytes or more",
    "MAX_VALUE_BYTES": 1000,
    "COMPRESSION": None,
    "COMPRESS_ABOVE": 10,
    "OPERATION_TIMEOUT": "100ms",
    "MAX_LOADS": 3,
    "LOAD_WAIT": 0.5,
    "LOAD_QUEUE": 7,
    "ON_STATE_CHANGE": print,
    "BREAKER": Breaker("database"),
    "FALLBACK": "something",
    "MAX_ABSENCES": 10,
    "ON_UNREACHABLE": "raise",
    "READ_FROM": "master",
    "AUDIT": 0.5,
    "TTL": "1m",
    "JITTER": 0.5,
    "HOT": True,
    "NULL_TTL": None,
    "NOT_FOUND": [KeyError],
    "REBUILD": "logical",
    "STALE_WHILE_REVALIDATE": "1m",
    "STALE_IF_ERROR": 30,
    "SOFT_TIMEOUT": 1,
    "HARD_TIMEOUT": 2,
    "WAIT_TIMEOUT": 1,
    "ERROR_BACKOFF": ["10ms", "1s"],
    "L1_TTL": "10s",
    "L1": True,
    "L2": True,
    "SOURCE_CHECK": True,
    "HASH_METHOD": hashlib.sha1,
    "DISABLED": False,
}

BAD: dict[str, Any] = {
    "URL": "http://localhost",
    "NAMESPACE": "",
    "L1_SIZE": 0,
    "L1_MAX_BYTES": "many",
    "L1_EVICTION": "newest",
    "L1_COPY": "yes",
    "SECRET": "short",
    "SERIALIZER": object(),
    "CLIENT": object(),
    "ACLIENT": object(),
    "MAX_VALUE_BYTES": 0,
    "COMPRESSION": "rar",
    "COMPRESS_ABOVE": -1,
    "OPERATION_TIMEOUT": 0,
    "MAX_LOADS": 0,
    "LOAD_WAIT": "soon",
    "LOAD_QUEUE": 0,
    "ON_STATE_CHANGE": "print",
    "BREAKER": "database",
    "MAX_ABSENCES": -1,
    "ON_UNREACHABLE": "cry",
    "READ_FROM": "anywhere",
    "OUTBOX": "",
    "ALONE": 1,
    "AUDIT": 2,
    "TTL": 0,
    "JITTER": 1,
    "HOT": "very",
    "NULL_TTL": "x",
    "NOT_FOUND": "KeyError",
    "REBUILD": "never",
    "STALE_WHILE_REVALIDATE": -1,
    "STALE_IF_ERROR": "x",
    "SOFT_TIMEOUT": True,
    "HARD_TIMEOUT": [],
    "WAIT_TIMEOUT": 0,
    "ERROR_BACKOFF": [1],
    "L1_TTL": 0,
    "L1": "off",
    "L2": 1,
    "SOURCE_CHECK": "no",
    "HASH_METHOD": "sha256",
    "DISABLED": 1,
}


@pytest.mark.parametrize("name", GOOD)
def test_every_option_and_every_field_of_the_policy_is_a_setting(make_app: MakeApp, name: str) -> None:
    make_app(**{name: GOOD[name]})


@pytest.mark.parametrize("name", BAD)
def test_a_setting_that_cannot_work_is_named_when_the_app_is_made(make_app: MakeApp, name: str) -> None:
    with pytest.raises(ConfigurationError, match=rf"CACHEGUARD_{name}\b"):
        make_app(**{name: BAD[name]})


def test_every_setting_is_tried_here() -> None:
    import inspect
    from dataclasses import fields

    options = set(inspect.signature(CacheGuard).parameters) - {"policy"}
    wanted = {name.upper() for name in options | {field.name for field in fields(Policy)}}
    assert wanted <= set(BAD) | {"FALLBACK"}  # which may be anything
    assert set(GOOD) - {"FALLBACK"} <= set(BAD)


def test_a_setting_that_does_not_exist_is_named(make_app: MakeApp) -> None:
    with pytest.raises(ConfigurationError, match="unknown setting CACHEGUARD_TIMEOUT"):
        make_app(timeout=5)


def test_two_settings_that_contradict_each_other_are_named(make_app: MakeApp) -> None:
    with pytest.raises(ConfigurationError, match="CACHEGUARD_L1=False"):
        make_app(l1=False, l2=False)


def test_settings_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLASK_CACHEGUARD_TTL", "90s")
    monkeypatch.setenv("FLASK_CACHEGUARD_L1_SIZE", "77")
    monkeypatch.setenv("FLASK_CACHEGUARD_SECRET", "sixteen bytes or more")
    monkeypatch.setenv("FLASK_CACHEGUARD_ERROR_BACKOFF", '["50ms", "1s"]')
    app = Flask("env")
    app.config.from_prefixed_env()
    extension = CacheGuardFlask(app, config={"CACHEGUARD_JITTER": 0})
    extension.set("k", 1)
    assert extension.guard.inspect("k").ttl_left == pytest.approx(90, abs=5)
    app.extensions["cacheguard"].close()


def test_a_client_of_the_users_own_is_a_setting(make_app: MakeApp, redis_url: str) -> None:
    with Redis.from_url(redis_url) as client:
        extension = CacheGuardFlask()
        app = make_app(extension, client=client)
        with app.app_context():
            extension.set("k", 1)
        app.extensions["cacheguard"].close()
        assert any(key.endswith(b":k") for key in client.scan_iter())


def test_a_disabled_cache_loads_everything(make_app: MakeApp) -> None:
    extension = CacheGuardFlask()
    app = make_app(extension, disabled=True)
    runs: list[int] = []

    @extension.memoize()
    def work() -> int:
        runs.append(1)
        return 1

    with app.app_context():
        assert work() == work() == 1
        extension.set("k", 1)
        assert extension.get("k") is None
    assert len(runs) == 2


# Keys and values


def test_keys_and_values_behave_as_in_flask_caching(app: Flask, extension: CacheGuardFlask) -> None:
    with app.app_context():
        assert extension.get("a") is None
        assert not extension.has("a")
        assert extension.set("a", 1) is True
        assert extension.has("a")
        assert extension.add("a", 2) is False
        assert extension.add("b", 2) is True
        assert extension.get_many("a", "b", "c") == [1, 2, None]
        assert extension.get_dict("b", "c") == {"b": 2, "c": None}
        assert extension.set_many({"c": 3, "d": None}, timeout=60) == ["c", "d"]
        assert extension.has("d")
        assert extension.delete("c") is True
        assert extension.delete("c") is False
        assert extension.delete_many("a", "b") == ["a", "b"]
        assert extension.get_many("a", "b") == [None, None]
        assert extension.clear() is True
        assert not extension.has("d")


def test_what_is_past_its_time_does_not_keep_another_from_being_added(make_app: MakeApp, redis_url: str) -> None:
    extension = CacheGuardFlask()
    with make_app(extension, url=redis_url, rebuild="logical").app_context():
        extension.set("k", "old")
        extension.guard.expire("k")
        assert extension.add("k", "new") is True
        assert extension.get("k") == "new"


def test_timeouts_mean_what_they_mean_in_flask(app: Flask, extension: CacheGuardFlask) -> None:
    from datetime import timedelta

    def left(timeout: Any) -> float:
        extension.set("k", 1, timeout=timeout)
        found = extension.guard.inspect("k").ttl_left
        assert found is not None
        return found

    with app.app_context():
        assert 250 < left(None) <= 300
        assert left(0) > 300 * 86_400
        assert left(timedelta(0)) > 300 * 86_400
        assert 50 < left(60) <= 60
        assert 50 < left("1m") <= 60
        assert 50 < left(timedelta(minutes=1)) <= 60
        for bad in (-1, True, "soon", float("nan")):
            with pytest.raises(ConfigurationError, match="timeout"):
                left(bad)
