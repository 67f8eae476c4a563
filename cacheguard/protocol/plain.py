"""A plain hit, read in one go: header, envelope and markers of what READ has found.

Plain is a fresh value, neither signed nor compressed nor with tags, which stands by the nonces of its namespaces.
Nothing here judges anything else: for all that is not plain, `layout` and `envelope` say what it is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from struct import Struct
from typing import Any, NamedTuple

from ..codec.form import UNREADABLE, Codec
from ..ports import Reply
from .entry import Found, Stored
from .envelope import FOREVER, VERSION, Kind
from .envelope import HEADER as ENVELOPE
from .layout import HEADER, HEADER_BYTES, LAYOUT, LONGEST_MS, NONCE_BYTES, VALUE

# The first three bytes of an envelope as one piece: it is ours, holds a value, and is neither signed nor compressed.
_BOTH = Struct(HEADER.format + "3s" + ENVELOPE.format.removeprefix(">BBB"))
_PLAIN = bytes((VERSION, Kind.VALUE, 0))
_SIZE = _BOTH.size
_MOMENT = 2**48 - 1
_NONCE_END = HEADER_BYTES + NONCE_BYTES
_NO_TAGS = b"\x92\x90"  # MessagePack: of two lists, the first is empty
_LIST, _MOST_IN_LIST = 0x90, 15  # MessagePack: a list of so many follows
_NONCE = bytes((0xC4, NONCE_BYTES))  # MessagePack: so many bytes follow
_MOST_KNOWN = 1000  # of what the markers of namespaces say


class Around(NamedTuple):
    """What stands around the entries of one reply.

    Args:
        now: the server's time.
        nonces: of the namespaces, from the root down.
        marks: how an envelope without tags says these.
    """

    now: int
    nonces: tuple[bytes, ...]
    marks: bytes


def around(markers: Sequence[Reply], time: Any) -> Around | None:
    """What the replies for the *markers* of the namespaces and to ``TIME`` say; None if that is not plain."""
    if time.__class__ is not list:
        return None
    try:
        said = _said(tuple(markers))
    except TypeError:  # a reply that is no bytes
        return None
    if said is None:
        return None
    seconds, micros = time
    return Around(int(seconds) * 1000 + int(micros) // 1000, *said)


@lru_cache(maxsize=_MOST_KNOWN)
def _said(markers: tuple[Reply, ...]) -> tuple[tuple[bytes, ...], bytes] | None:
    """`Around.nonces` and `Around.marks`; they change when a namespace is invalidated."""
    nonces: tuple[bytes, ...] = ()
    for marker in markers:
        if type(marker) is not bytes or len(marker) < _NONCE_END or marker[0] != LAYOUT or not marker[1] & VALUE:
            return None
        nonces += (marker[HEADER_BYTES:_NONCE_END],)
    if not nonces:
        return (), b""
    if len(nonces) > _MOST_IN_LIST:
        return None
    return nonces, b"".join((_NO_TAGS, bytes((_LIST + len(nonces),)), *[_NONCE + each for each in nonces]))


def plain_ones(
    raws: Sequence[Reply],
    beside: Around,
    most: int,
    codec: Codec | None,
    by_schema: Callable[[bytes], Codec | None],
) -> list[Found | None]:
    """The plain hits among *raws*, each in its place; None for what is none, or not plain.

    Written as one loop, because each call in it would be paid for each key of a batch.

    Args:
        raws: what READ has found under the keys.
        beside: what stands around them.
        most: bytes that a payload may have.
        codec: what decodes the payloads of its own schema.
        by_schema: with no *codec*, finds one; most of a batch have one schema.
    """
    now, nonces, known = beside
    marked, start = len(known), _SIZE + len(known)
    unpack, reader, of_reader = _BOTH.unpack_from, codec, None if codec is None else codec.schema
    found: list[Found | None] = []
    for raw in raws:
        hit = None
        if type(raw) is bytes and len(raw) >= start:
            (
                first, _, span_2, span_4, dead_2, dead_4, born_2, born_4, size,
                of_ours, schema, ttl, load_time, marks, length,
            ) = unpack(raw)  # fmt: skip
            left, lives, end = (first & _MOMENT) - now, (dead_2 << 32 | dead_4) - now, start + length
            if (
                of_ours == _PLAIN
                and first >> 56 == LAYOUT
                and marks == marked
                and raw[_SIZE:start] == known
                and 0 < left <= (span_2 << 32 | span_4)
                and left <= LONGEST_MS
                and lives > 0
                and length <= most
                and end == HEADER_BYTES + size
                and end <= len(raw)
            ):
                if codec is None and schema != of_reader:
                    reader = by_schema(schema)
                    of_reader = None if reader is None else reader.schema
                if reader is not None and schema == of_reader:
                    try:
                        value = reader.decode(raw[start:end])
                    except UNREADABLE:
                        pass  # who looks closely finds the same, and counts it
                    else:
                        lasts = math.inf if ttl == FOREVER else ttl / 1000
                        stored = Stored(Kind.VALUE, value, lasts, load_time / 1_000_000, (), nonces)
                        age = max(0, now - (born_2 << 32 | born_4))
                        hit = Found(stored, left / 1000, "", age / 1000, lives / 1000)
        found.append(hit)
    return found
