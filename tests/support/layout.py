"""What lies under the keys of a guard, as a test writes it there and takes it apart: the layout of this release."""

from __future__ import annotations

import struct
import time
from typing import Any

import msgspec
import redis

from cacheguard.protocol.layout import HEADER_BYTES, LAYOUT, VALUE

HOUR = 3_600_000
NEXT_LAYOUT = LAYOUT + 1
"""The number that a later release would write."""
CLAIMS = msgspec.msgpack.encode({"f": [2**47, 2**47, "001", ""]})  # a version floor, for ever and a day

_HEADER = struct.Struct(">BB6sI6s6s6sI")


def planted(
    envelope: bytes,
    fresh_ms: int = HOUR,
    stale_ms: int = 0,
    *,
    claims: bytes = b"",
    age_ms: int = 0,
    span_ms: int | None = None,
    layout: int = LAYOUT,
    flags: int | None = None,
    size: int | None = None,
    now: int | None = None,
) -> bytes:
    """What a script of ours would leave for *envelope*, with whatever lies one wants in its header.

    Args:
        fresh_ms: from *now* on; negative: it has been stale for so long.
        span_ms: for how long it says that it may be fresh.
        size: bytes of the envelope, as the header has it.
        now: the server's time; that of this machine, as a rule.
    """
    at = time.time_ns() // 1_000_000 if now is None else now
    span = max(fresh_ms, 0) + age_ms if span_ms is None else span_ms
    told = (VALUE if envelope else 0) if flags is None else flags
    moments = [_moment(each) for each in (at + fresh_ms, span, at + fresh_ms + stale_ms, at - age_ms)]
    length = len(envelope) if size is None else size
    header = _HEADER.pack(layout, told, moments[0], len(claims), *moments[1:], length)
    assert len(header) == HEADER_BYTES
    return header + envelope + claims


def _moment(ms: int) -> bytes:
    return (max(ms, 0)).to_bytes(6, "big")


def plant(client: Any, key: str, envelope: bytes, *args: Any, ttl_ms: int | None = HOUR, **header: Any) -> None:
    """Put *envelope* under *key*, as `planted` makes it; without *ttl_ms* it stays for ever."""
    client.set(key, planted(envelope, *args, **header), px=ttl_ms)


def envelope_of(raw: Any) -> bytes:
    """The envelope in what lies under a key."""
    *_, size = _HEADER.unpack_from(raw)
    found: bytes = raw[HEADER_BYTES : HEADER_BYTES + size]
    return found


def envelope_at(client: redis.Redis, key: str) -> bytes:
    """The envelope that lies under *key*."""
    return envelope_of(client.get(key))


def claims_of(raw: Any) -> set[str]:
    """The names of the claims in what lies under a key: see ``lua/prelude.lua``."""
    _, _, _, length, *_, size = _HEADER.unpack_from(raw)
    begin = HEADER_BYTES + size
    tail = raw[begin : begin + length]
    return set(msgspec.msgpack.decode(tail, type=dict[str, msgspec.Raw])) if tail else set()


def with_claims(claims: dict[str, Any]) -> bytes:
    """*claims* as the scripts read them."""
    return msgspec.msgpack.encode(claims)
