"""Layout 2 of what lies under a key: header, value and claims in one string, each deadline with a time of its own.

The header says until when the value is fresh (and for how long it may be so), until when it may be served as stale, and
when it was stored. The claims behind the value are for the scripts alone: see ``lua/prelude.lua``.
"""

from __future__ import annotations

import os
from struct import Struct
from typing import Any, NamedTuple, TypeAlias, cast

from ..errors import Refused
from ..ports import Reply

LAYOUT = 0xC2
# Layout and flags (a byte each), fresh until (6); bytes of the claims (4); longest time to be fresh, dead from, stored
# at (6 each); bytes of the value (4). Python has no numbers of six bytes: it reads them as 2 and 4.
HEADER = Struct(">QIHIHIHII")
HEADER_BYTES = HEADER.size
NONCE_BYTES = 8
LONGEST_MS = 2 * 365 * 86_400_000
"""Nothing lasts longer, whatever it says of itself: no guard stores anything for more than a year."""
LONGEST_LEASE_MS = 300_000
GUARDED = 1
"""The flag that says: only the master knows if the value may be used. A write is under way, or a quarantine goes on."""
VALUE = 2
"""The flag that says that there is a value."""
_MOMENT = 2**48 - 1


class Record(NamedTuple):
    """What `model` answers in the place of the bytes; the fields of the header, and the value itself."""

    fresh: int
    span: int
    dead: int
    born: int
    value: Any


class Held(NamedTuple):
    """An entry as it lies under its key.

    Args:
        envelope: its envelope, or the first bytes of it.
        fresh_left: for how many seconds it is fresh; negative: stale since. None: what lies there is not for us.
        age: seconds since it was stored.
        dead_left: for how many seconds it may be served as stale, if need be.
    """

    envelope: Any
    fresh_left: float | None
    age: float = 0.0
    dead_left: float = 0.0


Raw: TypeAlias = "bytes | Record | None"
NOT_OURS = Held(b"", None)


def held(raw: Reply, now: int) -> Held | None:
    """What *raw*, as READ has found it, says at *now* (the server's ms); None if there is no value.

    A value that is fresh for longer than it may be was written by another clock: it is `NOT_OURS`.
    """
    if raw is None:
        return None
    if type(raw) is bytes:
        if len(raw) < HEADER_BYTES:
            return NOT_OURS
        first, _, span_2, span_4, dead_2, dead_4, born_2, born_4, size = HEADER.unpack_from(raw)
        if first >> 56 != LAYOUT:
            return NOT_OURS
        fresh, span, dead, born = first & _MOMENT, span_2 << 32 | span_4, dead_2 << 32 | dead_4, born_2 << 32 | born_4
        value: Any = raw[HEADER_BYTES : HEADER_BYTES + size]  # behind it: claims, perhaps of once
    elif isinstance(raw, Refused):
        raise raw
    else:
        fresh, span, dead, born, value = raw
    if not value or dead <= now:
        return None
    if fresh - now > min(span, LONGEST_MS):
        return NOT_OURS
    return Held(value, (fresh - now) / 1000, max(0, now - born) / 1000, (dead - now) / 1000)


def new_nonce() -> bytes:
    """Random bytes that no marker has had before."""
    return os.urandom(NONCE_BYTES)


def nonce(raw: Reply) -> bytes | None:
    """The nonce of a marker; None if it has none."""
    if type(raw) is bytes:
        return raw[HEADER_BYTES : HEADER_BYTES + NONCE_BYTES] if _is_marker(raw) else None
    return raw.value[:NONCE_BYTES] if type(raw) is Record else None


def last_tagged(raw: Reply) -> bytes | None:
    """The nonce of the last invalidation of a tag beneath this marker of a namespace; None if it has none."""
    if type(raw) is bytes:
        return raw[HEADER_BYTES + NONCE_BYTES : HEADER_BYTES + 2 * NONCE_BYTES] if _is_marker(raw) else None
    return raw.value[NONCE_BYTES:] if type(raw) is Record else None


def _is_marker(raw: bytes) -> bool:
    return len(raw) > HEADER_BYTES and raw[0] == LAYOUT and raw[1] & VALUE != 0


def is_guarded(raw: bytes) -> bool:
    """Whether only the master can say if the value may be used: a write is under way, or a quarantine goes on."""
    return len(raw) > 1 and raw[1] & GUARDED != 0


def clock(reply: Reply, key: str) -> int:
    """The ms of the server that has *key*, as it has answered TIME behind the rest.

    Several servers answer each for its own keys.
    """
    time: Any = cast("dict[str, Reply]", reply)[key] if isinstance(reply, dict) else reply
    if isinstance(time, Refused):
        raise time
    seconds, micros = cast("tuple[bytes, bytes]", time)
    return int(seconds) * 1000 + int(micros) // 1000
