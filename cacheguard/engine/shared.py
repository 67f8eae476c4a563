"""The state that the engines of one guard share: one engine serves the threads, and one each event loop."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from ..defenses.breakdown import pause_after
from ..errors import LoadFailed
from ..protocol.exceptions import again, told
from ..protocol.frameless import frameless
from ..protocol.names import beneath, is_marker
from .beside import Meanwhile
from .flights import Flight, Flights
from .lifetimes import marker_ms

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ..defenses.penetration.absences import AbsenceBudget
    from ..delivery.bus import Bus
    from ..events import Events
    from ..policy import Rules
    from ..ports import Bulkhead, Home, Runtime, Signal
    from ..protocol.entry import Failed
    from ..servers.buses import Buses
    from ..tiers.copies import Copier
    from ..tiers.local import Local
    from .ask import Ask

MOST_FAILURES = 10_000
MOST_WOKEN = 256  # wake-ups that are remembered, for the moment between the answer to a question and the sleep
FORGETS_EVERY = 0.1  # seconds: so often, at most, a look for failures whose time is over


@dataclass(slots=True)
class Failure:
    """A load that failed recently.

    Args:
        error: what it raised, without frames; None when the pause is over.
        failures: in a row.
        until: the end of the pause.
        over: from then on another failure is not one in a row.
    """

    error: Exception | None
    failures: int
    until: float
    over: float


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
        copier: makes the copies of ``l1_copy``; None: callers share what they get.
        leases: by token, where the loads under the leases of this process go on. Those of all its guards, if they may
            wait for each other.
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
        *,
        leases: dict[str, Home] | None = None,
        copier: Copier | None = None,
    ) -> None:
        self.copier: Copier | None = copier
        self.local, self.events, self.bulkhead, self.budget, self.bus = local, events, bulkhead, budget, bus
        self.leases: dict[str, Home] = {} if leases is None else leases
        self.loading: list[Home] = []  # where the loads go on that hold a permit or wait for one
        self.limit: Callable[[Iterable[str], str], float] = _no_limit  # as `Here` has it
        self.off: int = 0  # how many `disabled()` blocks are open
        self.questions: tuple[Callable[[], object], ...] = (alone,)
        self.failures: dict[str, Failure] = {}
        self._sleepers: dict[str, list[Signal]] = {}  # by key
        self.wakes: int = 0  # wake-ups that came
        self._woken: dict[str, int] = {}  # by key, the last that found nobody asleep
        self._forgets_at = math.inf  # when failures are looked through
        # The loads of this process while Redis gives no leases, whatever the engine.
        self.cut_off: Flights = Flights(local)
        self.meanwhile: Meanwhile = Meanwhile(local)
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
                    if self.failures:
                        self.failures.pop(name, None)
                    for flights in (self.cut_off, *self.flights):
                        flights.pop(name, None)
            if self._sleepers and name in self._sleepers:
                self.wake(name)  # the lease that they wait for is gone

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
        """The exception of a recent load of *key* if its back-off still runs, else None. A new object each time."""
        failure = self.failures.get(key)
        if failure is None or rules.error_backoff is None or runtime.now() >= failure.until:
            return None
        return None if failure.error is None else again(failure.error)

    def failed(
        self, keys: Iterable[str], error: Exception, rules: Rules, runtime: Runtime, before: int = 0
    ) -> tuple[int, float]:
        """Begin or extend the back-off of *keys*, whose load failed: it doubles with each failure in a row.

        *before*: how many there were, in whatever processes.

        Returns how many there were in a row, and the seconds of the back-off.
        """
        backoff, now, most = rules.error_backoff, runtime.now(), 0
        if backoff is None:
            return 1, 0.0
        kept = frameless(error)
        if kept is None:
            kept = LoadFailed(f"the load failed a moment ago, with {type(error).__qualname__}: {told(error).arguments}")
        for key in keys:
            previous = self.failures.get(key)
            mine = previous.failures if previous is not None and now < previous.over else 0
            failures = max(mine, before) + 1
            until = now + pause_after(failures, backoff)
            self._remember(key, Failure(kept, failures, until, until + backoff[1]), runtime)
            most = max(most, failures)
        return most, pause_after(most, backoff)

    def told(self, key: str, error: Exception, lease: Failed, rules: Rules, runtime: Runtime) -> None:
        """Take over the back-off of *key*, whose load failed with *error* in another process."""
        backoff = rules.error_backoff
        if backoff is not None and lease.left > 0:
            until = runtime.now() + min(lease.left, backoff[1])
            self._remember(key, Failure(frameless(error), lease.failures, until, until + backoff[1]), runtime)

    def _remember(self, key: str, failure: Failure, runtime: Runtime) -> None:
        with self.local.lock:
            self.failures.pop(key, None)
            if len(self.failures) >= MOST_FAILURES:
                self.failures.pop(next(iter(self.failures)))
            self.failures[key] = failure
        self._forget_at(failure.until, runtime)

    def succeeded(self, keys: Iterable[str]) -> None:
        """Forget the failures of *keys*: their load has succeeded."""
        for key in keys:
            self.failures.pop(key, None)

    def _forget_at(self, when: float, runtime: Runtime) -> None:
        """Have failures forgotten without another load, soon after *when*."""
        now = runtime.now()
        if now < self._forgets_at <= when + FORGETS_EVERY:  # one in the past was lost, with its event loop
            return
        self._forgets_at = due = when + FORGETS_EVERY
        runtime.later(due - now, partial(self._forget_failures, runtime, due))

    def _forget_failures(self, runtime: Runtime, due: float) -> None:
        """Let go of the exceptions whose pause is over, and of failures of old."""
        if due != self._forgets_at:  # another look comes earlier, or has come
            return
        self._forgets_at = math.inf
        now, soonest = runtime.now(), math.inf
        for key, failure in list(self.failures.items()):
            if now >= failure.until:
                failure.error = None
            if now < failure.over:
                soonest = min(soonest, failure.over if failure.error is None else failure.until)
            elif self.failures.get(key) is failure:
                self.failures.pop(key, None)
        if soonest < math.inf:
            self._forget_at(soonest, runtime)

    # Waiting for a load in another process

    def sleeper(self, key: str, signal: Signal, since: int) -> bool:
        """Let *signal* be set when the load of *key* in another process has ended; False if that has been said already.

        The message may come before this call, but after the question was sent to which "wait" is the answer: *since* is
        what `wakes` was then.
        """
        with self.local.lock:
            if self._woken.get(key, 0) > since:
                return False
            self._sleepers.setdefault(key, []).append(signal)
        return True

    def wake(self, key: str) -> None:
        """Set the signals of those who wait for *key*; if nobody does yet, `sleeper` gets to know."""
        self.meanwhile.over(key)
        with self.local.lock:
            self.wakes += 1
            signals = self._sleepers.pop(key, ())
            if not signals:
                self._woken.pop(key, None)
                while len(self._woken) >= MOST_WOKEN:
                    self._woken.pop(next(iter(self._woken)))
                self._woken[key] = self.wakes
        for signal in signals:
            signal.set()

    def no_sleeper(self, key: str, signal: Signal) -> None:
        """Forget *signal*, which waits no more."""
        with self.local.lock:
            left = [each for each in self._sleepers.pop(key, ()) if each is not signal]
            if left:
                self._sleepers[key] = left

    def after_fork(self) -> None:
        """Leave the parent's flights to the parent."""
        for flights in (self.cut_off, *self.flights):
            flights.clear()
        self.loading.clear()
        self.failures.clear()
        self._sleepers.clear()
        self._woken.clear()
        self.meanwhile.clear()
        self._forgets_at = math.inf
        self.local.drop_all()


def _lies_beneath(prefixes: tuple[str, str], key: str, _: Flight | None) -> bool:
    return key.startswith(prefixes)


def _is_marked(marker: str, _: str, flight: Flight | None) -> bool:
    return flight is not None and marker in flight.marks


def _no_limit(_names: Iterable[str], _version: str) -> float:
    return math.inf
