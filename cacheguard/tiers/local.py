"""L1: the in-process tier. A hit is one dictionary lookup; everything that writes takes the lock."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Literal, Protocol, TypeAlias, get_args

from ..checks import count, one_of
from ..defenses.consistency import Tickets
from ..events import Events
from ..protocol.names import beneath
from .copies import Master
from .heat import Heat, HotKey
from .held import DEAD, SEEN, Entry, Keyed, Several, Shelf, Shelving, leads
from .lines import AnyOf, Frequent, Line
from .weighing import weigh

Eviction: TypeAlias = Literal["lru", "lfu", "fifo", "random"]
Room: TypeAlias = Line | Frequent | AnyOf

# Bytes of an entry beside its value and its key, by RSS where bytes are bounded: objects, slots in the indexes.
OVERHEAD = 350
OVERHEAD_HERE = 1150  # if this process has it in the place of Redis, too
OVERHEAD_STORED = 800  # of them, what the store in the place of Redis takes
OVERHEAD_OF_TAG = 300
MOST_ARGUMENTS = 256  # bytes that lead straight to an entry, where bytes are bounded: they are part of the overhead
ABSENCE_SHARE = 8  # absences get an eighth of the room and never push out a value
MOST_BINDINGS = 4


class Watch(Protocol):
    """Looks on, in tests: who gets which object."""

    def kept(self, key: str, entry: Entry) -> None:
        """*entry* is about to answer callers of *key*."""
        ...

    def given(self, value: Any) -> None:
        """The caller whose frames these are gets *value*, from a load or from Redis. Hits read the entry itself."""
        ...

    def closing(self) -> None:
        """The guard is about to be closed, and drops its entries."""
        ...


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
        self.shelving: Shelving = Shelving(keyed=eviction == "lfu")
        self.trusted_until: float = math.inf
        self.watch: Watch | None = None
        self.heat: Heat = Heat(now)
        self._now = now
        self.touches: bool = eviction == "lfu"
        self._events = events
        self._size, self._max_bytes = size, max_bytes
        self._off = 0
        self._entries = self._room(size, max_bytes, eviction)
        self._absences = self._room(
            max(1, size // ABSENCE_SHARE), max_bytes and max(1, max_bytes // ABSENCE_SHARE), "fifo"
        )
        # A key is in one of these.
        self._values, self._nothings = self._entries.held, self._absences.held
        self._tagged: dict[str, set[str]] = {}  # by marker, the keys of its entries

    def _room(self, size: int, max_bytes: int | None, eviction: Eviction) -> Room:
        bound = size if max_bytes is None else max_bytes
        if eviction == "lfu":
            return Frequent(bound, sized=max_bytes is not None)
        if eviction == "random":
            return AnyOf(bound, sized=max_bytes is not None)
        return Line(bound, sized=max_bytes is not None, spare=self._was_used if eviction == "lru" else None)

    def _was_used(self, key: str, entry: Entry) -> bool:
        """Whether *entry* was used since it last came up; from now on it was not."""
        if not entry.hits:
            return False
        self._bank(key, entry)
        entry.hits = 0.0
        return True

    def find(self, key: str) -> Entry | None:
        """The entry of *key*, usable or not; no lock, no reordering."""
        return self._values.get(key) or self._nothings.get(key)

    def alive(self, key: str) -> Entry | None:
        """The entry of *key* if it may answer; counts the hit."""
        entry = self._values.get(key) or self._nothings.get(key)
        if entry is None:
            return None
        now = self._now()
        if now >= entry.until and not self._renewed(key, entry, now):
            return None
        entry.hits = entry.hits + 1.0 if entry.hits else 1.0  # the constant: most entries need no number of their own
        self.touch(entry)
        return entry

    def peek(self, key: str) -> Entry | None:
        """The entry of *key* if it may answer; counts nothing."""
        entry = self.find(key)
        if entry is None:
            return None
        now = self._now()
        return entry if now < entry.until or self._renewed(key, entry, now) else None

    def _renewed(self, key: str, entry: Entry, now: float) -> bool:
        """Let *entry* answer for another while, if it is within its time and the tier is trusted.

        So that a hit compares one number, `until` ends where the trust ended when it was last looked at.
        """
        if now >= entry.common.kept_until or now >= self.trusted_until:
            return False
        with self.lock:
            if self.find(key) is not entry:
                return False
            entry.until = min(entry.common.kept_until, self.trusted_until)
            self._bank(key, entry)
        return now < entry.until

    def trust(self, until: float) -> None:
        """Nothing that this process has not heard of was invalidated before *until* is over."""
        self.trusted_until = until

    def pause(self) -> None:
        """Something may have gone unheard: no entry answers until the tier is trusted again."""
        with self.lock:
            self.trusted_until = DEAD
            self.tickets.revoke_all()
            for _, entry in self.pairs():
                if entry.common.shared:
                    entry.until = DEAD

    def put(self, key: str, entry: Entry, ticket: int, *, absence: bool, weight: int = 0) -> bool:
        """Keep *entry* unless something about it was heard of since the ticket was taken; false only then.

        *weight*: bytes of its value; 0: nobody has weighed it.
        """
        room, common, size = self._absences if absence else self._entries, entry.common, 0
        if self._max_bytes is not None:
            size = OVERHEAD if self._beside_redis and common.shared else OVERHEAD_HERE
            size += len(key) + sum(OVERHEAD_OF_TAG + 2 * len(mark) for mark in common.marks)
            size += weight or _weight(entry.value, room.maxsize)
        if isinstance(entry, Keyed):
            entry.key = key
        if self.watch is not None:
            self.watch.kept(key, entry)
        with self.lock:
            if self._off or not self.tickets.holds(ticket, key, common.marks):
                return False
            self._drop(key)
            if self._max_bytes is not None and size > room.maxsize:
                return True  # too large to keep, but true
            if common.shared:  # while the tier is not trusted, it answers nobody; without Redis, it may be all there is
                entry.until = min(common.kept_until, self.trusted_until)
            most = self._size if room is self._entries else max(1, self._size // ABSENCE_SHARE)
            while len(room.held) >= most or (size and room.currsize + size > room.maxsize):
                self._forget(*room.popitem())
                self._events.evictions += 1
            room.add(key, entry, size)
            for mark in common.marks:
                self._tagged.setdefault(mark, set()).add(key)
        return True

    def bind(self, key: str, entry: Entry, shelf: Shelf, arguments: Any, kind: type | None) -> None:
        """Let *arguments* of one function lead straight to *entry*, unless they are too large for a bound in bytes."""
        if self._max_bytes is not None and weigh(arguments, MOST_ARGUMENTS) > MOST_ARGUMENTS:
            return
        with self.lock:
            if (self._values.get(key) or self._nothings.get(key)) is not entry:
                return
            common = entry.common
            if common.shelf is None:
                bound = common.bound
                entry.arguments = arguments
                entry.common = bound if bound is not None and bound.shelf is shelf.ref else common.on(shelf)
            elif (
                len(leading := leads(entry)) >= MOST_BINDINGS
                or entry.type is not kind
                or shelf.index.get(arguments) is entry
            ):
                return
            else:
                entry.arguments = Several((*leading, (shelf.ref, arguments)))
            entry.type = kind
            shelf.index[arguments] = entry

    def touch(self, entry: Entry) -> None:
        """Count a use where the eviction policy wants to know of each (LFU)."""
        if isinstance(entry, Keyed):
            with self.lock:
                self._entries.get(entry.key)  # the lookup is what it counts

    def drop(self, name: str) -> None:
        """Forget what *name* (a key, the marker of a tag or a namespace) stands for; refuse what was asked before."""
        with self.lock:
            prefixes = beneath(name)
            if prefixes is not None:
                self.tickets.revoke_all()
                for key in [key for key, _ in self.pairs() if key.startswith(prefixes)]:
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
            for key, _ in self.pairs():
                self._drop(key)

    def drop_shared(self, concerns: Callable[[str], bool] | None = None) -> None:
        """Forget what other processes may have changed, and refuse what was asked for before this moment.

        Args:
            concerns: whether it is about an entry of this key; None: it is about all.
        """
        with self.lock:
            self.tickets.revoke_all()
            for key in [key for key, entry in self.pairs() if entry.common.shared]:
                if concerns is None or concerns(key):
                    self._drop(key)

    def switch(self, *, off: bool) -> None:
        """Empty the tier and keep it empty; calls nest."""
        with self.lock:
            self._off += 1 if off else -1
        self.drop_all()

    def _drop(self, key: str) -> None:
        try:
            if key in self._values:
                self._forget(key, self._entries.take(key))
            elif key in self._nothings:
                self._forget(key, self._absences.take(key))
        except KeyError:  # a signal handler has come in between, which no lock can keep out
            return

    def _forget(self, key: str, entry: Entry) -> None:
        """End *entry*, which is in no room any more."""
        entry.until = DEAD
        self._bank(key, entry)
        leading, marks = leads(entry), entry.common.marks
        entry.common, entry.arguments = entry.common.gone(), None
        for reference, arguments in leading:
            shelf: Shelf | None = reference()
            if shelf is not None and shelf.index.get(arguments) is entry:
                shelf.index.pop(arguments, None)
        for mark in marks:
            keys = self._tagged.get(mark)
            if keys is not None:
                keys.discard(key)
                if not keys:
                    self._tagged.pop(mark, None)

    def _bank(self, key: str, entry: Entry) -> None:
        """Hand in the hits of *entry*; all of them at the age that it has now, which is never too young."""
        hits = entry.hits
        if hits < 1.0:
            return
        entry.hits = SEEN  # no call since it was read, so no other thread has come in between
        number = int(hits)
        shelf: Shelf | None = None if entry.common.shelf is None else entry.common.shelf()
        self.heat.read(key, number, "" if shelf is None else shelf.template)
        self._events.l1_hits += number
        self._events.served(self._now() - entry.common.born, number)
        if entry.common.kind:
            self._events.null_hits += number

    def sample(self, key: str, template: str) -> None:
        """Note the read of *key*, which this tier did not answer, if `Heat.gap` says that it is one to look at."""
        with self.lock:
            self.heat.sample(key, template)

    def read_elsewhere(self, keys: Sequence[str], template: str) -> None:
        """Note reads of *keys* that this tier did not answer."""
        if self.heat.gap > len(keys):
            self.heat.gap -= len(keys)
            return
        with self.lock:
            self.heat.read_all(keys, template)

    def share(self, key: str) -> float:
        """The share of *key* in all reads of this process, with the hits that its entry has had until now."""
        with self.lock:
            entry = self.find(key)
            if entry is not None:
                self._bank(key, entry)
            return self.heat.share(key)

    def hot(self, count: int, wanted: Callable[[str], bool]) -> list[HotKey]:
        """The hottest keys of those that are *wanted*; the hits of all entries are handed in before."""
        with self.lock:
            self.census()
            return self.heat.top(count, wanted)

    def pairs(self) -> list[tuple[str, Entry]]:
        """All keys and entries, usable or not."""
        with self.lock:
            return [*self._values.items(), *self._nothings.items()]

    def census(self) -> tuple[int, int]:
        """Entries and their bytes; their hits are handed in before."""
        with self.lock:
            items = self.pairs()
            for key, entry in items:
                self._bank(key, entry)
            bounded = self._max_bytes is not None
            return len(items), int(self._entries.currsize + self._absences.currsize) if bounded else 0


def _weight(value: Any, most: float) -> int:
    return value.weight(most) if isinstance(value, Master) else weigh(value, most)


def check(size: object, max_bytes: object, eviction: object) -> None:
    """`ConfigurationError` for options that no tier can have."""
    count("l1_size", size, allowed="a number of entries >= 1", instead="; use Policy(l1=False) to go without")
    if max_bytes is not None:
        count("l1_max_bytes", max_bytes, allowed="a number of bytes >= 1 or None")
    one_of("l1_eviction", eviction, get_args(Eviction))
