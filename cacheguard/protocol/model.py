"""L2 without Redis: the same protocol in this process, for ``memory://`` and for ``l2=False``.

It answers the calls of the remote tier exactly as a server running our scripts would, so the engine above has one way
of working, and a schedule that is safe here is safe there.
"""

from __future__ import annotations

import math
import re
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

from ..errors import Refused
from ..ports import Call, Command, Commands, Reply, ScriptCall
from .names import is_marker

Hash = dict[str, Any]

LEAST_MARKERS = 10_000


class MemoryCommands:
    """Entries as hashes with a deadline; the least recently used goes when there are more than *size*.

    Args:
        size: most entries.
        lock: held while a call runs; calls never wait for one another inside.
        now: seconds, monotonic; this is the "server's" clock.
        max_bytes: most bytes, as `weigh` counts the values; None: no bound.
    """

    sorts = True

    def __init__(
        self,
        size: int,
        lock: AbstractContextManager[Any],
        now: Callable[[], float],
        *,
        max_bytes: int | None = None,
        weigh: Callable[[Any], int] = lambda _value: 0,
    ) -> None:
        self._size, self._lock, self._now = size, lock, now
        self._max_bytes, self._weigh = max_bytes, weigh
        self._weights: dict[str, int] = {}
        self._bytes = 0
        self._hashes: OrderedDict[str, Hash] = OrderedDict()
        self._ends: dict[str, float] = {}
        self._markers: MemoryCommands | None = None  # of namespaces and tags; they take no room from the entries

    def after_fork(self, lock: AbstractContextManager[Any]) -> None:
        """Go on with another *lock*, and without leases: in a forked child, who held them does not exist."""
        self._lock = lock
        for key, fields in list(self._hashes.items()):
            if fields.pop("t", None) is not None:
                fields.pop("u", None)
                if not fields:
                    self._delete(key)

    away = False

    async def send(self, *calls: Call) -> list[Reply]:
        replies = await self.send_each(*calls)
        for reply in replies:
            if isinstance(reply, Refused):
                raise reply
        return replies

    async def send_each(self, *calls: Call) -> list[Reply]:
        with self._lock:
            return [self.run(call) for call in calls]

    async def masters(self) -> Sequence[Commands]:
        """The servers whose entries are all there are: this one."""
        return [self]

    def run(self, call: Call) -> Reply:
        """Answer one call; the lock is held."""
        now = math.floor(self._now() * 1000)
        key = call.keys[0] if isinstance(call, ScriptCall) else str(call[1])
        if self.sorts and is_marker(key):
            return self._of_markers().run(call)
        if isinstance(call, ScriptCall):
            reply = getattr(self, f"_{call.script.name}")(self._hash(key, now), now, key, *call.args)
            if not self._hashes.get(key):
                self._delete(key)
            else:
                self._make_room(key)
            return reply
        name, fields = str(call[0]), self._hash(key, now)
        return self._plain(name, key, call, fields, now)

    def _plain(self, name: str, key: str, call: Command, fields: Hash, now: int) -> Reply:
        """Answer a command that is no script."""
        reply: Reply = Refused(f"ERR unknown command {name!r}")
        if name in {"HMGET", "HGET"}:
            if fields:
                self._hashes.move_to_end(key)
            found = [fields.get(str(field)) for field in call[2:]]
            reply = found if name == "HMGET" else found[0]
        elif name == "PTTL":
            reply = self._pttl(key, now)
        elif name == "SCAN":
            reply = self._scan(str(call[3]), now)
        elif name == "PUBLISH":
            self.publish(key, str(call[2]))
            reply = 0
        return reply

    @property
    def empty(self) -> bool:
        """True if nothing is kept: no value, no lease, nothing noted for later."""
        return not self._hashes and (self._markers is None or self._markers.empty)

    def _of_markers(self) -> MemoryCommands:
        if self._markers is None:
            self._markers = _Markers(self, max(self._size, LEAST_MARKERS), self._lock, self._now)
        return self._markers

    def _make_room(self, key: str) -> None:
        if self._max_bytes is not None:
            weight = self._weigh(self._hashes[key].get("v"))
            self._bytes += weight - self._weights.get(key, 0)
            self._weights[key] = weight
            if weight > self._max_bytes:
                self._delete(key)
                return
            self._hashes.move_to_end(key)
        while len(self._hashes) > self._size or (self._max_bytes is not None and self._bytes > self._max_bytes):
            self._delete(next(iter(self._hashes)))

    def _hash(self, key: str, now: int) -> Hash:
        if self._ends.get(key, math.inf) <= now:
            self._delete(key)
        return self._hashes.get(key) or {}

    def _write(self, key: str, fields: Hash, **changes: Any) -> None:
        fields.update(changes)
        self._hashes[key] = fields

    def _delete(self, key: str) -> None:
        self._hashes.pop(key, None)
        self._ends.pop(key, None)
        self._bytes -= self._weights.pop(key, 0)

    def _pttl(self, key: str, now: int) -> int:
        if key not in self._hashes:
            return -2
        return int(self._ends[key] - now) if key in self._ends else -1

    def _pexpire(self, key: str, ms: float, now: int) -> None:
        if key in self._hashes:
            self._ends[key] = now + ms

    def _drop(self, key: str, fields: Hash, *names: str) -> None:
        for name in names:
            fields.pop(name, None)
        if not fields:
            self._delete(key)

    def _write_until(self, key: str, fields: Hash, now: int) -> int:
        """The latest deadline of a live write intent, 0 without one; dead intents go."""
        last = 0
        for name in [name for name in fields if name.startswith("w:")]:
            if fields[name] > now:
                last = max(last, fields[name])
            else:
                self._drop(key, fields, name)
        return last

    def _quarantined(self, fields: Hash, now: int, fresh: int, stale: int, *, proven: bool) -> tuple[int, int]:
        left = fields.get("q", 0) - now
        return (min(fresh, left), 0) if left > 0 and not proven else (fresh, stale)

    def is_stamp(self, stamp: Any, value: Any) -> bool:
        """Whether *stamp* is what the packing knows *value* by: here, the object itself."""
        return stamp is value

    def publish(self, channel: str, message: str) -> None:
        """Tell those who listen: nobody does, in a process of its own."""

    # The calls, in the order of `calls`

    def _scan(self, pattern: str, now: int) -> Reply:
        """All names that match *pattern*, at once."""
        matches = glob(pattern)
        names = [name for name in list(self._hashes) if matches(name) and self._hash(name, now)]
        return [b"0", [name.encode("utf-8", "surrogatepass") for name in names]]

    def _head(self, fields: Hash, now: int, key: str, most: int) -> Reply:  # noqa: ARG002 - an object has no beginning
        return [fields.get("v"), fields.get("g", 0), self._pttl(key, now)]

    def _mark(self, fields: Hash, now: int, key: str, nonce: bytes, keep: int) -> Reply:
        quarantine = fields.get("q", 0) - now
        if "v" not in fields:
            self._write(key, fields, v=nonce, c=now)
        if quarantine > 0:
            self._pexpire(key, quarantine, now)
        elif self._pttl(key, now) < keep:
            self._pexpire(key, 2 * keep, now)
        return [fields["v"], fields["c"], max(0, quarantine)]

    def _tagged(self, fields: Hash, now: int, key: str) -> int:
        if fields:
            self._write(key, fields, l=now)
        return 1

    def _lease(
        self,
        fields: Hash,
        now: int,
        key: str,
        token: str,
        lease: int,
        grace: int,
        floor: int,
        awaited: str,
        unusable: Any,
    ) -> Reply:
        value, stale, pttl = fields.get("v"), fields.get("g", 0), self._pttl(key, now)
        usable = None if value is unusable else value
        if usable is not None and pttl - stale > floor:
            return [b"HIT", usable, stale, pttl]
        if fields.get("t") == token:
            return [b"GRANTED", now, usable, stale, pttl]
        write = self._write_until(key, fields, now)
        pttl = self._pttl(key, now)
        if write:
            return [b"BYPASS", write - now]
        if "t" in fields and fields["u"] > now:
            return [b"WAIT", fields["u"] - now, fields["t"], usable, stale, pttl]
        if "x" in fields:
            holder, what = fields["x"]
            if awaited and holder == awaited:
                return [b"FAILED", what]
        self._write(key, fields, t=token, u=now + lease)
        fields.pop("x", None)
        want = lease + grace
        if pttl < want:
            if value is not None:
                stale += want - pttl
                fields["g"] = stale
            self._pexpire(key, want, now)
            pttl = want
        return [b"GRANTED", now, usable, stale, pttl]

    def _fill(
        self, fields: Hash, now: int, key: str, token: str, envelope: Any, fresh: int, stale: int, version: str
    ) -> int:
        if fields.get("t") != token:
            return 0
        floor = fields.get("f")
        if version and floor is not None and version < floor:
            self._drop(key, fields, "t", "u")
            return -1
        proven = bool(version) and floor is not None
        reply = 2 if fields.get("q", 0) > now and not proven else 1
        fresh, stale = self._quarantined(fields, now, fresh, stale, proven=proven)
        self._write(key, fields, v=envelope, g=stale)
        self._drop(key, fields, "t", "u", "n")
        if version:
            fields |= {"f": version, "n": 1}
        self._pexpire(key, fresh + stale, now)
        return reply

    def _renew(self, fields: Hash, now: int, key: str, token: str, lease: int, grace: int) -> int:
        if fields.get("t") != token:
            return 0
        fields["u"] = now + lease
        want, pttl = lease + grace, self._pttl(key, now)
        if pttl < want:
            if "v" in fields:
                fields["g"] += want - pttl
            self._pexpire(key, want, now)
        return 1

    def _release(self, fields: Hash, now: int, key: str, token: str, failure: Any, kept: int) -> int:
        if fields.get("t") != token:
            return 0
        self._drop(key, fields, "t", "u")
        if failure:
            self._write(key, fields, x=(token, failure))
            if len(fields) == 1:
                self._pexpire(key, kept, now)
        return 1

    def _invalidate(
        self,
        fields: Hash,
        now: int,
        key: str,
        channel: str,
        message: str,
        quarantine: int,
        floor: str,
        floor_ms: int,
        begin: str,
        intent: int,
        end: str,
        most: int = 0,
    ) -> Reply:
        known = bool(floor) and not begin and "n" in fields and floor <= fields["f"]
        head = [fields.get("v"), fields.get("g", 0), self._pttl(key, now)] if most else None
        self._drop(key, fields, "t", "u", "x", *(() if known else ("v", "g", "n", "c")))
        self.publish(channel, message)
        if end:
            self._drop(key, fields, f"w:{end}")
        if begin:
            self._write(key, fields, **{f"w:{begin}": now + intent})
        if quarantine:
            self._write(key, fields, q=max(fields.get("q", 0), now + quarantine))
        if floor:
            self._write(key, fields, f=max(fields.get("f", ""), floor))
        last, pttl = max(self._write_until(key, fields, now), fields.get("q", 0)), self._pttl(key, now)
        if "f" in fields:
            last = max(last, now + floor_ms, now + pttl)
        if last <= now:
            self._delete(key)
        else:
            if known and last - now > pttl:
                fields["g"] += last - now - pttl
            self._pexpire(key, last - now, now)
        return head or (2 if known else 1)

    def _expire(self, fields: Hash, now: int, key: str, channel: str, message: str) -> int:
        self._drop(key, fields, "t", "u", "x")
        self.publish(channel, message)
        if "v" not in fields:
            return 0
        fields["g"] = max(fields["g"], self._pttl(key, now))
        return 1

    def _touch(self, fields: Hash, now: int, key: str, fresh: int, stale: int, channel: str, message: str) -> int:
        if "v" not in fields or self._pttl(key, now) <= fields["g"]:
            return 0
        fields["g"] = stale
        self._pexpire(key, fresh + stale, now)
        self.publish(channel, message)
        return 1

    def _store(
        self,
        fields: Hash,
        now: int,
        key: str,
        envelope: Any,
        fresh: int,
        stale: int,
        version: str,
        channel: str,
        message: str,
    ) -> int:
        floor = fields.get("f")
        if version and floor is not None and version < floor:
            return -1
        self._drop(key, fields, "t", "u", "x")
        write = self._write_until(key, fields, now)
        self.publish(channel, message)
        if write:
            return 0
        fresh, stale = self._quarantined(fields, now, fresh, stale, proven=bool(version) and floor is not None)
        self._write(key, fields, v=envelope, g=stale)
        fields.pop("n", None)
        if version:
            fields |= {"f": version, "n": 1}
        self._pexpire(key, fresh + stale, now)
        return 1

    def _add(
        self,
        fields: Hash,
        now: int,
        key: str,
        token: str,
        envelope: Any,
        fresh: int,
        stale: int,
        unusable: Any,
        channel: str,
        message: str,
    ) -> Reply:
        value, g, past, pttl = fields.get("v"), fields.get("g", 0), fields.get("r", ""), self._pttl(key, now)
        if token in past:
            return [1]
        if value is not None and pttl > g and not self.is_stamp(unusable, value):
            return [2, value, g, pttl]
        self._drop(key, fields, "t", "u", "x")
        write = self._write_until(key, fields, now)
        self.publish(channel, message)
        if write:
            return [0]
        fresh, stale = self._quarantined(fields, now, fresh, stale, proven=False)
        self._write(key, fields, v=envelope, g=stale, r=token + past[: 7 * len(token)])
        fields.pop("n", None)
        self._pexpire(key, fresh + stale, now)
        return [1]

    def _replace(
        self,
        fields: Hash,
        now: int,
        key: str,
        token: str,
        stamp: Any,
        envelope: Any,
        channel: str,
        message: str,
    ) -> Reply:
        value, g, past, pttl = fields.get("v"), fields.get("g", 0), fields.get("r", ""), self._pttl(key, now)
        if token in past:
            return [1]
        if value is None or pttl <= g:
            return [0]
        if not self.is_stamp(stamp, value):
            return [2, value, g, pttl]
        self._write(key, fields, v=envelope, r=token + past[: 7 * len(token)])
        self._drop(key, fields, "t", "u", "x", "n")
        self.publish(channel, message)
        return [1]


class _Markers(MemoryCommands):
    """The markers beside some entries; what they publish is the entries' to publish."""

    sorts = False

    def __init__(
        self, entries: MemoryCommands, size: int, lock: AbstractContextManager[Any], now: Callable[[], float]
    ) -> None:
        super().__init__(size, lock, now)
        self.publish = entries.publish  # type: ignore[method-assign]  # theirs


_WILD = {"*": ".*", "?": "."}


def glob(pattern: str) -> Callable[[str], object]:
    r"""A test for names that match *pattern* as Redis understands it: ``*``, ``?``, ``[a-c]``, ``[^a]``, ``\*``."""
    parts: list[str] = []
    at = 0
    while at < len(pattern):
        char = pattern[at]
        if char == "[":
            part, at = _set(pattern, at + 1)
            parts.append(part)
            continue
        if char == "\\" and at + 1 < len(pattern):
            at += 1
            parts.append(re.escape(pattern[at]))
        else:
            parts.append(_WILD.get(char) or re.escape(char))
        at += 1
    return re.compile("".join(parts), re.DOTALL).fullmatch


def _set(pattern: str, at: int) -> tuple[str, int]:
    """The regular expression for a set of characters that begins at *at*, and where the pattern goes on."""
    negated = pattern.startswith("^", at)
    at += negated
    ranges: list[str] = []
    while at < len(pattern) and pattern[at] != "]":
        first = last = pattern[at]
        if first == "\\" and at + 1 < len(pattern):
            at += 1
            first = last = pattern[at]
        elif pattern.startswith("-", at + 1) and at + 2 < len(pattern):
            at += 2
            first, last = sorted((first, pattern[at]))
        ranges.append(f"{re.escape(first)}-{re.escape(last)}")
        at += 1
    among = "|".join(f"[{each}]" for each in ranges) or "(?!)"
    return (f"(?!{among})." if negated else f"(?:{among})"), at + 1
