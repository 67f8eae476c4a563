"""Processes on one Redis and one database that only grows: what they do, what happens to them, and the verdict."""

from __future__ import annotations

import math
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from cacheguard.current_load import current_load
from cacheguard.delivery.outbox import Invalidation
from cacheguard.doors.writing import Mode, Write, WriteTerms
from cacheguard.engine.ask import NO_SCOPE, Ask, opened, stored_of
from cacheguard.engine.batch import Batch
from cacheguard.engine.reading import Engine
from cacheguard.engine.rebuilding import RETRIES
from cacheguard.errors import LoadTimeout, Unreachable
from cacheguard.policy import Policy, Rules, resolve
from cacheguard.protocol.names import Scope
from tests.support.stepped import (
    DATABASE,
    HISTORY,
    REDIS,
    DatabaseDown,
    Fault,
    ModelServer,
    Process,
    Violation,
    never_faulty,
)
from tests.support.stepper import ANYTHING, NOTHING, Cancelled, Choose, Crashed, Pause, Redundant, Stepper, stop_at

KEY = "k"
SCOPE = Scope("cg:world:e:", ("cg:world:m",))
TAG = "red"
TWO_TIERS = resolve(Policy(jitter=None))
REDIS_ONLY = resolve(Policy(jitter=None, l1=False))


class World:
    """Several processes, one Redis, one database of numbers that only grow.

    Readers note, when they begin, what had been acknowledged by then, and raise `Violation` if they get less.

    Args:
        rules: the policy of every read.
        fault: decides over each round trip.
        make_engine: what reads and writes.
        bus: the processes hear of one another's invalidations.
        tags: of every entry.
        late_tags: those that loaders add when they have read the database.
        lagging: loaders read a replica, which follows the database in steps of its own.
        versioned: what was loaded has a version, and writers say theirs.
    """

    def __init__(
        self,
        rules: Rules = REDIS_ONLY,
        fault: Callable[[str, str], Fault] = never_faulty,
        make_engine: type[Engine] = Engine,
        *,
        bus: bool = False,
        tags: tuple[str, ...] = (),
        late_tags: tuple[str, ...] = (),
        lagging: bool = False,
        versioned: bool = False,
    ) -> None:
        self.rules, self.fault, self.make_engine = rules, fault, make_engine
        self.bus, self.tags, self.late_tags, self.lagging, self.versioned = bus, tags, late_tags, lagging, versioned
        self.scope = SCOPE if tags or late_tags else NO_SCOPE
        self.replica: dict[str, int] = {}
        self.fenced: dict[str, int] = {}  # committed behind a fence: from then on nobody may read older from Redis
        self.fences_hold = True
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
        process = self.processes[name] = Process(
            name, self.stepper, self.server, threads=threads, fault=self.fault, make_engine=self.make_engine
        )
        if self.bus:
            process.listen()
        return process

    def _name(self, key: str) -> str:
        """The Redis key of an entry; in a namespace, it begins as that does."""
        return self.scope.key(key)

    # What a process does

    def reader(self, name: str, process: Process, key: str = KEY, *, fails: bool = False) -> None:
        """One read; with *fails* its loader raises, if it is its loader that runs."""
        self.stepper.add(name, self._read(process, key, fails=fails), process.name, _begins(process))

    async def _read(self, process: Process, key: str, *, fails: bool) -> int | None:
        rules = self.rules
        everywhere, here = self.acknowledged.get(key, 0), process.told.get(key, 0)
        fenced = self.fenced.get(key, 0) if self.fences_hold else 0
        entry = process.local.peek(self._name(key)) if rules.l1 else None
        if entry is not None:
            value, least = opened(stored_of(entry), rules), here
        else:
            value = await self._asked(process.engine.read(self._ask(process, key, fails=fails)))
            # Who cannot reach Redis cannot hear what was acknowledged elsewhere.
            least = here if process.cut_off else max(everywhere, here, fenced)
        if self.lagging:  # the reader may be told what the replica says; what is kept is judged in the end
            least = 0
        return _at_least(value, least, f"a read in {process.name}")

    def refresher(self, name: str, process: Process, key: str = KEY) -> None:
        """One refresh: its answer was loaded after it was asked for."""
        self.stepper.add(name, self._refresh(process, key), process.name, _begins(process, also=DATABASE))

    async def _refresh(self, process: Process, key: str) -> int | None:
        least = self.database.get(key, 0)
        value = await self._asked(process.engine.refresh(self._ask(process, key, fails=False)))
        return _at_least(value, least, f"a refresh in {process.name}")

    def batch(self, name: str, process: Process, keys: Sequence[str], *, fails: bool = False) -> None:
        """One read of several keys."""
        self.stepper.add(name, self._read_batch(process, keys, fails=fails), process.name, _begins(process))

    async def _read_batch(self, process: Process, keys: Sequence[str], *, fails: bool) -> dict[str, int]:
        least = {key: max(self.acknowledged.get(key, 0), process.told.get(key, 0)) for key in keys}
        asks = {self._name(key): self._ask(process, key, fails=fails) for key in keys}

        async def load(missing: list[str]) -> dict[str, int]:
            found = {key: await self._load(process, key, fails=fails) for key in missing}
            self.loads -= len(missing) - 1
            return found

        values = await self._asked(Batch(process.engine, asks, {self._name(key): key for key in keys}, load).read())
        for key in keys if values is not None else ():
            _at_least(values[self._name(key)], least[key], f"a batch in {process.name}, key {key}")
        return values or {}

    async def _asked(self, work: Coroutine[Any, Any, Any]) -> Any:
        """The answer, or None where an exception is the honest one."""
        try:
            return await work
        except (DatabaseDown, LoadTimeout):
            return None

    def _ask(self, process: Process, key: str, *, fails: bool) -> Ask:
        version = _itself if self.versioned else None
        return Ask(
            self._name(key),
            self.rules,
            None,
            lambda: self._load(process, key, fails=fails),
            self.tags,
            self.scope,
            version,
        )

    async def _load(self, process: Process, key: str, *, fails: bool) -> int:
        self.loads += 1
        await process.pause("reads the database", reads=DATABASE)
        load = current_load()
        source = self.replica if self.lagging and not load.primary else self.database
        value = source.get(key, 0)
        load.add_tags(*self.late_tags)
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
        changes, name = process.engine.changes, self._name(key)
        done = await (changes.expire([name]) if softly else changes.invalidate([Invalidation(name)]))
        self._note(process, key, version, everywhere=done)

    def tag_writer(self, name: str, process: Process, *, clears: bool = False, key: str = KEY) -> None:
        """One committed change, then its tag is invalidated, or the whole namespace."""
        self.stepper.add(name, self._write_tag(process, key, clears=clears), process.name, _commits(process))

    async def _write_tag(self, process: Process, key: str, *, clears: bool) -> None:
        version = self.database[key] = self.database.get(key, 0) + 1
        item = Invalidation(SCOPE.epochs[0] if clears else SCOPE.tag((*self.tags, *self.late_tags)[-1]))
        self._note(process, key, version, everywhere=await process.engine.changes.invalidate([item]))

    def guarded_writer(
        self, name: str, process: Process, *, mode: Mode = "fence", key: str = KEY, **terms: Any
    ) -> None:
        """One change inside a `writing` block."""
        work = self._write_guarded(process, key, mode, terms)
        self.stepper.add(name, work, process.name, Pause("starts", writes=process.here))

    async def _write_guarded(self, process: Process, key: str, mode: Mode, options: dict[str, Any]) -> None:
        terms = WriteTerms(mode, options.get("settle"), "1s", "10s")
        write = Write(self.scope, [key], [], None)
        hub: Any = _Desk()
        await write.begin(hub, process.engine, terms)
        await process.pause("commits", writes=DATABASE | HISTORY)
        version = self.database[key] = self.database.get(key, 0) + 1
        if mode == "fence":
            self.fenced[key] = version
        await process.pause("has committed", writes=process.here)
        write.version = version if self.versioned else None
        await write.end(hub, process.engine, terms, quietly=False)
        self._note(process, key, version, everywhere=not process.outbox.pending)

    def replication(self, name: str = "replication", key: str = KEY, steps: int = 1) -> None:
        """The replica hears of what the database says now; *steps* times."""

        async def follow() -> None:
            for _ in range(steps):
                self.replica[key] = self.database.get(key, 0)
                await stop_at(Pause("replicates", reads=DATABASE, writes=DATABASE))

        self.stepper.add(name, follow(), "the world", Pause("replicates", reads=DATABASE, writes=DATABASE))

    def gap(self, process: Process, name: str = "gap") -> None:
        """The subscription of a process breaks, is noticed, stands again, is proven: a step each."""

        async def happen() -> None:
            process.connected = False
            process.inbox.clear()
            await stop_at(Pause("notices the gap", writes=process.here))
            process.bus.lost()
            await stop_at(Pause("subscribes", writes=process.here | REDIS))
            process.connected = True
            process.bus.joined(self.stepper.now)
            await stop_at(Pause("proves the bus", writes=process.here))
            process.local.trust(math.inf)

        self.stepper.add(name, happen(), "the world", Pause("breaks the bus", writes=process.here | REDIS))

    def setter(self, name: str, process: Process, key: str = KEY) -> None:
        """One committed change, then its value is stored by hand."""
        self.stepper.add(name, self._set(process, key), process.name, _commits(process))

    async def _set(self, process: Process, key: str) -> None:
        name = self._name(key)
        version = self.database[key] = self.database.get(key, 0) + 1
        codec: Any = None
        try:
            done = await process.engine.changes.store({name: version}, self.rules, {name: codec}, self.tags, self.scope)
        except Unreachable:
            done = await process.engine.changes.invalidate([Invalidation(name)])
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
        self._fate(name, lambda: self.server.evict(self._name(key)), Pause("evicts", writes=REDIS))

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
        place = self.stepper.actors[of].place
        self._fate(name, lambda: self.stepper.cancel(of), Pause(f"cancels {of}", writes=frozenset({place})))

    def _fate(self, name: str, act: Callable[[], None], pause: Pause) -> None:
        async def happen() -> None:
            act()

        self.stepper.add(name, happen(), "the world", pause)

    # The verdict

    def run(self, choose: Choose) -> None:
        """Run everybody to the end and judge what is left."""
        try:
            self.stepper.run(choose)
            self._judge()
        except Redundant:
            raise
        except Exception as error:
            error.add_note("\n".join(f"{name:24} {label}" for name, label in self.stepper.trace))
            raise
        finally:
            self.close()

    def _judge(self) -> None:
        for result in self.stepper.results.values():
            if isinstance(result, BaseException) and not isinstance(result, Cancelled | Crashed):
                raise result
        for key, least in self.acknowledged.items():
            self._judge_redis(key, least)
        if self.fences_hold:
            for key, least in self.fenced.items():
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
        if self.scope is not NO_SCOPE and not self._stands(key):
            return
        _at_least(self.server.value(self._name(key), stale=not self.softly), least, f"what is left of {key} in Redis")

    def _stands(self, key: str) -> bool:
        """Whether what Redis holds could be read: its markers say what they said."""
        stored = self.server.stored(self._name(key))
        if stored is None:
            return False
        markers = self.scope.markers(stored.tags)
        return bool(tuple(map(self.server.marker, markers)) == stored.nonces)

    def _may_load_alone(self) -> bool:
        if self.rules.wait_timeout is not None:
            return True
        return any(process.cut_off or process.events.shared >= RETRIES for process in self.processes.values())

    def _judge_process(self, process: Process) -> None:
        for key, least in process.told.items():
            if not any(item.key == self._name(key) for item in process.outbox.pending):
                self._judge_redis(key, least)
            _at_least(process.l1_value(self._name(key)), least, f"what is left of {key} in {process.name}")
        if self.bus:
            for key, least in self.acknowledged.items():
                _at_least(
                    process.l1_value(self._name(key)), least, f"what is left of {key} in {process.name}, who has heard"
                )
        if process.engine.flights:
            raise Violation(f"flights left over in {process.name}: {list(process.engine.flights)}")
        if process.bulkhead.inside:
            raise Violation(f"{process.bulkhead.inside} places left taken in {process.name}")

    def close(self) -> None:
        """End whoever is still on the way."""
        for process in self.processes.values():
            process.dead = True
            self.stepper.kill(process.name)
        self.stepper.kill("the world")


class _Desk:
    """As much of a hub as a guarded write needs."""

    async def write(self, engine: Engine, items: Sequence[Invalidation], *, quietly: bool = False) -> None:
        await engine.changes.invalidate(items)


def _itself(value: int) -> int:
    return value


def _begins(process: Process, also: frozenset[str] = NOTHING) -> Pause:
    return Pause("starts", reads=HISTORY | also, writes=process.here)


def _commits(process: Process) -> Pause:
    return Pause("starts", writes=DATABASE | process.here)


def _at_least(value: int | None, least: int, what: str) -> int | None:
    if value is not None and value < least:
        raise Violation(f"{what}: {value}, although {least} had been acknowledged")
    return value
