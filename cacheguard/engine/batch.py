"""Many keys in one loader call: each key keeps its own flight, lease, TTL and absence."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

from ..errors import CacheGuardError, LoadTimeout, Overloaded, Unreachable
from ..protocol.entry import CutOff, Failed, Found, Granted, LeaseOutcome, Stored
from .ask import Ask, Job, opened, servable
from .flights import Flight
from .lifetimes import marker_ms
from .permits import check_nesting
from .reading import Engine
from .rebuilding import Seat

LoadMany = Callable[[list[str]], Any]


class Batch:
    """One `get_or_set_many` under one engine.

    `read` → `_board` → `_lead` → `_lease` → `Loading.run` → `Filling.fill_and_land`. A key leaves the batch and is
    read alone (`Engine.read`, with its own loader) if the batch would have to wait for it: while another process loads
    or writes it, or if the flight that it joined is not proven for this caller.

    Args:
        asks: by key; the loader of an ask loads only that key, if it leaves the batch.
        names: by key, its name for the batch loader.
        load_many: takes the names that are missing, returns a mapping of those that exist.
    """

    def __init__(self, engine: Engine, asks: Mapping[str, Ask], names: Mapping[str, str], load_many: LoadMany) -> None:
        self._engine, self._asks, self._names, self._load_many = engine, asks, names, load_many
        self._events, self._rebuilding = engine.shared.events, engine.rebuilding
        self._first = next(iter(asks.values()))  # rules, codec and scope are those of all
        self._rules = self._first.rules
        self._alone = engine.shared.alone()  # the loaded values are for this caller only
        self._unusable: dict[str, Any] = {}
        self._cut_off: set[str] = set()
        self._stale: dict[str, Stored] = {}  # served by this batch if a load fails; not to other followers

    async def read(self) -> dict[str, Any]:
        """The values of all keys.

        A key that this process is already loading is joined, not loaded again. Round trips: one to read, two more
        (lease, fill) if anything is missing, whatever the number of keys.
        """
        survey = await self._engine.survey(self._asks)
        answers = {key: opened(stored, self._rules) for key, stored in survey.there.items()}
        if survey.missing:
            await self._load_missing(survey.missing, answers)
        self._engine.given(answers.values())
        return answers

    async def _load_missing(self, missing: dict[str, Found | CutOff | None], answers: dict[str, Any]) -> None:
        """Add the values of the keys that are *missing* to *answers*."""
        self._look(missing)
        seats = self._board(missing)
        try:
            await self._lead_mine(seats)
            began = self._engine.runtime.now()
            for key, seat in seats.items():
                answers[key] = await self._arrival(key, seat, began)
        finally:
            for seat in seats.values():
                self._engine.flights.leave(seat.flight)

    async def _lead_mine(self, seats: Mapping[str, Seat]) -> None:
        """Lead the flights that this batch has opened."""
        mine = {key: seat.flight for key, seat in seats.items() if seat.leading and not seat.flight.landed}
        if not mine:
            return
        try:
            await self._engine.runtime.start(self._fly(mine), detached=False)
        except BaseException:
            self._ground(mine)
            raise

    def _look(self, missing: Mapping[str, Found | CutOff | None]) -> None:
        """Record what was found. Raises, before a flight is opened, if one of the keys must not be loaded."""
        check_nesting(missing)
        for key, found in missing.items():
            if isinstance(found, CutOff):
                self._cut_off.add(key)
            elif found is not None and found.stored is None:
                self._unusable[key] = found.unusable
            elif found is not None and found.stored is not None and servable(found, self._rules):
                self._stale[key] = found.stored
            failure = self._engine.shared.paused(key, self._rules, self._engine.runtime)
            if failure is not None and key not in self._stale:
                self._events.backoffs += 1
                try:
                    raise failure
                finally:
                    del failure  # its traceback keeps this frame

    def _board(self, keys: Mapping[str, object]) -> dict[str, Seat]:
        """For each of *keys*, join its flight or open one."""
        runtime, seats = self._engine.runtime, dict[str, Seat]()
        for key in keys:
            self._events.misses += 1
            ask = self._asks[key]
            seat = None if self._alone else self._rebuilding.board(ask)
            if seat is not None and not seat.leading and self._rebuilding.waiting.interrupts(seat.flight, key):
                self._engine.flights.leave(seat.flight)
                seat = None
            if seat is None:  # a private flight, which none joins
                seat = Seat(Flight(runtime.signal(), marks=ask.marks, home=runtime.here(), seats=1), 0, leading=True)
            if seat.leading:
                self._rebuilding.refused(seat.flight, ask)
            seats[key] = seat
        return seats

    async def _arrival(self, key: str, seat: Seat, began: float) -> Any:
        """The outcome of one flight. If it is not proven for this caller, the key is read alone.

        Args:
            key: that it loads.
            seat: of this caller.
            began: when this caller began to wait for all its keys.
        """
        flight, waiting = seat.flight, self._rebuilding.waiting
        try:
            if seat.leading:
                await flight.signal.wait(None)
            elif not await waiting.landed(flight, key, self._rules.wait_timeout, since=began):
                stale = None if waiting.interrupts(flight, key) else self._stale.get(key)
                self._events.stale_hits += stale is not None
                return opened(stale or await self._rebuilding.loaded_alone(self._asks[key]), self._rules)
            if seat.leading or flight.serves(seat.joined_at, anew=False):
                answer = self._rebuilding.outcome(seat, self._stale.get(key))
                if answer is not None:
                    return opened(answer, self._rules)
        except (Overloaded, LoadTimeout) as error:
            if self._rules.fallback is None:
                raise
            return await self._engine.instead(self._rules, error)
        return await self._engine.read(self._asks[key])

    # Leading the flights

    async def _fly(self, flights: dict[str, Flight]) -> None:
        """Lease, load and fill the keys that this batch leads; all their flights end."""
        try:
            await self._lead(flights)
        except Exception as error:  # noqa: BLE001 - it is handed to everybody who waits
            for flight in flights.values():
                flight.fail(error)
        finally:
            self._ground(flights)

    def _ground(self, flights: Mapping[str, Flight]) -> None:
        for key, flight in flights.items():
            self._engine.flights.ground(key, flight)

    async def _lead(self, flights: dict[str, Flight]) -> None:
        loading = self._engine.loading
        # A key that the mapping leaves out is absent. An exception does not belong to one key: it fails all of them.
        rules = replace(self._rules, not_found=())
        job = Job(
            {key: self._asks[key] for key in flights},
            dict(flights),
            rules,
            lambda: self._called(job),
            {},
            row=self._row,
        )
        tokens = {key: self._engine.runtime.token() for key in flights}
        with self._rebuilding.holding(tokens.values()):
            await self._lease(job, tokens)
            loaded = await loading.run(job) if job.flights else None
            if loaded is None:
                return
            if issubclass(type(loaded.value), Mapping):
                await self._engine.filling.fill_and_land(job, loaded, job.rows(loaded.value))
                return
            kind = type(loaded.value).__name__
            error = CacheGuardError(f"the loader of many keys must return a mapping, got {kind}")
            await loading.give_up(job, error)

    def _called(self, job: Job) -> Any:
        """Call the loader for the keys that *job* still has."""
        return self._load_many([self._names[key] for key in job.flights])

    def _row(self, loaded: Any, key: str) -> Any:
        """The value of *key* in what the loader returned; None if it is absent."""
        return loaded.get(self._names[key]) if issubclass(type(loaded), Mapping) else None

    async def _lease(self, job: Job, tokens: dict[str, str]) -> None:
        """Ask Redis for the leases of all keys, and remove from *job* the keys that it does not load. One round trip.

        One loader call serves the keys that got a lease and those whose server is unreachable.
        """
        engine, cut_off = self._engine, self._cut_off
        for flight in job.flights.values():
            flight.leases += 1
        job.ticket, job.asked_at = engine.shared.local.tickets.take(), engine.runtime.now()
        job.unleased(keep=not self._alone)
        wanted = {} if self._alone else {key: token for key, token in tokens.items() if key not in cut_off}
        if not wanted:
            return
        job.asked = {key: engine.shared.tags_before(ask, job.asked_at) for key, ask in job.asks.items()}
        try:
            leases = await engine.remote.lease_many(
                wanted,
                self._first.codec,
                self._first.scope,
                job.asked,
                unusable=self._unusable,
                keep_ms=marker_ms(self._rules),
            )
        except Unreachable:
            return
        useless = {key: wanted[key] for key, lease in leases.items() if self._is_useless(job, key, lease, wanted[key])}
        if useless:
            with suppress(Unreachable):
                await engine.remote.release(useless)

    def _is_useless(self, job: Job, key: str, lease: LeaseOutcome | CutOff, token: str) -> bool:
        """Act on the reply to one lease request; True if the lease was granted and must be given back."""
        engine = self._engine
        if isinstance(lease, CutOff):
            return False
        if isinstance(lease, Granted) and job.granted(key, lease):
            job.tokens[key] = token
            return False
        if isinstance(lease, Found) and lease.stored is not None:
            engine.filling.land_found(job, key, lease)
        elif isinstance(lease, Failed):
            stale = key in self._stale
            self._rebuilding.fail_as_elsewhere(job.flights[key], job.asks[key], lease, stale=stale, waited=False)
        # Without a landing, it is loaded elsewhere, being written, or not readable here: it is read alone.
        engine.flights.ground(key, job.leave(key))
        return isinstance(lease, Granted)
