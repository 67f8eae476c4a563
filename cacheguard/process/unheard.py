"""What this process keeps in the place of Redis: it answers only while this process hears what others invalidate."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from ..delivery.outbox import Invalidation
from ..tiers.remote import Remote

if TYPE_CHECKING:
    from ..codec import Codec
    from ..protocol.entry import CutOff, Fill, Filled, Found, Usable
    from ..protocol.names import Scope


class OwnStore(Remote):
    """The store of functions with ``l2=False``, beside a Redis through which other processes invalidate.

    While the bus is not proven, nothing stays in it: each read is a miss, and what was loaded is for those who wait.

    Args:
        hears: returns True while this process provably hears what others invalidate, or is cut off from all of them.
    """

    def __init__(self, *args: Any, hears: Callable[[], bool]) -> None:
        super().__init__(*args)
        self._hears = hears

    async def read(
        self,
        key: str,
        codec: Codec | None,
        scope: Scope,
        tags: tuple[str, ...],
        usable: Usable | None = None,
        *,
        near: bool = False,
    ) -> Found | None:
        found = await super().read(key, codec, scope, tags, usable, near=near)
        if found is None or self._hears():
            return found
        await self.invalidate([Invalidation(key)])  # a lease with nothing under it stays: its load is under way
        return None

    async def read_many(
        self,
        keys: Sequence[str],
        codec: Codec | None,
        scope: Scope,
        tags: Sequence[tuple[str, ...]],
        *,
        near: bool = False,
    ) -> Sequence[Found | CutOff | None]:
        found = await super().read_many(keys, codec, scope, tags, near=near)
        if self._hears():
            return found
        await self.invalidate([Invalidation(key) for key, each in zip(keys, found, strict=True) if each is not None])
        return [None] * len(found)

    async def fill_many(self, fills: Sequence[Fill]) -> list[Filled]:
        filled = await super().fill_many(fills)
        if not self._hears():
            await self.invalidate([Invalidation(fill.key) for fill in fills])
        return filled
