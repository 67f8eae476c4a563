"""Worlds for the stepper, drawn or made by hand, and ways through all or many of their schedules."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol, TypeVar

from hypothesis import strategies as st

from cacheguard.engine.reading import Engine
from cacheguard.policy import Policy, resolve
from tests.support.judged import Judged, ModelServer
from tests.support.stepped import Fault, Process
from tests.support.stepper import Choose, Exploration, Pause, Redundant, Stepper
from tests.support.witness import Violation
from tests.support.world import LAG, REDIS_ONLY, TAG, TWO_TIERS, World

T = TypeVar("T")

STALE = resolve(Policy(jitter=None, stale_while_revalidate="1m"))
EARLY = resolve(Policy(jitter=None, rebuild="early"))
IMPATIENT = resolve(Policy(jitter=None, wait_timeout="1s", soft_timeout="2s", hard_timeout="4s"))
STRICT = resolve(Policy(jitter=None, stale_if_error=None))
ALL_RULES = (TWO_TIERS, REDIS_ONLY, STRICT, STALE, EARLY, IMPATIENT)


class Pick(Protocol):
    """Chooses one of several."""

    def __call__(self, options: Sequence[T], /) -> T: ...


def drawing(data: st.DataObject) -> Pick:
    """Choices that hypothesis makes, and shrinks."""

    def pick(options: Sequence[T]) -> T:
        return options[0] if len(options) == 1 else data.draw(st.sampled_from(options))

    return pick


def choosing(pick: Pick) -> Choose:
    """A chooser of steps that goes by *pick*."""

    def choose(movable: Mapping[str, Pause]) -> str:
        return pick(list(movable))

    return choose


def following(*names: str) -> Choose:
    """A chooser that goes by a list of names, as far as it reaches, and then lets each go on to its end."""
    left = list(names)

    def choose(movable: Mapping[str, Pause]) -> str:
        return left.pop(0) if left else next(iter(movable))

    return choose


def explored(build: Callable[[], World], note: Callable[[World], object] = id) -> int:
    """Run every schedule of the world that *build* makes and *note* each end; how many there were."""
    runs = 0
    for choose in Exploration().schedules():
        world = build()
        try:
            world.run(choose)
        except Redundant:
            continue
        note(world)
        runs += 1
    return runs


def searched(
    build: Callable[[Pick], World],
    *,
    runs: int,
    seconds: float,
    seed: int = 0,
    note: Callable[[World], object] = id,
) -> int:
    """Run schedules at random, as many as asked for and as time allows, *note* each end; how many there were."""
    until = time.monotonic() + seconds
    for run in range(runs):
        if time.monotonic() > until:
            return run
        dice = random.Random(f"{seed} {run}")
        world = build(dice.choice)
        world.run(choosing(dice.choice))
        note(world)
    return runs


def violation(build: Callable[[Pick], World], about: str = "", *, seconds: float = 50.0) -> Violation | None:
    """The first broken promise of this kind that a random search meets."""
    until = time.monotonic() + seconds
    for seed in range(10**9):
        try:
            searched(build, runs=10**9, seconds=until - time.monotonic(), seed=seed)
        except Violation as found:
            if about in str(found):
                return found
        if time.monotonic() > until:
            break
    return None


def peaceful_world(pick: Pick, make_engine: type[Engine] = Engine) -> World:
    """Two readers and two writers anywhere, an eviction, and time that passes: Redis and the processes stay up."""
    world = World(pick(ALL_RULES), make_engine=make_engine)
    processes = _processes(pick, world)
    if pick((False, True)):
        world.warm(processes[0], age=pick((0, 299, 310)))
    _readers(pick, world, processes, fails=pick((False, False, True)))
    _writers(pick, world, processes)
    if pick((False, True)):
        world.eviction()
    if pick((False, False, True)):
        world.delay(pick((1.0, 6.0, 310.0)))
    return world


def troubled_world(pick: Pick) -> World:
    """The same, and a round trip or two that fail, a process that crashes, a caller that gives up."""
    at = {pick(range(24)): pick((Fault.UNHEARD, Fault.UNANSWERED, Fault.REFUSED)) for _ in range(pick((0, 1, 2)))}
    done = iter(range(10**6))
    world = World(pick(ALL_RULES), fault=lambda place, label: at.get(next(done), Fault.NONE))
    processes = _processes(pick, world)
    _readers(pick, world, processes, fails=pick((False, True)))
    _writers(pick, world, processes)
    if pick((False, True)):
        world.crash(pick(processes))
    if not any(process.threads for process in processes) and pick((False, True)):
        world.cancellation(pick(("reader 1", "reader 2")))
    if pick((False, True)):
        world.delay(pick((6.0, 31.0)))
    return world


def crowded_world(pick: Pick) -> World:
    """Two readers in one process, a writer in another."""
    world = World(REDIS_ONLY)
    here = world.process("A", threads=pick((False, True)))
    world.reader("reader 1", here)
    world.reader("reader 2", here)
    world.writer("writer", world.process("B", threads=True))
    return world


def owing_world(pick: Pick) -> World:
    """Two writers in one process whose invalidations fail now and then, while others read."""
    at = {0: Fault.UNHEARD, pick((1, 2)): pick((Fault.UNHEARD, Fault.UNANSWERED))}
    done = iter(range(10**6))

    def fault(place: str, label: str) -> Fault:
        return at.get(next(done), Fault.NONE) if (place, label) == ("A", "invalidate") else Fault.NONE

    world = World(REDIS_ONLY, fault)
    here, there = world.process("A", threads=pick((False, True))), world.process("B")
    world.writer("writer 1", here)
    world.writer("writer 2", here)
    world.reader("reader 1", here)
    world.reader("reader 2", there)
    return world


def failing_world(pick: Pick) -> World:
    """Readers of an entry whose time is over, whose loads fail, while it is invalidated elsewhere."""
    world = World(REDIS_ONLY)
    here = world.process("A", threads=pick((False, True)))
    world.warm(here, age=310)
    world.reader("reader 1", here, fails=True)
    world.reader("reader 2", here, fails=True)
    if pick((False, True)):
        world.batch("reader 3", here, ("another", "k"), fails=True)
    world.writer("writer", world.process("B"))
    return world


def _processes(pick: Pick, world: World) -> list[Process]:
    threads = pick((False, True))
    return [world.process(name, threads=threads) for name in ("A", "B", "C")[: pick((1, 2, 3))]]


def _readers(pick: Pick, world: World, processes: Sequence[Process], *, fails: bool) -> None:
    world.reader("reader 1", processes[0], fails=fails)
    match pick(("read", "read", "refresh", "batch")):
        case "read":
            world.reader("reader 2", pick(processes))
        case "refresh":
            world.refresher("reader 2", pick(processes))
        case _:
            world.batch("reader 2", pick(processes), ("k", "another"))
    if pick((False, True)):
        world.reader("reader 3", processes[0])


def _writers(pick: Pick, world: World, processes: Sequence[Process]) -> None:
    # An entry that was merely expired may be served where the policy has a use for stale ones.
    match pick(("two", "two", "set", "two" if world.rules.stale else "softly")):
        case "two":
            world.writer("writer 1", pick(processes))
            world.writer("writer 2", pick(processes))
        case "set":
            world.setter("writer 1", pick(processes))
        case _:
            world.writer("writer 1", pick(processes), softly=True)


def whole_world(pick: Pick, server: Callable[[Stepper], Judged] = ModelServer) -> World:
    """Everything at once: every verb, every tier, versions, quarantines, a replica that lags, evictions and time."""
    rules, lagging, versioned = pick(ALL_RULES), pick((False, True)), pick((False, True))
    own = pick(("none", "none", "some", "all"))
    bus = own != "none" or pick((False, True))
    known, late = pick(((), (), (TAG,))), pick(((), (), (TAG,)))
    world = World(
        rules,
        bus=bus,
        tags=known,
        late_tags=late,
        lagging=lagging,
        versioned=versioned,
        server=server,
        scoped=pick((False, True)),
        apart=pick((False, True)),
    )
    threads = pick((False, True))
    names = ("A", "B", "C")[: pick((1, 2, 3))]
    kept = {"none": (False,), "some": (False, True), "all": (True,)}[own]
    processes = [world.process(name, threads=threads, own=pick(kept)) for name in names]
    if pick((False, True)):
        world.warm(processes[0], age=pick((0, 0, 299, 310)))
    _readers(pick, world, processes, fails=pick((False, False, True)))
    by_all = _whole_kinds(world, tagged=bool(late or known), own=own != "none")
    for number in range(1, pick((1, 2, 2, 3)) + 1):
        _whole_writer(pick, world, f"writer {number}", pick(processes), pick(by_all))
    if not lagging and not versioned and pick((False, False, False, True)):
        # What is set by hand is what comes last, so it goes alone.
        world = _only_set(pick, world, processes)
    for number in range(pick((0, 0, 1, 2))):
        world.toucher(f"toucher {number}", pick(processes))
    # A quarantine that a process has not heard of in a gap is unknown to it: it keeps what a replica says after that.
    _fates(pick, world, processes, gaps=bus and not (lagging and own != "none"))
    return world


def _whole_kinds(world: World, *, tagged: bool, own: bool) -> tuple[str, ...]:
    """What the writers of a world may do, one beside the other."""
    if world.versioned and not tagged and not own:
        # Who sets a value by hand says its version, and so do all others, in the same tier; nothing is cleared.
        return "says", "says and settles", "fence", "delete", "set"
    kinds: tuple[str, ...] = ("plain", "settles", "fence", "delete", "double", "update", "settling fence")
    if world.versioned:
        kinds += "says", "says and settles"
    if tagged:
        kinds += "tag", "clear", "settling tag"
    if world.lagging or not world.rules.stale:  # an expired entry may be served where the policy has a use for it
        kinds += ("softly",)
    return kinds


def _whole_writer(pick: Pick, world: World, name: str, process: Process, kind: str) -> None:
    match kind:
        case "plain" | "settles" | "settles long" | "says" | "says and settles" | "softly":
            lag = 2 * LAG if "long" in kind else LAG if "settles" in kind else 0.0
            world.writer(name, process, softly=kind == "softly", lag=lag, says="says" in kind)
        case "tag" | "clear" | "settling tag":
            settles = kind == "settling tag" or pick((False, True))
            world.tag_writer(name, process, clears=kind == "clear", lag=LAG if settles else 0.0)
        case "set":
            world.setter(name, process, says=True)
        case "update":
            world.updater(name, process)
        case "settling fence":
            world.guarded_writer(name, process, mode="fence", settle="2s")
        case _:
            settle = pick((None, "2s"))
            world.guarded_writer(name, process, mode=kind, settle=settle)  # type: ignore[arg-type]


def _only_set(pick: Pick, world: World, processes: Sequence[Process]) -> World:
    """The same world, in which one writer sets or adds a value and all others are gone."""
    for name in [name for name in world.stepper.actors if name.startswith("writer")]:
        world.stepper.actors.pop(name).work.close()
    process = pick(processes)
    pick((world.setter, world.adder))("writer 1", process)
    return world


def _fates(pick: Pick, world: World, processes: Sequence[Process], *, gaps: bool) -> None:
    if not world.sets and pick((False, False, True)):  # nor is a floor evicted that keeps such a value out
        world.eviction()
    if world.lagging and pick((False, True)):
        world.replication(steps=pick((1, 2)))
    if pick((False, False, True)):
        world.absence()
    if gaps and pick((False, False, True)):
        world.gap(pick(processes))
    for number in range(pick((0, 1, 2))):
        # Who sets a value by hand does so while the floors of others are alive.
        world.delay(pick((0.5, 1.0, 2.1, 6.0) if world.sets else (0.5, 1.0, 2.1, 6.0, 310.0)), f"delay {number}")


def deadline_world(pick: Pick, server: Callable[[Stepper], Judged] = ModelServer, *, about: str = "") -> World:
    """Few processes and short times, so that quarantines, floors, writes and leases meet often.

    Args:
        about: one of its kinds: a touch, a slow load, an old value, all; "": any.
    """
    versioned = pick((False, True))
    about = about or pick(("a touch", "a slow load", "an old value", "all", "all"))
    world = World(pick((REDIS_ONLY, REDIS_ONLY, STALE, STRICT)), lagging=True, versioned=versioned, server=server)
    here = world.process("A", threads=True)
    there = pick((here, world.process("B", threads=True)))
    if about != "all":
        world.writer("writer 1", there, lag=LAG)
        if about != "a slow load":
            world.stepper.run(following())  # what follows finds a quarantine
        world.reader("reader 1", here)
        if about == "an old value":
            world.stepper.run(following())
    match about:
        case "a touch":
            world.toucher("toucher", here)
        case "a slow load":
            world.delay(2.1)
        case "an old value":
            world.writer("writer 2", there, softly=True)
            world.reader("reader 2", here, fails=True)
        case _:
            _all_deadlines(pick, world, here, there)
    return world


def _all_deadlines(pick: Pick, world: World, here: Process, there: Process) -> None:
    if pick((False, True)):
        world.warm(here, age=pick((0, 299, 310)))
    kinds = ["settles", "settles", "settles long", "settling fence", "softly", "update"]
    if world.versioned:
        kinds += ["says", "says and settles"]
        if pick((False, False, True)):
            kinds = ["says", "says and settles"]
            world.setter("setter", there, says=True)
    for number in range(1, pick((1, 2, 3)) + 1):
        _whole_writer(pick, world, f"writer {number}", pick((here, there)), pick(kinds))
    for number in range(1, pick((1, 2, 3)) + 1):
        world.reader(f"reader {number}", pick((here, there)), fails=pick((False, False, True)))
    if pick((False, True)):
        world.toucher("toucher", pick((here, there)))
    if pick((False, False, True)):
        world.absence()
    for number in range(pick((0, 1, 2))):
        world.delay(pick((0.5, 1.0, 2.1, 6.0)), f"delay {number}")


def cleared_world(pick: Pick, server: Callable[[Stepper], Judged] = ModelServer) -> World:
    """Writers that say versions, while the namespace is cleared."""
    world = World(REDIS_ONLY, lagging=True, versioned=True, server=server, apart=pick((False, True)))
    processes = [world.process(name, threads=True) for name in ("A", "B", "C")]
    if pick((False, True)):
        world.warm(processes[0])
    world.tag_writer("writer 1", processes[0], clears=True)
    world.writer("writer 2", processes[1], says=True)
    world.writer("writer 3", processes[2], says=True)
    world.reader("reader 1", pick(processes))
    return world


def beside_world(pick: Pick, server: Callable[[Stepper], Judged] = ModelServer) -> World:
    """Processes whose functions have ``l2=False`` hear of what others write."""
    versioned, lagging = pick((False, True)), pick((False, True))
    world = World(TWO_TIERS, bus=True, lagging=lagging, versioned=versioned, server=server)
    here = world.process("A", threads=True, own=True)
    there = world.process("B", threads=True, own=pick((False, True)))
    for number in range(1, pick((1, 2)) + 1):
        kinds: tuple[str, ...] = ("settles", "settling fence", "plain")
        if versioned:
            kinds += "says", "says and settles"
        _whole_writer(pick, world, f"writer {number}", pick((there, there, here)), pick(kinds))
    for number in range(1, pick((1, 2, 3)) + 1):
        world.reader(f"reader {number}", here)
    if pick((False, False, True)):
        world.delay(pick((0.5, 1.0)))
    return world
