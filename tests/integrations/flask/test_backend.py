"""`CacheGuardBackend` under Flask-Caching; its own test suite is run by ``make conformance-flask-caching``."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from urllib.parse import urlsplit

import pytest
from cachelib.serializers import JSONSerializer
from flask import Flask
from flask_caching import Cache
from redis import Redis

from cacheguard.errors import ConfigurationError
from cacheguard.extending import FOREVER
from cacheguard_flask import CacheGuardBackend, TypedSerializer

SECRET_KEY = "a secret of the tests, long enough"
MakeCache = Callable[..., tuple[Flask, Cache]]


@dataclass
class Anything:
    """Something that only pickle can store."""

    value: Any


class Bomb:
    """Unpickling it goes off."""

    exploded = False

    def __reduce__(self) -> Any:
        return explode, ()


def explode() -> str:
    Bomb.exploded = True
    return "boom"


def behind(app: Flask, cache: Cache) -> CacheGuardBackend:
    backend = app.extensions["cache"][cache]
    assert isinstance(backend, CacheGuardBackend)
    return backend


@pytest.fixture
def make_cache(redis_url: str) -> Iterator[MakeCache]:
    made: list[CacheGuardBackend] = []

    def make(**config: Any) -> tuple[Flask, Cache]:
        app = Flask("shop")
        app.config.update(
            {"SECRET_KEY": SECRET_KEY, "CACHE_TYPE": "cacheguard_flask.CacheGuardBackend", "CACHE_REDIS_URL": redis_url}
            | config
        )
        cache = Cache(app)
        made.append(behind(app, cache))
        return app, cache

    yield make
    for backend in made:
        backend.close()


def test_values_of_any_kind_are_shared_by_workers_and_nobody_gets_anothers_object(make_cache: MakeCache) -> None:
    (one, cache), (other, there) = make_cache(), make_cache()
    value = Anything([1, {"a": Anything(None)}])
    with one.app_context():
        assert cache.set("k", value) is True
        mine = cache.get("k")
        mine.value.append("changed by who got it")
        assert cache.get("k") == value
    with other.app_context():
        assert there.get("k") == value
        assert there.get_many("k", "nothing") == [value, None]
        assert there.get_dict("k", "nothing") == {"k": value, "nothing": None}
        assert there.delete("k") is True
        assert there.delete("k") is False
        assert there.has("k") is False


def test_none_is_told_from_nothing(make_cache: MakeCache) -> None:
    app, cache = make_cache()
    with app.app_context():
        cache.set("k", None)
        assert cache.get("k") is None
        assert cache.has("k")
        assert not cache.has("other")


def test_a_timeout_of_more_than_a_year_is_cut_and_that_is_said_once(
    make_cache: MakeCache, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cacheguard.extending._cut", set())
    app, cache = make_cache()
    with app.app_context():
        for timeout in (10 * FOREVER, timedelta(days=4000)):
            cache.set("k", 1, timeout=timeout)
            cache.set_many({"many": None}, timeout=timeout)
            assert (cache.get("k"), cache.add("k", 2, timeout=timeout)) == (1, False)
    assert ["365 days" in record.message for record in caplog.records] == [True]


def test_nothing_unsigned_is_ever_unpickled(make_cache: MakeCache, redis_url: str) -> None:
    app, cache = make_cache()
    forger, forging = make_cache(SECRET_KEY="another secret, also long enough")
    with forger.app_context():
        forging.set("k", Bomb())
    with app.app_context():
        assert cache.get("k") is None
        assert behind(app, cache).guard.stats().undecodable == 1
        cache.set("good", "value")
        cache.set("bad", "value")
    with Redis.from_url(redis_url) as client:
        good, bad = (next(key for key in client.scan_iter() if key.endswith(name)) for name in (b":good", b":bad"))
        client.set(bad, client.get(good))  # signed, but for another key
    fresh, again = make_cache()
    with fresh.app_context():
        assert again.get("good") == "value"
        assert again.get("bad") is None
    assert Bomb.exploded is False


@pytest.mark.parametrize("key", [None, "", "dev", b"fifteen bytes.."])
def test_pickle_in_redis_needs_a_secret(make_cache: MakeCache, key: Any) -> None:
    with pytest.raises(ConfigurationError, match="SECRET_KEY"):
        make_cache(SECRET_KEY=key)


def test_there_are_ways_without_a_secret_key(make_cache: MakeCache) -> None:
    for config in (
        {"CACHE_OPTIONS": {"secret": "sixteen bytes or more"}},
        {"CACHE_OPTIONS": {"secret": b"sixteen bytes or more"}},
        {"CACHE_SERIALIZER": TypedSerializer},
        {"CACHE_SERIALIZER": JSONSerializer()},
        {"CACHE_REDIS_URL": "", "CACHE_OPTIONS": {"url": "memory://"}},
    ):
        app, cache = make_cache(SECRET_KEY=None, **config)
        with app.app_context():
            cache.set("k", {"a": [1, 2]})
            assert cache.get("k") == {"a": [1, 2]}


def test_a_secret_key_can_be_replaced(make_cache: MakeCache) -> None:
    app, cache = make_cache()
    with app.app_context():
        cache.set("k", "old")
    app, cache = make_cache(SECRET_KEY="a newer secret, long enough, too", SECRET_KEY_FALLBACKS=[SECRET_KEY])
    with app.app_context():
        assert cache.get("k") == "old"


def test_what_has_no_bytes_is_not_stored(make_cache: MakeCache) -> None:
    app, cache = make_cache(CACHE_SERIALIZER=TypedSerializer)
    with app.app_context():
        assert cache.set("k", Anything(1)) is False
        assert cache.add("k", Anything(1)) is False
        assert cache.set_many({"a": 1, "b": Anything(1)}) == ["a"]
        assert cache.get_many("k", "a", "b") == [None, 1, None]


def test_what_was_pickled_of_a_class_that_is_gone_is_a_miss(
    make_cache: MakeCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    app, cache = make_cache()
    with app.app_context():
        cache.set("k", Anything(1))
        assert cache.get("k") == Anything(1)
        monkeypatch.delattr(sys.modules[__name__], "Anything")
        assert cache.get("k") is None


def test_timeouts_are_exact_and_zero_is_for_ever(make_cache: MakeCache) -> None:
    app, cache = make_cache(CACHE_DEFAULT_TIMEOUT=100)

    def left(timeout: Any) -> float:
        cache.set("k", 1, timeout=timeout)
        found = behind(app, cache).guard.inspect("k").ttl_left
        assert found is not None
        return found

    with app.app_context():
        assert 99 < left(None) <= 100
        assert 59 < left(60) <= 60
        assert 59 < left(timedelta(minutes=1)) <= 60
        assert left(0) > 86_400


def test_of_many_who_add_one_is_told_yes(make_cache: MakeCache) -> None:
    caches = [make_cache() for _ in range(2)]
    barrier = threading.Barrier(16, timeout=20)

    def add(number: int) -> bool:
        app, cache = caches[number % 2]
        with app.app_context():
            barrier.wait()
            return cache.add("k", number)

    with ThreadPoolExecutor(16) as threads:
        told = list(threads.map(add, range(16)))
    assert told.count(True) == 1
    for app, cache in caches:
        with app.app_context():
            assert cache.get("k") == told.index(True)


def test_integers_can_be_counted_with(make_cache: MakeCache) -> None:
    app, cache = make_cache()
    with app.app_context():
        assert [cache.cache.inc("n"), cache.cache.inc("n", 5), cache.cache.dec("n", 2)] == [1, 6, 4]
        assert cache.get("n") == 4
        cache.set("flag", True)
        assert cache.get("flag") is True


def test_workers_and_threads_that_count_lose_nothing(make_cache: MakeCache) -> None:
    backends = [behind(*make_cache()) for _ in range(2)]  # as two processes would have them
    with ThreadPoolExecutor(8) as threads:
        sums = list(threads.map(lambda turn: backends[turn % 2].inc("n"), range(100)))
    assert set(sums) == set(range(1, 101))


def test_memoize_and_cached_of_flask_caching_work_on_it(make_cache: MakeCache) -> None:
    app, cache = make_cache()
    runs: list[int] = []

    @cache.memoize(60)
    def work(number: int) -> Anything:
        runs.append(number)
        return Anything(number)

    @app.get("/")
    @cache.cached(60)
    def view() -> str:
        return str(work(1).value)

    client = app.test_client()
    assert [client.get("/").text for _ in range(2)] == ["1", "1"]
    with app.app_context():
        assert work(1) == Anything(1)
        cache.delete_memoized(work)
        work(1)
    assert runs == [1, 1]


def test_apps_are_told_apart_by_their_prefix_and_clear_keeps_to_its_own(make_cache: MakeCache) -> None:
    one, cache = make_cache(CACHE_KEY_PREFIX="one_")
    other, there = make_cache(CACHE_KEY_PREFIX="other_")
    for app, each in ((one, cache), (other, there)):
        with app.app_context():
            assert each.get("k") is None
            each.set("k", app.config["CACHE_KEY_PREFIX"])
    with one.app_context():
        assert cache.clear() is True
        assert cache.get("k") is None
    with other.app_context():
        assert there.get("k") == "other_"


def test_redis_is_found_by_the_names_that_flask_caching_has_for_it(make_cache: MakeCache, redis_url: str) -> None:
    place = urlsplit(redis_url)
    app, cache = make_cache(
        CACHE_REDIS_URL=None, CACHE_REDIS_HOST=place.hostname, CACHE_REDIS_PORT=place.port, CACHE_REDIS_DB=3
    )
    with app.app_context():
        cache.set("k", 1)
    with Redis.from_url(redis_url.replace("/0", "/3")) as client:
        assert any(key.endswith(b":k") for key in client.scan_iter())


@pytest.mark.parametrize(
    ("config", "word"),
    [
        ({"CACHE_OPTIONS": {"colour": "red"}}, "colour"),
        ({"CACHE_OPTIONS": {"ttl": 5}}, "ttl"),
        ({"CACHE_OPTIONS": {"l1_size": 0}}, "l1_size"),
        ({"CACHE_OPTIONS": {"jitter": 2}}, "jitter"),
        ({"CACHE_REDIS_URL": "http://localhost"}, "url"),
        ({"CACHE_ARGS": [1]}, "CACHE_ARGS"),
        ({"CACHE_REDIS_URL": None, "CACHE_REDIS_HOST": 5}, "CACHE_REDIS_HOST"),
    ],
)
def test_a_setting_that_cannot_work_is_named(make_cache: MakeCache, config: dict[str, Any], word: str) -> None:
    with pytest.raises(ConfigurationError, match=word):
        make_cache(**config)


def test_the_extension_needs_no_flask_caching() -> None:
    script = """
import sys
sys.modules["flask_caching"] = None
import cacheguard_flask
from cacheguard_flask import CacheGuardFlask
try:
    cacheguard_flask.CacheGuardBackend
except ImportError as error:
    assert "pip install flask-caching" in str(error)
else:
    raise AssertionError
try:
    cacheguard_flask.Nothing
except AttributeError as error:
    assert "Nothing" in str(error)
else:
    raise AssertionError
"""
    subprocess.run([sys.executable, "-W", "error", "-c", script], check=True)
