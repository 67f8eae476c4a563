"""L2: entries and leases in Redis, one hash per key."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from operator import eq
from typing import Any, cast

from ..codec import Codec
from ..delivery.line import Line, is_foreign
from ..delivery.outbox import Invalidation
from ..errors import CodecError, Refused, Unreachable
from ..events import Events
from ..ports import Call, Reply
from ..protocol import calls
from ..protocol.entry import Bypass, CutOff, Failed, Fill, Filled, Found, Granted, Stored, Usable, Wait
from ..protocol.envelope import Kind
from ..protocol.names import Scope
from .packing import Packing

MOST_HINTS = 10_000


class Remote:
    """The calls of the cache protocol. Each method is one round trip, unless it says otherwise.

    Whatever cannot be asked raises `Unreachable`; whatever cannot be read is a miss and counted.

    This is one place in which entries live; `Ring` has the same methods for several of them.
    """

    abreast = 1  # groups of keys to be asked for at the same time

    def __init__(self, line: Line, packing: Packing, events: Events, nonce: Callable[[], str]) -> None:
        self.line, self._packing, self._events = line, packing, events
        self._nonce = nonce
        self._hints: OrderedDict[str, tuple[str, ...]] = OrderedDict()  # by key, tags that its loader gave it
        self._known: OrderedDict[str, bytes] = (
            OrderedDict()
        )  # what markers said last; for writers by hand, who check it

    # Places

    def of(self, _key: str) -> Remote:
        """The place in which *key* lives: markers have a nonce in each."""
        return self

    def groups(self, keys: Iterable[str]) -> list[list[str]]:
        """*keys*, put together by the places in which they live."""
        return [list(keys)]

    async def elsewhere(self, items: Sequence[Invalidation], _stored_in: Remote) -> None:
        """Invalidate what other places may hold of entries that were changed in one of them: there are none."""

    def owe(self, items: Sequence[Invalidation]) -> None:
        """Invalidate *items* before anything else is asked. No round trip."""
        self.line.owe(items)

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

        A value for which *usable* says no is void, as if it had been invalidated. What may be as old as a copy in the
        process may be (*near*) is read from a replica, where there is one; what that does not have costs one more.
        """
        markers = self._markers(key, scope, tags)
        if near and self.line.replicas is not None:
            (found,) = await self._read_near([key], codec, scope, [tags], markers, usable)
            if found is not None:
                return found
        fields, pttl, *nonces = await self.line.send(*calls.read(key, markers))
        # As `_found` does, but here a hit passes.
        if type(fields) is not list:
            return self._strange(key, fields)
        held = calls.held(fields[0], fields[1], pttl)
        if held is None:
            return None
        found = self._entry(key, held, codec)
        stored = found.stored
        if stored is None:
            return found
        # What `_standing` says, at once, where everything that matters was asked for.
        if stored.tags != tags or stored.nonces != tuple(nonces) or self.line.bus.is_dirty(key, markers):
            found = await self._standing(key, found, scope, dict(zip(markers, nonces, strict=True)), fields[0])
        return found if usable is None else self._wanted(found, usable, fields[0])

    def _wanted(self, found: Found, usable: Usable | None, envelope: Any) -> Found:
        """*found*, which stands, unless the caller has no use for its value."""
        stored = found.stored
        if usable is None or stored is None or stored.kind is not Kind.VALUE or usable(stored.value):
            return found
        return Found(None, -1.0, self._packing.stamp(envelope))

    async def look(self, key: str, scope: Scope) -> Found | None:
        """What is stored under *key*, without its value."""
        markers = self._markers(key, scope, ())
        fields, pttl, *nonces = await self.line.send(*calls.read(key, markers))
        found = self._found(key, fields, pttl, None, outline=True)
        if found is None or found.stored is None:
            return found
        return await self._standing(key, found, scope, dict(zip(markers, nonces, strict=True)), fields[0])

    async def read_exactly(self, key: str, codec: Codec | None, scope: Scope) -> tuple[Found | None, Any]:
        """The entry of *key*, and what `replace` knows it by."""
        markers = self._markers(key, scope, ())
        fields, pttl, *nonces = await self.line.send(*calls.read(key, markers))
        found = self._found(key, fields, pttl, codec)
        if found is None or found.stored is None:
            return None, ""
        seen = dict(zip(markers, nonces, strict=True))
        return await self._standing(key, found, scope, seen, fields[0]), self._packing.stamp(fields[0])

    async def scan(
        self, scope: Scope, at: int, cursor: str, pattern: str, count: int
    ) -> tuple[list[str], tuple[int, str] | None]:
        """One page of the Redis keys of fresh entries, and where to go on. Two round trips; three for unknown tags."""
        names, following = await self.line.scan(at, cursor, pattern, count)
        names = list(dict.fromkeys(names))
        if not names:
            return names, following
        markers = scope.markers(())
        replies = await self.line.send(*map(calls.head, names), *calls.nonces(markers))
        seen = dict(zip(markers, replies[len(names) :], strict=True))
        return await self._glanced(scope, dict(zip(names, replies, strict=False)), seen), following

    async def _glanced(self, scope: Scope, heads: Mapping[str, Reply], seen: dict[str, Any]) -> list[str]:
        """Which entries are fresh and stand, by what *heads* say of them."""
        stored: dict[str, Stored] = {}
        for key, head in heads.items():
            there = None if isinstance(head, Refused) else calls.held(*head)
            if there is not None and (there[1] or 0) > 0:
                with suppress(CodecError):
                    stored[key] = self._packing.glance(key, there[0])
        await self._ask_for_more(scope, list(stored.values()), seen)
        return [
            key
            for key, each in stored.items()
            if tuple(map(seen.get, markers := scope.markers(each.tags))) == each.nonces
            and not self.line.bus.is_dirty(key, markers)
        ]

    async def _read_near(
        self,
        keys: Sequence[str],
        codec: Codec | None,
        scope: Scope,
        tags: Sequence[tuple[str, ...]],
        markers: Sequence[str],
        usable: Usable | None = None,
    ) -> list[Found | None]:
        """What replicas have for *keys*: entries that are fresh beyond doubt, None for everything else."""
        replies = await self.line.ask_replicas(*calls.read_near(keys, markers))
        if replies is None:
            return [None] * len(keys)
        pairs, seen = calls.were_read(keys, markers, replies)
        answers: list[Found | None] = []
        for at, key in enumerate(keys):
            names = scope.markers(tags[at])
            held = calls.was_read_near(*pairs[at])
            found = None if held is None else self._near(key, held, codec, tags[at], tuple(map(seen.get, names)))
            if found is not None and (
                self.line.bus.is_dirty(key, names) or self._wanted(found, usable, b"").stored is None
            ):
                found = None
            self._events.replica_hits += found is not None
            answers.append(found)
        return answers

    def _near(
        self, key: str, held: calls.Held, codec: Codec | None, tags: tuple[str, ...], nonces: tuple[Any, ...]
    ) -> Found | None:
        """An entry as a replica has it, if there is no more to be asked about it."""
        found = self._entry(key, held, codec)
        stored = found.stored
        if stored is None or found.fresh_left <= 0 or stored.tags != tags or stored.nonces != nonces:
            return None
        return found

    async def read_many(
        self,
        keys: Sequence[str],
        codec: Codec | None,
        scope: Scope,
        tags: Sequence[tuple[str, ...]],
        *,
        near: bool = False,
    ) -> Sequence[Found | CutOff | None]:
        """The entries of *keys*, in one round trip; one more for tags that could not be known.

        From replicas, as in `read`: those that are not found there cost one more.
        """
        if near and self.line.replicas is not None:
            every = [tags[at] if tags else () for at in range(len(keys))]
            markers = tuple(dict.fromkeys(marker for each in every for marker in scope.markers(each)))
            found: list[Found | CutOff | None] = [*await self._read_near(keys, codec, scope, every, markers)]
            left = [at for at, each in enumerate(found) if each is None]
            if left:
                more = await self.read_many([keys[at] for at in left], codec, scope, [every[at] for at in left])
                for at, each in zip(left, more, strict=True):
                    found[at] = each
            return found
        per_key = [self._markers(key, scope, tags[at] if tags else ()) for at, key in enumerate(keys)]
        markers = tuple(dict.fromkeys(marker for each in per_key for marker in each))
        replies = await self.line.send(*calls.read_many(keys, markers))
        pairs, seen = calls.were_read(keys, markers, replies)
        there = [self._found(key, *pair, codec) for key, pair in zip(keys, pairs, strict=True)]
        await self._ask_for_more(scope, [each.stored for each in there if each is not None and each.stored], seen)
        return [
            await self._standing(key, each, scope, seen, fields[0])
            if each is not None and each.stored is not None
            else each
            for key, each, (fields, _) in zip(keys, there, pairs, strict=True)
        ]

    def _markers(self, key: str, scope: Scope, tags: tuple[str, ...]) -> tuple[str, ...]:
        """The markers to ask for: those that are known to matter, and those that mattered last time."""
        hints = self._hints.get(key) if self._hints else None
        return scope.markers(tags) if hints is None else scope.markers(tuple(dict.fromkeys((*tags, *hints))))

    async def _standing(self, key: str, found: Found, scope: Scope, seen: dict[str, Any], envelope: Any) -> Found:
        """*found* if nothing that its entry depends on was invalidated since its load began, else what is void."""
        stored = found.stored
        if stored is None:
            return found
        markers = scope.markers(stored.tags)
        if stored.tags and not all(marker in seen for marker in markers):
            await self._ask_for_more(scope, [stored], seen)
            self._hint(key, stored.tags)
        nonces = stored.nonces
        stands = len(nonces) == len(markers) and all(map(eq, map(seen.get, markers), nonces))
        if stands and not self.line.bus.is_dirty(key, markers):
            return found
        return Found(None, -1.0, self._packing.stamp(envelope))

    async def _ask_for_more(self, scope: Scope, stored: Sequence[Stored], seen: dict[str, Any]) -> None:
        more = tuple(
            dict.fromkeys(
                marker for each in stored if each.tags for marker in scope.markers(each.tags) if marker not in seen
            )
        )
        if more:
            seen.update(zip(more, await self.line.send(*calls.nonces(more)), strict=True))

    def _hint(self, key: str, tags: tuple[str, ...]) -> None:
        self._hints[key] = tags
        while len(self._hints) > MOST_HINTS:
            _let_go_of_the_oldest(self._hints)

    def _found(
        self, key: str, fields: Reply, pttl: Reply, codec: Codec | None, *, outline: bool = False
    ) -> Found | None:
        if type(fields) is not list:
            return self._strange(key, fields)
        held = calls.held(fields[0], fields[1], pttl)
        return None if held is None else self._entry(key, held, codec, outline=outline)

    def _strange(self, key: str, reply: Reply) -> Found:
        """Something of another type lives under our key: a miss that nobody can fill."""
        if not isinstance(reply, Refused):
            reply = Refused(f"unexpected reply {type(reply).__name__}")
        if not is_foreign(reply):
            self._events.redis_refused(reply)
            raise reply
        self._events.undecodable += 1
        self._events.once(f"foreign {key}", "%s holds something that is no entry of ours; it is left alone", key)
        return Found(None, -1.0)

    def _entry(self, key: str, held: calls.Held, codec: Codec | None, *, outline: bool = False) -> Found:
        envelope, left = held
        try:
            if left is not None:
                if outline:
                    return Found(self._packing.outline(key, envelope), left)
                return Found(self._packing.unpack(key, envelope, codec), left)
        except (CodecError, TypeError, ValueError, OverflowError):
            pass
        self._events.undecodable += 1
        return Found(None, -1.0, self._packing.stamp(envelope))

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
        void: Any,
        keep_ms: int,
    ) -> Found | Granted | Wait | Bypass | Failed:
        """The right to fill *key*, or the reason why not."""
        markers = self._markers(key, scope, tags)
        lease = calls.lease(key, token=token, floor_ms=floor_ms, awaited=awaited, void=void)
        *nonces, reply = await self._send_leases({key: token}, *self._marks(markers, keep_ms), lease)
        seen, settles = self._seen(markers, nonces), _settles(markers, nonces)
        return await self._leased(key, reply, codec, scope, seen, settles=settles, usable=usable)

    def _marks(self, markers: Sequence[str], keep_ms: int) -> list[Call]:
        return [calls.mark(marker, nonce=self._nonce()[:16].encode(), keep_ms=keep_ms) for marker in markers]

    def _seen(self, markers: Sequence[str], replies: Sequence[Reply]) -> dict[str, Any]:
        """What the markers said; nothing where Redis refused to tell."""
        seen: dict[str, Any] = {}
        for marker, reply in zip(markers, replies, strict=True):
            if isinstance(reply, Refused):
                self._events.redis_refused(reply)
                seen[marker] = None
            else:
                seen[marker] = self._known[marker] = calls.marked(reply).nonce
        while len(self._known) > MOST_HINTS:
            _let_go_of_the_oldest(self._known)
        return seen

    async def _send_leases(self, tokens: dict[str, str], *asked: Call) -> list[Reply]:
        try:
            return await self.line.send(*asked)
        except Unreachable:
            self.line.orphaned(tokens)
            raise

    async def lease_many(
        self,
        tokens: dict[str, str],
        codec: Codec | None,
        scope: Scope,
        tags: Mapping[str, tuple[str, ...]],
        *,
        voids: Mapping[str, Any],
        keep_ms: int,
    ) -> Mapping[str, Found | Granted | Wait | Bypass | Failed | CutOff]:
        """Leases for several keys, in one round trip."""
        markers = tuple(dict.fromkeys(m for key in tokens for m in self._markers(key, scope, tags.get(key, ()))))
        leases = [calls.lease(key, token=token, void=voids.get(key, "")) for key, token in tokens.items()]
        replies = await self._send_leases(tokens, *self._marks(markers, keep_ms), *leases)
        seen, settles = self._seen(markers, replies[: len(markers)]), _settles(markers, replies)
        return {
            key: await self._leased(key, reply, codec, scope, seen, settles=settles)
            for key, reply in zip(tokens, replies[len(markers) :], strict=True)
        }

    async def _leased(
        self,
        key: str,
        reply: Reply,
        codec: Codec | None,
        scope: Scope,
        seen: dict[str, Any],
        *,
        settles: Mapping[str, float],
        usable: Usable | None = None,
    ) -> Found | Granted | Wait | Bypass | Failed:
        if isinstance(reply, Refused):
            if is_foreign(reply):
                return Bypass()
            self._events.redis_refused(reply)
            raise reply
        leased = calls.leased(reply)
        if leased.word == b"BYPASS":
            return Bypass()
        if leased.word == b"FAILED":
            return Failed(self._entry(key, (leased.died_of, 0.0), None).stored)
        old: Found | None = None
        if leased.held is not None:
            envelope = leased.held[0]
            found = self._entry(key, leased.held, codec)
            found = self._wanted(await self._standing(key, found, scope, seen, envelope), usable, envelope)
            if leased.word == b"HIT":
                return found
            old = None if found.stored is None else found
        if leased.word == b"WAIT":
            return Wait(leased.holder, old)
        return Granted(old, seen, leased.at_ms, settles)

    async def claim(self, scope: Scope, tags: Sequence[str], at_ms: int, keep_ms: int) -> tuple[bytes, ...] | None:
        """The nonces of *tags* that a load has given its entry at its end; None if one may be younger than the load.

        A tag's nonce counts if it is older than the load, or if no tag of the namespace was invalidated since the load
        began at *at_ms* (the server's time).
        """
        markers = [scope.tag(tag) for tag in tags]
        asked = [calls.tagged_at(scope.epochs[-1])] if scope.epochs else []
        replies = await self.line.send(*self._marks(markers, keep_ms), *asked)
        nonces, seen = replies[: len(markers)], self._seen(markers, replies[: len(markers)])
        last = replies[-1] if asked else None
        if None in seen.values() or isinstance(last, Refused) or _settles(markers, replies):
            return None
        if (not asked or int(last or 0) >= at_ms) and any(calls.marked(reply).since_ms >= at_ms for reply in nonces):
            return None
        return tuple(seen[marker] for marker in markers)

    # Filling

    def pack(self, key: str, stored: Stored, codec: Codec | None) -> Any:
        """The bytes of an entry; `CodecError` if there are none."""
        return self._packing.pack(key, stored, codec)

    def learn(self, key: str, tags: tuple[str, ...]) -> None:
        """Remember which tags the loader of *key* gives it, so that they are asked for with the entry."""
        self._hint(key, tags)

    async def fill(self, fill: Fill) -> Filled:
        """Store what was loaded under a lease."""
        return (await self.fill_many([fill]))[0]

    async def fill_many(self, fills: Sequence[Fill]) -> list[Filled]:
        """Several fills in one round trip.

        The markers are asked once more, behind the fills: nobody who comes to the flight now may get what was loaded
        before an invalidation of its tags, and only this tells.
        """
        markers = tuple(dict.fromkeys(marker for fill in fills for marker in fill.markers))
        replies = await self.line.send(*map(calls.fill, fills), *calls.nonces(markers))
        seen = dict(zip(markers, replies[len(fills) :], strict=True))
        outcomes: list[Filled] = []
        for fill, reply in zip(fills, replies, strict=False):
            if isinstance(reply, Refused):
                self._events.redis_refused(reply)
                raise reply
            filled = calls.filled(reply)
            stands = filled is Filled.OLD or tuple(seen[marker] for marker in fill.markers) == fill.nonces
            outcomes.append(filled if stands else Filled.REFUSED)
        return outcomes

    async def release(
        self,
        tokens: dict[str, str],
        failure: Stored | None = None,
        marks: Mapping[str, bytes] | None = None,
    ) -> bool:
        """Give leases back, with a word on what the load died of.

        True if all of them were still held, and *marks* still say what they said: nothing was invalidated meanwhile.
        With *marks*, all of them must live in the same place.
        """
        released = [calls.release(key, token=token, died_of=self._word(key, failure)) for key, token in tokens.items()]
        marks = marks or {}
        replies = await self.line.send(*released, *calls.nonces(tuple(marks)))
        left, said = replies[: len(released)], replies[len(released) :]
        return all(reply == 1 for reply in left) and said == list(marks.values())

    def _word(self, key: str, failure: Stored | None) -> Any:
        try:
            return b"" if failure is None else self._packing.pack(key, failure, None)
        except CodecError:  # then those who wait elsewhere find out for themselves
            return b""

    async def renew(self, tokens: dict[str, str]) -> None:
        """Keep leases for another while; those that are gone stay gone."""
        await self.line.send(*(calls.renew(key, token=token) for key, token in tokens.items()))

    # Writing

    async def invalidate(self, items: Sequence[Invalidation]) -> bool:
        """Invalidate entries, tags, namespaces.

        False if Redis did not acknowledge it; it is owed then, and delivered before anything else is asked.
        """
        return await self.line.tell(items)

    async def remove(self, keys: Sequence[str], scope: Scope) -> tuple[bool, int]:
        """Invalidate entries; whether Redis acknowledged it, and how many of them it held fresh.

        0 if it goes away before it has said what their tags say now: then nobody knows.
        """
        channel = self.line.bus.channel
        markers = tuple(dict.fromkeys(marker for key in keys for marker in self._markers(key, scope, ())))

        def calls_of(echo: str) -> list[list[Call]]:
            return [[calls.invalidate(key, channel=channel, echo=echo, head=calls.HEAD_BYTES)] for key in keys]

        items = [Invalidation(key) for key in keys]
        done, replies = await self.line.told(items, calls_of, calls.nonces(markers))
        if not replies:
            return done, 0
        seen = dict(zip(markers, replies, strict=False))
        heads = dict(zip(keys, replies[len(markers) :], strict=True))
        try:
            return done, len(await self._glanced(scope, heads, seen))
        except Unreachable:
            return done, 0

    async def expire(self, keys: Sequence[str]) -> bool:
        """Make entries stale; false if Redis did not acknowledge it, and they will be invalidated instead."""
        channel = self.line.bus.channel

        def calls_of(echo: str) -> list[list[Call]]:
            return [[calls.expire(key, channel=channel, echo=echo)] for key in keys]

        return await self.line.tell([Invalidation(key) for key in keys], calls_of)

    async def nonces(self, markers: tuple[str, ...], keep_ms: int) -> tuple[bytes, ...]:
        """What *markers* say now, made where they say nothing; `Unreachable` if Redis refuses."""
        seen = self._seen(markers, await self.line.send(*self._marks(markers, keep_ms)))
        if None in seen.values():
            raise Refused("a marker of a namespace or a tag cannot be made")
        return tuple(seen[marker] for marker in markers)

    def nonces_of_late(self, markers: tuple[str, ...]) -> tuple[bytes, ...] | None:
        """What *markers* said when they were asked last; None if one of them is not known."""
        known = [self._known.get(marker) for marker in markers]
        return None if None in known else cast("tuple[bytes, ...]", tuple(known))

    async def store(
        self, items: Mapping[str, tuple[Any, float, float]], version: str, markers: tuple[str, ...], keep_ms: int
    ) -> tuple[bool, tuple[bytes, ...], float]:
        """Put values there by hand.

        Whether all were stored, what *markers* said just before, and for how many seconds longer one of them is
        quarantined.
        """
        bus = self.line.bus
        echo = bus.begin()
        stores = [
            calls.store(key, envelope, fresh=fresh, stale=stale, version=version, channel=bus.channel, echo=echo)
            for key, (envelope, fresh, stale) in items.items()
        ]
        try:
            replies = await self.line.send(*self._marks(markers, keep_ms), *stores)
        except BaseException:
            bus.void(echo)
            raise
        seen = self._seen(markers, replies[: len(markers)])
        for reply in replies:
            if isinstance(reply, Refused):
                bus.void(echo)
                self._events.redis_refused(reply)
                raise reply
        # If a failover loses this, what comes back may be older.
        self.line.acknowledged([Invalidation(key) for key in items])
        settles = min(_settles(markers, replies).values(), default=0.0)
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
        replies = await self._by_hand(key, call, self._marks(markers, keep_ms))
        seen = self._seen(markers, replies[: len(markers)])
        settles = min(_settles(markers, replies).values(), default=0.0)
        said = tuple(seen[marker] for marker in markers)
        done, there = calls.changed(replies[-1])
        useless = None
        if there is not None:
            found = self._entry(key, there, None, outline=True)
            found = await self._standing(key, found, scope, seen, there[0])
            useless = found.void if found.stored is None else None
        return done, useless, said, settles

    async def replace(
        self, key: str, envelope: Any, stamp: Any, *, codec: Codec | None, scope: Scope, token: str
    ) -> tuple[bool, Found | None, Any]:
        """Put a value in the place of the one that `read_exactly` has read, for the rest of its lifetime.

        Whether that was done; else what is there now, as from `read_exactly`.
        """
        markers = self._markers(key, scope, ())
        call = partial(calls.replace, key, envelope, token=token, stamp=stamp)
        replies = await self._by_hand(key, call, calls.nonces(markers))
        done, there = calls.changed(replies[-1])
        if there is None:
            return done, None, ""
        found = self._entry(key, there, codec)
        found = await self._standing(key, found, scope, dict(zip(markers, replies, strict=False)), there[0])
        return False, found, self._packing.stamp(there[0])

    def stamp(self, envelope: Any) -> Any:
        """What LEASE, ADD and REPLACE know an envelope by."""
        return self._packing.stamp(envelope)

    async def _by_hand(self, key: str, call: Callable[..., Call], before: list[Call]) -> list[Reply]:
        """Run a script that stores under *key* and tells the others; `Refused` is raised."""
        bus = self.line.bus
        echo = bus.begin()
        try:
            replies = await self.line.send(*before, call(channel=bus.channel, echo=echo))
        except BaseException:
            bus.void(echo)
            raise
        for reply in replies:
            if isinstance(reply, Refused):
                bus.void(echo)
                self._events.redis_refused(reply)
                raise reply
        if calls.changed(replies[-1]).done:  # if a failover loses this, what comes back may be older
            self.line.acknowledged([Invalidation(key)])
        else:
            bus.void(echo)
        return replies

    async def touch(self, key: str, fresh: float, stale: float, markers: tuple[str, ...], keep_ms: int) -> bool:
        """Give a fresh entry a new TTL; whether there was one."""
        bus = self.line.bus
        echo = bus.begin()
        call = calls.touch(key, fresh=fresh, stale=stale, channel=bus.channel, echo=echo)
        try:
            *_, reply = await self.line.send(*self._marks(markers, keep_ms), call)
        except BaseException:
            bus.void(echo)
            raise
        return bool(reply == 1)


def _settles(markers: Sequence[str], replies: Sequence[Reply]) -> dict[str, float]:
    """By marker, for how many seconds longer it is quarantined; those that are not are left out."""
    pairs = zip(markers, replies, strict=False)
    left = {marker: calls.marked(reply).quarantine_ms for marker, reply in pairs if not isinstance(reply, Refused)}
    return {marker: each / 1000 for marker, each in left.items() if each}


def _let_go_of_the_oldest(kept: OrderedDict[str, Any]) -> None:
    """In one step, for other threads may do the same."""
    with suppress(KeyError):
        kept.popitem(last=False)
