"""The markers of namespaces and tags: which of them an entry depends on, and whether it still stands under them.

A marker holds a nonce, and invalidating a tag or a namespace changes it. An entry keeps the nonces that its markers had
before its load, so it stands as long as they still say the same.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from operator import eq
from typing import Any, NamedTuple, cast

from ..delivery.gate import Gate
from ..errors import Refused
from ..events import Events
from ..ports import Call, Reply
from ..protocol import calls
from ..protocol.entry import Stored
from ..protocol.layout import new_nonce
from ..protocol.names import Scope

MOST_HINTS = 10_000


class Marks(NamedTuple):
    """What markers have said, by marker.

    Args:
        nonces: None where Redis refused to tell.
        last: the nonce of the last invalidation of a tag beneath it.
        quarantined: for how many ms longer what is cached under it is quarantined, if it is.
    """

    nonces: dict[str, Any]
    last: dict[str, bytes]
    quarantined: dict[str, int]


class Markers:
    """What one place says and has said about markers."""

    def __init__(self, gate: Gate, events: Events) -> None:
        self._gate, self._events = gate, events
        self._hints: OrderedDict[str, tuple[str, ...]] = OrderedDict()  # by key, tags that its loader gave it
        self._known: OrderedDict[str, bytes] = OrderedDict()  # what markers said last; manual writes begin with it

    # Which ones

    def of(self, key: str, scope: Scope, tags: tuple[str, ...]) -> tuple[str, ...]:
        """The markers to ask for: those that are known to matter, and those that mattered last time."""
        hints = self._hints.get(key) if self._hints else None
        if hints is None:
            return scope.markers(tags) if tags else scope.epochs
        return scope.markers(tuple(dict.fromkeys((*tags, *hints))))

    @property
    def has_hints(self) -> bool:
        """True if `of` may name more than the tags that it is given."""
        return bool(self._hints)

    def learn(self, key: str, tags: tuple[str, ...]) -> None:
        """Remember which tags the loader of *key* gives it, so that they are asked for with the entry."""
        self._hints[key] = tags
        while len(self._hints) > MOST_HINTS:
            _drop_oldest(self._hints)

    # What they say

    def marks(self, markers: Sequence[str], keep_ms: int) -> list[Call]:
        """The calls that ask for the nonces of *markers*, and make those that are not there."""
        return [calls.mark(marker, nonce=new_nonce(), keep_ms=keep_ms) for marker in markers]

    def seen(self, markers: Sequence[str], replies: Sequence[Reply]) -> Marks:
        """What `marks` was answered."""
        marks = Marks({}, {}, {})
        for marker, reply in zip(markers, replies, strict=True):
            if isinstance(reply, Refused):
                self._events.redis_refused(reply)
                marks.nonces[marker] = None
                continue
            said = calls.marked(reply)
            marks.nonces[marker] = self._known[marker] = said.nonce
            # A load under a quarantine of some tag may read what was before it: such a tag cannot be claimed later.
            marks.last[marker] = b"" if said.beneath_ms else said.last
            if said.quarantine_ms:
                marks.quarantined[marker] = said.quarantine_ms
        while len(self._known) > MOST_HINTS:
            _drop_oldest(self._known)
        return marks

    async def ask(self, markers: tuple[str, ...], keep_ms: int) -> tuple[bytes, ...]:
        """The nonces of *markers*, made where there are none; `Unreachable` if Redis refuses. One round trip."""
        nonces = self.seen(markers, await self._gate.send(*self.marks(markers, keep_ms))).nonces
        if None in nonces.values():
            raise Refused("a marker of a namespace or a tag cannot be made")
        return tuple(nonces[marker] for marker in markers)

    def last_seen(self, markers: tuple[str, ...]) -> tuple[bytes, ...] | None:
        """The nonces of *markers* when they were asked for last; None if one of them is not known."""
        known = [self._known.get(marker) for marker in markers]
        return None if None in known else cast("tuple[bytes, ...]", tuple(known))

    async def claim(
        self, scope: Scope, tags: Sequence[str], last: Mapping[str, bytes], keep_ms: int
    ) -> tuple[bytes, ...] | None:
        """The nonces of *tags* that a load has given its entry at its end; None if one may be younger than the load.

        They count if no tag of the namespace was invalidated since the load began. Its marker tells by a nonce, which
        was *last* then. Times would not do: the tags may lie on several masters, and clocks step back.
        """
        markers = [scope.tag(tag) for tag in tags]
        epoch = scope.epochs[-1:]
        # The namespace is asked behind the tags, on several masters, too: its note is made before a tag is invalidated.
        replies = await self._gate.send(*self.marks(markers, keep_ms), *calls.nonces(epoch))
        now = self.seen(markers, replies[: len(markers)])
        if None in now.nonces.values() or now.quarantined:
            return None
        if calls.were_last_tagged(epoch, replies) != {marker: last.get(marker) for marker in epoch}:
            return None
        return tuple(now.nonces[marker] for marker in markers)

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
            seen.update(calls.were_nonces(more, await self._gate.ask(*calls.nonces(more))))


def _drop_oldest(kept: OrderedDict[str, Any]) -> None:
    """In one step, for other threads may do the same."""
    with suppress(KeyError):
        kept.popitem(last=False)
