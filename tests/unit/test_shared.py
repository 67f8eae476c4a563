from __future__ import annotations

from contextlib import nullcontext

import pytest

from cacheguard.defenses.penetration.absences import AbsenceBudget
from cacheguard.delivery.bus import Bus
from cacheguard.engine.flights import Flight
from cacheguard.engine.shared import Shared
from cacheguard.events import Events
from cacheguard.policy import Policy, resolve
from cacheguard.runtime.bulkhead import FairBulkhead
from cacheguard.tiers.local import Entry, Local
from tests.support.turn import Turn

RULES = resolve(Policy())


def shared() -> Shared:
    events = Events()
    local = Local(10, None, "lru", nullcontext(), events, lambda: 1.0)
    bus = Bus("bus", "me", lambda name: None, local, events, now=lambda: 1.0)
    return Shared(local, events, FairBulkhead(1, 0.0, 1000), AbsenceBudget(10), bus)


def test_dropping_a_key_forgets_all_about_it() -> None:
    all_of_it = shared()
    flights = all_of_it.open_flights()
    flights.update({"k": Flight(Turn()), "other": Flight(Turn())})
    all_of_it.failed(["k"], ValueError(), RULES, 1.0)
    ticket = all_of_it.local.tickets.take()
    all_of_it.drop(["k"])
    assert list(flights) == ["other"]
    assert all_of_it.failures == {}
    assert not all_of_it.local.tickets.holds(ticket, "k")


@pytest.mark.parametrize(
    ("name", "left"),
    [
        ("cg:shop:m:red", ["cg:shop:e:a", "cg:shop/v2:e:a", "cg:shopping:e:a"]),
        ("cg:shop/v2:m", ["cg:shop:e:a", "cg:shop:e:red", "cg:shopping:e:a"]),
        ("cg:shop:m", ["cg:shopping:e:a"]),
    ],
)
def test_dropping_a_marker_forgets_what_depends_on_it(name: str, left: list[str]) -> None:
    all_of_it = shared()
    marks = {"cg:shop:e:red": ("cg:shop:m:red", "cg:shop:m:green")}
    keys = ["cg:shop:e:a", "cg:shop:e:red", "cg:shop/v2:e:a", "cg:shopping:e:a"]
    flights = all_of_it.open_flights()
    flights.update({key: Flight(Turn(), marks=marks.get(key, ())) for key in keys})
    ticket = all_of_it.local.tickets.take()
    for key in keys:
        entry = Entry(key, 1, kind=0, until=9.0, fresh_until=9.0, born=0.0, marks=marks.get(key, ()))
        assert all_of_it.local.put(entry, ticket, absence=False)
    all_of_it.drop([name])
    assert list(flights) == left
    assert [key for key in keys if all_of_it.local.find(key)] == left
    late = Entry("cg:shop:e:red", 1, kind=0, until=9.0, fresh_until=9.0, born=0.0, marks=marks["cg:shop:e:red"])
    refused = "cg:shop:e:red" not in left
    assert all_of_it.local.put(late, ticket, absence=False) is not refused or name == "cg:shop/v2:m"


def test_the_oldest_failure_makes_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cacheguard.engine.shared.MOST_FAILURES", 2)
    all_of_it = shared()
    for key in ("a", "b", "a", "c"):
        all_of_it.failed([key], ValueError(), RULES, 1.0)
    assert list(all_of_it.failures) == ["a", "c"]


def test_a_forked_child_starts_without_flights_and_entries() -> None:
    all_of_it = shared()
    flights = all_of_it.open_flights()
    flights["k"] = Flight(Turn())
    entry = Entry("k", 1, kind=0, until=9.0, fresh_until=9.0, born=0.0)
    assert all_of_it.local.put(entry, all_of_it.local.tickets.take(), absence=False)
    all_of_it.after_fork()
    assert flights == {}
    assert all_of_it.local.find("k") is None
