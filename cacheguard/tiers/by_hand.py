"""Values put into Redis by hand, not by a load under a lease: set, add, update, touch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from ..codec import Codec
from ..delivery.line import Line
from ..delivery.outbox import Invalidation
from ..errors import Refused
from ..events import Events
from ..ports import Call, Reply
from ..protocol import calls
from ..protocol.entry import Found
from ..protocol.names import Scope
from .markers import Markers, quarantines
from .opening import Opening
from .packing import Packing


class ByHand:
    """The manual writes of one place. Each method is one round trip; `Unreachable` if Redis cannot be asked.

    There is no lease here whose loss would tell that a tag or a namespace was invalidated since its nonce was read. So
    each write asks for the markers in its own round trip, in front of itself, and answers what they said: where that is
    not what the envelope says, what was written is void, and the caller writes once more.
    """

    def __init__(self, line: Line, packing: Packing, opening: Opening, markers: Markers, events: Events) -> None:
        self._line, self._packing, self._opening = line, packing, opening
        self._markers, self._events = markers, events

    async def read_exactly(self, key: str, codec: Codec | None, scope: Scope) -> tuple[Found | None, Any]:
        """The entry of *key*, and what `replace` knows it by."""
        markers = self._markers.of(key, scope, ())
        fields, pttl, *nonces = await self._line.send(*calls.read(key, markers))
        found = self._opening.found(key, fields, pttl, codec)
        if found is None or found.stored is None:
            return None, ""
        seen = dict(zip(markers, nonces, strict=True))
        return await self._opening.standing(key, found, scope, seen, fields[0]), self._packing.stamp(fields[0])

    async def store(
        self, items: Mapping[str, tuple[Any, float, float]], version: str, markers: tuple[str, ...], keep_ms: int
    ) -> tuple[bool, tuple[bytes, ...], float]:
        """Put values there by hand.

        Whether all were stored, what *markers* said just before, and for how many seconds longer one of them is
        quarantined.
        """
        stores = [
            partial(calls.store, key, envelope, fresh=fresh, stale=stale, version=version)
            for key, (envelope, fresh, stale) in items.items()
        ]
        replies, _ = await self._sent(self._markers.marks(markers, keep_ms), stores)
        seen = self._markers.seen(markers, replies[: len(markers)])
        # If a failover loses this, what comes back may be older.
        self._line.acknowledged([Invalidation(key) for key in items])
        settles = min(quarantines(markers, replies).values(), default=0.0)
        done = all(reply == 1 for reply in replies[len(markers) :])
        return done, tuple(seen[marker] for marker in markers), settles

    async def add(
        self,
        key: str,
        envelope: Any,
        fresh: float,
        stale: float,
        *,
        scope: Scope,
        token: str,
        void: Any,
        markers: tuple[str, ...],
        keep_ms: int,
    ) -> tuple[bool, Any, tuple[bytes, ...], float]:
        """Put a value there by hand if no usable one is there.

        Whether it was stored; if what is there cannot be used, what it is known by (call again with it as *void*), else
        None; what *markers* said just before; and for how many seconds longer one of them is quarantined.
        """
        call = partial(calls.add, key, envelope, token=token, fresh=fresh, stale=stale, void=void)
        replies = await self._changed(key, call, self._markers.marks(markers, keep_ms))
        seen = self._markers.seen(markers, replies[: len(markers)])
        settles = min(quarantines(markers, replies).values(), default=0.0)
        said = tuple(seen[marker] for marker in markers)
        done, there = calls.changed(replies[-1])
        useless = None
        if there is not None:
            found = self._opening.entry(key, there, None, outline=True)
            found = await self._opening.standing(key, found, scope, seen, there[0])
            useless = found.void if found.stored is None else None
        return done, useless, said, settles

    async def replace(
        self, key: str, envelope: Any, stamp: Any, *, codec: Codec | None, scope: Scope, token: str
    ) -> tuple[bool, Found | None, Any]:
        """Put a value in the place of the one that `read_exactly` has read, for the rest of its lifetime.

        Whether that was done; else what is there now, as from `read_exactly`.
        """
        markers = self._markers.of(key, scope, ())
        call = partial(calls.replace, key, envelope, token=token, stamp=stamp)
        replies = await self._changed(key, call, calls.nonces(markers))
        done, there = calls.changed(replies[-1])
        if there is None:
            return done, None, ""
        found = self._opening.entry(key, there, codec)
        found = await self._opening.standing(key, found, scope, dict(zip(markers, replies, strict=False)), there[0])
        return False, found, self._packing.stamp(there[0])

    async def touch(self, key: str, fresh: float, stale: float, markers: tuple[str, ...], keep_ms: int) -> bool:
        """Give a fresh entry a new TTL; whether there was one."""
        bus = self._line.bus
        echo = bus.begin()
        call = calls.touch(key, fresh=fresh, stale=stale, channel=bus.channel, echo=echo)
        try:
            *_, reply = await self._line.send(*self._markers.marks(markers, keep_ms), call)
        except BaseException:
            bus.void(echo)
            raise
        return bool(reply == 1)

    def stamp(self, envelope: Any) -> Any:
        """What LEASE, ADD and REPLACE know an envelope by."""
        return self._packing.stamp(envelope)

    async def _changed(self, key: str, call: Callable[..., Call], before: list[Call]) -> list[Reply]:
        """Run ADD or REPLACE."""
        replies, echo = await self._sent(before, [call])
        if calls.changed(replies[-1]).done:  # if a failover loses this, what comes back may be older
            self._line.acknowledged([Invalidation(key)])
        else:
            self._line.bus.void(echo)
        return replies

    async def _sent(self, before: list[Call], news: Sequence[Callable[..., Call]]) -> tuple[list[Reply], str]:
        """Send *before*, then the calls that publish what they change; the replies, and the echo of their messages.

        `Refused` is raised. Unless all has been answered, the messages of this round trip are heeded here, too.
        """
        bus = self._line.bus
        echo = bus.begin()
        try:
            replies = await self._line.send(*before, *(call(channel=bus.channel, echo=echo) for call in news))
        except BaseException:
            bus.void(echo)
            raise
        for reply in replies:
            if isinstance(reply, Refused):
                bus.void(echo)
                self._events.redis_refused(reply)
                raise reply
        return replies, echo
