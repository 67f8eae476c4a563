"""Every call of the cache protocol: the function that makes it and, where the reply has a shape, the one that reads it.

No other module spells the arguments of a script or of a command about entries and markers. ``lease`` makes the call,
``leased`` reads its reply, and so on. What the calls do is in the scripts in ``lua/``; `model` answers the same calls
without Redis, in the same order.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from ..errors import Refused
from ..ports import Call, Reply, ScriptCall
from . import messages
from .entry import Fill, Filled, ms
from .layout import HEADER_BYTES, NOT_OURS, Held, clock, held, is_guarded, last_tagged, new_nonce, nonce
from .lua import load

MARK, LEASE, FILL, RENEW, RELEASE = load("mark"), load("lease"), load("fill"), load("renew"), load("release")
INVALIDATE, TAGGED, EXPIRE, TOUCH = load("invalidate"), load("tagged"), load("expire"), load("touch")
STORE, ADD, REPLACE = load("store"), load("add"), load("replace")

LEASE_MS = 5_000  # longer than any pause a healthy process makes, short enough to wait out a dead one
GRACE_MS = 60_000  # a stale value is kept for so long beyond its lease, to be served if the load fails
ALWAYS = 2**53 - 1  # a floor that no remaining lifetime reaches: lease whatever is there
FAILURE_KEPT_MS = 2_000  # several of a waiter's longest polls
FLOOR_MS = 300_000  # a version floor outlives what a replica usually lags behind
HEAD_BYTES = 1024  # of an envelope: its header, the nonces of deep namespaces and some dozen tags

TIME: Call = ("TIME",)


def keys_of(calls: Iterable[Call]) -> Iterator[str]:
    """The keys that *calls* are about."""
    for call in calls:
        if isinstance(call, ScriptCall):
            yield call.keys[0]
        elif call[0] == "MGET":
            yield from map(str, call[1:])
        elif len(call) > 1:
            yield str(call[1])


# READ


def nonces(markers: Sequence[str]) -> list[Call]:
    """The nonces of *markers*; None for one that is not there. No call if there are none."""
    return [("MGET", *markers)] if markers else []


def were_nonces(markers: Sequence[str], replies: Sequence[Reply]) -> dict[str, Any]:
    """What `nonces` answers, by marker: the last of *replies*. A server that refuses to say names none."""
    if not markers or isinstance(replies[-1], Refused):
        return dict.fromkeys(markers)
    return dict(zip(markers, map(nonce, replies[-1]), strict=True))


def were_last_tagged(markers: Sequence[str], replies: Sequence[Reply]) -> dict[str, Any]:
    """As `were_nonces`, of namespaces: the nonces of the last invalidation of a tag beneath each."""
    if not markers or isinstance(replies[-1], Refused):
        return dict.fromkeys(markers, b"?")
    return dict(zip(markers, map(last_tagged, replies[-1]), strict=True))


def read(key: str, markers: Sequence[str]) -> list[Call]:
    """The entry of *key*, the nonces of *markers*, and behind them the server's time; `clock` reads that.

    No script: it works when memory is full. Reply: ``[what lies under key, a marker each]``, time.
    """
    return [("MGET", key, *markers), TIME]


def read_many(keys: Sequence[str], markers: Sequence[str]) -> list[Call]:
    """`read` for several keys, each marker once."""
    return [("MGET", *keys, *markers), TIME]


def were_read(
    keys: Sequence[str], markers: Sequence[str], replies: Sequence[Reply]
) -> tuple[list[Held | Refused | None], dict[str, Any]]:
    """What `read_many` answers: what is under each key, and by marker its nonce."""
    raws, time = replies
    there = [
        raw if isinstance(raw, Refused) else held(raw, clock(time, key)) for key, raw in zip(keys, raws, strict=False)
    ]
    return there, dict(zip(markers, map(nonce, raws[len(keys) :]), strict=True))


def read_near(keys: Sequence[str], markers: Sequence[str]) -> list[Call]:
    """`read_many` for replicas; each of them adds its time."""
    return [("GET", name) for name in (*keys, *markers)]


def was_read_near(raw: Reply, now: int) -> Held | None:
    """What a replica has; None if there is no value, or if only the master can say whether it may be used.

    That is so behind a fence, and while a replica of the database may lag.
    """
    return None if raw is None or is_guarded(raw) else held(raw, now)


def scan(cursor: str, pattern: str, count: int) -> Call:
    """One page of the names that match *pattern*; about *count* names are looked at."""
    return ("SCAN", cursor, "MATCH", pattern, "COUNT", count)


def scanned(reply: Reply) -> tuple[str, list[str]]:
    """The next cursor, "0" at the end, and the names."""
    cursor, names = reply
    return bytes(cursor).decode(), [name.decode("utf-8", "surrogatepass") for name in names]


def head(key: str, most: int = HEAD_BYTES) -> Call:
    """What lies under *key*, with the first *most* bytes of its envelope; `held` reads that."""
    return ("GETRANGE", key, 0, HEADER_BYTES + most - 1)


# Markers


def mark(marker: str, *, nonce: bytes, keep_ms: int) -> Call:
    """The nonce of *marker*; *nonce* from now on if it has none."""
    return ScriptCall(MARK, (marker,), (nonce, keep_ms))


class Marked(NamedTuple):
    """What `mark` answers.

    Args:
        last: the nonce of the last invalidation of a tag beneath it.
        quarantine_ms: for how long a quarantine goes on.
        beneath_ms: for how long one goes on of some tag beneath it.
    """

    nonce: bytes
    last: bytes
    quarantine_ms: int
    beneath_ms: int


def marked(reply: Reply) -> Marked:
    """What `mark` answers."""
    return Marked(reply[0], reply[1], int(reply[2]), int(reply[3]))


def tagged(epoch: str, lag_ms: int = 0) -> Call:
    """Note at the marker *epoch* of a namespace that a tag of it is invalidated now, and quarantined for *lag_ms*."""
    return ScriptCall(TAGGED, (epoch,), (new_nonce(), lag_ms))


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
        floor_ms: a value that is fresh for no longer than this does not count; `ALWAYS`: none does, and the failures of
            others do not count either.
        awaited: the token of a lease that this caller has waited for.
        unusable: the stamp of a value that this caller cannot use.
    """
    return ScriptCall(LEASE, (key,), (token, lease_ms, grace_ms, floor_ms, awaited, unusable))


@dataclass(slots=True)
class Leased:
    """What LEASE says.

    Args:
        word: ``HIT``, ``GRANTED``, ``WAIT``, ``BYPASS`` or ``FAILED``.
        at_ms: the server's time.
        held: of a hit the fresh value; else what is stale, if anything is.
        holder: the token of an awaited lease.
        died_of: what another's load raised, packed.
        failures: how many loads have failed in a row.
        pause_ms: for how long nobody loads after the last failure: of FAILED what is left of it, else all of it.
    """

    word: bytes
    at_ms: int
    held: Held | None = None
    holder: str = ""
    died_of: Any = None
    failures: int = 0
    pause_ms: int = 0


def leased(reply: Reply) -> Leased:
    """What `lease` answers."""
    word, at_ms, raw, *rest = reply
    said = Leased(bytes(word), int(at_ms))
    said.held = held(raw or None, said.at_ms)
    if said.word == b"WAIT":
        said.holder = _text(rest[1])
    elif said.word == b"GRANTED":
        said.failures, said.pause_ms = map(int, rest)
    elif said.word == b"FAILED":
        said.died_of, said.failures, said.pause_ms = rest[0], int(rest[1]), int(rest[2])
    return said


def fill(fill: Fill, *, channel: str) -> Call:
    """Store what was loaded, if the lease still stands."""
    lives = ms(fill.fresh), round(fill.stale * 1000)
    bounds = fill.version, fill.under, fill.until_ms
    return ScriptCall(FILL, (fill.key,), (fill.token, fill.envelope, *lives, *bounds, channel))


_FILLED = {1: Filled.STORED, 2: Filled.BRIEFLY, 0: Filled.REFUSED, -1: Filled.OLD}


def filled(reply: Reply) -> Filled:
    """What `fill` answers."""
    return _FILLED[reply]


def renew(key: str, *, token: str) -> Call:
    """Keep a lease for another while. Reply: 1, or 0 if it is gone."""
    return ScriptCall(RENEW, (key,), (token, LEASE_MS, GRACE_MS))


def release(
    key: str,
    *,
    token: str,
    died_of: Any = b"",
    failures: int = 0,
    pause_ms: int = 0,
    kept_ms: int = FAILURE_KEPT_MS,
    channel: str,
) -> Call:
    """Give a lease back, with a word on what the load died of. Reply: 1, or 0 if it was gone.

    Args:
        died_of: for those who wait for this lease.
        failures: in a row, with this one.
        pause_ms: for so long, nobody else loads either.
        kept_ms: for so long, the word is kept.
        channel: where those who wait for the lease hear that it is gone.
    """
    return ScriptCall(RELEASE, (key,), (token, died_of, failures, pause_ms, kept_ms, channel))


# INVALIDATE


def invalidate(
    key: str,
    *,
    channel: str,
    echo: str,
    quarantine_ms: int = 0,
    floor: str = "",
    under: bytes = b"",
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
        under: the nonces of the namespaces under which that counts; empty: under all.
        begins: the id of a write that begins, and ends by itself after *intent_ms*.
        ends: the id of a write that is over.
        head: how many bytes of what was there are wanted. Reply: with it what `was_removed` reads, else a number.
    """
    news = channel, echo, quarantine_ms, floor, under, floor_ms, begins, intent_ms, ends
    return ScriptCall(INVALIDATE, (key,), (*news, "" if head is None else head))


def was_removed(reply: Reply) -> Held | None:
    """What was there, as `invalidate` answers it if it is asked for that."""
    raw, now = reply
    return held(raw or None, int(now))


def expire(key: str, *, channel: str, echo: str) -> Call:
    """Make an entry stale. Reply: 1, or 0 if there is none."""
    return ScriptCall(EXPIRE, (key,), (channel, echo))


def dirty(channel: str, key: str) -> Call:
    """Tell all processes not to use what is stored under *key*, which Redis refuses to remove."""
    return ("PUBLISH", channel, messages.dirty(key))


def news(channel: str, echo: str, key: str) -> Call:
    """Tell all processes that *key* has a new value, which is stored already."""
    return ("PUBLISH", channel, messages.Drop(key, echo).text())


# By hand


def touch(key: str, *, fresh: float, stale: float, channel: str, echo: str) -> Call:
    """Give a fresh entry a new TTL, in seconds. Reply: 1, or 0 if there is none."""
    return ScriptCall(TOUCH, (key,), (ms(fresh), round(stale * 1000), channel, echo))


def store(
    key: str,
    envelope: Any,
    *,
    fresh: float,
    stale: float,
    version: str = "",
    under: bytes = b"",
    channel: str,
    echo: str,
) -> Call:
    """Put a value there. Reply: 1; 0 if a write is under way; -1 if it is older than the version floor."""
    lives = ms(fresh), round(stale * 1000)
    return ScriptCall(STORE, (key,), (envelope, *lives, version, under, channel, echo))


def add(
    key: str, envelope: Any, *, token: str, fresh: float, stale: float, unusable: Any, channel: str, echo: str
) -> Call:
    """Put a value there unless a fresh one is there, other than the one with the stamp *unusable*."""
    lives = ms(fresh), round(stale * 1000)
    return ScriptCall(ADD, (key,), (token, envelope, *lives, unusable, channel, echo))


def replace(key: str, envelope: Any, *, token: str, stamp: Any, channel: str, echo: str) -> Call:
    """Put a value in the place of the one with this *stamp*, for the rest of its lifetime."""
    return ScriptCall(REPLACE, (key,), (token, stamp, envelope, channel, echo))


class Changed(NamedTuple):
    """Whether a value was put there, and if not, the one that is there instead."""

    done: bool
    there: Held | None


def changed(reply: Reply) -> Changed:
    """What `add` and `replace` answer."""
    word, *there = reply
    return Changed(word == 1, held(there[1], int(there[0])) if there else None)


def _text(raw: bytes | str) -> str:
    return raw.decode() if isinstance(raw, bytes) else raw


__all__ = ["NOT_OURS", "Held", "clock", "held", "last_tagged", "nonce"]  # read, beside what is made here
