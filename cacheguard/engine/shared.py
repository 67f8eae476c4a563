"""The state that the engines of one guard share: one engine serves the threads, and one each event loop."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import islice
from types import TracebackType
from typing import TYPE_CHECKING

from ..defenses.breakdown import next_pause
from ..protocol.names import beneath, is_marker
from .flights import Flight, Flights
from .lifetimes import marker_ms

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ..defenses.penetration.absences import AbsenceBudget
    from ..delivery.bus import Bus
    from ..events import Events
    from ..policy import Rules
    from ..ports import Bulkhead, Runtime
    from ..servers.buses import Buses
    from ..tiers.local import Local
    from .ask import Ask

MOST_FAILURES = 10_000
FORGOTTEN_AFTER = 60.0


@dataclass(slots=True)
class Failure:
    """A load that failed recently."""

    error: Exception  # holds the loader's frames, so it is not kept for long
    traceback: TracebackType | None
    pause: float
    until: float


class Shared:
    """L1, the flights and the failures of one guard, in this process.

    All of it has one lock, ``local.lock``, because an invalidation removes a key from all of it. The lock guards

    - L1: its entries and its tickets;
    - removals from the tables of flights, and the recent failures;
    - the budget of absences;
    - which nested load uses the permit of the outer load (`permits.Permit`);
    - how long the buses of several nodes are proven (`servers.buses.Trust`).

    It may be entered again by the thread that holds it: a signal handler or a finalizer may invalidate anywhere. It is
    held for a few dictionary accesses, never while something waits. A fork replaces it, so it is always taken as
    ``local.lock``, and no table keeps it.

    Args:
        alone: returns True if the current caller must not share its loads.
    """

    budget: AbsenceBudget
    bulkhead: Bulkhead
    bus: Bus | Buses
    events: Events
    local: Local

    def __init__(
        self,
        local: Local,
        events: Events,
        bulkhead: Bulkhead,
        budget: AbsenceBudget,
        bus: Bus | Buses,
        alone: Callable[[], object] = bool,
    ) -> None:
        self.local, self.events, self.bulkhead, self.budget, self.bus = local, events, bulkhead, budget, bus
        self.off: int = 0  # how many `disabled()` blocks are open
        self.questions: tuple[Callable[[], object], ...] = (alone,)
        self.failures: dict[str, Failure] = {}
        # The loads of this process while Redis gives no leases, whatever the engine.
        self.cut_off: Flights = Flights(local)
        self.flights: list[Flights] = []

    def open_flights(self) -> Flights:
        """The table of flights of one more engine."""
        flights = Flights(self.local)
        self.flights.append(flights)
        return flights

    def close_flights(self, flights: Flights) -> None:
        """Forget the table of an engine that has ended."""
        self.flights = [each for each in self.flights if each is not flights]

    def switch(self, *, off: bool) -> None:
        """Turn caching off or on again; calls may be nested."""
        with self.local.lock:
            self.off += 1 if off else -1
        self.local.switch(off=off)

    def alone(self) -> bool:
        """True if the caller must not share what it loads now."""
        for question in self.questions:  # noqa: SIM110 - asked at every miss: a generator would cost two calls more
            if question():
                return True
        return False

    def drop(self, names: Iterable[str]) -> None:
        """Drop *names* (keys, markers) from this process: L1, flights, and recent failures."""
        for name in names:
            self.bus.note(name)
            self.local.drop(name)
            prefixes = beneath(name)
            with self.local.lock:
                if prefixes is not None:
                    self._forget(partial(_lies_beneath, prefixes))
                elif is_marker(name):
                    self._forget(partial(_is_marked, name))
                else:
                    self.failures.pop(name, None)
                    for flights in (self.cut_off, *self.flights):
                        flights.pop(name, None)

    def _forget(self, concerned: Callable[[str, Flight | None], bool]) -> None:
        for flights in (self.cut_off, *self.flights):
            for key, flight in list(flights.items()):
                if concerned(key, flight):
                    flights.pop(key, None)
        for key in [key for key in self.failures if concerned(key, None)]:
            self.failures.pop(key, None)

    # What absent ids leave

    def tags_before(self, ask: Ask, now: float) -> tuple[str, ...]:
        """The tags of *ask* whose markers are made before its load.

        The id may not exist. If `max_absences` is reached, no marker is made for it that is not there already; the
        markers of a value are then made after its load, which costs one more round trip.
        """
        if not ask.tags:
            return ask.tags
        with self.local.lock:
            if self.budget.has_room(now):
                return ask.tags
            return tuple(tag for tag in ask.tags if self.budget.knows(ask.scope.tag(tag)))

    def left_behind(self, ask: Ask, markers: Iterable[str], now: float) -> None:
        """Count the *markers* of tags that were made for *ask*, and under which no value has been stored."""
        own = [marker for marker in markers if marker not in ask.scope.epochs]
        if own:
            with self.local.lock:
                self.budget.add_markers(now, own, marker_ms(ask.rules) / 1000)

    def put_by_hand(self, fresh: float, tags: Iterable[str], now: float, keep: float) -> None:
        """Count an absence that a caller has stored by hand, beyond the limit as well, and the markers of its tags."""
        with self.local.lock:
            self.budget.add(now, fresh)
            self.budget.add_markers(now, tags, keep)

    # Failures: a loader that failed is not run again at once

    def paused(self, key: str, rules: Rules, runtime: Runtime) -> Exception | None:
        """The exception of a recent load of *key* if its back-off still runs, else None."""
        failure = self.failures.get(key)
        if failure is None or rules.error_backoff is None:
            return None
        return None if runtime.now() >= failure.until else failure.error.with_traceback(failure.traceback)

    def failed(self, keys: Iterable[str], error: Exception, rules: Rules, now: float) -> None:
        """Begin or extend the back-off of *keys*, whose load failed: it doubles with each failure in a row."""
        backoff = rules.error_backoff
        if backoff is None:
            return
        for key in keys:
            self.forget_failures(now)
            previous = self.failures.get(key)
            lately = previous is not None and now < previous.until + backoff[1]
            pause = next_pause(previous.pause if previous is not None and lately else None, backoff)
            with self.local.lock:
                self.failures.pop(key, None)
                if len(self.failures) >= MOST_FAILURES:
                    self.failures.pop(next(iter(self.failures)))
                self.failures[key] = Failure(error, error.__traceback__, pause, now + pause)

    def succeeded(self, keys: Iterable[str], now: float) -> None:
        """Forget the failures of *keys*: their load has succeeded."""
        for key in keys:
            self.failures.pop(key, None)
        self.forget_failures(now)

    def forget_failures(self, now: float) -> None:
        """Remove old failures, at most two. Each load calls this while there are any, so none stays for long."""
        if not self.failures:
            return
        with self.local.lock:
            for key, failure in list(islice(self.failures.items(), 2)):
                if failure.until + FORGOTTEN_AFTER < now:
                    self.failures.pop(key, None)

    def after_fork(self) -> None:
        """Leave the parent's flights to the parent."""
        for flights in (self.cut_off, *self.flights):
            flights.clear()
        self.local.drop_all()


def _lies_beneath(prefixes: tuple[str, str], key: str, _: Flight | None) -> bool:
    return key.startswith(prefixes)


def _is_marked(marker: str, _: str, flight: Flight | None) -> bool:
    return flight is not None and marker in flight.marks
