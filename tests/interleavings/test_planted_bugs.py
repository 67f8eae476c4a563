"""Every checker is checked: a part that is broken on purpose must be caught, and soon."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from contextlib import suppress
from random import Random
from typing import Any

import pytest

from cacheguard.delivery.gate import Gate
from cacheguard.delivery.outbox import Invalidation
from cacheguard.engine.ask import Ask, Job, Loaded
from cacheguard.engine.changes import Changes
from cacheguard.engine.filling import Filling
from cacheguard.engine.flights import Flight, Flights
from cacheguard.engine.loading import Loading
from cacheguard.engine.reading import Engine
from cacheguard.engine.rebuilding import Plan, Rebuilding
from cacheguard.engine.shared import Shared
from cacheguard.protocol.entry import Found, Granted, Stored
from cacheguard.protocol.envelope import Kind
from cacheguard.protocol.model import MemoryCommands
from cacheguard.protocol.state import State
from cacheguard.tiers.local import Local
from tests.support.schedules import (
    Pick,
    choosing,
    crowded_world,
    explored,
    failing_world,
    following,
    peaceful_world,
    violation,
)
from tests.support.stepped import Fault, SteppedRuntime
from tests.support.stepper import Pause
from tests.support.witness import Violation, Witness
from tests.support.world import REDIS_ONLY, World

Plant = Callable[[pytest.MonkeyPatch], None]


def script(name: str, tamper: Callable[[State, int, tuple[Any, ...]], None]) -> Plant:
    """The script of that name, with something done to what is under the key beforehand."""

    def plant(patch: pytest.MonkeyPatch) -> None:
        honest = getattr(MemoryCommands, f"_{name}")

        def broken(self: MemoryCommands, state: State, now: int, key: str, *args: Any) -> Any:
            tamper(state, now, args)
            return honest(self, state, now, key, *args)

        patch.setattr(MemoryCommands, f"_{name}", broken)

    return plant


def take_over(state: State, now: int, args: tuple[Any, ...]) -> None:
    state.lease = state.lease or [now + 60_000, 60_000, "", 0]
    state.lease[2] = args[0]


def end_lease(state: State, _now: int, _args: tuple[Any, ...]) -> None:
    state.lease = None


def take_over_if_held(state: State, _now: int, args: tuple[Any, ...]) -> None:
    if state.lease is not None:
        state.lease[2] = args[0]


fill_ignores_the_token = script("fill", take_over)
lease_ignores_a_live_lease = script("lease", end_lease)
release_takes_any_token = script("release", take_over_if_held)
renew_brings_a_lost_lease_back = script("renew", take_over)


def keeps_the_lease(name: str) -> Plant:
    def plant(patch: pytest.MonkeyPatch) -> None:
        honest = getattr(MemoryCommands, f"_{name}")

        def broken(self: Any, state: State, now: int, key: str, *args: Any) -> Any:
            lease = state.lease
            reply = honest(self, state, now, key, *args)
            state.lease = lease
            return reply

        patch.setattr(MemoryCommands, f"_{name}", broken)

    return plant


def followers_trust_every_flight(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Flight, "serves", lambda *args, **options: True)


def flights_stay_open_while_they_fill(patch: pytest.MonkeyPatch) -> None:
    run, fill, retire = Loading.run, Filling.fill_and_land, Flights.retire
    filling: set[Flight] = set()

    async def broken_run(self: Loading, job: Job) -> Loaded | None:
        loaded = await run(self, job)
        filling.update(job.flights.values())
        return loaded

    async def broken_fill(self: Filling, job: Job, *args: Any) -> bool:
        try:
            return await fill(self, job, *args)
        finally:
            filling.difference_update(job.flights.values())

    def broken_retire(self: Flights, key: str, flight: Flight) -> None:
        if flight not in filling:
            retire(self, key, flight)

    patch.setattr(Loading, "run", broken_run)
    patch.setattr(Filling, "fill_and_land", broken_fill)
    patch.setattr(Flights, "retire", broken_retire)


def the_local_tier_takes_any_ticket(patch: pytest.MonkeyPatch) -> None:
    honest = Local.put

    def broken(self: Local, key: str, entry: Any, ticket: int, **options: Any) -> bool:
        return honest(self, key, entry, self.tickets.take(), **options)

    patch.setattr(Local, "put", broken)


def the_local_tier_is_emptied_too_early(patch: pytest.MonkeyPatch) -> None:
    async def broken(self: Any, items: Sequence[Invalidation]) -> bool:
        self._shared.drop([item.key for item in items])
        return bool(await self._remote.invalidate(items))

    patch.setattr(Changes, "invalidate", broken)


def what_is_owed_is_struck_off_unread(patch: pytest.MonkeyPatch) -> None:
    async def broken(self: Any) -> None:
        items = list(self._outbox.pending)
        await self._deliver_again(items)
        for item in items:
            self._outbox.pending.pop(item, None)

    patch.setattr(Gate, "_deliver", broken)


def a_refresh_takes_what_it_finds(patch: pytest.MonkeyPatch) -> None:
    honest = Rebuilding.rebuild

    async def broken(self: Rebuilding, ask: Ask, found: Any, *, anew: bool = False) -> Any:
        return await honest(self, ask, found)

    patch.setattr(Rebuilding, "rebuild", broken)


def old_values_are_handed_to_whoever_joined(patch: pytest.MonkeyPatch) -> None:
    honest = Rebuilding._follow  # noqa: SLF001 - the part to be broken

    async def broken(self: Any, flight: Flight, ask: Ask, plan: Plan, lease: Any, *rest: Any) -> bool:
        if isinstance(lease, Granted) and lease.found is None and plan.stale is not None:
            lease.found = Found(plan.stale, -1.0)
        return await honest(self, flight, ask, plan, lease, *rest)

    patch.setattr(Rebuilding, "_follow", broken)


class NaiveEngine(Engine):
    """Cache-aside as it is usually written: no lease, no flight."""

    async def read(self, ask: Ask) -> Any:
        found = await self.remote.read(ask.key, ask.codec, ask.scope, ask.tags)
        if found is not None and found.stored is not None:
            return found.stored.value
        value = await self.runtime.call(ask.load)
        stored = Stored(Kind.VALUE, value, 300.0, 0.0, ())
        await self.remote.of(ask.key).by_hand.store({ask.key: (stored, 300.0, 0.0)}, "", b"", (), 0)
        return value


@pytest.fixture(autouse=True)
def _no_witness(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is looked for here is what readers and holders of leases notice."""
    monkeypatch.setattr(Witness, "saw", lambda *_: None)


def orphaned_world(pick: Pick) -> World:
    """A lease is granted to a process that does not hear of it, and gives it back when it asks again."""
    asked = iter(range(10**6))

    def fault(place: str, label: str) -> Fault:
        return Fault.UNANSWERED if (place, label) == ("A", "lease") and next(asked) == 0 else Fault.NONE

    world = World(REDIS_ONLY, fault)
    here, there = world.process("A", threads=pick((False, True))), world.process("B")
    world.reader("reader 1", here)
    world.reader("reader 2", here)
    world.reader("reader 3", there)
    world.writer("writer", there)
    return world


STALE, TWICE, NOBODY, LEFT = "had been acknowledged", "is leased to", "leased to nobody", "left over"


@pytest.mark.parametrize(
    ("plant", "about", "build"),
    [
        (fill_ignores_the_token, NOBODY, peaceful_world),
        (lease_ignores_a_live_lease, TWICE, peaceful_world),
        (release_takes_any_token, TWICE, orphaned_world),
        pytest.param(renew_brings_a_lost_lease_back, LEFT, peaceful_world, marks=pytest.mark.slow),
        (keeps_the_lease("invalidate"), NOBODY, peaceful_world),
        (keeps_the_lease("store"), NOBODY, peaceful_world),
        (keeps_the_lease("expire"), NOBODY, peaceful_world),
        (the_local_tier_takes_any_ticket, STALE, peaceful_world),
        (the_local_tier_is_emptied_too_early, STALE, peaceful_world),
        (a_refresh_takes_what_it_finds, STALE, peaceful_world),
        (old_values_are_handed_to_whoever_joined, STALE, failing_world),
    ],
)
def test_a_planted_bug_is_found(
    plant: Plant, about: str, build: Callable[[Pick], World], monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch)
    assert violation(build, about) is not None


@pytest.mark.parametrize("plant", [followers_trust_every_flight, flights_stay_open_while_they_fill])
def test_a_planted_bug_in_joining_is_found_among_all_schedules(plant: Plant, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch)
    with pytest.raises(Violation, match=STALE):
        explored(lambda: crowded_world(lambda options: options[-1]))


def test_cache_aside_without_leases_is_found_out() -> None:
    def build(pick: Pick) -> World:
        world = World(REDIS_ONLY, make_engine=NaiveEngine)
        world.reader("reader", world.process("A"))
        world.writer("writer", world.process("B"))
        return world

    assert violation(build, "what is left of k in Redis: 0, although 1 had been acknowledged") is not None


def owe_the_same_twice() -> None:
    """An invalidation is owed once more while the first one is being delivered.

    writer 1: invalidates, unheard
    reader 1:     delivers what is owed ........................................ hears of it
    reader 2:                           loads and fills 1
    writer 2:                                             invalidates, unheard
    """
    faults = iter([Fault.UNHEARD, Fault.NONE, Fault.UNHEARD])

    def fault(place: str, label: str) -> Fault:
        return next(faults, Fault.NONE) if label == "invalidate" else Fault.NONE

    world = World(REDIS_ONLY, fault)
    here, there = world.process("A", threads=True), world.process("B", threads=True)
    world.writer("writer 1", here)
    world.reader("reader 1", here)
    world.reader("reader 2", there)
    world.writer("writer 2", here)
    steps = ["writer 1"] * 3 + ["reader 1"] * 2 + ["reader 2"] * 9 + ["writer 2"] * 3
    world.run(following(*steps))
    assert world.database == {"k": 2}


def test_an_invalidation_that_is_owed_again_while_it_is_delivered_is_delivered_again() -> None:
    owe_the_same_twice()


def test_an_invalidation_that_is_struck_off_unread_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    what_is_owed_is_struck_off_unread(monkeypatch)
    with pytest.raises(Violation, match="what is left of k in Redis: 1, although 2"):
        owe_the_same_twice()


def new_reader_while_the_old_load_hangs(*, threads: bool) -> bool:
    """Whether a reader that begins after an invalidation gets its answer although an older load never ends."""
    world = World()
    process = world.process("A", threads=threads)
    world.reader("old", process)
    stuck = {"old"}

    def others(movable: Mapping[str, Pause]) -> str:
        loading = [name for name, pause in movable.items() if pause.label == "reads the database"]
        stuck.update(loading[:1] if len(stuck) == 1 else ())
        return next(name for name in movable if name not in stuck)

    with suppress(StopIteration):
        world.stepper.run(lambda movable: next(name for name in movable if movable[name].label != "reads the database"))
    world.writer("writer", process)
    with suppress(StopIteration):
        world.stepper.run(others)
    world.reader("new", process)
    with suppress(StopIteration):
        world.stepper.run(others)
    world.close()
    return world.stepper.results.get("new") == 1


@pytest.mark.parametrize("threads", [True, False], ids=["threads", "tasks"])
def test_a_reader_that_begins_after_an_invalidation_waits_for_no_older_load(threads: bool) -> None:
    assert new_reader_while_the_old_load_hangs(threads=threads)


def test_flights_that_outlive_an_invalidation_are_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: Shared, keys: Iterable[str]) -> None:
        for key in keys:
            self.local.drop(key)

    monkeypatch.setattr(Shared, "drop", broken)
    assert not new_reader_while_the_old_load_hangs(threads=False)


def test_a_load_that_dies_with_its_caller_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(self: SteppedRuntime, work: Coroutine[Any, Any, None], *, detached: bool) -> bool:
        await work
        return True

    def build(pick: Pick) -> World:
        world = World()
        process = world.process("A")
        world.reader("reader 1", process)
        world.reader("reader 2", process)
        world.cancellation("reader 1")
        return world

    monkeypatch.setattr(SteppedRuntime, "start", broken)
    loads = set()
    for seed in range(300):
        dice = Random(seed)
        world = build(dice.choice)
        world.run(choosing(dice.choice))
        loads.add(world.loads)
    assert 2 in loads
