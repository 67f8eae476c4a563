"""The store of this process that replaces Redis: the values of functions with ``l2=False``."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING

from ..delivery.outbox import Invalidation
from ..protocol import calls
from ..protocol.layout import new_nonce
from ..protocol.names import epochs_of
from ..runtime import run_now

if TYPE_CHECKING:
    from ..ports import Call
    from ..protocol.messages import Drop
    from ..protocol.model import MemoryCommands

PAGE = 1000  # keys of one look
ELSEWHERE = "elsewhere"  # the writes under way in other processes, as one
NOBODY = "-"  # in the place of the mark of a round trip: nobody is told of what happens here


class Here:
    """A store of the cache protocol beside Redis; under ``memory://`` it is the only one.

    Args:
        store: in this process.
        beside_redis: True if other processes hold values, too. False under ``memory://``, where this store gets every
            call for Redis.
    """

    beside_redis: bool

    def __init__(self, store: MemoryCommands, *, beside_redis: bool) -> None:
        self._store, self.beside_redis = store, beside_redis

    def forget(self, items: Iterable[Invalidation]) -> None:
        """Invalidate *items* here."""
        if not self.beside_redis:
            return
        # Most processes keep nothing here. Then only what outlives the invalidation has to be noted.
        empty = self._store.empty
        under = cache(self._under)  # of many keys, most are in one namespace
        self._send(
            [
                call
                for item in items
                if not empty or item.leaves_something
                for call in (replace(item, under=under(epochs_of(item.key))) if item.version else item).calls(
                    "", NOBODY
                )
            ]
        )

    def heard(self, news: Drop) -> None:
        """Another process has changed something: forget it, and heed what goes on with it from now on."""
        if not self.beside_redis or not (news.quarantine_ms or news.floor or news.write_ms or not self._store.empty):
            return
        # In two steps: the floor may be older than this news, so a value with a newer version goes, too; and nobody
        # knows here if the quarantine began with a version, which alone would let a value leave it.
        items = [
            Invalidation(
                news.key,
                lag_ms=news.quarantine_ms,
                begins=ELSEWHERE if news.write_ms else "",
                intent_ms=news.write_ms,
                ends="" if news.write_ms else ELSEWHERE,
            )
        ]
        if news.floor:
            items.append(Invalidation(news.key, version=news.floor))
        self.forget(items)

    def limit(self, names: Iterable[str], version: str) -> float:
        """For how many seconds a value that is loaded now may be kept, by what is known of its key and markers.

        0 if a write of one of them is under way, or if *version* is too old.
        """
        return min((self._store.limit(name, version) for name in names), default=math.inf)

    def _under(self, epochs: tuple[str, ...]) -> str:
        """The nonces of these namespaces, as this store has them."""
        marks = [calls.mark(epoch, nonce=new_nonce(), keep_ms=calls.FLOOR_MS) for epoch in epochs]
        return b"".join(calls.marked(reply).nonce for reply in run_now(self._store.send(*marks))).hex()

    def forget_all(self) -> list[str]:
        """Invalidate every entry here; returns their keys."""
        keys: list[str] = []
        cursor = "0"
        while True:
            cursor, page = calls.scanned(run_now(self._store.send(calls.scan(cursor, "*", PAGE)))[0])
            keys += page
            if cursor == "0":
                break
        self.forget(map(Invalidation, keys))
        return keys

    def expire(self, keys: Iterable[str]) -> None:
        """Make *keys* stale here."""
        self._send([calls.expire(key, channel="", echo=NOBODY) for key in keys])

    def _send(self, what: Sequence[Call]) -> None:
        if what and self.beside_redis:
            run_now(self._store.send_each(*what))
