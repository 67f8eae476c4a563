"""Single flight in this process: one rebuild of a key, which others join, and the table of all current ones."""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING

from ..defenses.consistency import may_share
from ..protocol.envelope import Kind
from ..protocol.exceptions import again

if TYPE_CHECKING:
    from ..ports import Home, Signal
    from ..protocol.entry import Found, Stored
    from ..tiers.local import Local


class Flight:
    """One rebuild of one key in this process: one caller leads it, others join and wait.

    Args:
        signal: is set when the flight has landed.
        anew: its load begins after the flight was opened, even if a value is cached.
        cold: whoever opened it has found nothing: nobody need look again.
        marks: the markers of the tags that its entry is known to have.
        home: where its leader works on it; None if that holds nobody up.
        seats: of callers that nobody else can join.
    """

    __slots__ = (
        "absence",
        "after",
        "anew",
        "answer",
        "cold",
        "error",
        "found",
        "home",
        "kept",
        "landed",
        "leases",
        "loaded",
        "marks",
        "others",
        "private",
        "proven",
        "seats",
        "signal",
        "stale",
        "told",
        "traceback",
    )

    def __init__(
        self,
        signal: Signal,
        *,
        anew: bool = False,
        cold: bool = False,
        marks: tuple[str, ...] = (),
        home: Home | None = None,
        seats: int = 0,
    ) -> None:
        self.signal: Signal = signal
        self.home: Home | None = home
        self.after: Home | None = None  # where the work goes on that its leader waits for
        self.anew: bool = anew
        self.cold: bool = cold
        self.marks: tuple[str, ...] = marks
        self.leases: int = 0  # leases requested; who joined before the last one joined before the load
        self.landed: bool = False
        self.proven: bool = False
        self.answer: Stored | None = None
        self.found: Found | None = None  # what was found at once, so that nobody had to load
        self.absence: Exception | None = None  # the loader's own, which an answer of Kind.ERROR stands for
        self.error: Exception | None = None
        self.traceback: TracebackType | None = None
        self.told: Exception | None = None  # the error as it was, of which followers get copies
        self.loaded: Stored | None = None  # what the loader returned after all callers had stopped waiting
        self.others: list[Signal] = []  # of those who wait under another runtime
        self.private: bool = False  # `loaded` is for the leader only
        self.kept: bool = False  # its answer is what L1 has, while Redis is away
        self.stale: bool = False  # there is something stale, which the readers that have not looked may find
        self.seats: int = seats  # callers that may still ask for the outcome

    def land(self, answer: Stored, *, proven: bool) -> None:
        """Give *answer* to the leader and all followers."""
        if not self.landed:
            self.answer, self.proven, self.landed = answer, proven, True
        self._tell()

    def fail(self, error: Exception) -> None:
        """Give *error* to the leader and all followers."""
        if not self.landed:
            self.error, self.traceback, self.told = error, error.__traceback__, again(error)
            self.proven = self.landed = True
        self._tell()

    def abandon(self) -> None:
        """Land without an outcome: each follower must ask again."""
        self.landed = True
        self._tell()

    def _tell(self) -> None:
        self.signal.set()
        for signal in self.others:
            signal.set()

    def also(self, signal: Signal) -> None:
        """Also set *signal* at the landing: for a follower in another thread or event loop."""
        self.others.append(signal)
        if self.landed:
            signal.set()

    def keep_private(self, loaded: Stored) -> None:
        """Give *loaded* only to the leader; each follower must load for itself."""
        self.loaded, self.private = loaded, True
        self.abandon()

    def raised(self, *, own: bool) -> Exception:
        """The error, for its own leader, or as a new object for a follower: none sees what others have done to it."""
        assert self.error is not None  # noqa: S101 - the caller has looked
        error = self.error if own or self.told is None else again(self.told)
        return error.with_traceback(self.traceback)

    def given(self, answer: Stored | None, *, own: bool) -> Stored | None:
        """*answer*; if it stands for an exception that the loader raised here, its leader gets that one, unchanged."""
        error = self.absence if answer is not None and answer.kind is Kind.ERROR else None
        if error is not None and answer is not None and (own or not answer.value.whole):
            raise error.with_traceback(self.traceback)
        return answer

    def let_go(self) -> None:
        """Forget the exception if nobody will ask for it."""
        if self.landed and self.seats <= 0:
            self.error = self.told = self.absence = self.traceback = None

    def serves(self, joined_at: int, *, anew: bool) -> bool:
        """True if a follower that joined after *joined_at* leases may use the outcome."""
        before = joined_at < self.leases
        return (before and self.anew) if anew else may_share(joined_before_lease=before, proven=self.proven)


class Flights(dict[str, Flight]):
    """The flights that a caller may join, by key: at most one of each.

    A caller joins or begins to lead in one step, with `join`, and says with `leave` that it has what it came for.
    Until then a flight keeps the exception that it ended with. Not longer: its traceback keeps the loader's variables.

    Args:
        local: its lock guards removals, because an invalidation removes flights, too.
    """

    def __init__(self, local: Local) -> None:
        super().__init__()
        self._local = local

    def join(self, key: str, flight: Flight) -> Flight:
        """The flight of *key* that there is, or else *flight*; with a seat more."""
        with self._local.lock:
            current = self.setdefault(key, flight)
            current.seats += 1
        return current

    def leave(self, flight: Flight) -> None:
        """Give a seat up; the last one takes the exception along."""
        with self._local.lock:
            flight.seats -= 1
        flight.let_go()

    def retire(self, key: str, flight: Flight) -> None:
        """Take no more followers.

        follower:                                       joins, trusts the fill
        leader:   FILL accepted .......... (reply) .......... lands "old"
        writer:                  invalidates

        So none may join once the fill is on its way.
        """
        with self._local.lock:
            if self.get(key) is flight:
                self.pop(key, None)  # a signal handler may have come in between

    def ground(self, key: str, flight: Flight) -> None:
        """End *flight* without an outcome, unless it has landed."""
        if self.get(key) is flight:
            self.retire(key, flight)
        if not flight.landed:
            flight.abandon()
        flight.let_go()
