"""One rebuild of one key in this process."""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING

from ..defenses.consistency import may_share
from ..protocol.envelope import Kind

if TYPE_CHECKING:
    from ..ports import Signal
    from ..tiers.remote import Stored


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
