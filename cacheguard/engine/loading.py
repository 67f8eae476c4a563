"""Runs the user's loader: with a permit, under its leases, within its timeout, and through its circuit breaker."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..codec.once import refuse
from ..current_load import CURRENT, Load
from ..errors import LoadTimeout, Overloaded, Unreachable
from ..protocol.calls import LEASE_MS
from ..protocol.entry import Stored
from ..protocol.envelope import Kind
from ..protocol.exceptions import told
from ..tiers.entries import Entries
from .ask import Job, Loaded
from .flights import Flights
from .permits import CHAIN, Chain, Permit, free_permit, next_permit, no_permit, waits_for_itself
from .shared import Shared
from .waiting import Waiting

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ..policy import LoadBreaker
    from ..ports import Runtime, Watch


class _NoWatch:
    """The watch of a load that is not watched yet."""

    def stop(self) -> None:
        """Do nothing."""


NO_WATCH = _NoWatch()


class Loading:
    """Runs loaders under one runtime. The main entry point is `run`."""

    def __init__(self, runtime: Runtime, remote: Entries, shared: Shared, flights: Flights) -> None:
        self._runtime, self._remote, self._shared, self._flights = runtime, remote, shared, flights
        self._events = shared.events
        self._waiting = Waiting(runtime, shared)

    async def run(self, job: Job) -> Loaded | None:
        """Run the loader of *job*; None if it failed and its flights have ended already."""
        try:
            if job.rules.breaker is not None:
                self._enter_breaker(job, job.rules.breaker)
            permit = await self._permit(job) if job.bounded else None
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
        # The keys alone: a task or a timer that the loader leaves behind keeps this chain, and must not keep flights.
        chain, load = Chain(frozenset(job.flights), permit, CHAIN.get()), Load(primary=job.primary)
        reset, reset_load = CHAIN.set(chain), CURRENT.set(load)
        watch: Watch = NO_WATCH
        began = self._runtime.now()
        try:
            # In here: to begin to watch may be where the caller is interrupted (gevent's timeouts come at any wait).
            watch = self._watch(job, job.rules.hard_timeout)
            self._events.loads += 1
            loaded = Loaded(await self._value(job), None, self._runtime.now() - began, load)
        except Exception as error:  # noqa: BLE001 - the loader's own, for all who wait
            seconds = self._runtime.now() - began
            if not isinstance(error, job.rules.not_found):
                self._leave_breaker(job, error, seconds)
                watch.stop()
                await self.give_up(job, error)
                return None
            loaded = Loaded(None, error, seconds, load)
        except BaseException as error:
            watch.stop()
            self._leave_breaker(job, error, 0.0)
            await self.release(job, None)
            raise
        finally:
            watch.stop()
            CURRENT.reset(reset_load)
            CHAIN.reset(reset)
            chain.over = load.over = True
            if permit is not None:
                permit.end()
        if job.turn is not None:
            self._leave_breaker(job, None, loaded.seconds)
        if self._shared.failures:
            self._shared.succeeded(job.flights)
        return loaded

    async def _value(self, job: Job) -> Any:
        """What the loader returns; `CodecError` if that can be read only once."""
        value = await self._runtime.call(job.load)
        for key, each in job.rows(value).items():
            refuse(key, each)
        return value

    def _enter_breaker(self, job: Job, breaker: LoadBreaker) -> None:
        """Enter the load breaker; `Overloaded` if it is open."""
        try:
            job.turn = breaker.enter()
        except Overloaded:
            self._events.breaker_rejects += 1
            raise

    def _leave_breaker(self, job: Job, error: BaseException | None, seconds: float) -> None:
        """Report the outcome of the load to the breaker, once."""
        turn, job.turn = job.turn, None
        if turn is not None and job.rules.breaker is not None:
            job.rules.breaker.leave(turn, error, seconds)

    async def _permit(self, job: Job) -> Permit:
        """A permit of the bulkhead, or `Overloaded`. The leases are renewed while the load waits for it."""
        shared, here = self._shared, self._runtime.here()
        permit = free_permit(shared, here)
        if permit is None and waits_for_itself(shared, here):
            self._waiting.advise(_names(job.flights))
            permit = no_permit(shared)
        if permit is not None:
            return permit
        watch = self._watch(job, None)
        try:
            return await next_permit(shared, self._runtime, here)
        finally:
            watch.stop()

    def _watch(self, job: Job, deadline: float | None) -> Watch:
        """Renew the leases of *job* from now on, and give the job up after *deadline* seconds."""
        return self._runtime.watch(lambda: self._renew(job), LEASE_MS / 3000, lambda: self._late(job), deadline)

    async def _renew(self, job: Job) -> None:
        try:
            await self._remote.renew(job.tokens)
        except Unreachable:
            return  # counted there; if the lease runs out, the fill is refused

    async def _late(self, job: Job) -> None:
        """Give the load up at its timeout. The loader may still run, but no caller waits for it."""
        self._events.load_timeouts += 1
        error = LoadTimeout(f"the load of {_names(job.flights)} took longer than {job.rules.hard_timeout:g} s")
        self._leave_breaker(job, error, job.rules.hard_timeout or 0.0)
        for key, flight in job.flights.items():
            self._flights.retire(key, flight)
        failures, pause = self._shared.failed(job.flights, error, job.rules, self._runtime, job.failures)
        self._end_badly(job, error)
        await self.release(job, error, failures, pause)

    async def give_up(self, job: Job, error: Exception) -> None:
        """End *job* with *error*, for all callers here and in other processes. The back-off of its keys begins."""
        self._events.load_failures += 1
        failures, pause = 0, 0.0
        if not job.landed:
            failures, pause = self._shared.failed(job.flights, error, job.rules, self._runtime, job.failures)
        await self.release(job, error, failures, pause)
        self._end_badly(job, error)

    async def release(self, job: Job, error: Exception | None, failures: int = 0, pause: float = 0.0) -> None:
        """Give the leases of *job* back. One round trip.

        Processes that wait for them are told *error*; so are those that come within *pause* seconds, and that it was
        so many *failures* in a row.
        """
        if not job.tokens:
            return
        for key, lease in job.leases.items():
            if key in job.asks:
                self._shared.left_behind(job.asks[key], lease.marks, self._runtime.now())
        failure = None if error is None else Stored(Kind.ERROR, told(error), 0.0, 0.0, ())
        try:
            await self._remote.release(job.tokens, failure, failures=failures, kept_ms=round(pause * 1000))
        except Unreachable:
            return  # counted there; the lease ends by itself

    def _end_badly(self, job: Job, error: Exception) -> None:
        """Land the flights of *job*: on a stale value if one may be served, else on *error*."""
        for key, flight in job.flights.items():
            stale = job.fallback(key)
            if stale is None:
                flight.fail(error)
            else:
                self._events.stale_hits += not flight.landed
                flight.land(stale, proven=False)


def _names(keys: Iterable[str]) -> str:
    names = list(keys)
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")  # noqa: PLR2004 - enough to recognise
