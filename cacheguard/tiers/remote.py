"""L2: entries and leases in Redis, one hash per key."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, cast

from ..codec import Codec
from ..envelope import Kind
from ..errors import CodecError, Refused, Unreachable
from ..events import Events
from ..lua import load
from ..ports import Call, Commands, Reply

LEASE = load("lease")
FILL = load("fill")
RELEASE = load("release")
RENEW = load("renew")
INVALIDATE = load("invalidate")
STORE = load("store")
EXPIRE = load("expire")
TOUCH = load("touch")

CHANNEL = "cg:bus"
LEASE_MS = 5_000  # longer than any pause a healthy process makes, short enough to wait out a dead one
GRACE_MS = 60_000
ALWAYS = 2**53 - 1  # a floor that no remaining lifetime reaches: lease whatever is there
FAILURE_KEPT_MS = 2_000  # several of a waiter's longest polls
MOST_QUEUED = 100_000
MOST_ORPHANS = 10_000


@dataclass(slots=True)  # not frozen, here and below: one is made on every hit in Redis, and that would triple its cost
class Stored:
    """What an entry says, once its bytes are read."""

    kind: Kind
    value: Any  # under Kind.ERROR: (qualified name of the exception, its arguments)
    ttl: float  # seconds it was stored to be fresh for
    load_time: float  # seconds its load took
    tags: tuple[str, ...]


@dataclass(slots=True)
class Found:
    """An entry in Redis."""

    stored: Stored | None  # None: bytes that this process cannot read
    fresh_left: float  # seconds; negative: stale since


class Granted:
    """The right to fill, until it is released, voided or runs out."""

    __slots__ = ("found",)

    def __init__(self, found: Found | None) -> None:
        self.found = found


@dataclass(frozen=True, slots=True)
class Wait:
    """Somebody else is loading."""

    holder: str
    found: Found | None


@dataclass(frozen=True, slots=True)
class Bypass:
    """A write is under way: load, but do not fill."""


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


def ms(seconds: float) -> int:
    """Whole milliseconds, at least one."""
    return max(1, round(seconds * 1000))


class Remote:
    """The calls of the cache protocol. Each method is one round trip.

    Whatever cannot be asked raises `Unreachable`; whatever cannot be read is a miss and counted.
    """

    def __init__(self, commands: Commands, packing: Packing, events: Events, owed: dict[str, object]) -> None:
        self._commands, self._packing, self._events = commands, packing, events
        self._orphans: dict[str, str] = {}  # leases of which nobody knows whether they were granted
        self._owed = owed  # invalidations that Redis has not acknowledged; shared by all doors of a guard

    async def send(self, *calls: Call) -> list[Reply]:
        """`Commands.send_each`, counted, after whatever invalidation is still owed."""
        events = self._events
        try:
            if self._owed or self._orphans:
                await self._settle()
            replies = await self._commands.send_each(*calls)
        except Unreachable as error:
            events.redis_failed(error)
            raise
        if not events.l2_up:
            events.redis_answered()
        return replies

    async def _settle(self) -> None:
        """Deliver the invalidations that Redis has not acknowledged; nothing is read before that."""
        while self._orphans:
            orphans = list(self._orphans.items())[:1000]
            await self._commands.send_each(*(RELEASE(key)(token, b"", FAILURE_KEPT_MS) for key, token in orphans))
            for key, _ in orphans:
                self._orphans.pop(key, None)
        while self._owed:
            owed = dict(list(self._owed.items())[:1000])
            for reply in await self._commands.send_each(*map(invalidation, owed)):
                if isinstance(reply, Refused) and not _foreign(reply):
                    raise reply
            for key, mark in owed.items():
                if self._owed.get(key) is mark:  # not owed once more by another thread meanwhile
                    self._owed.pop(key, None)
            self._events.invalidations_queued = len(self._owed)

    async def read(self, key: str, codec: Codec | None) -> Found | None:
        """The entry of *key*."""
        fields, pttl = await self.send(("HMGET", key, "v", "g"), ("PTTL", key))
        return self._found(key, fields, pttl, codec)

    async def look(self, key: str) -> Found | None:
        """What is stored under *key*, without its value."""
        fields, pttl = await self.send(("HMGET", key, "v", "g"), ("PTTL", key))
        if type(fields) is not list:
            return self._strange(key, fields)
        value, stale = cast("tuple[Any, Any]", fields)
        return None if value is None else self._entry(key, value, stale, pttl, None, outline=True)

    async def read_many(self, keys: list[str], codec: Codec | None) -> list[Found | None]:
        """The entries of *keys*, in one round trip."""
        calls: list[Call] = []
        for key in keys:
            calls += [("HMGET", key, "v", "g"), ("PTTL", key)]
        replies = await self.send(*calls)
        return [self._found(key, replies[2 * at], replies[2 * at + 1], codec) for at, key in enumerate(keys)]

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
        if not _foreign(reply):
            self._events.redis_refused(reply)
            raise reply
        self._events.undecodable += 1
        self._events.once(f"foreign {key}", "%s holds something that is no entry of ours; it is left alone", key)
        return Found(None, -1.0)

    def _entry(
        self, key: str, value: Any, stale: Any, pttl: Any, codec: Codec | None, *, outline: bool = False
    ) -> Found:
        packing = self._packing
        try:
            left = (int(pttl) - int(stale)) / 1000 if pttl >= 0 else -1.0
            return Found(packing.outline(key, value) if outline else packing.unpack(key, value, codec), left)
        except (CodecError, TypeError, ValueError, OverflowError):
            self._events.undecodable += 1
            return Found(None, -1.0)

    async def lease(
        self, key: str, codec: Codec | None, token: str, floor_ms: int, awaited: str
    ) -> Found | Granted | Wait | Bypass | Failed:
        """The right to fill *key*, or the reason why not."""
        (reply,) = await self._send_leases({key: token}, LEASE(key)(token, LEASE_MS, GRACE_MS, floor_ms, awaited))
        return self._leased(key, reply, codec)

    async def _send_leases(self, tokens: dict[str, str], *calls: Call) -> list[Reply]:
        try:
            return await self.send(*calls)
        except Unreachable:
            self._orphans.update(tokens)
            while len(self._orphans) > MOST_ORPHANS:  # the oldest have ended by themselves, or soon will
                self._orphans.pop(next(iter(self._orphans)), None)
            raise

    async def lease_many(
        self, tokens: dict[str, str], codec: Codec | None
    ) -> dict[str, Found | Granted | Wait | Bypass | Failed]:
        """Leases for several keys, in one round trip."""
        calls = [LEASE(key)(token, LEASE_MS, GRACE_MS, 0, "") for key, token in tokens.items()]
        replies = await self._send_leases(tokens, *calls)
        return {key: self._leased(key, reply, codec) for key, reply in zip(tokens, replies, strict=True)}

    def _leased(self, key: str, reply: Reply, codec: Codec | None) -> Found | Granted | Wait | Bypass | Failed:
        if isinstance(reply, Refused):
            if _foreign(reply):
                return Bypass()
            self._events.redis_refused(reply)
            raise reply
        word = bytes(reply[0])
        if word == b"HIT":
            return self._entry(key, reply[1], reply[2], reply[3], codec)
        if word == b"BYPASS":
            return Bypass()
        if word == b"FAILED":
            return Failed(self._entry(key, reply[1], 0, 0, None).stored)
        value, stale, pttl = reply[-3:]
        found = None if value is None else self._entry(key, value, stale, pttl, codec)
        return Granted(found) if word == b"GRANTED" else Wait(_text(reply[2]), found)

    def pack(self, key: str, stored: Stored, codec: Codec | None) -> Any:
        """The bytes of an entry; `CodecError` if there are none."""
        return self._packing.pack(key, stored, codec)

    async def fill(self, key: str, token: str, envelope: Any, fresh: float, stale: float) -> bool:
        """Store what was loaded under *token*; false if that lease is gone."""
        return (await self.fill_many([(key, token, envelope, fresh, stale)]))[0]

    async def fill_many(self, fills: list[tuple[str, str, Any, float, float]]) -> list[bool]:
        """Several fills in one round trip."""
        replies = await self.send(
            *(
                FILL(key)(token, envelope, ms(fresh), round(stale * 1000), "")
                for key, token, envelope, fresh, stale in fills
            )
        )
        for reply in replies:
            if isinstance(reply, Refused):
                self._events.redis_refused(reply)
                raise reply
        return [reply == 1 for reply in replies]

    async def release(self, tokens: dict[str, str], failure: Stored | None = None) -> bool:
        """Give leases back, with a word on what the load died of; whether all of them were still held."""
        calls = [RELEASE(key)(token, self._word(key, failure), FAILURE_KEPT_MS) for key, token in tokens.items()]
        return all(reply == 1 for reply in await self.send(*calls))

    def _word(self, key: str, failure: Stored | None) -> Any:
        try:
            return b"" if failure is None else self._packing.pack(key, failure, None)
        except CodecError:  # then those who wait elsewhere find out for themselves
            return b""

    async def renew(self, tokens: dict[str, str]) -> None:
        """Keep leases for another while; those that are gone stay gone."""
        await self.send(*(RENEW(key)(token, LEASE_MS, GRACE_MS) for key, token in tokens.items()))

    async def invalidate(self, keys: list[str]) -> bool:
        """Remove entries and leases.

        False if Redis did not acknowledge it; it is owed then, and delivered before anything else is asked.
        """
        return await self._tell([invalidation(key) for key in keys], keys)

    async def expire(self, keys: list[str]) -> bool:
        """Make entries stale; false if Redis did not acknowledge it, and they will be invalidated instead."""
        return await self._tell([EXPIRE(key)(CHANNEL, f"drop {key}") for key in keys], keys)

    async def _tell(self, calls: list[Call], keys: list[str]) -> bool:
        missed = keys
        try:
            replies = await self.send(*calls)
        except Unreachable:
            pass
        else:
            pairs = list(zip(keys, replies, strict=True))
            missed = [key for key, reply in pairs if isinstance(reply, Refused) and not _foreign(reply)]
        if not missed:
            return True
        if len(self._owed) + len(missed) > MOST_QUEUED:
            raise Unreachable(
                f"{len(self._owed)} invalidations are owed to Redis already; {len(missed)} more are not kept"
            )
        self._owed.update({key: object() for key in missed})
        self._events.invalidations_queued = len(self._owed)
        return False

    async def store(self, items: dict[str, tuple[Any, float, float]]) -> bool:
        """Put values there by hand, in one round trip; whether all of them were stored."""
        replies = await self.send(
            *(
                STORE(key)(envelope, ms(fresh), round(stale * 1000), "", CHANNEL, f"drop {key}")
                for key, (envelope, fresh, stale) in items.items()
            )
        )
        for reply in replies:
            if isinstance(reply, Refused):
                self._events.redis_refused(reply)
                raise reply
        return all(reply == 1 for reply in replies)

    async def touch(self, key: str, fresh: float, stale: float) -> bool:
        """Give a fresh entry a new TTL; whether there was one."""
        (reply,) = await self.send(TOUCH(key)(ms(fresh), round(stale * 1000), CHANNEL, f"drop {key}"))
        return bool(reply == 1)


def invalidation(key: str) -> Call:
    """The call that removes the entry of *key* and its lease."""
    return INVALIDATE(key)(CHANNEL, f"drop {key}", 0, "", 0, "", 0, "")


def _foreign(reply: Refused) -> bool:
    return "WRONGTYPE" in str(reply)


def _text(raw: bytes | str) -> str:
    return raw.decode() if isinstance(raw, bytes) else raw
