"""The in-process tier against the plainest model of it: a list, the oldest first."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, field

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from cacheguard.events import Events
from cacheguard.tiers.held import Entry
from cacheguard.tiers.local import ABSENCE_SHARE, Eviction, Local
from tests.support.entries import entry as entry_of

KEYS = st.sampled_from("abcdefghij")
EVICTIONS: list[Eviction] = ["lru", "fifo", "lfu", "random"]


@dataclass
class Room:
    """Entries in the order in which they came, the next to go first."""

    size: int
    entries: list[tuple[str, Entry]] = field(default_factory=list)

    def drop(self, key: str) -> None:
        self.entries = [each for each in self.entries if each[0] != key]

    def make_room(self, eviction: Eviction) -> None:
        while len(self.entries) >= self.size:
            key, first = self.entries.pop(0)
            if eviction == "lru" and first.hits:
                first.hits = 0
                self.entries.append((key, first))


class LocalMachine(RuleBasedStateMachine):
    """Only LRU (with its second chance) and FIFO say beforehand who goes; of all four, what is there must be true."""

    @initialize(size=st.integers(1, 9), eviction=st.sampled_from(EVICTIONS))
    def begin(self, size: int, eviction: Eviction) -> None:
        self.events = Events()
        self.local = Local(size, None, eviction, nullcontext(), self.events, lambda: 1.0)
        self.eviction = eviction
        self.values, self.absences = Room(size), Room(max(1, size // ABSENCE_SHARE))
        self.tickets: dict[str, int] = {}
        self.latest: dict[str, int] = {}
        self.dropped: set[str] = set()
        self.used = 0
        self.count = 0

    def room(self, *, absence: bool) -> Room:
        return self.absences if absence else self.values

    @rule(key=KEYS)
    def take_ticket(self, key: str) -> None:
        self.tickets[key] = self.local.tickets.take()
        self.dropped.discard(key)

    @rule(key=KEYS, absence=st.booleans())
    def put(self, key: str, absence: bool) -> None:
        ticket = self.tickets.get(key, self.local.tickets.take())
        self.count += 1
        entry = entry_of(self.count, kind=int(absence), keyed=self.local.touches)
        kept = self.local.put(key, entry, ticket, absence=absence)
        assert kept == (key not in self.dropped)
        if not kept:
            return
        self.latest[key] = self.count
        self.values.drop(key)
        self.absences.drop(key)
        room = self.room(absence=absence)
        if absence or self.eviction in {"lru", "fifo"}:
            room.make_room("fifo" if absence else self.eviction)
        room.entries.append((key, entry_of(self.count)))

    @rule(key=KEYS)
    def use(self, key: str) -> None:
        entry = self.local.find(key)
        if entry is None:
            return
        entry.hits += 1
        self.local.touch(entry)
        self.used += 1
        for name, mine in self.values.entries + self.absences.entries:
            if name == key:
                mine.hits += 1

    @rule(key=KEYS)
    def drop(self, key: str) -> None:
        self.local.drop(key)
        self.values.drop(key)
        self.absences.drop(key)
        self.latest.pop(key, None)
        self.dropped |= {key} & self.tickets.keys()

    @rule()
    def drop_all(self) -> None:
        self.local.drop_all()
        self.values.entries, self.absences.entries = [], []
        self.latest.clear()
        self.dropped = set(self.tickets)

    @invariant()
    def what_is_there_is_what_came_last(self) -> None:
        if not hasattr(self, "local"):
            return
        there = {key: entry.value for key in "abcdefghij" if (entry := self.local.find(key)) is not None}
        assert there.items() <= self.latest.items()
        expected = {key: entry.value for key, entry in self.absences.entries}
        if self.eviction in {"lru", "fifo"}:
            expected |= {key: entry.value for key, entry in self.values.entries}
            assert there == expected
        else:
            assert expected.items() <= there.items()
            assert len(there) <= self.values.size + self.absences.size

    @invariant()
    def every_use_is_counted_once(self) -> None:
        if hasattr(self, "local"):
            entries, _ = self.local.census()
            assert self.events.l1_hits == self.used
            assert entries <= self.values.size + self.absences.size


TestLocal = LocalMachine.TestCase
