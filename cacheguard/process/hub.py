"""Everything one guard owns in this process: its tiers, its connections, its engines."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

from ..client.places import Place
from ..codec import Codec, Registry
from ..defenses.penetration.absences import AbsenceBudget
from ..defenses.penetration.filter import BloomTier
from ..delivery.bus import Bus
from ..delivery.line import Line
from ..delivery.outbox import Invalidation, Outbox
from ..engine.auditing import Auditor
from ..engine.reading import Engine
from ..engine.shared import Shared
from ..errors import CacheGuardError, ConfigurationError, Unreachable
from ..events import Events, Stats
from ..missing import MISSING
from ..options import Options
from ..policy import Rules
from ..protocol.model import MemoryCommands
from ..protocol.names import Scope, bus_channel, namespace_scope
from ..runtime import run_now
from ..runtime.aio import AsyncRuntime
from ..runtime.blocking import BlockingRuntime
from ..runtime.bulkhead import FairBulkhead
from ..runtime.clocks import CLOCK
from ..servers.lending import client_of
from ..tiers.local import ABSENCE_SHARE, DEAD, Local
from ..tiers.packing import ObjectPacking, SealedPacking, weigh_stored
from ..tiers.remote import Remote
from . import forks
from .nodes import Bundle, Node, Nodes


class Hub:
    """Shared by a guard and its namespaces; works from any thread, any event loop, before and after a fork."""

    def __init__(
        self, options: Options, namespace: str, pool: Place | None, apool: Place | None, *, memory: bool
    ) -> None:
        self.options = options
        self.events = Events()
        self.events.on_state_change = options.on_state_change
        self.registry = Registry()
        self.off = 0
        self._clock = CLOCK.get()
        self.now = self._clock.now
        self.closed = False
        self.local = Local(
            options.l1_size,
            options.l1_max_bytes,
            options.l1_eviction,
            threading.RLock(),
            self.events,
            self.now,
        )
        self.memory = memory
        self.filters: dict[tuple[object, ...], BloomTier] = {}
        budget = max(1, options.l1_size // ABSENCE_SHARE) if memory else options.max_absences
        self.bulkhead = FairBulkhead(options.max_loads, options.load_wait, options.load_queue)
        self.auditor = Auditor(options.audit) if options.audit else None
        self._pool, self._apool = pool, apool
        self._store = MemoryCommands(
            options.l1_size, threading.RLock(), self.now, max_bytes=options.l1_max_bytes, weigh=weigh_stored
        )
        root = namespace_scope(namespace).epochs[0]
        # What this process keeps in the place of Redis is nobody's to hear of, and nothing of it can be owed.
        self._here = (
            Bus("", "", _ignore, self.local, self.events, now=self.now),
            Outbox(root, self.events, self.now),
        )
        self._nodes: Nodes | None = None
        if not memory:
            self.local.trust(DEAD)
            make = partial(
                Node, options=options, channel=bus_channel(namespace), root=root, forget=self._forget, now=self.now
            )
            self._nodes = Nodes(pool, apool, self.local, self.events, make, self.now)
        self.bus = self._here[0] if self._nodes is None else self._nodes.bus
        self.shared = Shared(self.local, self.events, self.bulkhead, AbsenceBudget(budget), self.bus, options.alone)
        self._engines: dict[tuple[int, bool], Engine] = {}
        self._lock = threading.RLock()
        forks.register(self)

    def blocking(self, *, l2: bool = True) -> Engine:
        """The engine for threads."""
        return self._engines.get((0, l2)) or self._blocking(l2=l2)

    def _blocking(self, *, l2: bool) -> Engine:
        self._check_open()
        with self._lock:
            engine = self._engines.get((0, l2))
            if engine is None:
                nodes = self._nodes if l2 else None
                if nodes is None:
                    engine = self._engine(self._clock.threads(self._store))
                else:
                    if self._pool is None:
                        raise ConfigurationError("this guard was given no blocking Redis client: pass client= or a URL")
                    ways = nodes.blocking()
                    engine = self._engine(self._clock.threads(nodes.commands(ways)), ways)
                self._engines[0, l2] = engine
            return engine

    def running(self, *, l2: bool = True) -> Engine:
        """The engine of the event loop that runs here."""
        loop = asyncio.get_running_loop()
        engine = self._engines.get((id(loop), l2))
        if engine is not None and engine.runtime.loop is loop:  # type: ignore[attr-defined]  # an AsyncRuntime
            return engine
        return self._running(loop, l2=l2)

    def _running(self, loop: asyncio.AbstractEventLoop, *, l2: bool) -> Engine:
        self._check_open()
        with self._lock:
            self._leave_closed_loops(loop)
            nodes = self._nodes if l2 else None
            if nodes is None:
                engine = self._engine(self._clock.tasks(self._store))
            else:
                if self._apool is None:
                    raise ConfigurationError("this guard was given no asyncio Redis client: pass aclient= or a URL")
                ways = nodes.running()
                engine = self._engine(self._clock.tasks(nodes.commands(ways), Bundle(ways.values())), ways)
            self._engines[id(loop), l2] = engine
            return engine

    def _engine(self, runtime: Any, ways: Mapping[str, Any] | None = None) -> Engine:
        """An engine that goes to Redis these *ways*; without any, it works on what this process keeps instead."""
        if self._nodes is None or ways is None:
            bus, outbox = self._here
            line = Line(self._store, self.events, outbox, bus)
            packing = ObjectPacking(copies=self.options.l1_copy)
            engine = Engine(runtime, Remote(line, packing, self.events, runtime.token), self.shared)
        else:
            sealed = SealedPacking(self.options.sealer, self.registry)
            abreast = isinstance(runtime, AsyncRuntime)
            engine = Engine(runtime, self._nodes.remote(ways, runtime, sealed, abreast=abreast), self.shared)
        if self.auditor is not None:
            engine.audit = self.auditor.consider
        return engine

    def _leave_closed_loops(self, current: asyncio.AbstractEventLoop) -> None:
        """Let go of engines whose event loop has ended, and of one whose place in memory this loop has taken."""
        for name, engine in list(self._engines.items()):
            runtime = engine.runtime
            if isinstance(runtime, AsyncRuntime) and runtime.loop is not current and runtime.loop.is_closed():
                self._remove(name, engine)
                runtime.abandon()

    def _remove(self, name: tuple[int, bool], engine: Engine) -> None:
        self._engines.pop(name, None)
        self.shared.close_flights(engine.flights)

    def _check_open(self) -> None:
        if self.closed:
            raise CacheGuardError("this guard is closed")

    def forget_here(self, items: Iterable[Invalidation]) -> None:
        """Invalidate *items* in what this process keeps in the place of Redis, for functions with ``l2=False``."""
        if not self.memory:
            calls = [call for item in items for call in item.calls("", "-")]
            run_now(self._store.send_each(*calls))

    def _forget(self, name: str) -> None:
        """Drop *name*: another process has changed it."""
        self.forget_here([Invalidation(name)])
        self.shared.drop([name])

    async def write(self, engine: Engine, items: Sequence[Invalidation], *, quietly: bool = False) -> None:
        """Invalidate *items*; if Redis has not acknowledged it, it is owed, and said if the guard wants to know."""
        self.forget_here(items)
        await self.tell(engine.write, items, quietly=quietly)

    async def tell(
        self, engine_call: Callable[[Any], Awaitable[bool]], what: Sequence[Any], *, quietly: bool = False
    ) -> None:
        """Invalidate or expire; if Redis has not acknowledged it, it is owed, and said if the guard wants to know."""
        if not what or await engine_call(what):
            return
        self.bus.listen()  # who listens delivers it, even if nobody here asks for anything any more
        if self.options.raise_unreachable and not quietly:
            raise Unreachable("Redis cannot be reached: the invalidation is queued and delivered when it is back")

    async def put(
        self,
        engine: Engine,
        values: dict[str, Any],
        rules: Rules,
        codecs: dict[str, Codec],
        *,
        tags: tuple[str, ...],
        scope: Scope,
        version: str,
    ) -> None:
        """Store values by hand. What Redis did not take is invalidated instead, so that nothing older stays."""
        if self.off:
            await self.tell(engine.invalidate, list(values))
            return
        failures: list[Unreachable] = []

        async def store(keys: list[str]) -> None:
            try:
                await engine.store({key: values[key] for key in keys}, rules, codecs, tags, scope, version)
            except Unreachable as error:
                failures.append(error)
                await engine.invalidate(keys)

        works = [partial(store, keys) for keys in engine.remote.groups(values)]
        await engine.runtime.each(works, engine.remote.abreast)
        if failures and self.options.raise_unreachable:
            raise Unreachable(
                f"Redis cannot be reached: {'nothing' if len(failures) == len(works) else 'not everything'} is stored, "
                "older values are invalidated"
            ) from failures[0]

    async def add(
        self,
        engine: Engine,
        key: str,
        value: Any,
        rules: Rules,
        codec: Codec,
        *,
        tags: tuple[str, ...],
        scope: Scope,
    ) -> bool:
        """Store a value if none is there; false if Redis cannot say so."""
        if self.off:
            await self.tell(engine.invalidate, [key])
            return True
        try:
            return await engine.add(key, value, rules, codec, tags, scope)
        except Unreachable as error:
            if self.options.raise_unreachable:
                raise Unreachable("Redis cannot be reached: nothing is added") from error
            return False

    async def update(
        self, engine: Engine, key: str, change: Callable[[Any], Any], codec: Codec | None, scope: Scope
    ) -> Any:
        """Change a value in one step; `MISSING` if there is none, or Redis cannot say so."""
        if self.off:
            return MISSING
        try:
            return await engine.update(key, change, codec, scope)
        except Unreachable as error:
            if self.options.raise_unreachable:
                raise Unreachable("Redis cannot be reached: nothing is changed, or nobody knows") from error
            return MISSING

    async def touch(self, engine: Engine, key: str, rules: Rules, scope: Scope) -> bool:
        """Give an entry a new TTL; false if there is none, or Redis cannot say so."""
        try:
            return await engine.touch(key, rules, scope)
        except Unreachable:
            return False

    @property
    def where(self) -> str:
        """How the servers are reached, without anybody's name or password."""
        return "memory://" if self.memory else repr(self._pool or self._apool)

    def new_client(self, *, is_async: bool, key: str | None) -> Any:
        """A client of redis-py's own for the same servers; of several nodes, for the one that *key* belongs to."""
        place = self._apool if is_async else self._pool
        if place is None:
            raise ConfigurationError(
                "there is no Redis to make a client for: memory://, or a guard with clients of the other kind only"
            )
        if place.ring is not None and self._nodes is not None:
            if key is None:
                raise ConfigurationError(
                    "key must say for which of the nodes of redis+ring:// the client is: new_client(key=...) makes one "
                    "for the node that this Redis key belongs to"
                )
            place = place.of(self._nodes.home_of(key))
        return client_of(place, is_async=is_async)

    def new_lock(self) -> AbstractContextManager[Any]:
        """A lock for a part that must not know threads."""
        return threading.RLock()

    def switch(self, *, off: bool) -> None:
        """Turn caching off, or on again; calls nest."""
        with self._lock:
            self.off += 1 if off else -1
        self.local.switch(off=off)

    def stats(self) -> Stats:
        """The counters as they stand."""
        return self.events.snapshot(*self.local.census(), [] if self._nodes is None else self._nodes.events)

    def close(self) -> None:
        """End the threads and the connections that threads use; the event loops' engines go with `aclose`."""
        self.closed = self.events.over = True
        self.local.drop_all()
        if self._nodes is not None:
            self._nodes.close()
        for name, engine in list(self._engines.items()):
            runtime = engine.runtime
            if isinstance(runtime, BlockingRuntime):
                runtime.close()
                self._remove(name, engine)
            elif isinstance(runtime, AsyncRuntime):
                self._remove(name, engine)
                self._close_from_outside(runtime)
        if self._nodes is not None:
            self._nodes.disconnect()
        forks.forget(self)

    def _close_from_outside(self, runtime: AsyncRuntime) -> None:
        """Ask another loop to end its engine; if that loop is over, let go of the connection here."""
        if runtime.loop.is_running():
            runtime.loop.call_soon_threadsafe(lambda: runtime.spawn(runtime.aclose()))
        else:
            runtime.abandon()

    async def aclose(self) -> None:
        """End everything, waiting for what belongs to this event loop."""
        self.closed = self.events.over = True
        loop = asyncio.get_running_loop()
        for name, engine in list(self._engines.items()):
            if isinstance(engine.runtime, AsyncRuntime) and engine.runtime.loop is loop:
                self._remove(name, engine)
                await engine.runtime.aclose()
        blocking = [engine.runtime for engine in self._engines.values() if isinstance(engine.runtime, BlockingRuntime)]
        if any(runtime.busy for runtime in blocking) or (self._nodes is not None and self._nodes.busy):
            await asyncio.to_thread(self.close)
        else:
            self.close()

    def before_fork(self) -> list[Callable[[], None]]:
        """Get ready for a fork, in the thread that forks; what to call in the parent afterwards."""
        return [] if self._nodes is None else self._nodes.before_fork()

    def after_fork(self) -> None:
        """Leave the parent's threads, loops, connections and flights to the parent."""
        self._lock = threading.RLock()
        self.local.lock = threading.RLock()
        self._store.after_fork(threading.RLock())
        self.bulkhead.reset()
        if self.auditor is not None:
            self.auditor.after_fork()
        for tier in self.filters.values():
            tier.after_fork(threading.RLock())
        self.shared.after_fork()
        if self._nodes is not None:
            self.local.trust(DEAD)
            self._nodes.after_fork()
        for name, engine in list(self._engines.items()):
            if isinstance(engine.runtime, BlockingRuntime):
                engine.runtime.after_fork()
            else:
                # Held for ever: to let go would make asyncio deregister sockets in an epoll that is the parent's, too.
                self._remove(name, engine)
                _left_behind.append(engine)


def _ignore(_name: str) -> None:
    """Hear nothing."""


_left_behind: list[Engine] = []
