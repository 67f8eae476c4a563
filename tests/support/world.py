"""Processes on one Redis and one database that only grows: what they do, what happens to them, and the verdict."""

from __future__ import annotations

import math
from collections.abc import Callable, Coroutine, Iterable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from cacheguard.current_load import current_load
from cacheguard.defenses.consistency import version_text
from cacheguard.delivery.outbox import Invalidation
from cacheguard.doors.writing import Mode, Write, WriteTerms
from cacheguard.engine.ask import NO_SCOPE, Ask, opened, stored_of
from cacheguard.engine.batch import Batch
from cacheguard.engine.reading import Engine
from cacheguard.engine.rebuilding import RETRIES
from cacheguard.errors import LoadFailed, LoadTimeout, Unreachable
from cacheguard.missing import MISSING
from cacheguard.policy import Policy, Rules, resolve
from cacheguard.protocol.names import Scope
from tests.support.judged import Judged, ModelServer, OwnStore
from tests.support.stepped import DATABASE, HISTORY, REDIS, DatabaseDown, Fault, Process, never_faulty
from tests.support.stepper import ANYTHING, NOTHING, Cancelled, Choose, Crashed, Pause, Redundant, Stepper, stop_at
from tests.support.witness import Violation

KEY = "k"
SCOPE = Scope("cg:world:e:", ("cg:world:m",))
TAG = "red"
LAG = 2.0  # seconds that a replica lags behind at most
FENCE = 10.0  # seconds that the fence of a write holds, unless its process goes on
TWO_TIERS = resolve(Policy(jitter=None))
REDIS_ONLY = resolve(Policy(jitter=None, l1=False))


class Promise(NamedTuple):
    """Of a database whose replica lags: from some time on, no tier keeps anything older.

    Args:
        name: what was invalidated.
        since: None: a version says it, and readers may still be told what the replica says.
    """

    name: str
    version: int
    since: float | None


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
        lagging: loaders read a replica, which follows the database in steps of its own, and within `LAG`.
        versioned: what was loaded has a version, and writers say theirs.
        server: what answers the calls.
        scoped: entries are in a namespace, even if they have neither tags nor versions.
        apart: others may move between the calls of one round trip, too.
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
        server: Callable[[Stepper], Judged] = ModelServer,
        scoped: bool = False,
        apart: bool = False,
    ) -> None:
        self.rules, self.fault, self.make_engine = rules, fault, make_engine
        self.bus, self.tags, self.late_tags, self.lagging, self.versioned = bus, tags, late_tags, lagging, versioned
        self.apart = apart
        self.scope = SCOPE if tags or late_tags or scoped or versioned else NO_SCOPE
        self.replica: dict[str, int] = {}
        self.commits: dict[str, list[tuple[float, int]]] = {}  # by key: when, and what
        self.promises: dict[str, list[Promise]] = {}  # by key, of a database that lags behind
        self.fenced: dict[str, int] = {}  # committed behind a fence: from then on nobody may read older from Redis
        self.fences_hold = True
        self._delays = 0.0
        self.stepper = Stepper()
        self.server = server(self.stepper)
        self.database = self.server.database
        self.acknowledged: dict[str, int] = {}
        self.processes: dict[str, Process] = {}
        self.loads = 0
        self.sets = self.updates = False  # whether a value is set by hand, or a cached one changed
        self.absent: set[str] = set()  # the next load of these finds no row
        self.cleared = 0  # how often the namespace was, or began to be: then older versions may come back
        self.softly = False  # whether old values may be left, as long as nobody takes them for fresh
        self.lost = 0  # leases that may be left over: their holder crashed, was cancelled, or lost a reply

    def process(self, name: str, *, threads: bool = False, own: bool = False) -> Process:
        """A new process; with *threads* its callers block, without they are tasks of one event loop.

        With *own*, its functions have ``l2=False``.
        """
        process = self.processes[name] = Process(
            name,
            self.stepper,
            self.server,
            threads=threads,
            fault=self.fault,
            make_engine=self.make_engine,
            own=own,
            apart=self.apart,
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
        rules = self._rules(process)
        everywhere = self.acknowledged.get(key, 0)
        here = max(process.told.get(key, 0), self._heard(process, key))
        fenced = self.fenced.get(key, 0) if self.fences_hold else 0
        promised = self._promised(key, self.stepper.now)
        entry = process.local.peek(self._name(key)) if rules.l1 else None
        process.from_copy.discard(name := self.stepper.actor.name)
        if entry is not None:
            value, least, promised = opened(stored_of(entry), rules), here, 0
        else:
            value = await self._asked(process.reading.read(self._ask(process, key, fails=fails)))
            # Who keeps its own follows the bus. Who cannot reach Redis cannot hear what was acknowledged elsewhere.
            copied = name in process.from_copy
            promised = 0 if copied else promised
            least = here if process.cut_off or process.keeps_its_own or copied else max(everywhere, here, fenced)
        if self.lagging:  # the reader may be told what the replica says, as long as it may lag behind
            least = 0 if process.cut_off or process.keeps_its_own else promised
        return _at_least(value, least, f"a read in {process.name}")

    def _rules(self, process: Process) -> Rules:
        return replace(self.rules, l2=False) if process.keeps_its_own else self.rules

    def _names(self, key: str) -> tuple[str, ...]:
        """What can be invalidated, for an entry of *key* to go."""
        return self._name(key), *(self.scope.markers((*self.tags, *self.late_tags)) if self.scope.epochs else ())

    def _heard(self, process: Process, key: str) -> int:
        """The least that a process may have after what it has heard.

        What is set or changed by hand may be older than what the database said when the news was published.
        """
        if self.sets or self.updates:
            return 0
        return max(process.heard.get(name, {}).get(key, 0) for name in self._names(key))

    def _promised(self, key: str, now: float) -> int:
        """The least that is read from Redis by now, although replicas lag.

        Quarantines that overlap are one, and what is old is gone at the end of it.
        """
        if self.server.now_ms() < self.server.lag_over_ms:
            return 0
        promises = self.promises.get(key, ())
        return max((each.version for each in promises if each.since is not None and each.since <= now), default=0)

    def refresher(self, name: str, process: Process, key: str = KEY) -> None:
        """One refresh: its answer was loaded after it was asked for."""
        self.stepper.add(name, self._refresh(process, key), process.name, _begins(process, also=DATABASE))

    async def _refresh(self, process: Process, key: str) -> int | None:
        least = self._replicated(key) if self.lagging else self.database.get(key, 0)
        value = await self._asked(process.reading.refresh(self._ask(process, key, fails=False)))
        return _at_least(value, least, f"a refresh in {process.name}")

    def batch(self, name: str, process: Process, keys: Sequence[str], *, fails: bool = False) -> None:
        """One read of several keys."""
        self.stepper.add(name, self._read_batch(process, keys, fails=fails), process.name, _begins(process))

    async def _read_batch(self, process: Process, keys: Sequence[str], *, fails: bool) -> dict[str, int]:
        least = {
            key: self._promised(key, self.stepper.now)
            if self.lagging
            else max(0 if process.keeps_its_own else self.acknowledged.get(key, 0), process.told.get(key, 0))
            for key in keys
        }
        asks = {self._name(key): self._ask(process, key, fails=fails) for key in keys}

        async def load(missing: list[str]) -> dict[str, int | None]:
            found = {key: await self._load(process, key, fails=fails) for key in missing}
            self.loads -= 0 if process.keeps_its_own else len(missing) - 1
            return found

        values = await self._asked(Batch(process.reading, asks, {self._name(key): key for key in keys}, load).read())
        for key in keys if values is not None and not (self.lagging and process.keeps_its_own) else ():
            _at_least(values[self._name(key)], least[key], f"a batch in {process.name}, key {key}")
        return values or {}

    async def _asked(self, work: Coroutine[Any, Any, Any]) -> Any:
        """The answer, or None where an exception is the honest one."""
        try:
            return await work
        except (DatabaseDown, LoadFailed, LoadTimeout):
            return None

    def _ask(self, process: Process, key: str, *, fails: bool) -> Ask:
        version = _itself if self.versioned else None
        return Ask(
            self._name(key),
            self._rules(process),
            None,
            lambda: self._load(process, key, fails=fails),
            self.tags,
            self.scope,
            version,
        )

    async def _load(self, process: Process, key: str, *, fails: bool) -> int | None:
        self.loads += not process.keeps_its_own
        await process.pause("reads the database", reads=DATABASE)
        load = current_load()
        value: int | None = self.database.get(key, 0)
        if self.lagging and not load.primary:
            value = self._replicated(key)
        if key in self.absent:
            self.absent.discard(key)
            value = None
        load.add_tags(*self.late_tags)
        await process.pause("has read", writes=process.here)
        if fails:
            raise DatabaseDown
        return value

    def _replicated(self, key: str) -> int:
        """What the replica says: it lags behind for no longer than `LAG`."""
        old = [version for at, version in self.commits.get(key, ()) if at <= self.stepper.now - LAG]
        return max(self.replica.get(key, 0), *old, 0)

    def _commit(self, key: str) -> int:
        version = self.database[key] = self.database.get(key, 0) + 1
        self.commits.setdefault(key, []).append((self.stepper.now, version))
        return version

    def absence(self, name: str = "absence", key: str = KEY) -> None:
        """The next load finds no row."""
        self._fate(name, lambda: self.absent.add(key), Pause("a row is away", writes=DATABASE))

    def writer(
        self,
        name: str,
        process: Process,
        key: str = KEY,
        *,
        softly: bool = False,
        lag: float = 0.0,
        says: bool = False,
    ) -> None:
        """One committed change, then `invalidate` (softly: `expire`).

        Args:
            lag: what the invalidation says of how far the replica may lag behind, in seconds.
            says: it says the version that was written.
        """
        self.softly |= softly
        work = self._write(process, key, softly=softly, lag=lag, says=says)
        self.stepper.add(name, work, process.name, _commits(process))

    async def _write(self, process: Process, key: str, *, softly: bool, lag: float, says: bool) -> None:
        version, name = self._commit(key), self._name(key)
        begun = self._begun(process, [name])
        if softly:
            await process.writes.expire(process.engine, [name])
        else:
            text = version_text(version) if says else ""
            await process.writes.write(process.engine, [Invalidation(name, round(lag * 1000), text)])
        self._note(process, key, version, [name], begun, lag=lag, says=says)

    def tag_writer(
        self, name: str, process: Process, *, clears: bool = False, lag: float = 0.0, key: str = KEY
    ) -> None:
        """One committed change, then its tag is invalidated, or the whole namespace."""
        work = self._write_tag(process, key, clears=clears, lag=lag)
        self.stepper.add(name, work, process.name, _commits(process))

    async def _write_tag(self, process: Process, key: str, *, clears: bool, lag: float) -> None:
        version = self._commit(key)
        marker = SCOPE.epochs[0] if clears else SCOPE.tag((*self.tags, *self.late_tags)[-1])
        begun = self._begun(process, [marker])
        if clears:
            self._clearing()
        await process.writes.write(process.engine, [Invalidation(marker, round(lag * 1000))])
        if clears:
            self._clearing()
        self._note(process, key, version, [marker], begun, lag=lag, says=False)

    def _clearing(self) -> None:
        """From now on, versions do not count any more."""
        self.cleared += 1
        for key, promises in self.promises.items():
            self.promises[key] = [each for each in promises if each.since is not None]

    def toucher(self, name: str, process: Process, key: str = KEY) -> None:
        """A fresh entry gets a new TTL."""

        async def touch() -> None:
            await self._unless_away(
                process.by_hand.touch(process.engine_of, self._name(key), self._rules(process), self.scope)
            )

        self.stepper.add(name, touch(), process.name, Pause("starts", writes=process.here))

    def guarded_writer(
        self, name: str, process: Process, *, mode: Mode = "fence", key: str = KEY, **terms: Any
    ) -> None:
        """One change inside a `writing` block."""
        work = self._write_guarded(process, key, mode, terms)
        self.stepper.add(name, work, process.name, Pause("starts", writes=process.here))

    async def _write_guarded(self, process: Process, key: str, mode: Mode, options: dict[str, Any]) -> None:
        terms = WriteTerms(mode, options.get("settle"), "1s", FENCE)
        write = Write(self.scope, [key], [], None)
        begun = self._begun(process, [self._name(key)])
        await write.begin(process.writes, process.engine, terms)
        await process.pause("commits", writes=DATABASE | HISTORY)
        version = self._commit(key)
        if mode == "fence":
            self.fenced[key] = version
        await process.pause("has committed", writes=process.here)
        write.version = version if self.versioned else None
        await write.end(process.writes, process.engine, terms, quietly=False)
        self._note(process, key, version, [self._name(key)], begun, lag=terms.lag_ms / 1000, says=self.versioned)

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

    def setter(self, name: str, process: Process, key: str = KEY, *, says: bool = False) -> None:
        """One committed change, then its value is stored by hand."""
        self.sets = True
        self.stepper.add(name, self._set(process, key, says=says), process.name, _commits(process))

    async def _set(self, process: Process, key: str, *, says: bool) -> None:
        name, version = self._name(key), self._commit(key)
        begun, text = self._begun(process, [name]), version_text(version) if says else ""
        setting = process.by_hand.set(
            process.engine_of, {name: version}, self._rules(process), self.scope, tags=self.tags, version=text
        )
        await self._unless_away(setting)
        self._note(process, key, version, [name], begun, lag=0.0, says=False)

    def adder(self, name: str, process: Process, key: str = KEY) -> None:
        """One committed change, then its value is stored by hand, unless there is one."""

        async def add() -> None:
            entry, version = self._name(key), self._commit(key)
            begun = self._begun(process, [entry])
            adding = process.by_hand.add(
                process.engine_of, entry, version, self._rules(process), self.scope, tags=self.tags
            )
            if await self._unless_away(adding):
                self._note(process, key, version, [entry], begun, lag=0.0, says=False)

        self.stepper.add(name, add(), process.name, _commits(process))

    def updater(self, name: str, process: Process, key: str = KEY) -> None:
        """One committed change, which is made to the cached value, too, if that is older."""
        self.updates = True

        async def update() -> None:
            entry, version = self._name(key), self._commit(key)
            begun = self._begun(process, [entry])
            updating = process.by_hand.update(
                process.engine_of,
                entry,
                lambda value: max(self.database[key] if value is None else value, version),
                self._rules(process),
                self.scope,
            )
            if await self._unless_away(updating) not in {None, MISSING}:
                self._note(process, key, version, [entry], begun, lag=0.0, says=False)

        self.stepper.add(name, update(), process.name, _commits(process))

    async def _unless_away(self, work: Coroutine[Any, Any, Any]) -> Any:
        try:
            return await work
        except Unreachable:
            return None

    def _begun(self, process: Process, names: Sequence[str]) -> tuple[int, int]:
        """What a writer remembers from before its invalidation: what it leaves may be lost meanwhile."""
        process.changing.update(names)
        return self._losses(names)

    def _losses(self, names: Iterable[str]) -> tuple[int, int]:
        return self.cleared, sum(self.server.lost[name] for name in names)

    def _note(
        self,
        process: Process,
        key: str,
        version: int,
        names: Sequence[str],
        begun: tuple[int, int],
        *,
        lag: float,
        says: bool,
    ) -> None:
        """A writer has been answered."""
        process.answered(names)
        process.told[key] = max(process.told.get(key, 0), version)
        if any(item.key in names for item in process.outbox.pending):
            return
        self.acknowledged[key] = max(self.acknowledged.get(key, 0), version)
        cleared, lost = self._losses(names)
        if self.lagging and lost == begun[1]:
            promises = self.promises.setdefault(key, [])
            if lag >= LAG:
                promises.append(Promise(names[0], version, self.stepper.now + lag))
            if says and cleared == begun[0]:
                promises.append(Promise(names[0], version, None))

    def warm(self, process: Process, key: str = KEY, *, age: float = 0.0) -> None:
        """Begin with an entry that was loaded *age* seconds ago."""
        self.reader("before", process, key)
        self.stepper.run(lambda movable: next(iter(movable)))
        self.stepper.now += age

    # What happens to all of them

    def eviction(self, name: str = "eviction", key: str = KEY) -> None:
        """The server loses the key, and with it what was promised of it."""
        self.fences_hold = False

        def evict() -> None:
            self.server.evict(self._name(key))
            for each, promises in self.promises.items():
                self.promises[each] = [promise for promise in promises if promise.name != self._name(key)]

        self._fate(name, evict, Pause("evicts", writes=REDIS))

    def delay(self, seconds: float, name: str = "delay") -> None:
        """Time passes while everybody stands still: an entry expires, a lease or a fence runs out.

        Behind a fence that has run out, what is cached may be older than what was committed, until the write is over.
        """
        self._delays += seconds
        if self._delays >= FENCE:
            self.fences_hold = False

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
        if self.lagging:
            self._judge_promises()
        else:
            for promised in (self.acknowledged, self.fenced if self.fences_hold else {}):
                for key, least in promised.items():
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

    def _judge_promises(self) -> None:
        """Once the replica has caught up for long, no tier has what it said before."""
        self.stepper.now += 2 * LAG + 0.1
        for key, promises in self.promises.items():
            least = max((each.version for each in promises), default=0)
            self._judge_redis(key, least)
            for process in self.processes.values():
                if self.bus and not process.dead:
                    self._judge_kept(process, key, least)

    def _judge_kept(self, process: Process, key: str, least: int) -> None:
        """What a process keeps, which has heard all that was published."""
        name = self._name(key)
        _at_least(process.l1_value(name), least, f"what is left of {key} in {process.name}, who has heard")
        if process.keeps_its_own and self._stands(key, process.own):
            kept = process.own.value(name, stale=not self.softly)
            _at_least(kept, least, f"what is left of {key} in the store of {process.name}, who has heard")

    def _stands(self, key: str, server: Judged | OwnStore | None = None) -> bool:
        """Whether what is kept could be read: its markers say what they said."""
        server = server or self.server
        stored = server.stored(self._name(key))
        if stored is None:
            return False
        markers = self.scope.markers(stored.tags)
        return bool(tuple(map(server.marker, markers)) == stored.nonces)

    def _may_load_alone(self) -> bool:
        if self.rules.wait_timeout is not None:
            return True
        return any(process.cut_off or process.events.shared >= RETRIES for process in self.processes.values())

    def _judge_process(self, process: Process) -> None:
        for key, least in () if self.lagging else process.told.items():
            if not any(item.key == self._name(key) for item in process.outbox.pending):
                self._judge_redis(key, least)
            _at_least(process.l1_value(self._name(key)), least, f"what is left of {key} in {process.name}")
        if self.bus and not self.lagging:
            for key, least in self.acknowledged.items():
                self._judge_kept(process, key, least)
        if process.reading.flights:
            raise Violation(f"flights left over in {process.name}: {list(process.reading.flights)}")
        if process.bulkhead.inside:
            raise Violation(f"{process.bulkhead.inside} places left taken in {process.name}")

    def close(self) -> None:
        """End whoever is still on the way."""
        for process in self.processes.values():
            process.dead = True
            self.stepper.kill(process.name)
        self.stepper.kill("the world")


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
