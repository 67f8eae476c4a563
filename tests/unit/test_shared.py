from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest

from cacheguard.defenses.penetration.absences import AbsenceBudget
from cacheguard.delivery.bus import Bus
from cacheguard.engine.flights import Flight
from cacheguard.engine.shared import Shared
from cacheguard.errors import LoadFailed
from cacheguard.events import Events
from cacheguard.policy import Policy, resolve
from cacheguard.runtime.bulkhead import FairBulkhead
from cacheguard.tiers.local import Local
from tests.support.entries import entry
from tests.support.turn import Turn

RULES = resolve(Policy())


class Clock:
    """A runtime whose clock the test moves, and what it was asked to do later."""

    def __init__(self, now: float = 1.0) -> None:
        self.at = now
        self.asked: list[tuple[float, Callable[[], None]]] = []

    def now(self) -> float:
        return self.at

    def later(self, seconds: float, what: Callable[[], None]) -> None:
        self.asked.append((self.at + seconds, what))

    def go_to(self, now: float) -> None:
        """Let the time pass; what is due by then happens at its time."""
        while due := [each for each in self.asked if each[0] <= now]:
            first = min(due, key=lambda each: each[0])
            self.asked.remove(first)
            self.at = first[0]
            first[1]()
        self.at = now


def clock() -> Any:
    """Such a runtime, as the engine takes it."""
    return Clock()


def shared() -> Shared:
    events = Events()
    local = Local(10, None, "lru", nullcontext(), events, lambda: 1.0)
    bus = Bus("bus", "me", lambda name: None, local, events, now=lambda: 1.0)
    return Shared(local, events, FairBulkhead(1, 0.0, 1000), AbsenceBudget(10), bus)


def test_dropping_a_key_forgets_all_about_it() -> None:
    all_of_it = shared()
    flights = all_of_it.open_flights()
    flights.update({"k": Flight(Turn()), "other": Flight(Turn())})
    all_of_it.failed(["k"], ValueError(), RULES, clock())
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
        assert all_of_it.local.put(key, entry(marks=marks.get(key, ())), ticket, absence=False)
    all_of_it.drop([name])
    assert list(flights) == left
    assert [key for key in keys if all_of_it.local.find(key)] == left
    late = entry(marks=marks["cg:shop:e:red"])
    refused = "cg:shop:e:red" not in left
    assert all_of_it.local.put("cg:shop:e:red", late, ticket, absence=False) is not refused or name == "cg:shop/v2:m"


def test_the_oldest_failure_makes_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cacheguard.engine.shared.MOST_FAILURES", 2)
    all_of_it = shared()
    for key in ("a", "b", "a", "c"):
        all_of_it.failed([key], ValueError(), RULES, clock())
    assert list(all_of_it.failures) == ["a", "c"]


def test_failures_are_forgotten_without_another_load() -> None:
    all_of_it, runtime = shared(), clock()
    rules = resolve(Policy(error_backoff=("1s", "8s")))
    for at in (1.0, 1.5):
        runtime.go_to(at)
        all_of_it.failed(["a", "b"], ValueError(str(at)), rules, runtime)
    assert len(runtime.asked) == 1  # one look for all
    assert str(all_of_it.paused("a", rules, runtime)) == "1.5"
    runtime.go_to(3.7)  # the pause of two seconds is over, but another failure would be the third in a row
    assert all_of_it.paused("a", rules, runtime) is None
    assert [failure.error for failure in all_of_it.failures.values()] == [None, None]
    all_of_it.failed(["b"], ValueError(), rules, runtime)
    runtime.go_to(11.7)
    assert list(all_of_it.failures) == ["b"]
    runtime.go_to(16.0)
    assert all_of_it.failures == {}
    assert runtime.asked == []


def test_a_short_pause_is_not_kept_for_as_long_as_another_one() -> None:
    all_of_it, runtime = shared(), clock()
    all_of_it.failed(["long"], ValueError(), resolve(Policy(error_backoff=("60s", "60s"))), runtime)
    for number in range(10):
        all_of_it.failed([f"short {number}"], ValueError(), RULES, runtime)
    assert len(runtime.asked) == 2
    runtime.go_to(7.0)
    assert list(all_of_it.failures) == ["long"]
    runtime.go_to(200.0)
    assert all_of_it.failures == {}
    assert runtime.asked == []


def test_a_look_that_was_lost_with_its_event_loop_is_asked_for_again() -> None:
    all_of_it, runtime = shared(), clock()
    all_of_it.failed(["a"], ValueError(), RULES, runtime)
    runtime.asked.clear()
    runtime.go_to(5.0)
    all_of_it.failed(["b"], ValueError(), RULES, runtime)
    runtime.go_to(20.0)
    assert all_of_it.failures == {}


def test_an_exception_that_cannot_be_made_anew_is_told_in_words() -> None:
    class OddError(ValueError):
        @property
        def args(self) -> tuple[object, ...]:  # type: ignore[override]
            return ("of all things",)

    all_of_it, runtime = shared(), clock()
    all_of_it.failed(["a"], OddError(), RULES, runtime)
    failure = all_of_it.paused("a", RULES, runtime)
    assert isinstance(failure, LoadFailed)
    assert re.search("OddError.*of all things", str(failure))


def test_a_forked_child_starts_without_flights_and_entries() -> None:
    all_of_it = shared()
    flights = all_of_it.open_flights()
    flights["k"] = Flight(Turn())
    assert all_of_it.local.put("k", entry(), all_of_it.local.tickets.take(), absence=False)
    all_of_it.after_fork()
    assert flights == {}
    assert all_of_it.local.find("k") is None
