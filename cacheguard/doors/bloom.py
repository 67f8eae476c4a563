"""The Bloom filter as users hold it, blocking and async."""

from __future__ import annotations

from collections.abc import AsyncIterable, Iterable, Sequence
from typing import Any

from ..defenses.penetration.filter import BloomTier
from ..defenses.penetration.info import BloomInfo
from ..defenses.penetration.items import part_text
from ..durations import Duration, seconds
from ..errors import KeyTemplateError
from ..keys import TextTemplate
from ..process.hub import Hub
from ..runtime import run_now


class BloomFilter:
    """A set of ids that answers "absent" (always true) or "maybe"; `CacheGuard.bloom` makes it.

    Its bits are in Redis, with a mirror in each process. It answers "absent" only while it is complete and the mirror
    is up to date. If it is lost, evicted, half-built or behind, it answers "maybe", and the call reads the cache.
    """

    tier: BloomTier

    def __init__(self, hub: Hub, tier: BloomTier) -> None:
        self._hub, self.tier = hub, tier

    def __repr__(self) -> str:
        return f"<BloomFilter {self.tier.name!r}, capacity {self.tier.capacity}, error rate {self.tier.error_rate}>"

    def known(self, item: object) -> bool | None:
        """Return True for "absent", False for "maybe", None if only Redis can decide. No round trip."""
        return self.tier.known(item, self._hub.now())

    def add(self, item: object) -> None:
        """Add *item*, so that no process answers "absent" for it; call this before its row is committed.

        One round trip, and a wait of at most ``mirror_lease`` (default 50 ms) while other processes may still answer
        from their mirrors. Raises `Unreachable` if Redis is unreachable: call it again, or do not commit.
        """
        self.add_many([item])

    def add_many(self, items: Iterable[object]) -> None:
        """`add` several items. One round trip per 400 items, and one wait at the end."""
        run_now(self.tier.add_many(self._hub.blocking().runtime, items))

    def rebuild(self, items: Iterable[object], *, settle: Duration | None = None) -> None:
        """Fill a new filter with *items* (every existing row) and replace the old filter by it; then it is complete.

        Reads continue meanwhile; items added meanwhile are in both. Raises `CacheGuardError` if a later rebuild began
        or Redis lost the filter: the old one is unchanged. After `Unreachable` it may be replaced or not: call again.

        Args:
            items: read once, after *settle*; need not fit into memory.
            settle: the longest time between an `add` and the commit of its row, at most an hour. If the filter is new,
                or its record of added items was lost, the rebuild waits this long, and at least ``mirror_lease``,
                before it reads *items*. None: ``mirror_lease``.
        """
        run_now(self.tier.rebuild(self._hub.blocking().runtime, items, settle=_settle(settle)))

    def mark_complete(self) -> None:
        """Declare that every existing row was added, so that the filter may answer "absent". One round trip.

        Raises `CacheGuardError` if Redis may have lost items since this process added them, and `Unreachable`.
        """
        run_now(self.tier.mark_complete(self._hub.blocking().runtime))

    def absent(self, item: object) -> bool:
        """Return True only if *item* is certainly absent. Usually no round trip, else one; more to fetch the mirror."""
        return run_now(self.tier.absent(self._hub.blocking().runtime, item))

    def info(self) -> BloomInfo:
        """Return its state, size and load. One round trip. Raises `Unreachable`."""
        return run_now(self.tier.info(self._hub.blocking().runtime))

    async def aadd(self, item: object) -> None:
        """`add` for coroutines."""
        await self.aadd_many([item])

    async def aadd_many(self, items: Iterable[object] | AsyncIterable[object]) -> None:
        """`add_many` for coroutines; also takes an async iterable."""
        await self.tier.add_many(self._hub.running().runtime, items)

    async def arebuild(
        self, items: Iterable[object] | AsyncIterable[object], *, settle: Duration | None = None
    ) -> None:
        """`rebuild` for coroutines; also takes an async iterable."""
        await self.tier.rebuild(self._hub.running().runtime, items, settle=_settle(settle))

    async def amark_complete(self) -> None:
        """`mark_complete` for coroutines."""
        await self.tier.mark_complete(self._hub.running().runtime)

    async def aabsent(self, item: object) -> bool:
        """`absent` for coroutines."""
        return await self.tier.absent(self._hub.running().runtime, item)

    async def ainfo(self) -> BloomInfo:
        """`info` for coroutines."""
        return await self.tier.info(self._hub.running().runtime)


def item_of(template: TextTemplate, values: Sequence[Any]) -> object:
    """Return the item that *template* makes of these arguments; None, which is no item, if it may have other forms."""
    try:
        found = template.values_of(*values)
    except KeyTemplateError:
        return None
    if template.is_one_field:
        return found[0]
    parts = [part_text(value) for value in found]
    return None if None in parts else template.text_with([part or "" for part in parts])


def _settle(value: Duration | None) -> float:
    return 0.0 if value is None else seconds(value, "settle")
