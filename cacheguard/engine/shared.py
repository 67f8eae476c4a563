"""What the engines of one guard share: one engine serves the threads, one each event loop."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import islice
from types import TracebackType
from typing import TYPE_CHECKING

from ..protocol.names import beneath, is_marker

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ..defenses.penetration.layout import AbsenceBudget
    from ..delivery.bus import Bus
    from ..events import Events
    from ..ports import Bulkhead
    from ..servers.ring import Buses
    from ..tiers.local import Local
    from .flights import Flight

MOST_FAILURES = 10_000


FORGOTTEN_AFTER = 60.0


@dataclass(slots=True)
class Failure:
    """A load that failed lately."""

    error: Exception  # holds the loader's frames, so it is not kept for long
    traceback: TracebackType | None
    pause: float
    until: float


class Shared:
    """What the engines of one guard have in common: one engine serves threads, one each event loop."""

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
        self.questions: tuple[Callable[[], object], ...] = (alone,)
        self.failures: dict[str, Failure] = {}
        self.cut_off: dict[str, Flight] = {}  # by key, the one load of it in this process while Redis gives no leases
        self.flights: list[dict[str, Flight]] = []

    def alone(self) -> bool:
        """Whether what the caller would load now is for nobody else."""
        return any(question() for question in self.questions)

    def drop(self, names: Iterable[str]) -> None:
        """Take *names* (keys, markers) out of this process: L1, flights, and the memory of failures."""
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

    def remember(self, key: str, failure: Failure) -> None:
        """Keep a failure; the oldest goes when there are too many."""
        self.forget_failures(failure.until)
        with self.local.lock:
            self.failures.pop(key, None)
            if len(self.failures) >= MOST_FAILURES:
                self.failures.pop(next(iter(self.failures)))
            self.failures[key] = failure

    def forget_failures(self, now: float) -> None:
        """Let go of failures of old; two at most, called with each load, so none stays for long."""
        if not self.failures:
            return
        with self.local.lock:
            for key, failure in list(islice(self.failures.items(), 2)):
                if failure.until + FORGOTTEN_AFTER < now:
                    del self.failures[key]

    def after_fork(self) -> None:
        """Leave the parent's flights to the parent."""
        for flights in (self.cut_off, *self.flights):
            flights.clear()
        self.local.drop_all()


def _lies_beneath(prefixes: tuple[str, str], key: str, _: Flight | None) -> bool:
    return key.startswith(prefixes)


def _is_marked(marker: str, _: str, flight: Flight | None) -> bool:
    return flight is not None and marker in flight.marks
