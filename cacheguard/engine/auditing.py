"""Measures staleness: compares a share of the hits with the loader's result."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..errors import CodecError, Unreachable
from ..protocol.entry import Stored
from ..protocol.envelope import Kind
from ..tiers.copies import copied

if TYPE_CHECKING:
    from .ask import Ask
    from .reading import Engine

GRACE = 1.0  # seconds: news of a change that was just made must have arrived by then
MOST = 4  # audits at once


class Auditor:
    """Compares served values with the loader's result, in the background.

    A difference counts only if it is still there after a grace period: the row may just have changed, and its
    invalidation may still be on its way. The idea is that of Polaris (Meta, "Cache made consistent", 2022).

    Args:
        share: of hits that are compared, from 0 to 1.
    """

    def __init__(self, share: float) -> None:
        self._share = share
        self._running = 0

    def after_fork(self) -> None:
        """Forget the audits that go on in the parent."""
        self._running = 0

    async def consider(self, engine: Engine, ask: Ask, value: Any) -> None:
        """Compare *value*, which was served as fresh, if the random draw selects it and a permit is free."""
        runtime = engine.runtime
        if runtime.random() >= self._share or self._running >= MOST or engine.shared.alone():
            return
        self._running += 1
        if not await runtime.start(self._audit(engine, ask, value), detached=True):
            self._running -= 1

    async def _audit(self, engine: Engine, ask: Ask, served: Any) -> None:
        events = engine.shared.events
        try:
            truth = await self._loaded(engine, ask)
            if truth is None:
                return
            events.audits += 1
            if self._same(engine, ask, served, truth[0]):
                return
            await engine.runtime.sleep(GRACE)
            cached = await self._cached(engine, ask)
            if cached is None or not self._same(engine, ask, served, cached[0]):
                return  # it has been invalidated meanwhile
            truth = await self._loaded(engine, ask)
            if truth is not None and not self._same(engine, ask, served, truth[0]):
                events.audits_different += 1
                message = "an audit found %s stale: the loader says something else"
                events.once("audit", message, ask.key, key=ask.key)
        finally:
            self._running -= 1

    async def _loaded(self, engine: Engine, ask: Ask) -> tuple[Any] | None:
        """The loader's result in a tuple; None if it raises, or no permit is free."""
        bulkhead = engine.shared.bulkhead
        if not bulkhead.try_enter():
            return None
        try:
            return (await engine.runtime.call(ask.load),)
        except Exception:  # noqa: BLE001 - the loader's own; nobody waits for it, and it proves nothing
            return None
        finally:
            bulkhead.leave()

    async def _cached(self, engine: Engine, ask: Ask) -> tuple[Any] | None:
        """The value that would be served now, in a tuple; None if there is none."""
        entry = engine.shared.local.peek(ask.key) if ask.rules.l1 else None
        if entry is not None:
            return (copied(entry.value),)
        try:
            found = await engine.remote.read(ask.key, ask.codec, ask.scope, ask.tags)
        except Unreachable:
            return None
        stored = None if found is None else found.stored
        return None if stored is None or stored.kind is not Kind.VALUE else (stored.own(),)

    def _same(self, engine: Engine, ask: Ask, one: Any, other: Any) -> bool:
        """True if two values are equal, by ``==`` or by their packed bytes."""
        if type(one) is type(other) and _equal(one, other):
            return True
        try:
            one, other = (
                engine.remote.pack(ask.key, Stored(Kind.VALUE, value, 1.0, 0.0, ()), ask.codec)
                for value in (one, other)
            )
        except CodecError:
            return False
        return _equal(one, other)


def _equal(one: Any, other: Any) -> bool:
    try:
        return bool(one == other)
    except Exception:  # noqa: BLE001 - the values' own
        return False
