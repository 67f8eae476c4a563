"""Sessions while Redis is away; values that are too large; odd timeouts; what refreshes leave behind."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from decimal import Decimal
from importlib import import_module
from typing import Any

import pytest
from django.contrib.sessions.backends.base import SessionBase
from django.core.cache.backends.locmem import LocMemCache
from django.core.management import CommandError
from django.db import connections
from django.db.backends.signals import connection_created
from django.test import override_settings

from cacheguard_django import CacheGuardCache, guard
from tests.faults.test_bus import until
from tests.integrations.django.conftest import Configure
from tests.integrations.django.shop.models import Person
from tests.integrations.django.test_looked_after import run

NOBODY = "redis://127.0.0.1:1/0"


def session(engine: str, key: str | None = None) -> SessionBase:
    made: Any = import_module(f"django.contrib.sessions.backends.{engine}")
    store: SessionBase = made.SessionStore(key)
    return store


async def test_a_session_begins_at_once_while_redis_is_away(
    configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    configure(LOCATION=NOBODY)
    tries: list[str] = []
    base: Any = SessionBase
    drawn = base._get_new_session_key  # noqa: SLF001 - no other way in

    def draw(self: Any) -> Any:
        tries.append("")
        return drawn(self)

    monkeypatch.setattr(base, "_get_new_session_key", draw)
    made = session("cache")
    made["user"] = 7
    made.save()
    made.cycle_key()
    assert len(tries) == 2
    tries.clear()
    adrawn = base._aget_new_session_key  # noqa: SLF001 - no other way in

    async def adraw(self: Any) -> Any:
        tries.append("")
        return await adrawn(self)

    monkeypatch.setattr(base, "_aget_new_session_key", adraw)
    again = session("cache")
    await again.aset("user", 7)
    await again.asave()
    await again.acycle_key()
    assert len(tries) == 2


@pytest.mark.usefixtures("database")
def test_a_session_in_the_database_too_outlives_redis(configure: Configure, redis_url: str) -> None:
    configure(LOCATION=NOBODY)
    made = session("cached_db")
    made["user"] = 7
    made.save()
    assert session("cached_db", made.session_key)["user"] == 7
    configure(LOCATION=redis_url)
    assert session("cached_db", made.session_key)["user"] == 7


def test_no_lock_of_the_program_is_taken_while_redis_is_away(configure: Configure) -> None:
    cache = configure(LOCATION=NOBODY)
    assert cache.add("lock", 1) is False


async def test_what_is_too_large_is_counted_and_logged_once(
    configure: Configure, caplog: pytest.LogCaptureFixture
) -> None:
    cache = configure(OPTIONS={"max_value_bytes": 1000})
    big = "x" * 2000
    assert cache.set("large", big) is False
    assert await cache.aset("large", big) is False
    assert cache.add("other", big) is False
    assert await cache.aadd("other", big) is False
    assert cache.get_or_set("given", big) == big
    assert cache.guard.stats().oversize == 5
    assert [record.args[0] for record in caplog.records if "is not cached" in record.msg] == [  # type: ignore[index]
        ":1:large",
        ":1:other",
        ":1:given",
    ]


@override_settings(SESSION_ENGINE="django.contrib.sessions.backends.cache")
def test_a_session_that_is_too_large_is_an_error(configure: Configure) -> None:
    configure(OPTIONS={"max_value_bytes": 1000})
    made = session("cache")
    made["x"] = "x" * 2000
    with pytest.raises(Exception, match="max_value_bytes"):
        made.save()


@pytest.mark.parametrize(
    "timeout", [math.inf, 10**400, 1e300, -math.inf, 0, -1, True, False, 0.5, 60, None, timedelta(seconds=5), [], "x"]
)
def test_a_timeout_means_what_it_means_to_djangos_own(cache: CacheGuardCache, timeout: Any) -> None:
    own = LocMemCache("own", {})

    def outcome(of: Any) -> Any:
        try:
            of.set("k", 1, timeout)
        except (TypeError, ValueError):
            return "refused"
        except OverflowError:  # locmem, for a number that is no float; Python has no larger ones
            return 1
        return of.get("k")

    assert outcome(cache) == outcome(own)
    cache.set("k", 1)
    assert cache.touch("k", math.inf) is True
    assert cache.ttl("k") is None


@pytest.mark.parametrize("timeout", [math.nan, Decimal("nan")])
def test_no_number_is_no_timeout(cache: CacheGuardCache, timeout: Any) -> None:
    with pytest.raises(ValueError, match="timeout must be a number"):
        cache.set("k", 1, timeout)


def test_an_infinite_timeout_in_the_settings_is_none(configure: Configure) -> None:
    cache = configure(TIMEOUT=math.inf)
    cache.set("k", 1)
    assert cache.ttl("k") is None


def test_inspect_knows_the_keys_of_functions(cache: CacheGuardCache) -> None:
    @guard().cached("post:{number}")
    def post(number: int) -> int:
        return number

    post(1)
    said = run("inspect", "post:1")
    assert "key                    post:1\n" in said
    assert "state                  fresh\n" in said
    cache.set("post:1", 2)
    assert "key                    :1:post:1\n" in run("inspect", "post:1")
    assert "state                  missing\n" in run("inspect", "post:2")
    with pytest.raises(CommandError):
        run("inspect")


# Threads of ours close what they opened


@pytest.fixture
def opened() -> Iterator[list[Any]]:
    """The connections that other threads have opened."""
    found: list[Any] = []

    def note(connection: Any, **_: Any) -> None:
        if threading.current_thread() is not threading.main_thread():
            found.append(connection)

    connection_created.connect(note)
    yield found
    connection_created.disconnect(note)


@pytest.mark.usefixtures("database", "cache")
@pytest.mark.parametrize(
    "options",
    [
        {"rebuild": "logical"},
        {"stale_while_revalidate": "1h"},
        {"soft_timeout": "1ms", "stale_if_error": "1h"},
    ],
    ids=lambda each: next(iter(each)),
)
@pytest.mark.parametrize("refreshes", [10, pytest.param(1000, marks=pytest.mark.slow)])
def test_a_refresh_leaves_no_connection(opened: list[Any], options: dict[str, Any], refreshes: int) -> None:
    person = Person.objects.create(name="Ada")

    @guard().cached("name:{pk}:{number}", ttl="50ms", jitter=None, **options)
    def name(pk: int, number: int) -> str:
        assert number >= 0
        return str(Person.objects.get(pk=pk).name)

    for number in range(refreshes):
        name(person.pk, number)
    time.sleep(0.06)
    for number in range(refreshes):
        name(person.pk, number)
        until(lambda: sum(each.connection is not None for each in opened) <= 20)
    until(lambda: opened and all(each.connection is None for each in opened))


@pytest.mark.usefixtures("database", "cache")
def test_warming_leaves_no_connection(opened: list[Any]) -> None:
    people = Person.objects.bulk_create([Person(name=f"{number}") for number in range(20)])

    @guard().cached("name:{pk}")
    def name(pk: int) -> str:
        return str(Person.objects.get(pk=pk).name)

    guard().warm(name, [(each.pk,) for each in people], concurrency=4)
    assert opened
    assert all(each.connection is None for each in opened)
    connections.close_all()
