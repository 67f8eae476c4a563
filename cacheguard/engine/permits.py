"""Nested loads: the chain of loads around the code that runs now, and the bulkhead permit that they share.

A loader may read another key, whose loader reads a third one. If each of them needed a permit of the bulkhead, a few
such loaders could take all permits and wait for each other for ever. So a nested load borrows the permit of the load
around it, which only waits meanwhile.

A blocking call in an event loop stops all loads of that loop. If it waited for one of their permits, it would wait for
itself. So it goes without one: those loads only wait meanwhile.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Collection, Iterable
from contextlib import AbstractContextManager, suppress
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from ..errors import Overloaded, ReentrantLoad

if TYPE_CHECKING:
    from ..ports import Home, Runtime, Signal
    from .shared import Shared

ROOM = 100  # frames of the stack for one more load, its loader and the client of Redis


class Permit:
    """A permit of the bulkhead. One load holds it, and lends it to one nested load at a time.

    Args:
        leave: gives the permit back, to the bulkhead or to the outer load.
        lock: guards its use.
    """

    __slots__ = ("_leave", "_lock", "_over", "_queue", "_spare", "nested")

    def __init__(self, leave: Callable[[], None], lock: AbstractContextManager[Any]) -> None:
        self._leave, self._lock = leave, lock
        self._spare, self._over = True, False
        self.nested: list[Home] = []  # where the nested loads go on that use it or wait for it
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

    @property
    def depth(self) -> int:
        """How many loads are nested here."""
        links, link = 0, self.around
        while link is not None:
            links, link = links + 1, link.around
        return links

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


def check_nesting(keys: Iterable[str]) -> None:
    """Raise `ReentrantLoad` if a load around this code is loading one of *keys*, or if loads are nested too deep.

    Under the blocking door a nested load takes about 17 frames of the stack. If they ran out in the middle of a step,
    flights would not land and leases would stay. So a load does not begin unless there is room for it.
    """
    chain = CHAIN.get()
    if chain is NO_CHAIN:
        return
    for key in keys:
        if chain.waits_for(key):
            raise ReentrantLoad(f"the loader of {key} reads the key that it is loading")
    if _stack_is_full():
        raise ReentrantLoad(
            f"{chain.depth} loads are nested, each in the loader of the one before, and Python's recursion limit "
            f"({sys.getrecursionlimit()}) leaves no room for another one. Nest less, load the values of one level with "
            "get_or_set_many, use the async door, or raise the limit (sys.setrecursionlimit)"
        )


def _stack_is_full() -> bool:
    """True if Python's recursion limit may not leave room for a load and its loader."""
    limit = sys.getrecursionlimit()
    # CPython 3.11 counts some calls that have no frame: one for each load.
    room = (limit - min(ROOM, limit // 2)) * 15 // 16
    try:
        sys._getframe(room)  # noqa: SLF001 # pyright: ignore[reportPrivateUsage] - there is no other way but to walk it
    except ValueError:
        return False
    return True


class Use:
    """One use of a permit, or a place in the queue for it, by the load that goes on at *here*.

    Args:
        among: the uses of the same permits.
        here: None if that load holds nobody up.
        leave: gives the permit back.
    """

    __slots__ = ("_among", "_here", "_leave")

    def __init__(self, among: list[Home], here: Home | None, leave: Callable[[], None]) -> None:
        self._among, self._here, self._leave = among, here, leave
        if here is not None:
            among.append(here)

    def forget(self) -> None:
        """It has not come to a permit."""
        if self._here is not None:
            with suppress(ValueError):  # forgotten by a fork
                self._among.remove(self._here)

    def end(self) -> None:
        """Give the permit back."""
        self.forget()
        self._leave()


def free_permit(shared: Shared, here: Home | None) -> Permit | None:
    """A permit that is free now, of the outer load or of the bulkhead; None if there is none.

    Args:
        shared: has the bulkhead.
        here: where the load goes on.
    """
    held, lock = _outer_permit(), shared.local.lock
    if held is not None and held.borrow():
        return Permit(Use(held.nested, here, held.give_back).end, lock)
    if shared.bulkhead.try_enter():
        return Permit(Use(shared.loading, here, shared.bulkhead.leave).end, lock)
    return None


def waits_for_itself(shared: Shared, here: Home | None) -> bool:
    """True if the permit that this load would wait for cannot come free before this load has ended.

    The loads that hold it, or get it before this one, go on in the event loop that this load has stopped.
    """
    held = _outer_permit()
    others = shared.loading if held is None else held.nested
    return here is not None and any(each.held_up_by(here) for each in list(others))


def no_permit(shared: Shared) -> Permit:
    """What a load has that goes without a permit: its nested loads take turns with it."""
    return Permit(_nothing, shared.local.lock)


async def next_permit(shared: Shared, runtime: Runtime, here: Home | None) -> Permit:
    """The next permit that comes free; `Overloaded` if none does in time.

    A nested load waits only for the permit of the outer load: those of the bulkhead may all be held by loads that wait
    for nested ones.
    """
    held = _outer_permit()
    others, leave = (shared.loading, shared.bulkhead.leave) if held is None else (held.nested, held.give_back)
    use, came = Use(others, here, leave), False
    try:
        if held is None:
            await shared.bulkhead.enter(runtime)
            came = True
        else:
            came = await held.wait(runtime.signal(), shared.bulkhead.patience)
    finally:
        if not came:
            use.forget()
    if came:
        return Permit(use.end, shared.local.lock)
    raise Overloaded(f"all permits are taken and none came free within {shared.bulkhead.patience:g} s")


def _outer_permit() -> Permit | None:
    around = CHAIN.get()
    return None if around.over else around.permit


def _nothing() -> None:
    """Give nothing back."""


def after_fork() -> None:
    """In a child forked by a loader, forget the permits of the outer loads: they are never given back there."""
    CHAIN.set(_without_permits(CHAIN.get()))


def _without_permits(chain: Chain) -> Chain:
    links: list[Chain] = []
    link: Chain | None = chain
    while link is not None and link is not NO_CHAIN:
        links.append(link)
        link = link.around
    copy = NO_CHAIN
    for each in reversed(links):
        over, copy = each.over, Chain(each.keys, None, copy)
        copy.over = over
    return copy
