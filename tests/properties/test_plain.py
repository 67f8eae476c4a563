"""A plain hit says what the long way says, and whatever is not plain is left to that."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cacheguard.errors import CodecError, Refused
from cacheguard.protocol import calls
from cacheguard.protocol.entry import Found, Stored
from cacheguard.protocol.envelope import Envelope, Kind, Sealer
from cacheguard.protocol.layout import HEADER, LAYOUT, VALUE
from cacheguard.protocol.plain import around, plain_ones

NOW = 1_700_000_000_000
TIME = [b"1700000000", b"000000"]
MOST = 5_000
SEALER = Sealer(compression=None, max_value_bytes=MOST)
OTHERS = [Sealer(compression="zlib", compress_above=0, max_value_bytes=MOST), Sealer(secret=b"s" * 16)]

nonces = st.binary(min_size=8, max_size=8)
moments = st.one_of(st.just(300_000), st.integers(-10_000, 400_000))
envelopes = st.builds(
    Envelope,
    kind=st.sampled_from([Kind.VALUE, Kind.VALUE, Kind.VALUE, Kind.ABSENT]),
    schema=st.binary(min_size=8, max_size=8),
    payload=st.binary(max_size=200),
    ttl=st.one_of(st.just(math.inf), st.integers(0, 10**9).map(lambda ms: ms / 1000)),
    load_time=st.integers(0, 10**9).map(lambda us: us / 1_000_000),
    tags=st.sampled_from([(), (), (), ("red",)]),
    nonces=st.lists(nonces, max_size=17).map(tuple),
)


def stored(blob: bytes, fresh: int, span: int, dead: int, born: int, claims: bytes = b"") -> bytes:
    """What lies under a key."""
    lives = [part for moment in (span, dead, born) for part in (moment >> 32, moment & 0xFFFFFFFF)]
    head = HEADER.pack(LAYOUT << 56 | VALUE << 48 | fresh, len(claims), *lives, len(blob))
    return head + blob + claims


def marker(nonce: bytes) -> bytes:
    return stored(nonce + bytes(8), 0, 0, NOW + 1, 0)


@dataclass
class Verbatim:
    """Every payload is what it is, with its schema beside it."""

    schema: bytes

    def encode(self, value: Any) -> bytes:
        return bytes(value[1])

    def decode(self, payload: bytes | memoryview) -> Any:
        if payload == b"unreadable":
            raise CodecError("it is not readable")
        return self.schema, bytes(payload)


def plainly(raws: list[Any], time: Any = TIME, most: int = MOST) -> Found | None:
    """The plain hit that is first of *raws*, beside the markers that are the rest."""
    beside = around(raws[1:], time)
    return None if beside is None else plain_ones(raws[:1], beside, most, None, Verbatim)[0]


def by_the_long_way(raws: list[Any]) -> Found | None:
    """What `layout` and `envelope` say, of what a plain hit may be."""
    held = calls.held(raws[0], NOW)
    if held is None or held.fresh_left is None or held.fresh_left <= 0:
        return None
    try:
        opened = SEALER.open(held.envelope, "k")
    except CodecError:
        return None
    if opened.kind is not Kind.VALUE or opened.tags or opened.nonces != tuple(map(calls.nonce, raws[1:])):
        return None
    value = opened.schema, opened.payload
    stored = Stored(Kind.VALUE, value, opened.ttl, opened.load_time, (), opened.nonces)
    return Found(stored, held.fresh_left, "", held.age, held.dead_left)


@given(envelope=envelopes, fresh=moments, span=moments, dead=moments, claims=st.binary(max_size=20), data=st.data())
def test_what_is_plain_is_what_the_long_way_finds(
    envelope: Envelope, fresh: int, span: int, dead: int, claims: bytes, data: st.DataObject
) -> None:
    sealer = data.draw(st.sampled_from([SEALER, SEALER, SEALER, *OTHERS]))
    raw = stored(sealer.seal(envelope, "k"), NOW + fresh, abs(span), NOW + dead, NOW - 5_000, claims)
    markers: list[Any] = list(map(marker, envelope.nonces))
    match data.draw(st.sampled_from(["whole", "whole", "cut", "longer", "byte", "marker", "no marker", "none"])):
        case "cut":
            raw = raw[: data.draw(st.integers(0, len(raw)))]
        case "longer":
            raw += b"x"
        case "byte":
            at = data.draw(st.integers(0, len(raw) - 1))
            raw = raw[:at] + bytes((data.draw(st.integers(0, 255)),)) + raw[at + 1 :]
        case "marker" if markers:
            markers[data.draw(st.integers(0, len(markers) - 1))] = data.draw(st.one_of(nonces.map(marker), nonces))
        case "no marker" if markers:
            markers[-1] = data.draw(st.sampled_from([None, b"", raw]))
        case _:
            pass
    hit = plainly([raw, *markers])
    assert hit is None or hit == by_the_long_way([raw, *markers])


@given(envelope=envelopes, fresh=st.integers(1, 400_000), claims=st.binary(max_size=20))
def test_what_should_be_plain_is(envelope: Envelope, fresh: int, claims: bytes) -> None:
    envelope.kind, envelope.tags, envelope.nonces = Kind.VALUE, (), envelope.nonces[:15]
    raw = stored(SEALER.seal(envelope, "k"), NOW + fresh, 400_000, NOW + fresh, NOW - 5_000, claims)
    raws = [raw, *map(marker, envelope.nonces)]
    hit = plainly(raws)
    assert hit is not None
    assert hit == by_the_long_way(raws)


def test_more_than_may_be_is_not_plain() -> None:
    envelope = Envelope(Kind.VALUE, b"schema 8", b"x" * MOST, 1.0, 0.0)
    raw = stored(SEALER.seal(envelope, "k"), NOW + 1, 1, NOW + 1, NOW)
    assert plainly([raw]) is not None
    assert plainly([raw], most=MOST - 1) is None


ENVELOPE = Envelope(Kind.VALUE, b"schema 8", b"payload " * 4, 60.0, 0.25, (), (b"nonce  1", b"nonce  2"))
RAW = stored(SEALER.seal(ENVELOPE, "k"), NOW + 100, 60_000, NOW + 200, NOW - 5_000)
AROUND = [marker(b"nonce  1"), marker(b"nonce  2")]


def sealed(sealer: Sealer = SEALER, *, fresh: int = 100, span: int = 60_000, dead: int = 200, **fields: Any) -> bytes:
    return stored(sealer.seal(replace(ENVELOPE, **fields), "k"), NOW + fresh, span, NOW + dead, NOW - 5_000)


NOT_PLAIN: dict[str, list[Any]] = {
    "nothing": [None, *AROUND],
    "no bytes": [Refused("WRONGTYPE"), *AROUND],
    "an absence": [sealed(kind=Kind.ABSENT), *AROUND],
    "tags": [sealed(tags=("red",)), *AROUND],
    "compressed": [sealed(OTHERS[0]), *AROUND],
    "signed": [sealed(OTHERS[1]), *AROUND],
    "stale": [sealed(fresh=0), *AROUND],
    "dead": [sealed(dead=0), *AROUND],
    "of another clock": [sealed(fresh=60_001, dead=70_000), *AROUND],
    "another layout": [b"\xc3" + RAW[1:], *AROUND],
    "another envelope": [RAW[: HEADER.size] + b"\xc5" + RAW[HEADER.size + 1 :], *AROUND],
    "a payload beyond the value": [stored(SEALER.seal(ENVELOPE, "k")[:-1], NOW + 9, 9, NOW + 9, NOW) + b" ", *AROUND],
    "a payload within the value": [stored(SEALER.seal(ENVELOPE, "k") + b"x", NOW + 9, 9, NOW + 9, NOW), *AROUND],
    "another nonce": [RAW, AROUND[0], marker(b"nonce  3")],
    "nonces in another order": [RAW, *reversed(AROUND)],
    "a marker less": [RAW, AROUND[0]],
    "a marker more": [RAW, *AROUND, AROUND[0]],
    "markers, and none known": [sealed(nonces=()), *AROUND],
    "no marker": [RAW, AROUND[0], None],
    "a marker without a nonce": [RAW, AROUND[0], AROUND[1][:1] + b"\0" + AROUND[1][2:]],
    "a marker of another layout": [RAW, AROUND[0], b"\xc3" + AROUND[1][1:]],
    "a marker that was cut": [RAW, AROUND[0], AROUND[1][: HEADER.size + 7]],
}


def test_this_one_is_plain() -> None:
    assert plainly([RAW, *AROUND]) == by_the_long_way([RAW, *AROUND]) is not None
    assert plainly([RAW + b"claims", *AROUND]) is not None


@pytest.mark.parametrize("name", NOT_PLAIN)
def test_this_one_is_not(name: str) -> None:
    assert plainly(NOT_PLAIN[name]) is None


def test_the_times_of_several_servers_are_not_plain() -> None:
    assert plainly([RAW, *AROUND], {"k": TIME}) is None


def test_no_beginning_of_one_is_plain() -> None:
    assert all(plainly([RAW[:size], *AROUND]) is None for size in range(len(RAW)))


def other(schema: bytes, payload: bytes = b"payload") -> bytes:
    return sealed(schema=schema, payload=payload)


def test_each_of_a_batch_is_what_it_is_alone() -> None:
    raws = [RAW, None, other(b"schema 9"), RAW, *(raws[0] for raws in NOT_PLAIN.values()), other(b"schema 9"), RAW]
    beside = around(AROUND, TIME)
    assert beside is not None
    together = plain_ones(raws, beside, MOST, None, Verbatim)
    assert together == [plain_ones([raw], beside, MOST, None, Verbatim)[0] for raw in raws]
    assert [each.stored.value[0] for each in together if each and each.stored][:3] == [
        b"schema 8",
        b"schema 9",
        b"schema 8",
    ]


def test_who_has_a_codec_reads_only_its_schema() -> None:
    beside = around(AROUND, TIME)
    assert beside is not None
    raws = [other(b"schema 9"), RAW, other(b"schema 9", b"unreadable")]
    found = plain_ones(raws, beside, MOST, Verbatim(b"schema 9"), Verbatim)
    assert [each is not None for each in found] == [True, False, False]
    assert plain_ones(raws, beside, MOST, None, lambda _: None) == [None] * 3
