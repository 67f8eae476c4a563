"""The way of a read and the way of a write, once for threads and event loops."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ..defenses.avalanche import jittered
from ..defenses.breakdown import Verdict, early_by, judge
from ..delivery.outbox import Invalidation
from ..errors import LoadTimeout, Overloaded, Unreachable
from ..missing import MISSING
from ..protocol.entry import CUT_OFF, CutOff, Found, Stored, ms
from ..protocol.envelope import Kind
from ..protocol.names import Scope
from ..tiers.entries import Entries
from .flights import Flight, Shared
from .loading import Ask
from .rebuilding import Rebuilding, marker_ms, opened, stale_window, stored_of

if TYPE_CHECKING:
    from ..codec import Codec
    from ..policy import Rules
    from ..ports import Runtime


MOST_ATTEMPTS = 1000  # to change a value that others change, too; each time one of them gets through
EAGER_ATTEMPTS = 3
LONGEST_PAUSE = 0.02  # seconds between two later ones


@dataclass(frozen=True, slots=True)
class Survey:
    """What Redis holds for several keys."""

    there: dict[str, Stored]
    missing: dict[str, Found | None]
    cut_off: frozenset[str]  # of the missing ones, those that Redis could not be asked for


class Engine:
    """Reads and writes under one runtime.

    A read goes `read` → `Remote.read` → `judge` → `Rebuilding.rebuild` and from there to the loader and `Remote.fill`.
    """

    def __init__(self, runtime: Runtime, remote: Entries, shared: Shared) -> None:
        self.runtime, self.remote, self.shared = runtime, remote, shared
        self.flights: dict[str, Flight] = {}
        shared.flights.append(self.flights)
        self.rebuilding = Rebuilding(runtime, remote, shared, self.flights)
        self.loading = self.rebuilding.loading
        self._local, self._events, self._bus = shared.local, shared.events, shared.bus
        self.audit: Callable[[Engine, Ask, Any], Awaitable[None]] | None = None  # looks at what is served as fresh

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
        if not self._bus.ready and ask.rules.l2:
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
        if not self._bus.ready and next(iter(asks.values())).rules.l2:
            await self._bus.begin_listening(self.runtime)
        keys, first = list(asks), next(iter(asks.values()))
        ticket, asked_at = self._local.tickets.take(), self.runtime.now()
        tags = [ask.tags for ask in asks.values()]
        found = await self._found_of(keys, first.codec, first.scope, tags, near=first.rules.l1)
        there: dict[str, Stored] = {}
        missing: dict[str, Found | None] = {}
        for key, each in zip(keys, found, strict=True):
            if isinstance(each, CutOff):
                each, stored = None, self._kept(key, first.rules)  # noqa: PLW2901 - from here on, nothing was found
            else:
                stored = await self._usable(asks[key], each, ticket, asked_at)
            if stored is None:
                missing[key] = each
            else:
                there[key] = stored
        cut_off = frozenset(key for key, each in zip(keys, found, strict=True) if each is CUT_OFF and key in missing)
        return Survey(there, missing, cut_off)

    async def _found_of(
        self, keys: Sequence[str], codec: Codec | None, scope: Scope, tags: Sequence[tuple[str, ...]], *, near: bool
    ) -> Sequence[Found | CutOff | None]:
        """What Redis holds of *keys*, as far as it can be asked."""
        try:
            return await self.remote.read_many(keys, codec, scope, tags, near=near)
        except Unreachable:
            return [CUT_OFF] * len(keys)

    async def _read_without_redis(self, ask: Ask) -> Any:
        """L1 even if its time is over, else the loader, once per key and behind the bulkhead."""
        kept = self._kept(ask.key, ask.rules)
        if kept is not None and not ask.takes(kept):
            kept = None
        return await self.rebuilding.rebuild(ask, None, cut_off=True) if kept is None else opened(kept, ask.rules)

    def _kept(self, key: str, rules: Rules, *, longer: float | None = None) -> Stored | None:
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

    async def peek(
        self, keys: Sequence[str], codec: Codec | None, rules: Rules, scope: Scope
    ) -> dict[str, tuple[Stored, bool]]:
        """What may be served for *keys* without a load, and whether it is stale. One round trip."""
        if not self._bus.ready and rules.l2:
            await self._bus.begin_listening(self.runtime)
        ticket, asked_at = self._local.tickets.take(), self.runtime.now()
        found = await self._found_of(keys, codec, scope, (), near=rules.l1)
        answers: dict[str, tuple[Stored, bool]] = {}
        for key, each in zip(keys, found, strict=True):
            if isinstance(each, CutOff):
                kept = self._kept(key, rules, longer=0.0)
                if kept is not None:
                    answers[key] = kept, False
                continue
            if each is None or each.stored is None:
                continue
            verdict = judge(each.fresh_left, rules.revalidate)
            if verdict is Verdict.FRESH:
                self._events.l2_hits += 1
                self._events.null_hits += each.stored.kind is not Kind.VALUE
                self._events.served(each.stored.ttl - each.fresh_left)
                ask = Ask(key, rules, codec, _nothing, scope=scope)
                self.rebuilding.keep(ask, each.stored, each.fresh_left, ticket, asked_at)
                answers[key] = each.stored, False
            elif verdict is Verdict.REVALIDATE:
                self._events.stale_hits += 1
                answers[key] = each.stored, True
        return answers

    async def look(self, key: str, scope: Scope) -> Found | None:
        """What Redis holds for *key*, for inspection: no hit is counted. None if Redis cannot be asked."""
        try:
            return await self.remote.look(key, scope)
        except Unreachable:
            return None

    async def refresh(self, ask: Ask) -> Any:
        """Load anew, whatever is cached; the answer comes from a load that began after this call."""
        try:
            return await self.rebuilding.rebuild(ask, None, anew=True)
        except (Overloaded, LoadTimeout) as error:
            return await self.instead(ask.rules, error)

    async def invalidate(self, keys: Sequence[str]) -> bool:
        """Remove *keys* everywhere; false if Redis has not acknowledged it yet. One round trip."""
        return await self.write([Invalidation(key) for key in keys])

    async def write(self, items: Sequence[Invalidation]) -> bool:
        """Invalidate *items* everywhere; false if Redis has not acknowledged it yet. One round trip."""
        self._events.invalidations += len(items)
        return bool(await self.runtime.through(self._said([item.key for item in items], self.remote.invalidate(items))))

    async def expire(self, keys: Sequence[str]) -> bool:
        """Make *keys* stale; false if Redis has not acknowledged it yet. One round trip."""
        self._events.invalidations += len(keys)
        return bool(await self.runtime.through(self._said(keys, self.remote.expire(keys))))

    async def _said(self, names: Sequence[str], saying: Awaitable[Any]) -> Any:
        """Drop *names* here before and after the others are told, whatever comes of it."""
        self.shared.drop(names)
        try:
            return await saying
        finally:
            self.shared.drop(names)

    async def store(
        self,
        values: dict[str, Any],
        rules: Rules,
        codecs: dict[str, Codec],
        tags: tuple[str, ...],
        scope: Scope,
        version: str = "",
    ) -> bool:
        """Put *values* there by hand, of keys that live in one place; `CodecError` if one of them cannot be stored.

        One round trip; one more if this process does not know what the namespace and the tags say now.
        """
        drawn = {key: self._drawn(value, rules, tags) for key, value in values.items()}
        work = self._stored(drawn, rules, codecs, scope.markers(tags), version)
        return bool(await self.runtime.through(self._said(list(values), work)))

    def _drawn(self, value: Any, rules: Rules, tags: tuple[str, ...]) -> tuple[Stored, float]:
        """The entry that *value* becomes, and for how many seconds it is fresh."""
        kind = Kind.ABSENT if value is None and rules.null_ttl is not None else Kind.VALUE
        ttl = rules.ttl_of(value) if kind is Kind.VALUE else rules.null_ttl
        fresh = jittered(ttl or rules.ttl_of(None), rules.jitter, self.runtime.random())
        return Stored(kind, value, fresh, 0.0, tags), fresh

    async def _stored(
        self,
        drawn: dict[str, tuple[Stored, float]],
        rules: Rules,
        codecs: dict[str, Codec],
        markers: tuple[str, ...],
        version: str,
    ) -> bool:
        keep_ms = max(marker_ms(rules), *(ms(fresh + rules.stale) for _, fresh in drawn.values()))
        remote = self.remote.of(next(iter(drawn)))
        nonces = remote.markers.last_seen(markers) or await remote.markers.ask(markers, keep_ms)
        limit = math.inf
        while True:
            items: dict[str, tuple[Any, float, float]] = {}
            for key, (stored, fresh) in drawn.items():
                stored.nonces = nonces
                stale = 0.0 if fresh > limit else stale_window(stored, rules)
                items[key] = remote.pack(key, stored, codecs[key]), min(fresh, limit), stale
            put = await remote.by_hand.store(items, version, markers, keep_ms)
            if put.nonces == nonces and (not put.quarantine or limit < math.inf):
                await self.remote.elsewhere([Invalidation(key, version=version) for key in items], remote)
                return put.done
            # What was stored is void already, or would outlive a quarantine: once more, under the markers as they are.
            nonces, limit = put.nonces, put.quarantine or math.inf

    async def add(self, key: str, value: Any, rules: Rules, codec: Codec, tags: tuple[str, ...], scope: Scope) -> bool:
        """Put *value* there by hand unless something usable is there; whether it was put.

        As many round trips as `store`.
        """
        work = self._added(key, self._drawn(value, rules, tags), rules, codec, scope)
        return bool(await self.runtime.through(self._said([key], work)))

    async def _added(self, key: str, drawn: tuple[Stored, float], rules: Rules, codec: Codec, scope: Scope) -> bool:
        stored, fresh = drawn
        markers = scope.markers(stored.tags)
        keep_ms = max(marker_ms(rules), ms(fresh + rules.stale))
        remote = self.remote.of(key)
        nonces = remote.markers.last_seen(markers) or await remote.markers.ask(markers, keep_ms)
        limit, token, void = math.inf, self.runtime.token(), ""
        while True:
            stored = replace(stored, nonces=nonces)
            envelope = remote.pack(key, stored, codec)
            stale = 0.0 if fresh > limit else stale_window(stored, rules)
            put = await remote.by_hand.add(
                key,
                envelope,
                min(fresh, limit),
                stale,
                scope=scope,
                token=token,
                void=void,
                markers=markers,
                keep_ms=keep_ms,
            )
            if put.done and (put.nonces != nonces or (put.quarantine and limit == math.inf)):
                # As in `_stored`: void already, or it would outlive a quarantine.
                nonces, limit, token = put.nonces, put.quarantine or math.inf, self.runtime.token()
                void = remote.by_hand.stamp(envelope)
            elif put.done or put.useless is None:
                if put.done:
                    await self.remote.elsewhere([Invalidation(key)], remote)
                return put.done
            else:
                void = put.useless

    async def update(self, key: str, change: Callable[[Any], Any], codec: Codec | None, scope: Scope) -> Any:
        """Change the value of *key* in one step, for the rest of its lifetime; what it is then, `MISSING` without one.

        Two round trips; one more each time that somebody else was faster.
        """
        return await self.runtime.through(self._said([key], self._updated(key, change, codec, scope)))

    async def _updated(self, key: str, change: Callable[[Any], Any], codec: Codec | None, scope: Scope) -> Any:
        remote = self.remote.of(key)
        exact = await remote.by_hand.read_exactly(key, codec, scope)
        for attempt in range(MOST_ATTEMPTS):
            found = exact.found
            if found is None or found.stored is None or found.fresh_left <= 0 or found.stored.kind is Kind.ERROR:
                return MISSING
            stored = found.stored
            value = change(stored.value)
            changed = replace(stored, kind=Kind.VALUE, value=value)
            # Kept in shape by its own codec: a function's entry stays readable for the function.
            envelope = remote.pack(key, changed, codec)
            replaced = await remote.by_hand.replace(
                key, envelope, exact.stamp, codec=codec, scope=scope, token=self.runtime.token()
            )
            if replaced.done:
                await self.remote.elsewhere([Invalidation(key)], remote)
                return value
            exact = replaced.there
            if attempt >= EAGER_ATTEMPTS:
                await self.runtime.sleep(self.runtime.random() * min(0.001 * attempt, LONGEST_PAUSE))
        raise Overloaded(f"{key} was changed by others {MOST_ATTEMPTS} times while it was to be updated")

    async def remove(self, keys: Sequence[str], scope: Scope) -> tuple[bool, int]:
        """Remove *keys* everywhere; whether Redis has acknowledged it, and how many it held. One round trip."""
        self._events.invalidations += len(keys)
        done, count = await self.runtime.through(self._said(keys, self.remote.remove(keys, scope)))
        return bool(done), int(count)

    async def touch(self, key: str, rules: Rules, scope: Scope) -> bool:
        """Give a fresh entry its TTL anew; whether there was one. Two round trips."""
        remote = self.remote.of(key)
        found = await remote.read(key, None, scope, ())
        if found is None or found.stored is None:
            return False
        stored = found.stored
        ttl = rules.ttl_of(stored.value) if stored.kind is Kind.VALUE else rules.null_ttl
        if ttl is None:
            return False
        fresh = jittered(ttl, rules.jitter, self.runtime.random())
        window = stale_window(stored, rules)
        keep_ms = max(marker_ms(rules), ms(fresh + window))
        try:
            return await remote.by_hand.touch(key, fresh, window, scope.markers(stored.tags), keep_ms)
        finally:
            self.shared.drop([key])


def _nothing() -> None:
    """Load nothing: this question is never put."""
