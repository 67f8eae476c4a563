from __future__ import annotations

from contextlib import nullcontext

import pytest

from cacheguard.defenses.penetration.layout import AbsenceBudget
from cacheguard.delivery.bus import Bus
from cacheguard.engine.flights import Flight
from cacheguard.engine.permits import Chain, Place
from cacheguard.engine.shared import Failure, Shared
from cacheguard.events import Events
from cacheguard.protocol.envelope import Kind
from cacheguard.runtime import run_now
from cacheguard.runtime.bulkhead import FairBulkhead
from cacheguard.tiers.local import Entry, Local
from cacheguard.tiers.remote import Stored

ANSWER = Stored(Kind.VALUE, 1, 300.0, 0.0, ())


class Turn:
    """A signal whose wait ends at once."""

    def __init__(self, ends: BaseException | None = None) -> None:
        self.up = False
        self._ends = ends

    def set(self) -> None:
        self.up = True

    async def wait(self, timeout: float | None) -> bool:
        if self._ends is not None:
            raise self._ends
        return self.up


def shared() -> Shared:
    events = Events()
    local = Local(10, None, "lru", nullcontext(), events, lambda: 1.0)
    bus = Bus("bus", "me", lambda name: None, local, events, now=lambda: 1.0)
    return Shared(local, events, FairBulkhead(1, 0.0, 1000), AbsenceBudget(10), bus)


@pytest.mark.parametrize(
    ("joined_at", "proven", "anew", "wanted_anew", "serves"),
    [
        (0, False, False, False, True),  # joined before the lease was asked for
        (1, False, False, False, False),  # joined after it, and nothing says that no invalidation came between
        (1, True, False, False, True),  # the fill was accepted
        (0, False, True, True, True),  # a refresh may use a refresh that began later
        (1, True, True, True, False),
        (0, True, False, True, False),  # a refresh needs more than a read
    ],
)
def test_who_may_use_the_outcome_of_a_flight(
    joined_at: int, proven: bool, anew: bool, wanted_anew: bool, serves: bool
) -> None:
    flight = Flight(Turn(), anew=anew)
    flight.leases = 1
    flight.land(ANSWER, proven=proven)
    assert flight.serves(joined_at, anew=wanted_anew) == serves


def test_a_flight_lands_once() -> None:
    flight = Flight(Turn())
    flight.land(ANSWER, proven=False)
    flight.fail(ValueError())
    flight.land(ANSWER, proven=True)
    assert (flight.answer, flight.error, flight.proven) == (ANSWER, None, False)
    abandoned = Flight(Turn())
    abandoned.abandon()
    assert (abandoned.landed, abandoned.answer, abandoned.error) == (True, None, None)


def test_dropping_a_key_forgets_all_about_it() -> None:
    all_of_it = shared()
    flights = {"k": Flight(Turn()), "other": Flight(Turn())}
    all_of_it.flights.append(flights)
    all_of_it.remember("k", Failure(ValueError(), None, 0.1, 1.0))
    ticket = all_of_it.local.tickets.take()
    all_of_it.drop(["k"])
    assert list(flights) == ["other"]
    assert all_of_it.failures == {}
    assert not all_of_it.local.tickets.holds(ticket, "k")


@pytest.mark.parametrize(
    ("name", "left"),
    [
        ("cg:shop:m:red", ["cg:shop:1:a", "cg:shop/v2:1:a", "cg:shopping:1:a"]),
        ("cg:shop/v2:m", ["cg:shop:1:a", "cg:shop:1:red", "cg:shopping:1:a"]),
        ("cg:shop:m", ["cg:shopping:1:a"]),
    ],
)
def test_dropping_a_marker_forgets_what_depends_on_it(name: str, left: list[str]) -> None:
    all_of_it = shared()
    marks = {"cg:shop:1:red": ("cg:shop:m:red", "cg:shop:m:green")}
    keys = ["cg:shop:1:a", "cg:shop:1:red", "cg:shop/v2:1:a", "cg:shopping:1:a"]
    flights = {key: Flight(Turn(), marks=marks.get(key, ())) for key in keys}
    all_of_it.flights.append(flights)
    ticket = all_of_it.local.tickets.take()
    for key in keys:
        entry = Entry(key, 1, kind=0, until=9.0, fresh_until=9.0, born=0.0, marks=marks.get(key, ()))
        assert all_of_it.local.put(entry, ticket, absence=False)
    all_of_it.drop([name])
    assert list(flights) == left
    assert [key for key in keys if all_of_it.local.find(key)] == left
    late = Entry("cg:shop:1:red", 1, kind=0, until=9.0, fresh_until=9.0, born=0.0, marks=marks["cg:shop:1:red"])
    refused = "cg:shop:1:red" not in left
    assert all_of_it.local.put(late, ticket, absence=False) is not refused or name == "cg:shop/v2:m"


def test_the_oldest_failure_makes_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cacheguard.engine.shared.MOST_FAILURES", 2)
    all_of_it = shared()
    for key in ("a", "b", "a", "c"):
        all_of_it.remember(key, Failure(ValueError(), None, 0.1, 1.0))
    assert list(all_of_it.failures) == ["a", "c"]


def test_a_forked_child_starts_without_flights_and_entries() -> None:
    all_of_it = shared()
    flights = {"k": Flight(Turn())}
    all_of_it.flights.append(flights)
    entry = Entry("k", 1, kind=0, until=9.0, fresh_until=9.0, born=0.0)
    assert all_of_it.local.put(entry, all_of_it.local.tickets.take(), absence=False)
    all_of_it.after_fork()
    assert flights == {}
    assert all_of_it.local.find("k") is None


def test_a_place_is_lent_to_one_at_a_time_and_given_back_in_the_end() -> None:
    left: list[bool] = []
    place = Place(lambda: left.append(True), nullcontext())
    assert place.borrow()
    assert not place.borrow()
    place.end()
    assert left == []
    place.give_back()
    assert left == [True]
    assert not place.borrow()


def test_a_place_that_nobody_uses_is_given_back_at_once() -> None:
    left: list[bool] = []
    Place(lambda: left.append(True), nullcontext()).end()
    assert left == [True]


def test_who_stands_in_line_for_a_place_gets_it_in_turn() -> None:
    place = Place(lambda: None, nullcontext())
    assert place.borrow()
    turn = Turn()

    class Passing(Turn):
        async def wait(self, timeout: float | None) -> bool:
            place.give_back()
            return self.up

    assert run_now(place.wait(Passing(), 1.0))
    assert not place.borrow()
    assert not run_now(place.wait(turn, 1.0))  # nobody gave it back in time
    place.give_back()
    assert place.borrow()


def test_a_turn_that_came_while_its_owner_gave_up_is_passed_on_or_used() -> None:
    place = Place(lambda: None, nullcontext())
    assert place.borrow()

    class Late(Turn):
        async def wait(self, timeout: float | None) -> bool:
            place.give_back()
            return False

    assert run_now(place.wait(Late(), 1.0))

    class Cancelled(Turn):
        async def wait(self, timeout: float | None) -> bool:
            place.give_back()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_now(place.wait(Cancelled(), 1.0))
    assert place.borrow()
    with pytest.raises(KeyboardInterrupt):
        run_now(place.wait(Turn(KeyboardInterrupt()), 1.0))
    place.give_back()
    assert place.borrow()


def test_a_place_that_is_free_by_now_is_not_waited_for() -> None:
    place = Place(lambda: None, nullcontext())
    assert run_now(place.wait(Turn(KeyboardInterrupt()), 1.0))
    assert not place.borrow()


def test_a_chain_leaves_out_loads_that_are_over() -> None:
    ended = Chain(("a",), None, None)
    ended.over = True
    assert Chain(("b",), None, ended).around is None


def test_a_chain_knows_the_keys_that_are_loaded_around_it() -> None:
    outer = Chain(("a",), None, None)
    inner = Chain(("b",), None, outer)
    assert inner.waits_for("a")
    assert inner.waits_for("b")
    assert not inner.waits_for("c")
    outer.over = True
    assert not inner.waits_for("a")
