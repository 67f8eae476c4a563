"""What this process keeps in the place of Redis: the values of functions with ``l2=False``."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from ..delivery.outbox import Invalidation, drop_message
from ..runtime import run_now
from ..tiers.remote import EXPIRE

if TYPE_CHECKING:
    from ..ports import Call
    from ..protocol.model import MemoryCommands

NOBODY = "-"  # in the place of the mark of a round trip: nobody is told of what happens here


class Here:
    """A store of the cache protocol beside Redis; under ``memory://`` it is all there is.

    Args:
        store: in this process.
        beside_redis: other processes hold values, too. False under ``memory://``: what is said to Redis is said here.
    """

    def __init__(self, store: MemoryCommands, *, beside_redis: bool) -> None:
        self._store, self.beside_redis = store, beside_redis

    def forget(self, items: Iterable[Invalidation]) -> None:
        """Invalidate *items* here."""
        self._send([call for item in items for call in item.calls("", NOBODY)])

    def forget_all(self) -> list[str]:
        """Invalidate every entry here; their keys."""
        _, names = run_now(self._store.send(("SCAN", "0", "MATCH", "*")))[0]
        keys: list[str] = [name.decode("utf-8", "surrogatepass") for name in names]
        self.forget(map(Invalidation, keys))
        return keys

    def expire(self, keys: Iterable[str]) -> None:
        """Make *keys* stale here."""
        self._send([EXPIRE(key)("", drop_message(NOBODY, key)) for key in keys])

    def _send(self, calls: Sequence[Call]) -> None:
        if self.beside_redis:
            run_now(self._store.send_each(*calls))
