"""The COMMIT decides: whatever other callbacks do, and however a transaction is begun and ended."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
from django.db import OperationalError, connection, connections, transaction
from django.test import TestCase

from cacheguard import MISSING
from cacheguard.errors import Unreachable
from cacheguard_django import guard, invalidate, invalidate_on_save, invalidates, writing
from tests.integrations.django.conftest import BACKEND, Configure
from tests.integrations.django.shop.models import Label, Person

pytestmark = pytest.mark.usefixtures("database", "cache")
NOBODY = "redis://127.0.0.1:1/0"


def cached(key: str = "k") -> Any:
    return guard().get(key, MISSING)


def by_call() -> None:
    invalidate("k")


def by_block() -> None:
    with writing("k"):
        pass


@invalidates("k")
def by_decorator() -> None:
    pass


def by_save() -> None:
    rows = invalidate_on_save(Label, "k")
    try:
        Label.objects.create(text="new")
    finally:
        rows.disconnect()


WRITES = pytest.mark.parametrize("write", [by_call, by_block, by_decorator, by_save], ids=lambda each: each.__name__)
Write = Callable[[], None]


def mail() -> None:
    raise OSError("no mail server")


@WRITES
def test_a_callback_of_others_that_raises_loses_none_of_ours(write: Write) -> None:
    guard().set("k", "old")

    def program() -> None:
        with transaction.atomic():
            transaction.on_commit(mail)
            write()

    with pytest.raises(OSError, match="mail"):
        program()
    assert cached() is MISSING


@pytest.mark.parametrize("first", [True, False])
def test_ours_that_raises_drops_none_of_others(configure: Configure, redis_url: str, first: bool) -> None:
    configure(
        {"away": {"BACKEND": BACKEND, "LOCATION": NOBODY, "OPTIONS": {"on_unreachable": "raise"}}}, LOCATION=redis_url
    )
    guard().set("k", "old")
    ran: list[str] = []

    def program() -> None:
        with transaction.atomic():
            if first:
                transaction.on_commit(lambda: ran.append("before"))
            invalidate("k", alias="away")
            invalidate("k")
            transaction.on_commit(lambda: ran.append("after"))

    with pytest.raises(Unreachable):
        program()
    assert ran == (["before", "after"] if first else ["after"])
    assert cached() is MISSING
    assert not connection.in_atomic_block
    assert connection.get_autocommit()


@WRITES
@pytest.mark.parametrize("nested", [False, True])
def test_without_autocommit_it_waits_for_commit(write: Write, nested: bool) -> None:
    guard().set("k", "old")
    transaction.set_autocommit(False)
    try:
        if nested:
            with transaction.atomic():
                write()
        else:
            write()
        guard().set("k", "old")  # a reader that fills before commit()
        transaction.commit()
        assert cached() is MISSING
        guard().set("k", "kept")
        write()
        if write not in (by_block, by_decorator):  # a fence lets nothing stay that was there before
            assert cached() == "kept"
        guard().set("k", "kept")
        transaction.rollback()
        transaction.commit()
        assert cached() == "kept"
    finally:
        transaction.rollback()
        transaction.set_autocommit(True)


def test_turning_autocommit_on_commits_too() -> None:
    transaction.set_autocommit(False)
    Person.objects.create(name="Ada")
    invalidate("k")
    guard().set("k", "old")
    transaction.set_autocommit(True)
    assert cached() is MISSING


def test_a_block_that_begins_the_transaction_ends_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """``AUTOCOMMIT: False``: the connection opens, and with it a transaction, at the first statement of the block."""
    connection.close()
    settings: dict[str, Any] = connections["default"].settings_dict
    monkeypatch.setitem(settings, "AUTOCOMMIT", False)
    try:
        with writing("k"):
            Person.objects.create(name="Ada")
        guard().set("k", "old")
        transaction.commit()
        assert cached() is MISSING
    finally:
        connection.close()


@WRITES
def test_a_rollback_that_is_asked_for_takes_it_along(write: Write) -> None:
    guard().set("k", "kept")
    with transaction.atomic():
        write()
        transaction.set_rollback(True)
    assert cached() == "kept"


@WRITES
def test_a_durable_block_is_a_transaction(write: Write) -> None:
    with transaction.atomic(durable=True):
        write()
        guard().set("k", "old")
    assert cached() is MISSING


@WRITES
def test_a_savepoint_that_is_rolled_back_takes_its_own_along(write: Write) -> None:
    guard().set("k", "kept")
    guard().set("other", "old")
    with transaction.atomic():
        invalidate("other")
        with suppress(ZeroDivisionError), transaction.atomic():
            write()
            raise ZeroDivisionError
    assert cached() == "kept"
    assert cached("other") is MISSING


def test_without_a_name_every_open_database_counts() -> None:
    with transaction.atomic(using="other"):
        invalidate("k")
        guard().set("k", "old")
    assert cached() is MISSING
    with transaction.atomic(using="other"):
        with transaction.atomic(), writing("k"):
            pass
        guard().set("k", "old")
    assert cached() is MISSING


def test_a_transaction_that_cannot_commit_invalidates_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    guard().set("k", "kept")

    def refuse() -> None:
        raise OperationalError("no")

    wrapper: Any = connections["default"]

    def program() -> None:
        with transaction.atomic():
            invalidate("k")
            monkeypatch.setattr(wrapper, "_commit", refuse)

    with pytest.raises(OperationalError, match="no"):
        program()
    monkeypatch.undo()
    connection.close()
    assert cached() == "kept"


@pytest.mark.parametrize("tags", ["org", b"org"])
def test_a_text_is_no_list_of_tags(tags: Any) -> None:
    with pytest.raises(TypeError):
        invalidate("k", tags=tags)
    with transaction.atomic(), pytest.raises(TypeError):
        invalidate("k", tags=tags)
    with pytest.raises(TypeError), writing("k") as write:
        write.also(tags="org")


def test_what_django_opens_for_itself_in_a_testcase_is_no_transaction_of_the_program() -> None:
    rows = invalidate_on_save(Person, "person:{name}", many_to_many=["labels"])

    class Test(TestCase):
        databases = {"default"}  # noqa: RUF012 - Django's way

        def runTest(self) -> None:  # noqa: N802 - Django's way
            label: Any = Label.objects.create(text="l")
            for name, act in {
                "save": lambda each: each.save(),
                "delete": lambda each: each.delete(),
                "queryset": lambda each: Person.objects.filter(pk=each.pk).delete(),
                "add": lambda each: each.labels.add(label),
                "set": lambda each: each.labels.set([label]),
                "other side": lambda each: label.people.add(each),  # noqa: PLW0108 - of each row
                "update_or_create": lambda each: Person.objects.update_or_create(
                    name=each.name, defaults={"email": "x"}
                ),
            }.items():
                person = Person.objects.create(name=name)
                guard().set(f"person:{name}", "old")
                act(person)  # type: ignore[no-untyped-call]  # Django's stubs have no type for it
                assert cached(f"person:{name}") is MISSING, name
            guard().set("person:new", "old")
            Person.objects.get_or_create(name="new")
            assert cached("person:new") is MISSING
            # A block of the test itself is one: its end stands for the COMMIT.
            guard().set("k", "old")
            with self.captureOnCommitCallbacks() as callbacks, transaction.atomic():
                invalidate("k")
                assert cached() == "old"
            assert cached() is MISSING
            assert len(callbacks) == 1
            guard().set("k", "kept")
            with suppress(ZeroDivisionError), transaction.atomic():
                invalidate("k")
                raise ZeroDivisionError
            assert cached() == "kept"

    result = Test().defaultTestResult()
    Test()(result)
    rows.disconnect()
    assert not [*result.errors, *result.failures]
