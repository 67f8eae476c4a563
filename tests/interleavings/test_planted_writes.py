"""Every checker is checked: what guards writes, broken on purpose, must be caught, and soon."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import pytest

from cacheguard.defenses.consistency import Tickets
from cacheguard.delivery.bus import Bus
from cacheguard.doors.writing import Write
from cacheguard.engine.filling import Filling
from cacheguard.protocol.entry import Filled
from cacheguard.protocol.model import MemoryCommands
from cacheguard.protocol.state import State
from cacheguard.tiers.local import Local
from cacheguard.tiers.markers import Markers
from cacheguard.tiers.remote import Remote
from tests.support.schedules import following, violation
from tests.support.witness import Violation, Witness
from tests.support.world import REDIS_ONLY, TAG, TWO_TIERS, World

Plant = Callable[[pytest.MonkeyPatch], None]
Build = Callable[[], World]


def markers_are_not_looked_at(patch: pytest.MonkeyPatch) -> None:
    async def broken(self: Markers, *_: object) -> bool:
        return True

    patch.setattr(Markers, "stand", broken)


def nonces_are_read_after_the_load(patch: pytest.MonkeyPatch) -> None:
    async def broken(self: Any, draft: Any, _: Any) -> dict[str, bytes]:
        markers = draft.ask.scope.markers(draft.stored.tags)
        return dict(zip(markers, await self._remote.of(draft.ask.key).markers.ask(markers, 1000), strict=True))

    patch.setattr(Filling, "_marks_of", broken)


def late_tags_are_claimed_unseen(patch: pytest.MonkeyPatch) -> None:
    async def broken(self: Markers, scope: Any, tags: Sequence[str], at_ms: int, keep_ms: int) -> Any:
        return await self.ask(tuple(map(scope.tag, tags)), keep_ms)

    patch.setattr(Markers, "claim", broken)


def a_fill_is_proven_by_its_lease_alone(patch: pytest.MonkeyPatch) -> None:
    honest = Remote.fill_many

    async def broken(self: Remote, fills: Any) -> list[Filled]:
        outcomes = await honest(self, fills)
        return [Filled.STORED if each is Filled.REFUSED else each for each in outcomes]

    patch.setattr(Remote, "fill_many", broken)


def a_live_intent_does_not_matter(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(State, "written_until", lambda *_: 0)


def the_end_of_one_write_ends_them_all(patch: pytest.MonkeyPatch) -> None:
    honest = MemoryCommands._invalidate  # noqa: SLF001 - the part to be broken

    def broken(self: MemoryCommands, state: State, now: int, key: str, *args: Any) -> Any:
        if args[-2]:
            state.writes.clear()
        return honest(self, state, now, key, *args)

    patch.setattr(MemoryCommands, "_invalidate", broken)


def fences_are_not_raised(patch: pytest.MonkeyPatch) -> None:
    async def broken(self: Write, *_: object) -> None:
        return

    patch.setattr(Write, "begin", broken)


def quarantines_do_not_matter(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(State, "quarantined", lambda *_: None)


def fills_forget(claim: str) -> Plant:
    def plant(patch: pytest.MonkeyPatch) -> None:
        honest = MemoryCommands._fill  # noqa: SLF001 - the part to be broken

        def broken(self: MemoryCommands, state: State, now: int, key: str, *args: Any) -> int:
            setattr(state, claim, None)
            return honest(self, state, now, key, *args)

        patch.setattr(MemoryCommands, "_fill", broken)

    return plant


def tickets_are_for_keys_only(patch: pytest.MonkeyPatch) -> None:
    honest = Tickets.holds

    def broken(self: Tickets, ticket: int, key: str, others: Iterable[str] = ()) -> bool:
        return honest(self, ticket, key)

    patch.setattr(Tickets, "holds", broken)


def messages_void_no_tickets(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Tickets, "revoke", lambda *_: None)


def a_gap_is_slept_through(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Bus, "joined", lambda *_: None)
    patch.setattr(Bus, "lost", lambda *_: None)


def what_was_asked_before_a_gap_is_kept_after_it(patch: pytest.MonkeyPatch) -> None:
    def forget(self: Local) -> None:
        for key, _ in self.pairs():
            self._drop(key)

    patch.setattr(Local, "pause", forget)
    patch.setattr(Local, "drop_shared", forget)


def all_that_is_heard_counts_as_ones_own(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Bus, "hear", lambda *_: None)


def reader_and_tag(*, late: bool, places: str = "AB", two_tiers: bool = False) -> Build:
    def build() -> World:
        tags: dict[str, Any] = {"late_tags" if late else "tags": (TAG,)}
        world = World(TWO_TIERS if two_tiers else REDIS_ONLY, bus=two_tiers, **tags)
        processes = {name: world.process(name, threads=True) for name in sorted(set(places))}
        for number, name in enumerate(places[:-1], 1):
            world.reader(f"reader {number}", processes[name])
        world.tag_writer("writer", processes[places[-1]])
        return world

    return build


def readers_and_fences(writers: str) -> Build:
    """One reader may fill what the other must not get."""

    def build() -> World:
        world = World(REDIS_ONLY)
        world.reader("reader 1", world.process("X", threads=True))
        world.reader("reader 2", world.process("Y", threads=True))
        for number, name in enumerate(writers, 1):
            world.guarded_writer(f"writer {number}", world.process(name, threads=True))
        return world

    return build


def reader_of_a_replica(*, versioned: bool) -> Build:
    def build() -> World:
        world = World(REDIS_ONLY, lagging=True, versioned=versioned)
        world.reader("reader", world.process("A", threads=True))
        options = {} if versioned else {"settle": "2s"}
        world.guarded_writer("writer", world.process("B", threads=True), mode="delete", **options)
        world.replication(steps=1)
        return world

    return build


def reader_and_bus(*, gap: bool = False) -> Build:
    def build() -> World:
        world = World(TWO_TIERS, bus=True)
        here = world.process("A", threads=True)
        world.reader("reader", here)
        world.writer("writer", world.process("B", threads=True))
        if gap:
            world.gap(here)
        return world

    return build


STALE = "had been acknowledged"


@pytest.fixture(autouse=True)
def _no_witness(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is looked for here is what readers notice."""
    monkeypatch.setattr(Witness, "saw", lambda *_: None)


@pytest.mark.parametrize(
    ("plant", "build"),
    [
        pytest.param(markers_are_not_looked_at, reader_and_tag(late=False, places="AAB"), marks=pytest.mark.slow),
        (nonces_are_read_after_the_load, reader_and_tag(late=False)),
        (late_tags_are_claimed_unseen, reader_and_tag(late=True)),
        (a_live_intent_does_not_matter, readers_and_fences("B")),
        (the_end_of_one_write_ends_them_all, readers_and_fences("BC")),
        (fences_are_not_raised, readers_and_fences("B")),
        (fills_forget("floor"), reader_of_a_replica(versioned=True)),
        (quarantines_do_not_matter, reader_of_a_replica(versioned=False)),
        (tickets_are_for_keys_only, reader_and_tag(late=False, two_tiers=True)),
        (messages_void_no_tickets, reader_and_bus()),
        pytest.param(a_gap_is_slept_through, reader_and_bus(gap=True), marks=pytest.mark.slow),
        pytest.param(what_was_asked_before_a_gap_is_kept_after_it, reader_and_bus(gap=True), marks=pytest.mark.slow),
        (all_that_is_heard_counts_as_ones_own, reader_and_bus()),
    ],
)
@pytest.mark.slow
def test_a_planted_bug_is_found(plant: Plant, build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch)
    assert violation(lambda pick: build(), STALE) is not None  # within 50 s


def follow_an_overtaken_load() -> None:
    """A follower joins between the invalidation of a tag and the fill.

    reader 1:  leases, loads "old" .................................... fill accepted: its key was not touched
    writer:                        invalidates the tag, returns
    reader 2:                                                  joins
    """
    world = reader_and_tag(late=False, places="AAB")()
    world.run(following(*["reader 1"] * 6, *["writer"] * 3, "reader 2"))


def test_a_fill_that_is_proven_by_its_lease_alone_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    follow_an_overtaken_load()
    a_fill_is_proven_by_its_lease_alone(monkeypatch)
    with pytest.raises(Violation, match=STALE):
        follow_an_overtaken_load()
