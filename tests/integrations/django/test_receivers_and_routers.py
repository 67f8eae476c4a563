"""Receivers of others that raise or save again, and routers that read elsewhere, make no difference to the rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from typing import Any

import pytest
from django.db import transaction
from django.db.models.signals import post_save
from django.test import override_settings

from cacheguard.errors import Unreachable
from cacheguard_django import SavedRows, guard, invalidate_on_save
from tests.integrations.django.conftest import BACKEND, Configure
from tests.integrations.django.shop.more_models import Club, Member, Membership, Org

pytestmark = pytest.mark.usefixtures("database", "cache")


class ReadsElsewhere:
    """A router: reads go to a replica, writes do not."""

    def db_for_read(self, _model: Any, **_: Any) -> str:
        return "other"

    def db_for_write(self, _model: Any, **_: Any) -> str:
        return "default"


@pytest.fixture
def rows() -> Iterator[SavedRows]:
    handle = invalidate_on_save(Member, "mail:{email}", tags=["member:{pk}"], many_to_many=["clubs"])
    yield handle
    handle.disconnect()


@contextmanager
def receiving(receiver: Callable[..., None], sender: Any = Member) -> Iterator[None]:
    """*receiver* hears of saves."""
    post_save.connect(receiver, sender=sender, weak=False, dispatch_uid="theirs")
    try:
        yield
    finally:
        post_save.disconnect(sender=sender, dispatch_uid="theirs")


def refuse(**_: Any) -> None:
    raise OSError("no mail server")


def kept(*keys: str) -> list[str]:
    return [key for key in keys if guard().get(key) is not None]


def keep(*keys: str) -> None:
    for key in keys:
        guard().set(key, "old")


@pytest.mark.parametrize("within", [nullcontext, transaction.atomic], ids=["autocommit", "atomic"])
@pytest.mark.parametrize("order", ["before", "after"])
def test_a_receiver_that_raises_loses_no_invalidation(within: Any, order: str) -> None:
    row = Member.objects.create(email="one")

    def save() -> None:
        keep("mail:one", "mail:two")
        row.email = "two"
        with within(), suppress(OSError):
            row.save()

    if order == "before":
        with receiving(refuse):
            handle = invalidate_on_save(Member, "mail:{email}")
            save()
    else:
        handle = invalidate_on_save(Member, "mail:{email}")
        with receiving(refuse):
            save()
    handle.disconnect()
    assert Member.objects.get().email == "two"
    assert kept("mail:one", "mail:two") == []


@pytest.mark.usefixtures("rows")
def test_a_receiver_that_raises_for_a_model_between_two_loses_none() -> None:
    member, club = Member.objects.create(email="one"), Club.objects.create()
    keep("mail:one")
    with receiving(refuse, Membership), suppress(OSError):
        Membership.objects.create(member=member, club=club)
    assert kept("mail:one") == []


def test_a_receiver_that_saves_again_hides_no_old_name() -> None:
    def again(instance: Any, **_: Any) -> None:
        if instance.level == 0:
            instance.level = 1
            instance.save()

    row = Member.objects.create(email="one", level=1)
    with receiving(again):
        handle = invalidate_on_save(Member, "mail:{email}")
        keep("mail:one", "mail:two")
        row.email, row.level = "two", 0
        row.save()
    handle.disconnect()
    assert kept("mail:one", "mail:two") == []


def test_what_we_raise_takes_no_receiver_of_others_away(configure: Configure) -> None:
    configure(BACKEND=BACKEND, LOCATION="redis://127.0.0.1:1/0", OPTIONS={"on_unreachable": "raise"})
    called: list[str] = []
    with receiving(lambda **_: called.append("theirs")):
        handle = invalidate_on_save(Member, "mail:{email}")
        row = Member(email="one")
        with pytest.raises(Unreachable):
            row.save()
        handle.disconnect()
        row.save()  # nothing is left of it
    assert called == ["theirs", "theirs"]


def queryset() -> Any:
    return Member.objects.all()


def evaluated() -> Any:
    found = Member.objects.all()
    return found if len(found) else None


def instance() -> Any:
    return Member.objects.get()


def manager() -> Any:
    return Member.objects


def of_another() -> Any:
    org: Any = Org.objects.get()
    return org.member_set


GIVEN = pytest.mark.parametrize(
    "given", [queryset, evaluated, instance, manager, of_another], ids=lambda each: each.__name__
)


@pytest.fixture
def replica() -> Iterator[None]:
    """The row, and an older state of it where reads go."""
    for name, email in (("default", "one"), ("other", "older")):
        org = Org.objects.using(name).create(pk=1)
        Member.objects.using(name).create(pk=1, email=email, org=org)
    with override_settings(DATABASE_ROUTERS=[ReadsElsewhere()]):
        yield


@GIVEN
@pytest.mark.usefixtures("replica")
def test_changed_rows_wait_for_the_commit_where_they_are_written(rows: SavedRows, given: Any) -> None:
    keep("mail:one")
    with transaction.atomic():
        rows.changed(given())
        assert kept("mail:one") == ["mail:one"]
    assert kept("mail:one") == []


@GIVEN
@pytest.mark.usefixtures("replica")
def test_the_names_before_and_after_are_those_where_rows_are_written(rows: SavedRows, given: Any) -> None:
    keep("mail:one", "mail:two")
    with transaction.atomic():
        with rows.changing(given()):
            Member.objects.using("default").update(email="two")
        assert kept("mail:one", "mail:two") == ["mail:one", "mail:two"]
    assert kept("mail:one", "mail:two") == []


@pytest.mark.usefixtures("replica")
def test_a_database_that_is_named_counts(rows: SavedRows) -> None:
    keep("mail:older")
    with transaction.atomic():
        rows.changed(Member.objects.using("other").all())
    assert kept("mail:older") == []
