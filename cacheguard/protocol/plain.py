"""A plain hit, read in one go: header, envelope and markers of what READ has found.

Plain is a fresh value, neither signed nor compressed nor with tags, which stands by the nonces of its namespaces.
Nothing here judges anything else: for all that is not plain, `layout` and `envelope` say what it is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from struct import Struct
from typing import NamedTuple, TypeAlias

from ..ports import Reply
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


# What a plain hit says: schema, payload, and in seconds how long it was stored to be fresh for, how long its load took,
# how long it is fresh and may be served from now on, and its age.
Plain: TypeAlias = tuple[bytes, bytes, float, float, float, float, float]


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


def around(markers: Sequence[Reply], time: Reply) -> Around | None:
    """What the replies for the *markers* of the namespaces and to ``TIME`` say; None if that is not plain."""
    if type(time) is not list:
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


def plain(raw: Reply, beside: Around, most: int) -> Plain | None:
    """The hit that lies under a key; None if it is none, or not plain.

    Args:
        raw: what READ has found.
        beside: what stands around it.
        most: bytes that a payload may have.
    """
    if type(raw) is not bytes or len(raw) < _SIZE:
        return None
    (
        first, _, span_2, span_4, dead_2, dead_4, born_2, born_4, size,
        of_ours, schema, ttl, load_time, marks, length,
    ) = _BOTH.unpack_from(raw)  # fmt: skip
    now, _, known = beside
    start = _SIZE + marks
    end = start + length
    if of_ours != _PLAIN or first >> 56 != LAYOUT or length > most or end != HEADER_BYTES + size or end > len(raw):
        return None
    left, lives = (first & _MOMENT) - now, (dead_2 << 32 | dead_4) - now
    if lives <= 0 or not 0 < left <= (span_2 << 32 | span_4) or left > LONGEST_MS or raw[_SIZE:start] != known:
        return None
    return (
        schema,
        raw[start:end],
        math.inf if ttl == FOREVER else ttl / 1000,
        load_time / 1_000_000,
        left / 1000,
        lives / 1000,
        max(0, now - (born_2 << 32 | born_4)) / 1000,
    )
