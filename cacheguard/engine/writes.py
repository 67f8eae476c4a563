"""Invalidations: what `disabled()`, ``on_unreachable``, ``l2=False`` and cancellation mean for all of them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from ..delivery.outbox import Invalidation
from ..errors import Unreachable

if TYPE_CHECKING:
    from ..protocol.messages import Drop
    from ..protocol.names import Scope
    from .here import Here
    from .reading import Engine
    from .shared import Shared

MOST_AT_ONCE = 1000  # keys or changes in one round trip, where each is answered for itself

T = TypeVar("T")


class Writes:
    """The invalidations of one guard, whichever engine sends them.

    They do not depend on the tiers. A function with ``l2=False`` keeps its values out of Redis, but its invalidations
    go through Redis: each process that holds a value must receive them. So they are always sent to Redis (*engine* is
    the one that uses it), and applied here.

    `disabled()` stops no invalidation: values that other processes cache meanwhile must not stay.

    Args:
        shared: the state that the engines of the guard share.
        here: the store of this process that replaces Redis.
        raises: ``on_unreachable="raise"``.
    """

    def __init__(self, shared: Shared, here: Here, *, raises: bool) -> None:
        self._shared, self._here, self._raises = shared, here, raises

    def heard(self, news: Drop) -> None:
        """Drop what another process has changed from everything that this process keeps."""
        self._here.heard(news)
        self._shared.drop([news.key])

    def missed(self) -> None:
        """Drop the values of functions with ``l2=False``: this process may have missed an invalidation."""
        self._shared.drop(self._here.forget_all())

    async def write(self, engine: Engine, items: Sequence[Invalidation], *, quietly: bool = False) -> None:
        """Invalidate *items*. One round trip."""
        self._here.forget(items)
        await self._deliver(engine, engine.changes.invalidate, items, quietly=quietly)

    async def apply(self, engine: Engine, items: Sequence[Invalidation]) -> int:
        """Invalidate *items*, which may be many; returns their number. One round trip for each thousand."""
        self._here.forget(items)
        await self._deliver(engine, engine.changes.invalidate, items, at_once=MOST_AT_ONCE)
        return len(items)

    async def expire(self, engine: Engine, keys: Sequence[str]) -> None:
        """Make *keys* stale. One round trip."""
        self._here.expire(keys)
        await self._deliver(engine, engine.changes.expire, keys)

    async def remove(self, engine_of: Callable[..., Engine], keys: Sequence[str], scope: Scope, *, l2: bool) -> int:
        """Invalidate *keys*; returns how many of them were cached. One round trip for each thousand.

        Args:
            engine_of: returns an engine of the caller's runtime.
            l2: True if the values are in Redis; otherwise those in this process are counted.
        """
        engine, count = engine_of(), 0

        async def removed(keys: Sequence[str]) -> bool:
            nonlocal count
            done, there = await engine.changes.remove(keys, scope)
            count += there
            return done

        if not l2 and self._here.beside_redis:
            _, here = await engine_of(l2=False).changes.remove(keys, scope)
            await self.write(engine, [Invalidation(key) for key in keys])
            return here
        self._here.forget([Invalidation(key) for key in keys])
        await self._deliver(engine, removed, keys, at_once=MOST_AT_ONCE)
        return count

    async def elsewhere(self, engine: Engine, keys: Sequence[str]) -> None:
        """Invalidate *keys* everywhere except here, where their values were just changed. One round trip."""
        if self._here.beside_redis:
            await self._deliver(engine, engine.changes.invalidate, [Invalidation(key) for key in keys])

    async def _deliver(
        self,
        engine: Engine,
        say: Callable[[Sequence[T]], Awaitable[bool]],
        what: Sequence[T],
        *,
        at_once: int = 0,
        quietly: bool = False,
    ) -> None:
        """The rule of all invalidations.

        Each is sent even if the caller is cancelled, or an earlier one was not acknowledged. An invalidation that Redis
        has not acknowledged is pending: it is delivered before anything else is read. `Unreachable` is raised, if
        wanted, after all were sent.

        Args:
            engine: the one that uses Redis.
            say: sends some of *what*; returns False if they are pending.
            at_once: how many in one round trip; 0: all.
            quietly: never raise.
        """
        if not what or await engine.runtime.through(self._say_all(say, what, at_once or len(what))):
            return
        if self._raises and not quietly:
            raise Unreachable("Redis cannot be reached: the invalidation is queued and delivered when it is back")

    async def _say_all(
        self, say: Callable[[Sequence[Any]], Awaitable[bool]], what: Sequence[Any], at_once: int
    ) -> bool:
        done = True
        for at in range(0, len(what), at_once):
            done &= await say(what[at : at + at_once])
        if not done:
            self._shared.bus.listen()  # the listener delivers it, even if this process reads nothing any more
        return done
