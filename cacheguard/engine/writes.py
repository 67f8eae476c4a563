"""Invalidations: what `disabled()`, ``on_unreachable``, ``l2=False`` and cancellation mean for all of them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from ..delivery.outbox import Invalidation
from ..delivery.parts import MOST_AT_ONCE, MOST_IN_A_LOOP, parts
from ..errors import Unreachable

if TYPE_CHECKING:
    from ..ports import Runtime
    from ..protocol.messages import Drop
    from ..protocol.names import Scope
    from .here import Here
    from .reading import Engine
    from .shared import Shared

T = TypeVar("T")


class Latest(Protocol):
    """The changes of a feed, each key once with its newest version."""

    def add(self, changes: Iterable[Any]) -> None: ...

    def items(self) -> Iterable[Invalidation]: ...

    def __len__(self) -> int: ...


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

    async def write(self, engine: Engine, items: Iterable[Invalidation], *, quietly: bool = False) -> None:
        """Invalidate *items*. One round trip for each thousand, in a loop for each 250."""

        async def say(part: Sequence[Invalidation]) -> bool:
            return bool(await _around(partial(self._here.forget, part), partial(engine.changes.invalidate, part)))

        await self._deliver(engine, say, items, quietly=quietly)

    async def apply(self, engine: Engine, latest: Latest, changes: Iterable[Any]) -> int:
        """Invalidate what *changes* say, which may be many; returns their number, each key counted once."""
        for number, part in enumerate(parts(changes, MOST_IN_A_LOOP)):
            if number:
                await engine.runtime.sleep(0)
            latest.add(part)
        await self.write(engine, latest.items())
        return len(latest)

    async def expire(self, engine: Engine, keys: Iterable[str]) -> None:
        """Make *keys* stale. One round trip for each thousand."""

        async def say(part: Sequence[str]) -> bool:
            return bool(await _around(partial(self._here.expire, part), partial(engine.changes.expire, part)))

        await self._deliver(engine, say, keys)

    async def remove(self, engine_of: Callable[..., Engine], keys: Iterable[str], scope: Scope, *, l2: bool) -> int:
        """Invalidate *keys*; returns how many of them were cached. One round trip for each thousand.

        Args:
            engine_of: returns an engine of the caller's runtime.
            l2: True if the values are in Redis; otherwise those in this process are counted.
        """
        engine, count = engine_of(), 0
        here = engine_of(l2=False) if not l2 and self._here.beside_redis else None

        async def removed(part: Sequence[str]) -> bool:
            nonlocal count
            if here is not None:
                count += (await here.changes.remove(part, scope))[1]
            items = [Invalidation(key) for key in part]
            forget = partial(self._here.forget, items)
            if here is not None:
                return bool(await _around(forget, partial(engine.changes.invalidate, items)))
            done, there = await _around(forget, partial(engine.changes.remove, part, scope))
            count += there
            return bool(done)

        await self._deliver(engine, removed, keys)
        return count

    async def elsewhere(self, engine: Engine, keys: Iterable[str], version: str = "") -> None:
        """Invalidate *keys* everywhere except here, where their values were just changed."""
        if self._here.beside_redis:
            items = (Invalidation(key, version=version) for key in keys)
            await self._deliver(engine, engine.changes.invalidate, items)

    async def refreshed(self, engine: Engine, key: str, *, l2: bool) -> None:
        """Tell the other processes that *key* was loaded anew: they drop their copies. One round trip."""
        if not l2:
            await self.elsewhere(engine, [key])
        elif self._here.beside_redis:
            await engine.runtime.through(engine.remote.of(key).gate.tell(key))

    async def _deliver(
        self,
        engine: Engine,
        say: Callable[[Sequence[T]], Awaitable[bool]],
        what: Iterable[T],
        *,
        quietly: bool = False,
    ) -> None:
        """The rule of all invalidations.

        Each is sent even if the caller is cancelled, or an earlier one was not acknowledged. An invalidation that Redis
        has not acknowledged is pending: it is delivered before anything else is read. `Unreachable` is raised, if
        wanted, after all were sent.

        Args:
            engine: the one that uses Redis.
            say: sends some of *what*; returns False if they are pending.
            what: may be many: an event loop has its turn after each part.
            quietly: never raise.
        """
        left = parts(what, most_at_once(engine.runtime))
        first = next(left, None)
        if first is None or await engine.runtime.through(self._say_all(engine.runtime, say, first, left)):
            return
        if self._raises and not quietly:
            raise Unreachable("Redis cannot be reached: the invalidation is queued and delivered when it is back")

    async def _say_all(
        self,
        runtime: Runtime,
        say: Callable[[Sequence[T]], Awaitable[bool]],
        first: Sequence[T],
        rest: Iterable[Sequence[T]],
    ) -> bool:
        done = await say(first)
        for part in rest:
            await runtime.sleep(0)
            done &= await say(part)
        if not done:
            self._shared.bus.listen()  # the listener delivers it, even if this process reads nothing any more
        return done


async def _around(forget: Callable[[], None], say: Callable[[], Awaitable[T]]) -> T:
    """Forget here before and after that is published, even if it fails.

    reader:                      leases here, loads "old" ................................ fills here: refused
    writers:  one forgets here ........................... another commits; the invalidation of the first one ends
    """
    forget()
    try:
        return await say()
    finally:
        forget()


def most_at_once(runtime: Runtime) -> int:
    """How many keys a caller in *runtime* sends in one round trip."""
    here = runtime.here()
    in_a_loop = here is None or here.loop is not None
    return MOST_IN_A_LOOP if in_a_loop else MOST_AT_ONCE
