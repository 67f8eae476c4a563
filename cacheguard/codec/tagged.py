"""The self-describing form: MessagePack, in which what MessagePack does not know is tagged with its type.

It serves values whose function says nothing about them. Only exact builtin types are taken, so that what comes back
has the type that went in; nothing is imported, looked up or called by name when bytes become values.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, date, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

from msgspec.msgpack import Decoder, Encoder, Ext

from ..errors import CodecError
from .form import fingerprint

_DEEPEST = 100  # levels of nesting; far below the interpreter's limit, far above what people store

_INT, _TUPLE, _SET, _FROZENSET, _DICT, _DECIMAL, _DATETIME, _DATE, _TIME, _TIMEDELTA, _UUID = range(1, 12)

_MICROSECOND = timedelta(microseconds=1)

# What MessagePack keeps as it is. Integers are not here: it has none beyond 64 bits.
_PLAIN = frozenset({str, float, bool, type(None), bytes})
_TEXT_ONLY = frozenset({str})

_pack = Encoder().encode


def _lower(value: object, room: int) -> Any:
    kind = type(value)
    if kind in _PLAIN:
        return value
    lower = _LOWERS.get(kind)
    if lower is None:
        name = f"{kind.__module__}.{kind.__qualname__}"
        raise CodecError(
            f"a value of type {name} cannot be stored without knowing what to rebuild: annotate the return type, "
            "or give the guard a serializer="
        )
    if room == 0:
        raise CodecError(f"the value is nested deeper than {_DEEPEST} levels, or contains itself")
    return lower(value, room - 1)


def _lower_int(value: int, _room: int) -> Any:
    if -(2**63) <= value < 2**64:
        return value
    return Ext(_INT, value.to_bytes(value.bit_length() // 8 + 1, "big", signed=True))


def _lower_items(value: Any, room: int) -> list[Any]:
    return [item if type(item) in _PLAIN else _lower(item, room) for item in value]


def _lower_dict(value: dict[Any, Any], room: int) -> Any:
    if _TEXT_ONLY.issuperset(map(type, value)):
        return {key: item if type(item) in _PLAIN else _lower(item, room) for key, item in value.items()}
    pairs = [half for pair in value.items() for half in pair]
    return Ext(_DICT, _pack(_lower_items(pairs, room)))


def _container(tag: int) -> Callable[[Any, int], Ext]:
    return lambda value, room: Ext(tag, _pack(_lower_items(value, room)))


def _lower_datetime(value: datetime, _room: int) -> Ext:
    fields = (value.year, value.month, value.day, value.hour, value.minute, value.second, value.microsecond)
    return Ext(_DATETIME, _pack((*fields, value.fold, _lower_zone(value.tzinfo))))


def _lower_time(value: time, _room: int) -> Ext:
    fields = (value.hour, value.minute, value.second, value.microsecond, value.fold)
    return Ext(_TIME, _pack((*fields, _lower_zone(value.tzinfo))))


def _lower_zone(zone: tzinfo | None) -> str | int | tuple[int, str] | None:
    """A zone's key, or its offset in microseconds (with its name, if it was given one)."""
    if zone is None:
        return None
    key: str | None = getattr(zone, "key", None)
    if isinstance(zone, ZoneInfo) and key is not None:
        return key
    offset = zone.utcoffset(None)
    if offset is None:
        raise CodecError(f"the time zone {zone!r} has neither a fixed offset nor a key: use zoneinfo.ZoneInfo")
    name = zone.tzname(None)
    if name is None or name == timezone(offset).tzname(None):
        return offset // _MICROSECOND
    return offset // _MICROSECOND, name


_LOWERS: dict[type, Callable[[Any, int], Any]] = {
    int: _lower_int,
    list: _lower_items,
    dict: _lower_dict,
    tuple: _container(_TUPLE),
    set: _container(_SET),
    frozenset: _container(_FROZENSET),
    Decimal: lambda value, _room: Ext(_DECIMAL, str(value).encode()),
    datetime: _lower_datetime,
    date: lambda value, _room: Ext(_DATE, _pack(value.toordinal())),
    time: _lower_time,
    timedelta: lambda value, _room: Ext(_TIMEDELTA, _pack((value.days, value.seconds, value.microseconds))),
    UUID: lambda value, _room: Ext(_UUID, value.bytes),
}


def _raise_dict(data: memoryview) -> dict[Any, Any]:
    halves = iter(_unpack(data))
    return dict(zip(halves, halves, strict=True))


def _raise_datetime(data: memoryview) -> datetime:
    year, month, day, hour, minute, second, microsecond, fold, zone = _unpack(data)
    return datetime(year, month, day, hour, minute, second, microsecond, _raise_zone(zone), fold=fold)


def _raise_time(data: memoryview) -> time:
    hour, minute, second, microsecond, fold, zone = _unpack(data)
    return time(hour, minute, second, microsecond, _raise_zone(zone), fold=fold)


def _raise_zone(zone: Any) -> tzinfo | None:
    match zone:
        case None:
            return None
        case 0:
            return UTC
        case int():
            return timezone(zone * _MICROSECOND)
        case str():
            return ZoneInfo(zone)
        case _:
            offset, name = zone
            return timezone(offset * _MICROSECOND, name)


_RAISES: dict[int, Callable[[memoryview], Any]] = {
    _INT: lambda data: int.from_bytes(data, "big", signed=True),
    _TUPLE: lambda data: tuple(_unpack(data)),
    _SET: lambda data: set(_unpack(data)),
    _FROZENSET: lambda data: frozenset(_unpack(data)),
    _DICT: _raise_dict,
    _DECIMAL: lambda data: Decimal(str(data, "ascii")),
    _DATETIME: _raise_datetime,
    _DATE: lambda data: date.fromordinal(_unpack(data)),
    _TIME: _raise_time,
    _TIMEDELTA: lambda data: timedelta(*_unpack(data)),
    _UUID: lambda data: UUID(bytes=bytes(data)),
}


def _raise(code: int, data: memoryview) -> Any:
    return _RAISES[code](data)


_unpack: Callable[[bytes | memoryview], Any] = Decoder(ext_hook=_raise).decode


class _Tagged:
    """The codec of values that nothing is known about."""

    __slots__ = ()

    schema: bytes = fingerprint("tagged 1")

    def __repr__(self) -> str:
        return "TAGGED"

    def encode(self, value: Any) -> bytes:
        try:
            return _pack(_lower(value, _DEEPEST))
        except CodecError:
            raise
        except Exception as error:  # zones run code of the user, and text may hold half a surrogate pair
            raise CodecError(f"a value of type {type(value).__qualname__} cannot be stored: {error}") from error

    def decode(self, payload: bytes | memoryview) -> Any:
        try:
            return _unpack(payload)
        except Exception as error:  # foreign bytes fail in more ways than can be listed
            raise CodecError(f"these bytes hold no tagged value: {error}") from error


TAGGED = _Tagged()
