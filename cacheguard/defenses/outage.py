"""Redis fails or is too slow: no calls are sent for a while, then it is probed until it works again.

The rule of a circuit breaker. The pattern is Michael Nygard's ("Release It!", 2007); windows, slow calls and half-open
probes are those of Resilience4j, with pauses short enough for a cache. `faults.TREATMENTS` defines how each fault of
Redis counts.
"""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any, Literal, TypeAlias

from .breakdown import next_pause

State: TypeAlias = Literal["closed", "open", "half-open"]
JITTER = 0.25  # of a pause, subtracted at random, so that processes do not return in step


class Outcome(Enum):
    """How a call went."""

    OK = auto()
    SLOW = auto()
    FAILED = auto()
    NONE = auto()  # it was cancelled, or never made: it does not count


_PROBED = {
    Outcome.OK: "the probe went well",
    Outcome.SLOW: "the probe was slow",
    Outcome.FAILED: "the probe failed",
    Outcome.NONE: "the probe was given up",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class BreakerTerms:
    """When a breaker opens, and for how long.

    Args:
        window: the number of last calls that count.
        age: the maximum age, in seconds, of a call that counts.
        minimum: with fewer calls than this it does not open.
        failure_rate: it opens at this share of failed calls.
        slow_rate: it opens at this share of slow calls.
        slow_after: seconds after which a call is slow; infinite: no call is slow.
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


def reason_to_open(
    calls: Iterable[tuple[float, Outcome]], terms: BreakerTerms, now: float
) -> tuple[Outcome, str] | None:
    """The reason to open after the last *calls* (time, outcome): the too frequent outcome, and a text; or None."""
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


class Switch:
    """The state of one breaker, for any number of threads and event loops.

    Closed: every call passes, and its outcome is recorded. Open: no call passes. When the pause is over, one call
    passes as a probe (half-open), and its outcome decides.

    Args:
        name: what it guards, for the log.
        on_change: called with the state before, the state now, and why; it must not raise.
        now: monotonic seconds.
        new_lock: makes a lock that its holder may take again: a signal handler may come in between.
        probed_by_callers: whether a caller's own call may be the probe. If False, a background prober calls `probe`.
            It can probe immediately: after a slow-call trip or a `doubt`, the first probe is sent without a pause, so
            that a false alarm costs almost nothing.
    """

    name: str
    terms: BreakerTerms

    def __init__(
        self,
        name: str,
        terms: BreakerTerms,
        *,
        on_change: Callable[[State, State, str], None],
        now: Callable[[], float],
        new_lock: Callable[[], AbstractContextManager[Any]],
        probed_by_callers: bool = True,
    ) -> None:
        self.name, self.terms = name, terms
        self.closed: bool = True  # all that a hot path needs to check
        self.probed_by_callers = probed_by_callers
        self._on_change, self._now = on_change, now
        self._random = random.Random().random
        self.turn: int = 0  # number of the current state; calls that began in an earlier state do not count
        self._calls: deque[tuple[float, Outcome]] = deque(maxlen=terms.window)
        self.undecided: bool = False  # the first probe since it opened has not returned yet
        self._slowed = False  # it opened because calls were slow
        self._pause: float | None = None
        self._closed_at = -math.inf
        self._until = 0.0  # no probe before this time
        self._probing = False
        self._new_lock = new_lock
        self._lock = new_lock()

    @property
    def state(self) -> State:
        if self.closed:
            return "closed"
        return "half-open" if self._probing else "open"

    @property
    def waits(self) -> float:
        """Seconds until a probe may pass; 0 if one may pass now, or none is needed."""
        return 0.0 if self.closed else max(0.0, self._until - self._now())

    def enter(self) -> int | None:
        """Begin a call: return the turn for `leave`, or None if the call must not be made."""
        if self.closed:
            return self.turn
        return self.probe() if self.probed_by_callers else None

    def probe(self) -> int | None:
        """Begin a probe, as `enter` begins a call. One at a time; a lost one blocks others for a longest pause."""
        with self._lock:
            now = self._now()
            if self.closed:
                return self.turn
            if now < self._until:
                return None
            lost, self._probing = self._probing, True
            self.turn += 1
            self._until = now + self.terms.longest_pause
            turn = self.turn
        if not lost:
            self._on_change("open", "half-open", "the pause is over")
        return turn

    def leave(self, turn: int, outcome: Outcome, took: float = 0.0, now: float | None = None) -> None:
        """Record the end of a call, after *took* seconds. *now*: the time, if the caller has read it already."""
        if turn != self.turn or (outcome is Outcome.NONE and self.closed):
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
            if turn != self.turn:
                return
            self.turn += 1
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
        """Open at once, because a call has cost too much to try another; only if the state has not changed since."""
        if self.closed and turn == self.turn:
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
                self._pause = None  # no failures for long enough
            self.undecided, self._slowed = alarm, slowed
            self.closed = self._probing = False
            self.turn += 1
            self._calls.clear()
            if alarm:
                self._until = now
            else:
                self._wait(now)
        self._on_change("closed", "open", why)

    def _wait(self, now: float) -> None:
        self._pause = next_pause(self._pause, (self.terms.pause, self.terms.longest_pause))
        self._until = now + self._pause * (1.0 - JITTER * self._random())

    def after_fork(self) -> None:
        """Reset to closed: a thread of the parent may have held the lock, or been the probe."""
        self._lock = self._new_lock()
        self._random = random.Random().random  # or all children of one parent would draw the same pauses
        self.closed, self._probing, self.undecided, self._pause = True, False, False, None
        self.turn += 1
        self._calls.clear()
