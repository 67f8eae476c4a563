"""One rebuild of a key: join the flight, or get the lease, load and fill."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from ..defenses.breakdown import early_by, poll_delay
from ..errors import LoadFailed, LoadTimeout, Overloaded, ReentrantLoad, Refused, Unreachable
from ..protocol.calls import ALWAYS
from ..protocol.entry import Bypass, Failed, Fill, Filled, Found, Granted, Stored, Wait, ms
from ..protocol.envelope import Kind
from ..protocol.exceptions import absence, rebuilt
from ..tiers.entries import Entries
from ..tiers.local import Entry
from .flights import CHAIN, NO_CHAIN, Flight, Shared
from .loading import Ask, Job, Loaded, Loading

if TYPE_CHECKING:
    from ..policy import Rules
    from ..ports import Runtime

RETRIES = 3  # flights that prove nothing to a follower, before it loads for itself
STORED = (Filled.STORED, Filled.BRIEFLY)
WEEK = 7 * 86_400.0  # assumed of a TTL that is a function: the marker of a tag must outlive its entries


class Rebuilding:
    """The way from a miss to a value, under one runtime.

    `rebuild` → `_one_flight` → `_lead` → `Remote.lease` → `Loading.run` → `Remote.fill`.
    """

    def __init__(self, runtime: Runtime, remote: Entries, shared: Shared, flights: dict[str, Flight]) -> None:
        self._runtime, self._remote, self.flights = runtime, remote, flights
        self.loading = Loading(runtime, remote, shared, flights)
        self._shared, self._local, self._events, self._alone = shared, shared.local, shared.events, shared.alone
        self._asked_for: dict[str, int] = {}  # leases, and the threads that are about to use them

    async def behind(self, ask: Ask, *, floor: int) -> None:
        """Start a rebuild that nobody waits for, unless one is under way."""
        if ask.key in self.flights or self.loading.paused(ask.key, ask.rules) is not None or self._alone():
            return
        flight = Flight(self._runtime.signal(), marks=ask.marks, here=self._runtime.here())
        if self.flights.setdefault(ask.key, flight) is not flight:
            return
        try:
            begun = await self._runtime.start(self._fly(flight, ask, None, floor=floor, behind=True), detached=True)
        except BaseException:
            self._ground(ask.key, flight)
            raise
        if flight.here == self._runtime.here():  # it has left this thread
            flight.here = None
        self._events.refreshes += begun
        if not begun:
            self._ground(ask.key, flight)

    def _ground(self, key: str, flight: Flight) -> None:
        """End a flight that could not begin."""
        self.loading.retire(key, flight)
        flight.abandon()

    async def rebuild(self, ask: Ask, found: Found | None, *, anew: bool = False, cut_off: bool = False) -> Any:
        """Join the flight of this key or lead one.

        *found* may be served if that goes wrong; if it cannot be read here, whatever is stored gets replaced.
        """
        self._events.misses += 1
        if CHAIN.get().waits_for(ask.key):
            raise ReentrantLoad(f"the loader of {ask.key} reads the key that it is loading")
        if self._alone():
            return opened(await self._loaded_alone(ask), ask.rules)
        stale = found if found is not None and self.loading.servable(ask.rules, found) else None
        failure = None if anew else self.loading.paused(ask.key, ask.rules)
        if failure is not None:
            if stale is not None:
                return self._stale(ask, stale)
            self._events.backoffs += 1
            raise failure
        floor, void = ALWAYS if anew else 0, "" if found is None else found.void
        for _ in range(RETRIES):
            outcome = await self._one_flight(ask, stale, floor=floor, void=void, anew=anew, cut_off=cut_off)
            if outcome is not None:
                return opened(outcome, ask.rules)
        return opened(await self._loaded_alone(ask), ask.rules)

    async def _one_flight(
        self, ask: Ask, stale: Found | None, *, floor: int, void: Any, anew: bool, cut_off: bool
    ) -> Stored | None:
        """What one flight has for this caller; None if it proves nothing to it."""
        here = self._runtime.here()
        flight = Flight(self._runtime.signal(), anew=anew, marks=ask.marks, here=here)
        current = self.flights.setdefault(ask.key, flight)
        joined_at, leading = current.leases, current is flight
        if leading:
            try:
                await self._launch(flight, ask, stale, floor=floor, void=void, cut_off=cut_off)
            except BaseException:
                self._ground(ask.key, flight)
                raise
        else:
            self._events.shared += 1
        mine = not leading and current.waits_for_me(here)
        arrived = not mine and await self._arrived(current, ask, stale, leading=leading)
        if not arrived and stale is not None:
            self._events.stale_hits += 1
            return stale.stored
        if not arrived or (current.private and not leading):
            return await self._loaded_alone(ask)
        if leading and current.loaded is not None:
            return current.given(current.loaded)
        if leading or current.serves(joined_at, anew=anew):
            return self._outcome(current, stale)
        if anew or cut_off:
            return None
        return await self._reread(ask)

    def _outcome(self, flight: Flight, stale: Found | None) -> Stored | None:
        """What *flight* ended with; who has an old value needs no error."""
        if flight.error is None:
            return flight.given(flight.answer)
        if stale is None:
            raise flight.raised(flight.error)
        self._events.stale_hits += 1
        return stale.stored

    async def _launch(
        self, flight: Flight, ask: Ask, stale: Found | None, *, floor: int, void: Any, cut_off: bool
    ) -> None:
        """Lead *flight*, in a thread of its own if its caller may leave early with a stale value."""
        failure = None if flight.anew else self.loading.paused(ask.key, ask.rules)
        if failure is not None:  # another flight has failed since this caller looked
            self.loading.retire(ask.key, flight)
            flight.fail(failure)
            return
        early_exit = stale is not None and ask.rules.soft_timeout is not None
        if not await self._runtime.start(
            self._fly(flight, ask, stale, floor=floor, void=void, cut_off=cut_off), detached=early_exit
        ):
            self.loading.retire(ask.key, flight)
            flight.fail(Overloaded("too many loads run behind their callers already"))

    async def _arrived(self, flight: Flight, ask: Ask, stale: Found | None, *, leading: bool) -> bool:
        """Wait for *flight*; false if this caller's patience ended first."""
        limits = [] if leading or ask.rules.wait_timeout is None else [ask.rules.wait_timeout]
        if stale is not None and ask.rules.soft_timeout is not None:
            limits.append(ask.rules.soft_timeout)
        return await flight.signal.wait(min(limits, default=None))

    async def _reread(self, ask: Ask) -> Stored | None:
        """What Redis holds by now, if it is fresh."""
        ticket, asked_at = self._local.tickets.take(), self._runtime.now()
        try:
            found = await self._remote.read(ask.key, ask.codec, ask.scope, ask.tags, ask.usable)
        except Unreachable:
            return None
        if found is None or found.stored is None or found.fresh_left <= 0:
            return None
        self.keep(ask, found.stored, found.fresh_left, ticket, asked_at)
        return found.stored

    async def _loaded_alone(self, ask: Ask) -> Stored:
        """What the loader has for this caller only; nothing is filled."""
        flight = Flight(self._runtime.signal())
        await self._runtime.start(self._fly(flight, ask, None, floor=0, alone=True), detached=False)
        await flight.signal.wait(None)
        answer = flight.loaded or flight.answer
        if answer is not None:
            return answer
        raise flight.error or LoadFailed(f"the load of {ask.key} was cancelled")

    async def _fly(
        self,
        flight: Flight,
        ask: Ask,
        stale: Found | None,
        *,
        floor: int,
        void: Any = "",
        cut_off: bool = False,
        behind: bool = False,
        alone: bool = False,
    ) -> None:
        """Lead *flight*; whatever happens, nobody is left waiting."""
        reset = CHAIN.set(NO_CHAIN) if behind else None
        flight.here = self._runtime.here()
        try:
            if cut_off:
                await self._load_cut_off(flight, ask, self._local.tickets.take())
            elif alone:
                await self._load_unleased(flight, ask, self._local.tickets.take(), keep=False)
            else:
                await self._lead(flight, ask, stale, floor, void)
        except Exception as error:  # noqa: BLE001 - it is handed to everybody who waits
            flight.fail(error)
        finally:
            if reset is not None:
                CHAIN.reset(reset)
            self.loading.retire(ask.key, flight)
            if not flight.landed:
                flight.abandon()

    @contextmanager
    def tokens(self, number: int) -> Generator[list[str]]:
        """Names for so many leases, known as this thread's as long as it may hold them."""
        tokens, here = [self._runtime.token() for _ in range(number)], self._runtime.here()
        if here is not None:
            self._asked_for.update(dict.fromkeys(tokens, here))
        try:
            yield tokens
        finally:
            for token in tokens:
                self._asked_for.pop(token, None)

    async def _lead(self, flight: Flight, ask: Ask, stale: Found | None, floor: int, void: Any) -> None:
        """Get the right to fill and load, or the answer of whoever has that right."""
        primary = False
        while True:
            with self.tokens(1) as (token,):
                if not await self._led(flight, ask, stale, floor, void, token, primary=primary):
                    return
            primary = True

    async def _led(
        self, flight: Flight, ask: Ask, stale: Found | None, floor: int, void: Any, token: str, *, primary: bool
    ) -> bool:
        """`_lead`, under one lease; whether it has to be asked once more, under another one."""
        awaited, waiting_since = "", None
        while True:
            flight.leases += 1
            ticket, asked_at = self._local.tickets.take(), self._runtime.now()
            try:
                lease = await self._remote.lease(
                    ask.key,
                    ask.codec,
                    ask.scope,
                    ask.tags,
                    usable=ask.usable,
                    token=token,
                    floor_ms=floor,
                    awaited=awaited,
                    void=void,
                    keep_ms=marker_ms(ask.rules),
                )
            except Unreachable:
                await self._load_cut_off(flight, ask, ticket)
                return False
            if isinstance(lease, Found) and lease.stored is None:
                void = lease.void
                continue
            if not isinstance(lease, Wait):
                return await self._follow(flight, ask, stale, lease, (token, ticket, asked_at), primary=primary)
            if waiting_since is None:
                waiting_since = asked_at
                self._events.waits += 1
            waited = self._runtime.now() - waiting_since
            if await self._waited_enough(flight, ask, lease, waited, ticket):
                return False
            awaited, floor = lease.holder, floor if flight.anew else 0
            await self._runtime.sleep(poll_delay(waited, self._runtime.random()))

    async def _follow(
        self,
        flight: Flight,
        ask: Ask,
        stale: Found | None,
        lease: Granted | Found | Bypass | Failed,
        asked: tuple[str, int, float],
        *,
        primary: bool,
    ) -> bool:
        """Do what Redis answered to the question for a lease; whether it has to be asked once more."""
        token, ticket, asked_at = asked
        match lease:
            case Granted():
                # What was read before the lease may have been invalidated since: who read it has it to fall back on,
                # who joined later must not get it. A refresh answers with a new value or says why there is none.
                job = _job(flight, ask, {ask.key: token}, None if flight.anew else lease.found, primary=primary)
                if lease.covers(ask.scope.markers(ask.tags)):
                    return await self._load_and_fill(flight, ask, job, lease, ticket)
                await self.loading.release(job, None)
                await self._load_unleased(flight, ask, ticket, keep=False)
            case Found(stored=Stored() as stored):
                self.keep(ask, stored, lease.fresh_left, ticket, asked_at)
                flight.land(stored, proven=False)
            case Failed():
                await self._failed_elsewhere(flight, ask, stale, lease, ticket)
            case _:  # a write is under way
                await self._load_unleased(flight, ask, ticket, keep=False)
        return False

    async def _waited_enough(self, flight: Flight, ask: Ask, lease: Wait, waited: float, ticket: int) -> bool:
        """Whether the wait for another process ends here, as the policy says."""
        rules, found = ask.rules, lease.found
        old = None if found is None or flight.anew else found.stored
        if found is not None and old is not None and -found.fresh_left < rules.revalidate:
            self._events.stale_hits += 1
            flight.land(old, proven=False)
        elif (rules.wait_timeout is not None and waited >= rules.wait_timeout) or self._interrupts(lease):
            await self._load_unleased(flight, ask, ticket, keep=False)
        elif rules.hard_timeout is not None and waited >= rules.hard_timeout:
            self._events.load_timeouts += 1
            flight.fail(LoadTimeout(f"waited {waited:.1f} s for another process to load {ask.key}"))
        else:
            return False
        return True

    def _interrupts(self, lease: Wait) -> bool:
        """Whether the lease is held by what this thread was doing when a signal handler or a finalizer came in."""
        here = self._runtime.here()
        return here is not None and self._asked_for.get(lease.holder) == here

    async def _failed_elsewhere(
        self, flight: Flight, ask: Ask, stale: Found | None, lease: Failed, ticket: int
    ) -> None:
        """The load that this flight waited for has raised: so does this one, if that can be said with its own words."""
        error = None if lease.stored is None else rebuilt(lease.stored.value)
        if error is None and stale is not None:  # whoever has an old value serves it
            error = LoadFailed(f"the load of {ask.key} failed in another process")
        if error is not None:
            flight.fail(error)
        else:
            await self._load_unleased(flight, ask, ticket, keep=False)

    async def _load_cut_off(self, flight: Flight, ask: Ask, ticket: int) -> None:
        """Load although Redis gives no lease: once in this process, whoever asks, threads and event loops alike."""
        cut_off = self._shared.cut_off
        for _ in range(RETRIES):
            current = cut_off.setdefault(ask.key, flight)
            if current is flight or current.waits_for_me(self._runtime.here()):
                break
            landed = self._runtime.signal()
            current.also(landed)
            await landed.wait(None)
            if current.proven and current.error is None:  # nothing about the key was invalidated meanwhile
                flight.absence = current.absence
                if current.answer is not None:
                    flight.land(current.answer, proven=True)
                    return
            elif current.error is not None:
                flight.fail(current.error)
                return
        try:
            await self._load_unleased(flight, ask, ticket, keep=True)
        finally:
            with self._local.lock:
                if cut_off.get(ask.key) is flight:
                    del cut_off[ask.key]

    async def _load_unleased(self, flight: Flight, ask: Ask, ticket: int, *, keep: bool) -> None:
        """Load without the right to fill; with *keep*, L1 takes the value, since Redis cannot be asked."""
        loaded = await self.loading.run(_job(flight, ask, {}, None))
        if loaded is None:
            return
        began = self._runtime.now()
        self.loading.retire(ask.key, flight)
        stored = self.loading.stored(loaded, tags_of(ask, loaded))
        flight.absence = loaded.absence
        ttl = self.loading.drawn_ttl(ask.key, ask.rules, stored, loaded.load) if keep else None
        kept = keep and self.keep_or_check(ask, stored, ttl, ticket, began)
        self.land(flight, stored, loaded, proven=kept)

    async def _load_and_fill(self, flight: Flight, ask: Ask, job: Job, lease: Granted, ticket: int) -> bool:
        """Load, store, land; whether it has to be done once more, because the answer was older than what is known."""
        leased_at = self._runtime.now()
        loaded = await self.loading.run(job)
        if loaded is None:
            return False
        began = self._runtime.now()
        stored = self.loading.stored(loaded, tags_of(ask, loaded))
        flight.absence = loaded.absence
        version = self.loading.version_of(ask, stored)
        ttl = None if version is None else self.loading.drawn_ttl(ask.key, ask.rules, stored, loaded.load)
        self.loading.retire(ask.key, flight)
        outcome = Filled.REFUSED
        try:
            outcome = await self._store(ask, job, lease, stored, (ttl, version or "", began - leased_at))
        except Unreachable as error:
            self._events.fills_failed += 1
            if isinstance(error, Refused):  # a full server: nobody shall wait for a lease that nothing comes of
                await self.loading.release(job, None)
        if outcome is Filled.OLD and loaded.load.asked_for and not job.primary:
            return True
        if outcome is Filled.STORED and ttl is not None:
            if flight.anew:  # a reader that asked Redis before may still bring the old value: its ticket is void
                ticket = self._local.renewed_ticket(ask.key, ticket)
            self.keep(ask, stored, ttl, ticket, began)
        self.land(flight, stored, loaded, proven=outcome in STORED)
        return False

    async def _store(
        self, ask: Ask, job: Job, lease: Granted, stored: Stored, terms: tuple[float | None, str, float]
    ) -> Filled:
        """Fill with *stored*, or give the lease back if it shall not, or cannot, be cached."""
        ttl, version, seconds = terms
        marks = await self.marks_of(ask, stored.tags, lease)
        if marks is None:
            await self.loading.release(job, None)
            return self.counted(Filled.REFUSED)
        stored.nonces = tuple(marks.values())
        envelope = None if ttl is None else self.loading.packed(ask.key, stored, ttl, ask.codec)
        if ttl is None or envelope is None:
            held = await self._remote.release(job.tokens, None, marks)
            return Filled.STORED if held else Filled.REFUSED
        if stored.tags != ask.tags:
            self._remote.learn(ask.key, stored.tags)
        window = stale_window(stored, ask.rules)
        settles = lease.settles_within(marks, seconds)
        if settles is not None:  # as when the key itself is quarantined: there, the script sees to it
            ttl, window = min(ttl, settles), 0.0
        fill = Fill(ask.key, job.tokens[ask.key], envelope, ttl, window, version, tuple(marks), stored.nonces)
        outcome = self.counted(await self._remote.fill(fill))
        return Filled.BRIEFLY if settles is not None and outcome is Filled.STORED else outcome

    async def marks_of(self, ask: Ask, tags: tuple[str, ...], lease: Granted) -> dict[str, bytes] | None:
        """What the markers of an entry with *tags* said when its load began; None if it cannot be known any more."""
        scope = ask.scope
        markers = scope.markers(tags)
        late = [tag for tag in tags if lease.marks.get(scope.tag(tag)) is None]
        marks = dict(lease.marks)
        if late:
            claimed = await self._remote.of(ask.key).markers.claim(scope, late, lease.at_ms, marker_ms(ask.rules))
            if claimed is None:
                return None
            marks |= dict(zip(map(scope.tag, late), claimed, strict=True))
        return {marker: marks[marker] for marker in markers}

    def counted(self, outcome: Filled) -> Filled:
        """*outcome*, counted."""
        self._events.fills += outcome in STORED
        self._events.fills_refused += outcome is Filled.REFUSED
        self._events.fills_old += outcome is Filled.OLD
        self._events.fills_failed += outcome is Filled.FAILED
        return outcome

    def land(self, flight: Flight, stored: Stored, loaded: Loaded, *, proven: bool) -> None:
        """Give *stored*, which is what was *loaded*, to those who wait."""
        if loaded.load.private:
            flight.keep_private(stored)
            return
        if flight.landed:  # those who waited had to be told something else: the load took too long
            flight.loaded = stored
        flight.land(stored, proven=proven)

    def keep_or_check(self, ask: Ask, stored: Stored, ttl: float | None, ticket: int, asked_at: float) -> bool:
        """`keep`; what shall not be cached (*ttl* is None) is only checked against the ticket."""
        if ttl is None:
            return self._heard_nothing(ask, stored, ticket)
        return self.keep(ask, stored, ttl, ticket, asked_at)

    def _heard_nothing(self, ask: Ask, stored: Stored, ticket: int) -> bool:
        return self._local.tickets.holds(ticket, ask.key, map(ask.scope.tag, stored.tags))

    def keep(self, ask: Ask, stored: Stored, fresh_left: float, ticket: int, asked_at: float) -> bool:
        """Keep *stored* in L1; false if something about it was invalidated since the ticket was taken."""
        rules = ask.rules
        if not rules.l1:
            return self._heard_nothing(ask, stored, ticket)
        fresh_until = asked_at + fresh_left
        until = min(fresh_until, asked_at + rules.l1_ttl)
        if rules.rebuild == "early":
            # The time of a load before any draw would do: from there on every reader asks Redis and draws for itself.
            until = min(until, fresh_until - stored.load_time - early_by(stored.load_time, self._runtime.random()))
        entry = Entry(
            ask.key,
            stored.value,
            kind=stored.kind,
            until=until,
            fresh_until=fresh_until,
            born=fresh_until - (stored.ttl or fresh_left),
            tags=stored.tags,
            marks=tuple(map(ask.scope.tag, stored.tags)) if stored.tags else (),
            shared=rules.l2,
        )
        return self._local.put(entry, ticket, absence=stored.kind is not Kind.VALUE)

    def _stale(self, ask: Ask, stale: Found) -> Any:
        self._events.stale_hits += 1
        assert stale.stored is not None  # noqa: S101 - `rebuild` lets no other through
        return opened(stale.stored, ask.rules)


def _job(flight: Flight, ask: Ask, tokens: dict[str, str], stale: Found | None, *, primary: bool = False) -> Job:
    old = {} if stale is None else {ask.key: stale}
    return Job({ask.key: flight}, ask.rules, ask.load, tokens, old, primary, ask.bounded)


def tags_of(ask: Ask, loaded: Loaded) -> tuple[str, ...]:
    """The tags of what was loaded: those of the question, then those that the loader has added."""
    if not loaded.load.tags:
        return ask.tags
    return tuple(dict.fromkeys((*ask.tags, *loaded.load.tags)))


def marker_ms(rules: Rules) -> int:
    """How long, in ms, the markers must live that an entry depends on which is being loaded now."""
    ttl = WEEK if callable(rules.ttl) else rules.ttl
    return ms(ttl + rules.stale + 2 * (rules.hard_timeout or 60.0))


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
