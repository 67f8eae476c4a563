"""The way of a read, once for threads and event loops."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..defenses.breakdown import Verdict, early_by, judge
from ..errors import LoadTimeout, Overloaded, Unreachable
from ..protocol.envelope import Kind
from ..protocol.names import Scope
from ..servers.ring import Remotes
from ..tiers.remote import CUT_OFF, CutOff, Found, Stored, ms
from .changes import Changes
from .flights import Flight, Shared
from .loading import Ask
from .rebuilding import Rebuilding, opened, stored_of

if TYPE_CHECKING:
    from ..codec import Codec
    from ..policy import Rules
    from ..ports import Runtime


@dataclass(frozen=True, slots=True)
class Survey:
    """What Redis holds for several keys."""

    there: dict[str, Stored]
    missing: dict[str, Found | None]
    cut_off: frozenset[str]  # of the missing ones, those that Redis could not be asked for


class Engine:
    """Reads under one runtime; what changes by hand is in `changes`.

    A read goes `read` → `Remote.read` → `judge` → `Rebuilding.rebuild` and from there to the loader and `Remote.fill`.

    Args:
        audit: looks at what is served as fresh; None: nobody does.
    """

    def __init__(
        self,
        runtime: Runtime,
        remote: Remotes,
        shared: Shared,
        audit: Callable[[Engine, Ask, Any], Awaitable[None]] | None = None,
    ) -> None:
        self.runtime, self.remote, self.shared = runtime, remote, shared
        self.flights: dict[str, Flight] = {}
        shared.flights.append(self.flights)
        self.rebuilding = Rebuilding(runtime, remote, shared, self.flights)
        self.loading = self.rebuilding.loading
        self.changes = Changes(runtime, remote, shared)
        self._local, self._events, self._bus = shared.local, shared.events, shared.bus
        self.audit = audit

    async def read(self, ask: Ask) -> Any:
        """The value of *ask*, after the in-process tier had no answer."""
        try:
            return await self._read(ask)
        except (Overloaded, LoadTimeout) as error:
            return await self.instead(ask.rules, error)

    async def instead(self, rules: Rules, error: Exception) -> Any:
        """What the caller wants in place of *error*; if that is nothing, *error* is raised."""
        fallback = rules.fallback
        if fallback is None or not isinstance(error, Overloaded | LoadTimeout):
            raise error
        self._events.fallbacks += 1
        return await self.runtime.call(lambda: fallback(error)) if callable(fallback) else fallback

    async def _read(self, ask: Ask) -> Any:
        if not self._bus.ready:
            await self._bus.begin_listening(self.runtime)
        ticket, asked_at = self._local.tickets.take(), self.runtime.now()
        try:
            found = await self.remote.read(ask.key, ask.codec, ask.scope, ask.tags, ask.usable, near=ask.rules.l1)
        except Unreachable:
            return await self._read_without_redis(ask)
        stored = await self._usable(ask, found, ticket, asked_at)
        return await self.rebuilding.rebuild(ask, found) if stored is None else opened(stored, ask.rules)

    async def _usable(self, ask: Ask, found: Found | None, ticket: int, asked_at: float) -> Stored | None:
        """What may be served of *found*; a reload behind it is started where the policy wants one."""
        if found is None or found.stored is None:
            return None
        verdict = judge(found.fresh_left, ask.rules.revalidate)
        if verdict is Verdict.FRESH:
            await self._serve_fresh(ask, found.stored, found.fresh_left, ticket, asked_at)
            return found.stored
        if verdict is Verdict.REVALIDATE:
            self._events.stale_hits += 1
            await self.rebuilding.behind(ask, floor=0)
            return found.stored
        return None

    async def _serve_fresh(self, ask: Ask, stored: Stored, fresh_left: float, ticket: int, asked_at: float) -> None:
        """A hit in Redis; under ``rebuild="early"`` one of them reloads ahead of time."""
        self._events.l2_hits += 1
        self._events.null_hits += stored.kind is not Kind.VALUE
        self._events.served(stored.ttl - fresh_left)
        if ask.rules.rebuild == "early" and fresh_left <= early_by(stored.load_time, self.runtime.random()):
            await self.rebuilding.behind(ask, floor=ms(fresh_left))
        else:
            self.rebuilding.keep(ask, stored, fresh_left, ticket, asked_at)
        if self.audit is not None and stored.kind is Kind.VALUE:
            await self.audit(self, ask, stored.value)

    async def survey(self, asks: Mapping[str, Ask]) -> Survey:
        """What can be served for several keys of one kind, and what has to be loaded. One round trip."""
        if not self._bus.ready:
            await self._bus.begin_listening(self.runtime)
        keys, first = list(asks), next(iter(asks.values()))
        ticket, asked_at = self._local.tickets.take(), self.runtime.now()
        tags = [ask.tags for ask in asks.values()]
        found = await self.found_of(keys, first.codec, first.scope, tags, near=first.rules.l1)
        there: dict[str, Stored] = {}
        missing: dict[str, Found | None] = {}
        for key, each in zip(keys, found, strict=True):
            if isinstance(each, CutOff):
                each, stored = None, self.kept(key, first.rules)  # noqa: PLW2901 - from here on, nothing was found
            else:
                stored = await self._usable(asks[key], each, ticket, asked_at)
            if stored is None:
                missing[key] = each
            else:
                there[key] = stored
        cut_off = frozenset(key for key, each in zip(keys, found, strict=True) if each is CUT_OFF and key in missing)
        return Survey(there, missing, cut_off)

    async def found_of(
        self, keys: Sequence[str], codec: Codec | None, scope: Scope, tags: Sequence[tuple[str, ...]], *, near: bool
    ) -> Sequence[Found | CutOff | None]:
        """What Redis holds of *keys*, as far as it can be asked."""
        try:
            return await self.remote.read_many(keys, codec, scope, tags, near=near)
        except Unreachable:
            return [CUT_OFF] * len(keys)

    async def _read_without_redis(self, ask: Ask) -> Any:
        """L1 even if its time is over, else the loader, once per key and behind the bulkhead."""
        kept = self.kept(ask.key, ask.rules)
        if kept is not None and not ask.takes(kept):
            kept = None
        return await self.rebuilding.rebuild(ask, None, cut_off=True) if kept is None else opened(kept, ask.rules)

    def kept(self, key: str, rules: Rules, *, longer: float | None = None) -> Stored | None:
        """What L1 has for *key* and may serve while Redis cannot be asked: known to be invalidated it is not."""
        entry = self._local.find(key) if rules.l1 else None
        if entry is None:
            return None
        beyond = self.runtime.now() - entry.fresh_until
        longer = rules.if_error if longer is None else longer
        if beyond >= (longer if entry.kind == Kind.VALUE else 0.0):
            return None
        self._events.stale_hits += beyond >= 0
        return stored_of(entry)

    async def refresh(self, ask: Ask) -> Any:
        """Load anew, whatever is cached; the answer comes from a load that began after this call."""
        try:
            return await self.rebuilding.rebuild(ask, None, anew=True)
        except (Overloaded, LoadTimeout) as error:
            return await self.instead(ask.rules, error)
