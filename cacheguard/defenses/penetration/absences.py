"""A bound on the absences that this process has stored."""

from __future__ import annotations

import math

from ...checks import count

_SLOTS = 16
_SHORTEST, _LONGEST = -10, 40  # powers of two, in seconds: a millisecond to thousands of years


class AbsenceBudget:
    """How many absences this process may have stored at one time.

    Random ids by the million must not fill Redis with null entries; beyond *limit* an absence is answered, but not
    stored. Memory and time are constant: absences of similar lifetime share slots, and a slot is given back as a
    whole when its last absence has expired, at most an eighth of a lifetime late, never early.
    It has no lock: callers must serialize access.
    """

    __slots__ = ("_outstanding", "_rings", "limit")

    def __init__(self, limit: int) -> None:
        self.limit: int = count("the limit of stored absences", limit, 0)
        self._outstanding = 0
        self._rings: dict[int, _Ring] = {}

    def take(self, now: float, ttl: float) -> bool:
        """True if another absence may be stored until *now* + *ttl* (monotonic seconds); it is then counted."""
        for ring in self._rings.values():
            self._outstanding -= ring.expire(now)
        if self._outstanding >= self.limit:
            return False
        size = _LONGEST if ttl >= 2.0**_LONGEST else math.ceil(math.log2(max(ttl, 2.0**_SHORTEST)))
        ring = self._rings.setdefault(size, _Ring(2.0**size / _SLOTS, now))
        ring.count(now + min(ttl, 2.0**size))
        self._outstanding += 1
        return True


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
