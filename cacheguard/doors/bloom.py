"""The Bloom filter as users hold it, blocking and async."""

from __future__ import annotations

from collections.abc import AsyncIterable, Callable, Iterable, Sequence
from functools import partial
from typing import Any

from ..defenses.penetration.filter import BloomTier
from ..defenses.penetration.info import BloomInfo, Ensured
from ..defenses.penetration.items import part_text
from ..durations import Duration, seconds
from ..errors import ConfigurationError, KeyTemplateError
from ..keys import TextTemplate
from ..process.hub import Hub
from ..runtime import run_now


class BloomFilter:
    """A set of ids that answers "absent" (always true) or "maybe"; `CacheGuard.bloom` makes it.

    Its bits are in Redis, with a mirror in each process. It answers "absent" only while it is complete and the mirror
    is up to date. If it is lost, evicted, half-built or behind, it answers "maybe", and the call reads the cache.
    """

    tier: BloomTier

    def __init__(self, hub: Hub, tier: BloomTier, on_lost: Callable[[BloomFilter], object] | None = None) -> None:
        self._hub, self.tier = hub, tier
        if on_lost is not None:
            if not callable(on_lost):
                raise ConfigurationError(f"on_lost must be a function of the filter or None, got {on_lost!r}")
            tier.on_lost(on_lost, partial(on_lost, self))

    def __repr__(self) -> str:
        return f"<BloomFilter {self.tier.name!r}, capacity {self.tier.capacity}, error rate {self.tier.error_rate}>"

    def known(self, item: object) -> bool | None:
        """Return True for "absent", False for "maybe", None if only Redis can decide. No round trip.

        All known forms of one item are one: equal numbers and their texts, a UUID and its texts, upper and lower case.
        For what cannot be an item the answer is "maybe".
        """
        return self.tier.known(item, self._hub.now())

    def add(self, item: object) -> None:
        """Add *item*, so that no process answers "absent" for it; call this before its row is committed.

        One round trip, and a wait of at most ``mirror_lease`` (default 50 ms) while other processes may still answer
        from their mirrors. Raises `Unreachable` if Redis is unreachable: call it again, or do not commit. With
        ``on_unreachable="queue"`` it returns, and adds the item once Redis answers; up to 100,000 may wait.
        """
        self.add_many([item])

    def add_many(self, items: Iterable[object]) -> None:
        """`add` several items. One round trip per 400 items, and one wait at the end."""
        run_now(self.tier.add_many(self._hub.blocking().runtime, items))

    def rebuild(
        self, items: Iterable[object] | Callable[[], Iterable[object]], *, settle: Duration | None = None
    ) -> None:
        """Fill a new filter with *items* (every existing row) and replace the old filter by it; then it is complete.

        Reads continue meanwhile; items added meanwhile are in both. Raises `CacheGuardError` if a later rebuild began
        or Redis lost the filter: the old one is unchanged. After `Unreachable` it may be replaced or not: call again.

        Args:
            items: read once, after *settle*; need not fit into memory. Or a function that returns them.
            settle: the longest time between an `add` and the commit of its row, at most an hour. If the filter is new
                or signed, or its record of added items was lost, the rebuild waits this long, and at least
                ``mirror_lease``, before it reads *items*. None: ``mirror_lease``.
        """
        run_now(self.tier.rebuild(self._hub.blocking().runtime, items, settle=_settle(settle)))

    def ensure(
        self,
        items: Iterable[object] | Callable[[], Iterable[object]],
        *,
        settle: Duration | None = None,
        wait: Duration | None = "15s",
    ) -> Ensured:
        """`rebuild` the filter unless it is complete; of all processes that call this, one rebuilds.

        Call it when a process starts, and from ``on_lost``. Never raises because another process rebuilds or Redis is
        unreachable: the filter answers "maybe" until it is complete. What *items* raises is raised.

        Returns ``"complete"``; ``"incomplete"``: another process is still at it, or Redis lost what was built; or
        ``"unreachable"``: call it again when Redis is back.

        Args:
            items: as for `rebuild`; not read if there is nothing to do. A function that returns them can be called
                again if the first attempt comes to nothing.
            settle: as for `rebuild`.
            wait: how long to wait for another process. If that is silent for 10 s, one of those who wait takes over.
                None: do not wait.
        """
        return run_now(self.tier.ensure(self._hub.blocking().runtime, items, settle=_settle(settle), wait=_wait(wait)))

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
        self,
        items: Iterable[object] | AsyncIterable[object] | Callable[[], Iterable[object] | AsyncIterable[object]],
        *,
        settle: Duration | None = None,
    ) -> None:
        """`rebuild` for coroutines; also takes an async iterable."""
        await self.tier.rebuild(self._hub.running().runtime, items, settle=_settle(settle))

    async def aensure(
        self,
        items: Iterable[object] | AsyncIterable[object] | Callable[[], Iterable[object] | AsyncIterable[object]],
        *,
        settle: Duration | None = None,
        wait: Duration | None = "15s",
    ) -> Ensured:
        """`ensure` for coroutines; also takes an async iterable."""
        return await self.tier.ensure(self._hub.running().runtime, items, settle=_settle(settle), wait=_wait(wait))

    async def amark_complete(self) -> None:
        """`mark_complete` for coroutines."""
        await self.tier.mark_complete(self._hub.running().runtime)

    async def aabsent(self, item: object) -> bool:
        """`absent` for coroutines."""
        return await self.tier.absent(self._hub.running().runtime, item)

    async def ainfo(self) -> BloomInfo:
        """`info` for coroutines."""
        return await self.tier.info(self._hub.running().runtime)


def queues_of(on_unreachable: object) -> bool:
    """Return True if what cannot be added is to wait."""
    if on_unreachable not in ("raise", "queue"):
        raise ConfigurationError(f"on_unreachable must be 'raise' or 'queue', got {on_unreachable!r}")
    return on_unreachable == "queue"


def _wait(value: Duration | None) -> float:
    return 0.0 if value is None else seconds(value, "wait")


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
