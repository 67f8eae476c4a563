"""What belongs to a row is invalidated when it was saved or deleted, and the transaction committed."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from typing import Any

import pytest
from django.db import transaction

from cacheguard.errors import ConfigurationError, KeyTemplateError
from cacheguard_django import SavedRows, guard, invalidate, invalidate_on_save
from tests.faults.test_bus import until
from tests.integrations.django.conftest import Configure
from tests.integrations.django.shop.models import Employee, Label, Person, Stranger
from tests.support.faults import FaultProxy

pytestmark = pytest.mark.usefixtures("database", "cache")


@pytest.fixture
def following() -> Iterator[SavedRows]:
    rows = invalidate_on_save(Person, "person:{pk}", "email:{email}", tags=["team:{team_id}"], many_to_many=["labels"])
    yield rows
    rows.disconnect()


def keep(*keys: str, tags: Any = ()) -> None:
    for key in keys:
        guard().set(key, "kept", tags=tags)


def kept(*keys: str) -> list[str]:
    return [key for key in keys if guard().get(key) is not None]


def test_a_save_invalidates_keys_and_tags(following: SavedRows) -> None:
    ada = Person.objects.create(name="Ada", email="a@b", team_id=7)
    keep(f"person:{ada.pk}", "email:a@b", "person:0")
    keep("list", tags=["team:7"])
    ada.save()
    assert kept(f"person:{ada.pk}", "email:a@b", "person:0", "list") == ["person:0"]


def test_a_deletion_does_too(following: SavedRows) -> None:
    ada = Person.objects.create(name="Ada", email="a@b")
    key = f"person:{ada.pk}"
    keep(key, "email:a@b")
    ada.delete()
    assert kept(key, "email:a@b") == []
    grace = Person.objects.create(name="Grace")
    keep(f"person:{grace.pk}")
    Person.objects.all().delete()
    assert kept(f"person:{grace.pk}") == []


def test_what_a_row_was_called_before_is_invalidated_too(following: SavedRows) -> None:
    Person.objects.create(name="Ada", email="old@b", team_id=7)
    keep("email:old@b", "email:new@b", "email:newer@b")
    keep("list", tags=["team:7"])
    ada = Person.objects.get(name="Ada")
    ada.email, ada.team_id = "new@b", 8
    ada.save()
    assert kept("email:old@b", "email:new@b", "email:newer@b", "list") == ["email:newer@b"]
    keep("email:old@b", "email:new@b")
    ada.email = "newer@b"
    ada.save()
    assert kept("email:old@b", "email:new@b", "email:newer@b") == ["email:old@b"]


def test_a_deferred_field_is_not_fetched_to_know_what_it_was(following: SavedRows) -> None:
    Person.objects.create(name="Ada", email="a@b")
    ada = Person.objects.defer("email").get()
    assert "email" in ada.get_deferred_fields()
    assert pickle.loads(pickle.dumps(ada)).pk == ada.pk


def test_it_waits_for_the_commit_and_a_rollback_takes_it_along(following: SavedRows) -> None:
    ada = Person.objects.create(name="Ada")
    key = f"person:{ada.pk}"
    keep(key)
    with transaction.atomic():
        ada.save()
        assert kept(key) == [key]
    assert kept(key) == []
    keep(key)
    with transaction.atomic():
        ada.save()
        transaction.set_rollback(True)
    assert kept(key) == [key]


def test_proxies_and_children_count(following: SavedRows) -> None:
    worker = Employee.objects.create(name="Charles")
    keep(f"person:{worker.pk}")
    worker.save()
    assert kept(f"person:{worker.pk}") == []
    keep(f"person:{worker.pk}")
    Stranger.objects.get().save()
    assert kept(f"person:{worker.pk}") == []


def test_other_models_do_not(following: SavedRows) -> None:
    label = Label.objects.create(text="new")
    keep(f"person:{label.pk}")
    label.save()
    label.delete()
    assert kept("person:1") == ["person:1"]


def test_relations_count_from_either_end(following: SavedRows) -> None:
    ada = Person.objects.create(name="Ada")
    label: Any = Label.objects.create(text="new")
    key = f"person:{ada.pk}"
    for change in (
        lambda: ada.labels.add(label),
        lambda: label.people.remove(ada),
        lambda: label.people.add(ada),
        ada.labels.clear,
        lambda: label.people.set([ada]),
        lambda: label.people.clear(),  # noqa: PLW0108 - made anew each time
    ):
        keep(key)
        change()
        assert kept(key) == []


def test_what_sends_no_signal_has_to_be_told(following: SavedRows) -> None:
    people = Person.objects.bulk_create([Person(name=f"{number}", team_id=7) for number in range(3)])
    keys = [f"person:{person.pk}" for person in people]
    keep(*keys)
    Person.objects.update(name="same")
    assert kept(*keys) == keys
    following.changed(Person.objects.all())
    assert kept(*keys) == []
    keep(*keys)
    with transaction.atomic():
        following.changed(people)
        assert kept(*keys) == keys
    assert kept(*keys) == []
    keep("list", tags=["team:7"])
    invalidate(tags=["team:7"])
    assert kept("list") == []


def test_the_rows_of_one_transaction_cost_one_round_trip(
    following: SavedRows, configure: Configure, proxy: FaultProxy
) -> None:
    configure(LOCATION=proxy.url)
    Person.objects.create(name="warm")
    until(lambda: guard().stats().bus_up)  # it listens from the first invalidation on
    with proxy.watching() as seen:
        with transaction.atomic():
            for number in range(20):
                Person.objects.create(name=f"{number}")
        assert seen.round_trips == 1


def test_the_database_of_the_row_is_the_one_that_counts(following: SavedRows) -> None:
    with transaction.atomic(using="other"):
        ada = Person.objects.using("other").create(name="Ada")
        keep(f"person:{ada.pk}")
        ada.save()
        assert kept(f"person:{ada.pk}") == [f"person:{ada.pk}"]
        following.changed([ada])
        assert kept(f"person:{ada.pk}") == [f"person:{ada.pk}"]
    assert kept(f"person:{ada.pk}") == []


def test_nobody_listens_after_disconnect() -> None:
    rows = invalidate_on_save(Person, "person:{pk}", many_to_many=["labels"])
    rows.disconnect()
    ada = Person.objects.create(name="Ada")
    keep(f"person:{ada.pk}")
    ada.save()
    ada.labels.add(Label.objects.create(text="new"))
    assert kept(f"person:{ada.pk}") == [f"person:{ada.pk}"]


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((Person,), {}, "needs keys or tags"),
        ((int, "k"), {}, "model must be a model"),
        ((Person(), "k"), {}, "model must be a model"),
        ((Person, "k:{no_such}"), {}, "no_such"),
        ((Person, "k:{"), {}, "broken"),
        ((Person, 5), {}, "keys must be templates"),
        ((Person, "k"), {"tags": "team"}, "must be lists"),
        ((Person, "k"), {"many_to_many": ["name"]}, "many_to_many must name relations of Person, got 'name'"),
    ],
)
def test_what_cannot_work_fails_when_it_is_set_up(arguments: Any, options: Any, message: str) -> None:
    with pytest.raises((ConfigurationError, KeyTemplateError), match=message):
        invalidate_on_save(*arguments, **options)
