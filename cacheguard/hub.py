"""Everything one guard owns in this process: its tiers, its connections, its engines."""

from __future__ import annotations

import asyncio
import os
import threading
import time
import weakref
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from .auditing import Auditor
from .codec import Codec, Registry
from .defenses.penetration import AbsenceBudget
from .engine import Engine
from .errors import CacheGuardError, ConfigurationError, Unreachable
from .events import Events, Stats
from .flights import Shared
from .keys import Scope, bus_channel, namespace_scope
from .missing import MISSING
from .options import Options
from .policy import Rules
from .ports import Commands, Replicas
from .runtime import run_now
from .runtime.aio import AsyncRuntime
from .runtime.blocking import BlockingRuntime
from .runtime.bulkhead import FairBulkhead
from .runtime.servers import Identity, Place, Steady, client_of
from .tiers.bloom import BloomTier
from .tiers.bus import Bus
from .tiers.line import Line
from .tiers.local import ABSENCE_SHARE, DEAD, Local
from .tiers.memory import MemoryCommands
from .tiers.outbox import Invalidation, Outbox
from .tiers.packing import ObjectPacking, SealedPacking, weigh_stored
from .tiers.remote import Remote

if TYPE_CHECKING:
    from .runtime.cluster import Wires
    from .runtime.listener import Listener

MOST_CONNECTIONS = 64


class Hub:
    """Shared by a guard and its namespaces; works from any thread, any event loop, before and after a fork."""

    def __init__(
        self, options: Options, namespace: str, pool: Place | None, apool: Place | None, *, memory: bool
    ) -> None:
        self.options = options
        self.events = Events()
        self.registry = Registry()
        self.off = 0
        self.now = time.monotonic
        self.closed = False
        self.local = Local(
            options.l1_size,
            options.l1_max_bytes,
            options.l1_eviction,
            threading.RLock(),
            self.events,
            time.monotonic,
        )
        self.memory = memory
        self.filters: dict[tuple[object, ...], BloomTier] = {}
        budget = max(1, options.l1_size // ABSENCE_SHARE) if memory else options.max_absences
        self.bulkhead = FairBulkhead(options.max_loads, options.load_wait)
        channel = bus_channel(namespace)
        self.auditor = Auditor(options.audit) if options.audit else None
        self.bus = Bus(channel, os.urandom(8).hex(), self._forget, self.local, self.events, now=time.monotonic)
        self.shared = Shared(self.local, self.events, self.bulkhead, AbsenceBudget(budget), self.bus, options.alone)
        self._pool, self._apool = pool, apool
        self._store = MemoryCommands(
            options.l1_size, threading.RLock(), time.monotonic, max_bytes=options.l1_max_bytes, weigh=weigh_stored
        )
        root = namespace_scope(namespace).epochs[0]
        ledger = None
        if options.outbox is not None and not memory:
            from .tiers.ledger import FileLedger

            ledger = FileLedger(options.outbox, root, threading.RLock())
        self._outbox = Outbox(root, self.events, time.monotonic, ledger, threading.RLock())
        # What this process keeps in the place of Redis is nobody's to hear of, and nothing of it can be owed.
        self._here = (
            Bus("", "", _ignore, self.local, self.events, now=time.monotonic),
            Outbox(root, self.events, time.monotonic),
        )
        self._listener: Listener | None = None
        self._wires: Wires | None = None
        if not memory:
            from .runtime.cluster import Wires
            from .runtime.listener import Listener

            self.local.trust(DEAD)
            identity = Identity(self._outbox.replay)
            self._wires = Wires(pool, apool, MOST_CONNECTIONS, options.operation_timeout, identity)
            line = Line(self._wires.blocking, self.events, self._outbox, self.bus)
            follow = self._wires.follow(namespace, MOST_CONNECTIONS).beat if options.from_replicas else None
            self._listener = Listener(
                self.bus, self._wires.blocking, line, self.events, self._outbox.owes, on_beat=follow
            )
            self.bus.start = _starting(weakref.ref(self._listener))
        self._engines: dict[tuple[int, bool], Engine] = {}
        self._lock = threading.RLock()
        _hubs.add(self)

    def blocking(self, *, l2: bool = True) -> Engine:
        """The engine for threads."""
        return self._engines.get((0, l2)) or self._blocking(l2=l2)

    def _blocking(self, *, l2: bool) -> Engine:
        self._check_open()
        with self._lock:
            engine = self._engines.get((0, l2))
            if engine is None:
                wires = self._wires if l2 else None
                if wires is not None and self._pool is None:
                    raise ConfigurationError("this guard was given no blocking Redis client: pass client= or a URL")
                commands = self._store if wires is None else wires.blocking
                runtime = BlockingRuntime(self._store if wires is None else Steady(commands))
                replicas = None if wires is None else wires.replicas
                engine = self._engines[0, l2] = self._engine(runtime, commands, replicas, remote=wires is not None)
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
            wires = self._wires if l2 else None
            if wires is None:
                engine = self._engine(AsyncRuntime(self._store), self._store, None, remote=False)
            else:
                if self._apool is None:
                    raise ConfigurationError("this guard was given no asyncio Redis client: pass aclient= or a URL")
                wire = wires.running()
                replicas = wires.running_replicas()
                runtime = AsyncRuntime(Steady(wire), wire, *(() if replicas is None else (replicas,)))
                engine = self._engine(runtime, wire, replicas, remote=True)
            self._engines[id(loop), l2] = engine
            return engine

    def _engine(self, runtime: Any, commands: Commands, replicas: Replicas | None, *, remote: bool) -> Engine:
        packing = (
            SealedPacking(self.options.sealer, self.registry) if remote else ObjectPacking(copies=self.options.l1_copy)
        )
        bus, outbox = (self.bus, self._outbox) if remote else self._here
        if outbox.owes() and self.bus.start is not None:  # an earlier process has left it
            self.bus.start()
        line = Line(commands, self.events, outbox, bus, replicas)
        engine = Engine(runtime, Remote(line, packing, self.events, runtime.token), self.shared)
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
        self.shared.flights = [flights for flights in self.shared.flights if flights is not engine.flights]

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
        if self.bus.start is not None:  # who listens delivers it, even if nobody here asks for anything any more
            self.bus.start()
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
        try:
            await engine.store(values, rules, codecs, tags, scope, version)
        except Unreachable as error:
            await engine.invalidate(list(values))
            if self.options.raise_unreachable:
                raise Unreachable("Redis cannot be reached: nothing is stored, older values are invalidated") from error

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

    def new_client(self, *, is_async: bool) -> Any:
        """A client of redis-py's own for the same servers."""
        place = self._apool if is_async else self._pool
        if place is None:
            raise ConfigurationError(
                "there is no Redis to make a client for: memory://, or a guard with clients of the other kind only"
            )
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
        self.events.bloom_losses = sum(tier.losses for tier in self.filters.values())
        return self.events.snapshot(*self.local.census())

    def close(self) -> None:
        """End the threads and the connections that threads use; the event loops' engines go with `aclose`."""
        self.closed = True
        self.local.drop_all()
        if self._listener is not None:
            self._listener.close()
        for name, engine in list(self._engines.items()):
            runtime = engine.runtime
            if isinstance(runtime, BlockingRuntime):
                runtime.close()
                self._remove(name, engine)
            elif isinstance(runtime, AsyncRuntime):
                self._remove(name, engine)
                self._close_from_outside(runtime)
        if self._wires is not None:
            self._wires.close()
        _hubs.discard(self)

    def _close_from_outside(self, runtime: AsyncRuntime) -> None:
        """Ask another loop to end its engine; if that loop is over, let go of the connection here."""
        if runtime.loop.is_running():
            runtime.loop.call_soon_threadsafe(lambda: runtime.spawn(runtime.aclose()))
        else:
            runtime.abandon()

    async def aclose(self) -> None:
        """End everything, waiting for what belongs to this event loop."""
        self.closed = True
        loop = asyncio.get_running_loop()
        for name, engine in list(self._engines.items()):
            if isinstance(engine.runtime, AsyncRuntime) and engine.runtime.loop is loop:
                self._remove(name, engine)
                await engine.runtime.aclose()
        blocking = [engine.runtime for engine in self._engines.values() if isinstance(engine.runtime, BlockingRuntime)]
        if any(runtime.busy for runtime in blocking) or (self._listener is not None and self._listener.busy):
            await asyncio.to_thread(self.close)
        else:
            self.close()

    def after_fork(self) -> None:
        """Leave the parent's threads, loops, connections and flights to the parent."""
        self._lock = threading.RLock()
        self.local.lock = threading.RLock()
        self._store.unlock(threading.RLock())
        self.bulkhead.reset()
        for tier in self.filters.values():
            tier.after_fork(threading.RLock())
        self.shared.after_fork()
        if not self.memory:
            self.local.trust(DEAD)
            self.events.bus_up = False
            self.bus.rename(os.urandom(8).hex())
        self._outbox.lock = threading.RLock()
        if self._listener is not None:
            self._listener.after_fork()
        if self._wires is not None:
            self._wires.after_fork()
        for name, engine in list(self._engines.items()):
            if isinstance(engine.runtime, BlockingRuntime):
                engine.runtime.after_fork()
            else:
                # Held for ever: to let go would make asyncio deregister sockets in an epoll that is the parent's, too.
                self._remove(name, engine)
                _left_behind.append(engine)


def _starting(listener: weakref.ref[Listener]) -> Callable[[], None]:
    def start() -> None:
        found = listener()
        if found is not None:
            found.start()

    return start


def _ignore(_name: str) -> None:
    """Hear nothing."""


_left_behind: list[Engine] = []
_hubs: weakref.WeakSet[Hub] = weakref.WeakSet()


def _after_fork() -> None:
    for hub in list(_hubs):
        hub.after_fork()


os.register_at_fork(after_in_child=_after_fork)
