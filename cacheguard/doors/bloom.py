"""Both doors of a Bloom filter."""

from __future__ import annotations

from collections.abc import AsyncIterable, Iterable

from ..defenses.penetration.filter import BloomTier
from ..defenses.penetration.info import BloomInfo
from ..durations import Duration, seconds
from ..process.hub import Hub
from ..runtime import run_now


class BloomFilter:
    """Knows for certain that some ids were never added; made by `CacheGuard.bloom`.

    Its bits live in Redis and are mirrored in each process. It says "absent" only while it is complete and the mirror
    lacks nothing; lost, evicted, half-built or behind, it says "maybe", and the cache is asked as if there were none.
    """

    tier: BloomTier

    def __init__(self, hub: Hub, tier: BloomTier) -> None:
        self._hub, self.tier = hub, tier

    def __repr__(self) -> str:
        return f"<BloomFilter {self.tier.name!r}, capacity {self.tier.capacity}, error rate {self.tier.error_rate}>"

    def known(self, item: object) -> bool | None:
        """True if *item* is certainly absent, False for "maybe", None if only Redis can tell. No round trip."""
        return self.tier.known(item, self._hub.now())

    def add(self, item: object) -> None:
        """Make sure that nobody is told that *item* is absent; call it before its row is committed.

        One round trip, and up to 50 ms of waiting while other processes may answer from their mirrors. Raises
        `Unreachable` if Redis cannot be asked: then nothing is promised.
        """
        self.add_many([item])

    def add_many(self, items: Iterable[object]) -> None:
        """`add` for several items; a round trip for 400 of them."""
        run_now(self.tier.add_many(self._hub.blocking().runtime, items))

    def rebuild(self, items: Iterable[object], *, settle: Duration | None = None) -> None:
        """Fill a new filter with *items* (every row there is) and put it in the place of the old one.

        Reads go on meanwhile, and what is added meanwhile is in both. Afterwards the filter is complete. Raises
        `Unreachable` if Redis goes away, and `CacheGuardError` if another rebuild began later; then nothing changed.

        Args:
            items: read once, after *settle*; need not fit into memory.
            settle: the longest time between an `add` and the commit of its row; a filter that is new, or whose memory
                was lost, waits so long before it reads *items*. None: transactions are short (50 ms).
        """
        run_now(self.tier.rebuild(self._hub.blocking().runtime, items, settle=_settle(settle)))

    def mark_complete(self) -> None:
        """Promise that every row there is has been added, so that the filter may say "absent"."""
        run_now(self.tier.mark_complete(self._hub.blocking().runtime))

    def absent(self, item: object) -> bool:
        """True only if *item* is certainly not there. At most one round trip, mostly none."""
        return run_now(self.tier.absent(self._hub.blocking().runtime, item))

    def info(self) -> BloomInfo:
        """Its state, size and load."""
        return run_now(self.tier.info(self._hub.blocking().runtime))

    async def aadd(self, item: object) -> None:
        """`add`, to be awaited."""
        await self.aadd_many([item])

    async def aadd_many(self, items: Iterable[object] | AsyncIterable[object]) -> None:
        """`add_many`, to be awaited; takes an async iterable, too."""
        await self.tier.add_many(self._hub.running().runtime, items)

    async def arebuild(
        self, items: Iterable[object] | AsyncIterable[object], *, settle: Duration | None = None
    ) -> None:
        """`rebuild`, to be awaited; takes an async iterable, too."""
        await self.tier.rebuild(self._hub.running().runtime, items, settle=_settle(settle))

    async def amark_complete(self) -> None:
        """`mark_complete`, to be awaited."""
        await self.tier.mark_complete(self._hub.running().runtime)

    async def aabsent(self, item: object) -> bool:
        """`absent`, to be awaited."""
        return await self.tier.absent(self._hub.running().runtime, item)

    async def ainfo(self) -> BloomInfo:
        """`info`, to be awaited."""
        return await self.tier.info(self._hub.running().runtime)


def _settle(value: Duration | None) -> float:
    return 0.0 if value is None else seconds(value, "settle")
