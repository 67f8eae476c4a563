"""Schedules that a search has found once; each was a bug."""

from __future__ import annotations

from tests.support.schedules import STALE, following
from tests.support.world import REDIS_ONLY, World


def test_an_old_value_that_its_leader_read_before_an_invalidation_is_not_for_later_joiners() -> None:
    # reader 1: reads "old", stale .................................. leases, its load fails: serves "old"
    # writer:                          commits, invalidates
    # reader 2:                                                 joins: must not get "old"
    world = World(REDIS_ONLY)
    here, there = world.process("A"), world.process("B", threads=True)
    world.warm(here, age=310)
    world.reader("reader 1", here, fails=True)
    world.writer("writer", there)
    world.reader("reader 2", here, fails=True)
    steps = (
        ["reader 1"] * 2 + ["writer"] * 3 + ["reader 2"] * 2 + ["reader 1"] + ["reader 2"] + ["reader 1.flight1"] * 3
    )
    world.run(following(*steps))
    assert world.stepper.results["reader 1"] == 0
    assert world.stepper.results["reader 2"] is None


def test_a_refresh_that_waits_for_another_process_does_not_answer_with_what_it_finds_meanwhile() -> None:
    # reader:    finds "old", stale, reloads behind ............................. fills
    # refresher:                                     asks for the lease: "old" is there, and somebody loads
    world = World(STALE)
    here, there = world.process("A", threads=True), world.process("B", threads=True)
    world.warm(here, age=310)
    world.reader("reader", here)
    world.database["k"] = 1
    world.refresher("refresher", there)
    world.run(following(*["reader"] * 3, *["reader.flight1"] * 3, *["refresher"] * 3))
    assert world.stepper.results["refresher"] == 1
