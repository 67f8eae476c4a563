"""The way of a read and the way of a write, once for threads and event loops."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .defenses.avalanche import jittered
from .defenses.breakdown import Verdict, early_by, judge
from .envelope import Kind
from .errors import Unreachable
from .flights import Flight, Shared
from .loading import Ask
from .rebuilding import Rebuilding, opened, stale_window, stored_of
from .tiers.remote import Found, Remote, Stored, ms

if TYPE_CHECKING:
    from .codec import Codec
    from .policy import Rules
    from .ports import Runtime


@dataclass(frozen=True, slots=True)
class Survey:
    """What Redis holds for several keys."""

    there: dict[str, Stored]
    missing: dict[str, Found | None]
    cut_off: bool  # Redis could not be asked


class Engine:
    """Reads and writes under one runtime.

    A read goes `read` → `Remote.read` → `judge` → `Rebuilding.rebuild` and from there to the loader and `Remote.fill`.
    """

    def __init__(self, runtime: Runtime, remote: Remote, shared: Shared) -> None:
        self.runtime, self.remote, self.shared = runtime, remote, shared
        self.flights: dict[str, Flight] = {}
        shared.flights.append(self.flights)
        self.rebuilding = Rebuilding(runtime, remote, shared, self.flights)
        self.loading = self.rebuilding.loading
        self._local, self._events = shared.local, shared.events

    async def read(self, ask: Ask) -> Any:
        """The value of *ask*, after the in-process tier had no answer."""
        ticket, asked_at = self._local.tickets.take(ask.key), self.runtime.now()
        try:
            found = await self.remote.read(ask.key, ask.codec)
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
        if ask.rules.rebuild == "early" and fresh_left <= early_by(stored.load_time, self.runtime.random()):
            await self.rebuilding.behind(ask, floor=ms(fresh_left))
        else:
            self.rebuilding.keep(ask.key, stored, ask.rules, fresh_left, ticket, asked_at)

    async def survey(self, asks: Mapping[str, Ask]) -> Survey:
        """What can be served for several keys of one kind, and what has to be loaded. One round trip."""
        keys = list(asks)
        tickets, asked_at = [self._local.tickets.take(key) for key in keys], self.runtime.now()
        try:
            found = await self.remote.read_many(keys, asks[keys[0]].codec)
        except Unreachable:
            return Survey({}, dict.fromkeys(keys), cut_off=True)
        there: dict[str, Stored] = {}
        missing: dict[str, Found | None] = {}
        for key, ticket, each in zip(keys, tickets, found, strict=True):
            stored = await self._usable(asks[key], each, ticket, asked_at)
            if stored is None:
                missing[key] = each
            else:
                there[key] = stored
        return Survey(there, missing, cut_off=False)

    async def _read_without_redis(self, ask: Ask) -> Any:
        """L1 even if its time is over, else the loader, once per key and behind the bulkhead."""
        entry = self._local.find(ask.key) if ask.rules.l1 else None
        if entry is not None:
            beyond = self.runtime.now() - entry.fresh_until
            if beyond < (ask.rules.if_error if entry.kind == Kind.VALUE else 0.0):
                self._events.stale_hits += beyond >= 0
                return opened(stored_of(entry), ask.rules)
        return await self.rebuilding.rebuild(ask, None, cut_off=True)

    async def peek(self, keys: Sequence[str], codec: Codec | None, rules: Rules) -> dict[str, tuple[Stored, bool]]:
        """What may be served for *keys* without a load, and whether it is stale. One round trip."""
        tickets, asked_at = [self._local.tickets.take(key) for key in keys], self.runtime.now()
        try:
            found = await self.remote.read_many(list(keys), codec)
        except Unreachable:
            return {}
        answers: dict[str, tuple[Stored, bool]] = {}
        for key, ticket, each in zip(keys, tickets, found, strict=True):
            if each is None or each.stored is None:
                continue
            verdict = judge(each.fresh_left, rules.revalidate)
            if verdict is Verdict.FRESH:
                self._events.l2_hits += 1
                self._events.null_hits += each.stored.kind is not Kind.VALUE
                self.rebuilding.keep(key, each.stored, rules, each.fresh_left, ticket, asked_at)
                answers[key] = each.stored, False
            elif verdict is Verdict.REVALIDATE:
                self._events.stale_hits += 1
                answers[key] = each.stored, True
        return answers

    async def look(self, key: str) -> Found | None:
        """What Redis holds for *key*, for inspection: no hit is counted. None if Redis cannot be asked."""
        try:
            return await self.remote.look(key)
        except Unreachable:
            return None

    async def refresh(self, ask: Ask) -> Any:
        """Load anew, whatever is cached; the answer comes from a load that began after this call."""
        return await self.rebuilding.rebuild(ask, None, anew=True)

    async def invalidate(self, keys: Sequence[str]) -> bool:
        """Remove *keys* everywhere; false if Redis has not acknowledged it yet. One round trip."""
        self._events.invalidations += len(keys)
        self.shared.drop(keys)
        try:
            return await self.remote.invalidate(list(keys))
        finally:
            self.shared.drop(keys)

    async def expire(self, keys: Sequence[str]) -> bool:
        """Make *keys* stale; false if Redis has not acknowledged it yet. One round trip."""
        self._events.invalidations += len(keys)
        self.shared.drop(keys)
        try:
            return await self.remote.expire(list(keys))
        finally:
            self.shared.drop(keys)

    async def store(
        self, values: dict[str, Any], rules: Rules, codecs: dict[str, Codec], tags: tuple[str, ...]
    ) -> bool:
        """Put *values* there by hand; `CodecError` if one of them cannot be stored. One round trip."""
        items: dict[str, tuple[Any, float, float]] = {}
        for key, value in values.items():
            kind = Kind.ABSENT if value is None and rules.null_ttl is not None else Kind.VALUE
            ttl = rules.ttl_of(value) if kind is Kind.VALUE else rules.null_ttl
            fresh = jittered(ttl or rules.ttl_of(None), rules.jitter, self.runtime.random())
            stored = Stored(kind, value, fresh, 0.0, tags)
            items[key] = self.remote.pack(key, stored, codecs[key]), fresh, stale_window(stored, rules)
        self.shared.drop(items)
        try:
            return await self.remote.store(items)
        finally:
            self.shared.drop(items)

    async def touch(self, key: str, rules: Rules) -> bool:
        """Give a fresh entry its TTL anew; whether there was one. Two round trips."""
        found = await self.remote.read(key, None)
        if found is None or found.stored is None:
            return False
        stored = found.stored
        ttl = rules.ttl_of(stored.value) if stored.kind is Kind.VALUE else rules.null_ttl
        if ttl is None:
            return False
        fresh = jittered(ttl, rules.jitter, self.runtime.random())
        try:
            return await self.remote.touch(key, fresh, stale_window(stored, rules))
        finally:
            self.shared.drop([key])
