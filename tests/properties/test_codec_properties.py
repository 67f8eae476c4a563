"""For all values: equal and of the same types, or refused. For all bytes: a value, or an error of ours."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from cacheguard.codec import TAGGED, codec_for
from cacheguard.errors import CodecError
from cacheguard.protocol.envelope import Envelope, Kind, Sealer

_zones = (
    st.none()
    | st.timezones()
    | st.builds(timezone, st.timedeltas(timedelta(hours=-23), timedelta(hours=23)))
    | st.builds(timezone, st.timedeltas(timedelta(hours=-23), timedelta(hours=23)), st.text("ABC", min_size=1))
)
_moments = st.datetimes(timezones=_zones) | st.times(timezones=_zones)
_scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.binary()
    | st.decimals()
    | st.uuids()
    | st.dates()
    | st.timedeltas()
    | _moments
)
_hashable = st.recursive(
    st.none() | st.integers() | st.text() | st.binary() | st.dates() | st.uuids(),
    lambda inner: st.tuples(inner, inner) | st.frozensets(inner, max_size=3),
    max_leaves=4,
)
_values = st.recursive(
    _scalars,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(_hashable, inner, max_size=4)
        | st.sets(_hashable, max_size=4)
        | st.frozensets(_hashable, max_size=4)
    ),
    max_leaves=12,
)


def shape(value: Any) -> Any:
    """*value* as something that compares equal only if types, contents, zones and second hours are equal."""
    kind = type(value)
    show = _SHAPES.get(kind)
    return (kind, value) if show is None else (kind, show(value))


_SHAPES: dict[type, Callable[[Any], Any]] = {
    list: lambda value: tuple(map(shape, value)),
    tuple: lambda value: tuple(map(shape, value)),
    set: lambda value: frozenset(map(shape, value)),
    frozenset: lambda value: frozenset(map(shape, value)),
    dict: lambda value: tuple((shape(key), shape(part)) for key, part in value.items()),
    float: lambda value: "nan" if math.isnan(value) else value.hex(),
    Decimal: str,
    datetime: lambda value: (value.replace(tzinfo=None), value.fold, zone_of(value.tzinfo)),
    time: lambda value: (value.replace(tzinfo=None), value.fold, zone_of(value.tzinfo)),
}


def zone_of(zone: tzinfo | None) -> Any:
    return None if zone is None else repr(zone)


@given(_values)
def test_a_tagged_value_comes_back_as_itself(value: Any) -> None:
    assert shape(TAGGED.decode(TAGGED.encode(value))) == shape(value)


@dataclass
class Everything:
    flag: bool | None
    number: int
    ratio: float
    text: str
    raw: bytes
    price: Decimal
    at: datetime
    clock: time
    span: timedelta
    pairs: list[tuple[int, str]]
    words: set[str]
    prices: dict[str, Decimal]
    children: list[Everything]
    anything: Any


_everything: st.SearchStrategy[Everything] = st.deferred(
    lambda: st.builds(
        Everything,
        flag=st.none() | st.booleans(),
        number=st.integers(),
        ratio=st.floats(),
        text=st.text(),
        raw=st.binary(),
        price=st.decimals(),
        at=st.datetimes(timezones=_zones),
        clock=st.times(timezones=_zones),
        span=st.timedeltas(),
        pairs=st.lists(st.tuples(st.integers(), st.text()), max_size=3),
        words=st.sets(st.text(), max_size=3),
        prices=st.dictionaries(st.text(), st.decimals(), max_size=3),
        children=st.lists(_everything, max_size=1),
        anything=_scalars,
    )
)

_typed = codec_for(Everything | None)


def fields(value: Everything) -> Any:
    plain = {name: getattr(value, name) for name in Everything.__dataclass_fields__ if name != "children"}
    return [shape_but_fixed_zones(plain), [fields(child) for child in value.children]]


def shape_but_fixed_zones(value: Any) -> Any:
    """As `shape`, but zones with a fixed offset are what they are by that offset: UTC may come back for ``Etc/UTC``."""
    return {name: _by_offset(part) for name, part in value.items()}


def _by_offset(part: Any) -> Any:
    if isinstance(part, (datetime, time)) and part.tzinfo is not None:
        fixed = part.tzinfo.utcoffset(None)
        return part.replace(tzinfo=None), part.fold, zone_of(part.tzinfo) if fixed is None else fixed
    return shape(part)


@given(_everything)
def test_a_typed_value_comes_back_as_itself_or_is_refused(value: Everything) -> None:
    try:
        payload = _typed.encode(value)
    except CodecError:
        return
    assert fields(_typed.decode(payload)) == fields(value)


_ANNOTATIONS = (int, float, str, bytes, Decimal, datetime, set[int], tuple[int, ...], list[float], dict[str, int], Any)


@given(value=_values)
def test_no_value_is_changed_behind_the_callers_back(value: Any) -> None:
    for annotation in _ANNOTATIONS:  # to draw a value costs far more than to code it
        codec = codec_for(annotation)
        try:
            back = codec.decode(codec.encode(value))
        except CodecError:
            continue
        if shape(back) != shape(value):
            assert back == value or list(back) == list(value), annotation  # only what the annotation states


_CODECS = [TAGGED, _typed, codec_for(list[Everything] | dict[str, int]), codec_for(Everything | Kind)]


@given(payload=st.binary())
def test_no_bytes_make_a_codec_raise_anything_but_its_error(payload: bytes) -> None:
    for codec in _CODECS:
        for prefix in (b"", b"\xc1", b"\xc1\xd8", b"\xc7"):
            with contextlib.suppress(CodecError):
                codec.decode(prefix + payload)


@given(value=_values, place=st.integers(0, 10_000), byte=st.integers(0, 255), drop=st.booleans())
def test_a_spoiled_payload_gives_a_value_or_an_error_of_ours(value: Any, place: int, byte: int, drop: bool) -> None:
    payload = bytearray(TAGGED.encode(value))
    place %= len(payload)
    if drop:
        del payload[place]
    else:
        payload[place] = byte
    with contextlib.suppress(CodecError):
        TAGGED.decode(bytes(payload))


_envelopes = st.builds(
    Envelope,
    kind=st.sampled_from(Kind),
    schema=st.binary(min_size=8, max_size=8),
    payload=st.binary(max_size=200) | st.binary(min_size=1, max_size=5).map(lambda part: part * 1000),
    ttl=st.integers(0, 10**12).map(lambda ms: ms / 1000) | st.just(math.inf),
    load_time=st.integers(0, 2**32 - 1).map(lambda microseconds: microseconds / 1_000_000),
    tags=st.lists(st.text(), max_size=3).map(tuple),
)
_sealers = st.builds(
    Sealer,
    secret=st.none() | st.binary(min_size=16, max_size=20),
    compression=st.sampled_from(["auto", "zlib", "lz4", None]),
    compress_above=st.integers(0, 300),
    max_value_bytes=st.just(5000),
)


@given(_sealers, _envelopes, st.text())
def test_what_is_sealed_can_be_opened(sealer: Sealer, envelope: Envelope, key: str) -> None:
    assert sealer.open(sealer.seal(envelope, key), key) == envelope


@given(_sealers, _envelopes, st.integers(0, 10_000), st.integers(0, 255), st.booleans())
def test_a_spoiled_envelope_opens_or_is_an_error_of_ours(
    sealer: Sealer, envelope: Envelope, place: int, byte: int, drop: bool
) -> None:
    blob = bytearray(sealer.seal(envelope, "key"))
    place %= len(blob)
    if drop:
        del blob[place:]
    else:
        blob[place] = byte
    with contextlib.suppress(CodecError):
        assert len(sealer.open(bytes(blob), "key").payload) <= 5000


@given(_sealers, st.binary())
def test_no_bytes_make_a_sealer_raise_anything_but_its_error(sealer: Sealer, blob: bytes) -> None:
    with contextlib.suppress(CodecError):
        sealer.open(blob, "key")
    with contextlib.suppress(CodecError):
        sealer.open(b"\xc6\x00" + blob, "key")
