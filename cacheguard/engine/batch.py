"""Many keys, one loader call: each key keeps its own flight, lease, TTL and absence."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

from ..errors import CacheGuardError, ReentrantLoad, Refused, Unreachable
from ..policy import Rules
from ..tiers.remote import CutOff, Fill, Filled, Found, Granted, Stored
from .ask import Ask, Job, Loaded, opened, tags_of
from .flights import Flight
from .lifetimes import marker_ms, stale_window
from .permits import CHAIN
from .reading import Engine
from .rebuilding import STORED

LoadMany = Callable[[list[str]], Any]


class Batch:
    """One `get_or_set_many` under one engine.

    Args:
        asks: by key; an ask's own loader loads just that key, for keys that need a way of their own.
        names: by key, what the batch loader calls it.
        load_many: takes the names that are missing, returns a mapping of those that exist.
    """

    def __init__(self, engine: Engine, asks: Mapping[str, Ask], names: Mapping[str, str], load_many: LoadMany) -> None:
        self._engine, self._asks, self._names, self._load_many = engine, asks, names, load_many
        self._rules: Rules = next(iter(asks.values())).rules
        self._ticket = 0
        self._granted: dict[str, Granted] = {}
        self._voids: dict[str, Any] = {}
        self._cut_off: frozenset[str] = frozenset()
        self._alone = engine.shared.alone()  # nobody else may see what is loaded here
        self._brief: set[str] = set()  # stored until the end of a quarantine; not for the in-process tier
        self._stale: dict[str, Stored] = {}  # what this batch may serve where a load fails; not for others who joined

    async def read(self) -> dict[str, Any]:
        """The values of all keys.

        Keys that are in flight elsewhere in this process are joined, not loaded again. Round trips: one to read, two
        more (lease, fill) if anything is missing, whatever the number of keys.
        """
        survey = await self._engine.survey(self._asks)
        answers = {key: opened(stored, self._rules) for key, stored in survey.there.items()}
        if not survey.missing:
            return answers
        self._cut_off = survey.cut_off
        mine, joined = self._board(survey.missing)
        if mine:
            try:
                await self._engine.runtime.start(self._fly(mine), detached=False)
            except BaseException:
                self._land_all(mine)
                raise
        for key, (flight, joined_at) in joined.items():
            answers[key] = await self._arrival(key, flight, joined_at, leading=key in mine)
        return answers

    def _board(self, missing: dict[str, Found | None]) -> tuple[dict[str, Flight], dict[str, tuple[Flight, int]]]:
        """Flights for the missing keys: those that this batch leads, and all of them with the moment of joining."""
        engine = self._engine
        for key, found in missing.items():
            if CHAIN.get().waits_for(key):
                raise ReentrantLoad(f"the loader of {key} reads the key that it is loading")
            failure = engine.loading.paused(key, self._rules)
            if failure is not None and not self._stands_in(found):
                engine.shared.events.backoffs += 1
                raise failure
        here = engine.runtime.here()
        mine: dict[str, Flight] = {}
        joined: dict[str, tuple[Flight, int]] = {}
        for key, stale in missing.items():
            engine.shared.events.misses += 1
            flight = Flight(engine.runtime.signal(), marks=self._asks[key].marks, here=here)
            current = flight if self._alone else engine.flights.setdefault(key, flight)
            if current.waits_for_me(here):
                current = flight  # apart
            joined[key] = current, current.leases
            if stale is not None and stale.stored is not None and self._stands_in(stale):
                self._stale[key] = stale.stored
            if stale is not None and stale.stored is None:
                self._voids[key] = stale.void
            if current is not flight:
                engine.shared.events.shared += 1
            elif (failure := engine.loading.paused(key, self._rules)) is None:
                mine[key] = flight
            else:  # another flight has failed since this call looked
                engine.loading.retire(key, flight)
                flight.fail(failure)
        return mine, joined

    def _stands_in(self, stale: Found | None) -> bool:
        return stale is not None and self._engine.loading.servable(self._rules, stale)

    async def _arrival(self, key: str, flight: Flight, joined_at: int, *, leading: bool) -> Any:
        """The outcome of one flight, or the key's own way if that flight proves nothing to this caller."""
        await flight.signal.wait(None if leading else self._rules.wait_timeout)
        if flight.landed and (leading or flight.serves(joined_at, anew=False)):
            if leading and flight.loaded is not None:
                return opened(flight.loaded, self._rules)
            if flight.error is not None and key in self._stale:
                self._engine.shared.events.stale_hits += 1
                return opened(self._stale[key], self._rules)
            if flight.error is not None:
                return await self._engine.instead(self._rules, flight.raised(flight.error))
            if flight.answer is not None:
                return opened(flight.answer, self._rules)
        return await self._engine.read(self._asks[key])

    async def _fly(self, flights: dict[str, Flight]) -> None:
        """Lease, load and fill the keys that this batch leads; nobody is left waiting."""
        try:
            await self._lead(flights)
        except Exception as error:  # noqa: BLE001 - it is handed to everybody who waits
            for flight in flights.values():
                flight.fail(error)
        finally:
            self._land_all(flights)

    def _land_all(self, flights: Mapping[str, Flight]) -> None:
        for key, flight in flights.items():
            self._engine.loading.retire(key, flight)
            if not flight.landed:
                flight.abandon()

    async def _lead(self, flights: dict[str, Flight]) -> None:
        with self._engine.rebuilding.tokens(len(flights)) as tokens:
            await self._led(flights, dict(zip(flights, tokens, strict=True)))

    async def _led(self, flights: dict[str, Flight], tokens: dict[str, str]) -> None:
        engine, stale = self._engine, dict[str, Found]()
        for flight in flights.values():
            flight.leases += 1
        self._ticket = engine.shared.local.tickets.take()
        asked_at = engine.runtime.now()
        cut_off = {key for key in flights if key in self._cut_off}
        if self._alone or len(cut_off) == len(flights):
            await self._load(flights, {}, stale, keep=not self._alone)
            return
        try:
            first = next(iter(self._asks.values()))
            leases = await engine.remote.lease_many(
                {key: token for key, token in tokens.items() if key not in cut_off},
                first.codec,
                first.scope,
                {key: self._asks[key].tags for key in flights},
                voids=self._voids,
                keep_ms=marker_ms(self._rules),
            )
        except Unreachable:
            await self._load(flights, {}, stale, keep=True)
            return
        useless: dict[str, str] = {}
        for key, lease in leases.items():
            if isinstance(lease, CutOff):
                cut_off.add(key)
            elif not self._follow(key, flights[key], lease, stale, asked_at) and isinstance(lease, Granted):
                useless[key] = tokens[key]
        if useless:
            with suppress(Unreachable):
                await engine.remote.release(useless)
        mine = {key: flight for key, flight in flights.items() if key in self._granted or key in cut_off}
        if mine:  # one call of the loader for those that have a lease and those for which nobody can be asked
            held = {key: tokens[key] for key in mine if key in self._granted}
            await self._load(mine, held, stale, keep=True)

    def _follow(self, key: str, flight: Flight, lease: object, stale: dict[str, Found], asked_at: float) -> bool:
        """Do what Redis answered to the question for one lease; whether that key stays with this batch."""
        ask, engine = self._asks[key], self._engine
        if isinstance(lease, Granted) and lease.covers(ask.scope.markers(ask.tags)):
            self._granted[key] = lease
            if lease.found is not None and self._stands_in(lease.found):
                stale[key] = lease.found
            return True
        if isinstance(lease, Found) and lease.stored is not None:
            engine.rebuilding.keep(ask, lease.stored, lease.fresh_left, self._ticket, asked_at)
            flight.land(lease.stored, proven=False)
            return True
        # Loaded elsewhere, being written, or not readable here: that key goes its own way.
        engine.loading.retire(key, flight)
        flight.abandon()
        return False

    async def _load(
        self, flights: dict[str, Flight], tokens: dict[str, str], stale: dict[str, Found], *, keep: bool
    ) -> None:
        names = [self._names[key] for key in flights]
        job = Job(flights, replace(self._rules, not_found=()), lambda: self._load_many(names), tokens, stale)
        loaded = await self._engine.loading.run(job)
        if loaded is None:
            return
        if not isinstance(loaded.value, Mapping):
            error = CacheGuardError(f"the loader of many keys must return a mapping, got {type(loaded.value).__name__}")
            await self._engine.loading.give_up(job, error)
            return
        await self._fill(job, loaded, keep=keep)

    async def _fill(self, job: Job, loaded: Loaded, *, keep: bool) -> None:
        engine, loading = self._engine, self._engine.loading
        began = engine.runtime.now()
        marks = await self._marks(job, loaded)
        fills: list[Fill] = []
        held: dict[str, str] = {}
        outcome: dict[str, tuple[Stored, float | None]] = {}
        for key in job.flights:
            ask = self._asks[key]
            one = Loaded(loaded.value.get(self._names[key]), None, loaded.seconds, loaded.load)
            stored = loading.stored(one, tags_of(ask, loaded))
            version = loading.version_of(ask, stored)
            may = version is not None and (key in marks or (keep and key not in job.tokens))
            ttl = loading.drawn_ttl(key, self._rules, stored, loaded.load) if may else None
            outcome[key] = stored, ttl
            if key not in job.tokens:
                continue
            of_key = marks.get(key, {})
            stored.nonces = tuple(of_key.values())
            envelope = None if ttl is None else loading.packed(key, stored, ttl, ask.codec)
            if ttl is None or envelope is None:
                held[key] = job.tokens[key]
                continue
            if stored.tags != ask.tags:
                engine.remote.learn(key, stored.tags)
            window = stale_window(stored, self._rules)
            settles = self._granted[key].settles_within(of_key, loaded.seconds)
            if settles is not None:
                ttl, window = min(ttl, settles), 0.0
                self._brief.add(key)
            fills.append(
                Fill(key, job.tokens[key], envelope, ttl, window, version or "", tuple(of_key), tuple(of_key.values()))
            )
        for key, flight in job.flights.items():
            loading.retire(key, flight)
        proven = await self._send(fills, held, marks)
        for key, flight in job.flights.items():
            stored, ttl = outcome[key]
            kept_for = None if key in self._brief else ttl
            sure = proven.get(key, keep) and engine.rebuilding.keep_or_check(
                self._asks[key], stored, kept_for, self._ticket, began
            )
            engine.rebuilding.land(flight, stored, loaded, proven=sure)

    async def _marks(self, job: Job, loaded: Loaded) -> dict[str, dict[str, bytes]]:
        """By key, what its markers said when the load began; without keys of which that cannot be known any more."""
        rebuilding, marks = self._engine.rebuilding, dict[str, dict[str, bytes]]()
        for key in job.tokens:
            ask = self._asks[key]
            with suppress(Unreachable):
                found = await rebuilding.marks_of(ask, tags_of(ask, loaded), self._granted[key])
                if found is not None:
                    marks[key] = found
        return marks

    async def _send(
        self, fills: Sequence[Fill], held: dict[str, str], marks: Mapping[str, Mapping[str, bytes]]
    ) -> dict[str, bool]:
        """Store what can be stored and give the other leases back; which keys were not invalidated meanwhile."""
        engine, events = self._engine, self._engine.shared.events
        proven = dict.fromkeys([*held, *(fill.key for fill in fills)], False)
        try:
            if fills:
                for fill, filled in zip(fills, await engine.remote.fill_many(fills), strict=True):
                    proven[fill.key] = engine.rebuilding.counted(filled) in STORED
                    if filled is Filled.BRIEFLY:
                        self._brief.add(fill.key)
            for group in engine.remote.groups(held) if held else []:
                said = {marker: nonce for key in group for marker, nonce in marks.get(key, {}).items()}
                still = await engine.remote.release({key: held[key] for key in group}, None, said)
                proven |= {key: still and key in marks for key in group}
        except Refused:  # a full server: nobody shall wait for leases that nothing comes of
            events.fills_failed += len(proven)
            with suppress(Unreachable):
                await engine.remote.release({fill.key: fill.token for fill in fills} | held)
        except Unreachable:
            events.fills_failed += len(proven)
        return proven
