"""The steps of a read, written once for threads and event loops."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..defenses.breakdown import Verdict, early_by, judge
from ..errors import LoadTimeout, Overloaded, Unreachable
from ..protocol.entry import CUT_OFF, CutOff, Found, Stored, ms
from ..protocol.envelope import Kind
from ..protocol.names import Scope
from ..tiers.entries import Entries
from .ask import Ask, opened, stored_of
from .changes import Changes
from .filling import Filling
from .flights import Flights
from .loading import Loading
from .rebuilding import Rebuilding
from .shared import Shared

if TYPE_CHECKING:
    from ..codec import Codec
    from ..policy import HotRules, Rules
    from ..ports import Runtime


@dataclass(frozen=True, slots=True)
class Survey:
    """The result of one look in Redis for several keys."""

    there: dict[str, Stored]
    missing: dict[str, Found | CutOff | None]


class Engine:
    """Reads under one runtime; manual writes and invalidations are in `changes`.

    A read goes `read` → `Remote.read` → `judge` → `Rebuilding.rebuild` → `Loading.run` → `Filling.fill_and_land`.

    Args:
        audit: called with each fresh hit; None: no audit.
        in_process: values are stored as the objects that they are, not as bytes.
    """

    remote: Entries
    runtime: Runtime
    shared: Shared

    def __init__(
        self,
        runtime: Runtime,
        remote: Entries,
        shared: Shared,
        audit: Callable[[Engine, Ask, Any], Awaitable[None]] | None = None,
        *,
        in_process: bool = False,
    ) -> None:
        self.runtime, self.remote, self.shared = runtime, remote, shared
        self.flights: Flights = shared.open_flights()
        self.loading: Loading = Loading(runtime, remote, shared, self.flights)
        self.filling: Filling = Filling(runtime, remote, shared, self.flights)
        self.rebuilding: Rebuilding = Rebuilding(runtime, remote, shared, self.flights, self.loading, self.filling)
        self.changes: Changes = Changes(runtime, remote, shared, in_process=in_process)
        self._local, self._events, self._bus = shared.local, shared.events, shared.bus
        self.audit = audit

    async def read(self, ask: Ask) -> Any:
        """The value of *ask*, after a miss in L1."""
        if not self._bus.ready:
            await self._bus.begin_listening(self.runtime)
        heat = self._local.heat
        heat.gap -= 1
        if heat.gap <= 0:
            self._local.sample(ask.key, ask.template)
        rules, ticket, asked_at = ask.rules, self._local.tickets.take(), self.runtime.now()
        found: Found | CutOff | None = CUT_OFF
        try:
            found = await self.remote.read(ask.key, ask.codec, ask.scope, ask.tags, ask.usable, near=rules.l1)
        except Unreachable:
            pass  # `_answered` finds what can be answered without Redis
        else:
            # The most frequent end, without a coroutine of its own; `_answered` is for all others.
            if found is not None and found.fresh_left > 0 and (stored := found.stored) is not None:
                value = stored.value  # it was read for this caller alone
                plain = value is not None and stored.kind is Kind.VALUE
                if plain and rules.rebuild != "early" and rules.hot is None and self.audit is None:
                    self._events.hit(found.age, absence=False)
                    if rules.l1:
                        self.filling.keep_found(ask, found, ticket, asked_at)
                    if self._local.watch is not None:
                        self._local.watch.given(value)
                    return value
        return await self._answered(ask, found, ticket, asked_at)

    async def _answered(self, ask: Ask, found: Found | CutOff | None, ticket: int, asked_at: float) -> Any:
        """The answer to *ask* when Redis has answered *found*; what cannot be served from there is loaded."""
        try:
            value = opened(await self._stored(ask, found, ticket, asked_at), ask.rules)
        except (Overloaded, LoadTimeout) as error:
            if ask.rules.fallback is None:
                raise
            return await self.instead(ask.rules, error)
        if self._local.watch is not None:
            self._local.watch.given(value)
        return value

    async def _stored(self, ask: Ask, found: Found | CutOff | None, ticket: int, asked_at: float) -> Stored:
        if isinstance(found, CutOff):
            stored = self.kept(ask.key, ask.rules)
            if stored is not None and not ask.takes(stored):
                stored = None
        else:
            stored = await self._usable(ask, found, ticket, asked_at)
        return await self.rebuilding.rebuild(ask, found) if stored is None else stored

    async def instead(self, rules: Rules, error: Exception) -> Any:
        """The caller's fallback for *error*; raises *error* if it has none."""
        fallback = rules.fallback
        if fallback is None or not isinstance(error, Overloaded | LoadTimeout):
            raise error
        self._events.fallbacks += 1
        if callable(fallback):
            return await self.runtime.call(lambda: fallback(error))
        copier = self.shared.copier
        return fallback if copier is None else copier.copy(fallback)

    async def _usable(self, ask: Ask, found: Found | None, ticket: int, asked_at: float) -> Stored | None:
        """The part of *found* that may be served. Starts a background reload if the policy wants one.

        Under ``rebuild="early"``, one of the hits reloads ahead of time.
        """
        if found is None or found.stored is None:
            return None
        stored, fresh_left = found.stored, found.fresh_left
        verdict, floor = judge(fresh_left, ask.rules.revalidate), None
        if verdict is Verdict.FRESH:
            self._events.hit(found.age, absence=stored.kind is not Kind.VALUE)
            if ask.rules.rebuild == "early" and fresh_left <= early_by(stored.load_time, self.runtime.random()):
                floor = ms(fresh_left)
            else:
                self.filling.keep_found(ask, found, ticket, asked_at)
                if ask.rules.hot is not None and self._is_due(ask, ask.rules.hot, stored, fresh_left):
                    floor = ms(fresh_left)
        elif verdict is Verdict.REVALIDATE:
            self._events.stale_hits += 1
            floor = 0
        else:
            return None
        if floor is not None:
            await self.rebuilding.behind(ask, floor=floor)
        if self.audit is not None and verdict is Verdict.FRESH and stored.kind is Kind.VALUE:
            await self.audit(self, ask, stored.own())
        return stored

    def _is_due(self, ask: Ask, hot: HotRules, stored: Stored, fresh_left: float) -> bool:
        """Whether the key is hot, and so far in its time that it is reloaded ahead of its end."""
        return fresh_left <= hot.due_left(stored.ttl) and self._local.share(ask.key) >= hot.share

    def given(self, values: Iterable[Any]) -> None:
        """Say, where somebody looks on, that the caller gets *values*."""
        watch = self._local.watch
        if watch is not None:
            for value in values:
                watch.given(value)

    async def survey(self, asks: Mapping[str, Ask]) -> Survey:
        """Which of several keys can be served and which must be loaded. One round trip."""
        if not self._bus.ready:
            await self._bus.begin_listening(self.runtime)
        keys, first = list(asks), next(iter(asks.values()))
        self._local.read_elsewhere(keys, first.template)
        ticket, asked_at = self._local.tickets.take(), self.runtime.now()
        tags = [ask.tags for ask in asks.values()]
        found = await self.found_of(keys, first.codec, first.scope, tags, near=first.rules.l1)
        there: dict[str, Stored] = {}
        missing: dict[str, Found | CutOff | None] = {}
        stored: Stored | None
        # What `_usable` does with a fresh value that goes nowhere but to the caller, without a coroutine for each.
        rules = first.rules
        at_once = not rules.l1 and rules.rebuild != "early" and rules.hot is None and self.audit is None
        ages: list[float] = []
        for key, each in zip(keys, found, strict=True):
            if at_once and type(each) is Found and each.fresh_left > 0 and each.stored is not None:
                stored = each.stored
                ages.append(each.age)
                self._events.null_hits += stored.kind is not Kind.VALUE
            elif isinstance(each, CutOff):
                stored = self.kept(key, first.rules)
            else:
                stored = await self._usable(asks[key], each, ticket, asked_at)
            if stored is None:
                missing[key] = each
            else:
                there[key] = stored
        self._events.hits(ages)
        return Survey(there, missing)

    async def found_of(
        self, keys: Sequence[str], codec: Codec | None, scope: Scope, tags: Sequence[tuple[str, ...]], *, near: bool
    ) -> Sequence[Found | CutOff | None]:
        """What Redis holds for *keys*, as far as it is reachable."""
        try:
            return await self.remote.read_many(keys, codec, scope, tags, near=near)
        except Unreachable:
            return [CUT_OFF] * len(keys)

    def kept(self, key: str, rules: Rules, *, longer: float | None = None) -> Stored | None:
        """The L1 entry that may be served while Redis is unreachable. Invalidated entries were dropped before."""
        entry = self._local.find(key) if rules.l1 else None
        if entry is None:
            return None
        common = entry.common
        beyond = self.runtime.now() - common.fresh_until
        longer = rules.if_error if longer is None else longer
        if beyond >= (longer if common.kind == Kind.VALUE else 0.0) or (
            beyond >= 0 and self.runtime.now() >= common.dead_from
        ):
            return None
        self._events.stale_hits += beyond >= 0
        return stored_of(entry)

    async def refresh(self, ask: Ask) -> Any:
        """Load anew, whatever is cached; the answer comes from a load that began after this call."""
        try:
            value = opened(await self.rebuilding.rebuild(ask, None, anew=True), ask.rules)
        except (Overloaded, LoadTimeout) as error:
            if ask.rules.fallback is None:
                raise
            return await self.instead(ask.rules, error)
        if self._local.watch is not None:
            self._local.watch.given(value)
        return value
