"""A circuit breaker for a dependency of a loader. It uses the same rule as the breaker of Redis."""

from __future__ import annotations

import logging
import math
import os
import weakref
from contextvars import ContextVar
from types import TracebackType
from typing import Self

from ..checks import count, exception_classes, positive_share, text
from ..defenses.outage import BreakerTerms, Outcome, State, Switch
from ..durations import NOW, Duration, seconds
from ..errors import ConfigurationError, Overloaded
from ..runtime.locks import new_lock

log: logging.Logger = logging.getLogger("cacheguard")

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
    functions serve stale values within ``stale_if_error``. The state belongs to the object, in one process: everything
    that uses the object shares the state.

    Args:
        name: for the log.
        window: the number of last calls that count.
        minimum: with fewer calls than this within `age`, it does not open.
        age: the maximum age of a call that counts.
        failure_rate: it opens at this share of failed calls, above 0 and up to 1.
        slow_after: a call that takes longer is slow; None: no call is slow.
        slow_rate: it opens at this share of slow calls, above 0 and up to 1.
        pause: from opening until one call passes as a probe; up to a quarter shorter, at random.
        longest_pause: the pause doubles with each failed probe, up to this.
        ignored: exception classes that are not failures, such as those of bad input. Exceptions that a policy lists as
            ``not_found`` and cancellation are never failures.

    Raises `ConfigurationError` for an option that cannot work. No round trips.
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
        terms = BreakerTerms(
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
        self.ignored: tuple[type[Exception], ...] = exception_classes("ignored", ignored)
        self.name: str = text("name", name)
        self._now = NOW.get()
        self._switch = Switch(self.name, terms, on_change=self._log_change, now=self._now, new_lock=new_lock)
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
        """Begin a call; `Overloaded` if it is not allowed. Pass the result to `leave`."""
        turn = self._switch.enter()
        if turn is None:
            raise Overloaded(f"the breaker of {self.name} is {self.state}; it may close in {self.retry_after:.1f} s")
        return turn

    def leave(self, turn: int, error: BaseException | None, took: float) -> None:
        """Record the end of a call, with *error* or without, after *took* seconds."""
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

    def _log_change(self, _before: State, after: State, why: str) -> None:
        if after != "half-open":
            log.warning("the breaker of %s is %s: %s", self.name, after, why)
        else:
            log.info("the breaker of %s is half-open: %s", self.name, why)
