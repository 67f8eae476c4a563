"""Invalidation waits for the COMMIT, a rollback takes it along, and nothing uncommitted is ever cached."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import pytest
from django.db import connection, connections, transaction
from django.test import TestCase

from cacheguard import MISSING
from cacheguard.errors import ConfigurationError, KeyTemplateError
from cacheguard_django import CacheGuardCache, guard, invalidate, invalidates, writing
from tests.faults.test_bus import until
from tests.integrations.django.conftest import Configure
from tests.integrations.django.shop.models import Person
from tests.support.faults import FaultProxy

pytestmark = pytest.mark.usefixtures("database", "cache")


def name_of(person_id: int) -> str | None:
    return guard().get_or_set(
        f"person:{person_id}", lambda: Person.objects.filter(pk=person_id).values_list("name", flat=True).first()
    )


def cached(person_id: int) -> Any:
    return guard().get(f"person:{person_id}", MISSING)


def in_thread(work: Any) -> Any:
    """What *work* returns in a thread, and a connection, of its own."""
    answers: list[Any] = []

    def run() -> None:
        try:
            answers.append(work())
        finally:
            connections.close_all()

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(30)
    return answers[0]


@pytest.fixture
def person(database: None) -> Person:
    return Person.objects.create(name="Ada")


def test_what_is_read_in_a_transaction_is_not_cached(person: Person) -> None:
    with transaction.atomic():
        assert name_of(person.pk) == "Ada"
        Person.objects.filter(pk=person.pk).update(name="Countess")
        assert name_of(person.pk) == "Countess"
        assert cached(person.pk) is MISSING
    assert name_of(person.pk) == "Countess"
    assert cached(person.pk) == "Countess"


def test_a_function_as_default_is_not_cached_in_a_transaction_but_a_value_is(cache: CacheGuardCache) -> None:
    with transaction.atomic():
        assert cache.get_or_set("loaded", lambda: 1) == 1
        assert cache.get_or_set("plain", 1) == 1
    assert cache.get("loaded") is None
    assert cache.incr("plain") == 2


def test_others_who_load_meanwhile_do_not_get_what_a_transaction_reads(person: Person) -> None:
    with transaction.atomic():
        Person.objects.filter(pk=person.pk).update(name="Countess")
        assert name_of(person.pk) == "Countess"
        assert in_thread(lambda: name_of(person.pk)) == "Ada"
        invalidate(f"person:{person.pk}")
    assert cached(person.pk) is MISSING


def test_manual_transactions_count_as_well(person: Person) -> None:
    transaction.set_autocommit(False)
    try:
        name_of(person.pk)
        assert cached(person.pk) is MISSING
        transaction.rollback()
    finally:
        transaction.set_autocommit(True)
    name_of(person.pk)
    assert cached(person.pk) == "Ada"


def test_transactions_may_fill_if_the_settings_say_so(configure: Configure, person: Person) -> None:
    configure(OPTIONS={"fill_in_atomic": True})
    with transaction.atomic():
        name_of(person.pk)
    assert cached(person.pk) == "Ada"


@pytest.mark.parametrize("how", ["invalidate", "writing", "invalidates"])
def test_invalidation_waits_for_the_outermost_commit(person: Person, how: str) -> None:
    name_of(person.pk)
    with transaction.atomic():
        with transaction.atomic():
            change(how, person, "Countess")
            assert cached(person.pk) == "Ada"
        assert cached(person.pk) == "Ada"
        # Who reads before the COMMIT reads what is valid until then.
        assert in_thread(lambda: name_of(person.pk)) == "Ada"
    assert cached(person.pk) is MISSING
    assert name_of(person.pk) == "Countess"


@pytest.mark.parametrize("how", ["invalidate", "writing", "invalidates"])
def test_a_rollback_takes_it_along(person: Person, how: str) -> None:
    name_of(person.pk)
    with suppress(ZeroDivisionError), transaction.atomic():
        change(how, person, "Countess")
        raise ZeroDivisionError
    assert cached(person.pk) == "Ada"
    assert name_of(person.pk) == "Ada"


@pytest.mark.parametrize("how", ["invalidate", "writing", "invalidates"])
def test_so_does_the_rollback_of_a_savepoint(person: Person, how: str) -> None:
    other = Person.objects.create(name="Charles")
    name_of(person.pk)
    name_of(other.pk)
    with transaction.atomic():
        change(how, other, "Babbage")
        with suppress(ZeroDivisionError), transaction.atomic():
            change(how, person, "Countess")
            raise ZeroDivisionError
    assert cached(person.pk) == "Ada"
    assert cached(other.pk) is MISSING


@pytest.mark.parametrize("how", ["invalidate", "writing", "invalidates"])
def test_without_a_transaction_it_happens_at_once(person: Person, how: str) -> None:
    name_of(person.pk)
    change(how, person, "Countess")
    assert cached(person.pk) is MISSING
    assert name_of(person.pk) == "Countess"


def change(how: str, person: Person, name: str) -> None:
    def update() -> None:
        Person.objects.filter(pk=person.pk).update(name=name)

    if how == "invalidate":
        update()
        invalidate(f"person:{person.pk}")
    elif how == "writing":
        with writing(f"person:{person.pk}"):
            update()
    else:

        @invalidates("person:{person_id}")
        def rename(person_id: int) -> None:
            update()

        rename(person.pk)


def test_an_exception_that_is_caught_inside_the_transaction_still_invalidates(person: Person) -> None:
    name_of(person.pk)

    @invalidates("person:{person_id}")
    def rename(person_id: int) -> None:
        Person.objects.filter(pk=person_id).update(name="Countess")
        raise ZeroDivisionError

    with transaction.atomic(), pytest.raises(ZeroDivisionError):
        rename(person.pk)
    assert name_of(person.pk) == "Countess"


def test_a_block_ends_for_the_thread_that_entered_it(person: Person) -> None:
    block = writing(f"person:{person.pk}")
    inside, seen = threading.Event(), threading.Event()

    def in_a_transaction() -> None:
        with transaction.atomic(), block:
            inside.set()
            seen.wait(10)

    with ThreadPoolExecutor(1) as pool:
        with block:  # raises a fence; the other thread, inside of its transaction, raises none
            other = pool.submit(in_thread, in_a_transaction)
            assert inside.wait(10)
        assert name_of(person.pk) == "Ada"
        assert cached(person.pk) == "Ada"  # the fence is down, although the other thread entered later
        seen.set()
        other.result(10)
    assert cached(person.pk) is MISSING


def test_around_a_transaction_there_is_a_fence(person: Person) -> None:
    with writing(f"person:{person.pk}"), transaction.atomic():
        Person.objects.filter(pk=person.pk).update(name="Countess")
        assert in_thread(lambda: name_of(person.pk)) == "Ada"
        assert cached(person.pk) is MISSING  # the reader could not fill
    assert name_of(person.pk) == "Countess"
    assert cached(person.pk) == "Countess"


def test_a_template_may_speak_of_the_result_and_of_tags(person: Person) -> None:
    guard().set("team:7", "old", tags=["teams"])
    guard().set("person:1", "old")

    @invalidates("person:{result.pk}", tags=["teams"])
    def hire() -> Person:
        return Person.objects.create(name="Grace")

    with transaction.atomic():
        made = hire()
        guard().set(f"person:{made.pk}", "too early")
    assert guard().get(f"person:{made.pk}") is None
    assert guard().get("team:7") is None
    assert guard().get("person:1") == "old"


def test_all_calls_in_one_transaction_cost_one_round_trip(configure: Configure, proxy: FaultProxy) -> None:
    configure(LOCATION=proxy.url)
    invalidate("warm", tags=["warm"])
    until(lambda: guard().stats().bus_up)  # it listens from the first one on
    with proxy.watching() as seen:
        with transaction.atomic():
            for number in range(50):
                with transaction.atomic(savepoint=False):
                    invalidate(f"person:{number}", tags=["people"])
        assert seen.round_trips == 1


def test_databases_are_told_apart(person: Person) -> None:
    guard().set("k", 1)
    with transaction.atomic():
        invalidate("k", using="other")
        assert guard().get("k") is None  # nothing is open there
        guard().set("k", 1)
        with transaction.atomic(using="other"):
            invalidate("k", using="other")
            assert guard().get("k") == 1
        assert guard().get("k") is None
        assert guard().get_or_set("loaded", lambda: 1) == 1
        assert guard().get("loaded") is None  # another database has a transaction open


def test_the_block_of_a_testcase_does_not_count(person: Person) -> None:
    class Test(TestCase):
        databases = {"default"}  # noqa: RUF012 - Django's way

        def runTest(self) -> None:  # noqa: N802 - Django's way
            made = Person.objects.create(name="Grace")
            assert connection.in_atomic_block
            assert name_of(made.pk) == "Grace"
            assert cached(made.pk) == "Grace"
            invalidate(f"person:{made.pk}")
            assert cached(made.pk) is MISSING
            with transaction.atomic():
                name_of(made.pk)
                assert cached(made.pk) is MISSING
                guard().set(f"person:{made.pk}", "old")
                with self.captureOnCommitCallbacks(execute=True):
                    invalidate(f"person:{made.pk}")
                    assert cached(made.pk) == "old"
            assert cached(made.pk) is MISSING

    result = Test().defaultTestResult()
    Test()(result)
    assert not [*result.errors, *result.failures]


def test_what_cannot_work_fails_when_it_is_written() -> None:
    with pytest.raises(ConfigurationError, match="invalidates needs keys or tags"):
        invalidates()
    with pytest.raises(ConfigurationError, match="mode must be"):
        writing("k", mode="nonsense")  # type: ignore[arg-type]
    with pytest.raises(KeyTemplateError, match="no_such"):
        invalidates("k:{no_such}")(lambda: None)
    with pytest.raises(ConfigurationError, match="only functions"):
        invalidates("k")(5)  # type: ignore[arg-type]


def test_methods_can_be_decorated() -> None:
    class People:
        @invalidates("person:{person_id}")
        @staticmethod
        def rename(person_id: int) -> int:
            return person_id

    guard().set("person:7", 1)
    assert People.rename(7) == 7
    assert guard().get("person:7") is None


async def test_a_coroutine_function_can_be_decorated(cache: CacheGuardCache) -> None:
    @invalidates("person:{person_id}")
    async def rename(person_id: int) -> int:
        return person_id

    await cache.guard.aset("person:7", 1)
    assert await rename(7) == 7
    assert await cache.guard.aget("person:7") is None
