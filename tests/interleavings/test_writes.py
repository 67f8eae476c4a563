"""Fences, tags, namespaces, versions and the bus, in every order or in many."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from cacheguard.policy import Rules
from tests.support.schedules import Pick, choosing, explored, searched
from tests.support.world import REDIS_ONLY, TAG, TWO_TIERS, World

slow, chaos = pytest.mark.slow, pytest.mark.chaos
Build = Callable[[], World]


def tagged(*, late: bool, clears: bool = False, places: str = "ABC", rules: Rules = REDIS_ONLY) -> Build:
    """Two readers of an entry with a tag, and a writer that invalidates the tag or clears the namespace."""

    def build() -> World:
        world = World(rules, late_tags=(TAG,) if late else (), tags=() if late else (TAG,))
        processes = {name: world.process(name, threads=True) for name in sorted(set(places))}
        for number, name in enumerate(places[:-1], 1):
            world.reader(f"reader {number}", processes[name])
        world.tag_writer("writer", processes[places[-1]], clears=clears)
        return world

    return build


@pytest.mark.parametrize("clears", [False, True], ids=["tag", "clear"])
@pytest.mark.parametrize("late", [False, True], ids=["known", "added by the loader"])
def test_a_reader_and_an_invalidation_by_tag(late: bool, clears: bool) -> None:
    assert explored(tagged(late=late, clears=clears, places="AB")) > 5


@chaos
def test_two_readers_in_one_process_and_an_invalidation_by_tag() -> None:
    assert explored(tagged(late=False, places="AAB")) > 100


@chaos
@pytest.mark.parametrize("clears", [False, True], ids=["tag", "clear"])
def test_two_readers_in_one_process_and_an_invalidation_by_a_tag_that_the_loader_adds(clears: bool) -> None:
    assert explored(tagged(late=True, clears=clears, places="AAB")) > 100


@chaos
@pytest.mark.parametrize("late", [False, True], ids=["known", "added by the loader"])
def test_two_readers_and_an_invalidation_by_tag_each_in_a_process_of_its_own(late: bool) -> None:
    assert explored(tagged(late=late)) > 100


def fenced(places: str, writers: str, *, crash: bool = False, evict: bool = False) -> Build:
    """Readers, and writers behind a fence."""

    def build() -> World:
        world = World(REDIS_ONLY)
        processes = {name: world.process(name, threads=True) for name in sorted({*places, *writers})}
        for number, name in enumerate(places, 1):
            world.reader(f"reader {number}", processes[name])
        for number, name in enumerate(writers, 1):
            world.guarded_writer(f"writer {number}", processes[name])
        if crash:
            world.crash(processes[writers[0]])
        if evict:
            world.fences_hold = False  # a lost intent weakens the fence to a lease
            world.eviction()
        return world

    return build


@chaos
def test_two_readers_and_a_fenced_write() -> None:
    assert explored(fenced("AB", "C")) > 100


def test_a_reader_and_a_fenced_writer_that_dies_anywhere() -> None:
    assert explored(fenced("A", "B", crash=True)) > 20


@slow
def test_a_reader_a_fenced_write_and_an_eviction() -> None:
    assert explored(fenced("A", "B", evict=True)) > 50


@chaos
def test_two_readers_and_two_fenced_writers() -> None:
    assert explored(fenced("AB", "CD")) > 10_000


@chaos
def test_two_readers_and_a_fenced_writer_that_dies_anywhere() -> None:
    assert explored(fenced("AB", "C", crash=True)) > 1000


def both_tiers(places: str, *, gap: bool = False) -> Build:
    """Readers with an in-process tier that hears of a writer over the bus."""

    def build() -> World:
        world = World(TWO_TIERS, bus=True)
        processes = {name: world.process(name, threads=True) for name in sorted(set(places))}
        for number, name in enumerate(places[:-1], 1):
            world.reader(f"reader {number}", processes[name])
        world.writer("writer", processes[places[-1]])
        if gap:
            world.gap(processes["A"])
        return world

    return build


def test_what_a_process_keeps_follows_the_bus() -> None:
    assert explored(both_tiers("AB")) > 20


@chaos
def test_what_a_process_keeps_follows_the_bus_over_a_gap() -> None:
    assert explored(both_tiers("AB", gap=True)) > 200


@chaos
def test_what_two_processes_keep_follows_the_bus() -> None:
    assert explored(both_tiers("ABC")) > 1000


def lagging(writer: str) -> Build:
    """A reader whose loader reads a replica, and a writer who says its version, or settles."""

    def build() -> World:
        world = World(REDIS_ONLY, lagging=True, versioned=writer == "version")
        here, there = world.process("A", threads=True), world.process("B", threads=True)
        world.reader("reader", here)
        terms = {} if writer == "version" else {"settle": "2s"}
        world.guarded_writer("writer", there, mode="delete", **terms)
        world.replication()
        return world

    return build


# What the slow and the chaotic ones go through to the end.
LONG: dict[str, Build] = {
    "a tag, two readers in one process": tagged(late=False, places="AAB"),
    "a tag that the loader adds, two readers in one process": tagged(late=True, places="AAB"),
    "a namespace, two readers in one process": tagged(late=True, clears=True, places="AAB"),
    "a tag, each in a process of its own": tagged(late=False),
    "a fence": fenced("AB", "C"),
    "two fences": fenced("AB", "CD"),
    "a fence and a death": fenced("AB", "C", crash=True),
    "a gap in the bus": both_tiers("AB", gap=True),
    "two processes on the bus": both_tiers("ABC"),
    "a quarantine and a replica that lags": lagging("settle"),
}


@pytest.mark.parametrize("world", LONG)
def test_some_hundred_orders_of_what_has_too_many(world: str) -> None:
    assert searched(lambda pick: LONG[world](), runs=50, seconds=30) == 50


@slow
def test_with_versions_nothing_old_is_left_by_a_replica_that_lags() -> None:
    assert explored(lagging("version")) > 50


@slow
def test_with_a_quarantine_nothing_that_a_lagging_replica_says_outlives_it() -> None:
    assert explored(lagging("settle")) > 50


def varied_world(pick: Pick) -> World:
    """Readers and writers of every kind in one to three processes, with and without tags, both tiers, gaps, crashes."""
    rules = pick((TWO_TIERS, REDIS_ONLY))
    late, known = pick(((), (TAG,))), pick(((), (TAG,)))
    world = World(rules, bus=rules is TWO_TIERS, tags=known, late_tags=late)
    threads = pick((False, True))
    processes = [world.process(name, threads=threads) for name in ("A", "B", "C")[: pick((1, 2, 3))]]
    for number in range(1, pick((2, 3)) + 1):
        world.reader(f"reader {number}", pick(processes))
    kinds = ("invalidate", "fence", "delete", "double", "tag", "clear")
    # What is set by hand is what comes last, so it goes alone.
    for number, kind in enumerate(pick(((pick(kinds), pick(kinds)), ("set",))), 1):
        name, process = f"writer {number}", pick(processes)
        if kind in {"tag", "clear"} and (late or known):
            world.tag_writer(name, process, clears=kind == "clear")
        elif kind == "set":
            world.setter(name, process)
        elif kind in {"fence", "delete", "double"}:
            world.guarded_writer(name, process, mode=kind)  # type: ignore[arg-type]
        else:
            world.writer(name, process)
    if pick((False, False, True)):
        world.fences_hold = False
        world.eviction()
    if world.bus and pick((False, True)):
        world.gap(pick(processes))
    if pick((False, False, True)):
        world.delay(pick((1.0, 6.0)))
    return world


def test_writers_of_every_kind_in_many_orders() -> None:
    assert searched(varied_world, runs=150, seconds=30) > 100


@slow
def test_writers_of_every_kind_in_some_thousand_orders() -> None:
    assert searched(varied_world, runs=10_000, seconds=30, seed=1) > 300


@chaos
def test_writers_of_every_kind_in_a_hundred_thousand_orders() -> None:
    assert searched(varied_world, runs=100_000, seconds=1500, seed=2) == 100_000


def test_a_world_can_be_drawn_to_its_end() -> None:
    varied_world(lambda options: options[-1]).run(choosing(lambda options: options[0]))
