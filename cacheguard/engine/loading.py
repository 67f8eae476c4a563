"""Running the user's loader: in its place in the line, under its lease, and never twice at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..current_load import CURRENT, Load
from ..defenses.avalanche import jittered
from ..defenses.breakdown import next_pause
from ..defenses.consistency import version_text
from ..errors import CodecError, LoadTimeout, Overloaded, Unreachable
from ..protocol.calls import LEASE_MS
from ..protocol.entry import Found, Stored
from ..protocol.envelope import Kind, Oversize
from ..protocol.exceptions import describe
from ..protocol.names import Scope
from ..tiers.entries import Entries
from .flights import CHAIN, Chain, Failure, Flight, Place, Shared

if TYPE_CHECKING:
    from ..codec import Codec
    from ..policy import Rules
    from ..ports import Runtime, Watch


NO_SCOPE = Scope()


class _NoWatch:
    """Beside a load that is not watched yet."""

    def stop(self) -> None:
        """There is nothing to stop."""


NO_WATCH = _NoWatch()


@dataclass(slots=True)
class Ask:
    """One question: which key, how to load it, and by which rules."""

    key: str
    rules: Rules
    codec: Codec | None
    load: Callable[[], Any]
    tags: tuple[str, ...] = ()
    scope: Scope = NO_SCOPE
    version: Callable[[Any], Any] | None = None  # of a value that was loaded
    usable: Callable[[Any], bool] | None = None  # a cached value for which this says no counts as missing
    bounded: bool = True  # its load takes a place in the bulkhead

    def takes(self, stored: Stored) -> bool:
        """Whether what is cached may be the answer."""
        return self.usable is None or stored.kind is not Kind.VALUE or self.usable(stored.value)

    @property
    def marks(self) -> tuple[str, ...]:
        """The markers of its tags."""
        return tuple(map(self.scope.tag, self.tags)) if self.tags else ()


@dataclass(slots=True)
class Job:
    """One run of a loader: for one key, or for several at once."""

    flights: dict[str, Flight]
    rules: Rules
    load: Callable[[], Any]
    tokens: dict[str, str]  # the leases it runs under; empty: it may not fill
    stale: dict[str, Found]  # what may be served instead
    primary: bool = False  # the answer before was older than what is known
    bounded: bool = True
    turn: int | None = None  # to be given back to the breaker of what it loads from

    @property
    def landed(self) -> bool:
        """Whether those who wait have had their answer already."""
        return all(flight.landed for flight in self.flights.values())


@dataclass(slots=True)
class Loaded:
    """What a loader returned, or the absence that it raised."""

    value: Any
    absence: Exception | None
    seconds: float
    load: Load


class Loading:
    """Runs loaders under one runtime and says what may be made of their outcome."""

    def __init__(self, runtime: Runtime, remote: Entries, shared: Shared, flights: dict[str, Flight]) -> None:
        self._runtime, self._remote, self._shared = runtime, remote, shared
        self._flights = flights
        self._events = shared.events

    async def run(self, job: Job) -> Loaded | None:
        """Run the loader of *job*; None if its flights have been told already how it ended."""
        try:
            self._enter_breaker(job)
            place = (self._entered() or await self._stand_in_line(job)) if job.bounded else None
        except Overloaded as error:
            self._events.overloads += 1
            self._leave_breaker(job, error, 0.0)
            await self.release(job, None)
            self._end_badly(job, error)
            return None
        except BaseException as error:
            self._leave_breaker(job, error, 0.0)
            await self.release(job, None)
            raise
        chain, load = Chain(job.flights, place, CHAIN.get()), Load(primary=job.primary)
        reset, reset_load = CHAIN.set(chain), CURRENT.set(load)
        watch: Watch = NO_WATCH
        began = self._runtime.now()
        try:
            # In here: to begin to watch may be where the caller is interrupted (gevent's timeouts come at any wait).
            watch = self._runtime.watch(
                lambda: self._renew(job), LEASE_MS / 3000, lambda: self._late(job), job.rules.hard_timeout
            )
            self._events.loads += 1
            value = await self._runtime.call(job.load)
        except Exception as error:  # noqa: BLE001 - the loader's own, for all who wait
            known = isinstance(error, job.rules.not_found)
            self._leave_breaker(job, None if known else error, self._runtime.now() - began)
            if isinstance(error, job.rules.not_found) and len(job.flights) == 1:
                return self._succeeded(job, Loaded(None, error, self._runtime.now() - began, load))
            watch.stop()
            await self.give_up(job, error)
            return None
        except BaseException as error:
            watch.stop()
            self._leave_breaker(job, error, 0.0)
            await self.release(job, None)
            raise
        finally:
            watch.stop()
            CURRENT.reset(reset_load)
            CHAIN.reset(reset)
            chain.over = True
            if place is not None:
                place.end()
        loaded = Loaded(value, None, self._runtime.now() - began, load)
        self._leave_breaker(job, None, loaded.seconds)
        return self._succeeded(job, loaded)

    def _enter_breaker(self, job: Job) -> None:
        """Ask whether what is loaded from is well; `Overloaded` if it is left alone."""
        if job.rules.breaker is not None:
            try:
                job.turn = job.rules.breaker.enter()
            except Overloaded:
                self._events.breaker_rejects += 1
                raise

    def _leave_breaker(self, job: Job, error: BaseException | None, seconds: float) -> None:
        """Say how the load went, once."""
        turn, job.turn = job.turn, None
        if turn is not None and job.rules.breaker is not None:
            job.rules.breaker.leave(turn, error, seconds)

    def _entered(self) -> Place | None:
        """A place in the bulkhead, if one is free. A load inside another one may use that one's, which waits for it."""
        bulkhead, lock, around = self._shared.bulkhead, self._shared.local.lock, self._place_around()
        if around is not None and around.borrow():
            return Place(around.give_back, lock)
        return Place(bulkhead.leave, lock) if bulkhead.try_enter() else None

    async def _stand_in_line(self, job: Job) -> Place:
        """A place when one comes free; the lease is renewed meanwhile. `Overloaded` if none does in time."""
        bulkhead, lock, around = self._shared.bulkhead, self._shared.local.lock, self._place_around()
        watch = self._runtime.watch(lambda: self._renew(job), LEASE_MS / 3000, lambda: self._late(job), None)
        try:
            if around is None:
                await bulkhead.enter(self._runtime)
                return Place(bulkhead.leave, lock)
            if await around.wait(self._runtime.signal(), bulkhead.patience):
                return Place(around.give_back, lock)
        finally:
            watch.stop()
        raise Overloaded(f"all places are taken and none came free within {bulkhead.patience:g} s")

    def _place_around(self) -> Place | None:
        around = CHAIN.get()
        return None if around.over else around.place

    def _succeeded(self, job: Job, loaded: Loaded) -> Loaded:
        for key in job.flights:
            self._shared.failures.pop(key, None)
        self._shared.forget_failures(self._runtime.now())
        return loaded

    async def give_up(self, job: Job, error: Exception) -> None:
        """End *job* with *error*: told to all who wait, in this process and in others, and not tried again at once."""
        self._events.load_failures += 1
        if not job.landed:
            self._remember(job, error)
        await self.release(job, error)
        self._end_badly(job, error)

    async def _renew(self, job: Job) -> None:
        try:
            await self._remote.renew(job.tokens)
        except Unreachable:
            return  # counted there; if the lease runs out, the fill is refused

    async def _late(self, job: Job) -> None:
        """The loader has used up its time: nobody waits for it any longer."""
        self._events.load_timeouts += 1
        error = LoadTimeout(f"the load of {_names(job.flights)} took longer than {job.rules.hard_timeout:g} s")
        self._leave_breaker(job, error, job.rules.hard_timeout or 0.0)
        for key, flight in job.flights.items():
            self.retire(key, flight)
        self._remember(job, error)
        self._end_badly(job, error)
        await self.release(job, error)

    async def release(self, job: Job, error: Exception | None) -> None:
        """Give the leases of *job* back, with a word on what it died of."""
        if not job.tokens:
            return
        told = None if error is None else Stored(Kind.ERROR, describe(error), 0.0, 0.0, ())
        try:
            await self._remote.release(job.tokens, told)
        except Unreachable:
            return  # counted there; the lease ends by itself

    def _end_badly(self, job: Job, error: Exception) -> None:
        for key, flight in job.flights.items():
            stale = job.stale.get(key)
            if stale is not None and stale.stored is not None and self.servable(job.rules, stale):
                self._events.stale_hits += not flight.landed
                flight.land(stale.stored, proven=False)
            else:
                flight.fail(error)

    def _remember(self, job: Job, error: Exception) -> None:
        backoff = job.rules.error_backoff
        if backoff is None:
            return
        for key in job.flights:
            now, previous = self._runtime.now(), self._shared.failures.get(key)
            lately = previous is not None and now < previous.until + backoff[1]
            pause = next_pause(previous.pause if previous is not None and lately else None, backoff)
            self._shared.remember(key, Failure(error, error.__traceback__, pause, now + pause))

    def paused(self, key: str, rules: Rules) -> Exception | None:
        """The exception because of which *key* is not loaded now, for one more caller."""
        failure = self._shared.failures.get(key)
        if failure is None or rules.error_backoff is None:
            return None
        return None if self._runtime.now() >= failure.until else failure.error.with_traceback(failure.traceback)

    def retire(self, key: str, flight: Flight) -> None:
        """Take no more followers.

        follower:                                       joins, trusts the fill
        leader:   FILL accepted .......... (reply) .......... lands "old"
        writer:                  invalidates

        So nobody may join once the fill is on its way.
        """
        with self._shared.local.lock:
            if self._flights.get(key) is flight:
                self._flights.pop(key, None)

    def servable(self, rules: Rules, stale: Found) -> bool:
        """May *stale* stand in for a load that fails or is slow?"""
        stored = stale.stored
        return stored is not None and stored.kind is Kind.VALUE and -stale.fresh_left < rules.stale

    def stored(self, loaded: Loaded, tags: tuple[str, ...]) -> Stored:
        """What to keep of the outcome of a load; its TTL is drawn later."""
        if loaded.absence is not None:
            return Stored(Kind.ERROR, describe(loaded.absence), 0.0, loaded.seconds, tags)
        kind = Kind.ABSENT if loaded.value is None else Kind.VALUE
        return Stored(kind, loaded.value, 0.0, loaded.seconds, tags)

    def version_of(self, ask: Ask, stored: Stored) -> str | None:
        """The version that the user's function gives to what was loaded; None if it gives none that can be used."""
        if ask.version is None or stored.kind is not Kind.VALUE:
            return ""
        try:
            return version_text(ask.version(stored.value))
        except Exception as error:  # noqa: BLE001 - the user's function; a bad answer must not cost the value
            self._events.unencodable += 1
            self._events.once("version", "version(value) failed, %s is not cached: %r", ask.key, error)
            return None

    def drawn_ttl(self, key: str, rules: Rules, stored: Stored, load: Load) -> float | None:
        """How long *stored*, which *load* has brought, shall be fresh, in seconds; None if it shall not be cached."""
        if not load.kept:
            return None
        if stored.kind is Kind.VALUE:
            try:
                ttl = rules.ttl_of(stored.value)
            except Exception as error:  # noqa: BLE001 - the user's function; a bad answer must not cost the value
                self._events.unencodable += 1
                self._events.once("ttl", "ttl(value) failed, %s is not cached: %r", key, error)
                return None
        elif rules.null_ttl is None:
            return None
        else:
            ttl = rules.null_ttl
            with self._shared.local.lock:
                room = self._shared.budget.take(self._runtime.now(), ttl)
            if not room:
                self._events.absences_over_budget += 1
                return None
        return jittered(ttl, rules.jitter, self._runtime.random())

    def packed(self, key: str, stored: Stored, ttl: float, codec: Codec | None) -> Any:
        """The bytes to store; None if there are none, which is counted and said once."""
        try:
            stored = Stored(stored.kind, stored.value, ttl, stored.load_time, stored.tags, stored.nonces)
            return self._remote.pack(key, stored, codec)
        except Oversize as error:
            self._events.oversize += 1
            self._events.once("oversize", "%s is not cached in Redis: %s", key, error)
        except CodecError as error:
            self._events.unencodable += 1
            self._events.once(f"codec {type(stored.value)}", "%s is not cached in Redis: %s", key, error)
        return None


def _names(keys: Sequence[str] | dict[str, Flight]) -> str:
    names = list(keys)
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")  # noqa: PLR2004 - enough to recognise
