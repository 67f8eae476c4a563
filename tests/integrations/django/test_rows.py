"""The row, not the instance, had the old name; what Django changes without a signal is heard; nobody else pays."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest
from asgiref.sync import async_to_sync
from django.db import connection, connections, models, transaction
from django.db.models import F, Value
from django.db.models.functions import Lower
from django.db.models.signals import ModelSignal, post_delete, post_init, post_save, pre_delete, pre_init, pre_save
from django.test.utils import CaptureQueriesContext

from cacheguard.errors import ConfigurationError
from cacheguard_django import SavedRows, changed, guard, invalidate_on_save
from tests.integrations.django.shop.models import Employee, Label, Person
from tests.integrations.django.shop.more_models import Club, Guest, Junior, Log, Member, Membership, Org

pytestmark = pytest.mark.usefixtures("database", "cache")

Watch = Callable[..., SavedRows]


@pytest.fixture
def watch() -> Iterator[Watch]:
    """`invalidate_on_save`, until the end of the test."""
    watching: list[SavedRows] = []

    def begin(*arguments: Any, **options: Any) -> SavedRows:
        watching.append(invalidate_on_save(*arguments, **options))
        return watching[-1]

    yield begin
    for each in watching:
        each.disconnect()


def keep(*keys: str, tags: Any = ()) -> None:
    for key in keys:
        guard().set(key, "old", tags=tags)


def kept(*keys: str) -> list[str]:
    return [key for key in keys if guard().get(key) is not None]


# The row had the old name


def tried_again(pk: int) -> None:
    row = Member.objects.get(pk=pk)
    row.email = "two"
    with suppress(OSError), transaction.atomic():
        row.save()
        raise OSError("deadlock detected")
    with transaction.atomic():
        row.save()


def deferred(pk: int) -> None:
    row = Member.objects.defer("email").get(pk=pk)
    row.email = "two"
    row.save()


def only_another(pk: int) -> None:
    row = Member.objects.only("level").get(pk=pk)
    row.level = 1
    row.save()


def built(pk: int) -> None:
    Member(pk=pk, email="two").save()


def built_with_a_text_for_key(pk: int) -> None:
    Member(pk=str(pk), email="two").save(force_update=True)


def another_field(pk: int) -> None:
    row = Member.objects.get(pk=pk)
    row.email = "never stored"
    row.save(update_fields=["level"])


def changed_by_another_meanwhile(pk: int) -> None:
    row = Member.objects.get(pk=pk)
    Member.objects.filter(pk=pk).update(email="one")
    row.email = "two"
    row.save()


def refreshed(pk: int) -> None:
    row = Member.objects.get(pk=pk)
    row.email = "two"
    row.refresh_from_db()
    row.save()


def by_an_expression(pk: int) -> None:
    row = Member.objects.get(pk=pk)
    row.email = Lower(Value("TWO"))
    row.save()


def update_or_create(pk: int) -> None:
    Member.objects.update_or_create(pk=pk, defaults={"email": "two"})


def awaited(pk: int) -> None:
    async_to_sync(Member(pk=pk, email="two").asave)()


def deleted(pk: int) -> None:
    row = Member.objects.get(pk=pk)
    row.email = "two"
    row.delete()


def built_and_deleted(pk: int) -> None:
    Member(pk=pk).delete()


def through_the_proxy(pk: int) -> None:
    Guest(pk=pk, email="two").save()


CHANGES = [
    tried_again,
    deferred,
    only_another,
    built,
    built_with_a_text_for_key,
    another_field,
    changed_by_another_meanwhile,
    refreshed,
    by_an_expression,
    update_or_create,
    awaited,
    deleted,
    built_and_deleted,
    through_the_proxy,
]


@pytest.mark.parametrize("model", [Member, Guest], ids=lambda each: each.__name__)
@pytest.mark.parametrize("change", CHANGES, ids=lambda each: each.__name__)
def test_the_entry_under_the_name_that_the_row_had_is_gone(watch: Watch, model: Any, change: Any) -> None:
    watch(model, "mail:{email}", "at:{domain}", tags=["level:{level}"])
    pk = Member.objects.create(email="one").pk
    keep("mail:one", "mail:else")
    keep("list", tags=["level:0"])
    change(pk)
    assert kept("mail:one", "mail:else", "list") == ["mail:else"]
    row = Member.objects.filter(pk=pk).first()
    if row is not None:
        keep(f"mail:{row.email}")
        row.save()
        assert kept(f"mail:{row.email}") == []


def test_what_only_the_database_knows_is_read_after_the_update(watch: Watch) -> None:
    watch(Member, "price:{price}", tags=["level:{level}"])
    row = Member.objects.create(email="f")
    keep("list", tags=["level:1"])
    keep("price:7.50")
    row.level, row.price = F("level") + 1, "7.5"
    row.save()
    assert kept("list", "price:7.50") == []


def test_the_cost_is_one_select_where_the_instance_knows_the_rest(watch: Watch) -> None:
    row = Member.objects.create(email="one")

    def queries(act: Callable[[], object]) -> int:
        with CaptureQueriesContext(connection) as found:
            act()
        return len(found)

    before = queries(row.save), queries(lambda: Member.objects.create(email="x"))
    watch(Member, "member:{pk}")
    assert (queries(row.save), queries(lambda: Member.objects.create(email="x"))) == before
    watch(Member, "mail:{email}")
    row.email = "two"
    assert queries(row.save) == before[0] + 1
    assert queries(lambda: Member.objects.create(email="x")) == before[1]
    row.level = F("level") + 1
    with CaptureQueriesContext(connection) as found:
        row.save(update_fields=["level"])
    assert len(found) == 2


def test_a_template_over_a_relation_that_is_null_names_nothing(watch: Watch) -> None:
    watch(Member, "org:{org.slug}", "boss:{boss.email}", tags=["in:{org_id}"])
    org = Org.objects.create(slug="acme")
    row = Member.objects.create(email="one")
    keep("org:acme", "boss:one")
    row.org, row.boss = org, row
    row.save()
    assert kept("org:acme", "boss:one") == []
    keep("org:acme", "boss:one")
    row.org = row.boss = None
    row.save()
    assert kept("org:acme", "boss:one") == []
    row.delete()


def test_bulk_changes_are_told_before_and_after(watch: Watch) -> None:
    rows = watch(Member, "mail:{email}")
    people = Member.objects.bulk_create([Member(email=f"one{number}") for number in range(3)])
    keys = [f"mail:one{number}" for number in range(3)]
    keep(*keys, "mail:two")
    with rows.changing(people):
        for each in people:
            each.email = "two"
        Member.objects.bulk_update(people, ["email"])
    assert kept(*keys, "mail:two") == []
    keep("mail:two", "mail:three")
    for each in people:
        each.email = "three"
    with transaction.atomic():
        rows.changed(people)  # the rows are still called two, the instances three already
        Member.objects.bulk_update(people, ["email"])
        assert kept("mail:two", "mail:three") == ["mail:two", "mail:three"]
    assert kept("mail:two", "mail:three") == []
    keep("mail:three", "mail:four")
    with rows.changing(Member.objects.all()):
        Member.objects.update(email="four")
    assert kept("mail:three", "mail:four") == []


@pytest.mark.parametrize(
    "given",
    [
        lambda row: row,
        lambda row: [row],
        lambda row: iter([row]),
        lambda row: {row},
        lambda row: [row.pk],
        lambda row: [str(row.pk)],
        lambda row: Member.objects,
        lambda row: Member.objects.all(),
        lambda row: list(Member.objects.all()),
        lambda row: Member.objects.only("level"),
        lambda row: Member.objects.values("pk", "level"),
        lambda row: Member.objects.values(),
        lambda row: Member.objects.values_list("pk", flat=True),
        lambda row: Guest.objects.all(),
        lambda row: [Member(pk=row.pk)],
    ],
)
def test_changed_takes_what_people_pass(watch: Watch, given: Any) -> None:
    rows = watch(Member, "mail:{email}", "member:{pk}")
    row = Member.objects.create(email="one")
    for tell in (rows.changed, lambda what: changed(Member, what), async_to_sync(rows.achanged)):
        keep("mail:one", f"member:{row.pk}")
        tell(given(row))
        assert kept("mail:one", f"member:{row.pk}") == []


@pytest.mark.parametrize("given", [None, 3, "3", {"pk": 3}, [None], [Label()], ["x"], [(1,)], [{"level": 3}], Label])
def test_changed_refuses_the_rest(watch: Watch, given: Any) -> None:
    rows = watch(Member, "member:{pk}")
    with pytest.raises(ConfigurationError, match=r"rows must be|primary key of Member"):
        rows.changed(given)
    with pytest.raises(ConfigurationError, match="nobody has called"):
        changed(Log, [])
    with pytest.raises(ConfigurationError, match="must be a model"):
        changed("Member", [])  # type: ignore[arg-type]


# What Django changes without a signal


def made(slug: str) -> Any:
    return Org.objects.create(slug=slug)


RELATED: dict[str, Callable[[Any, Any], object]] = {
    "SET_NULL": lambda row, org: org.delete(),
    "SET_NULL, queryset": lambda row, org: Org.objects.filter(pk=org.pk).delete(),
    "add": lambda row, org: made("2").member_set.add(row),
    "add, its own manager": lambda row, org: made("2").member_set(manager="objects").add(row),
    "add, one by one": lambda row, org: made("2").member_set.add(row, bulk=False),
    "aadd": lambda row, org: async_to_sync(made("2").member_set.aadd)(row),
    "remove": lambda row, org: org.member_set.remove(row),
    "clear": lambda row, org: org.member_set.clear(),
    "set": lambda row, org: org.member_set.set([]),
    "by another column": lambda row, org: org.at_home.clear(),
    "a boss is deleted": lambda row, org: row.boss.delete(),
    "a team is cleared": lambda row, org: row.boss.team.clear(),
    "a label is deleted": lambda row, org: row.labels.get().delete(),
    "labels are deleted": lambda row, org: Label.objects.all().delete(),
    "labels are cleared": lambda row, org: row.labels.clear(),
    "a label lets go": lambda row, org: row.labels.get().members.clear(),
    "a friend is deleted": lambda row, org: row.friends.get().delete(),
    "friends are cleared": lambda row, org: row.friends.clear(),
    "a friend clears": lambda row, org: row.friends.get().friends.clear(),
    "one that is followed is deleted": lambda row, org: row.follows.get().delete(),
    "follows are cleared": lambda row, org: row.follows.clear(),
    "followers are cleared": lambda row, org: row.follows.get().followers.clear(),
    "a follower clears": lambda row, org: row.followers.get().follows.clear(),
    "a club is deleted": lambda row, org: row.clubs.get().delete(),
    "clubs are cleared": lambda row, org: row.clubs.clear(),
    "joins": lambda row, org: Membership.objects.create(member=row, club=Club.objects.create()),
    "leaves": lambda row, org: Membership.objects.get(member=row).delete(),
    "leaves, queryset": lambda row, org: Membership.objects.filter(member=row).delete(),
    "moves": lambda row, org: Membership(
        pk=Membership.objects.get(member=row).pk, member=row.boss, club=Club.objects.create()
    ).save(),
}


@pytest.mark.parametrize("tags", [(), ["org:{org_id}"]], ids=["pk", "fields"])
@pytest.mark.parametrize("name", RELATED)
def test_what_changes_by_a_relation_is_heard(watch: Watch, name: str, tags: Any) -> None:
    watch(Member, "member:{pk}", tags=tags, many_to_many=["labels", "friends", "follows", "clubs"])
    org, boss, other = Org.objects.create(slug="1"), Member.objects.create(email="b"), Member.objects.create(email="o")
    row = Member.objects.create(email="one", org=org, home=org, boss=boss)
    row.labels.add(Label.objects.create(text="l"))
    row.friends.add(other)
    row.follows.add(other)
    other.follows.add(row)
    Membership.objects.create(member=row, club=Club.objects.create())
    keep(f"member:{row.pk}")
    RELATED[name](Member.objects.get(pk=row.pk), org)
    assert kept(f"member:{row.pk}") == []


def test_the_tag_before_and_after_a_change_by_a_relation(watch: Watch) -> None:
    watch(Member, tags=["org:{org_id}"])
    one, two = made("1"), made("2")
    row = Member.objects.create(email="x", org=one)
    keep("one", tags=[f"org:{one.pk}"])
    keep("two", tags=[f"org:{two.pk}"])
    keep("none", tags=["org:None"])
    two.member_set.add(row)
    assert kept("one", "two", "none") == ["none"]
    keep("two", tags=[f"org:{two.pk}"])
    two.delete()
    assert kept("two", "none") == []


def test_it_waits_for_the_commit_and_a_rollback_takes_it_along(watch: Watch) -> None:
    watch(Member, "member:{pk}", many_to_many=["labels"])
    org = made("1")
    row = Member.objects.create(email="x", org=org)
    key = f"member:{row.pk}"
    for act in (org.member_set.clear, lambda: Org.objects.all().delete(), lambda: row.labels.set([])):
        keep(key)
        with transaction.atomic():
            act()
            assert kept(key) == [key]
            transaction.set_rollback(True)
        assert kept(key) == [key]


@pytest.mark.parametrize("watched", [Member, Guest, Junior], ids=lambda each: each.__name__)
@pytest.mark.parametrize("by", [Member, Guest, Junior], ids=lambda each: each.__name__)
@pytest.mark.parametrize("how", ["save", "delete", "queryset"])
def test_a_row_is_the_same_through_every_model_of_its_tables(watch: Watch, watched: Any, by: Any, how: str) -> None:
    watch(watched, "row:{pk}", "mail:{email}")
    row = Junior.objects.create(email="one")
    keep(f"row:{row.pk}", "mail:one")
    same = by.objects.get(pk=row.pk)
    same.email = "two"
    by.objects.filter(pk=row.pk).delete() if how == "queryset" else getattr(same, how)()
    assert kept(f"row:{row.pk}", "mail:one") == []


def test_a_model_that_comes_later_is_heard(watch: Watch) -> None:
    watch(Member, "member:{pk}")

    class Late(Member):
        class Meta:
            app_label = "shop"
            proxy = True

    row = Member.objects.create(email="one")
    keep(f"member:{row.pk}")
    Late.objects.get(pk=row.pk).save()
    assert kept(f"member:{row.pk}") == []


# Nobody else pays

SIGNALS: list[ModelSignal] = [pre_init, post_init, pre_save, post_save, pre_delete, post_delete]


def test_other_models_pay_nothing(watch: Watch) -> None:
    def cost() -> tuple[list[str], list[bool]]:
        with CaptureQueriesContext(connection) as found:
            Log.objects.bulk_create([Log(text="x")] * 300)
            Log.objects.create(text="x").save()
            Log.objects.first().delete()  # type: ignore[union-attr]
            Log.objects.all().delete()
        texts = [" ".join(query["sql"].split()[:4]).partition("SET")[0] for query in found]
        return texts, [signal.has_listeners(Log) for signal in SIGNALS]

    before = cost()
    assert len(before[0]) < 15
    for number in range(50):
        watch((Member, Person, Employee, Junior, Guest)[number % 5], f"k{number}:{{pk}}")
    assert cost() == before
    assert not post_init.has_listeners(Member)


def test_after_disconnect_everything_is_as_before() -> None:
    rows = invalidate_on_save(Member, "m:{email}", many_to_many=["labels", "clubs"])
    again = invalidate_on_save(Member, "m:{email}")
    rows.disconnect()
    again.disconnect()
    for model in (Member, Guest, Junior, Org, Label, Club, Membership):
        assert not any(signal.has_listeners(model) for signal in (pre_save, post_save, pre_delete, post_delete))
    org, row = made("1"), Member.objects.create(email="x")
    with CaptureQueriesContext(connection) as found:
        org.member_set.add(row)
    assert len(found) <= 3


# Bloom filters


def test_items_are_in_the_filter_before_the_commit(watch: Watch) -> None:
    ids = guard().bloom("ids", capacity=1000)
    mails = guard().bloom("mails", capacity=1000)
    for each in (ids, mails):
        each.rebuild([])
    rows = watch(Member, bloom={ids: "{pk}", mails: "{email}"})
    with transaction.atomic():
        row = Member.objects.create(email="one@b")
        assert not ids.absent(row.pk)
        assert not mails.absent("one@b")
        row.email = "two@b"
        row.save()
        assert not mails.absent("two@b")
    assert mails.absent("three@b")
    seen: list[bool] = []
    member: Any = Member
    old = member._do_insert  # noqa: SLF001 - no other way in

    def insert(self: Any, *arguments: Any) -> Any:
        seen.append(mails.absent("three@b"))
        return old(self, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Member, "_do_insert", insert)
        member(pk=77, email="three@b").save(force_insert=True)
    assert seen == [False]
    Member.objects.bulk_create([Member(email="four@b")])
    rows.changed(Member.objects.all())
    assert not mails.absent("four@b")


@pytest.mark.parametrize("bloom", ["ids", {"ids": "{pk}"}, 5])
def test_what_is_no_filter_is_refused(bloom: Any) -> None:
    with pytest.raises(ConfigurationError, match="bloom must be a Bloom filter"):
        invalidate_on_save(Member, "k:{pk}", bloom=bloom)


def test_what_has_no_table_is_refused() -> None:
    class Abstract(models.Model):
        class Meta:
            abstract = True
            app_label = "shop"

    with pytest.raises(ConfigurationError, match="must be a model with a table"):
        invalidate_on_save(Abstract, "k:{pk}")


def test_another_database_is_asked_where_the_row_is(watch: Watch) -> None:
    watch(Member, "mail:{email}")
    row = Member.objects.using("other").create(email="one")
    keep("mail:one")
    with transaction.atomic(using="other"):
        Member(pk=row.pk, email="two").save(using="other")
        keep("mail:one")
    assert kept("mail:one") == []
    assert connections["default"].run_on_commit == []
