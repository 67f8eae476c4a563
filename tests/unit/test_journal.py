"""How far back acknowledged invalidations are known, and what follows where that is not far enough."""

from __future__ import annotations

import pytest

from cacheguard.delivery import journal
from cacheguard.delivery.journal import JOURNALED_FOR, LONGEST_JOURNAL, Journal
from cacheguard.delivery.outbox import Invalidation, Outbox
from cacheguard.events import Events

A, B = Invalidation("a"), Invalidation("b")


class Told:
    """An outbox whose time goes by as told."""

    def __init__(self) -> None:
        self.now = 0.0
        self.events = Events()
        self.outbox = Outbox("root", self.events, lambda: self.now)

    def repeated(self, *, of_unknown_age: bool = False) -> list[Invalidation]:
        """What is pending after another server has answered."""
        self.outbox.replay(of_unknown_age=of_unknown_age)
        part = self.outbox.part(10_000)
        self.outbox.delivered(part)
        return list(part)


@pytest.fixture
def told() -> Told:
    return Told()


def test_what_was_acknowledged_is_repeated_each_time(told: Told) -> None:
    told.outbox.acknowledged([A, B])
    assert told.repeated() == [A, B]
    assert told.repeated() == [A, B]
    assert told.events.replayed == 4


def test_where_the_server_does_not_say_what_is_on_disk_a_minute_is_kept(told: Told) -> None:
    told.outbox.acknowledged([A])
    told.now = JOURNALED_FOR + 1
    told.outbox.acknowledged([B])
    assert told.repeated() == [B]


def test_what_is_not_on_disk_is_kept_however_old_it_is(told: Told) -> None:
    told.outbox.saved(-1.0)
    told.outbox.acknowledged([A])
    told.now = 3600.0
    told.outbox.acknowledged([B])
    assert told.repeated() == [A, B]


def test_what_is_on_disk_goes_after_a_minute(told: Told) -> None:
    told.outbox.saved(-1.0)
    told.outbox.acknowledged([A])
    told.now = 3600.0
    told.outbox.saved(3000.0)
    told.outbox.acknowledged([B])
    assert told.repeated() == [B]


def test_where_the_journal_is_shorter_than_what_may_be_lost_the_namespace_goes(told: Told) -> None:
    told.outbox.saved(-1.0)
    told.outbox.acknowledged([A])
    told.now = LONGEST_JOURNAL + 1
    told.outbox.acknowledged([B])
    assert told.repeated() == [Invalidation("root")]


def test_where_more_was_invalidated_than_is_kept_the_namespace_goes(
    told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal, "MOST_JOURNALED", 1)
    told.outbox.acknowledged([A])
    assert told.repeated() == [A]
    told.outbox.acknowledged([B])
    assert told.repeated() == [Invalidation("root")]


def test_what_leaves_something_behind_is_repeated_beside_the_namespace(
    told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal, "MOST_JOURNALED", 1)
    floor = Invalidation("b", version="7")
    told.outbox.acknowledged([A])
    told.outbox.acknowledged([floor])
    assert told.repeated() == [Invalidation("root"), floor]


def test_data_of_any_age_need_all_that_was_ever_invalidated(told: Told) -> None:
    told.outbox.acknowledged([A])
    assert told.repeated(of_unknown_age=True) == [A]
    told.now = JOURNALED_FOR + 1
    told.outbox.acknowledged([B])
    assert told.repeated() == [B]
    assert told.repeated(of_unknown_age=True)[0] == Invalidation("root")


def test_one_key_is_kept_once_with_all_that_was_asked_for_it(told: Told) -> None:
    kept: Journal[Invalidation] = Journal(lambda: 0.0)
    kept.add([Invalidation("a", lag_ms=500), Invalidation("a", version="2"), Invalidation("a", version="3")])
    kept.add([Invalidation("a", version="1"), Invalidation("a", begins="write", intent_ms=9)])
    assert kept.all(of_unknown_age=False) == [Invalidation("a", version="3"), Invalidation("a", lag_ms=500)]


def test_a_key_that_is_invalidated_again_is_as_young_as_that(told: Told) -> None:
    told.outbox.acknowledged([A])
    told.now = JOURNALED_FOR - 1
    told.outbox.acknowledged([A])
    told.now = JOURNALED_FOR + 1
    told.outbox.acknowledged([B])
    assert told.repeated() == [A, B]
