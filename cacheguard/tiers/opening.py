"""From what Redis holds under a key to what may be used of it."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from ..codec import Codec
from ..codec.form import UNREADABLE
from ..delivery.gate import Gate, is_foreign
from ..errors import CodecError, Refused
from ..events import Events
from ..protocol import calls
from ..protocol.entry import Found, Stored, Usable
from ..protocol.envelope import Kind
from ..protocol.names import Scope
from .markers import Markers
from .packing import Packing


class Opening:
    """Opens envelopes. What cannot be read is a miss and counted; what does not stand is unusable."""

    def __init__(self, packing: Packing, markers: Markers, gate: Gate, events: Events) -> None:
        self._packing, self._markers, self._gate, self._events = packing, markers, gate, events

    def found(
        self, key: str, held: calls.Held | Refused | None, codec: Codec | None, *, outline: bool = False
    ) -> Found | None:
        """What READ has found, whether it stands or not."""
        if held is None:
            return None
        if isinstance(held, Refused):
            return self.strange(key, held)
        return self.entry(key, held, codec, outline=outline)

    def entry(self, key: str, held: calls.Held, codec: Codec | None, *, outline: bool = False) -> Found:
        """The entry; its *outline* is all but its value."""
        envelope, left, *rest = held
        try:
            if left is not None:
                if outline:
                    return Found(self._packing.outline(key, envelope), left, "", *rest)
                return Found(self._packing.unpack(key, envelope, codec), left, "", *rest)
        except UNREADABLE:
            pass
        self._events.undecodable += 1
        return self.unusable(envelope)

    def strange(self, key: str, reply: Refused) -> Found:
        """Something of another type lives under our key: a miss that nobody can fill."""
        if not is_foreign(reply):
            self._events.redis_refused(reply)
            raise reply
        self._events.undecodable += 1
        self._events.once("foreign", "%s holds something that is no entry of ours; it is left alone", key, key=key)
        return Found(None, -1.0)

    async def standing(self, key: str, found: Found, scope: Scope, seen: dict[str, Any], envelope: Any) -> Found:
        """*found* if nothing that its entry depends on was invalidated since its load began, else what is unusable."""
        stored = found.stored
        if stored is None or await self._markers.stand(key, stored, scope, seen):
            return found
        return self.unusable(envelope)

    def wanted(self, found: Found, usable: Usable | None, envelope: Any) -> Found:
        """*found*, which stands, unless the caller has no use for its value."""
        stored = found.stored
        if usable is None or stored is None or stored.kind is not Kind.VALUE or usable(stored.own()):
            return found
        return self.unusable(envelope)

    def unusable(self, envelope: Any) -> Found:
        """What is found in the place of an entry that nobody may use: LEASE knows it by its stamp."""
        return Found(None, -1.0, self._packing.stamp(envelope))

    async def fresh(
        self, scope: Scope, heads: Mapping[str, calls.Held | Refused | None], seen: dict[str, Any]
    ) -> list[str]:
        """Which entries are fresh and stand, by the first bytes of each."""
        stored: dict[str, Stored] = {}
        for key, head in heads.items():
            held = None if isinstance(head, Refused) else head
            if held is not None and (held[1] or 0) > 0:
                with suppress(CodecError):
                    stored[key] = self._packing.glance(key, held[0])
        await self._markers.ask_for_more(scope, list(stored.values()), seen)
        return [
            key
            for key, each in stored.items()
            if tuple(map(seen.get, markers := scope.markers(each.tags))) == each.nonces
            and not self._gate.bus.is_dirty(key, markers)
        ]
