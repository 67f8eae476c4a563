"""Nested loads: the chain of loads around the code that runs now, and the bulkhead permit that they share.

A loader may read another key, whose loader reads a third one. If each of them needed a permit of the bulkhead, a few
such loaders could take all permits and wait for each other for ever. So a nested load borrows the permit of the load
around it, which only waits meanwhile.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection
from contextlib import AbstractContextManager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from ..errors import Overloaded

if TYPE_CHECKING:
    from ..ports import Bulkhead, Runtime, Signal


class Permit:
    """A permit of the bulkhead. One load holds it, and lends it to one nested load at a time.

    Args:
        leave: gives the permit back, to the bulkhead or to the outer load.
        lock: guards its use.
    """

    __slots__ = ("_leave", "_lock", "_over", "_queue", "_spare")

    def __init__(self, leave: Callable[[], None], lock: AbstractContextManager[Any]) -> None:
        self._leave, self._lock = leave, lock
        self._spare, self._over = True, False
        self._queue: deque[Signal] = deque()

    def borrow(self) -> bool:
        """Use the permit; False if another nested load uses it, or its load has ended."""
        with self._lock:
            free = self._spare and not self._over
            if free:
                self._spare = False
        return free

    async def wait(self, turn: Signal, patience: float) -> bool:
        """Wait in the queue for the permit; False if it did not come free in *patience* seconds."""
        with self._lock:
            if self._spare and not self._over:  # given back since the caller looked
                self._spare = False
                return True
            self._queue.append(turn)
        try:
            if await turn.wait(patience):
                return True
        except BaseException:
            if not self._leave_queue(turn):
                self.give_back()
            raise
        # waiter:                 its time is over ......... finds itself out of the queue: it has the permit
        # the load that used it:                gives it to the waiter
        return not self._leave_queue(turn)

    def _leave_queue(self, turn: Signal) -> bool:
        """Leave the queue; False if the permit has been given to *turn* already."""
        with self._lock:
            if turn not in self._queue:
                return False
            self._queue.remove(turn)
            return True

    def give_back(self) -> None:
        """Let the next nested load use the permit."""
        with self._lock:
            if self._queue:
                self._queue.popleft().set()
                return
            self._spare = True
            over = self._over
        if over:
            self._leave()

    def end(self) -> None:
        """End the load that holds the permit. If a nested load still uses it, it is given back when that one ends."""
        with self._lock:
            self._over = True
            spare = self._spare
        if spare:
            self._leave()


class Chain:
    """The loads around the code that runs now. A loader that waits for one of their keys would wait for itself."""

    __slots__ = ("around", "keys", "over", "permit")

    keys: Collection[str]
    permit: Permit | None

    def __init__(self, keys: Collection[str], permit: Permit | None, around: Chain | None) -> None:
        while around is not None and around.over:
            around = around.around
        self.keys, self.permit = keys, permit
        self.around: Chain | None = around
        self.over: bool = False  # code that the loader left running is no longer inside it

    def waits_for(self, key: str) -> bool:
        """True if one of the outer loads is loading *key*."""
        link: Chain | None = self
        while link is not None:
            if not link.over and key in link.keys:
                return True
            link = link.around
        return False


NO_CHAIN = Chain((), None, None)
CHAIN: ContextVar[Chain] = ContextVar("cacheguard_loading", default=NO_CHAIN)


def free_permit(bulkhead: Bulkhead, lock: AbstractContextManager[Any]) -> Permit | None:
    """A permit that is free now, of the outer load or of the bulkhead; None if there is none."""
    around = CHAIN.get()
    held = None if around.over else around.permit
    if held is not None and held.borrow():
        return Permit(held.give_back, lock)
    return Permit(bulkhead.leave, lock) if bulkhead.try_enter() else None


async def next_permit(bulkhead: Bulkhead, lock: AbstractContextManager[Any], runtime: Runtime) -> Permit:
    """The next permit that comes free; `Overloaded` if none does in time.

    A nested load waits only for the permit of the outer load: those of the bulkhead may all be held by loads that wait
    for nested ones.
    """
    around = CHAIN.get()
    held = None if around.over else around.permit
    if held is None:
        await bulkhead.enter(runtime)
        return Permit(bulkhead.leave, lock)
    if await held.wait(runtime.signal(), bulkhead.patience):
        return Permit(held.give_back, lock)
    raise Overloaded(f"all permits are taken and none came free within {bulkhead.patience:g} s")


def after_fork() -> None:
    """In a child forked by a loader, forget the permits of the outer loads: they are never given back there."""
    CHAIN.set(_without_permits(CHAIN.get()))


def _without_permits(chain: Chain) -> Chain:
    if chain is NO_CHAIN:
        return chain
    copy = Chain(chain.keys, None, None if chain.around is None else _without_permits(chain.around))
    copy.over = chain.over
    return copy
