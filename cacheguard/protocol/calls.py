"""Every call of the cache protocol: the function that makes it and, where the reply has a shape, the one that reads it.

No other module spells the arguments of a script or of a command about entries and markers. ``lease`` makes the call,
``leased`` reads its reply, and so on. What the calls do is in the scripts in ``lua/``; `model` answers the same calls
without Redis, in the same order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

from ..errors import Refused
from ..ports import Call, Reply, ScriptCall
from . import messages
from .entry import Fill, Filled, ms
from .lua import load

MARK, LEASE, FILL, RENEW, RELEASE = load("mark"), load("lease"), load("fill"), load("renew"), load("release")
INVALIDATE, TAGGED, EXPIRE, TOUCH = load("invalidate"), load("tagged"), load("expire"), load("touch")
STORE, ADD, REPLACE, HEAD = load("store"), load("add"), load("replace"), load("head")

LEASE_MS = 5_000  # longer than any pause a healthy process makes, short enough to wait out a dead one
GRACE_MS = 60_000  # a stale value is kept for so long beyond its lease, to be served if the load fails
ALWAYS = 2**53 - 1  # a floor that no remaining lifetime reaches: lease whatever is there
FAILURE_KEPT_MS = 2_000  # several of a waiter's longest polls
HEAD_BYTES = 1024  # of an entry: its header, the nonces of deep namespaces and some dozen tags


Held: TypeAlias = tuple[Any, float | None]
"""An entry as a key holds it: its envelope (or the first bytes of it), and for how many seconds it is fresh.

Negative: stale since. None: what lies there is nothing of ours.
"""


def held(envelope: Any, stale: Any, pttl: Any) -> Held | None:
    """What the fields ``v`` and ``g`` and the TTL of a key say, as Redis answers them; None if there is no entry.

    The key lives until the stale window (``g``, in ms) is over, so the entry is fresh while more than that is left.
    """
    if envelope is None:
        return None
    if isinstance(pttl, Refused):
        raise pttl
    try:
        return envelope, (int(pttl) - int(stale)) / 1000 if pttl >= 0 else -1.0
    except (TypeError, ValueError, OverflowError):
        return envelope, None


# READ


def nonces(markers: Sequence[str]) -> list[Call]:
    """The nonces of *markers*; None for one that is not there."""
    return [("HGET", marker, "v") for marker in markers]


def read(key: str, markers: Sequence[str]) -> list[Call]:
    """The entry of *key* and, behind it, the nonces of *markers*. No script: it works when memory is full.

    Reply: ``[envelope, stale]``, pttl, a nonce for each marker.
    """
    return [("HMGET", key, "v", "g"), ("PTTL", key), *[("HGET", marker, "v") for marker in markers]]


def read_many(keys: Sequence[str], markers: Sequence[str]) -> list[Call]:
    """`read` for several keys, each marker once."""
    calls: list[Call] = []
    for key in keys:
        calls += [("HMGET", key, "v", "g"), ("PTTL", key)]
    return calls + nonces(markers)


def read_near(keys: Sequence[str], markers: Sequence[str]) -> list[Call]:
    """`read_many` for replicas, with all fields: a write under way or a quarantine is seen, too."""
    calls: list[Call] = []
    for key in keys:
        calls += [("HGETALL", key), ("PTTL", key)]
    return calls + nonces(markers)


def were_read(
    keys: Sequence[str], markers: Sequence[str], replies: Sequence[Reply]
) -> tuple[list[tuple[Reply, Reply]], dict[str, Any]]:
    """The replies to `read_many` or `read_near`: the two of each key, and by marker its nonce."""
    pairs = [(replies[2 * at], replies[2 * at + 1]) for at in range(len(keys))]
    return pairs, dict(zip(markers, replies[2 * len(keys) :], strict=True))


def was_read_near(fields: Reply, pttl: Reply) -> Held | None:
    """What a replica has; None if there is no value, or if only the master can say whether it may be used.

    That is so behind a fence, and while a replica of the database may lag.
    """
    by_name = dict(zip(map(bytes, fields[::2]), fields[1::2], strict=True))
    if b"v" not in by_name or b"q" in by_name or any(name.startswith(b"w:") for name in by_name):
        return None
    return held(by_name[b"v"], by_name.get(b"g"), pttl)


def scan(cursor: str, pattern: str, count: int) -> Call:
    """One page of the names that match *pattern*; about *count* names are looked at."""
    return ("SCAN", cursor, "MATCH", pattern, "COUNT", count)


def scanned(reply: Reply) -> tuple[str, list[str]]:
    """The next cursor, "0" at the end, and the names."""
    cursor, names = reply
    return bytes(cursor).decode(), [name.decode("utf-8", "surrogatepass") for name in names]


def head(key: str, most: int = HEAD_BYTES) -> Call:
    """The first *most* bytes of an entry. Reply: three words for `held`."""
    return ScriptCall(HEAD, (key,), (most,))


# Markers


def mark(marker: str, *, nonce: bytes, keep_ms: int) -> Call:
    """The nonce of *marker*; *nonce* from now on if it has none."""
    return ScriptCall(MARK, (marker,), (nonce, keep_ms))


def marked(reply: Reply) -> tuple[bytes, int, int]:
    """What `mark` answers: the nonce, the server's ms since which it is this one, the ms that a quarantine goes on."""
    nonce, since_ms, quarantine_ms = reply
    return nonce, int(since_ms), int(quarantine_ms)


def tagged(epoch: str) -> Call:
    """Note at the marker *epoch* of a namespace that one of its tags is invalidated now."""
    return ScriptCall(TAGGED, (epoch,), ())


def tagged_at(epoch: str) -> Call:
    """When a tag of the namespace with the marker *epoch* was invalidated last, in the server's ms; None: never."""
    return ("HGET", epoch, "l")


# LEASE and what ends it


def lease(
    key: str,
    *,
    token: str,
    lease_ms: int = LEASE_MS,
    grace_ms: int = GRACE_MS,
    floor_ms: int = 0,
    awaited: str = "",
    unusable: Any = "",
) -> Call:
    """The fresh value, or the right to fill *key*.

    Args:
        floor_ms: a value that is fresh for no longer than this does not count.
        awaited: the token of a lease that this caller has waited for.
        unusable: the stamp of a value that this caller cannot use.
    """
    return ScriptCall(LEASE, (key,), (token, lease_ms, grace_ms, floor_ms, awaited, unusable))


@dataclass(slots=True)
class Leased:
    """What LEASE says.

    Args:
        word: ``HIT``, ``GRANTED``, ``WAIT``, ``BYPASS`` or ``FAILED``.
        held: of a hit the fresh value; of a granted or an awaited lease what is stale, if anything is.
        at_ms: of a granted lease, the server's time.
        holder: the token of an awaited lease.
        died_of: what the awaited load raised, packed.
    """

    word: bytes
    held: Held | None = None
    at_ms: int = 0
    holder: str = ""
    died_of: Any = None


def leased(reply: Reply) -> Leased:
    """What `lease` answers."""
    word = bytes(reply[0])
    if word == b"BYPASS":
        return Leased(word)
    if word == b"FAILED":
        return Leased(word, died_of=reply[1])
    there = held(*reply[-3:])
    if word == b"WAIT":
        return Leased(word, there, holder=_text(reply[2]))
    return Leased(word, there, at_ms=0 if word == b"HIT" else int(reply[1]))


def fill(fill: Fill) -> Call:
    """Store what was loaded, if the lease still stands."""
    fresh, stale = ms(fill.fresh), round(fill.stale * 1000)
    return ScriptCall(FILL, (fill.key,), (fill.token, fill.envelope, fresh, stale, fill.version))


_FILLED = {1: Filled.STORED, 2: Filled.BRIEFLY, 0: Filled.REFUSED, -1: Filled.OLD}


def filled(reply: Reply) -> Filled:
    """What `fill` answers."""
    return _FILLED[reply]


def renew(key: str, *, token: str) -> Call:
    """Keep a lease for another while. Reply: 1, or 0 if it is gone."""
    return ScriptCall(RENEW, (key,), (token, LEASE_MS, GRACE_MS))


def release(key: str, *, token: str, died_of: Any = b"") -> Call:
    """Give a lease back, with a word on what the load died of. Reply: 1, or 0 if it was gone."""
    return ScriptCall(RELEASE, (key,), (token, died_of, FAILURE_KEPT_MS))


# INVALIDATE


def invalidate(
    key: str,
    *,
    channel: str,
    echo: str,
    quarantine_ms: int = 0,
    floor: str = "",
    floor_ms: int = 0,
    begins: str = "",
    intent_ms: int = 0,
    ends: str = "",
    head: int | None = None,
) -> Call:
    """Remove an entry, or change what a marker says.

    Args:
        quarantine_ms: for so long, what is stored under *key* dies when that time is over.
        floor: the version that was written; older fills are refused for *floor_ms*.
        begins: the id of a write that begins, and ends by itself after *intent_ms*.
        ends: the id of a write that is over.
        head: how many bytes of what was there are wanted. Reply: with it three words for `held`, else a number.
    """
    asked = () if head is None else (head,)
    news = channel, messages.drop(echo, key)
    return ScriptCall(INVALIDATE, (key,), (*news, quarantine_ms, floor, floor_ms, begins, intent_ms, ends, *asked))


def expire(key: str, *, channel: str, echo: str) -> Call:
    """Make an entry stale. Reply: 1, or 0 if there is none."""
    return ScriptCall(EXPIRE, (key,), (channel, messages.drop(echo, key)))


def dirty(channel: str, key: str) -> Call:
    """Tell all processes not to use what is stored under *key*, which Redis refuses to remove."""
    return ("PUBLISH", channel, messages.dirty(key))


def news(channel: str, echo: str, key: str) -> Call:
    """Tell all processes that *key* has a new value, which is stored already."""
    return ("PUBLISH", channel, messages.drop(echo, key))


# By hand


def touch(key: str, *, fresh: float, stale: float, channel: str, echo: str) -> Call:
    """Give a fresh entry a new TTL, in seconds. Reply: 1, or 0 if there is none."""
    return ScriptCall(TOUCH, (key,), (ms(fresh), round(stale * 1000), channel, messages.drop(echo, key)))


def store(key: str, envelope: Any, *, fresh: float, stale: float, version: str = "", channel: str, echo: str) -> Call:
    """Put a value there. Reply: 1; 0 if a write is under way; -1 if it is older than the version floor."""
    lives = ms(fresh), round(stale * 1000)
    return ScriptCall(STORE, (key,), (envelope, *lives, version, channel, messages.drop(echo, key)))


def add(
    key: str, envelope: Any, *, token: str, fresh: float, stale: float, unusable: Any, channel: str, echo: str
) -> Call:
    """Put a value there unless a fresh one is there, other than the one with the stamp *unusable*."""
    lives = ms(fresh), round(stale * 1000)
    return ScriptCall(ADD, (key,), (token, envelope, *lives, unusable, channel, messages.drop(echo, key)))


def replace(key: str, envelope: Any, *, token: str, stamp: Any, channel: str, echo: str) -> Call:
    """Put a value in the place of the one with this *stamp*, for the rest of its lifetime."""
    return ScriptCall(REPLACE, (key,), (token, stamp, envelope, channel, messages.drop(echo, key)))


class Changed(NamedTuple):
    """Whether a value was put there, and if not, the one that is there instead."""

    done: bool
    there: Held | None


def changed(reply: Reply) -> Changed:
    """What `add` and `replace` answer."""
    word, *there = reply
    return Changed(word == 1, held(*there) if there else None)


def _text(raw: bytes | str) -> str:
    return raw.decode() if isinstance(raw, bytes) else raw
