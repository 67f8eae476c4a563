"""Circuit breaker: what keeps failing, or is too slow to be of use, is left alone for a while.

The pattern is Michael Nygard's ("Release It!", 2007); windows, slow calls and half-open probes are those of
Resilience4j, with pauses short enough for a cache.
"""

from __future__ import annotations

import logging
import math
import os
import random
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable
from contextvars import ContextVar
from dataclasses import dataclass
from enum import Enum, auto
from types import TracebackType
from typing import Literal, Self, TypeAlias

from ..checks import count, exception_classes, positive_share, text
from ..durations import NOW, Duration, seconds
from ..errors import ConfigurationError, Overloaded

log = logging.getLogger("cacheguard")

State: TypeAlias = Literal["closed", "open", "half-open"]
JITTER = 0.25  # of a pause, taken off at random: a fleet shall not come back in step


class Outcome(Enum):
    """How a call went."""

    OK = auto()
    SLOW = auto()
    FAILED = auto()
    NONE = auto()  # it was cancelled, or never made: this says nothing


_PROBED = {
    Outcome.OK: "the probe went well",
    Outcome.SLOW: "the probe was slow",
    Outcome.FAILED: "the probe failed",
    Outcome.NONE: "the probe was given up",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """When a breaker opens, and for how long.

    Args:
        window: how many of the last calls count.
        age: how old, in seconds, a call may be that counts.
        minimum: with fewer calls than this nothing is decided.
        failure_rate: share of failed calls from which on it opens.
        slow_rate: share of slow calls, likewise.
        slow_after: seconds after which a call is slow; infinite: none is.
        pause: seconds until the first probe.
        longest_pause: the pause doubles with each failed probe, up to this many seconds.
    """

    window: int = 20
    age: float = 10.0
    minimum: int = 5
    failure_rate: float = 0.5
    slow_rate: float = 0.8
    slow_after: float = math.inf
    pause: float = 1.0
    longest_pause: float = 10.0


def reason_to_open(calls: Iterable[tuple[float, Outcome]], terms: Terms, now: float) -> tuple[Outcome, str] | None:
    """What of the last *calls* (when, how) is reason enough to open, and in words; None if nothing is."""
    young = [outcome for at, outcome in calls if at > now - terms.age]
    if len(young) < terms.minimum:
        return None
    for outcome, rate, word in (
        (Outcome.FAILED, terms.failure_rate, "failed"),
        (Outcome.SLOW, terms.slow_rate, "were slow"),
    ):
        met = young.count(outcome)
        if met and met >= rate * len(young):
            return outcome, f"{met} of the last {len(young)} calls {word}"
    return None


def next_pause(before: float | None, terms: Terms) -> float:
    """How long to wait for the next probe, in seconds and before jitter, after one that failed."""
    return terms.pause if before is None else min(2 * before, terms.longest_pause)


class Switch:
    """The state of one breaker, for any number of threads and event loops.

    Closed, it lets everything pass and remembers how it went. Open, it lets nothing pass. When its pause is over, one
    call passes as a probe (half-open), and what becomes of that one decides.

    Args:
        name: what it guards, for the log.
        on_change: called with the state before, the state now, and why; it must not raise.
        now: monotonic seconds.
        probed_by_callers: false if somebody else asks for the probe, with `probe`; callers never are one then. He can
            be asked at once, so that a false alarm costs next to nothing: where calls were only slow, or one has cost
            so much that nobody else should try (`doubt`), the first probe needs no pause.
    """

    def __init__(
        self,
        name: str,
        terms: Terms,
        *,
        on_change: Callable[[State, State, str], None],
        now: Callable[[], float] = time.monotonic,
        probed_by_callers: bool = True,
    ) -> None:
        self.name, self.terms = name, terms
        self.closed = True  # a hot path need ask no more than this
        self.probed_by_callers = probed_by_callers
        self._on_change, self._now = on_change, now
        self._random = random.Random().random
        self._turn: int = 0  # of its states; what began in an earlier one says nothing about this one
        self._calls: deque[tuple[float, Outcome]] = deque(maxlen=terms.window)
        self.undecided = False  # the first probe of an alarm is not back yet
        self._slowed = False  # it was for being slow that it opened
        self._pause: float | None = None
        self._closed_at = -math.inf
        self._until = 0.0  # no probe before
        self._probing = False
        self._lock = threading.RLock()  # a signal handler may come in between

    @property
    def state(self) -> State:
        if self.closed:
            return "closed"
        return "half-open" if self._probing else "open"

    @property
    def waits(self) -> float:
        """Seconds until a probe may pass; 0 if one may, or needs not."""
        return 0.0 if self.closed else max(0.0, self._until - self._now())

    def enter(self) -> int | None:
        """May a call be made? What to `leave` with afterwards, or None."""
        if self.closed:
            return self._turn
        return self.probe() if self.probed_by_callers else None

    def probe(self) -> int | None:
        """May a call be made to find out? One at a time; one that never comes back counts for a longest pause."""
        with self._lock:
            now = self._now()
            if self.closed:
                return self._turn
            if now < self._until:
                return None
            lost, self._probing = self._probing, True
            self._turn += 1
            self._until = now + self.terms.longest_pause
            turn = self._turn
        if not lost:
            self._on_change("open", "half-open", "the pause is over")
        return turn

    def leave(self, turn: int, outcome: Outcome, took: float = 0.0, now: float | None = None) -> None:
        """A call that was let pass has ended, after so many seconds; *now*, if the caller knows what time it is."""
        if turn != self._turn or (outcome is Outcome.NONE and self.closed):
            return
        if outcome is Outcome.OK and took >= self.terms.slow_after and (self._slowed or not self.undecided):
            outcome = Outcome.SLOW
        now = self._now() if now is None else now
        if self.closed:
            self._calls.append((now, outcome))
            if outcome is not Outcome.OK:
                self._judge(now)
            return
        with self._lock:
            if turn != self._turn:
                return
            self._turn += 1
            self._probing = self.undecided = False
            if outcome is Outcome.OK:
                self.closed, self._closed_at = True, now
                self._calls.clear()
            elif outcome is Outcome.NONE:
                self._until = now
            else:
                self._wait(now)
        self._on_change("half-open", "closed" if self.closed else "open", _PROBED[outcome])

    def doubt(self, turn: int, why: str) -> None:
        """A call that was let pass has cost too much to let another one try: open, if nothing has changed since."""
        if self.closed and turn == self._turn:
            self._trip(why, alarm=True, slowed=False)

    def _judge(self, now: float) -> None:
        reason = reason_to_open(list(self._calls), self.terms, now)
        if reason is not None:
            slowed = reason[0] is Outcome.SLOW
            self._trip(reason[1], alarm=slowed and not self.probed_by_callers, slowed=slowed)

    def _trip(self, why: str, *, alarm: bool, slowed: bool) -> None:
        with self._lock:
            if not self.closed:
                return
            now = self._now()
            if now > self._closed_at + self.terms.age:
                self._pause = None  # it has been well for long enough
            self.undecided, self._slowed = alarm, slowed
            self.closed = self._probing = False
            self._turn += 1
            self._calls.clear()
            if alarm:
                self._until = now
            else:
                self._wait(now)
        self._on_change("closed", "open", why)

    def _wait(self, now: float) -> None:
        self._pause = next_pause(self._pause, self.terms)
        self._until = now + self._pause * (1.0 - JITTER * self._random())

    def after_fork(self) -> None:
        """Begin anew, closed: a thread of the parent may have held the lock, or have been the probe."""
        self._lock = threading.RLock()
        self.closed, self._probing, self.undecided, self._pause = True, False, False, None
        self._turn += 1
        self._calls.clear()


_switches: weakref.WeakSet[Switch] = weakref.WeakSet()  # of the breakers that users have made


def _after_fork() -> None:
    for switch in list(_switches):
        switch.after_fork()


os.register_at_fork(after_in_child=_after_fork)

_ENTERED: ContextVar[tuple[tuple[int, float], ...]] = ContextVar("cacheguard_breakers", default=())


class Breaker:
    """A circuit breaker for something that many calls depend on, such as one database.

    Give it to functions (``@guard.cached(…, breaker=database)``), to a `Policy`, or use it by itself:
    ``with database: …``, also inside ``async def``. While it is open, such calls raise `Overloaded` at once, and cached
    functions serve what they still have, within ``stale_if_error``. All who share the object share its state; it
    belongs to one process.

    Args:
        name: for the log.
        window: how many of the last calls count.
        minimum: with fewer calls than this in the last `age`, nothing is decided.
        age: how old a call may be that counts.
        failure_rate: share of failed calls, above 0 and up to 1, from which on it opens.
        slow_after: a call that takes longer is slow; None: none is.
        slow_rate: share of slow calls, above 0 and up to 1, from which on it opens.
        pause: from opening until one call is let pass as a probe; up to a quarter less, at random.
        longest_pause: the pause doubles with each probe that fails, up to this.
        ignored: exception classes that are no failure, such as those of bad input. Exceptions that a policy lists as
            ``not_found`` never are one, and neither is being cancelled.

    `ConfigurationError` for what cannot work. No round trips.
    """

    def __init__(
        self,
        name: str = "breaker",
        *,
        window: int = 20,
        minimum: int = 5,
        age: Duration = "10s",
        failure_rate: float = 0.5,
        slow_after: Duration | None = None,
        slow_rate: float = 0.8,
        pause: Duration = "1s",
        longest_pause: Duration = "10s",
        ignored: type[Exception] | tuple[type[Exception], ...] = (),
    ) -> None:
        terms = Terms(
            window=count("window", window),
            age=seconds(age, "age"),
            minimum=count("minimum", minimum),
            failure_rate=positive_share("failure_rate", failure_rate),
            slow_rate=positive_share("slow_rate", slow_rate),
            slow_after=math.inf if slow_after is None else seconds(slow_after, "slow_after"),
            pause=seconds(pause, "pause"),
            longest_pause=seconds(longest_pause, "longest_pause"),
        )
        if terms.minimum > terms.window:
            raise ConfigurationError(f"minimum must not be above window, got {minimum!r} and {window!r}")
        if terms.pause > terms.longest_pause:
            raise ConfigurationError(f"pause must not be above longest_pause, got {pause!r} and {longest_pause!r}")
        self.ignored = exception_classes("ignored", ignored)
        self.name = text("name", name)
        self._now = NOW.get()
        self._switch = Switch(self.name, terms, on_change=self._said, now=self._now)
        _switches.add(self._switch)

    def __repr__(self) -> str:
        return f"<Breaker {self.name!r}: {self.state}>"

    @property
    def state(self) -> State:
        """``"closed"``, ``"open"`` or ``"half-open"``."""
        return self._switch.state

    @property
    def retry_after(self) -> float:
        """Seconds until a call may pass as a probe; 0 while it is closed."""
        return self._switch.waits

    def enter(self) -> int:
        """Ask to make a call; `Overloaded` if it must not be made. Give what this returns to `leave`."""
        turn = self._switch.enter()
        if turn is None:
            raise Overloaded(f"the breaker of {self.name} is {self.state}; it may close in {self.retry_after:.1f} s")
        return turn

    def leave(self, turn: int, error: BaseException | None, took: float) -> None:
        """The call has ended, with *error* or without, after so many seconds."""
        if error is None or isinstance(error, self.ignored):
            self._switch.leave(turn, Outcome.OK, took)
        else:
            failed = isinstance(error, Exception) and not isinstance(error, Overloaded)
            self._switch.leave(turn, Outcome.FAILED if failed else Outcome.NONE)

    def __enter__(self) -> Self:
        turn = self.enter()
        _ENTERED.set((*_ENTERED.get(), (turn, self._now())))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        *around, (turn, began) = _ENTERED.get()
        _ENTERED.set(tuple(around))
        self.leave(turn, error, self._now() - began)

    def _said(self, _before: State, after: State, why: str) -> None:
        if after != "half-open":
            log.warning("the breaker of %s is %s: %s", self.name, after, why)
        else:
            log.info("the breaker of %s is half-open: %s", self.name, why)
