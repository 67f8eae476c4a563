"""Everything one guard owns in this process: its tiers, its connections, its engines."""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

from ..checks import count as number
from ..client.endpoints import Endpoint
from ..codec import Registry
from ..defenses.penetration.absences import AbsenceBudget
from ..defenses.penetration.filter import BloomTier
from ..delivery.bus import Bus
from ..delivery.gate import Gate
from ..delivery.outbox import Outbox
from ..engine.asking import Asking
from ..engine.auditing import Auditor
from ..engine.by_hand import ByHand
from ..engine.here import Here
from ..engine.looking import Looking
from ..engine.reading import Engine
from ..engine.shared import Shared
from ..engine.writes import Writes
from ..errors import CacheGuardError, ConfigurationError
from ..events import Events, Stats, log
from ..keys import Owners
from ..options import Options
from ..ports import Commands
from ..protocol.messages import Drop, Woken
from ..protocol.model import MemoryCommands
from ..protocol.names import Scope, bus_channel, namespace_scope
from ..runtime.aio import PATIENCE_AT_CLOSE, AsyncRuntime
from ..runtime.blocking import BlockingRuntime
from ..runtime.bulkhead import FairBulkhead
from ..runtime.clocks import CLOCK
from ..servers.buses import Buses
from ..servers.lending import client_of, pools
from ..tiers.copies import Copier
from ..tiers.entries import Entries
from ..tiers.heat import HotKey
from ..tiers.held import DEAD
from ..tiers.local import ABSENCE_SHARE, Local
from ..tiers.packing import ObjectPacking, Packing, SealedPacking, weigh_stored
from ..tiers.remote import Remote
from . import forks
from .nodes import Bundle, Node, Nodes
from .unheard import OwnStore


class Hub:
    """Shared by a guard and its namespaces; works from any thread, any event loop, before and after a fork."""

    def __init__(self, options: Options, namespace: str, url: str | None, client: Any, aclient: Any) -> None:
        pool, apool, memory = pools(url, client, aclient)
        _check(options, pool or apool)
        self.options = options
        self.events: Events = Events(on_state_change=options.on_state_change)
        self.registry: Registry = Registry()
        self.owners: Owners = Owners(threading.Lock())
        if options.codec is not None:
            self.registry.register(options.codec)
        self._clock = CLOCK.get()
        self.now: Callable[[], float] = self._clock.now
        self.closed: bool = False
        self.local: Local = Local(
            options.l1_size,
            options.l1_max_bytes,
            options.l1_eviction,
            threading.RLock(),
            self.events,
            self.now,
            beside_redis=not memory,
        )
        self.memory = memory
        self.filters: dict[tuple[object, ...], BloomTier] = {}
        budget = max(1, options.l1_size // ABSENCE_SHARE) if memory else options.max_absences
        self.bulkhead: FairBulkhead = FairBulkhead(options.max_loads, options.load_wait, options.load_queue)
        self.auditor: Auditor | None = Auditor(options.audit) if options.audit else None
        self._pool, self._apool = pool, apool
        self._store = MemoryCommands(
            options.l1_size,
            threading.RLock(),
            self.now,
            max_bytes=options.l1_max_bytes,  # the same objects as in L1
            weigh=partial(weigh_stored, most=options.l1_max_bytes or math.inf),
        )
        root = namespace_scope(namespace).epochs[0]
        # What this process keeps in the place of Redis is nobody's to hear of, and nothing of it can be pending.
        self._unheard = (
            Bus("", "", _ignore, self.local, self.events, now=self.now),
            Outbox(root, self.events, self.now),
        )
        self._nodes: Nodes | None = None
        if not memory:
            self.local.trust(DEAD)
            make = partial(
                Node,
                options=options,
                channel=bus_channel(namespace),
                root=root,
                forget=self._heard,
                missed=self._missed,
                now=self.now,
            )
            self._nodes = Nodes(pool, apool, self.local, self.events, make, self.now)
        self.bus: Bus | Buses = self._unheard[0] if self._nodes is None else self._nodes.bus
        self.shared: Shared = Shared(
            self.local,
            self.events,
            self.bulkhead,
            AbsenceBudget(budget),
            self.bus,
            options.alone,
            leases=forks.leases,
            copier=Copier(self.registry) if options.l1_copy else None,
        )
        here = Here(self._store, beside_redis=not memory)
        self.shared.limit = here.limit
        self._store.woken = self.shared.wake
        raises = options.raise_unreachable
        self.writes: Writes = Writes(self.shared, here, raises=raises)
        self.by_hand: ByHand = ByHand(self.shared, here, self.writes, self.registry, options.codec, raises=raises)
        self.looking: Looking = Looking(self.shared)
        self.asking: Asking = Asking(self.shared, self.auditor)
        self.thread_ends: list[Callable[[], object]] = []
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
                    engine = self._engine(self._threads(self._store))
                else:
                    if self._pool is None:
                        raise ConfigurationError("this guard was given no blocking Redis client: pass client= or a URL")
                    ways = nodes.blocking()
                    engine = self._engine(self._threads(nodes.commands(ways)), ways)
                self._engines[0, l2] = engine
            return engine

    def _threads(self, commands: Commands) -> BlockingRuntime:
        runtime = self._clock.threads(commands)
        runtime.thread_ends = self.thread_ends
        return runtime

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
            bus, outbox = self._unheard
            gate = Gate(self._store, self.events, outbox, bus)
            packing: Packing = ObjectPacking(self.shared.copier)
            remote: Entries
            if self.memory:
                remote = Remote(gate, packing, self.events)
            else:
                remote = OwnStore(gate, packing, self.events, hears=self._hears)
        else:
            packing = SealedPacking(self.options.sealer, self.registry, copies=self.options.l1_copy)
            remote = self._nodes.remote(ways, runtime, packing, abreast=isinstance(runtime, AsyncRuntime))
        audit = None if self.auditor is None else self.auditor.consider
        return Engine(runtime, remote, self.shared, audit, in_process=isinstance(packing, ObjectPacking))

    def _hears(self) -> bool:
        return self.now() < self.local.trusted_until

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

    def _heard(self, news: Drop | Woken) -> None:
        if isinstance(news, Woken):
            self.shared.wake(news.key)
        else:
            self.writes.heard(news)

    def _missed(self) -> None:
        self.writes.missed()

    def filter(
        self,
        names: tuple[str, ...],
        name: str,
        capacity: int,
        error_rate: float,
        lease: float | None,
        *,
        queues: bool,
    ) -> BloomTier:
        """The Bloom filter *name* of the namespace *names*, one for all who ask for the same."""
        known = (names, name, capacity, error_rate, lease, queues)
        tier = self.filters.get(known) or BloomTier(
            name,
            capacity=capacity,
            error_rate=error_rate,
            lock=self.new_lock(),
            events=self.events,
            namespace="/".join(names),
            shared=not self.memory,
            mirror_lease=lease,
            secrets=self.options.secrets,
            queues=queues,
        )
        self.filters[known] = tier
        return tier

    @property
    def where(self) -> str:
        """How the servers are reached, without anybody's name or password."""
        return "memory://" if self.memory else repr(self._pool or self._apool)

    def new_client(self, *, is_async: bool, key: str | None) -> Any:
        """A client of redis-py's own for the same servers; of several nodes, for the one that *key* belongs to."""
        endpoint = self._apool if is_async else self._pool
        if endpoint is None:
            raise ConfigurationError(
                "there is no Redis to make a client for: memory://, or a guard with clients of the other kind only"
            )
        if endpoint.ring is not None and self._nodes is not None:
            if key is None:
                raise ConfigurationError(
                    "key must say for which of the nodes of redis+ring:// the client is: new_client(key=...) makes one "
                    "for the node that this Redis key belongs to"
                )
            endpoint = endpoint.of(self._nodes.home_of(key))
        return client_of(endpoint, is_async=is_async)

    def new_lock(self) -> AbstractContextManager[Any]:
        """A lock for a part that must not know threads."""
        return threading.RLock()

    def hot(self, scope: Scope, count: int) -> list[HotKey]:
        """The hottest keys of the namespace that *scope* is of."""
        most = number("count", count)
        hot = self.local.hot(most, lambda name: name.startswith(scope.prefix))
        return [HotKey(scope.text(name) or name, template, share) for name, template, share in hot]

    def stats(self) -> Stats:
        """The counters as they stand."""
        return self.events.snapshot(*self.local.census(), [] if self._nodes is None else self._nodes.events)

    def close(self, until: float | None = None) -> None:
        """End the threads and the connections that threads use; the event loops' engines go with `aclose`.

        Args:
            until: monotonic seconds, how long to wait for threads that are in the middle of something.
        """
        until = time.monotonic() + PATIENCE_AT_CLOSE if until is None else until
        if self.local.watch is not None:
            self.local.watch.closing()
        self.closed = self.events.over = True
        self.local.drop_all()
        if self._nodes is not None:
            self._nodes.close(until)
        for name, engine in list(self._engines.items()):
            runtime = engine.runtime
            if isinstance(runtime, BlockingRuntime):
                runtime.close(until)
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
        until = time.monotonic() + PATIENCE_AT_CLOSE
        self.closed = self.events.over = True
        loop = asyncio.get_running_loop()
        for name, engine in list(self._engines.items()):
            if isinstance(engine.runtime, AsyncRuntime) and engine.runtime.loop is loop:
                self._remove(name, engine)
                await engine.runtime.aclose(until)
        blocking = [engine.runtime for engine in self._engines.values() if isinstance(engine.runtime, BlockingRuntime)]
        if any(runtime.busy for runtime in blocking) or (self._nodes is not None and self._nodes.busy):
            await asyncio.to_thread(self.close, until)
        else:
            self.close(until)

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
                engine.looks.clear()
            else:
                # Held for ever: to let go would make asyncio deregister sockets in an epoll that is the parent's, too.
                self._remove(name, engine)
                _left_behind.append(engine)


def _check(options: Options, endpoint: Endpoint | None) -> None:
    """Refuse, or warn of, what cannot work, or not safely, where the guard is."""
    if options.from_replicas and not (endpoint is not None and endpoint.has_replicas):
        raise ConfigurationError(
            "read_from='replica' needs replicas that can be found: redis+sentinel://, redis+cluster://, or a "
            f"client of either; got {'memory://' if endpoint is None else 'a single server'}"
        )
    if options.runs_code and endpoint is not None:
        log.warning(
            "serializer=%s runs what it reads, and whoever can write to Redis can run code here: give a secret as "
            "well, so that only what is signed is read",
            options.runs_code,
        )


def _ignore(_news: object) -> None:
    """Hear nothing."""


_left_behind: list[Engine] = []
