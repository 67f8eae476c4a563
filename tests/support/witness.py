"""A witness of what is under the keys of a server: it keeps books of its own, and no operation may end what goes on.

It sees every script call, its reply, and what is under the key before and after. From the calls alone it knows which
quarantines, version floors and writes under way there must be, and for how long a value may live.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from cacheguard.ports import Reply, ScriptCall
from cacheguard.protocol.calls import FLOOR_MS
from cacheguard.protocol.names import epochs_of

ROUNDED_MS = 5  # a real server tells how long a key lives, not until when


class Violation(AssertionError):  # noqa: N818 - better English than ViolationError
    """A promise that was not kept."""


class Sight(NamedTuple):
    """What is under a key: the fields of the header, and the claims that are alive.

    Args:
        version: of the value, and the names under which it counts.
        floors: each is an end, a life, a version, and the names under which it counts.
        writes: until when each of them is under way.
        end: when the server removes the key; 0: never.
    """

    value: Any
    fresh: int
    dead: int
    version: tuple[str, bytes] | None
    lease: tuple[Any, ...] | None
    quarantine: tuple[Any, ...] | None
    floors: tuple[tuple[Any, ...], ...]
    writes: dict[str, int]
    failure: tuple[Any, ...] | None
    end: int


class Bound(NamedTuple):
    """Something that goes on until its end; a version and names that it says."""

    end: int
    version: str = ""
    under: bytes = b""

    def proven_by(self, version: str, under: bytes) -> bool:
        """Whether a value with this version is no older than the write for which a quarantine began."""
        return bool(version and self.version) and _same(self.under, under) and version >= self.version


@dataclass(slots=True)
class _Books:
    """What must be under one key."""

    quarantines: list[Bound] = field(default_factory=list[Bound])
    floors: list[Bound] = field(default_factory=list[Bound])
    writes: dict[str, int] = field(default_factory=dict[str, int])
    limit: int | None = None  # when the value is dead at the latest
    loads: dict[str, tuple[Bound, ...]] = field(default_factory=dict[str, tuple[Bound, ...]])  # quarantines, by lease

    def over(self, now: int) -> None:
        """Let go of what is over."""
        self.quarantines = [each for each in self.quarantines if each.end > now]
        self.floors = [each for each in self.floors if each.end > now]
        self.writes = {name: end for name, end in self.writes.items() if end > now}


class Watched(Protocol):
    """The server that is watched."""

    def now_ms(self) -> int: ...

    def marker(self, key: str) -> Any: ...


class Witness:
    """Watches one server."""

    def __init__(self, server: Watched) -> None:
        self._server = server
        self._books: dict[str, _Books] = {}
        self._seeing: dict[str, Callable[..., None]] = {
            "lease": self._leased,
            "fill": self._filled,
            "store": self._stored,
            "add": self._added,
            "replace": self._replaced,
            "touch": self._touched,
            "invalidate": self._invalidated,
        }

    def lost(self, key: str) -> None:
        """The server has lost *key* with all that was under it."""
        self._books.pop(key, None)

    def saw(self, call: ScriptCall, reply: Reply, before: Sight | None, after: Sight | None) -> None:
        """One call was answered."""
        key, now = call.keys[0], self._server.now_ms()
        books = self._books.get(key)
        if books is None:
            books = self._books[key] = _Books()
        books.over(now)
        see = self._seeing.get(call.script.name)
        if see is not None:
            see(books, now, call, reply, before, after)
        self._judge(f"{call.script.name} of {key}", key, books, now, after)

    # What the calls mean

    def _leased(
        self, books: _Books, _now: int, call: ScriptCall, reply: Reply, _before: Sight | None, _after: Sight | None
    ) -> None:
        if reply[0] == b"GRANTED":
            books.loads.setdefault(str(call.args[0]), tuple(books.quarantines))

    def _filled(
        self, books: _Books, now: int, call: ScriptCall, reply: Reply, before: Sight | None, _after: Sight | None
    ) -> None:
        if reply not in {1, 2}:
            return
        token, _, _, _, version, under, latest, *_ = call.args
        loaded_in = books.loads.get(str(token), ())
        self._put(books, now, before, str(version), _bytes(under))
        books.limit = _least(books.limit, _limit(loaded_in, str(version), _bytes(under)))
        if latest:
            books.limit = _least(books.limit, int(latest))

    def _stored(
        self, books: _Books, now: int, call: ScriptCall, reply: Reply, before: Sight | None, _after: Sight | None
    ) -> None:
        if reply == 1:
            self._put(books, now, before, str(call.args[3]), _bytes(call.args[4]))
        elif reply == 0:
            self._gone(books, now, before)

    def _added(
        self, books: _Books, now: int, _call: ScriptCall, reply: Reply, before: Sight | None, after: Sight | None
    ) -> None:
        if reply[0] == 1 and before != after:
            self._put(books, now, before, "", b"")

    def _replaced(
        self, books: _Books, now: int, _call: ScriptCall, reply: Reply, before: Sight | None, after: Sight | None
    ) -> None:
        if reply[0] == 1 and before != after:
            limit = books.limit
            self._put(books, now, before, "", b"")
            books.limit = _least(books.limit, limit)

    def _touched(
        self, books: _Books, _now: int, _call: ScriptCall, reply: Reply, before: Sight | None, _after: Sight | None
    ) -> None:
        if reply == 1 and before is not None:
            books.limit = _least(books.limit, _limit(books.quarantines, *(before.version or ("", b""))))

    def _invalidated(
        self, books: _Books, now: int, call: ScriptCall, _reply: Reply, before: Sight | None, after: Sight | None
    ) -> None:
        _, _, quarantine, floor, under, floor_ms, begins, intent, ends, *_ = call.args
        if after is None or after.value is None:
            self._gone(books, now, before)
        elif not floor or begins:
            raise Violation(f"a value is there behind an invalidation of {call.keys[0]}")
        if quarantine:
            books.quarantines.append(Bound(now + int(quarantine), str(floor), _bytes(under)))
        if floor:
            books.floors.append(Bound(now + int(floor_ms), str(floor), _bytes(under)))
        books.writes.pop(str(ends), None)
        if begins:
            books.writes[str(begins)] = now + int(intent)

    def _put(self, books: _Books, now: int, before: Sight | None, version: str, under: bytes) -> None:
        """A value takes the place of what was there."""
        self._gone(books, now, before)
        for floor in books.floors:
            if version and _same(floor.under, under) and version < floor.version:
                raise Violation(f"version {version} is stored, although {floor.version} is the floor")
        books.limit = _limit(books.quarantines, version, under)

    def _gone(self, books: _Books, now: int, before: Sight | None) -> None:
        """What was there is gone: its version is the floor."""
        books.limit = None
        if before is not None and before.value is not None and before.version is not None:
            books.floors.append(Bound(now + FLOOR_MS, *before.version))

    # What must be there

    def _judge(self, what: str, key: str, books: _Books, now: int, sight: Sight | None) -> None:
        there = sight or Sight(None, 0, 0, None, None, None, (), {}, None, 0)
        self._judge_claims(what, key, books, there)
        if sight is not None:
            _judge_end(what, there, now)
        if there.value is None:
            books.limit = None
        elif books.writes:
            raise Violation(f"{what}: a value can be read while a write is under way")
        elif books.limit is not None and there.dead > books.limit:
            raise Violation(f"{what}: a value outlives a quarantine by {there.dead - books.limit} ms")

    def _judge_claims(self, what: str, key: str, books: _Books, there: Sight) -> None:
        held = there.quarantine
        for each in books.quarantines:
            if held is None or held[0] < each.end:
                raise Violation(f"{what}: a quarantine ends before its time")
            if held[2] and not Bound(0, each.version, each.under).proven_by(held[2], held[3]):
                raise Violation(f"{what}: a quarantine is proven by another version than its own")
        names = self._names(key) if books.floors else b""
        for each in books.floors:
            if _same(each.under, names) and not any(_holds(floor, each) for floor in there.floors):
                raise Violation(f"{what}: a version floor ends before its time")
        for name, end in books.writes.items():
            if there.writes.get(name, 0) < end:
                raise Violation(f"{what}: a write under way ends before its time")

    def _names(self, key: str) -> bytes:
        """The nonces of the namespaces of *key* as they are now; none where there are none."""
        if not key.startswith("cg:"):
            return b""
        return b"".join(self._server.marker(marker) or b"?" for marker in epochs_of(key))


def _limit(quarantines: Iterable[Bound], version: str, under: bytes) -> int | None:
    """When a value with this version must be dead, that was loaded or is stored in *quarantines*."""
    alive = tuple(quarantines)
    if not alive or all(each.proven_by(version, under) for each in alive):
        return None
    return max(each.end for each in alive)


def _holds(floor: tuple[Any, ...], wanted: Bound) -> bool:
    end, _, version, under = floor
    return bool(_same(under, wanted.under) and version >= wanted.version and end >= wanted.end)


def _judge_end(what: str, there: Sight, now: int) -> None:
    if not there.end:
        raise Violation(f"{what}: the key lives for ever")
    ends = [claim[0] for claim in (there.lease, there.quarantine, there.failure) if claim is not None]
    ends += [floor[0] for floor in there.floors] + list(there.writes.values())
    if there.value is not None:
        ends.append(there.dead)
    if there.end + ROUNDED_MS < max(ends, default=now):
        raise Violation(f"{what}: the key is removed {max(ends) - there.end} ms too early")


def _least(one: int | None, other: int | None) -> int | None:
    if one is None or other is None:
        return other if one is None else one
    return min(one, other)


def _same(one: bytes, other: bytes) -> bool:
    return not one or not other or one == other


def _bytes(raw: Any) -> bytes:
    return raw if isinstance(raw, bytes) else str(raw).encode()
