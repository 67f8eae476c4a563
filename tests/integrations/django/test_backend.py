"""Django's cache API, and what users of django-redis know, through the blocking methods and their twins."""

from __future__ import annotations

import asyncio
import os
import pickle
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from inspect import isasyncgenfunction, iscoroutinefunction
from types import SimpleNamespace
from typing import Any

import pytest
import redis
from django.core.cache import caches
from django.core.cache.backends.base import BaseCache, CacheKeyWarning, InvalidCacheBackendError
from django.core.exceptions import ImproperlyConfigured
from django.core.signals import request_finished
from django.test import override_settings

from cacheguard import CacheGuard
from cacheguard.errors import ConfigurationError, KeyTemplateError
from cacheguard.extending import FOREVER
from cacheguard_django import CacheGuardCache, close_guards, guard
from tests.integrations.django.conftest import BACKEND, Configure
from tests.support.faults import Fault, FaultProxy


class Either:
    """A cache whose methods are all awaited: the blocking ones in a thread, or their twins."""

    def __init__(self, cache: CacheGuardCache, *, twins: bool) -> None:
        self.cache, self.twins = cache, twins

    def __getattr__(self, name: str) -> Any:
        if self.twins:
            return getattr(self.cache, f"a{name}")

        async def called(*args: Any, **kwargs: Any) -> Any:
            return await asyncio.to_thread(getattr(self.cache, name), *args, **kwargs)

        return called


@pytest.fixture(params=["blocking", "twins"])
def twins(request: pytest.FixtureRequest) -> bool:
    return bool(request.param == "twins")


@pytest.fixture(params=["redis", "in the process", "l1"])
def either(request: pytest.FixtureRequest, configure: Configure, twins: bool) -> Either:
    entries: dict[str, dict[str, Any]] = {
        "redis": {},
        "in the process": {"LOCATION": "memory://"},
        "l1": {"OPTIONS": {"l1": True}},
    }
    entry = entries[request.param]
    return Either(configure(**entry), twins=twins)


def test_every_method_of_django_has_a_native_twin() -> None:
    for name in dir(BaseCache):
        if name.startswith("a") and iscoroutinefunction(getattr(BaseCache, name)):
            own = getattr(CacheGuardCache, name)
            inherited = own is getattr(BaseCache, name)
            # These two are Django's: they are made of aget, aset and adelete.
            assert not inherited or name in {"aincr_version", "adecr_version"}, name
    for name in ("ttl", "pttl", "expire", "pexpire", "expire_at", "pexpire_at", "persist", "keys", "delete_pattern"):
        assert iscoroutinefunction(getattr(CacheGuardCache, f"a{name}"))
    assert isasyncgenfunction(CacheGuardCache.aiter_keys)


async def test_what_is_set_is_there_until_its_time_is_over(either: Either) -> None:
    await either.set("k", {"a": [1, 2]}, timeout=100)
    assert await either.get("k") == {"a": [1, 2]}
    assert 99 <= await either.ttl("k") <= 100
    await either.set("k", 1, timeout=0)
    assert await either.get("k", "gone") == "gone"
    await either.set("k", 1, timeout=None)
    assert await either.ttl("k") is None
    await either.set("k", 1, timeout=-5)
    assert await either.has_key("k") is False
    assert await either.ttl("k") == 0


async def test_timeouts_are_exact(either: Either) -> None:
    await either.set_many({str(number): number for number in range(20)}, timeout=1000)
    assert {round((await either.pttl(str(number))) / 1000) for number in range(20)} == {1000}


async def test_a_timeout_of_more_than_a_year_is_cut_and_that_is_said_once(
    either: Either, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cacheguard.extending._cut", set())
    for timeout in (10 * FOREVER, 20 * FOREVER):
        await either.set("k", 1, timeout=timeout)
        assert await either.get("k") == 1
        assert await either.expire("k", timeout) is True
    assert [record.message for record in caplog.records].count(caplog.records[0].message) == len(caplog.records) == 1
    assert "365 days" in caplog.text


def test_a_default_timeout_of_more_than_a_year_is_refused(configure: Configure) -> None:
    with pytest.raises(InvalidCacheBackendError, match="TIMEOUT must be at most 365 days"):
        configure(TIMEOUT=10 * FOREVER)


async def test_what_is_over_is_not_served(either: Either) -> None:
    await either.set("k", 1, timeout=0.05)
    while await either.get("k") is not None:
        await asyncio.sleep(0.01)
    assert await either.get_many(["k"]) == {}
    assert await either.has_key("k") is False
    assert await either.touch("k", 10) is False
    assert await either.delete("k") is False
    with pytest.raises(ValueError, match="'k' not found"):
        await either.incr("k")


async def test_none_is_a_value(either: Either) -> None:
    await either.set("k", None)
    assert await either.get("k", "default") is None
    assert await either.has_key("k") is True
    assert await either.touch("k", 100) is True
    assert await either.touch("k", None) is True
    assert await either.ttl("k") is None
    assert await either.get_or_set("other", lambda: None, 60) is None
    assert await either.get("other", "default") is None
    assert await either.expire("other", 100) is True
    assert 90 < await either.ttl("other") <= 100


async def test_many_at_once(either: Either) -> None:
    assert await either.set_many({"a": 1, "b": 2, "c{d}": 3}) == []
    assert await either.get_many(["a", "c{d}", "none"]) == {"a": 1, "c{d}": 3}
    await either.delete_many(["a", "c{d}"])
    assert await either.get_many(iter(["a", "b", "c{d}"])) == {"b": 2}
    assert await either.set_many({}) == []
    await either.set_many({"a": 1}, timeout=0)
    assert await either.get("a") is None


async def test_the_ends_of_a_key_can_be_moved(either: Either) -> None:
    await either.set("k", 1, timeout=1000)
    assert await either.persist("k") is True
    assert await either.ttl("k") is None
    assert await either.expire("k", 100) is True
    assert 99 <= await either.ttl("k") <= 100
    assert await either.pexpire("k", timedelta(seconds=50)) is True
    assert 49 <= await either.ttl("k") <= 50
    assert await either.expire_at("k", datetime.now(UTC) + timedelta(seconds=200)) is True
    assert 199 <= await either.ttl("k") <= 200
    assert await either.pexpire_at("k", (time.time() + 300) * 1000) is True
    assert 299_000 < await either.pttl("k") <= 300_000
    assert await either.expire("k", 0) is True
    assert await either.get("k") is None
    assert await either.persist("k") is False


async def test_of_many_who_add_one_is_told_so(either: Either) -> None:
    told = await asyncio.gather(*(either.add("k", number) for number in range(10)))
    assert sorted(told) == [False] * 9 + [True]
    assert await either.add("other", 1, timeout=0) is True
    assert await either.get("other") is None
    assert await either.set("k", "again", nx=True) is False
    assert await either.set("new", "first", nx=True) is True


async def test_no_step_of_a_counter_is_lost(either: Either) -> None:
    await either.set("k", 0, timeout=1000)
    await asyncio.gather(*(either.incr("k") for _ in range(25)), *(either.decr("k", 2) for _ in range(5)))
    assert await either.get("k") == 15
    assert 990 < await either.ttl("k") <= 1000
    await either.set("text", "a")
    with pytest.raises(TypeError):
        await either.incr("text")


async def test_a_function_is_called_once_for_all_who_ask(either: Either) -> None:
    called: list[int] = []

    def load() -> int:
        called.append(1)
        time.sleep(0.05)
        return 42

    assert await asyncio.gather(*(either.get_or_set("k", load, 60) for _ in range(10))) == [42] * 10
    assert len(called) == 1
    assert await either.get("k") == 42
    assert await either.get_or_set("plain", 7) == 7
    assert await either.get("plain") == 7
    assert await either.get_or_set("never", load, 0) == 42
    assert await either.get("never") is None


async def test_a_coroutine_function_is_a_default_too(cache: CacheGuardCache) -> None:
    async def load() -> int:
        return 42

    assert await cache.aget_or_set("k", load) == 42
    assert await cache.aget("k") == 42
    assert await cache.aget_or_set("never", load, 0) == 42


async def test_keys_are_found_by_pattern_as_they_were_given(either: Either) -> None:
    await either.set_many({f"user:{number}": 1 for number in range(12)})
    await either.set_many({"a~b": 1, "ä{x}": 1, "100%": 1, "#tag": 1, "with[brackets]": 1})
    await either.set("user:99", 1, version=2)
    assert sorted(await either.keys("user:1*")) == ["user:1", "user:10", "user:11"]
    assert sorted(await either.keys("user:?")) == [f"user:{number}" for number in range(10)]
    assert await either.keys("user:*", version=2) == ["user:99"]
    assert await either.keys("ä*") == ["ä{x}"]
    assert await either.keys("a~*") == ["a~b"]
    assert await either.keys("100%") == ["100%"]
    assert await either.keys("#*") == ["#tag"]
    assert await either.keys(r"with\[*") == ["with[brackets]"]
    assert len(await either.keys()) == 17
    assert await either.delete_pattern("user:*") == 12
    assert await either.delete_pattern("user:*") == 0
    assert await either.get("user:99", version=2) == 1
    assert len(await either.keys("*")) == 5


async def test_keys_are_iterated_page_by_page(cache: CacheGuardCache) -> None:
    cache.set_many({f"k{number}": number for number in range(250)})
    assert sorted(set(cache.iter_keys("k*", itersize=20))) == sorted(f"k{number}" for number in range(250))
    assert {key async for key in cache.aiter_keys("k*", itersize=20)} == {f"k{number}" for number in range(250)}
    assert cache.delete_pattern("k*", itersize=1000) == 250


def test_prefixes_and_key_functions_are_taken_off_again(configure: Configure) -> None:
    cache = configure(KEY_PREFIX="site:[1]*", VERSION=3)
    cache.set("a:b:c", 1)
    assert cache.keys("a*") == ["a:b:c"]
    other = configure(
        KEY_FUNCTION="tests.integrations.django.test_backend.reversing_key",
        OPTIONS={"reverse_key_function": "tests.integrations.django.test_backend.reversed_key", "namespace": "other"},
    )
    other.set("k", 1)
    assert other.keys("*") == ["k"]


def test_a_key_that_memcached_would_refuse_is_stored_and_listed(cache: CacheGuardCache) -> None:
    with pytest.warns(CacheKeyWarning, match="characters that will cause errors"):
        cache.set("a b", 1)
    assert cache.keys("a *") == ["a b"]
    assert cache.delete_pattern("a *") == 1


def reversing_key(key: str, prefix: str, version: int) -> str:
    return f"{version}-{prefix}-{key}"


def reversed_key(key: str) -> str:
    return key.split("-", 2)[2]


async def test_clear_leaves_what_is_not_ours(either: Either, redis_url: str) -> None:
    client = redis.Redis.from_url(redis_url)
    client.set("foreign", "stays")
    await either.set("k", 1)
    await either.clear()
    assert await either.get("k") is None
    assert await either.keys() == []
    assert client.get("foreign") == b"stays"
    client.close()


async def test_versions_can_be_moved(either: Either) -> None:
    await either.set("k", 1)
    assert await either.incr_version("k") == 2
    assert await either.get("k") is None
    assert await either.get("k", version=2) == 1
    assert await either.decr_version("k", version=2) == 1
    assert await either.get("k") == 1


async def test_who_changes_what_he_got_changes_nothing_in_the_cache(either: Either) -> None:
    await either.set("k", [1])
    for _ in range(2):
        (await either.get("k")).append(2)
    assert await either.get("k") == [1]


class Unpicklable:
    def __getstate__(self) -> Any:
        raise pickle.PickleError("not me")


async def test_what_cannot_be_pickled_is_said_in_the_words_of_pickle(cache: CacheGuardCache, twins: bool) -> None:
    either = Either(cache, twins=twins)
    for name, arguments in (
        ("set", ("k", Unpicklable())),
        ("add", ("k", Unpicklable())),
        ("set_many", ({"k": Unpicklable()},)),
    ):
        with pytest.raises(pickle.PickleError, match="not me"):
            await getattr(either, name)(*arguments)


async def test_what_is_too_large_is_not_stored_and_nothing_older_stays(configure: Configure, twins: bool) -> None:
    either = Either(configure(OPTIONS={"max_value_bytes": 1000}), twins=twins)
    await either.set("k", "old")
    assert await either.set("k", "x" * 2000) is False
    assert await either.get("k") is None
    await either.set("k", "old")
    assert await either.set_many({"k": "x" * 2000, "other": 1}) == ["k"]
    assert await either.get_many(["k", "other"]) == {"other": 1}


def test_a_lock_lets_one_in(cache: CacheGuardCache) -> None:
    with cache.lock("import", timeout=10):
        assert cache.lock("import").acquire(blocking=False) is False
        assert cache.lock("export").acquire(blocking=False) is True
        cache.clear()
        assert cache.lock("import").acquire(blocking=False) is False
    assert cache.lock("import", timeout=5, blocking_timeout=1).acquire() is True
    assert cache.keys() == []


def test_without_redis_there_is_no_lock(configure: Configure) -> None:
    with pytest.raises(ConfigurationError, match="memory://"):
        configure(LOCATION="memory://").lock("k")


def test_one_guard_for_all_threads_and_it_survives_the_end_of_a_request(cache: CacheGuardCache) -> None:
    with ThreadPoolExecutor(4) as pool:
        barrier = threading.Barrier(4)

        def seen(_: int) -> tuple[int, CacheGuard]:
            barrier.wait(10)
            return id(caches["default"]), guard()

        found = list(pool.map(seen, range(4)))
    assert len({each for each, _ in found}) == 4
    assert {id(each) for _, each in found} == {id(cache.guard)}
    cache.set("k", 1)
    request_finished.send(sender=None)
    assert not cache.guard.closed
    assert caches["default"].get("k") == 1


def test_equal_settings_share_a_guard_and_others_do_not(configure: Configure, redis_url: str) -> None:
    same = {"BACKEND": BACKEND, "LOCATION": redis_url}
    configure(
        {
            "same": {**same, "KEY_PREFIX": "p", "VERSION": 2},
            "other": {**same, "OPTIONS": {"namespace": "other"}},
            "locmem": {"BACKEND": "django.core.cache.backends.locmem.LocMemCache"},
        }
    )
    assert guard() is guard("same")
    assert guard() is not guard("other")
    with pytest.raises(ImproperlyConfigured, match=r"CACHES\['locmem'\] has no guard"):
        guard("locmem")


def test_a_closed_guard_is_replaced(cache: CacheGuardCache) -> None:
    cache.set("k", 1)
    close_guards()
    assert cache.guard.closed
    with override_settings(CACHES=dict(__import__("django.conf").conf.settings.CACHES)):
        assert caches["default"].get("k") == 1


def test_a_pickle_that_nobody_has_signed_is_never_opened(cache: CacheGuardCache, configure: Configure) -> None:
    cache.set("k", "ours")
    unsigned = SimpleNamespace(dumps=pickle.dumps, loads=bytes)
    with CacheGuard(cache.settings.url, namespace="django", serializer=unsigned) as thief:
        thief.set(":1:k", Evil())
    assert cache.get("k", "a miss") == "a miss"
    with CacheGuard(cache.settings.url, namespace="django", serializer=pickle, secret=b"another secret!!") as thief:
        thief.set(":1:k", Evil())
    assert cache.get("k", "a miss") == "a miss"
    assert opened_by_the_thief == []


opened_by_the_thief: list[int] = []


class Evil:
    def __reduce__(self) -> Any:
        return opened_by_the_thief.append, (1,)


def test_a_new_secret_key_reads_what_a_former_one_has_signed(cache: CacheGuardCache, configure: Configure) -> None:
    cache.set("k", 1)
    with override_settings(SECRET_KEY="a newer one", SECRET_KEY_FALLBACKS=["a secret of the tests"]):
        assert configure().get("k") == 1
    with override_settings(SECRET_KEY="a newer one"):
        assert configure().get("k") is None


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"OPTIONS": {"tll": 5}}, "unknown OPTIONS 'tll'"),
        ({"OPTIONS": {"MAX_ENTRIES": 5}}, "unknown OPTIONS 'MAX_ENTRIES'"),
        ({"OPTIONS": {"l1_size": 0}}, "l1_size"),
        ({"OPTIONS": {"stale_if_error": -1}}, "stale_if_error"),
        ({"OPTIONS": {"serializer": "no.such.thing"}}, "serializer must be importable, got 'no.such.thing'"),
        ({"OPTIONS": {"fill_in_atomic": 1}}, "fill_in_atomic must be True or False, got 1"),
        ({"OPTIONS": {"reverse_key_function": 1}}, "reverse_key_function must be a function"),
        ({"OPTIONS": ["l1"]}, "OPTIONS must be a dict"),
        ({"LOCATION": ["redis://a", "redis://b"]}, "LOCATION must be one URL"),
        ({"LOCATION": 5}, "LOCATION must be a URL"),
        ({"LOCATION": "http://a"}, "url must begin with one of"),
        ({"OPTIONS": {"client": object()}}, "a LOCATION or OPTIONS with a client"),
    ],
)
def test_a_setting_that_cannot_work_is_said_by_its_name(configure: Configure, entry: Any, message: str) -> None:
    with pytest.raises(InvalidCacheBackendError, match=message):
        configure(**entry)


def test_settings_reach_the_guard(configure: Configure, redis_url: str) -> None:
    client = redis.Redis.from_url(redis_url)
    cache = configure(
        LOCATION="",
        TIMEOUT=77,
        OPTIONS={
            "client": client,
            "serializer": None,
            "namespace": "mine",
            "jitter": 0.5,
            "secret": "sixteen characters",
        },
    )
    assert repr(cache.guard) == f"<CacheGuard 'mine' at {redis_url}>"
    cache.set("k", {"a": 1})
    assert cache.get("k") == {"a": 1}
    assert cache.ttl("k") <= 77  # type: ignore[operator]
    cache.set_many({str(number): 1 for number in range(20)}, 1000)
    assert len({cache.ttl(str(number)) for number in range(20)}) > 1
    with pytest.raises(Exception, match="Unpicklable"):
        cache.set("k", Unpicklable())
    client.close()


async def test_without_redis_reads_are_misses_and_deletions_are_queued(
    configure: Configure, proxy: FaultProxy, twins: bool
) -> None:
    either = Either(configure(LOCATION=proxy.url), twins=twins)
    await either.set_many({"k": 1, "other": 2})
    proxy.inject(Fault.REFUSE)
    assert await either.get("k", "a miss") == "a miss"
    assert await either.get_many(["k"]) == {}
    assert await either.has_key("k") is False
    assert await either.add("k", 2) is False
    assert await either.set("other", 3) is True
    assert await either.set_many({"new": 1}) == ["new"]
    assert await either.delete("k") is False
    assert await either.touch("k", 5) is False
    assert await either.get_or_set("loaded", lambda: 42) == 42
    with pytest.raises(ValueError, match="not found"):
        await either.incr("k")
    await either.clear()
    proxy.heal()
    assert await either.get("k") is None
    assert await either.get("other") is None


def test_the_twins_work_in_several_event_loops(cache: CacheGuardCache) -> None:
    async def once() -> int:
        await cache.aset("k", 1)
        return int(await cache.aincr("k"))

    assert [asyncio.run(once()) for _ in range(3)] == [2, 2, 2]


def test_other_threads_and_processes_see_what_was_set_at_once(cache: CacheGuardCache) -> None:
    with CacheGuard(cache.settings.url, **cache.settings.guard) as other:
        for number in range(50):
            cache.set("k", number)
            assert other.get(":1:k") == number or not cache.settings.policy.get("l1")
            assert cache.get("k") == number


@pytest.mark.slow
async def test_everything_works_in_a_cluster(configure: Configure, cluster_url: str, twins: bool) -> None:
    either = Either(configure(LOCATION=cluster_url, OPTIONS={"operation_timeout": "5s"}), twins=twins)
    names = [f"k{number}" for number in range(20)]
    assert await either.set_many(dict.fromkeys(names, 1)) == []
    assert await either.get_many(names) == dict.fromkeys(names, 1)
    assert [await either.incr(name) for name in names] == [2] * 20
    assert sorted(await either.keys("k*")) == sorted(names)
    assert await either.delete_pattern("k1*") == 11
    assert either.cache.lock("k", timeout=5).acquire() is True
    await either.clear()
    assert await either.keys() == []


def test_a_forked_child_goes_on_with_connections_of_its_own(cache: CacheGuardCache) -> None:
    cache.set("k", 1)
    assert cache.lock("before").acquire() is True
    reader, writer = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of a fork with threads, which is what happens
        child = os.fork()
    if child == 0:
        answer = b"wrong"
        try:
            if caches["default"].incr("k") == 2 and cache.lock("child").acquire():
                answer = b"right"
        finally:
            os.write(writer, answer)
            os._exit(0)
    os.waitpid(child, 0)
    os.close(writer)
    with os.fdopen(reader, "rb") as answers:
        assert answers.read() == b"right"
    assert cache.get("k") == 2


def test_settings_do_not_show_what_is_secret(configure: Configure) -> None:
    cache = configure(LOCATION="redis://user:s3cr3t@localhost/0", OPTIONS={"secret": "hush hush hush hush"})
    assert "s3cr3t" not in repr(cache.settings)
    assert "hush" not in repr(cache.settings)
    with pytest.raises(InvalidCacheBackendError, match="LOCATION") as error:
        configure(LOCATION=b"redis://user:s3cr3t@localhost/0")
    assert "s3cr3t" not in str(error.value)


def test_a_function_of_a_factory_is_taken_once() -> None:
    def make(tenant: str) -> Any:
        @guard().cached
        def work(x: int) -> str:
            return f"data of {tenant}"

        return work

    for _ in range(2):
        assert make("a")(1) == "data of a"
    with pytest.raises(KeyTemplateError, match="another tenant"):
        make("b")
