"""Values put into Redis by hand, not by a load under a lease: set, add, update, touch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from ..codec import Codec
from ..delivery.gate import Gate
from ..delivery.outbox import Invalidation
from ..errors import Refused
from ..events import Events
from ..ports import Call, Reply
from ..protocol import calls
from ..protocol.entry import Found
from ..protocol.names import Scope
from .markers import Markers, Marks
from .opening import Opening
from .packing import Packing


@dataclass(slots=True)
class Exact:
    """An entry that is about to be replaced.

    Args:
        found: None if there is none.
        stamp: what `ByHand.replace` knows it by.
    """

    found: Found | None = None
    stamp: Any = ""


@dataclass(slots=True)
class Put:
    """What became of values that were put there by hand.

    Args:
        done: whether all of them were stored.
        nonces: what the markers said just before; others than in the envelope, and what was stored is unusable.
        quarantine: for how many seconds longer one of the markers is quarantined; 0 if none is.
        useless: of `ByHand.add`, the stamp of what is there instead, if that cannot be used.
    """

    done: bool
    nonces: tuple[bytes, ...]
    quarantine: float
    useless: Any = None


@dataclass(slots=True)
class Replaced:
    """Whether a value was replaced, and if not, what is there by now."""

    done: bool
    there: Exact


class ByHand:
    """The manual writes of one place. Each method is one round trip; `Unreachable` if Redis cannot be asked.

    There is no lease here whose loss would tell that a tag or a namespace was invalidated since its nonce was read. So
    each write asks for the markers in its own round trip, in front of itself, and answers what they said: where that is
    not what the envelope says, what was written is unusable, and the caller writes once more.
    """

    def __init__(self, gate: Gate, packing: Packing, opening: Opening, markers: Markers, events: Events) -> None:
        self._gate, self._packing, self._opening = gate, packing, opening
        self._markers, self._events = markers, events

    async def read_exactly(self, key: str, codec: Codec | None, scope: Scope) -> Exact:
        """The entry of *key*, to be replaced."""
        markers = self._markers.of(key, scope, ())
        (held,), seen = calls.were_read([key], markers, await self._gate.ask(*calls.read(key, markers)))
        found = self._opening.found(key, held, codec)
        if found is None or found.stored is None or not isinstance(held, calls.Held):
            return Exact()
        found = await self._opening.standing(key, found, scope, seen, held.envelope)
        return Exact(found, self._packing.stamp(held.envelope))

    async def store(
        self,
        items: Mapping[str, tuple[Any, float, float]],
        version: str,
        under: bytes,
        markers: tuple[str, ...],
        keep_ms: int,
    ) -> Put:
        """Put values there.

        Args:
            items: by key: the envelope, and for how many seconds it is fresh and after that stale.
            version: as `version_text` writes it.
            under: the nonces of the namespaces, as the envelopes have them.
            markers: those that the envelopes depend on.
            keep_ms: for so long, the markers must be kept.
        """
        stores = [
            partial(calls.store, key, envelope, fresh=fresh, stale=stale, version=version, under=under)
            for key, (envelope, fresh, stale) in items.items()
        ]
        replies, _ = await self._sent(self._markers.marks(markers, keep_ms), stores)
        marks = self._markers.seen(markers, replies[: len(markers)])
        # If a failover loses this, what comes back may be older.
        self._gate.acknowledged([Invalidation(key) for key in items])
        done = all(reply == 1 for reply in replies[len(markers) :])
        return Put(done, tuple(marks.nonces[marker] for marker in markers), _shortest(marks))

    async def add(
        self,
        key: str,
        envelope: Any,
        fresh: float,
        stale: float,
        *,
        scope: Scope,
        token: str,
        unusable: Any,
        markers: tuple[str, ...],
        keep_ms: int,
    ) -> Put:
        """Put a value there if no usable one is there.

        Args:
            token: of this call; with the same one, it is the same call that is repeated.
            unusable: the stamp of a value that cannot be used: `Put.useless` of an earlier call.
        """
        call = partial(calls.add, key, envelope, token=token, fresh=fresh, stale=stale, unusable=unusable)
        replies = await self._changed(key, call, self._markers.marks(markers, keep_ms))
        marks = self._markers.seen(markers, replies[: len(markers)])
        done, there = calls.changed(replies[-1])
        put = Put(done, tuple(marks.nonces[marker] for marker in markers), _shortest(marks))
        if there is not None:
            found = self._opening.entry(key, there, None, outline=True)
            found = await self._opening.standing(key, found, scope, marks.nonces, there.envelope)
            put.useless = found.unusable if found.stored is None else None
        return put

    async def replace(
        self, key: str, envelope: Any, stamp: Any, *, codec: Codec | None, scope: Scope, token: str
    ) -> Replaced:
        """Put a value in the place of the one with this *stamp*, for the rest of its lifetime."""
        markers = self._markers.of(key, scope, ())
        call = partial(calls.replace, key, envelope, token=token, stamp=stamp)
        replies = await self._changed(key, call, calls.nonces(markers))
        done, there = calls.changed(replies[-1])
        if there is None:
            return Replaced(done, Exact())
        found = self._opening.entry(key, there, codec)
        seen = calls.were_nonces(markers, replies[:-1])
        found = await self._opening.standing(key, found, scope, seen, there.envelope)
        return Replaced(done=False, there=Exact(found, self._packing.stamp(there.envelope)))

    async def touch(self, key: str, fresh: float, stale: float, markers: tuple[str, ...], keep_ms: int) -> bool:
        """Give a fresh entry a new TTL; whether there was one. Two round trips.

        If a marker is quarantined, the entry ends with that. This is asked first: a process that died in between would
        leave it more than that.
        """
        replies = await self._gate.send(*self._markers.marks(markers, keep_ms))
        limit = _shortest(self._markers.seen(markers, replies))
        if limit:
            fresh, stale = min(fresh, limit), 0.0
        bus = self._gate.bus
        echo = bus.begin()
        call = calls.touch(key, fresh=fresh, stale=stale, channel=bus.channel, echo=echo)
        try:
            (reply,) = await self._gate.send(call)
        except BaseException:
            bus.disown(echo)
            raise
        return bool(reply == 1)

    def stamp(self, envelope: Any) -> Any:
        """What LEASE, ADD and REPLACE know an envelope by."""
        return self._packing.stamp(envelope)

    async def _changed(self, key: str, call: Callable[..., Call], before: list[Call]) -> list[Reply]:
        """Run ADD or REPLACE."""
        replies, echo = await self._sent(before, [call])
        if calls.changed(replies[-1]).done:  # if a failover loses this, what comes back may be older
            self._gate.acknowledged([Invalidation(key)])
        else:
            self._gate.bus.disown(echo)
        return replies

    async def _sent(self, before: list[Call], news: Sequence[Callable[..., Call]]) -> tuple[list[Reply], str]:
        """Send *before*, then the calls that publish what they change; the replies, and the echo of their messages.

        `Refused` is raised. Unless all has been answered, the messages of this round trip are heeded here, too.
        """
        bus = self._gate.bus
        echo = bus.begin()
        try:
            replies = await self._gate.send(*before, *(call(channel=bus.channel, echo=echo) for call in news))
        except BaseException:
            bus.disown(echo)
            raise
        for reply in replies:
            if isinstance(reply, Refused):
                bus.disown(echo)
                self._events.redis_refused(reply)
                raise reply
        return replies, echo


def _shortest(marks: Marks) -> float:
    """For how many seconds longer one of the markers is quarantined; 0 if none is."""
    return min(marks.quarantined.values(), default=0) / 1000
