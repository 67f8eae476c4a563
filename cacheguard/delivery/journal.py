"""The journal: invalidations that Redis has acknowledged and may still lose."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Generic, Protocol, Self, TypeAlias, TypeVar

JOURNALED_FOR = 60.0  # seconds, at least: longer than a failover takes
LONGEST_JOURNAL = 7200.0  # seconds, at most: twice the longest interval of Redis's default snapshots
MOST_JOURNALED = 100_000


class Repeatable(Protocol):
    """An invalidation, as far as the journal knows it."""

    @property
    def key(self) -> str: ...

    @property
    def version(self) -> str: ...

    @property
    def leaves_something(self) -> bool: ...

    def after(self, before: Self | None, /) -> Self:
        """It as it is to be repeated, with what *before*, an earlier one of the same key, asked for."""
        ...


Item = TypeVar("Item", bound=Repeatable)
Name: TypeAlias = tuple[str, bool]  # a key, and whether a version was given: such a one may leave the value in place


class Journal(Generic[Item]):
    """The acknowledged invalidations, one for each key, as far back as the data may go that a server comes back with.

    A server that crashes comes back with its last snapshot. So an invalidation is kept until a snapshot, or the log of
    the server, includes it; at least `JOURNALED_FOR` seconds, since a failover may lose what a replica had not heard
    of; at most `LONGEST_JOURNAL` seconds and `MOST_JOURNALED` keys. Whoever holds it guards it with a lock.

    Args:
        now: monotonic seconds.
    """

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._kept: OrderedDict[Name, tuple[float, Item]] = OrderedDict()
        self._saved_at = math.inf  # what was acknowledged before is on disk; inf: the server does not say
        self._dropped_at = -math.inf  # the youngest that was let go of
        self.fresh: dict[Name, tuple[float, Item]] | None = None  # not in the file yet; None: there is no file

    def __len__(self) -> int:
        return len(self._kept)

    def add(self, items: Iterable[Item]) -> None:
        """Keep *items*, which were acknowledged now."""
        now, kept, fresh = self._now(), self._kept, self.fresh
        for item in items:
            name = item.key, bool(item.version)
            before = kept.pop(name, None)
            entry = kept[name] = now, item.after(None if before is None else before[1])
            if fresh is not None:
                fresh[name] = entry
        self._prune(now)

    def restore(self, entries: Iterable[tuple[float, Item]], dropped_ago: float | None) -> None:
        """Take in what an earlier process has kept in the file, the oldest first, each with its age in seconds."""
        now = self._now()
        for ago, item in entries:
            self._kept[item.key, bool(item.version)] = now - min(max(0.0, ago), LONGEST_JOURNAL), item
        if dropped_ago is not None:
            self._dropped_at = now - max(0.0, dropped_ago)
        self.fresh = {}

    def unwritten(self) -> tuple[list[tuple[float, Item]], float, float | None]:
        """As ages: what is not in the file yet, the oldest that may stay there, the youngest that was let go of."""
        now, fresh = self._now(), self.fresh or {}
        self.fresh = {}
        dropped_ago = now - self._dropped_at if self._dropped_at > -math.inf else None
        return [(now - at, item) for at, item in fresh.values()], now - self.since(now), dropped_ago

    def _prune(self, now: float) -> None:
        kept, since = self._kept, self.since(now)
        # A signal handler may invalidate anywhere in between, and prunes as well.
        with suppress(KeyError, RuntimeError, StopIteration):
            while True:
                name, (at, _) = next(iter(kept.items()))
                if at >= since and len(kept) <= MOST_JOURNALED:
                    break
                if kept.pop(name)[0] == at:
                    self._dropped_at = max(self._dropped_at, at)

    def since(self, now: float) -> float:
        """Since when invalidations are kept, if they are not too many."""
        return min(now - JOURNALED_FOR, max(self._saved_at, now - LONGEST_JOURNAL))

    def saved(self, at: float) -> None:
        """What was acknowledged before *at* is on the server's disk."""
        self._saved_at = at

    def all(self, *, of_unknown_age: bool) -> list[Item] | None:
        """What to repeat to data that may lack it; None if that may be more than is kept.

        Args:
            of_unknown_age: nobody knows how old the data are; otherwise they are no older than the last snapshot.
        """
        needed = -math.inf if of_unknown_age else min(self._now() - JOURNALED_FOR, self._saved_at)
        if self._dropped_at > -math.inf and self._dropped_at >= needed:
            return None
        return [item for _, item in list(self._kept.values())]

    def lasting(self) -> list[Item]:
        """Those kept that leave something behind, such as a version floor."""
        return [item for _, item in list(self._kept.values()) if item.leaves_something]
