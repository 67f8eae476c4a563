"""Fills: store a loaded value, and land the flight by the reply of Redis. For one key, and for many.

draft → retire the flight → the markers of late tags → FILL, or the lease back → L1 → land

    reader:  takes a ticket, leases ... loads "old" ................. FILL refused: lands, but proves nothing
    writer:                                           invalidates

Three decisions are independent. Redis takes the value if the lease still stands. L1 takes it if the ticket still
holds: an invalidation that has reached this process makes it void. A follower that joined after the lease may share it
if the fill was accepted: only this proves that nothing was invalidated between lease and fill.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..defenses.avalanche import jittered
from ..defenses.breakdown import early_by
from ..defenses.consistency import version_text
from ..delivery.outbox import Invalidation
from ..errors import CodecError, Refused, Unreachable
from ..protocol.entry import Fill, Filled, Found, Granted, Stored
from ..protocol.envelope import Kind, Oversize
from ..protocol.exceptions import describe
from ..tiers.entries import Entries
from .ask import Ask, Job, Loaded
from .flights import Flights
from .lifetimes import marker_ms, stale_window, ttl_of
from .shared import Shared

if TYPE_CHECKING:
    from ..current_load import Load
    from ..ports import Runtime

AGAIN = 1.0  # seconds that L1 holds a hot entry whose reload is due
STORED = (Filled.STORED, Filled.BRIEFLY)


@dataclass(slots=True)
class Draft:
    """The result of a load for one key, and the outcome of its fill."""

    ask: Ask
    stored: Stored
    ttl: float | None  # seconds; None: it must not be cached
    version: str
    marks: dict[str, bytes] | None = None  # nonces of the markers when the load began; None: unknown
    filled: Filled = Filled.REFUSED
    left_out: bool = False  # Redis has not taken it, and may still have the value before


class Filling:
    """Stores the results of loads, under one runtime. The only entry point is `fill_and_land`."""

    def __init__(self, runtime: Runtime, remote: Entries, shared: Shared, flights: Flights) -> None:
        self._runtime, self._remote, self._shared, self._flights = runtime, remote, shared, flights
        self._local, self._events = shared.local, shared.events

    async def fill_and_land(self, job: Job, loaded: Loaded, values: Mapping[str, Any] | None = None) -> bool:
        """Store the *loaded* value and land the flights of *job*. A loader of several keys gives *values* by key.

        True if nothing landed and the job must run again: its value, for one key, is older than the version floor.
        Round trips: one, for the fill; one more for each key to which the loader gave a tag that this process sees for
        the first time; one for the leases of what is not stored.
        """
        began = self._runtime.now()
        drafts: list[Draft] = []
        anew = False
        for key, flight in job.flights.items():
            drafts.append(self._draft(job, job.asks[key], loaded, loaded.value if values is None else values[key]))
            flight.absence, anew = loaded.absence, anew or flight.anew
            self._flights.retire(key, flight)  # none may join once a fill is on its way
        if job.tokens:
            await self._store(job, drafts, loaded.load)
            if drafts[0].filled is Filled.OLD and values is None and loaded.load.asked_for and not job.primary:
                return True
        if anew:
            await self._replaced(job, drafts)
        for draft in drafts:
            self._land(job, draft, loaded, began)
        return False

    # Deciding what to store

    def _draft(self, job: Job, ask: Ask, loaded: Loaded, value: Any) -> Draft:
        """The draft of *value*: what is kept, for how long and under which version; no bytes yet."""
        tags = loaded.tags_for(ask)
        if loaded.absence is not None:
            what = describe(loaded.absence)
            stored = Stored(Kind.ERROR, what, 0.0, loaded.seconds, tags)
            if not what.whole:
                self._events.unencodable += 1
                self._events.once(
                    f"absence {what.name}", "%s is not cached: a %s cannot be made anew as it is", ask.key, what.name
                )
                return Draft(ask, stored, None, "")
        else:
            stored = Stored(Kind.ABSENT if value is None else Kind.VALUE, value, 0.0, loaded.seconds, tags)
            if not self._has_copies(ask, stored):
                return Draft(ask, stored, None, "")
        if ask.key not in job.tokens and not job.keep:  # no tier may take it
            return Draft(ask, stored, None, "")
        version = "" if ask.version is None else self._version_of(ask.version, ask, stored)
        ttl = None if version is None else self._drawn_ttl(ask, stored, loaded.load)
        return Draft(ask, stored, ttl, version or "")

    def _has_copies(self, ask: Ask, stored: Stored) -> bool:
        """Let callers get copies of *stored*, with ``l1_copy``; False if there are none, so that no tier takes it."""
        copier = self._shared.copier
        if copier is None or stored.kind is not Kind.VALUE:
            return True
        try:
            stored.master = copier.master(stored.value, ask.codec)
        except CodecError as error:
            self._events.unencodable += 1
            self._events.once(f"copy {type(stored.value)}", "%s is not cached: l1_copy=True, and %s", ask.key, error)
            return False
        return True

    def _version_of(self, version: Callable[[Any], Any], ask: Ask, stored: Stored) -> str | None:
        """The result of the user's function *version* for the loaded value; None if it cannot be used."""
        if stored.kind is not Kind.VALUE:
            return ""
        try:
            return version_text(version(stored.value))
        except Exception as error:  # noqa: BLE001 - the user's function; a bad answer must not cost the value
            self._events.unencodable += 1
            self._events.once("version", "version(value) failed, %s is not cached: %r", ask.key, error)
            return None

    def _drawn_ttl(self, ask: Ask, stored: Stored, load: Load) -> float | None:
        """The seconds for which *stored*, the result of *load*, is fresh; None if it must not be cached."""
        rules = ask.rules
        if not load.kept:
            return None
        if stored.kind is Kind.VALUE:
            try:
                ttl = ttl_of(rules, stored.value, self._events)
            except Exception as error:  # noqa: BLE001 - the user's function; a bad answer must not cost the value
                self._events.unencodable += 1
                self._events.once("ttl", "ttl(value) failed, %s is not cached: %r", ask.key, error)
                return None
        elif rules.null_ttl is None:
            return None
        else:
            ttl = rules.null_ttl
            with self._local.lock:
                room = self._shared.budget.take(self._runtime.now(), ttl)
            if not room:
                self._events.absences_over_budget += 1
                return None
        return jittered(ttl, rules.jitter, self._runtime.random())

    # Storing in Redis

    async def _store(self, job: Job, drafts: Sequence[Draft], load: Load) -> None:
        """Fill the drafts that may be cached, give the other leases back, and record the outcome in each draft."""
        fills: list[Fill] = []
        filled: list[Draft] = []
        held: dict[str, Draft] = {}
        for draft in drafts:
            key = draft.ask.key
            lease = job.leases.get(key)
            if lease is None:
                continue
            try:
                draft.marks = await self._marks_of(draft, lease)
            except Unreachable as error:
                draft.left_out = True
                await self._not_filled(job, [key], error)
                continue
            fill = None if draft.marks is None else self._fill(job, draft, lease, draft.marks)
            if fill is None:
                draft.left_out = True
                held[key] = draft
            else:
                fills.append(fill)
                filled.append(draft)
        try:
            if fills:
                for draft, outcome in zip(filled, await self._remote.fill_many(fills), strict=True):
                    self._count(draft, outcome)
                    load.stored = load.stored or outcome in STORED
            if held:
                await self._give_back(job, held)
        except Unreachable as error:
            for draft in filled:
                draft.left_out = True
            await self._not_filled(job, [*held, *(draft.ask.key for draft in filled)], error)
        values = {draft.ask.key for draft in filled if draft.filled in STORED and draft.stored.kind is Kind.VALUE}
        self._count_markers(job, [draft for draft in drafts if draft.ask.key not in values], self._runtime.now())

    def _count(self, draft: Draft, outcome: Filled) -> None:
        draft.filled, draft.left_out = outcome, outcome is Filled.FAILED
        self._events.fills += outcome in STORED
        self._events.fills_refused += outcome is Filled.REFUSED
        self._events.fills_old += outcome is Filled.OLD
        self._events.fills_failed += outcome is Filled.FAILED

    def _count_markers(self, job: Job, drafts: Sequence[Draft], now: float) -> None:
        """Count the markers of *drafts*, of which none has stored a value."""
        for draft in drafts:
            lease = job.leases.get(draft.ask.key)
            if lease is not None:
                # The markers of late tags end at once, unless they were claimed to store something.
                made = lease.marks if draft.ttl is None or draft.marks is None else draft.marks
                self._shared.left_behind(draft.ask, made, now)

    async def _marks_of(self, draft: Draft, lease: Granted) -> dict[str, bytes] | None:
        """The nonces of the entry's markers when its load began; None if they are no longer known.

        The lease has answered them for the markers known then. A tag that the loader has added is claimed now:

        leader:  leases ... loads "old", adds tag "red" ............................. claims "red": refused
        writer:                                        commits "new", invalidates "red"

        Without the claim, the entry would carry the nonce of after the invalidation, and stand.
        """
        ask, tags = draft.ask, draft.stored.tags
        markers = ask.scope.markers(tags)
        marks: dict[str, Any] = dict(zip(markers, map(lease.marks.get, markers), strict=True))
        if None in marks.values():
            late = [tag for tag in tags if marks[ask.scope.tag(tag)] is None]
            # Under a marker that only proves something, nothing is stored: it ends at once.
            keep_ms = 1 if draft.ttl is None else marker_ms(ask.rules)
            claimed = await self._remote.of(ask.key).markers.claim(ask.scope, late, lease.last, keep_ms)
            if claimed is None:
                return None
            marks |= dict(zip(map(ask.scope.tag, late), claimed, strict=True))
        return marks

    def _fill(self, job: Job, draft: Draft, lease: Granted, marks: dict[str, bytes]) -> Fill | None:
        """The fill of *draft*; None if it must not, or cannot, be stored."""
        ask, stored, ttl = draft.ask, draft.stored, draft.ttl
        stored.nonces = tuple(marks.values())
        if ttl is None:
            return None
        stored.ttl = ttl
        envelope = self._packed(ask, stored)
        if envelope is None:
            return None
        if stored.tags != ask.tags:
            self._remote.learn(ask.key, stored.tags)
        window = stale_window(stored, ask.rules)
        until_ms = lease.quarantined_until(marks)
        if until_ms:
            # A namespace or a tag is quarantined: the database may still answer with what was before the write. The
            # entry dies with the quarantine, and L1 does not take it. (Where the key itself is, the script sees to it.)
            draft.ttl = None
        return Fill(
            ask.key,
            job.tokens[ask.key],
            envelope,
            ttl,
            window,
            draft.version,
            tuple(marks),
            stored.nonces,
            b"".join(stored.nonces[: len(ask.scope.epochs)]),
            until_ms,
        )

    def _packed(self, ask: Ask, stored: Stored) -> Any:
        """The bytes to store; None if the value cannot be stored, which is counted and logged once."""
        try:
            return self._remote.pack(ask.key, stored, ask.codec)
        except Oversize as error:
            self._events.oversize += 1
            self._events.once("oversize", "%s is not cached in Redis: %s", ask.key, error)
        except CodecError as error:
            self._events.unencodable += 1
            self._events.once(f"codec {type(stored.value)}", "%s is not cached in Redis: %s", ask.key, error)
        return None

    async def _give_back(self, job: Job, held: Mapping[str, Draft]) -> None:
        """Give back the leases of the drafts in *held*, which are not stored.

        A lease that was held until now proves the same as an accepted fill: nothing was invalidated meanwhile.
        """
        for group in self._remote.groups(held):
            marks: dict[str, bytes] = {}
            for key in group:
                known = job.leases[key].marks  # what was claimed since has proven all that it could
                marks |= {name: nonce for name, nonce in (held[key].marks or {}).items() if name in known}
            still = await self._remote.release({key: job.tokens[key] for key in group}, None, marks)
            for key in group:
                if held[key].marks is None:
                    self._events.fills_refused += 1
                elif still:
                    held[key].filled = Filled.STORED

    async def _not_filled(self, job: Job, keys: Sequence[str], error: Unreachable) -> None:
        """Count *keys*, whose fills did not reach Redis. Their leases end by themselves."""
        self._events.fills_failed += len(keys)
        if isinstance(error, Refused):  # a full server: no process should wait for these leases
            with suppress(Unreachable):
                await self._remote.release({key: job.tokens[key] for key in keys})

    async def _replaced(self, job: Job, drafts: Sequence[Draft]) -> None:
        """Invalidate what an explicit refresh has found to be old, where its answer has not taken that place."""
        for draft in drafts:
            ask = draft.ask
            if job.flights[ask.key].anew and (draft.left_out or (job.keep and not job.tokens)):
                markers = ask.scope.markers(draft.stored.tags)
                job.ticket = self._local.renewed_ticket(ask.key, markers, job.ticket)
                await self._remote.invalidate([Invalidation(ask.key)])

    # Landing the flights and filling L1

    def _land(self, job: Job, draft: Draft, loaded: Loaded, began: float) -> None:
        """Land the flight on the *loaded* value, proven or not, and keep the value in L1 if that is allowed."""
        ask, stored, ttl, ticket = draft.ask, draft.stored, draft.ttl, job.ticket
        self._shared.meanwhile.over(ask.key)
        flight, proven = job.flights[ask.key], draft.filled in STORED
        if ask.key in job.tokens:
            if ttl is not None and draft.filled is Filled.STORED:
                if flight.anew:
                    # A reader that asked Redis before may still bring the old value: its ticket becomes void.
                    ticket = self._local.renewed_ticket(ask.key, ask.scope.markers(stored.tags), ticket)
                self.keep(ask, stored, ttl, ticket, began)
        elif ttl is not None:  # Redis is unreachable: only the ticket can tell
            proven = self._keep_alone(ask, draft, ttl, ticket, began)
            loaded.load.stored = proven and ask.rules.l1
        else:
            proven = job.keep and self._heard_nothing(ask, stored, ticket)
        if loaded.load.private:
            flight.keep_private(stored)
            return
        if flight.landed:  # the load took too long, and its followers already have another answer
            flight.loaded = stored
        flight.land(stored, proven=proven)

    def _keep_alone(self, ask: Ask, draft: Draft, ttl: float, ticket: int, began: float) -> bool:
        """`keep`, without Redis: what this process knows of writes, quarantines and floors is heeded, too."""
        limit = self._shared.limit((ask.key, *ask.scope.markers(draft.stored.tags)), draft.version)
        if not limit:
            return False
        if limit < math.inf:
            return self.keep(ask, draft.stored, min(ttl, limit), ticket, began, dead_left=min(ttl, limit))
        return self.keep(ask, draft.stored, ttl, ticket, began)

    def land_found(self, job: Job, key: str, found: Found) -> None:
        """Land on an entry that another process has stored since this one looked.

        It is not proven for followers that joined after the lease request: an invalidation may have come in between.
        """
        self._shared.meanwhile.over(key)
        if found.stored is not None:
            self.keep_found(job.asks[key], found, job.ticket, job.asked_at)
            job.flights[key].land(found.stored, proven=False)

    def keep_found(self, ask: Ask, found: Found, ticket: int, asked_at: float) -> None:
        """Keep in L1 what Redis has answered to a question of *asked_at*."""
        if found.stored is not None and ask.rules.l1:
            terms = {"age": found.age, "dead_left": found.dead_left}
            self.keep(ask, found.stored, found.fresh_left, ticket, asked_at, **terms)

    def keep_stale(self, ask: Ask, found: Found, ticket: int, asked_at: float) -> None:
        """Keep what Redis has answered for a moment, although it is stale: its reload is begun, or under way."""
        if ask.rules.l1 and found.stored is not None and asked_at < self._local.trusted_until:
            self.keep_found(ask, found, ticket, asked_at)
            entry = self._local.find(ask.key)
            if entry is not None and entry.common.fresh_until <= asked_at:
                now, draw = self._runtime.now(), self._runtime.random()
                self._shared.meanwhile.keep(ask.key, entry, now, ask.rules.revalidate, draw)

    def keep(
        self,
        ask: Ask,
        stored: Stored,
        fresh_left: float,
        ticket: int,
        asked_at: float,
        *,
        age: float = 0.0,
        dead_left: float = math.inf,
    ) -> bool:
        """Keep *stored* in L1; false if something about it was invalidated since the ticket was taken.

        Args:
            fresh_left: for how many seconds it was fresh at *asked_at*.
            age: for how many seconds it had been stored by then.
            dead_left: for how many seconds it may be served as stale, if need be.
        """
        rules = ask.rules
        if not rules.l1:
            return self._heard_nothing(ask, stored, ticket)
        fresh_until = asked_at + fresh_left
        until = min(fresh_until, asked_at + rules.l1_ttl)
        if rules.hot is not None and stored.kind is Kind.VALUE and self._local.share(ask.key) >= rules.hot.share:
            # L1 ends where the reload is due: the next reader asks Redis, and starts it. Until it is done, L1 answers.
            due = fresh_until - rules.hot.due_left(stored.ttl)
            until = min(fresh_until, max(asked_at + AGAIN, min(due, asked_at + max(rules.hot.l1_ttl, rules.l1_ttl))))
        if rules.rebuild == "early":
            # L1 ends one load time before the earliest refresh: from there on every reader asks Redis and draws.
            until = min(until, fresh_until - stored.load_time - early_by(stored.load_time, self._runtime.random()))
        entry = self._local.shelving.entry(
            stored.value if stored.master is None else stored.master,
            kind=stored.kind,
            now=asked_at,
            kept_until=until,
            fresh_until=fresh_until,
            born=asked_at - age,
            dead_from=asked_at + dead_left,
            tags=stored.tags,
            marks=tuple(map(ask.scope.tag, stored.tags)) if stored.tags else (),
        )
        return self._local.put(ask.key, entry, ticket, absence=stored.kind is not Kind.VALUE, weight=stored.weight)

    def _heard_nothing(self, ask: Ask, stored: Stored, ticket: int) -> bool:
        """True if this process has received no invalidation of *stored* since the ticket was taken."""
        return self._local.tickets.holds(ticket, ask.key, map(ask.scope.tag, stored.tags))
