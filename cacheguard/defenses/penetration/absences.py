"""A bound on the absences that this process has stored, and on the markers that were made for them."""

from __future__ import annotations

import math
from collections.abc import Iterable

from ...checks import count

_SLOTS = 16
_SHORTEST, _LONGEST = -10, 40  # powers of two, in seconds: a millisecond to thousands of years


class AbsenceBudget:
    """How many keys this process may have stored at one time for ids that do not exist.

    Random ids by the million must not fill Redis with null entries; beyond *limit* an absence is answered, but not
    stored. A tag of such an id has a marker, made before anybody knows that the id does not exist: it counts, too,
    whatever becomes of the load. Beyond *limit* no new markers are made before a load.

    Time is constant, and memory grows with *limit* only: what has a similar lifetime shares slots, and a slot is given
    back as a whole when the last of it has expired, at most an eighth of a lifetime late, never early.
    It has no lock: callers must serialize access.
    """

    __slots__ = ("_markers", "_outstanding", "_rings", "limit")

    def __init__(self, limit: int) -> None:
        self.limit: int = count("the limit of stored absences", limit, 0)
        self._outstanding = 0
        self._rings: dict[int, _Ring] = {}
        self._markers: dict[int, float] = {}  # by the hash of a counted marker, when it ends

    def take(self, now: float, ttl: float) -> bool:
        """True if another absence may be stored until *now* + *ttl* (monotonic seconds); it is then counted."""
        return self.has_room(now) and self.add(now, ttl)

    def has_room(self, now: float) -> bool:
        """True if one more may be stored now."""
        self._expire(now)
        return self._outstanding < self.limit

    def knows(self, marker: str) -> bool:
        """True if *marker* has been counted lately."""
        return hash(marker) in self._markers

    def add_markers(self, now: float, markers: Iterable[str], keep: float) -> None:
        """Count *markers*, which were asked to be kept for *keep* seconds, each once as long as it is there.

        A marker that is not kept for so long any more is kept for twice as long from then on.
        """
        for marker in markers:
            known = hash(marker)
            if self._markers.get(known, -math.inf) - now >= keep:
                continue
            self._markers.pop(known, None)
            self._markers[known] = now + 2 * keep
            self.add(now, 2 * keep)
        while len(self._markers) > self.limit:
            self._markers.pop(next(iter(self._markers)))

    def add(self, now: float, ttl: float) -> bool:
        """Count what is stored until *now* + *ttl*, even beyond the limit; always True."""
        self._expire(now)
        size = _LONGEST if ttl >= 2.0**_LONGEST else math.ceil(math.log2(max(ttl, 2.0**_SHORTEST)))
        ring = self._rings.setdefault(size, _Ring(2.0**size / _SLOTS, now))
        ring.count(now + min(ttl, 2.0**size))
        self._outstanding += 1
        return True

    def _expire(self, now: float) -> None:
        for ring in self._rings.values():
            self._outstanding -= ring.expire(now)


class _Ring:
    """Counts by the slot of time in which they end."""

    __slots__ = ("_at", "_slots", "_width")

    def __init__(self, width: float, now: float) -> None:
        self._width = width
        self._at = math.floor(now / width)
        self._slots = [0] * (_SLOTS + 3)

    def expire(self, now: float) -> int:
        """Empty the slots that lie behind *now*; return how many were in them."""
        slots = self._slots
        present = math.floor(now / self._width)
        passed = range(self._at + 1, min(present, self._at + len(slots)) + 1)
        freed = 0
        for slot in passed:
            freed += slots[slot % len(slots)]
            slots[slot % len(slots)] = 0
        self._at = max(self._at, present)
        return freed

    def count(self, end: float) -> None:
        slot = max(math.ceil(end / self._width), self._at + 1)
        self._slots[slot % len(self._slots)] += 1
