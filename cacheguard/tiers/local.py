"""L1: the in-process tier. A hit is one dictionary lookup; everything that writes takes the lock."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from typing import Any, Literal, Protocol, TypeAlias, get_args

from cachetools import Cache, FIFOCache, LFUCache, LRUCache, RRCache

from ..checks import count, one_of
from ..defenses.consistency import Tickets
from ..events import Events
from ..protocol.names import beneath
from .copies import Master
from .weighing import weigh

Eviction: TypeAlias = Literal["lru", "lfu", "fifo", "random"]
Index: TypeAlias = dict[Any, "Entry"]

DEAD = float("-inf")
# Bytes of an entry beside its value and its key: objects, slots in the indexes.
OVERHEAD = 600
OVERHEAD_HERE = 1000  # if this process has it in the place of Redis, too
OVERHEAD_OF_TAG = 300
MOST_ARGUMENTS = 256  # bytes that lead straight to an entry, where bytes are bounded: they are part of the overhead
ABSENCE_SHARE = 8  # absences get an eighth of the room and never push out a value
MOST_BINDINGS = 4
MOST_SECOND_CHANCES = 32


class Entry:
    """One value in this process.

    The entry is shared by every index that leads to it. To kill it is to set `until`: whoever still holds it sees that
    it is over, and a reader that took the value a moment earlier read it before the invalidation returned.
    """

    __slots__ = (
        "bindings",
        "born",
        "counted",
        "dead_from",
        "fresh_until",
        "hits",
        "kept_until",
        "key",
        "kind",
        "marks",
        "shared",
        "size",
        "tags",
        "type",
        "until",
        "value",
        "weight",
    )

    def __init__(
        self,
        key: str,
        value: Any,
        *,
        kind: int,
        until: float,
        fresh_until: float,
        born: float,
        dead_from: float = math.inf,
        tags: tuple[str, ...] = (),
        marks: tuple[str, ...] = (),
        shared: bool = True,
        weight: int = 0,
    ) -> None:
        self.key: str = key
        self.value: Any = value
        self.kind: int = kind
        self.until: float = until  # monotonic: a hit before this needs no question
        self.kept_until: float = until  # what `until` may be renewed to, as long as the bus is proven
        self.fresh_until: float = fresh_until  # monotonic: the end of its TTL, may lie beyond `until`
        self.dead_from: float = dead_from  # monotonic: from here on it is not even served as stale
        self.born: float = born
        self.tags: tuple[str, ...] = tags
        self.marks: tuple[str, ...] = marks  # the markers of its tags
        self.shared: bool = shared  # in Redis, too: other processes may change it
        self.weight: int = weight  # bytes of the value; 0: nobody has weighed it
        self.size: int = 0  # bytes of all that it takes
        self.hits: float = 0.0
        self.counted: float = 0.0  # of the hits, those that have been handed in
        self.type: type | None = None  # of the single argument that leads here: 1, 1.0 and True are one dict key
        self.bindings: tuple[tuple[Index, Any], ...] = ()


class Watch(Protocol):
    """Looks on, in tests: who gets which object."""

    def kept(self, entry: Entry) -> None:
        """*entry* is about to answer callers."""
        ...

    def given(self, value: Any) -> None:
        """The caller whose frames these are gets *value*, from a load or from Redis. Hits read the entry itself."""
        ...

    def closing(self) -> None:
        """The guard is about to be closed, and drops its entries."""
        ...


class _SecondChance(LRUCache[str, Entry]):
    """Least recently stored goes first, unless it was used since it last came up.

    One counter on the entry is the recency, the statistic and the heat, so a hit moves nothing (Corbató's clock).
    """

    def __init__(self, maxsize: int, getsizeof: Callable[[Entry], int] | None, bank: Callable[[Entry], None]) -> None:
        super().__init__(maxsize, getsizeof)
        self._bank = bank

    def popitem(self) -> tuple[str, Entry]:
        for _ in range(MOST_SECOND_CHANCES):
            key, entry = super().popitem()
            if not entry.hits:
                return key, entry
            self._bank(entry)
            entry.hits = entry.counted = 0.0
            super().__setitem__(key, entry)
        return super().popitem()


class Local:
    """The in-process tier of one guard, shared by threads, event loops and namespaces.

    Args:
        size: most entries; absences have room for an eighth of it beside that.
        max_bytes: most bytes, as `weigh` finds them when an entry is put; None for no bound.
        eviction: which entry goes when the room is full.
        lock: guards every change; a hit takes none.
        now: monotonic seconds.
        beside_redis: False if this process has all entries in the place of Redis, too.

    It answers only while it is trusted: see `trust` and `pause`. Without a bus, there is nobody to hear from, and it
    is trusted for ever.
    """

    def __init__(
        self,
        size: int,
        max_bytes: int | None,
        eviction: Eviction,
        lock: AbstractContextManager[Any],
        events: Events,
        now: Callable[[], float],
        *,
        beside_redis: bool = True,
    ) -> None:
        self.lock = lock
        self._beside_redis = beside_redis
        self.tickets: Tickets = Tickets()
        self.trusted_until: float = math.inf
        self.watch: Watch | None = None
        self._now = now
        self.touches: bool = eviction == "lfu"
        self._events = events
        self._size, self._max_bytes = size, max_bytes
        self._off = 0
        self._entries = self._room(size, max_bytes, eviction)
        self._absences = self._room(
            max(1, size // ABSENCE_SHARE), max_bytes and max(1, max_bytes // ABSENCE_SHARE), "fifo"
        )
        self._index: Index = {}
        self._tagged: dict[str, set[str]] = {}  # by marker, the keys of its entries

    def _room(self, size: int, max_bytes: int | None, eviction: Eviction) -> Cache[str, Entry]:
        bound = size if max_bytes is None else max_bytes
        weigh = None if max_bytes is None else _size
        if eviction == "lru":
            return _SecondChance(bound, weigh, self._bank)
        kinds: dict[str, type[Cache[str, Entry]]] = {"lfu": LFUCache, "fifo": FIFOCache, "random": RRCache}
        return kinds[eviction](bound, getsizeof=weigh)

    def find(self, key: str) -> Entry | None:
        """The entry of *key*, usable or not; no lock, no reordering."""
        return self._index.get(key)

    def alive(self, key: str) -> Entry | None:
        """The entry of *key* if it may answer; counts the hit."""
        entry = self._index.get(key)
        if entry is None:
            return None
        now = self._now()
        if now >= entry.until and not self._renewed(entry, now):
            return None
        entry.hits += 1
        self.touch(entry)
        return entry

    def peek(self, key: str) -> Entry | None:
        """The entry of *key* if it may answer; counts nothing."""
        entry = self._index.get(key)
        if entry is None:
            return None
        now = self._now()
        return entry if now < entry.until or self._renewed(entry, now) else None

    def _renewed(self, entry: Entry, now: float) -> bool:
        """Let *entry* answer for another while, if it is within its time and the tier is trusted.

        So that a hit compares one number, `until` ends where the trust ended when it was last looked at.
        """
        if now >= entry.kept_until or now >= self.trusted_until:
            return False
        with self.lock:
            if self._index.get(entry.key) is not entry:
                return False
            entry.until = min(entry.kept_until, self.trusted_until)
            self._bank(entry)
        return now < entry.until

    def trust(self, until: float) -> None:
        """Nothing that this process has not heard of was invalidated before *until* is over."""
        self.trusted_until = until

    def pause(self) -> None:
        """Something may have gone unheard: no entry answers until the tier is trusted again."""
        with self.lock:
            self.trusted_until = DEAD
            self.tickets.revoke_all()
            for entry in list(self._index.values()):
                if entry.shared:
                    entry.until = DEAD

    def put(self, entry: Entry, ticket: int, *, absence: bool) -> bool:
        """Keep *entry* unless something about it was heard of since the ticket was taken; false only then."""
        room = self._absences if absence else self._entries
        if self._max_bytes is not None:
            beside = OVERHEAD if self._beside_redis and entry.shared else OVERHEAD_HERE
            beside += len(entry.key) + sum(OVERHEAD_OF_TAG + 2 * len(mark) for mark in entry.marks)
            entry.size = beside + (entry.weight or _weight(entry.value, room.maxsize))
        if self.watch is not None:
            self.watch.kept(entry)
        key = entry.key
        with self.lock:
            if self._off or not self.tickets.holds(ticket, key, entry.marks):
                return False
            self._drop(key)
            if self._max_bytes is not None and entry.size > room.maxsize:
                return True  # too large to keep, but true
            if entry.shared:  # while the tier is not trusted, it answers nobody; without Redis, it may be all there is
                entry.until = min(entry.kept_until, self.trusted_until)
            size = self._size if room is self._entries else max(1, self._size // ABSENCE_SHARE)
            while len(room) >= size or room.currsize + max(1, entry.size) > room.maxsize:
                self._forget(room.popitem()[1])
                self._events.evictions += 1
            room[key] = entry
            self._index[key] = entry
            for mark in entry.marks:
                self._tagged.setdefault(mark, set()).add(key)
        return True

    def bind(self, entry: Entry, index: Index, arguments: Any, kind: type | None) -> None:
        """Let *arguments* of one function lead straight to *entry*, unless they are too large for a bound in bytes."""
        if self._max_bytes is not None and weigh(arguments, MOST_ARGUMENTS) > MOST_ARGUMENTS:
            return
        with self.lock:
            if self._index.get(entry.key) is not entry or len(entry.bindings) >= MOST_BINDINGS:
                return
            if entry.bindings and (entry.type is not kind or index.get(arguments) is entry):
                return
            entry.type = kind
            entry.bindings = (*entry.bindings, (index, arguments))
            index[arguments] = entry

    def touch(self, entry: Entry) -> None:
        """Count a use where the eviction policy wants to know of each (LFU)."""
        if self.touches:
            with self.lock:
                self._entries.get(entry.key)  # the lookup is what it counts

    def drop(self, name: str) -> None:
        """Forget what *name* (a key, the marker of a tag or a namespace) stands for; refuse what was asked before."""
        with self.lock:
            prefixes = beneath(name)
            if prefixes is not None:
                self.tickets.revoke_all()
                for key in [key for key in list(self._index) if key.startswith(prefixes)]:
                    self._drop(key)
                return
            self.tickets.revoke(name)
            self._drop(name)
            for key in self._tagged.pop(name, ()):
                self._drop(key)

    def renewed_ticket(self, key: str, markers: Iterable[str], ticket: int) -> int:
        """Forget *key* and void its tickets; a new one for *ticket*, if that still holds for *key* and *markers*."""
        with self.lock:
            self._drop(key)
            if self.tickets.holds(ticket, key, markers):
                self.tickets.revoke(key)
                return self.tickets.take()
        return ticket

    def drop_all(self) -> None:
        """Forget everything, and refuse what was asked for before this moment."""
        with self.lock:
            self.tickets.revoke_all()
            for entry in list(self._index.values()):
                self._drop(entry.key)

    def drop_shared(self, concerns: Callable[[str], bool] | None = None) -> None:
        """Forget what other processes may have changed, and refuse what was asked for before this moment.

        Args:
            concerns: whether it is about an entry of this key; None: it is about all.
        """
        with self.lock:
            self.tickets.revoke_all()
            for entry in [entry for entry in list(self._index.values()) if entry.shared]:
                if concerns is None or concerns(entry.key):
                    self._drop(entry.key)

    def switch(self, *, off: bool) -> None:
        """Empty the tier and keep it empty; calls nest."""
        with self.lock:
            self._off += 1 if off else -1
        self.drop_all()

    def _drop(self, key: str) -> None:
        for room in (self._entries, self._absences):
            try:
                entry = room.pop(key, None)
            except KeyError:  # a signal handler has come in between, which no lock can keep out
                continue
            if entry is not None:
                self._forget(entry)

    def _forget(self, entry: Entry) -> None:
        entry.until = entry.kept_until = entry.fresh_until = entry.dead_from = DEAD
        if self._index.get(entry.key) is entry:
            self._index.pop(entry.key, None)
        for index, arguments in entry.bindings:
            if index.get(arguments) is entry:
                index.pop(arguments, None)
        entry.bindings = ()
        for mark in entry.marks:
            keys = self._tagged.get(mark)
            if keys is not None:
                keys.discard(entry.key)
                if not keys:
                    self._tagged.pop(mark, None)
        self._bank(entry)

    def _bank(self, entry: Entry) -> None:
        """Hand in the hits of *entry*; all of them at the age that it has now, which is never too young."""
        hits = int(entry.hits - entry.counted)
        if hits:
            entry.counted += hits
            self._events.l1_hits += hits
            self._events.served(self._now() - entry.born, hits)
            if entry.kind:
                self._events.null_hits += hits

    def entries(self) -> list[Entry]:
        """All entries, usable or not."""
        with self.lock:
            return list(self._index.values())

    def census(self) -> tuple[int, int]:
        """Entries and their bytes; their hits are handed in before."""
        with self.lock:
            entries = list(self._index.values())
            for entry in entries:
                self._bank(entry)
            return len(entries), sum(entry.size for entry in entries)


def _weight(value: Any, most: float) -> int:
    return value.weight(most) if isinstance(value, Master) else weigh(value, most)


def _size(entry: Entry) -> int:
    return entry.size


def check(size: object, max_bytes: object, eviction: object) -> None:
    """`ConfigurationError` for options that no tier can have."""
    count("l1_size", size, allowed="a number of entries >= 1", instead="; use Policy(l1=False) to go without")
    if max_bytes is not None:
        count("l1_max_bytes", max_bytes, allowed="a number of bytes >= 1 or None")
    one_of("l1_eviction", eviction, get_args(Eviction))
