"""Which keys are read most: a small top-k over a decaying window (space-saving; Metwally, Agrawal, El Abbadi, 2005)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from heapq import heapify, heappop, heappush, heapreplace
from random import Random
from typing import NamedTuple

MOST = 256  # keys that are counted: a count is too high by a 256th of all reads at most
EVERY = 16  # of the reads that L1 does not answer, and of entries with few hits, one of about so many is looked at
HALF_LIFE = 60.0  # seconds after which a read counts half
DECAYS_EVERY = 5.0  # seconds
ENOUGH = 256  # reads in the window, below which no key is hot
FORGOTTEN = 1e-9  # reads in the window, below which there were none


class HotKey(NamedTuple):
    """A key that is read often, as `CacheGuard.hot` returns it.

    Args:
        key: key text; for a key that is stored under a digest, the Redis key.
        template: of the decorated function whose key it is; ``""`` for other keys.
        share: of all reads of this process in the last minutes, from 0 to 1.
    """

    key: str
    template: str
    share: float


class _Counter:
    __slots__ = ("count", "error", "template")

    def __init__(self, count: float, error: float, template: str) -> None:
        self.count, self.error, self.template = count, error, template


class Heat:
    """Counts reads by key, of which only the hottest are known. Every method needs the lock of the tier.

    Space-saving: a key without a counter takes over the smallest one, with its count as the error. So a count is never
    too low, and too high by its error at most, which is at most all reads divided by *most*; a key with a larger share
    than that has a counter.

    Args:
        now: monotonic seconds.
        draw: from [0, 1): which reads are looked at.
        most: how many keys have a counter.
        every: one read of about so many is looked at, and counts for all of them.
    """

    def __init__(
        self,
        now: Callable[[], float],
        draw: Callable[[], float] | None = None,
        *,
        most: int = MOST,
        every: int = EVERY,
    ) -> None:
        self._now, self._draw = now, Random().random if draw is None else draw
        self._most, self._every = most, every
        self._counters: dict[str, _Counter] = {}
        self._least: list[tuple[float, str]] = []  # a heap of counts, some of them too low by now
        self._decayed_at = now()
        self.total: float = 0.0
        self._stride = 1
        self.gap: int = 0  # reads until one is looked at
        self._next()

    def _next(self) -> None:
        self._stride = 1 + int(self._draw() * (2 * self._every - 1))
        self.gap += self._stride

    def read(self, key: str, count: int = 1, template: str = "") -> None:
        """*key* was read *count* times. Few reads are sampled, many are counted."""
        if count >= self._every:
            self.add(key, count, template)
            return
        self.gap -= count
        self.sample(key, template)

    def read_all(self, keys: Sequence[str], template: str = "") -> None:
        """Each of *keys* was read once. Few of them are looked at."""
        if len(keys) >= 2 * self._every:  # longer than any gap
            for key in keys[int(self._draw() * self._every) :: self._every]:
                self.add(key, self._every, template)
            return
        at = max(0, self.gap - 1)  # below that, where others have taken their reads off without the lock
        while at < len(keys):
            weight = self._stride
            self.gap = 0
            self._next()
            self.add(keys[at], weight, template)
            at += self._stride
        self.gap = at - len(keys) + 1

    def sample(self, key: str, template: str = "") -> None:
        """If the reads that were taken off `gap` are enough, count *key*, the last one read, for all of them."""
        while self.gap <= 0:
            weight = self._stride
            self._next()
            self.add(key, weight, template)

    def add(self, key: str, count: float, template: str = "") -> None:
        """Count *key*."""
        self._decay()
        self.total += count
        counters = self._counters
        known = counters.get(key)
        if known is not None:
            known.count += count
            known.template = template or known.template
            return
        error = 0.0
        if len(counters) >= self._most:
            error = counters.pop(self._smallest()).count
        counters[key] = _Counter(error + count, error, template)
        heappush(self._least, (error + count, key))

    def _smallest(self) -> str:
        """The key with the smallest count; its place in the heap is gone."""
        least, counters = self._least, self._counters
        while True:
            count, key = least[0]
            known = counters.get(key)
            if known is None:
                heappop(least)
            elif known.count > count:
                heapreplace(least, (known.count, key))
            else:
                heappop(least)
                return key

    def _rebuild(self) -> None:
        self._least = [(each.count, key) for key, each in self._counters.items()]
        heapify(self._least)

    def _decay(self) -> None:
        since = self._now() - self._decayed_at
        if since < DECAYS_EVERY:
            return
        self._decayed_at += since
        factor = 0.5 ** (since / HALF_LIFE)
        self.total *= factor
        if self.total < FORGOTTEN:  # before it is zero, of which nothing can have a share
            self.total = 0.0
            self._counters.clear()
        for each in self._counters.values():
            each.count *= factor
            each.error *= factor
        self._rebuild()

    def share(self, key: str) -> float:
        """The share of *key* in all reads, not above what is certain; 0 while there are few reads to judge by."""
        self._decay()
        known = self._counters.get(key)
        return 0.0 if known is None or self.total < ENOUGH else (known.count - known.error) / self.total

    def top(self, count: int, wanted: Callable[[str], bool] = bool) -> list[HotKey]:
        """The hottest of the keys that are *wanted*, with their Redis keys, the hottest first."""
        self._decay()
        order = sorted(self._counters.items(), key=_by_count, reverse=True)
        kept = [HotKey(key, each.template, each.count / self.total) for key, each in order if wanted(key)]
        return kept[:count]


def _by_count(item: tuple[str, _Counter]) -> float:
    return item[1].count
