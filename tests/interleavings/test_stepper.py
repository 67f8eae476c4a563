"""The tools of this room: the search finds every schedule, and leaves out only what cannot matter."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from tests.support.schedules import explored, following
from tests.support.stepper import ANYTHING, NOTHING, Choose, Exploration, Pause, Redundant, Stepper, stop_at
from tests.support.world import World

Log = list[str]


async def two_writes(log: Log, name: str, resource: frozenset[str]) -> None:
    log.append(f"{name}1")
    await stop_at(Pause("again", writes=resource))
    log.append(f"{name}2")


def outcomes(*resources: frozenset[str]) -> tuple[set[tuple[str, ...]], int]:
    """The orders in which actors that write to *resources* can come, and the number of schedules tried."""
    seen: set[tuple[str, ...]] = set()
    runs = 0
    for choose in Exploration().schedules():
        log: Log = []
        stepper = Stepper()
        for name, resource in zip("ab", resources, strict=True):
            stepper.add(name, two_writes(log, name, resource), name, Pause("begin", writes=resource))
        try:
            stepper.run(choose)
        except Redundant:
            for name in "ab":
                stepper.kill(name)
        else:
            runs += 1
            seen.add(tuple(log))
    return seen, runs


def test_steps_that_collide_are_tried_in_every_order() -> None:
    seen, runs = outcomes(frozenset({"x"}), frozenset({"x"}))
    assert len(seen) == runs == 6


def test_steps_that_cannot_notice_each_other_are_tried_in_one_order() -> None:
    assert outcomes(frozenset({"x"}), frozenset({"y"}))[1] == 1


def test_a_step_that_may_touch_anything_collides_with_everything() -> None:
    assert outcomes(frozenset({"x"}), ANYTHING)[1] == 6
    assert not Pause("reads", reads=frozenset({"x"})).collides(Pause("reads", reads=frozenset({"x"})))


def results(build_pause: frozenset[str] | None) -> set[tuple[object, ...]]:
    """What two readers and a writer can come to; with a pause of its own, every step collides with every other."""
    seen: set[tuple[object, ...]] = set()
    for choose in Exploration().schedules():
        world = World()
        left, right = world.process("A", threads=True), world.process("B", threads=True)
        world.reader("reader", left)
        world.writer("writer", right)
        try:
            world.run(choose if build_pause is None else colliding(choose))
        except Redundant:
            continue
        seen.add((world.stepper.results["reader"], world.loads, world.server.grants, world.server.version))
    return seen


def colliding(choose: Choose) -> Choose:
    def everything(movable: Mapping[str, Pause]) -> str:
        return choose({name: Pause(pause.label, writes=ANYTHING) for name, pause in movable.items()})

    return everything


def test_what_the_search_leaves_out_has_the_outcome_of_something_it_tried() -> None:
    assert results(None) == results(ANYTHING)


def test_actors_that_wait_for_one_another_are_reported() -> None:
    async def forever() -> None:
        await stop_at(Pause("never", ready=lambda: False))

    stepper = Stepper()
    stepper.add("a", forever(), "here")
    with pytest.raises(AssertionError, match="nobody can move"):
        stepper.run(following())
    stepper.kill("here")


def test_an_actor_that_never_ends_is_reported() -> None:
    async def forever() -> None:
        while True:
            await stop_at(Pause("again", writes=NOTHING))

    stepper = Stepper()
    stepper.add("a", forever(), "here")
    with pytest.raises(AssertionError, match="no end after 50 steps"):
        stepper.run(following(), limit=50)
    stepper.kill("here")


def test_a_failing_schedule_tells_its_steps() -> None:
    world = World()
    world.acknowledged["k"] = 1
    world.reader("reader", world.process("A", threads=True))
    with pytest.raises(AssertionError) as caught:
        world.run(following())
    assert "reads the database" in caught.value.__notes__[0]


def test_every_run_of_a_search_is_counted() -> None:
    def build() -> World:
        world = World()
        world.reader("reader", world.process("A", threads=True))
        return world

    assert explored(build) == 1
