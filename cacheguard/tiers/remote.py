"""L2: entries and leases in Redis, one hash per key."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum, auto
from operator import eq
from typing import Any, Protocol, TypeAlias, cast

from ..codec import Codec
from ..delivery.line import FAILURE_KEPT_MS, RELEASE, Line, is_foreign
from ..delivery.outbox import INVALIDATE, Invalidation, drop_message
from ..errors import CodecError, Refused, Unreachable
from ..events import Events
from ..ports import Call, Reply
from ..protocol.envelope import Kind
from ..protocol.lua import load
from ..protocol.names import Scope

LEASE = load("lease")
FILL = load("fill")
RENEW = load("renew")
STORE = load("store")
EXPIRE = load("expire")
TOUCH = load("touch")
ADD = load("add")
REPLACE = load("replace")
HEAD = load("head")
MARK = load("mark")

LEASE_MS = 5_000  # longer than any pause a healthy process makes, short enough to wait out a dead one
GRACE_MS = 60_000
ALWAYS = 2**53 - 1  # a floor that no remaining lifetime reaches: lease whatever is there
MOST_HINTS = 10_000
HEAD_BYTES = 1024  # of an entry: its header, the nonces of deep namespaces and some dozen tags

Usable: TypeAlias = Callable[[Any], bool]


@dataclass(slots=True)  # not frozen, here and below: one is made on every hit in Redis, and that would triple its cost
class Stored:
    """What an entry says, once its bytes are read."""

    kind: Kind
    value: Any  # under Kind.ERROR: (qualified name of the exception, its arguments)
    ttl: float  # seconds it was stored to be fresh for
    load_time: float  # seconds its load took
    tags: tuple[str, ...]
    nonces: tuple[bytes, ...] = ()  # what the markers of its namespaces and its tags said when its load began


@dataclass(slots=True)
class Found:
    """An entry in Redis."""

    stored: Stored | None  # None: nothing that may be used
    fresh_left: float  # seconds; negative: stale since
    void: Any = ""  # why nothing may be used: LEASE knows the useless value by this


class Granted:
    """The right to fill, until it is released, voided or runs out.

    Args:
        found: what is stored, and stale.
        marks: what the markers that were asked for say now; None where one has no answer.
        at_ms: the server's time.
        settles: by marker, for how many seconds longer what is cached under it is quarantined.
    """

    __slots__ = ("at_ms", "found", "marks", "settles")

    def __init__(self, found: Found | None, marks: Mapping[str, Any], at_ms: int, settles: Mapping[str, float]) -> None:
        self.found, self.marks, self.at_ms, self.settles = found, marks, at_ms, settles

    def settles_within(self, markers: Iterable[str], passed: float) -> float | None:
        """The seconds until the quarantine of one of *markers* ends, *passed* after the lease; None without one."""
        left = [self.settles[marker] - passed for marker in markers if marker in self.settles]
        return max(0.001, min(left)) if left else None

    def covers(self, markers: Sequence[str]) -> bool:
        """Whether all of *markers* have said something: without that, what is loaded cannot be stored."""
        return all(self.marks.get(marker) is not None for marker in markers)


@dataclass(slots=True)
class Fill:
    """What was loaded, to be stored.

    Args:
        markers: the markers that its envelope depends on; its nonces are in the same order.
        fresh: seconds.
        stale: seconds after that.
        version: as `version_text` writes it.
    """

    key: str
    token: str
    envelope: Any
    fresh: float
    stale: float
    version: str = ""
    markers: tuple[str, ...] = ()
    nonces: tuple[bytes, ...] = ()


class Filled(Enum):
    """What became of a fill."""

    STORED = auto()
    BRIEFLY = auto()  # stored, but not for as long as asked: a replica may lag behind
    REFUSED = auto()  # its lease is gone, or a tag or a namespace was invalidated since
    OLD = auto()  # a newer version is known
    FAILED = auto()  # where it belongs could not be asked, or took nothing; only among several of `fill_many`


@dataclass(frozen=True, slots=True)
class Wait:
    """Somebody else is loading."""

    holder: str
    found: Found | None


@dataclass(frozen=True, slots=True)
class Bypass:
    """A write is under way: load, but do not fill."""


class CutOff:
    """Where the entry belongs cannot be asked, while others among several could be."""

    stored = None


CUT_OFF = CutOff()


@dataclass(frozen=True, slots=True)
class Failed:
    """The load that was waited for raised."""

    stored: Stored | None  # Kind.ERROR; None if its description cannot be read


class Packing(Protocol):
    """How values become what is stored."""

    def pack(self, key: str, stored: Stored, codec: Codec | None) -> Any:
        """What to store; `CodecError` if the value cannot be stored faithfully."""
        ...

    def unpack(self, key: str, envelope: Any, codec: Codec | None) -> Stored:
        """What was stored; `CodecError` if it cannot be read here."""
        ...

    def outline(self, key: str, envelope: Any) -> Stored:
        """What was stored, without its value; `CodecError` if it is nothing of ours."""
        ...

    def glance(self, key: str, head: Any) -> Stored:
        """What the beginning of something stored says, unverified; `CodecError` if it says too little."""
        ...

    def stamp(self, envelope: Any) -> Any:
        """What LEASE knows this value by."""
        ...


def ms(seconds: float) -> int:
    """Whole milliseconds, at least one."""
    return max(1, round(seconds * 1000))


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
        fields, pttl, *nonces = await self.line.send(("HMGET", key, "v", "g"), ("PTTL", key), *_questions(markers))
        found = self._found(key, fields, pttl, codec)
        if found is None or found.stored is None:
            return found
        stored = found.stored
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
        fields, pttl, *nonces = await self.line.send(("HMGET", key, "v", "g"), ("PTTL", key), *_questions(markers))
        if type(fields) is not list:
            return self._strange(key, fields)
        value, stale = cast("tuple[Any, Any]", fields)
        if value is None:
            return None
        found = self._entry(key, value, stale, pttl, None, outline=True)
        return await self._standing(key, found, scope, dict(zip(markers, nonces, strict=True)), value)

    async def read_exactly(self, key: str, codec: Codec | None, scope: Scope) -> tuple[Found | None, Any]:
        """The entry of *key*, and what `replace` knows it by."""
        markers = self._markers(key, scope, ())
        fields, pttl, *nonces = await self.line.send(("HMGET", key, "v", "g"), ("PTTL", key), *_questions(markers))
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
        replies = await self.line.send(*(HEAD(name)(HEAD_BYTES) for name in names), *_questions(markers))
        seen = dict(zip(markers, replies[len(names) :], strict=True))
        return await self._glanced(scope, dict(zip(names, replies, strict=False)), seen), following

    async def _glanced(self, scope: Scope, heads: Mapping[str, Reply], seen: dict[str, Any]) -> list[str]:
        """Which entries are fresh and stand, by what *heads* say of them."""
        stored: dict[str, Stored] = {}
        for key, head in heads.items():
            if isinstance(head, Refused) or head[0] is None or int(head[2]) <= int(head[1]):
                continue
            with suppress(CodecError):
                stored[key] = self._packing.glance(key, head[0])
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
        calls: list[Call] = []
        for key in keys:
            calls += [("HGETALL", key), ("PTTL", key)]
        replies = await self.line.ask_replicas(*calls, *_questions(markers))
        if replies is None:
            return [None] * len(keys)
        seen = dict(zip(markers, replies[2 * len(keys) :], strict=True))
        answers: list[Found | None] = []
        for at, key in enumerate(keys):
            names = scope.markers(tags[at])
            found = self._near(key, replies[2 * at], replies[2 * at + 1], codec, tags[at], tuple(map(seen.get, names)))
            if found is not None and (
                self.line.bus.is_dirty(key, names) or self._wanted(found, usable, b"").stored is None
            ):
                found = None
            self._events.replica_hits += found is not None
            answers.append(found)
        return answers

    def _near(
        self, key: str, words: Any, pttl: Any, codec: Codec | None, tags: tuple[str, ...], nonces: tuple[Any, ...]
    ) -> Found | None:
        """An entry as a replica has it, if there is no more to be asked about it."""
        fields = dict(zip(map(bytes, words[::2]), words[1::2], strict=True))
        # Behind a fence, or while a replica of the database may lag: the master decides.
        if b"v" not in fields or b"q" in fields or any(name.startswith(b"w:") for name in fields):
            return None
        found = self._entry(key, fields[b"v"], fields.get(b"g"), pttl, codec)
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
        calls: list[Call] = []
        for key in keys:
            calls += [("HMGET", key, "v", "g"), ("PTTL", key)]
        replies = await self.line.send(*calls, *_questions(markers))
        seen = dict(zip(markers, replies[2 * len(keys) :], strict=True))
        there = [self._found(key, replies[2 * at], replies[2 * at + 1], codec) for at, key in enumerate(keys)]
        await self._ask_for_more(scope, [each.stored for each in there if each is not None and each.stored], seen)
        return [
            await self._standing(key, each, scope, seen, replies[2 * at][0])
            if each is not None and each.stored is not None
            else each
            for at, (key, each) in enumerate(zip(keys, there, strict=True))
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
            seen.update(zip(more, await self.line.send(*_questions(more)), strict=True))

    def _hint(self, key: str, tags: tuple[str, ...]) -> None:
        self._hints[key] = tags
        while len(self._hints) > MOST_HINTS:
            _let_go_of_the_oldest(self._hints)

    def _found(self, key: str, fields: Reply, pttl: Reply, codec: Codec | None) -> Found | None:
        if type(fields) is not list:
            return self._strange(key, fields)
        value, stale = cast("tuple[Any, Any]", fields)
        if value is None:
            return None
        if isinstance(pttl, Refused):
            raise pttl
        return self._entry(key, value, stale, pttl, codec)

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

    def _entry(
        self,
        key: str,
        value: Any,
        stale: Any,
        pttl: Any,
        codec: Codec | None,
        *,
        outline: bool = False,
    ) -> Found:
        packing = self._packing
        try:
            left = (int(pttl) - int(stale)) / 1000 if pttl >= 0 else -1.0
            stored = packing.outline(key, value) if outline else packing.unpack(key, value, codec)
        except (CodecError, TypeError, ValueError, OverflowError):
            self._events.undecodable += 1
            return Found(None, -1.0, packing.stamp(value))
        return Found(stored, left)

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
        calls = self._marks(markers, keep_ms)
        lease = LEASE(key)(token, LEASE_MS, GRACE_MS, floor_ms, awaited, void)
        *nonces, reply = await self._send_leases({key: token}, *calls, lease)
        seen, settles = self._seen(markers, nonces), _settles(markers, nonces)
        return await self._leased(key, reply, codec, scope, seen, settles=settles, usable=usable)

    def _marks(self, markers: Sequence[str], keep_ms: int) -> list[Call]:
        return [MARK(marker)(self._nonce()[:16].encode(), keep_ms) for marker in markers]

    def _seen(self, markers: Sequence[str], replies: Sequence[Reply]) -> dict[str, Any]:
        """What the markers said; nothing where Redis refused to tell."""
        seen: dict[str, Any] = {}
        for marker, reply in zip(markers, replies, strict=True):
            if isinstance(reply, Refused):
                self._events.redis_refused(reply)
                seen[marker] = None
            else:
                seen[marker] = self._known[marker] = reply[0]
        while len(self._known) > MOST_HINTS:
            _let_go_of_the_oldest(self._known)
        return seen

    async def _send_leases(self, tokens: dict[str, str], *calls: Call) -> list[Reply]:
        try:
            return await self.line.send(*calls)
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
        calls: list[Call] = self._marks(markers, keep_ms)
        calls += [LEASE(key)(token, LEASE_MS, GRACE_MS, 0, "", voids.get(key, "")) for key, token in tokens.items()]
        replies = await self._send_leases(tokens, *calls)
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
        word = bytes(reply[0])
        if word == b"HIT":
            found = self._entry(key, reply[1], reply[2], reply[3], codec)
            return self._wanted(await self._standing(key, found, scope, seen, reply[1]), usable, reply[1])
        if word == b"BYPASS":
            return Bypass()
        if word == b"FAILED":
            return Failed(self._entry(key, reply[1], 0, 0, None).stored)
        value, stale, pttl = reply[-3:]
        old: Found | None = None
        if value is not None:
            found = self._entry(key, value, stale, pttl, codec)
            old = self._wanted(await self._standing(key, found, scope, seen, value), usable, value)
            old = None if old.stored is None else old
        if word == b"WAIT":
            return Wait(_text(reply[2]), old)
        return Granted(old, seen, int(reply[1]), settles)

    async def claim(self, scope: Scope, tags: Sequence[str], at_ms: int, keep_ms: int) -> tuple[bytes, ...] | None:
        """The nonces of *tags* that a load has given its entry at its end; None if one may be younger than the load.

        A tag's nonce counts if it is older than the load, or if no tag of the namespace was invalidated since the load
        began at *at_ms* (the server's time).
        """
        markers = [scope.tag(tag) for tag in tags]
        asked: list[Call] = [("HGET", scope.epochs[-1], "l")] if scope.epochs else []
        replies = await self.line.send(*self._marks(markers, keep_ms), *asked)
        nonces, seen = replies[: len(markers)], self._seen(markers, replies[: len(markers)])
        last = replies[-1] if asked else None
        if None in seen.values() or isinstance(last, Refused) or _settles(markers, replies):
            return None
        if (not asked or int(last or 0) >= at_ms) and any(int(since) >= at_ms for _, since, _ in nonces):
            return None
        return tuple(seen[marker] for marker in markers)

    # Filling

    def pack(self, key: str, stored: Stored, codec: Codec | None) -> Any:
        """The bytes of an entry; `CodecError` if there are none."""
        return self._packing.pack(key, stored, codec)

    def learn(self, key: str, tags: tuple[str, ...]) -> None:
        """Remember which tags the loader of *key* gives it, so that they are asked for with the entry."""
        self._hint(key, tags)

    async def fill_many(self, fills: Sequence[Fill]) -> list[Filled]:
        """Several fills in one round trip.

        The markers are asked once more, behind the fills: nobody who comes to the flight now may get what was loaded
        before an invalidation of its tags, and only this tells.
        """
        markers = tuple(dict.fromkeys(marker for fill in fills for marker in fill.markers))
        replies = await self.line.send(
            *(
                FILL(fill.key)(fill.token, fill.envelope, ms(fill.fresh), round(fill.stale * 1000), fill.version)
                for fill in fills
            ),
            *_questions(markers),
        )
        seen = dict(zip(markers, replies[len(fills) :], strict=True))
        outcomes: list[Filled] = []
        for fill, reply in zip(fills, replies, strict=False):
            if isinstance(reply, Refused):
                self._events.redis_refused(reply)
                raise reply
            stands = reply > 0 and tuple(seen[marker] for marker in fill.markers) == fill.nonces
            stored = Filled.STORED if reply == 1 else Filled.BRIEFLY
            outcomes.append(stored if stands else Filled.OLD if reply == -1 else Filled.REFUSED)
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
        calls: list[Call] = [
            RELEASE(key)(token, self._word(key, failure), FAILURE_KEPT_MS) for key, token in tokens.items()
        ]
        marks = marks or {}
        replies = await self.line.send(*calls, *_questions(tuple(marks)))
        return all(reply == 1 for reply in replies[: len(calls)]) and replies[len(calls) :] == list(marks.values())

    def _word(self, key: str, failure: Stored | None) -> Any:
        try:
            return b"" if failure is None else self._packing.pack(key, failure, None)
        except CodecError:  # then those who wait elsewhere find out for themselves
            return b""

    async def renew(self, tokens: dict[str, str]) -> None:
        """Keep leases for another while; those that are gone stay gone."""
        await self.line.send(*(RENEW(key)(token, LEASE_MS, GRACE_MS) for key, token in tokens.items()))

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

        def calls(echo: str) -> list[list[Call]]:
            plain = (0, "", 0, "", 0, "", HEAD_BYTES)
            return [[INVALIDATE(key)(channel, drop_message(echo, key), *plain)] for key in keys]

        items = [Invalidation(key) for key in keys]
        done, replies = await self.line.told(items, calls, _questions(markers))
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

        def calls(echo: str) -> list[list[Call]]:
            return [[EXPIRE(key)(channel, drop_message(echo, key))] for key in keys]

        return await self.line.tell([Invalidation(key) for key in keys], calls)

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
        calls: list[Call] = [
            STORE(key)(envelope, ms(fresh), round(stale * 1000), version, bus.channel, drop_message(echo, key))
            for key, (envelope, fresh, stale) in items.items()
        ]
        try:
            replies = await self.line.send(*self._marks(markers, keep_ms), *calls)
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
        call = [token, envelope, ms(fresh), round(stale * 1000), void]
        replies = await self._by_hand(key, ADD(key), call, self._marks(markers, keep_ms))
        seen = self._seen(markers, replies[: len(markers)])
        settles = min(_settles(markers, replies).values(), default=0.0)
        said = tuple(seen[marker] for marker in markers)
        word, *there = replies[-1]
        useless = None
        if there:
            found = self._entry(key, there[0], there[1], there[2], None, outline=True)
            found = await self._standing(key, found, scope, seen, there[0])
            useless = found.void if found.stored is None else None
        return word == 1, useless, said, settles

    async def replace(
        self, key: str, envelope: Any, stamp: Any, *, codec: Codec | None, scope: Scope, token: str
    ) -> tuple[bool, Found | None, Any]:
        """Put a value in the place of the one that `read_exactly` has read, for the rest of its lifetime.

        Whether that was done; else what is there now, as from `read_exactly`.
        """
        markers = self._markers(key, scope, ())
        replies = await self._by_hand(key, REPLACE(key), [token, stamp, envelope], _questions(markers))
        word, *there = replies[-1]
        if not there:
            return word == 1, None, ""
        found = self._entry(key, there[0], there[1], there[2], codec)
        found = await self._standing(key, found, scope, dict(zip(markers, replies, strict=False)), there[0])
        return False, found, self._packing.stamp(there[0])

    def stamp(self, envelope: Any) -> Any:
        """What LEASE, ADD and REPLACE know an envelope by."""
        return self._packing.stamp(envelope)

    async def _by_hand(
        self, key: str, script: Callable[..., Call], words: list[Any], before: list[Call]
    ) -> list[Reply]:
        """Run a script that stores under *key* and tells the others; `Refused` is raised."""
        bus = self.line.bus
        echo = bus.begin()
        try:
            replies = await self.line.send(*before, script(*words, bus.channel, drop_message(echo, key)))
        except BaseException:
            bus.void(echo)
            raise
        for reply in replies:
            if isinstance(reply, Refused):
                bus.void(echo)
                self._events.redis_refused(reply)
                raise reply
        if replies[-1][0] == 1:  # if a failover loses this, what comes back may be older
            self.line.acknowledged([Invalidation(key)])
        else:
            bus.void(echo)
        return replies

    async def touch(self, key: str, fresh: float, stale: float, markers: tuple[str, ...], keep_ms: int) -> bool:
        """Give a fresh entry a new TTL; whether there was one."""
        bus = self.line.bus
        echo = bus.begin()
        call = TOUCH(key)(ms(fresh), round(stale * 1000), bus.channel, drop_message(echo, key))
        try:
            *_, reply = await self.line.send(*self._marks(markers, keep_ms), call)
        except BaseException:
            bus.void(echo)
            raise
        return bool(reply == 1)


def _questions(markers: Sequence[str]) -> list[Call]:
    return [("HGET", marker, "v") for marker in markers]


def _settles(markers: Sequence[str], replies: Sequence[Reply]) -> dict[str, float]:
    """By marker, for how many seconds longer it is quarantined; those that are not are left out."""
    pairs = zip(markers, replies, strict=False)
    return {marker: int(reply[2]) / 1000 for marker, reply in pairs if not isinstance(reply, Refused) and reply[2]}


def _text(raw: bytes | str) -> str:
    return raw.decode() if isinstance(raw, bytes) else raw


def _let_go_of_the_oldest(kept: OrderedDict[str, Any]) -> None:
    """In one step, for other threads may do the same."""
    with suppress(KeyError):
        kept.popitem(last=False)
