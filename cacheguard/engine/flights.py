"""One rebuild of one key in this process, and what the engines of a guard share."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection
from contextlib import AbstractContextManager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from itertools import islice
from types import TracebackType
from typing import TYPE_CHECKING, Any

from ..defenses.consistency import may_share
from ..protocol.envelope import Kind
from ..protocol.names import beneath, is_marker

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ..defenses.penetration.layout import AbsenceBudget
    from ..delivery.bus import Bus
    from ..events import Events
    from ..ports import Bulkhead, Signal
    from ..protocol.entry import Stored
    from ..servers.buses import Buses
    from ..tiers.local import Local

MOST_FAILURES = 10_000
FORGOTTEN_AFTER = 60.0


class Place:
    """A place in the bulkhead, held by one load and used by the loads inside it while it waits for them.

    Args:
        leave: gives the place back, to the bulkhead or to the load around.
        lock: guards who uses it.
    """

    __slots__ = ("_leave", "_line", "_lock", "_over", "_spare")

    def __init__(self, leave: Callable[[], None], lock: AbstractContextManager[Any]) -> None:
        self._leave, self._lock = leave, lock
        self._spare, self._over = True, False
        self._line: deque[Signal] = deque()

    def borrow(self) -> bool:
        """Use the place, if nobody does."""
        with self._lock:
            free = self._spare and not self._over
            if free:
                self._spare = False
        return free

    async def wait(self, turn: Signal, patience: float) -> bool:
        """Stand in line for the place; false if it did not come free in *patience* seconds."""
        with self._lock:
            if self._spare and not self._over:  # given back since the caller looked
                self._spare = False
                return True
            self._line.append(turn)
        try:
            if await turn.wait(patience):
                return True
        except BaseException:
            if not self._step_out(turn):
                self.give_back()
            raise
        return not self._step_out(turn)

    def _step_out(self, turn: Signal) -> bool:
        """Leave the line; false if the place had been given already."""
        with self._lock:
            if turn not in self._line:
                return False
            self._line.remove(turn)
            return True

    def give_back(self) -> None:
        """Let the next one use the place."""
        with self._lock:
            if self._line:
                self._line.popleft().set()
                return
            self._spare = True
            over = self._over
        if over:
            self._leave()

    def end(self) -> None:
        """The load that holds the place is over; if one inside it is not, the place is given back after that."""
        with self._lock:
            self._over = True
            spare = self._spare
        if spare:
            self._leave()


class Chain:
    """The loads around the code that runs now: a loader that waits for one of their keys waits for itself."""

    __slots__ = ("around", "keys", "over", "place")

    def __init__(self, keys: Collection[str], place: Place | None, around: Chain | None) -> None:
        while around is not None and around.over:
            around = around.around
        self.keys, self.place = keys, place
        self.around: Chain | None = around
        self.over: bool = False  # code that the loader has left running is inside it no longer

    def waits_for(self, key: str) -> bool:
        """Whether one of the loads around here is loading *key*."""
        link: Chain | None = self
        while link is not None:
            if not link.over and key in link.keys:
                return True
            link = link.around
        return False


NO_CHAIN = Chain((), None, None)
CHAIN: ContextVar[Chain] = ContextVar("cacheguard_loading", default=NO_CHAIN)


def after_fork() -> None:
    """In a child forked by a loader: a load inside that one takes a place of its own, for nobody gives one back."""
    CHAIN.set(_without_places(CHAIN.get()))


def _without_places(chain: Chain) -> Chain:
    if chain is NO_CHAIN:
        return chain
    copy = Chain(chain.keys, None, None if chain.around is None else _without_places(chain.around))
    copy.over = chain.over
    return copy


class Flight:
    """One rebuild of one key in this process, and those who wait for it.

    Args:
        signal: goes up when the flight has landed.
        anew: its load begins after the flight was opened, whatever is cached.
        marks: the markers of the tags that its entry is known to have.
        here: the thread that leads it and does nothing else meanwhile; None in an event loop.
    """

    __slots__ = (
        "absence",
        "anew",
        "answer",
        "error",
        "here",
        "landed",
        "leases",
        "loaded",
        "marks",
        "others",
        "private",
        "proven",
        "signal",
        "traceback",
    )

    def __init__(
        self, signal: Signal, *, anew: bool = False, marks: tuple[str, ...] = (), here: int | None = None
    ) -> None:
        self.signal = signal
        self.here = here
        self.anew = anew
        self.marks = marks
        self.leases = 0  # leases asked for so far; who joins before the last one joined before the load
        self.landed = False
        self.proven = False
        self.answer: Stored | None = None
        self.absence: Exception | None = None  # the loader's own, which an answer of Kind.ERROR stands for
        self.error: Exception | None = None
        self.traceback: TracebackType | None = None
        self.loaded: Stored | None = None  # what the loader returned after everybody had stopped waiting
        self.others: list[Signal] = []  # of those who wait under another runtime
        self.private = False  # `loaded` is for who leads it alone

    def land(self, answer: Stored, *, proven: bool) -> None:
        """Everybody gets *answer*."""
        if not self.landed:
            self.answer, self.proven, self.landed = answer, proven, True
        self._tell()

    def fail(self, error: Exception) -> None:
        """Everybody gets *error*."""
        if not self.landed:
            self.error, self.traceback, self.proven, self.landed = error, error.__traceback__, True, True
        self._tell()

    def abandon(self) -> None:
        """Nobody gets anything: who waits must ask again."""
        self.landed = True
        self._tell()

    def _tell(self) -> None:
        self.signal.set()
        for signal in self.others:
            signal.set()

    def also(self, signal: Signal) -> None:
        """Let somebody wait for the landing who is under another runtime: a thread, another event loop."""
        self.others.append(signal)
        if self.landed:
            signal.set()

    def keep_private(self, loaded: Stored) -> None:
        """Who leads gets *loaded*; who waits must load for himself."""
        self.loaded, self.private = loaded, True
        self.abandon()

    def raised(self, error: Exception) -> Exception:
        """*error* for one more of those who wait, without the frames of the others."""
        return error.with_traceback(self.traceback)

    def given(self, answer: Stored | None) -> Stored | None:
        """*answer*, unless it stands for an exception that the loader has raised here: that is raised, unchanged."""
        if self.absence is not None and answer is not None and answer.kind is Kind.ERROR:
            raise self.raised(self.absence)
        return answer

    def waits_for_me(self, here: int | None) -> bool:
        """Whether the code that asks has interrupted the leader: a signal handler, a finalizer.

        Whoever waited for the flight then would wait for himself.
        """
        return here is not None and here == self.here and not self.landed

    def serves(self, joined_at: int, *, anew: bool) -> bool:
        """May a follower that joined after *joined_at* leases use the outcome?"""
        before = joined_at < self.leases
        return (before and self.anew) if anew else may_share(joined_before_lease=before, proven=self.proven)


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
