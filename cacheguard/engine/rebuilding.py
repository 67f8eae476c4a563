"""One rebuild of a key: join its flight, or lead one (get the lease, load, fill)."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum, auto
from typing import TYPE_CHECKING, Any

from ..defenses.breakdown import poll_delay
from ..errors import LoadFailed, LoadTimeout, Overloaded, Unreachable
from ..protocol.calls import ALWAYS
from ..protocol.entry import Bypass, CutOff, Failed, Found, Granted, Stored, Wait
from ..protocol.exceptions import again, rebuilt
from ..tiers.entries import Entries
from .ask import Ask, Job, servable
from .beside import Look, Looks
from .filling import Filling
from .flights import Flight, Flights
from .lifetimes import marker_ms
from .loading import Loading
from .permits import CHAIN, NO_CHAIN, check_nesting
from .shared import Shared
from .waiting import Waiting

if TYPE_CHECKING:
    from ..policy import Rules
    from ..ports import Runtime

RETRIES = 3  # flights that are not proven for a follower, before it loads for itself


class Way(Enum):
    """How a flight gets its value."""

    LEASE = auto()  # under a lease: one load for all processes
    CUT_OFF = auto()  # Redis is unreachable: one load for this process, kept in L1
    ALONE = auto()  # for its caller only: no tier keeps it


@dataclass(slots=True)
class Plan:
    """The plan of one rebuild.

    Args:
        stale: may be served if the load fails or is slow.
        floor: in ms; an entry that appears and stays fresh for longer is used instead of a load.
        unusable: the stamp of an entry that was found and cannot be used: it is replaced.
        behind: True if no caller waits for it.
        waited: True if it has waited for the load of another process.
        kept: says what L1 has to serve while Redis is away, where the lease is asked for before the value.
        cold: Redis has nothing: nobody else need look.
    """

    way: Way
    stale: Stored | None = None
    floor: int = 0
    unusable: Any = ""
    behind: bool = False
    waited: bool = False
    kept: Callable[[str, Rules], Stored | None] | None = None
    cold: bool = False


@dataclass(slots=True)
class Seat:
    """A caller's place in a flight, as leader or follower."""

    flight: Flight
    joined_at: int  # leases that the flight had asked for by then
    leading: bool


class Rebuilding:
    """The steps from a miss to a value, under one runtime.

    `rebuild` → `board` → `_fly` → `_lease` → `Loading.run` → `Filling.fill_and_land`.

    A caller that leaves early must not end the load for the others. So a flight runs on its own (`Runtime.start`),
    and its leader waits for it as its followers do.
    """

    flights: Flights

    def __init__(
        self, runtime: Runtime, remote: Entries, shared: Shared, flights: Flights, loading: Loading, filling: Filling
    ) -> None:
        self._runtime, self._remote, self._shared, self.flights = runtime, remote, shared, flights
        self._loading, self._filling = loading, filling
        self.looks: Looks = Looks(shared.local)
        self._local, self._events, self._alone = shared.local, shared.events, shared.alone
        self._failures, self._bus = shared.failures, shared.bus
        self.waiting: Waiting = Waiting(runtime, shared)

    # The caller's side

    async def rebuild(self, ask: Ask, found: Found | CutOff | None, *, anew: bool = False) -> Stored:
        """Join the flight of this key, or lead one.

        *found* may be served if the load fails; if it cannot be read here, the stored entry is replaced. With *anew*
        the answer comes from a load that begins after this call.
        """
        self._events.misses += 1
        check_nesting((ask.key,))
        if self._alone():
            return await self.loaded_alone(ask)
        plan = Plan(Way.LEASE, floor=ALWAYS if anew else 0)
        if isinstance(found, CutOff):
            plan.way = Way.CUT_OFF
        elif found is None or found.stored is None:
            plan.cold = not anew
            plan.unusable = "" if found is None else found.unusable
        else:
            plan.stale, plan.unusable = found.stored if servable(found, ask.rules) else None, found.unusable
        failure = None if anew or not self._failures else self._shared.paused(ask.key, ask.rules, self._runtime)
        if failure is not None:
            if plan.stale is None:
                self._events.backoffs += 1
                try:
                    raise failure
                finally:
                    del failure  # its traceback keeps this frame
            self._events.stale_hits += 1
            return plan.stale
        for _ in range(RETRIES):
            outcome = await self._one_flight(ask, plan, anew=anew)
            if outcome is not None:
                return outcome
        return await self.loaded_alone(ask)

    async def lease_first(self, ask: Ask, kept: Callable[[str, Rules], Stored | None]) -> Stored | Found | None:
        """As `rebuild`, for who has not looked: also what LEASE has found; None if the caller has to look.

        *kept*: as `Plan` has it.
        """
        self._events.misses += 1
        check_nesting((ask.key,))
        seat, plan = self.board(ask), Plan(Way.LEASE, kept=kept)
        try:
            outcome = await self._outcome_of(seat, ask, plan, anew=False)
        except Exception:
            if seat.leading or not seat.flight.stale:
                raise
            outcome = None  # this caller may have something stale, too
        finally:
            self.flights.leave(seat.flight)
        if outcome is None:
            self._events.misses -= 1
            return None
        if seat.flight.kept and outcome is seat.flight.answer:
            self._events.misses -= 1
            self._events.stale_hits += not seat.leading
        elif seat.flight.found is not None and outcome is seat.flight.answer:
            self._events.misses -= 1
            return seat.flight.found
        return outcome

    async def passed_on(self, ask: Ask, look: Look) -> Stored | None:
        """The outcome of the flight that *look* has led to, for one who has waited for it; None as of `_one_flight`."""
        flight = look.flight
        assert flight is not None  # noqa: S101 - the caller has looked
        try:
            return await self._outcome_of(Seat(flight, look.joined_at, leading=False), ask, Plan(Way.LEASE), anew=False)
        finally:
            self.flights.leave(flight)

    async def behind(self, ask: Ask, *, floor: int) -> None:
        """Start a rebuild in the background, unless one is in progress."""
        shared = self._shared
        if ask.key in self.flights or self._alone() or shared.meanwhile.leased_elsewhere(ask.key, self._runtime.now()):
            return
        if self._shared.paused(ask.key, ask.rules, self._runtime) is not None:
            return
        flight = Flight(self._runtime.signal(), marks=ask.marks)  # at home where it will run, not here
        if self.flights.setdefault(ask.key, flight) is not flight:
            return
        plan = Plan(Way.LEASE, floor=floor, behind=True)
        try:
            begun = await self._runtime.start(self._fly(flight, ask, plan), detached=True)
        except BaseException:
            self.flights.ground(ask.key, flight)
            raise
        self._events.refreshes += begun
        if not begun:
            self.flights.ground(ask.key, flight)

    def board(self, ask: Ask, *, anew: bool = False, cold: bool = False) -> Seat:
        """Join the flight of this key, or open one and lead it; *cold* as in `Flight`."""
        runtime = self._runtime
        flight = Flight(runtime.signal(), anew=anew, cold=cold, marks=ask.marks, home=runtime.here())
        current = self.flights.join(ask.key, flight)
        self._events.shared += current is not flight
        return Seat(current, current.leases, current is flight)

    def refused(self, flight: Flight, ask: Ask) -> bool:
        """Fail the new *flight* if another one has failed since the caller looked; returns True if it did."""
        if flight.anew or not self._failures:
            return False
        failure = self._shared.paused(ask.key, ask.rules, self._runtime)
        if failure is None:
            return False
        self.flights.retire(ask.key, flight)
        flight.fail(failure)
        return True

    async def _one_flight(self, ask: Ask, plan: Plan, *, anew: bool) -> Stored | None:
        """The outcome of one flight for this caller; None if it is not proven for it.

        A follower that joined after the lease may share only a proven outcome:

            leader:    leases, loads "old" ................................... lands "old", unproven
            writer:                          invalidates, returns
            follower:                                              joins

        Otherwise it asks Redis again. A refresh, or a caller that cannot ask, joins or leads another flight.
        """
        seat = self.board(ask, anew=anew, cold=plan.cold)
        if self.looks and plan.way is Way.LEASE and not anew:
            self._pass_on(ask, plan, seat.flight)
        try:
            return await self._outcome_of(seat, ask, plan, anew=anew)
        finally:
            self.flights.leave(seat.flight)

    def _pass_on(self, ask: Ask, plan: Plan, flight: Flight) -> None:
        """Let those who wait for a look at this key wait for *flight* instead: it has not asked for its lease yet.

        If they may find something stale that they are served while it flies, they look for themselves.
        """
        look = self.looks.get(ask.key)
        if look is None:
            return
        if plan.stale is not None and ask.rules.soft_timeout is not None:
            self.looks.end(ask.key, look)
        else:
            look.stale = plan.stale is not None
            passed_on = self.looks.end(ask.key, look, flight)
            self._events.misses += passed_on
            self._events.shared += passed_on

    async def _outcome_of(self, seat: Seat, ask: Ask, plan: Plan, *, anew: bool) -> Stored | None:
        flight = seat.flight
        if seat.leading:
            await self._launch(flight, ask, plan)
        if not await self._arrived(seat, ask, plan):
            if plan.stale is None or self.waiting.interrupts(flight, ask.key):
                return await self.loaded_alone(ask)
            self._events.stale_hits += 1
            return plan.stale
        if flight.private and not seat.leading:
            return await self.loaded_alone(ask)
        if seat.leading or flight.serves(seat.joined_at, anew=anew):
            return self.outcome(seat, plan.stale)
        if anew or plan.way is Way.CUT_OFF:
            return None
        return await self._reread(ask)

    async def _launch(self, flight: Flight, ask: Ask, plan: Plan) -> None:
        """Lead *flight*, in a thread of its own if its caller may leave early with a stale value."""
        early_exit = plan.stale is not None and ask.rules.soft_timeout is not None
        try:
            if self.refused(flight, ask) or await self._runtime.start(
                self._fly(flight, ask, plan), detached=early_exit
            ):
                return
            self.flights.retire(ask.key, flight)
            flight.fail(Overloaded("too many loads run behind their callers already"))
        except BaseException:
            self.flights.ground(ask.key, flight)
            raise

    async def _arrived(self, seat: Seat, ask: Ask, plan: Plan) -> bool:
        """Wait for the flight; False if the caller's timeout ended first, or if it would wait for itself."""
        patience = None if seat.leading else ask.rules.wait_timeout
        if plan.stale is not None and ask.rules.soft_timeout is not None:
            patience = ask.rules.soft_timeout if patience is None else min(patience, ask.rules.soft_timeout)
        if seat.leading:
            return await seat.flight.signal.wait(patience)
        return await self.waiting.landed(seat.flight, ask.key, patience)

    def outcome(self, seat: Seat, stale: Stored | None) -> Stored | None:
        """The outcome of the flight; *stale*, if the caller has it, instead of an error."""
        flight = seat.flight
        if seat.leading and flight.loaded is not None:
            return flight.given(flight.loaded, own=True)
        if flight.error is None:
            return flight.given(flight.answer, own=seat.leading)
        if stale is None:
            raise flight.raised(own=seat.leading)
        self._events.stale_hits += 1
        return stale

    async def _reread(self, ask: Ask) -> Stored | None:
        """The entry that Redis holds by now, if it is fresh."""
        ticket, asked_at = self._local.tickets.take(), self._runtime.now()
        try:
            found = await self._remote.read(ask.key, ask.codec, ask.scope, ask.tags, ask.usable)
        except Unreachable:
            return None
        if found is None or found.stored is None or found.fresh_left <= 0:
            return None
        self._filling.keep_found(ask, found, ticket, asked_at)
        return found.stored

    async def loaded_alone(self, ask: Ask) -> Stored:
        """Load for this caller only; nothing is filled."""
        flight = Flight(self._runtime.signal(), seats=1)
        try:
            await self._runtime.start(self._fly(flight, ask, Plan(Way.ALONE)), detached=False)
            await flight.signal.wait(None)
            answer = flight.loaded or flight.answer
            if answer is not None:
                return answer
            raise flight.error or LoadFailed(f"the load of {ask.key} was cancelled")
        finally:
            self.flights.leave(flight)

    # The leader's side

    async def _fly(self, flight: Flight, ask: Ask, plan: Plan) -> None:
        """Lead *flight*, and end it whatever happens."""
        reset = CHAIN.set(NO_CHAIN) if plan.behind else None
        flight.home = self._runtime.here()
        try:
            if plan.way is Way.LEASE:
                await self._lead(flight, ask, plan)
            else:
                job = Job({ask.key: ask}, {ask.key: flight}, ask.rules, ask.load, {}, ask.bounded)
                job.ticket = self._local.tickets.take()
                if plan.way is Way.ALONE or await self._cut_off(flight, job, plan):
                    await self._load(job)
        except Exception as error:  # noqa: BLE001 - it is handed to everybody who waits
            flight.fail(error)
        finally:
            if reset is not None:
                CHAIN.reset(reset)
            if self._shared.cut_off:
                self._shared.cut_off.retire(ask.key, flight)
            self.flights.ground(ask.key, flight)

    async def _lead(self, flight: Flight, ask: Ask, plan: Plan) -> None:
        """Get the lease and load, or wait for the answer of the process that holds it."""
        primary = False
        while True:  # at most twice: if a replica has answered with an old row, the loader may ask the primary
            token, leases = self._runtime.token(), self._shared.leases
            if flight.home is not None:  # as `holding`
                leases[token] = flight.home
            try:
                job = Job(
                    {ask.key: ask}, {ask.key: flight}, ask.rules, ask.load, {ask.key: token}, ask.bounded, primary
                )
                if not await self._lease(flight, ask, plan, job, token) or not await self._load(job):
                    return
            finally:
                leases.pop(token, None)
            primary = True

    async def _load(self, job: Job) -> bool:
        """Run the loader, fill and land; True if that must be repeated."""
        loaded = await self._loading.run(job)
        if loaded is None:
            return False
        return await self._filling.fill_and_land(job, loaded)

    @contextmanager
    def holding(self, tokens: Iterable[str]) -> Generator[None]:
        """Record that the work that goes on here may hold the leases with these tokens, while the block runs."""
        here, leases = self._runtime.here(), self._shared.leases
        if here is None:
            yield
            return
        for token in tokens:
            leases[token] = here
        try:
            yield
        finally:
            for token in tokens:
                leases.pop(token, None)

    async def _lease(self, flight: Flight, ask: Ask, plan: Plan, job: Job, token: str) -> bool:
        """Ask Redis for the lease until it is granted or another process has answered; True if *job* must run.

        The ticket is taken and the clock is read before each request, because its answer may be kept in L1.
        """
        floor, unusable, awaited = plan.floor, plan.unusable, ""
        waiting_since: float | None = None
        tags = job.asked[ask.key] = self._shared.tags_before(ask, self._runtime.now())
        while True:
            flight.leases += 1
            job.ticket, job.asked_at = self._local.tickets.take(), self._runtime.now()
            wakes = self._shared.wakes
            try:
                lease = await self._remote.lease(
                    ask.key,
                    ask.codec,
                    ask.scope,
                    tags,
                    usable=ask.usable,
                    token=token,
                    floor_ms=floor,
                    awaited=awaited,
                    unusable=unusable,
                    keep_ms=marker_ms(ask.rules),
                )
            except Unreachable:
                return not self._kept(flight, ask, plan) and await self._cut_off(flight, job, plan)
            if plan.kept is not None and isinstance(lease, Wait | Failed):
                self._look_back(flight, ask, plan, lease.found)
            if isinstance(lease, Wait):
                if waiting_since is None:
                    waiting_since = job.asked_at
                    self._events.waits += 1
                waited = self._runtime.now() - waiting_since
                if self._stops_waiting(flight, ask, lease, waited):
                    job.unleased()
                    flight.after = None
                    return not (flight.landed or plan.behind)
                # The value of the other process is used, however short its TTL, except for a refresh: that load may
                # have begun before the call.
                plan.waited = True
                awaited, floor = lease.holder, floor if flight.anew else 0
                await self._nap(ask.key, poll_delay(waited, self._runtime.random(), told=self._bus.hears), wakes)
            elif isinstance(lease, Found) and lease.stored is None:
                unusable = lease.unusable  # unusable here, or invalidated by a tag: the next question replaces it
            else:
                return await self._follow(flight, ask, plan, lease, job)

    def _kept(self, flight: Flight, ask: Ask, plan: Plan) -> bool:
        """Land on what L1 has to serve while Redis is away, for who has not found out before; True if there is any."""
        stored = None if plan.kept is None else plan.kept(ask.key, ask.rules)
        if stored is None or not ask.takes(stored):
            return False
        flight.kept = True
        flight.land(stored, proven=False)
        return True

    def _look_back(self, flight: Flight, ask: Ask, plan: Plan, found: Found | None) -> None:
        """Note what is stale, for who has not looked before; only its own reader may fall back on it."""
        if found is not None and servable(found, ask.rules):
            plan.stale, flight.stale = found.stored, True

    async def _nap(self, key: str, seconds: float, wakes: int) -> None:
        """Sleep until Redis is to be asked again, or until another process says that its load has ended.

        *wakes*: how many such messages had come when the lease was asked for.
        """
        woken = self._runtime.signal()
        if not self._shared.sleeper(key, woken, wakes):
            return
        try:
            await self._runtime.sleep(seconds, woken)
        finally:
            self._shared.no_sleeper(key, woken)

    async def _follow(
        self, flight: Flight, ask: Ask, plan: Plan, lease: Granted | Found | Bypass | Failed, job: Job
    ) -> bool:
        """Act on the reply to a lease request, True if *job* must run."""
        flight.after = None
        match lease:
            case Failed():
                self.fail_as_elsewhere(flight, ask, lease, stale=plan.stale is not None, waited=plan.waited)
            case Granted():
                if job.granted(ask.key, lease):
                    return True
                await self._loading.release(job, None)
            case Found(stored=Stored()):
                flight.found = None if plan.waited else lease
                self._filling.land_found(job, ask.key, lease)
            case _:
                pass  # a write is under way: nothing may be filled until it has ended
        job.unleased()
        return not flight.landed

    def _stops_waiting(self, flight: Flight, ask: Ask, lease: Wait, waited: float) -> bool:
        """True if the wait for another process ends: the flight has landed, or it loads without a lease."""
        rules, found = ask.rules, lease.found
        old = None if found is None or flight.anew else found.stored
        if found is not None and old is not None and -found.fresh_left < rules.revalidate:
            self._events.stale_hits += 1
            runtime = self._runtime
            self._shared.meanwhile.reloaded_elsewhere(ask.key, runtime.now(), -found.fresh_left, runtime.random())
            flight.land(old, proven=False)
            return True
        home = flight.after = self._shared.leases.get(lease.holder)
        if self.waiting.is_mine(home, ask.key) or self.waiting.too_long(home, waited, ask.key):
            return True
        if rules.wait_timeout is not None and waited >= rules.wait_timeout:
            return True
        if rules.hard_timeout is not None and waited >= rules.hard_timeout:
            self._events.load_timeouts += 1
            flight.fail(LoadTimeout(f"waited {waited:.1f} s for another process to load {ask.key}"))
            return True
        return False

    def fail_as_elsewhere(self, flight: Flight, ask: Ask, lease: Failed, *, stale: bool, waited: bool) -> None:
        """Fail with the exception of the remote load, if it can be rebuilt here; otherwise this process loads, once.

        Args:
            flight: of this caller.
            ask: its request.
            lease: says what the remote load died of.
            stale: True if the caller has a stale value, which it serves.
            waited: True if it has waited for that load; otherwise its back-off runs, which holds for no refresh.
        """
        if not waited and (flight.anew or ask.rules.error_backoff is None):
            return
        error = None if lease.stored is None else rebuilt(lease.stored.value)
        if error is not None:
            self._shared.told(ask.key, error, lease, ask.rules, self._runtime)
        elif stale:
            error = LoadFailed(f"the load of {ask.key} failed in another process")
        if error is not None:
            self._events.backoffs += not waited
            flight.fail(error)

    async def _cut_off(self, flight: Flight, job: Job, plan: Plan) -> bool:
        """Join the load of this key in this process, because Redis gives no lease; True if *job* must run.

        Threads and event loops have flights of their own, so this is where they meet: without it, each engine would
        load the key once.
        """
        ((key, ask),) = job.asks.items()
        began, cut_off = self._runtime.now(), self._shared.cut_off
        for _ in range(RETRIES):
            current = cut_off.join(key, flight)
            try:
                if current is flight:
                    break
                landed = self._runtime.signal()
                current.also(landed)
                flight.after = current.home
                patience = _left(ask.rules, self._runtime.now() - began)
                arrived = await self.waiting.landed(current, key, None if patience == math.inf else patience, landed)
                flight.after = None
                if not arrived:
                    return not plan.behind and self._unjoined(flight, current, job, self._runtime.now() - began)
                if current.proven and current.error is None:  # nothing about the key was invalidated meanwhile
                    if current.answer is not None:
                        flight.land(current.answer, proven=True)
                        return False
                elif current.error is not None:
                    flight.fail(again(current.error))
                    return False
            finally:
                cut_off.leave(current)
        job.unleased(keep=True)
        return True

    def _unjoined(self, flight: Flight, current: Flight, job: Job, waited: float) -> bool:
        """Wait no longer for *current*, the load of this key in this process; True if *job* must run, for itself."""
        ((key, ask),) = job.asks.items()
        rules = ask.rules
        job.unleased()
        if current.home is not None and current.home.stands_still():
            self._shared.cut_off.retire(key, current)  # who comes next need not find that out again
        elif rules.hard_timeout is not None and rules.hard_timeout <= min(waited, rules.wait_timeout or math.inf):
            self._events.load_timeouts += 1
            flight.fail(LoadTimeout(f"waited {waited:.1f} s for another load of {key}"))
        return not flight.landed


def _left(rules: Rules, waited: float) -> float:
    """How long a caller waits for a load of this process after it has waited for *waited* seconds."""
    patience = min(rules.hard_timeout or math.inf, rules.wait_timeout or math.inf)
    return max(0.0, patience - waited)
