"""Loads inside of loads: who waits for itself, and whose place in the bulkhead a nested load uses."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection
from contextlib import AbstractContextManager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..ports import Signal


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
