"""Processes that share one Redis and one database, run by the stepper: the real engine, and a judge beside it."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Sequence
from contextlib import nullcontext
from enum import Enum
from typing import Any

from cacheguard.batch import Batch
from cacheguard.defenses.penetration import AbsenceBudget
from cacheguard.engine import Engine, opened, stored_of
from cacheguard.errors import LoadTimeout, Refused, Unreachable
from cacheguard.events import Events
from cacheguard.flights import Shared
from cacheguard.loading import Ask
from cacheguard.policy import Policy, Rules, resolve
from cacheguard.ports import Call, Reply, Runtime, ScriptCall
from cacheguard.tiers.local import Local
from cacheguard.tiers.memory import MemoryCommands
from cacheguard.tiers.packing import ObjectPacking
from cacheguard.tiers.remote import Remote
from tests.support.stepper import ANYTHING, NOTHING, Cancelled, Choose, Crashed, Pause, Stepper, stop_at

KEY = "k"
TWO_TIERS = resolve(Policy(jitter=None))
REDIS_ONLY = resolve(Policy(jitter=None, l1=False))

REDIS = frozenset({"redis"})
HISTORY = frozenset({"history"})
DATABASE = frozenset({"database"})
FORGETTING = ("invalidate", "expire", "store")


class Violation(AssertionError):
    """A promise that was not kept."""


class DatabaseDown(Exception):  # noqa: N818 - what a loader raises
    """The loader's own."""


class Fault(Enum):
    """What becomes of one round trip."""

    NONE = "none"
    UNHEARD = "unheard"  # it never reached the server
    UNANSWERED = "unanswered"  # it did, and the reply was lost


def never_faulty(place: str, label: str) -> Fault:
    return Fault.NONE


class ModelServer(MemoryCommands):
    """Redis, under the eyes of a judge: a lease is given to one at a time, and nobody else may take it back."""

    def __init__(self, stepper: Stepper) -> None:
        super().__init__(1000, nullcontext(), lambda: stepper.now)
        self._stepper = stepper
        self.version = 0  # counts the changes of anything that a poll could notice
        self.holders: dict[str, tuple[str, float]] = {}
        self.grants = 0
        self.bypasses = 0

    def answer(self, call: Call) -> Reply:
        """Run one call and judge the reply."""
        if not isinstance(call, ScriptCall):
            return self._run(call)
        key = call.keys[0]
        before = self._snapshot(key)
        reply = self._run(call)
        self.version += before != self._snapshot(key)
        self._judge(call, key, reply)
        return reply

    def _snapshot(self, key: str) -> tuple[dict[str, Any], float | None]:
        return dict(self._hashes.get(key, {})), self._ends.get(key)

    def _judge(self, call: ScriptCall, key: str, reply: Reply) -> None:
        name, token = call.script.name, str(call.args[0])
        holder, until = self.holders.get(key, ("", 0.0))
        if name == "lease" and reply[0] == b"GRANTED":
            if holder not in {"", token} and until > self._stepper.now:
                raise Violation(f"{key} is leased to {holder} and to {token}")
            self.grants += holder != token
            self.holders[key] = token, self._stepper.now + int(call.args[1]) / 1000
        elif name == "lease":
            self.bypasses += reply[0] == b"BYPASS"
        elif name == "renew" and reply == 1:
            self.holders[key] = token, self._stepper.now + int(call.args[1]) / 1000
        elif name == "fill" and reply == 1 and holder != token:
            raise Violation(f"{key} was filled under {token}, leased to {holder or 'nobody'}")
        elif name in FORGETTING or (name in {"fill", "release"} and holder == token):
            self.holders.pop(key, None)

    def evict(self, key: str) -> None:
        """Lose *key*, as a server does that runs out of memory."""
        self._delete(key)
        self.holders.pop(key, None)
        self.version += 1

    def value(self, key: str, *, stale: bool) -> Any:
        """What a reader would find fresh, or *stale* if there is just that; None if nothing is there."""
        now = int(self._stepper.now * 1000)
        fields = self._hash(key, now)
        usable = "v" in fields and (stale or self._pttl(key, now) > fields["g"])
        return fields["v"].value if usable else None


class _Commands:
    """The way of one process to the server. Others may move before a call arrives, and before its reply does."""

    def __init__(self, process: Process) -> None:
        self._process = process

    async def send(self, *calls: Call) -> list[Reply]:
        replies = await self.send_each(*calls)
        for reply in replies:
            if isinstance(reply, Refused):
                raise reply
        return replies

    async def send_each(self, *calls: Call) -> list[Reply]:
        process, world = self._process, self._process.world
        names = [call.script.name if isinstance(call, ScriptCall) else str(call[0]) for call in calls]
        label = " ".join(dict.fromkeys(names))
        changes = any(isinstance(call, ScriptCall) for call in calls)
        await process.pause(f"→ {label}", reads=REDIS, writes=REDIS if changes else NOTHING)
        fault = world.fault(process.name, label)
        replies: list[Reply] = [] if fault is Fault.UNHEARD else [world.server.answer(call) for call in calls]
        world.stepper.actor.seen = world.server.version
        forgets = any(name in FORGETTING for name in names)
        await process.pause(f"← {label}", writes=process.here | (HISTORY if forgets else NOTHING))
        if fault is not Fault.NONE:
            process.cut_off = True
            raise Unreachable(f"{label}: {fault.value}")
        return replies


class _Signal:
    """A flag that actors of one process wait for."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self._up = False

    def set(self) -> None:
        self._up = True

    async def wait(self, timeout: float | None) -> bool:
        if not self._up:
            until = None if timeout is None else self._process.world.stepper.now + timeout
            await self._process.pause("waits", writes=self._process.here, ready=lambda: self._up, until=until)
        return self._up


class _Watch:
    """The clockwork beside one load: an actor that lives until the load is over."""

    def __init__(self, process: Process, beat: Any, every: float, late: Any, deadline: float | None) -> None:
        self._process, self._stepper = process, process.world.stepper
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

    def __init__(self, process: Process) -> None:
        self._process = process
        self.commands = _Commands(process)
        self._made = 0

    def now(self) -> float:
        return self._process.world.stepper.now

    def random(self) -> float:
        return 0.5

    def token(self) -> str:
        self._made += 1
        return f"{self._process.name}-{self._made}"

    async def sleep(self, seconds: float) -> None:
        """Stay parked until there is something new to see, or until there is nothing left to do but wait."""
        process, world = self._process, self._process.world
        seen, until = world.stepper.actor.seen, world.stepper.now + seconds
        await process.pause("polls", writes=process.here, ready=lambda: world.server.version != seen, until=until)

    def signal(self) -> _Signal:
        return _Signal(self._process)

    async def start(self, work: Coroutine[Any, Any, None], *, detached: bool) -> bool:
        if self._process.threads and not detached:
            await work
        else:
            self._process.world.stepper.spawn("flight", work)
        return True

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

    def __init__(self) -> None:
        self.inside = 0

    async def enter(self, runtime: Runtime) -> None:
        self.inside += 1

    def leave(self) -> None:
        self.inside -= 1


class Process:
    """One process: its tiers, its engine, and what its own writers were told."""

    def __init__(self, world: World, name: str, *, threads: bool) -> None:
        self.world, self.name, self.here = world, name, frozenset({name})
        self.threads = threads
        self.dead = False
        self.cut_off = False  # whether a round trip of this process ever failed
        self.told: dict[str, int] = {}
        self.owed: dict[str, Any] = {}
        self.events = Events()
        self.local = Local(100, None, "lru", nullcontext(), self.events)
        self.bulkhead = _OpenBulkhead()
        self.shared = Shared(self.local, self.events, self.bulkhead, AbsenceBudget(1000))
        self.runtime = SteppedRuntime(self)
        remote = Remote(self.runtime.commands, ObjectPacking(), self.events, self.owed)
        self.engine = world.make_engine(self.runtime, remote, self.shared)

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

    def l1_value(self, key: str) -> Any:
        """What a reader would be given without a question; None if nothing is there."""
        entry = self.local.find(key)
        return None if entry is None or self.world.stepper.now >= entry.until else entry.value


class World:
    """Several processes, one Redis, one database of numbers that only grow.

    Readers note, when they begin, what had been acknowledged by then, and raise `Violation` if they get less.

    Args:
        rules: the policy of every read.
        fault: decides over each round trip.
        make_engine: what reads and writes.
    """

    def __init__(
        self,
        rules: Rules = REDIS_ONLY,
        fault: Callable[[str, str], Fault] = never_faulty,
        make_engine: type[Engine] = Engine,
    ) -> None:
        self.rules, self.fault, self.make_engine = rules, fault, make_engine
        self.stepper = Stepper()
        self.server = ModelServer(self.stepper)
        self.database: dict[str, int] = {}
        self.acknowledged: dict[str, int] = {}
        self.processes: dict[str, Process] = {}
        self.loads = 0
        self.softly = False  # whether old values may be left, as long as nobody takes them for fresh
        self.lost = 0  # leases that may be left over: their holder crashed, was cancelled, or lost a reply

    def process(self, name: str, *, threads: bool = False) -> Process:
        """A new process; with *threads* its callers block, without they are tasks of one event loop."""
        process = self.processes[name] = Process(self, name, threads=threads)
        return process

    # What a process does

    def reader(
        self, name: str, process: Process, key: str = KEY, *, rules: Rules | None = None, fails: bool = False
    ) -> None:
        """One read; with *fails* its loader raises, if it is its loader that runs."""
        self.stepper.add(
            name, self._read(process, key, rules or self.rules, fails=fails), process.name, _begins(process)
        )

    async def _read(self, process: Process, key: str, rules: Rules, *, fails: bool) -> int | None:
        everywhere, here = self.acknowledged.get(key, 0), process.told.get(key, 0)
        entry = process.local.find(key) if rules.l1 else None
        if entry is not None and self.stepper.now < entry.until:
            value, least = opened(stored_of(entry), rules), here
        else:
            value = await self._asked(process.engine.read(self._ask(process, key, rules, fails=fails)))
            # Who cannot reach Redis cannot hear what was acknowledged elsewhere.
            least = here if process.cut_off else max(everywhere, here)
        return _at_least(value, least, f"a read in {process.name}")

    def refresher(self, name: str, process: Process, key: str = KEY) -> None:
        """One refresh: its answer was loaded after it was asked for."""
        self.stepper.add(name, self._refresh(process, key), process.name, _begins(process, also=DATABASE))

    async def _refresh(self, process: Process, key: str) -> int | None:
        least = self.database.get(key, 0)
        value = await self._asked(process.engine.refresh(self._ask(process, key, self.rules, fails=False)))
        return _at_least(value, least, f"a refresh in {process.name}")

    def batch(self, name: str, process: Process, keys: Sequence[str], *, fails: bool = False) -> None:
        """One read of several keys."""
        self.stepper.add(name, self._read_batch(process, keys, fails=fails), process.name, _begins(process))

    async def _read_batch(self, process: Process, keys: Sequence[str], *, fails: bool) -> dict[str, int]:
        least = {key: max(self.acknowledged.get(key, 0), process.told.get(key, 0)) for key in keys}
        asks = {key: self._ask(process, key, self.rules, fails=fails) for key in keys}

        async def load(missing: list[str]) -> dict[str, int]:
            found = {key: await self._load(process, key, fails=fails) for key in missing}
            self.loads -= len(missing) - 1
            return found

        values = await self._asked(Batch(process.engine, asks, {key: key for key in keys}, load).read())
        for key, value in ({} if values is None else values).items():
            _at_least(value, least[key], f"a batch in {process.name}, key {key}")
        return values or {}

    async def _asked(self, work: Coroutine[Any, Any, Any]) -> Any:
        """The answer, or None where an exception is the honest one."""
        try:
            return await work
        except (DatabaseDown, LoadTimeout):
            return None

    def _ask(self, process: Process, key: str, rules: Rules, *, fails: bool) -> Ask:
        return Ask(key, rules, None, lambda: self._load(process, key, fails=fails))

    async def _load(self, process: Process, key: str, *, fails: bool) -> int:
        self.loads += 1
        await process.pause("reads the database", reads=DATABASE)
        value = self.database.get(key, 0)
        await process.pause("has read", writes=process.here)
        if fails:
            raise DatabaseDown
        return value

    def writer(self, name: str, process: Process, key: str = KEY, *, softly: bool = False) -> None:
        """One committed change, then `invalidate` (softly: `expire`)."""
        self.softly |= softly
        self.stepper.add(name, self._write(process, key, softly=softly), process.name, _commits(process))

    async def _write(self, process: Process, key: str, *, softly: bool) -> None:
        version = self.database[key] = self.database.get(key, 0) + 1
        tell = process.engine.expire if softly else process.engine.invalidate
        self._note(process, key, version, everywhere=await tell([key]))

    def setter(self, name: str, process: Process, key: str = KEY) -> None:
        """One committed change, then its value is stored by hand."""
        self.stepper.add(name, self._set(process, key), process.name, _commits(process))

    async def _set(self, process: Process, key: str) -> None:
        version = self.database[key] = self.database.get(key, 0) + 1
        codec: Any = None
        try:
            done = await process.engine.store({key: version}, self.rules, {key: codec}, ())
        except Unreachable:
            done = await process.engine.invalidate([key])
        self._note(process, key, version, everywhere=done)

    def _note(self, process: Process, key: str, version: int, *, everywhere: bool) -> None:
        process.told[key] = max(process.told.get(key, 0), version)
        if everywhere:
            self.acknowledged[key] = max(self.acknowledged.get(key, 0), version)

    def warm(self, process: Process, key: str = KEY, *, age: float = 0.0) -> None:
        """Begin with an entry that was loaded *age* seconds ago."""
        self.reader("before", process, key)
        self.stepper.run(lambda movable: next(iter(movable)))
        self.stepper.now += age

    # What happens to all of them

    def eviction(self, name: str = "eviction", key: str = KEY) -> None:
        """The server loses the key."""
        self._fate(name, lambda: self.server.evict(key), Pause("evicts", writes=REDIS))

    def delay(self, seconds: float, name: str = "delay") -> None:
        """Time passes while everybody stands still: an entry expires, a lease runs out."""

        def pass_by() -> None:
            self.stepper.now += seconds

        self._fate(name, pass_by, Pause(f"{seconds:g} s pass", writes=ANYTHING))

    def crash(self, process: Process, name: str = "crash") -> None:
        """The process is gone, in the middle of whatever it does."""

        def kill() -> None:
            process.dead = True
            self.lost += 1
            self.stepper.kill(process.name)

        self._fate(name, kill, Pause(f"{process.name} crashes", writes=ANYTHING))

    def cancellation(self, of: str, name: str = "cancellation") -> None:
        """The caller loses patience."""
        self._fate(name, lambda: self.stepper.cancel(of), Pause(f"cancels {of}", writes=ANYTHING))

    def _fate(self, name: str, act: Callable[[], None], pause: Pause) -> None:
        async def happen() -> None:
            act()

        self.stepper.add(name, happen(), "the world", pause)

    # The verdict

    def run(self, choose: Choose) -> None:
        """Run everybody to the end and judge what is left."""
        try:
            self.stepper.run(choose)
            for name, result in self.stepper.results.items():
                if isinstance(result, Violation):
                    raise result
                if isinstance(result, BaseException) and not isinstance(result, Cancelled | Crashed):
                    raise AssertionError(f"{name} died") from result
            self._judge()
        except AssertionError as error:
            error.add_note("\n".join(f"{name:24} {label}" for name, label in self.stepper.trace))
            raise
        finally:
            self._close()

    def _judge(self) -> None:
        for key, least in self.acknowledged.items():
            self._judge_redis(key, least)
        if self.loads > self.server.grants + self.server.bypasses and not self._may_load_alone():
            raise Violation(f"{self.loads} loads under {self.server.grants} leases")
        for process in self.processes.values():
            if not process.dead:
                self._judge_process(process)
        held = [token for token, until in self.server.holders.values() if until > self.stepper.now]
        if held and not self.lost and not any(process.cut_off for process in self.processes.values()):
            raise Violation(f"leases left over: {held}")

    def _judge_redis(self, key: str, least: int) -> None:
        _at_least(self.server.value(key, stale=not self.softly), least, f"what is left of {key} in Redis")

    def _may_load_alone(self) -> bool:
        return self.rules.wait_timeout is not None or any(
            process.cut_off or process.events.shared >= 3 for process in self.processes.values()
        )

    def _judge_process(self, process: Process) -> None:
        for key, least in process.told.items():
            if key not in process.owed:
                self._judge_redis(key, least)
            _at_least(process.l1_value(key), least, f"what is left of {key} in {process.name}")
        if process.engine.flights:
            raise Violation(f"flights left over in {process.name}: {list(process.engine.flights)}")
        if process.bulkhead.inside:
            raise Violation(f"{process.bulkhead.inside} places left taken in {process.name}")

    def _close(self) -> None:
        for process in self.processes.values():
            process.dead = True
            self.stepper.kill(process.name)
        self.stepper.kill("the world")


def _begins(process: Process, also: frozenset[str] = NOTHING) -> Pause:
    return Pause("starts", reads=HISTORY | also, writes=process.here)


def _commits(process: Process) -> Pause:
    return Pause("starts", writes=DATABASE | process.here)


def _at_least(value: int | None, least: int, what: str) -> int | None:
    if value is not None and value < least:
        raise Violation(f"{what}: {value}, although {least} had been acknowledged")
    return value
