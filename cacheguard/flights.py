"""One rebuild of one key in this process, and what the engines of a guard share."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING

from .defenses.consistency import may_share

if TYPE_CHECKING:
    from collections.abc import Iterable

    from .defenses.penetration import AbsenceBudget
    from .events import Events
    from .ports import Bulkhead, Signal
    from .tiers.local import Local
    from .tiers.remote import Stored

MOST_FAILURES = 10_000


class Chain:
    """The loads around the code that runs now: a loader that waits for one of their keys waits for itself."""

    __slots__ = ("keys", "spare")

    def __init__(self, keys: frozenset[str], *, spare: bool) -> None:
        self.keys = keys
        self.spare = spare  # the innermost load's place in the bulkhead, which a nested load may use meanwhile


NO_CHAIN = Chain(frozenset(), spare=False)
CHAIN: ContextVar[Chain] = ContextVar("cacheguard_loading", default=NO_CHAIN)


class Flight:
    """One rebuild of one key in this process, and those who wait for it.

    Args:
        signal: goes up when the flight has landed.
        anew: its load begins after the flight was opened, whatever is cached.
    """

    __slots__ = ("anew", "answer", "error", "landed", "leases", "loaded", "proven", "signal")

    def __init__(self, signal: Signal, *, anew: bool = False) -> None:
        self.signal = signal
        self.anew = anew
        self.leases = 0  # leases asked for so far; who joins before the last one joined before the load
        self.landed = False
        self.proven = False
        self.answer: Stored | None = None
        self.error: Exception | None = None
        self.loaded: Stored | None = None  # what the loader returned after everybody had stopped waiting

    def land(self, answer: Stored, *, proven: bool) -> None:
        """Everybody gets *answer*."""
        if not self.landed:
            self.answer, self.proven, self.landed = answer, proven, True
        self.signal.set()

    def fail(self, error: Exception) -> None:
        """Everybody gets *error*."""
        if not self.landed:
            self.error, self.proven, self.landed = error, True, True
        self.signal.set()

    def abandon(self) -> None:
        """Nobody gets anything: who waits must ask again."""
        self.landed = True
        self.signal.set()

    def serves(self, joined_at: int, *, anew: bool) -> bool:
        """May a follower that joined after *joined_at* leases use the outcome?"""
        before = joined_at < self.leases
        return (before and self.anew) if anew else may_share(joined_before_lease=before, proven=self.proven)


@dataclass(slots=True)
class Failure:
    """A load that failed lately."""

    error: Exception
    traceback: TracebackType | None
    pause: float
    until: float


class Shared:
    """What the engines of one guard have in common: one engine serves threads, one each event loop."""

    def __init__(self, local: Local, events: Events, bulkhead: Bulkhead, budget: AbsenceBudget) -> None:
        self.local, self.events, self.bulkhead, self.budget = local, events, bulkhead, budget
        self.failures: dict[str, Failure] = {}
        self.flights: list[dict[str, Flight]] = []

    def drop(self, keys: Iterable[str]) -> None:
        """Take *keys* out of this process: L1, flights, and the memory of failures."""
        for key in keys:
            self.local.drop(key)
            self.failures.pop(key, None)
            for flights in self.flights:
                flights.pop(key, None)

    def remember(self, key: str, failure: Failure) -> None:
        """Keep a failure; the oldest goes when there are too many."""
        self.failures.pop(key, None)
        while len(self.failures) >= MOST_FAILURES:
            self.failures.pop(next(iter(self.failures)), None)
        self.failures[key] = failure

    def after_fork(self) -> None:
        """Leave the parent's flights to the parent."""
        for flights in self.flights:
            flights.clear()
        self.local.drop_all()
