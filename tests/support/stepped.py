"""A process for the stepper: the real engine on a runtime whose every wait lets others move, and a Redis to share."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from contextlib import nullcontext
from enum import Enum
from typing import Any

from cacheguard.codec import Registry
from cacheguard.defenses.penetration.absences import AbsenceBudget
from cacheguard.delivery.bus import Bus
from cacheguard.delivery.gate import Gate
from cacheguard.delivery.outbox import Outbox
from cacheguard.engine.by_hand import ByHand
from cacheguard.engine.here import Here
from cacheguard.engine.reading import Engine
from cacheguard.engine.shared import Shared
from cacheguard.engine.writes import Writes
from cacheguard.errors import Refused, Unreachable
from cacheguard.events import Events
from cacheguard.ports import Call, Commands, Reply, Runtime, ScriptCall
from cacheguard.process.unheard import OwnStore as Beside
from cacheguard.protocol import calls
from cacheguard.protocol.messages import Drop, Woken, heard
from cacheguard.tiers.local import Local
from cacheguard.tiers.packing import ObjectPacking
from cacheguard.tiers.remote import Remote
from tests.support.judged import FORGETTING, Judged, OwnStore
from tests.support.stepper import NOTHING, Crashed, Pause, Stepper, stop_at

REDIS = frozenset({"redis"})
HISTORY = frozenset({"history"})
DATABASE = frozenset({"database"})
CHANNEL = "cg:world:bus"
NEWS = (*FORGETTING, "add", "replace", "tagged")  # what a reader must not miss once it is answered


class DatabaseDown(Exception):  # noqa: N818 - what a loader raises
    """The loader's own."""


class Fault(Enum):
    """What becomes of one round trip."""

    NONE = "none"
    UNHEARD = "unheard"  # it never reached the server
    UNANSWERED = "unanswered"  # it did, and the reply was lost
    REFUSED = "refused"  # the server said no


def never_faulty(place: str, label: str) -> Fault:
    return Fault.NONE


class SteppedCommands:
    """The way of one process to the server. Others may move before a call arrives, and before its reply does."""

    def __init__(self, process: Process) -> None:
        self._process = process

    away = False

    async def send(self, *calls: Call) -> list[Reply]:
        replies = await self.send_each(*calls)
        for reply in replies:
            if isinstance(reply, Refused):
                raise reply
        return replies

    async def masters(self) -> list[Commands]:
        return [self]

    async def read_entry(self, key: str, markers: tuple[str, ...]) -> list[Reply]:
        """The short way: the same question."""
        return await self.send_each(*calls.read(key, markers))

    async def send_each(self, *calls: Call) -> list[Reply]:
        process = self._process
        names = [call.script.name if isinstance(call, ScriptCall) else str(call[0]) for call in calls]
        label = " ".join(dict.fromkeys(names))
        changes = any(isinstance(call, ScriptCall) for call in calls)
        await process.pause(f"→ {label}", reads=REDIS, writes=REDIS if changes else NOTHING)
        fault = process.fault(process.name, label)
        replies: list[Reply] = []
        if fault is Fault.REFUSED:
            replies = [Refused("OOM command not allowed") for _ in calls]
        elif fault is not Fault.UNHEARD:
            for call in calls:
                if replies and process.apart:
                    await process.pause(f"… {label}", reads=REDIS, writes=REDIS if changes else NOTHING)
                replies.append(process.server.answer(call))
        process.stepper.actor.seen = process.server.version
        forgets = any(name in NEWS for name in names)
        await process.pause(f"← {label}", writes=process.here | (HISTORY if forgets else NOTHING))
        process.cut_off |= fault is not Fault.NONE
        if fault in {Fault.UNHEARD, Fault.UNANSWERED}:
            raise Unreachable(f"{label}: {fault.value}")
        return replies


class _OwnCommands:
    """The way of one process to its own store: others may move before and after."""

    away = False

    def __init__(self, process: Process) -> None:
        self._process = process

    async def send(self, *calls: Call) -> list[Reply]:
        replies = await self.send_each(*calls)
        for reply in replies:
            if isinstance(reply, Refused):
                raise reply
        return replies

    async def masters(self) -> list[Commands]:
        return [self]

    async def send_each(self, *calls: Call) -> list[Reply]:
        process = self._process
        names = [call.script.name if isinstance(call, ScriptCall) else str(call[0]) for call in calls]
        await process.pause("⇢ " + " ".join(dict.fromkeys(names)), writes=process.here)
        replies = await process.own.send_each(*calls)
        process.stepper.actor.seen = process.own.version
        await process.pause("⇠ " + " ".join(dict.fromkeys(names)), writes=process.here)
        return replies


class _Kept:
    """The in-process tier and what is kept beside it, as a bus may treat them; see `process.nodes`."""

    def __init__(self, process: Process) -> None:
        self._process = process

    def pause(self) -> None:
        self._process.local.pause()

    def drop_shared(self) -> None:
        self._process.local.drop_shared()
        self._process.writes.missed()

    def trust(self, until: float) -> None:
        self._process.local.trust(until)


class _Signal:
    """A flag that actors of one process wait for."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self._up = False

    def set(self) -> None:
        self._up = True

    async def wait(self, timeout: float | None) -> bool:
        if not self._up:
            until = None if timeout is None else self._process.stepper.now + timeout
            await self._process.pause("waits", writes=self._process.here, ready=lambda: self._up, until=until)
        return self._up


class _Watch:
    """The clockwork beside one load: an actor that lives until the load is over."""

    def __init__(self, process: Process, beat: Any, every: float, late: Any, deadline: float | None) -> None:
        self._process, self._stepper = process, process.stepper
        self._beat, self._every, self._late, self._deadline = beat, every, late, deadline
        self._load = self._stepper.actor
        self._idle, self._stopped = True, False
        now = self._stepper.now
        self._end = None if deadline is None else now + deadline
        self._actor = self._stepper.spawn("watch", self._run(), self._next())

    def _next(self) -> Pause:
        due = self._stepper.now + self._every
        due = due if self._end is None else min(due, self._end)
        return Pause("ticks", writes=self._process.here, ready=lambda: False, until=due)

    async def _run(self) -> None:
        while True:
            self._idle = False
            if self._end is not None and self._stepper.now >= self._end:
                self._stopped = True
                await self._late()
                if not self._process.threads:
                    self._stepper.cancel(self._load.name)
                return
            await self._beat()
            if self._stopped:
                return
            self._idle = True
            self._process.check_alive()
            await stop_at(self._next())
            self._process.check_alive()

    def stop(self) -> None:
        self._stopped = True
        if self._idle:
            self._stepper.dismiss(self._actor)


class SteppedRuntime:
    """The runtime of one process: like an event loop, or like one thread for each caller."""

    def __init__(self, process: Process, commands: Commands, source: Judged | OwnStore, mark: str) -> None:
        self._process, self.commands, self._source, self._mark = process, commands, source, mark
        self._made = 0

    def now(self) -> float:
        return self._process.stepper.now

    def here(self) -> None:
        return None

    def random(self) -> float:
        return 0.5

    def token(self) -> str:
        self._made += 1
        return f"{self._mark}-{self._made}"

    async def sleep(self, seconds: float, until: Any = None) -> None:
        """Stay parked until there is something new to see, or until there is nothing left to do but wait."""
        process, source = self._process, self._source
        seen, until = process.stepper.actor.seen, process.stepper.now + seconds
        await process.pause("polls", writes=process.here, ready=lambda: source.version != seen, until=until)

    def signal(self) -> _Signal:
        return _Signal(self._process)

    def later(self, seconds: float, what: Callable[[], None]) -> None:
        """Never: nothing that is looked at here depends on it."""

    async def start(self, work: Coroutine[Any, Any, None], *, detached: bool) -> bool:
        if self._process.threads and not detached:
            await work
        else:
            self._process.stepper.spawn("flight", work)
        return True

    async def through(self, work: Coroutine[Any, Any, Any]) -> Any:
        return await work

    async def call(self, load: Callable[[], Any]) -> Any:
        return await load()

    async def each(self, works: Sequence[Callable[[], Coroutine[Any, Any, Any]]], most: int) -> list[Any]:
        return [await work() for work in works]

    def watch(
        self,
        beat: Callable[[], Coroutine[Any, Any, None]],
        every: float,
        late: Callable[[], Coroutine[Any, Any, None]],
        deadline: float | None,
    ) -> _Watch:
        return _Watch(self._process, beat, every, late, deadline)


class _OpenBulkhead:
    """Room for all, counted."""

    patience = 1.0

    def __init__(self) -> None:
        self.inside = 0

    async def enter(self, runtime: Runtime) -> None:
        self.inside += 1

    def try_enter(self) -> bool:
        self.inside += 1
        return True

    def leave(self) -> None:
        self.inside -= 1


class Process:
    """One process: its tiers, its engine, and what its own writers were told.

    Args:
        name: also what its steps touch, in the eyes of the stepper.
        stepper: runs its actors.
        server: its Redis.
        threads: its callers block, each in a thread of its own; without, they are tasks of one event loop.
        fault: decides over each round trip, by process and names of the calls.
        make_engine: what reads and writes.
        own: its functions have ``l2=False``: what they cache stays in this process.
        apart: others may move between the calls of one round trip, too.
    """

    def __init__(
        self,
        name: str,
        stepper: Stepper,
        server: Judged,
        *,
        threads: bool = False,
        fault: Callable[[str, str], Fault] = never_faulty,
        make_engine: type[Engine] = Engine,
        own: bool = False,
        apart: bool = False,
    ) -> None:
        self.name, self.stepper, self.server, self.threads, self.fault = name, stepper, server, threads, fault
        self.here = frozenset({name})
        self.dead = False
        self.cut_off = False  # whether a round trip of this process ever failed
        self.apart = apart
        self.told: dict[str, int] = {}
        self.heard: dict[str, dict[str, int]] = {}  # by name, what the database said when the news of it was published
        self.parked: dict[str, dict[str, int]] = {}  # the same, of its own changes that are under way
        self.changing: Counter[str] = Counter()  # by name, its own changes that are under way
        self.events = Events()
        self.local = Local(100, None, "lru", nullcontext(), self.events, lambda: stepper.now)
        self.bulkhead = _OpenBulkhead()
        now = self.local._now  # noqa: SLF001 - one clock for all
        self.bus = Bus(CHANNEL, name, self._heed, _Kept(self), self.events, now=now)
        self.shared = Shared(self.local, self.events, self.bulkhead, AbsenceBudget(1000), self.bus)
        self.from_copy: set[str] = set()  # actors that were given what this process keeps, in the course of a read
        self._note_copies()
        self.own = OwnStore(stepper)
        self.registry = Registry()
        here = Here(self.own, beside_redis=True)
        self.shared.limit = here.limit
        self.writes = Writes(self.shared, here, raises=False)
        self.by_hand = ByHand(self.shared, here, self.writes, self.registry, None, raises=True)
        commands = SteppedCommands(self)
        self.runtime = SteppedRuntime(self, commands, server, name)
        self.outbox = Outbox("cg:world:m", self.events, now)
        remote = Remote(Gate(commands, self.events, self.outbox, self.bus), server.packing(), self.events)
        self.engine = make_engine(self.runtime, remote, self.shared)
        self._own_engine = self._beside(make_engine) if own else None
        self.inbox: list[tuple[str, dict[str, int]]] = []
        self.connected = False
        self._deliveries = 0

    def _beside(self, make_engine: type[Engine]) -> Engine:
        """The engine of functions with ``l2=False``, wired as `process.hub` does it."""
        commands = _OwnCommands(self)
        runtime = SteppedRuntime(self, commands, self.own, f"{self.name}own")
        bus = Bus("", "", lambda _: None, self.local, self.events, now=self.local._now)  # noqa: SLF001 - one clock
        gate = Gate(commands, self.events, Outbox("cg:world:m", self.events, runtime.now), bus)
        remote = Beside(gate, ObjectPacking(), self.events, hears=self._hears)
        return make_engine(runtime, remote, self.shared, in_process=True)

    def _note_copies(self) -> None:
        """Note who is given a copy: the rule of the in-process tier is that one, whenever it is asked."""
        alive, stale = self.local.alive, self.shared.meanwhile.entry

        def noted(entry: Any) -> Any:
            if entry is not None and self.stepper._running is not None:  # noqa: SLF001 - a test may look, too
                self.from_copy.add(self.stepper.actor.name)
            return entry

        self.local.alive = lambda key: noted(alive(key))  # type: ignore[method-assign]
        self.shared.meanwhile.entry = lambda key, now: noted(stale(key, now))  # type: ignore[method-assign]

    def _hears(self) -> bool:
        return self.stepper.now < self.local.trusted_until

    @property
    def keeps_its_own(self) -> bool:
        """Whether its functions have ``l2=False``."""
        return self._own_engine is not None

    @property
    def reading(self) -> Engine:
        """The engine of its functions."""
        return self._own_engine or self.engine

    def engine_of(self, *, l2: bool = True) -> Engine:
        """As `Hub.blocking` and `Hub.running`."""
        return self.engine if l2 else self.reading

    def _heed(self, news: Drop | Woken) -> None:
        """As `process.hub` does it."""
        if isinstance(news, Woken):
            self.shared.wake(news.key)
        else:
            self.writes.heard(news)

    def listen(self) -> None:
        """Take part in the bus from now on."""
        self.connected = True
        self.bus.joined(self.stepper.now)
        self.local.trust(math.inf)
        self.server.listeners.append(self)

    def deliver(self, message: str, said: dict[str, int]) -> None:
        """Hear *message* some time later, after those that came before it; *said* is what the database says now."""
        if not self.connected or self.dead:
            return
        self.inbox.append((message, said))
        if len(self.inbox) == 1:
            self._deliveries += 1
            name = f"{self.name}.bus{self._deliveries}"
            self.stepper.add(name, self._hear(), self.name, Pause("hears", writes=self.here))

    async def _hear(self) -> None:
        while self.inbox and not self.dead:
            message, said = self.inbox.pop(0)
            self.bus.hear(message)
            news = heard(message)
            if not isinstance(news, Woken) and said:
                # Of its own change a process needs no news: it drops its copies once it is answered.
                own = isinstance(news, Drop) and news.echo.startswith(f"{self.name}.") and self.changing[news.key] > 0
                (self.parked if own else self.heard)[news.key] = said
            if self.inbox:
                await self.pause("hears", writes=self.here)

    async def pause(
        self,
        label: str,
        *,
        reads: frozenset[str] = NOTHING,
        writes: frozenset[str] = NOTHING,
        ready: Callable[[], bool] | None = None,
        until: float | None = None,
    ) -> None:
        """Let others run; nothing returns from here in a process that has crashed."""
        self.check_alive()
        await stop_at(Pause(label, reads, writes, ready, until))
        self.check_alive()

    def check_alive(self) -> None:
        if self.dead:
            raise Crashed

    def answered(self, names: Sequence[str]) -> None:
        """A change of *names* here is over: what was heard of it counts."""
        self.changing.subtract(names)
        for name in names:
            if not self.changing[name] and name in self.parked:
                self.heard[name] = self.parked.pop(name)

    def l1_value(self, key: str) -> Any:
        """What a reader would be given without a question; None if nothing is there."""
        entry = self.local.find(key)
        return None if entry is None or self.stepper.now >= entry.until else entry.value
