"""Small worlds, every schedule: no reader gets less than what had been acknowledged when it began."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from cacheguard.policy import Rules
from tests.support.schedules import explored, searched
from tests.support.world import REDIS_ONLY, TWO_TIERS, World

slow, chaos = pytest.mark.slow, pytest.mark.chaos


def outcomes(build: Callable[[], World]) -> set[tuple[int, object]]:
    """The number of loads and the answer of reader 2, over all schedules."""
    seen: set[tuple[int, object]] = set()
    explored(build, lambda world: seen.add(outcome(world)))
    return seen


def outcome(world: World) -> tuple[int, object]:
    return world.loads, world.stepper.results["reader 2"]


def world_of(
    readers: str, writers: str, *, threads: bool, rules: Rules = REDIS_ONLY, evict: bool = False
) -> Callable[[], World]:
    """A world with a reader or a writer in each of the processes that are named."""

    def build() -> World:
        world = World(rules)
        processes = {name: world.process(name, threads=threads) for name in sorted({*readers, *writers})}
        for number, name in enumerate(readers, 1):
            world.reader(f"reader {number}", processes[name])
        for number, name in enumerate(writers, 1):
            world.writer(f"writer {number}", processes[name])
        if evict:
            world.eviction()
        return world

    return build


@slow
@pytest.mark.parametrize("threads", [pytest.param(True, marks=slow, id="threads"), pytest.param(False, id="tasks")])
@pytest.mark.parametrize("places", ["ABC", pytest.param("ABA", marks=chaos)])
def test_two_readers_and_a_writer(places: str, threads: bool) -> None:
    assert explored(world_of(places[:2], places[2:], threads=threads)) > 100


@chaos
def test_two_readers_and_a_writer_in_one_process() -> None:
    assert explored(world_of("AA", "A", threads=True)) > 100_000


@chaos
@pytest.mark.parametrize("threads", [True, False], ids=["threads", "tasks"])
def test_two_readers_in_one_process_and_a_writer_elsewhere(threads: bool) -> None:
    assert explored(world_of("AA", "B", threads=threads)) > 1000


@chaos
def test_two_readers_and_a_writer_beside_one_of_them_with_both_tiers() -> None:
    assert explored(world_of("AB", "A", threads=True, rules=TWO_TIERS)) > 1000


@slow
@pytest.mark.parametrize("places", ["ABC", pytest.param("AAB", marks=chaos)])
def test_two_readers_a_writer_and_an_eviction(places: str) -> None:
    assert explored(world_of(places[:2], places[2:], threads=True, evict=True)) > 1000


@chaos
def test_two_readers_and_two_writers_each_in_a_process_of_its_own() -> None:
    assert explored(world_of("AB", "CD", threads=True)) > 10_000


@chaos
def test_two_readers_two_writers_and_an_eviction() -> None:
    assert explored(world_of("AB", "CD", threads=True, evict=True)) > 10_000


@pytest.mark.parametrize("threads", [True, False], ids=["threads", "tasks"])
@pytest.mark.parametrize("places", ["AB", "AA", pytest.param("ABC", marks=slow), pytest.param("AAB", marks=chaos)])
def test_readers_of_a_cold_key_cause_one_load(places: str, threads: bool) -> None:
    assert outcomes(world_of(places, "", threads=threads)) == {(1, 0)}


def cancelled() -> World:
    """Two readers in one event loop, the first of which is cancelled."""
    world = world_of("AA", "", threads=False)()
    world.cancellation("reader 1")
    return world


@slow
def test_a_reader_that_is_cancelled_anywhere_takes_nobody_along() -> None:
    assert outcomes(cancelled) == {(1, 0)}


# What the slow and the chaotic ones above go through to the end.
LONG = {
    "two readers, one beside the writer, threads": world_of("AB", "A", threads=True),
    "two readers, one beside the writer, tasks": world_of("AB", "A", threads=False),
    "two readers in one process, threads": world_of("AA", "B", threads=True),
    "two readers in one process, tasks": world_of("AA", "B", threads=False),
    "all in one process": world_of("AA", "A", threads=True),
    "both tiers": world_of("AB", "A", threads=True, rules=TWO_TIERS),
    "an eviction": world_of("AB", "C", threads=True, evict=True),
    "two writers": world_of("AB", "CD", threads=True),
    "two writers and an eviction": world_of("AB", "CD", threads=True, evict=True),
}


@pytest.mark.parametrize("world", LONG)
def test_some_hundred_orders_of_what_has_too_many(world: str) -> None:
    assert searched(lambda pick: LONG[world](), runs=100, seconds=30) == 100


@pytest.mark.parametrize("places", ["ABC", "AAB"])
def test_readers_of_a_cold_key_cause_one_load_in_some_hundred_orders(places: str) -> None:
    seen: set[tuple[int, object]] = set()
    readers = world_of(places, "", threads=False)
    assert searched(lambda pick: readers(), runs=100, seconds=30, note=lambda world: seen.add(outcome(world))) == 100
    assert seen == {(1, 0)}


def test_a_reader_that_is_cancelled_takes_nobody_along_in_some_hundred_orders() -> None:
    seen: set[tuple[int, object]] = set()
    assert searched(lambda pick: cancelled(), runs=100, seconds=30, note=lambda world: seen.add(outcome(world))) == 100
    assert seen == {(1, 0)}
