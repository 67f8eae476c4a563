"""The markers of namespaces and tags: which of them an entry depends on, and whether it still stands under them.

A marker holds a nonce, and invalidating a tag or a namespace changes it. An entry keeps the nonces that its markers had
before its load, so it stands as long as they still say the same.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import suppress
from operator import eq
from typing import Any, cast

from ..delivery.gate import Gate
from ..errors import Refused
from ..events import Events
from ..ports import Call, Reply
from ..protocol import calls
from ..protocol.entry import Stored
from ..protocol.names import Scope

MOST_HINTS = 10_000


class Markers:
    """What one place says and has said about markers.

    Args:
        nonce: makes the nonce of a marker that is not there yet.
    """

    def __init__(self, gate: Gate, events: Events, nonce: Callable[[], str]) -> None:
        self._gate, self._events, self._nonce = gate, events, nonce
        self._hints: OrderedDict[str, tuple[str, ...]] = OrderedDict()  # by key, tags that its loader gave it
        self._known: OrderedDict[str, bytes] = OrderedDict()  # what markers said last; manual writes begin with it

    # Which ones

    def of(self, key: str, scope: Scope, tags: tuple[str, ...]) -> tuple[str, ...]:
        """The markers to ask for: those that are known to matter, and those that mattered last time."""
        hints = self._hints.get(key) if self._hints else None
        return scope.markers(tags) if hints is None else scope.markers(tuple(dict.fromkeys((*tags, *hints))))

    def learn(self, key: str, tags: tuple[str, ...]) -> None:
        """Remember which tags the loader of *key* gives it, so that they are asked for with the entry."""
        self._hints[key] = tags
        while len(self._hints) > MOST_HINTS:
            _drop_oldest(self._hints)

    # What they say

    def marks(self, markers: Sequence[str], keep_ms: int) -> list[Call]:
        """The calls that ask for the nonces of *markers*, and make those that are not there."""
        return [calls.mark(marker, nonce=self._nonce()[:16].encode(), keep_ms=keep_ms) for marker in markers]

    def seen(self, markers: Sequence[str], replies: Sequence[Reply]) -> tuple[dict[str, Any], dict[str, float]]:
        """What `marks` was answered.

        By marker its nonce, None where Redis refused to tell; and of those that are quarantined, for how many seconds
        longer.
        """
        seen: dict[str, Any] = {}
        quarantined: dict[str, float] = {}
        for marker, reply in zip(markers, replies, strict=True):
            if isinstance(reply, Refused):
                self._events.redis_refused(reply)
                seen[marker] = None
                continue
            nonce, _, quarantine_ms = calls.marked(reply)
            seen[marker] = self._known[marker] = nonce
            if quarantine_ms:
                quarantined[marker] = quarantine_ms / 1000
        while len(self._known) > MOST_HINTS:
            _drop_oldest(self._known)
        return seen, quarantined

    async def ask(self, markers: tuple[str, ...], keep_ms: int) -> tuple[bytes, ...]:
        """The nonces of *markers*, made where there are none; `Unreachable` if Redis refuses. One round trip."""
        seen, _ = self.seen(markers, await self._gate.send(*self.marks(markers, keep_ms)))
        if None in seen.values():
            raise Refused("a marker of a namespace or a tag cannot be made")
        return tuple(seen[marker] for marker in markers)

    def last_seen(self, markers: tuple[str, ...]) -> tuple[bytes, ...] | None:
        """The nonces of *markers* when they were asked for last; None if one of them is not known."""
        known = [self._known.get(marker) for marker in markers]
        return None if None in known else cast("tuple[bytes, ...]", tuple(known))

    async def claim(self, scope: Scope, tags: Sequence[str], at_ms: int, keep_ms: int) -> tuple[bytes, ...] | None:
        """The nonces of *tags* that a load has given its entry at its end; None if one may be younger than the load.

        A tag's nonce counts if it is older than the load, or if no tag of the namespace was invalidated since the load
        began at *at_ms* (the server's time).
        """
        markers = [scope.tag(tag) for tag in tags]
        asked = [calls.tagged_at(scope.epochs[-1])] if scope.epochs else []
        replies = await self._gate.send(*self.marks(markers, keep_ms), *asked)
        marks, last = replies[: len(markers)], replies[-1] if asked else None
        seen, quarantined = self.seen(markers, marks)
        if None in seen.values() or isinstance(last, Refused) or quarantined:
            return None
        if not asked or int(last or 0) >= at_ms:
            for reply in marks:
                _, since_ms, _ = calls.marked(reply)
                if since_ms >= at_ms:
                    return None
        return tuple(seen[marker] for marker in markers)

    # What that means for an entry

    async def stand(self, key: str, stored: Stored, scope: Scope, seen: dict[str, Any]) -> bool:
        """Whether nothing that the entry depends on was invalidated since its load began.

        Args:
            seen: by marker, the nonces that are known; one round trip more if some are missing.
        """
        markers = scope.markers(stored.tags)
        if stored.tags and not all(marker in seen for marker in markers):
            await self.ask_for_more(scope, [stored], seen)
            self.learn(key, stored.tags)
        nonces = stored.nonces
        stands = len(nonces) == len(markers) and all(map(eq, map(seen.get, markers), nonces))
        return stands and not self._gate.bus.is_dirty(key, markers)

    async def ask_for_more(self, scope: Scope, stored: Sequence[Stored], seen: dict[str, Any]) -> None:
        """Ask for what the entries depend on and *seen* does not have. One round trip, if there is anything."""
        more = tuple(
            dict.fromkeys(
                marker for each in stored if each.tags for marker in scope.markers(each.tags) if marker not in seen
            )
        )
        if more:
            seen.update(zip(more, await self._gate.send(*calls.nonces(more)), strict=True))


def _drop_oldest(kept: OrderedDict[str, Any]) -> None:
    """In one step, for other threads may do the same."""
    with suppress(KeyError):
        kept.popitem(last=False)
