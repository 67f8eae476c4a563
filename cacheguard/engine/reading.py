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
from .beside import Look, Looks
from .changes import Changes
from .filling import Filling
from .flights import Flights
from .loading import Loading
from .permits import CHAIN, NO_CHAIN
from .rebuilding import Rebuilding
from .shared import Shared

if TYPE_CHECKING:
    from ..codec import Codec
    from ..policy import Rules
    from ..ports import Runtime, Signal

COLD = 4  # questions in vain, after which the lease is asked for first: that finds what is there, too
MOST_COLD = 1000
LONGEST_LOOK = 1.0  # seconds that a caller waits for another one's question


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
        self.looks: Looks = self.rebuilding.looks
        self._cold: dict[int, int] = {}  # by the identity of their rules: questions in vain
        self._first: set[int] = set()  # rules under which the lease is asked for first
        self._shares_looks = not in_process  # where the question is no round trip, nobody need wait for another's
        self.audit = audit

    async def read(self, ask: Ask) -> Any:
        """The value of *ask*, after a miss in L1."""
        heat = self._local.heat
        heat.gap -= 1
        if heat.gap <= 0:
            self._local.sample(ask.key, ask.template)
        try:
            if not self._bus.ready:
                await self._bus.begin_listening(self.runtime)
            rules = ask.rules
            if self.flights or (rules.l1 and self._shares_looks) or (self._first and id(rules) in self._first):
                value = await self._read_beside(ask)
            else:
                value = await self._read(ask)
        except (Overloaded, LoadTimeout) as error:
            if ask.rules.fallback is None:
                raise
            return await self.instead(ask.rules, error)
        if self._local.watch is not None:
            self._local.watch.given(value)
        return value

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

    async def _read(self, ask: Ask, look: Look | None = None) -> Any:
        """The value of *ask*, whatever others ask meanwhile; who waits for *look* gets to know what it has found."""
        ticket, asked_at = self._local.tickets.take(), self.runtime.now()
        found: Found | CutOff | None
        try:
            found = await self.remote.read(ask.key, ask.codec, ask.scope, ask.tags, ask.usable, near=ask.rules.l1)
        except Unreachable:
            if look is not None:
                look.cut_off = True
                self.looks.end(ask.key, look)
            return await self._cut_off(ask)
        value = self._at_once(ask, found, ticket, asked_at)
        if value is not None:
            return value
        stored = await self._usable(ask, found, ticket, asked_at, look)
        if stored is None:
            if found is None and self._shares_looks:
                self._count_cold(ask)
            stored = await self.rebuilding.rebuild(ask, found)
        return opened(stored, ask.rules)

    def _at_once(self, ask: Ask, found: Found | None, ticket: int, asked_at: float) -> Any:
        """The value of a fresh hit after which nothing has to be done; None if there is more to it."""
        if found is None or found.fresh_left <= 0 or (stored := found.stored) is None:
            return None
        rules, value = ask.rules, stored.value  # it was read for this caller alone
        if value is None or stored.kind is not Kind.VALUE or self.audit is not None:
            return None
        if rules.rebuild == "early" or rules.hot is not None:
            return None
        self._events.hit(found.age, absence=False)
        if rules.l1:
            self.filling.keep_found(ask, found, ticket, asked_at)
        return value

    # Where nothing is expected in Redis

    def _count_cold(self, ask: Ask) -> None:
        """Count a question that was in vain, for those that are asked by the same rules."""
        rules, cold = ask.rules, self._cold
        if _served_stale(rules):
            return
        count = cold[id(rules)] = cold.get(id(rules), 0) + 1
        if count >= COLD:
            self._first.add(id(rules))
        if len(cold) > MOST_COLD:
            cold.clear()
            self._first.clear()

    async def _lease_first(self, ask: Ask) -> Stored | None:
        """The value of *ask*, whose lease is asked for first: if there is a value, that is the answer.

        None if this caller has to look for itself.
        """
        found = await self.rebuilding.lease_first(ask, self.kept)
        if isinstance(found, Stored):
            return found
        self._cold.pop(id(ask.rules), None)
        self._first.discard(id(ask.rules))
        if found is None or found.stored is None:
            return None
        self._events.hit(found.age, absence=found.stored.kind is not Kind.VALUE)
        return found.stored

    async def _cut_off(self, ask: Ask) -> Any:
        """The value of *ask* while Redis cannot be asked."""
        stored = self.kept(ask.key, ask.rules)
        if stored is None or not ask.takes(stored):
            stored = await self.rebuilding.rebuild(ask, CUT_OFF)
        return opened(stored, ask.rules)

    # Beside other readers of this process

    def _leases_first(self, ask: Ask) -> bool:
        """True if nothing speaks against asking for the lease of *ask* before its value."""
        return (
            self.audit is None
            and not _served_stale(ask.rules)  # rules that came to be where those were that missed
            and (self.remote.of(ask.key).gate.replicas is None or not ask.rules.l1)
            and not self.shared.alone()
            and self.shared.paused(ask.key, ask.rules, self.runtime) is None
        )

    def _looks_beside(self, ask: Ask) -> bool:
        """True if *ask* may be answered by what another caller of this process asks Redis."""
        return (
            self._shares_looks
            and ask.rules.l1
            and self.audit is None
            and ask.usable is None
            and CHAIN.get() is NO_CHAIN  # else its flight may be the one that waits for this very caller
            and self.runtime.now() < self._local.trusted_until
            and not self.shared.alone()
        )

    async def _read_beside(self, ask: Ask) -> Any:
        """The value of *ask*: one caller of this process looks in Redis, and others wait for what it finds."""
        flight, stored = self.flights.get(ask.key), None
        if flight is not None and flight.cold:
            stored = await self.rebuilding.rebuild(ask, None)
        elif id(ask.rules) in self._first and self._leases_first(ask):
            stored = await self._lease_first(ask)
        return await self._look(ask) if stored is None else opened(stored, ask.rules)

    async def _look(self, ask: Ask) -> Any:
        """The value of *ask*, by a look in Redis, or by that of another caller."""
        here = self.runtime.here()
        # A blocking call inside an event loop stops that loop: it waits for nobody.
        if not self._looks_beside(ask) or (here is not None and here.inside):
            return await self._read(ask)
        stale = self._stale_copy(ask) if ask.rules.revalidate else None
        if stale is not None:
            return opened(stale, ask.rules)
        key, looks, mine = ask.key, self.looks, Look(here)
        look = looks.setdefault(key, mine)
        if look is mine:
            try:
                return await self._read(ask, look)
            finally:
                if looks.get(key) is look:
                    looks.end(key, look)
        if here is None or look.home is None or not look.home.held_up_by(here):
            answer = await self._after(look, ask)
            if answer is not None:
                return opened(answer, ask.rules)
        return await (self._cut_off(ask) if look.cut_off else self._read(ask))

    async def _after(self, look: Look, ask: Ask) -> Stored | None:
        """What may be served when *look* is over; None if this caller has to ask Redis itself."""
        looks, signal = self.looks, self.runtime.signal()
        if looks.wait(ask.key, look, signal):
            try:
                arrived = await self._over(look, signal, ask.rules.wait_timeout)
            except BaseException:
                looks.leave(look, signal)
                if look.flight is not None:
                    self.flights.leave(look.flight)
                raise
            if look.flight is not None:
                return await self._passed_on(look, ask, arrived=arrived)
            if not arrived:
                looks.leave(look, signal)
        entry = self._local.alive(ask.key)
        if entry is not None:
            return stored_of(entry)
        return self._stale_copy(ask) if ask.rules.revalidate else None

    async def _over(self, look: Look, signal: Signal, patience: float | None) -> bool:
        """Wait for *signal*, of *look*; False after *patience* seconds, or if Redis takes longer than it should."""
        first = LONGEST_LOOK if patience is None else min(LONGEST_LOOK, patience)
        if await signal.wait(first):
            return True
        if look.flight is None:
            return False
        return await signal.wait(None if patience is None else patience - first)

    async def _passed_on(self, look: Look, ask: Ask, *, arrived: bool) -> Stored | None:
        """The outcome of the flight that *look* has led to."""
        if not arrived:
            assert look.flight is not None  # noqa: S101 - the caller has looked
            self.flights.leave(look.flight)
            return await self.rebuilding.loaded_alone(ask)
        try:
            answer = await self.rebuilding.passed_on(ask, look)
        except Exception:
            if not look.stale:
                raise
            answer = None  # this caller may have something stale, too
        self._events.misses -= answer is None  # it is counted where it asks for itself
        return answer

    def _stale_copy(self, ask: Ask) -> Stored | None:
        """The stale value of *ask*, if its reload is known to be under way."""
        now = self.runtime.now()
        entry = self.shared.meanwhile.entry(ask.key, now)
        if entry is None or now - entry.common.fresh_until >= ask.rules.revalidate:  # others may allow more
            return None
        self._events.stale_hits += 1
        return stored_of(entry)

    async def _usable(
        self, ask: Ask, found: Found | None, ticket: int, asked_at: float, look: Look | None = None
    ) -> Stored | None:
        """The part of *found* that may be served. Starts a background reload if the policy wants one.

        Under ``rebuild="early"``, one of the hits reloads ahead of time. Who waits for *look* does not wait for that.
        """
        if found is None or found.stored is None:
            return None
        stored, fresh_left = found.stored, found.fresh_left
        verdict, floor = judge(fresh_left, ask.rules.revalidate), None
        if verdict is Verdict.FRESH:
            self._events.hit(found.age, absence=stored.kind is not Kind.VALUE)
            early = ask.rules.rebuild == "early" and fresh_left <= early_by(stored.load_time, self.runtime.random())
            if not early:
                self.filling.keep_found(ask, found, ticket, asked_at)
            if early or self._is_due(ask, stored, fresh_left):
                floor = ms(fresh_left)
        elif verdict is Verdict.REVALIDATE:
            self._events.stale_hits += 1
            floor = 0
            if look is not None:
                self.filling.keep_stale(ask, found, ticket, asked_at)
        else:
            return None
        if floor is not None:
            if look is not None:
                self.looks.end(ask.key, look)
            await self.rebuilding.behind(ask, floor=floor)
        if self.audit is not None and verdict is Verdict.FRESH and stored.kind is Kind.VALUE:
            await self.audit(self, ask, stored.own())
        return stored

    def _is_due(self, ask: Ask, stored: Stored, fresh_left: float) -> bool:
        """Whether the key is hot, and so far in its time that it is reloaded ahead of its end."""
        hot = ask.rules.hot
        return hot is not None and fresh_left <= hot.due_left(stored.ttl) and self._local.share(ask.key) >= hot.share

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


def _served_stale(rules: Rules) -> bool:
    """True if what is stale may have to be served at once: so that is to be found out before a lease is asked for."""
    return bool(rules.revalidate) or rules.soft_timeout is not None or rules.rebuild == "early"
