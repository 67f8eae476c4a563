"""The way of a read and the way of a write, once for threads and event loops."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .defenses.avalanche import jittered
from .defenses.breakdown import Verdict, early_by, judge, poll_delay
from .envelope import Kind
from .errors import LoadFailed, LoadTimeout, Overloaded, ReentrantLoad, Unreachable
from .flights import CHAIN, NO_CHAIN, Flight, Shared
from .loading import Ask, Job, Loading
from .tiers.exceptions import absence, rebuilt
from .tiers.local import Entry
from .tiers.remote import ALWAYS, Bypass, Failed, Found, Granted, Remote, Stored, Wait, ms

if TYPE_CHECKING:
    from .codec import Codec
    from .policy import Rules
    from .ports import Runtime

RETRIES = 3  # reads of a follower whose flight proved nothing, before it loads for itself


@dataclass(frozen=True, slots=True)
class Survey:
    """What Redis holds for several keys."""

    there: dict[str, Stored]
    missing: dict[str, Found | None]
    cut_off: bool  # Redis could not be asked


class Engine:
    """Reads and writes under one runtime.

    A read goes `read` → `Remote.read` → `judge` → `_rebuild` → `_lead` → `Remote.lease` → the loader → `Remote.fill`.
    """

    def __init__(self, runtime: Runtime, remote: Remote, shared: Shared) -> None:
        self.runtime, self.remote, self.shared = runtime, remote, shared
        self.flights: dict[str, Flight] = {}
        shared.flights.append(self.flights)
        self.loading = Loading(runtime, remote, shared, self.flights)
        self._local, self._events = shared.local, shared.events

    async def read(self, ask: Ask) -> Any:
        """The value of *ask*, after the in-process tier had no answer."""
        ticket, asked_at = self._local.tickets.take(ask.key), self.runtime.now()
        try:
            found = await self.remote.read(ask.key, ask.codec)
        except Unreachable:
            return await self._read_without_redis(ask)
        stored = await self._usable(ask, found, ticket, asked_at)
        return await self.rebuild(ask, found) if stored is None else opened(stored, ask.rules)

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
            await self._refresh_behind(ask, floor=0)
            return found.stored
        return None

    async def _serve_fresh(self, ask: Ask, stored: Stored, fresh_left: float, ticket: int, asked_at: float) -> None:
        """A hit in Redis; under ``rebuild="early"`` one of them reloads ahead of time."""
        self._events.l2_hits += 1
        self._events.null_hits += stored.kind is not Kind.VALUE
        if ask.rules.rebuild == "early" and fresh_left <= early_by(stored.load_time, self.runtime.random()):
            await self._refresh_behind(ask, floor=ms(fresh_left))
        else:
            self.keep(ask.key, stored, ask.rules, fresh_left, ticket, asked_at)

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
            if beyond < max(ask.rules.if_error, 0.0):
                self._events.stale_hits += beyond >= 0
                return opened(stored_of(entry), ask.rules)
        return await self.rebuild(ask, None, cut_off=True)

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
                self.keep(key, each.stored, rules, each.fresh_left, ticket, asked_at)
                answers[key] = each.stored, False
            elif verdict is Verdict.REVALIDATE:
                self._events.stale_hits += 1
                answers[key] = each.stored, True
        return answers

    async def look(self, key: str, codec: Codec | None) -> Found | None:
        """What Redis holds for *key*, for inspection: no hit is counted. None if Redis cannot be asked."""
        try:
            return await self.remote.read(key, codec)
        except Unreachable:
            return None

    async def refresh(self, ask: Ask) -> Any:
        """Load anew, whatever is cached; the answer comes from a load that began after this call."""
        return await self.rebuild(ask, None, anew=True)

    async def _refresh_behind(self, ask: Ask, *, floor: int) -> None:
        """Start a rebuild that nobody waits for, unless one is under way."""
        if ask.key in self.flights or self.loading.paused(ask.key, ask.rules) is not None:
            return
        flight = Flight(self.runtime.signal())
        if self.flights.setdefault(ask.key, flight) is not flight:
            return
        if await self.runtime.start(self._fly(flight, ask, None, floor=floor, behind=True), detached=True):
            self._events.refreshes += 1
        else:
            self.loading.retire(ask.key, flight)
            flight.abandon()

    async def rebuild(self, ask: Ask, found: Found | None, *, anew: bool = False, cut_off: bool = False) -> Any:
        """Join the flight of this key or lead one.

        *found* may be served if that goes wrong; if it cannot be read here, whatever is stored gets replaced.
        """
        self._events.misses += 1
        floor = ALWAYS if anew or (found is not None and found.stored is None) else 0
        if ask.key in CHAIN.get().keys:
            raise ReentrantLoad(f"the loader of {ask.key} reads the key that it is loading")
        stale = found if found is not None and self.loading.servable(ask.rules, found) else None
        failure = None if anew else self.loading.paused(ask.key, ask.rules)
        if failure is not None:
            if stale is not None:
                return self._stale(ask, stale)
            self._events.backoffs += 1
            raise failure.error.with_traceback(failure.traceback)
        for _ in range(RETRIES):
            flight = Flight(self.runtime.signal(), anew=anew)
            current = self.flights.setdefault(ask.key, flight)
            joined_at, leading = current.leases, current is flight
            if leading:
                await self._launch(flight, ask, stale, floor=floor, cut_off=cut_off)
            else:
                self._events.shared += 1
            if not await self._arrived(current, ask, stale, leading=leading):
                return await self._leave(ask, stale)
            if leading and current.loaded is not None:
                return opened(current.loaded, ask.rules)
            if leading or current.serves(joined_at, anew=anew):
                if current.error is not None:
                    raise current.error
                if current.answer is not None:
                    return opened(current.answer, ask.rules)
            elif not anew and not cut_off:
                again = await self.peek([ask.key], ask.codec, ask.rules)
                if again:
                    return opened(again[ask.key][0], ask.rules)
        return await self._load_alone(ask)

    async def _launch(self, flight: Flight, ask: Ask, stale: Found | None, *, floor: int, cut_off: bool) -> None:
        """Lead *flight*, in a thread of its own if its caller may leave early with a stale value."""
        early_exit = stale is not None and ask.rules.soft_timeout is not None
        if not await self.runtime.start(
            self._fly(flight, ask, stale, floor=floor, cut_off=cut_off), detached=early_exit
        ):
            self.loading.retire(ask.key, flight)
            flight.fail(Overloaded("too many loads run behind their callers already"))

    async def _arrived(self, flight: Flight, ask: Ask, stale: Found | None, *, leading: bool) -> bool:
        """Wait for *flight*; false if this caller's patience ended first."""
        limits = [] if leading or ask.rules.wait_timeout is None else [ask.rules.wait_timeout]
        if stale is not None and ask.rules.soft_timeout is not None:
            limits.append(ask.rules.soft_timeout)
        return await flight.signal.wait(min(limits, default=None))

    async def _leave(self, ask: Ask, stale: Found | None) -> Any:
        """What a caller gets that waits no longer."""
        return await self._load_alone(ask) if stale is None else self._stale(ask, stale)

    async def _load_alone(self, ask: Ask) -> Any:
        """Load for this caller only and fill nothing."""
        flight = Flight(self.runtime.signal())
        await self.runtime.start(self._fly(flight, ask, None, floor=0, alone=True), detached=False)
        await flight.signal.wait(None)
        answer = flight.loaded or flight.answer
        if answer is not None:
            return opened(answer, ask.rules)
        raise flight.error or LoadFailed(f"the load of {ask.key} was cancelled")

    async def _fly(
        self,
        flight: Flight,
        ask: Ask,
        stale: Found | None,
        *,
        floor: int,
        cut_off: bool = False,
        behind: bool = False,
        alone: bool = False,
    ) -> None:
        """Lead *flight*; whatever happens, nobody is left waiting."""
        reset = CHAIN.set(NO_CHAIN) if behind else None
        try:
            if alone or cut_off:
                await self._load_unleased(flight, ask, stale, self._local.tickets.take(ask.key), keep=cut_off)
            else:
                await self._lead(flight, ask, stale, floor)
        except Exception as error:  # noqa: BLE001 - it is handed to everybody who waits
            flight.fail(error)
        finally:
            if reset is not None:
                CHAIN.reset(reset)
            self.loading.retire(ask.key, flight)
            if not flight.landed:
                flight.abandon()

    async def _lead(self, flight: Flight, ask: Ask, stale: Found | None, floor: int) -> None:
        """Get the right to fill and load, or the answer of whoever has that right."""
        token, awaited, waiting_since = self.runtime.token(), "", None
        while True:
            flight.leases += 1
            ticket, asked_at = self._local.tickets.take(ask.key), self.runtime.now()
            try:
                lease = await self.remote.lease(ask.key, ask.codec, token, floor, awaited)
            except Unreachable:
                return await self._load_unleased(flight, ask, stale, ticket, keep=True)
            match lease:
                case Granted():
                    return await self._load_and_fill(flight, ask, lease.found or stale, token, ticket)
                case Found(stored=None):
                    floor = ALWAYS
                    continue
                case Found():
                    self.keep(ask.key, lease.stored, ask.rules, lease.fresh_left, ticket, asked_at)
                    return flight.land(lease.stored, proven=False)
                case Bypass():
                    return await self._load_unleased(flight, ask, None, ticket, keep=False)
                case Failed():
                    return await self._failed_elsewhere(flight, ask, stale, lease, ticket)
                case Wait():
                    pass
            if waiting_since is None:
                waiting_since = asked_at
                self._events.waits += 1
            waited = self.runtime.now() - waiting_since
            if await self._waited_enough(flight, ask, lease, waited, ticket):
                return None
            awaited, floor = lease.holder, floor if flight.anew else 0
            await self.runtime.sleep(poll_delay(waited, self.runtime.random()))

    async def _waited_enough(self, flight: Flight, ask: Ask, lease: Wait, waited: float, ticket: int) -> bool:
        """Whether the wait for another process ends here, as the policy says."""
        rules, found = ask.rules, lease.found
        if found is not None and found.stored is not None and -found.fresh_left < rules.revalidate:
            self._events.stale_hits += 1
            flight.land(found.stored, proven=False)
        elif rules.wait_timeout is not None and waited >= rules.wait_timeout:
            await self._load_unleased(flight, ask, None, ticket, keep=False)
        elif rules.hard_timeout is not None and waited >= rules.hard_timeout:
            self._events.load_timeouts += 1
            flight.fail(LoadTimeout(f"waited {waited:.1f} s for another process to load {ask.key}"))
        else:
            return False
        return True

    async def _failed_elsewhere(
        self, flight: Flight, ask: Ask, stale: Found | None, lease: Failed, ticket: int
    ) -> None:
        """The load that this flight waited for has raised: so does this one, if that can be said with its own words."""
        error = None if lease.stored is None else rebuilt(lease.stored.value)
        if stale is not None and stale.stored is not None:
            self._events.stale_hits += 1
            flight.land(stale.stored, proven=False)
        elif error is not None:
            flight.fail(error)
        else:
            await self._load_unleased(flight, ask, None, ticket, keep=False)

    async def _load_unleased(self, flight: Flight, ask: Ask, stale: Found | None, ticket: int, *, keep: bool) -> None:
        """Load without the right to fill; with *keep*, L1 takes the value, since Redis cannot be asked."""
        loaded = await self.loading.run(_job(flight, ask, {}, stale))
        if loaded is None:
            return
        began = self.runtime.now()
        self.loading.retire(ask.key, flight)
        stored = self.loading.stored(loaded, ask.tags)
        ttl = self.loading.drawn_ttl(ask.key, ask.rules, stored) if keep else None
        kept = ttl is not None and self.keep(ask.key, stored, ask.rules, ttl, ticket, began)
        self.land(flight, stored, proven=kept)

    async def _load_and_fill(self, flight: Flight, ask: Ask, stale: Found | None, token: str, ticket: int) -> None:
        loaded = await self.loading.run(_job(flight, ask, {ask.key: token}, stale))
        if loaded is None:
            return
        began = self.runtime.now()
        stored = self.loading.stored(loaded, ask.tags)
        ttl = self.loading.drawn_ttl(ask.key, ask.rules, stored)
        envelope = None if ttl is None else self.loading.packed(ask.key, stored, ttl, ask.codec)
        self.loading.retire(ask.key, flight)
        try:
            if ttl is None or envelope is None:
                filled = await self.remote.release({ask.key: token})
            else:
                filled = await self.remote.fill(ask.key, token, envelope, ttl, stale_window(stored, ask.rules))
                self._events.fills += filled
                self._events.fills_refused += not filled
        except Unreachable:
            self._events.fills_failed += 1
            filled = False
        if filled and ttl is not None:
            self.keep(ask.key, stored, ask.rules, ttl, ticket, began)
        self.land(flight, stored, proven=filled)

    def land(self, flight: Flight, stored: Stored, *, proven: bool) -> None:
        """Give *stored* to those who wait."""
        if flight.landed:  # those who waited had to be told something else: the load took too long
            flight.loaded = stored
        flight.land(stored, proven=proven)

    def keep(self, key: str, stored: Stored, rules: Rules, fresh_left: float, ticket: int, asked_at: float) -> bool:
        """Keep *stored* in L1; false if the key was invalidated since the ticket was taken."""
        if not rules.l1:
            return self._local.tickets.take(key) == ticket
        fresh_until = asked_at + fresh_left
        until = min(fresh_until, asked_at + rules.l1_ttl)
        if rules.rebuild == "early":
            until = min(until, fresh_until - early_by(stored.load_time, self.runtime.random()))
        entry = Entry(
            key,
            stored.value,
            kind=stored.kind,
            until=until,
            fresh_until=fresh_until,
            born=fresh_until - (stored.ttl or fresh_left),
            tags=stored.tags,
        )
        return self._local.put(entry, ticket, absence=stored.kind is not Kind.VALUE)

    def _stale(self, ask: Ask, stale: Found) -> Any:
        self._events.stale_hits += 1
        assert stale.stored is not None  # noqa: S101 - `rebuild` lets no other through
        return opened(stale.stored, ask.rules)

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
        """Give a fresh entry its TTL anew; whether there was one. One round trip."""
        fresh = jittered(rules.ttl_of(None), rules.jitter, self.runtime.random())
        try:
            return await self.remote.touch(key, fresh, rules.stale)
        finally:
            self.shared.drop([key])


def _job(flight: Flight, ask: Ask, tokens: dict[str, str], stale: Found | None) -> Job:
    return Job({ask.key: flight}, ask.rules, ask.load, tokens, {} if stale is None else {ask.key: stale})


def stale_window(stored: Stored, rules: Rules) -> float:
    """How long after its TTL *stored* is kept, in seconds. An absence is not: it may never stand in for a row."""
    return rules.stale if stored.kind is Kind.VALUE else 0.0


def stored_of(entry: Entry) -> Stored:
    """The entry of the in-process tier as the engine knows it."""
    return Stored(Kind(entry.kind), entry.value, 0.0, 0.0, entry.tags)


def opened(stored: Stored, rules: Rules) -> Any:
    """The value inside, or the absence raised as the loader would."""
    if stored.kind is Kind.ERROR:
        raise absence(stored.value, rules.not_found)
    return stored.value
