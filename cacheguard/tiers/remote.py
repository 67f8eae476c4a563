"""L2: entries and leases in Redis, one string per key."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import repeat
from typing import Any

from ..codec import Codec
from ..delivery.gate import Gate, is_foreign
from ..delivery.outbox import Invalidation
from ..delivery.parts import MOST_AT_ONCE, parts
from ..errors import CodecError, Refused, Unreachable
from ..events import Events
from ..ports import Call, Reply
from ..protocol import calls
from ..protocol.entry import (
    CUT_OFF,
    Bypass,
    CutOff,
    Failed,
    Fill,
    Filled,
    Found,
    Granted,
    LeaseOutcome,
    Stored,
    Usable,
    Wait,
)
from ..protocol.names import Scope, epochs_of
from ..protocol.plain import around
from .by_hand import ByHand
from .markers import Markers, Marks
from .near import Near
from .opening import Opening
from .packing import Packing

FAILURES_COUNTED_MS = 10_000  # after their back-off; a later one is the first in a row again
RETRIES = 3  # while a namespace is invalidated again and again


class Remote:
    """`Entries` in one place: a server, or a cluster of them.

    Each method is one round trip, unless it says otherwise. Where Redis cannot be asked, it raises `Unreachable`; what
    cannot be read is a miss and counted.
    """

    gate: Gate

    abreast = 1

    def __init__(self, gate: Gate, packing: Packing, events: Events) -> None:
        self.gate, self._packing, self._events = gate, packing, events
        self.markers: Markers = Markers(gate, events)
        self._opening = Opening(packing, self.markers, gate, events)
        self._near = Near(gate, self._opening, events)
        self.by_hand: ByHand = ByHand(gate, packing, self._opening, self.markers, events)

    # Places

    def of(self, _key: str) -> Remote:
        """The place in which *key* lives: markers have a nonce in each."""
        return self

    def groups(self, keys: Iterable[str]) -> list[list[str]]:
        """*keys*, put together by the places in which they live."""
        return [list(keys)]

    async def elsewhere(self, items: Sequence[Invalidation], _stored_in: Remote) -> None:
        """Invalidate what other places may hold of entries that were changed in one of them: there are none."""

    def queue(self, items: Sequence[Invalidation]) -> None:
        """Invalidate *items* before anything else is asked. No round trip."""
        self.gate.queue(items)

    # Reading

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
        """The entry of *key*; one round trip more if it has tags that could not be known.

        A value for which *usable* returns False is treated as if it had been invalidated. With *near*, an entry may be
        read from a replica; what the replica does not have costs one round trip more.
        """
        markers = self.markers.of(key, scope, tags)
        if near and self.gate.replicas is not None:
            (found,) = await self._near.read([key], codec, scope, [tags], markers, usable)
            if found is not None:
                return found
        replies = await self.gate.read_entry(key, markers)
        if usable is None and not tags:
            raws, time = replies
            beside = around(raws[1:], time)
            hit = None if beside is None else self._packing.plain_ones(raws[:1], beside, codec)[0]
            if hit is not None and not self.gate.bus.is_dirty(key, markers):
                return hit
        return await self._judged(replies, key, codec, scope, tags, markers=markers, usable=usable)

    async def _judged(
        self,
        replies: list[Reply],
        key: str,
        codec: Codec | None,
        scope: Scope,
        tags: tuple[str, ...],
        *,
        markers: tuple[str, ...],
        usable: Usable | None,
    ) -> Found | None:
        """What the *replies* to `calls.read` show; as `calls.were_read` and `Opening.found` do for several keys."""
        raws, time = replies
        raw = raws[0]
        if raw is None:
            return None
        if isinstance(raw, Refused):
            return self._opening.strange(key, raw)
        held = calls.held(raw, calls.clock(time, key))
        if held is None:
            return None
        found = self._opening.entry(key, held, codec)
        stored = found.stored
        if stored is None:
            return found
        # What `Opening.standing` says, at once, where everything that matters was asked for.
        nonces = tuple(map(calls.nonce, raws[1:]))
        if stored.tags != tags or stored.nonces != nonces or self.gate.bus.is_dirty(key, markers):
            seen = dict(zip(markers, nonces, strict=True))
            found = await self._opening.standing(key, found, scope, seen, held.envelope)
        return found if usable is None else self._opening.wanted(found, usable, held.envelope)

    async def look(self, key: str, scope: Scope) -> Found | None:
        """What is stored under *key*, without its value."""
        markers = self.markers.of(key, scope, ())
        (held,), seen = calls.were_read([key], markers, await self.gate.ask(*calls.read(key, markers)))
        found = self._opening.found(key, held, None, outline=True)
        if found is None or found.stored is None or not isinstance(held, calls.Held):
            return found
        return await self._opening.standing(key, found, scope, seen, held.envelope)

    async def scan(
        self, scope: Scope, at: int, cursor: str, pattern: str, count: int
    ) -> tuple[list[str], tuple[int, str] | None]:
        """One page of the Redis keys of fresh entries, and where to go on. Two round trips; three for unknown tags."""
        names, following = await self.gate.scan(at, cursor, pattern, count)
        names = list(dict.fromkeys(names))
        if not names:
            return names, following
        markers = scope.markers(())
        replies = await self.gate.send(*map(calls.head, names), *calls.nonces(markers), calls.TIME)
        seen = calls.were_nonces(markers, replies[:-1])
        heads = {
            name: raw if isinstance(raw, Refused) else calls.held(raw or None, calls.clock(replies[-1], name))
            for name, raw in zip(names, replies, strict=False)
        }
        return await self._opening.fresh(scope, heads, seen), following

    async def read_many(
        self,
        keys: Sequence[str],
        codec: Codec | None,
        scope: Scope,
        tags: Sequence[tuple[str, ...]],
        *,
        near: bool = False,
    ) -> Sequence[Found | CutOff | None]:
        """The entries of *keys*, in one round trip for each `MOST_AT_ONCE`; one more for tags that were not known.

        From replicas, as in `read`: those that are not found there cost one more.
        """
        tags = tags or [()] * len(keys)
        if len(keys) > MOST_AT_ONCE:
            every: list[Found | CutOff | None] = []
            for some, of_some in zip(parts(keys), parts(tags), strict=True):
                every += await self.read_many(some, codec, scope, of_some, near=near)
            return every
        if not near or self.gate.replicas is None:
            return await self._read_each(keys, codec, scope, tags)
        markers = tuple(dict.fromkeys(marker for each in tags for marker in scope.markers(each)))
        found = await self._near.read(keys, codec, scope, tags, markers)
        left = [at for at, each in enumerate(found) if each is None]
        if left:
            more = await self._read_each([keys[at] for at in left], codec, scope, [tags[at] for at in left])
            for at, each in zip(left, more, strict=True):
                found[at] = each
        return found

    async def _read_each(
        self, keys: Sequence[str], codec: Codec | None, scope: Scope, tags: Sequence[tuple[str, ...]]
    ) -> list[Found | None]:
        """`read_many`, from the master."""
        if self.markers.has_hints or any(tags):
            per_key = list(map(self.markers.of, keys, repeat(scope), tags))
            markers = tuple(dict.fromkeys(marker for each in per_key for marker in each))
        else:
            per_key, markers = [scope.epochs] * len(keys), scope.epochs
        replies = await self.gate.ask(*calls.read_many(keys, markers))
        found = self._plain_ones(keys, codec, scope, markers, replies)
        left = [at for at, each in enumerate(found) if each is None and replies[0][at] is not None]
        if left:
            raws = [replies[0][at] for at in left] + replies[0][len(keys) :]
            some = [keys[at] for at in left]
            more = await self._judge_each([raws, replies[1]], some, codec, scope, [per_key[at] for at in left], markers)
            for at, each in zip(left, more, strict=True):
                found[at] = each
        return found

    def _plain_ones(
        self, keys: Sequence[str], codec: Codec | None, scope: Scope, markers: tuple[str, ...], replies: list[Reply]
    ) -> list[Found | None]:
        """The plain hits among *replies*, each in its place."""
        raws, time = replies
        count = len(keys)
        beside = around(raws[count:], time) if markers == scope.epochs else None
        if beside is None or self.gate.bus.has_dirty:
            return [None] * count
        return self._packing.plain_ones(raws[:count], beside, codec)

    async def _judge_each(
        self,
        replies: list[Reply],
        keys: Sequence[str],
        codec: Codec | None,
        scope: Scope,
        per_key: Sequence[tuple[str, ...]],
        markers: tuple[str, ...],
    ) -> list[Found | None]:
        """What the *replies* to `calls.read_many` show."""
        opening = self._opening
        held, seen = calls.were_read(keys, markers, replies)
        there = [opening.found(key, each, codec) for key, each in zip(keys, held, strict=True)]
        # All tags that could not be known at once, so that they cost one round trip and not one each.
        await self.markers.ask_for_more(scope, [each.stored for each in there if each and each.stored], seen)
        for key, asked, each in zip(keys, per_key, there, strict=True):
            if each and each.stored and each.stored.tags and not set(scope.markers(each.stored.tags)).issubset(asked):
                self.markers.learn(key, each.stored.tags)
        return [
            each
            if each is None or each.stored is None or not isinstance(its, calls.Held)
            else await opening.standing(key, each, scope, seen, its.envelope)
            for key, each, its in zip(keys, there, held, strict=True)
        ]

    # Leasing

    async def lease(
        self,
        key: str,
        codec: Codec | None,
        scope: Scope,
        tags: tuple[str, ...],
        *,
        usable: Usable | None = None,
        token: str,
        floor_ms: int,
        awaited: str,
        unusable: Any,
        keep_ms: int,
    ) -> LeaseOutcome:
        """The right to fill *key*, or the reason why not."""
        markers = self.markers.of(key, scope, tags)
        lease = calls.lease(key, token=token, floor_ms=floor_ms, awaited=awaited, unusable=unusable)
        reply, *said = await self._send_leases({key: token}, lease, *self.markers.marks(markers, keep_ms))
        return await self._leased(key, reply, codec, scope, self.markers.seen(markers, said), usable=usable)

    async def _send_leases(self, tokens: dict[str, str], *asked: Call) -> list[Reply]:
        try:
            return await self.gate.send(*asked)
        except Unreachable:
            self.gate.orphaned(tokens)
            raise

    async def lease_many(
        self,
        tokens: dict[str, str],
        codec: Codec | None,
        scope: Scope,
        tags: Mapping[str, tuple[str, ...]],
        *,
        unusable: Mapping[str, Any],
        keep_ms: int,
    ) -> Mapping[str, LeaseOutcome | CutOff]:
        """Leases for several keys, in one round trip for each `MOST_AT_ONCE` of them."""
        if len(tokens) > MOST_AT_ONCE:
            outcomes: dict[str, LeaseOutcome | CutOff] = {}
            for some in parts(tokens):
                own = {key: tokens[key] for key in some}
                try:
                    outcomes |= await self.lease_many(own, codec, scope, tags, unusable=unusable, keep_ms=keep_ms)
                except Unreachable:  # the others are held, and known to be
                    outcomes |= dict.fromkeys(some, CUT_OFF)
            return outcomes
        markers = tuple(dict.fromkeys(m for key in tokens for m in self.markers.of(key, scope, tags.get(key, ()))))
        leases = [calls.lease(key, token=token, unusable=unusable.get(key, "")) for key, token in tokens.items()]
        replies = await self._send_leases(tokens, *leases, *self.markers.marks(markers, keep_ms))
        marks = self.markers.seen(markers, replies[len(leases) :])
        return {
            key: await self._leased(key, reply, codec, scope, marks)
            for key, reply in zip(tokens, replies, strict=False)
        }

    async def _leased(
        self,
        key: str,
        reply: Reply,
        codec: Codec | None,
        scope: Scope,
        marks: Marks,
        *,
        usable: Usable | None = None,
    ) -> LeaseOutcome:
        if isinstance(reply, Refused):
            if is_foreign(reply):
                self._opening.strange(key, reply)
                return Bypass()
            self._events.redis_refused(reply)
            raise reply
        leased = calls.leased(reply)
        if leased.word == b"BYPASS":
            return Bypass()
        old: Found | None = None
        if leased.held is not None:
            opening, envelope = self._opening, leased.held.envelope
            found = opening.entry(key, leased.held, codec)
            # What is asked for to judge the old entry says nothing of quarantines: it does not count for a fill.
            seen = dict(marks.nonces)
            found = opening.wanted(await opening.standing(key, found, scope, seen, envelope), usable, envelope)
            if leased.word == b"HIT":
                return found
            old = None if found.stored is None else found
        if leased.word == b"WAIT":
            return Wait(leased.holder, old)
        if leased.word == b"FAILED":
            error = self._opening.entry(key, calls.Held(leased.died_of, 0.0), None).stored
            return Failed(error, leased.failures, leased.pause_ms / 1000, old)
        quarantines = {marker: leased.at_ms + left for marker, left in marks.quarantined.items()}
        failed = leased.failures, leased.pause_ms
        return Granted(old, marks.nonces, leased.at_ms, quarantines, marks.last, *failed)

    # Filling

    def learn(self, key: str, tags: tuple[str, ...]) -> None:
        """Remember which tags the loader of *key* gives it, so that they are asked for with the entry."""
        self.markers.learn(key, tags)

    def pack(self, key: str, stored: Stored, codec: Codec | None) -> Any:
        """The bytes of an entry; `CodecError` if there are none."""
        return self._packing.pack(key, stored, codec)

    async def fill_many(self, fills: Sequence[Fill]) -> list[Filled]:
        """Several fills, in one round trip for each `MOST_AT_ONCE` of them.

        The markers are asked once more, behind the fills: nobody who comes to the flight now may get what was loaded
        before an invalidation of its tags, and only this tells.
        """
        if len(fills) > MOST_AT_ONCE:
            return [each for some in parts(fills) for each in await self._fill_part(some)]
        markers = tuple(dict.fromkeys(marker for fill in fills for marker in fill.markers))
        call = partial(calls.fill, channel=self.gate.bus.channel)
        replies = await self.gate.send(*map(call, fills), *calls.nonces(markers))
        seen = calls.were_nonces(markers, replies)
        outcomes: list[Filled] = []
        for fill, reply in zip(fills, replies, strict=False):
            if isinstance(reply, Refused):
                self._events.redis_refused(reply)
                raise reply
            filled = calls.filled(reply)
            stands = filled is Filled.OLD or tuple(seen[marker] for marker in fill.markers) == fill.nonces
            outcomes.append(filled if stands else Filled.REFUSED)
        return outcomes

    async def _fill_part(self, fills: Sequence[Fill]) -> list[Filled]:
        """Some of the fills of a batch; `Filled.FAILED` if these were not taken, for the others may have been."""
        try:
            return await self.fill_many(fills)
        except Unreachable as error:
            tokens = {fill.key: fill.token for fill in fills}
            if isinstance(error, Refused):  # a full server: nobody shall wait for leases that nothing comes of
                await self.release(tokens)
            else:
                self.gate.orphaned(tokens)
            return [Filled.FAILED] * len(fills)

    async def release(
        self,
        tokens: dict[str, str],
        failure: Stored | None = None,
        marks: Mapping[str, bytes] | None = None,
        *,
        failures: int = 0,
        kept_ms: int = 0,
    ) -> bool:
        """Give leases back, with a word on what the load died of.

        True if all of them were still held, and *marks* still say what they said: nothing was invalidated meanwhile.
        With *marks*, all of them must live in the same place.
        """
        release = partial(
            calls.release,
            failures=failures,
            pause_ms=kept_ms,
            kept_ms=kept_ms + FAILURES_COUNTED_MS,
            channel=self.gate.bus.channel,
        )
        released = [release(key, token=token, died_of=self._word(key, failure)) for key, token in tokens.items()]
        marks = marks or {}
        replies = await self.gate.send(*released, *calls.nonces(tuple(marks)))
        left, said = replies[: len(released)], calls.were_nonces(tuple(marks), replies)
        return all(reply == 1 for reply in left) and said == marks

    def _word(self, key: str, failure: Stored | None) -> Any:
        try:
            return b"" if failure is None else self._packing.pack(key, failure, None)
        except CodecError:  # then those who wait elsewhere find out for themselves
            return b""

    async def renew(self, tokens: dict[str, str]) -> None:
        """Keep leases for another while; those that are gone stay gone."""
        await self.gate.send(*(calls.renew(key, token=token) for key, token in tokens.items()))

    # Writing

    async def invalidate(self, items: Sequence[Invalidation]) -> bool:
        """Invalidate entries, tags, namespaces.

        False if Redis did not acknowledge it; it is pending then, and delivered before anything else is asked.
        """
        epochs = tuple(dict.fromkeys(epoch for item in items if item.version for epoch in epochs_of(item.key)))
        if not epochs:
            done, _ = await self.gate.deliver(items)
            return done
        # A version counts under the namespaces as they are now. What they are is known from before, as a rule; it is
        # asked for with the invalidation, and if it was another, the invalidation is sent once more.
        nonces = await self._nonces_of(epochs)
        for _ in range(RETRIES):
            marks = self.markers.marks(epochs, calls.FLOOR_MS)
            done, replies = await self.gate.deliver([_under(item, nonces) for item in items], first=marks)
            said = self.markers.seen(epochs, replies[: len(epochs)]).nonces if replies else nonces
            if said == nonces:
                return done
            nonces = said
        done, _ = await self.gate.deliver(items)
        return done

    async def _nonces_of(self, epochs: tuple[str, ...]) -> dict[str, Any]:
        """What the namespaces are called now, as far as that is known or can be asked."""
        known = self.markers.last_seen(epochs)
        if known is None:
            try:
                known = await self.markers.ask(epochs, calls.FLOOR_MS)
            except Unreachable:
                return {}
        return dict(zip(epochs, known, strict=True))

    async def remove(self, keys: Sequence[str], scope: Scope) -> tuple[bool, int]:
        """Invalidate entries; whether Redis acknowledged it, and how many of them it held fresh.

        0 if it goes away before it has said what their tags say now: then nobody knows.
        """
        channel = self.gate.bus.channel
        markers = tuple(dict.fromkeys(marker for key in keys for marker in self.markers.of(key, scope, ())))

        def calls_of(echo: str) -> list[list[Call]]:
            return [[calls.invalidate(key, channel=channel, echo=echo, head=calls.HEAD_BYTES)] for key in keys]

        items = [Invalidation(key) for key in keys]
        done, replies = await self.gate.deliver(items, calls_of, calls.nonces(markers))
        if not replies:
            return done, 0
        first = 1 if markers else 0
        seen = calls.were_nonces(markers, replies[:first])
        heads = {
            key: reply if isinstance(reply, Refused) else calls.was_removed(reply)
            for key, reply in zip(keys, replies[first:], strict=True)
        }
        try:
            return done, len(await self._opening.fresh(scope, heads, seen))
        except Unreachable:
            return done, 0

    async def expire(self, keys: Sequence[str]) -> bool:
        """Make entries stale; false if Redis did not acknowledge it, and they will be invalidated instead."""
        channel = self.gate.bus.channel

        def calls_of(echo: str) -> list[list[Call]]:
            return [[calls.expire(key, channel=channel, echo=echo)] for key in keys]

        done, _ = await self.gate.deliver([Invalidation(key) for key in keys], calls_of)
        return done


def _under(item: Invalidation, nonces: Mapping[str, Any]) -> Invalidation:
    """*item*, whose version counts under these *nonces* of its namespaces; under all if they are not known."""
    if not item.version:
        return item
    names = [nonces.get(epoch) for epoch in epochs_of(item.key)]
    return item if None in names else replace(item, under=b"".join(map(bytes, names)).hex())  # type: ignore[arg-type]
