"""Schedules that a search has found once; each was a bug."""

from __future__ import annotations

from cacheguard.defenses.consistency import version_text
from cacheguard.delivery.outbox import Invalidation
from cacheguard.protocol import calls
from cacheguard.protocol.entry import Fill, Filled
from tests.support.judged import ModelServer
from tests.support.schedules import STALE, explored, following
from tests.support.stepper import Stepper
from tests.support.world import KEY, LAG, REDIS_ONLY, SCOPE, TAG, TWO_TIERS, World


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


def test_what_a_tag_quarantines_is_not_served_as_stale_after_that() -> None:
    # writer 1: invalidates the tag, a replica lags
    # reader 1:                                       fills "old", until the quarantine ends
    # writer 2:                                                                              expires the entry
    # reader 2:                                                                                     leases, fails
    world = World(REDIS_ONLY, lagging=True, tags=(TAG,))
    here, there = world.process("A", threads=True), world.process("B", threads=True)
    world.tag_writer("writer 1", there, lag=LAG)
    world.reader("reader 1", here)
    world.writer("writer 2", there, softly=True)
    world.reader("reader 2", here, fails=True)
    world.run(following())
    assert world.server.value(SCOPE.key(KEY), stale=True) is None


def test_a_change_by_hand_is_not_proven_by_the_version_of_the_value_before() -> None:
    # reader:  fills 1, which has the version 1
    # writer:           invalidates with the version 1, a replica lags: the value stays
    # updater:                                                            makes it 2, without a version
    world = World(REDIS_ONLY, lagging=True, versioned=True)
    here, there = world.process("A", threads=True), world.process("B", threads=True)
    world.writer("writer 1", there, says=True)
    world.reader("reader", here)
    name = SCOPE.key(KEY)
    item = Invalidation(name, round(LAG * 1000), version_text(1))
    world.stepper.add("writer 2", there.writes.write(there.engine, [item]), "B")
    world.updater("updater", here)
    world.run(following())
    assert world.server.value(name, stale=True) is None


def test_a_floor_is_not_lost_to_one_of_a_writer_that_has_not_heard_of_a_clear() -> None:
    server = ModelServer(Stepper())

    def floor(version: int, under: bytes) -> None:
        text = version_text(version)
        server.answer(calls.invalidate(KEY, channel="", echo="-", floor=text, under=under, floor_ms=300_000))

    floor(10, b"new")
    floor(7, b"old")
    floor(7, b"new")
    server.answer(calls.lease(KEY, token="t"))
    fill = Fill(KEY, "t", object(), 300.0, 0.0, version_text(8), under=b"new")
    assert calls.filled(server.answer(calls.fill(fill, channel=""))) is Filled.OLD


def test_a_plain_invalidation_behind_one_with_a_version_reaches_functions_without_l2() -> None:
    # writer 1: invalidates with the version 1
    # reader:                                  keeps 1 in its own store, which has the version 1
    # writer 2:                                                         invalidates without a version
    world = World(TWO_TIERS, bus=True, versioned=True)
    here, there = world.process("A", threads=True, own=True), world.process("B", threads=True)
    world.writer("writer 1", there, says=True)
    world.stepper.run(following())
    world.reader("reader", here)
    world.stepper.run(following())
    world.writer("writer 2", there)
    world.run(following())
    assert here.own.value(SCOPE.key(KEY), stale=True) is None


def test_no_load_that_adds_its_tag_at_the_end_outlives_the_quarantine_of_the_tag() -> None:
    # reader:  leases, asks the replica: "old" ......................... adds the tag: refused
    # writer:          invalidates the tag, before ... the quarantine ends
    def build() -> World:
        world = World(REDIS_ONLY, lagging=True, late_tags=(TAG,))
        world.tag_writer("writer", world.process("B", threads=True), lag=LAG)
        world.stepper.run(following())
        world.reader("reader", world.process("A", threads=True))
        world.delay(LAG + 0.1)
        return world

    assert explored(build) > 5


def test_the_version_of_a_value_that_another_clock_wrote_is_the_floor_nevertheless() -> None:
    # The server's clock steps back: the value would be fresh for longer than it may be, so it is not there.
    stepper = Stepper()
    server = ModelServer(stepper)
    server.answer(calls.store(KEY, object(), fresh=300.0, stale=0.0, version=version_text(10), channel="", echo="-"))
    stepper.now -= 60.0
    server.answer(calls.lease(KEY, token="t"))
    fill = Fill(KEY, "t", object(), 300.0, 0.0, version_text(9))
    assert calls.filled(server.answer(calls.fill(fill, channel=""))) is Filled.OLD


def test_a_tag_that_is_known_from_the_entry_before_is_not_known_to_be_without_a_quarantine() -> None:
    # writer:     invalidates the tag, a replica lags
    # reader:                                         fills "old", until the quarantine ends
    # refresher:        (does not know the tag)                            leases, finds it in that entry, fills "old"
    world = World(REDIS_ONLY, lagging=True, late_tags=(TAG,))
    here, there = world.process("A", threads=True), world.process("B", threads=True)
    world.warm(here)
    world.tag_writer("writer", there, lag=LAG)
    world.stepper.run(following())
    world.reader("reader", here)
    world.stepper.run(following())
    assert world.server.value(SCOPE.key(KEY), stale=True) == 0
    world.refresher("refresher", world.process("C", threads=True))
    world.run(following())
    assert world.server.value(SCOPE.key(KEY), stale=True) is None


def test_a_load_that_began_before_an_invalidation_ended_fills_no_store_of_a_process() -> None:
    # reader 1:                       leases here, loads 1 ................................... fills here: refused
    # writers:   the first has begun ....................... the second commits 2; the first ends
    # reader 2:                                                                                          must not get 1
    world = World(TWO_TIERS, bus=True)
    here, there = world.process("A", threads=True, own=True), world.process("B", threads=True)
    world.writer("writer 1", here)
    world.reader("reader 1", here)
    world.writer("writer 2", there)
    world.reader("reader 2", here)
    steps = ["writer 1"] * 1 + ["reader 1"] * 6 + ["writer 2"] + ["writer 1"] * 2 + ["A.bus1"] + ["reader 1"] * 3
    world.run(following(*steps, *["reader 2"] * 3))
    assert world.stepper.results["reader 2"] == 2


def test_a_refresh_keeps_nothing_whose_tag_was_invalidated_before_it_is_answered() -> None:
    # refresher:  loads "old", fills: accepted ........................ is answered: must not keep "old"
    # writer:                                   invalidates the tag
    def build() -> World:
        world = World(TWO_TIERS, bus=True, tags=(TAG,))
        here, there = world.process("A", threads=True), world.process("B", threads=True)
        world.refresher("refresher", here)
        world.tag_writer("writer", there)
        return world

    assert explored(build) > 20


def test_the_version_of_a_value_that_a_write_kept_out_is_the_floor_nevertheless() -> None:
    # writer 1:  sets a fence ....................... invalidates version 1
    # writer 3:                 sets version 3: kept out
    # writer 2:                                                             sets version 2, late: must not be stored
    stepper = Stepper()
    server = ModelServer(stepper)

    def store(version: int) -> object:
        text = version_text(version)
        return server.answer(calls.store(KEY, object(), fresh=300.0, stale=0.0, version=text, channel="", echo="-"))

    server.answer(calls.invalidate(KEY, channel="", echo="-", begins="w", intent_ms=10_000))
    assert store(3) == 0
    text = version_text(1)
    server.answer(calls.invalidate(KEY, channel="", echo="-", floor=text, floor_ms=calls.FLOOR_MS, ends="w"))
    assert [store(2), server.value(KEY, stale=True)] == [-1, None]
    assert store(3) == 1
