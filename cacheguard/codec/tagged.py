"""The self-describing form: MessagePack, in which what MessagePack does not know is tagged with its type.

It serves values whose function says nothing about them, and, with a table of classes, those that have classes of the
user in them (`objects`). Only exact types are taken, so that what comes back has the type that went in; nothing is
imported, looked up or called by name when bytes become values.
"""

from __future__ import annotations

import re
import sys
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Mapping
from datetime import UTC, date, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal
from fractions import Fraction
from functools import partial
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network
from pathlib import PosixPath, PurePosixPath, PureWindowsPath, WindowsPath
from pickle import PicklingError
from typing import Any
from uuid import UUID, SafeUUID
from zoneinfo import ZoneInfo

from msgspec.msgpack import Decoder, Encoder, Ext

from ..errors import CodecError
from .fidelity import difference
from .form import Refused, fingerprint, type_name

DEEPEST = 100  # levels of nesting; far below the interpreter's limit, far above what people store

_INT, _TUPLE, _SET, _FROZENSET, _DICT, _DECIMAL, _DATETIME, _DATE, _TIME, _TIMEDELTA, _UUID = range(1, 12)
_BYTEARRAY, _COMPLEX, _PATH, _ADDRESS, _ZONE, _DEQUE, _ORDERED, _COUNTER, _DEFAULTDICT = range(12, 21)
_FRACTION, _RANGE, _PATTERN = range(21, 24)
OBJECT = 32

_MICROSECOND = timedelta(microseconds=1)

_DICT_TYPE: Any = dict

# What MessagePack keeps as it is. Integers are not here: it has none beyond 64 bits.
PLAIN = frozenset({str, float, bool, type(None), bytes})
_TEXT_ONLY = frozenset({str})

# The place of a class in these tuples is stored: append only.
_PATHS: tuple[type[Any], ...] = (PurePosixPath, PureWindowsPath, PosixPath, WindowsPath)
_ADDRESSES: tuple[type[Any], ...] = (
    IPv4Address, IPv6Address, IPv4Network, IPv6Network, IPv4Interface, IPv6Interface,
)  # fmt: skip
_FACTORIES: tuple[Any, ...] = (None, list, dict, set, int, str, float, bool, tuple, bytes, frozenset)

UNKNOWN = "which cannot be stored without knowing what to rebuild: annotate the return type, or give a serializer="

pack: Callable[[Any], bytes] = Encoder().encode

Lower = Callable[["Tagged", Any, int], Any]
Raise = Callable[["Tagged", memoryview], Any]


def _lower_int(_form: Tagged, value: int, _room: int) -> Any:
    if -(2**63) <= value < 2**64:
        return value
    return Ext(_INT, value.to_bytes(value.bit_length() // 8 + 1, "big", signed=True))


def _lower_items(form: Tagged, value: Any, room: int) -> list[Any]:
    lowered: list[Any] = []
    lower, add = form.lower, lowered.append
    try:
        for item in value:
            add(item if type(item) in PLAIN else lower(item, room))
    except Refused as refused:
        raise refused.within(f"[{len(lowered)}]")  # noqa: B904 - the same refusal goes on
    return lowered


def _lower_members(form: Tagged, value: Any, room: int) -> list[Any]:
    try:
        return [item if type(item) in PLAIN else form.lower(item, room) for item in value]
    except Refused as refused:
        raise refused.within("{…}")  # noqa: B904 - the same refusal goes on


def _lower_dict(form: Tagged, value: dict[Any, Any], room: int) -> Any:
    if not _TEXT_ONLY.issuperset(map(type, value)):
        return Ext(_DICT, pack(_lower_pairs(form, value, room)))
    lowered: dict[Any, Any] = {}
    lower, key = form.lower, None
    try:
        for key, item in value.items():
            lowered[key] = item if type(item) in PLAIN else lower(item, room)
    except Refused as refused:
        raise refused.within(f"[{key!r}]")  # noqa: B904 - the same refusal goes on
    return lowered


def _lower_pairs(form: Tagged, value: Mapping[Any, Any], room: int) -> list[Any]:
    halves: list[Any] = []
    for key, item in value.items():
        try:
            halves.append(form.lower(key, room))
        except Refused as refused:
            raise refused.within(".keys()")  # noqa: B904 - the same refusal goes on
        try:
            halves.append(form.lower(item, room))
        except Refused as refused:
            raise refused.within(f"[{_shown(key)}]")  # noqa: B904 - the same refusal goes on
    return halves


def _shown(key: object) -> str:
    return repr(key) if type(key) in {*PLAIN, int} else f"a {type(key).__qualname__}"


def _lower_counter(tag: int) -> Lower:
    def lower(form: Tagged, value: Any, room: int) -> Ext:
        if value.__dict__:
            raise Refused(
                type_name(value), f"with attributes of its own ({', '.join(value.__dict__)}): use a dataclass"
            )
        return Ext(tag, pack(_lower_pairs(form, value, room)))

    return lower


def _lower_defaultdict(form: Tagged, value: defaultdict[Any, Any], room: int) -> Ext:
    if value.default_factory not in _FACTORIES:
        raise Refused(type_name(value), "whose factory is not a builtin type: return a dict")
    return Ext(_DEFAULTDICT, pack([_FACTORIES.index(value.default_factory), *_lower_pairs(form, value, room)]))


def _lower_datetime(_form: Tagged, value: datetime, _room: int) -> Ext:
    fields = (value.year, value.month, value.day, value.hour, value.minute, value.second, value.microsecond)
    return Ext(_DATETIME, pack((*fields, value.fold, _lower_zone(value.tzinfo))))


def _lower_time(_form: Tagged, value: time, _room: int) -> Ext:
    fields = (value.hour, value.minute, value.second, value.microsecond, value.fold)
    return Ext(_TIME, pack((*fields, _lower_zone(value.tzinfo))))


def _lower_zone(zone: tzinfo | None) -> str | int | tuple[int, str] | tuple[int] | None:
    """A zone's key, or its offset in microseconds, with its name if it was given one; pydantic's are a tuple of one."""
    if zone is None:
        return None
    kind: type = type(zone)
    if kind is timezone:
        given: Any = zone
        offset, *name = given.__getinitargs__()  # what `pickle` asks for
        return (offset // _MICROSECOND, name[0]) if name else offset // _MICROSECOND
    if kind is ZoneInfo and zone.key is not None and _is_by_key(zone):  # type: ignore[attr-defined]  # a ZoneInfo
        return str(zone.key)  # type: ignore[attr-defined]  # as above
    if kind is _pydantic_zone():
        return (int(zone.utcoffset(None).total_seconds()),)  # type: ignore[union-attr]  # it has whole seconds
    raise Refused(
        type_name(zone),
        "a time zone that cannot be named in other processes: use datetime.timezone or zoneinfo.ZoneInfo",
    )


def _is_by_key(zone: tzinfo) -> bool:
    """False for a zone that was read from a file: another process may know another one by its key."""
    try:
        zone.__reduce__()
    except PicklingError:
        return False
    return True


def _pydantic_zone() -> Any:
    return getattr(sys.modules.get("pydantic_core"), "TzInfo", UNKNOWN)


def _lower_uuid(_form: Tagged, value: UUID, _room: int) -> Ext:
    safe = value.is_safe
    return Ext(_UUID, value.bytes if safe is SafeUUID.unknown else pack((value.bytes, safe.value)))


def _lower_pattern(_form: Tagged, value: re.Pattern[Any], _room: int) -> Ext:
    return Ext(_PATTERN, pack((value.pattern, value.flags)))


def _named(tag: int, number: int) -> Lower:
    """What has a text from which it can be made: the number of its class, and the text."""
    return lambda _form, value, _room: Ext(tag, bytes((number,)) + str(value).encode("utf-8", "surrogatepass"))


_LOWERS: dict[type, Lower] = {
    **dict.fromkeys((str, float, bool, type(None), bytes), lambda _form, value, _room: value),
    int: _lower_int,
    list: _lower_items,
    dict: _lower_dict,
    tuple: lambda form, value, room: Ext(_TUPLE, pack(_lower_items(form, value, room))),
    set: lambda form, value, room: Ext(_SET, pack(_lower_members(form, value, room))),
    frozenset: lambda form, value, room: Ext(_FROZENSET, pack(_lower_members(form, value, room))),
    Decimal: lambda _form, value, _room: Ext(_DECIMAL, str(value).encode()),
    datetime: _lower_datetime,
    date: lambda _form, value, _room: Ext(_DATE, pack(value.toordinal())),
    time: _lower_time,
    timedelta: lambda _form, value, _room: Ext(_TIMEDELTA, pack((value.days, value.seconds, value.microseconds))),
    UUID: _lower_uuid,
    bytearray: lambda _form, value, _room: Ext(_BYTEARRAY, bytes(value)),
    complex: lambda _form, value, _room: Ext(_COMPLEX, pack((value.real, value.imag))),
    **{kind: _named(_PATH, number) for number, kind in enumerate(_PATHS)},
    **{kind: _named(_ADDRESS, number) for number, kind in enumerate(_ADDRESSES)},
    timezone: lambda _form, value, _room: Ext(_ZONE, pack(_lower_zone(value))),
    ZoneInfo: lambda _form, value, _room: Ext(_ZONE, pack(_lower_zone(value))),
    deque: lambda form, value, room: Ext(_DEQUE, pack([value.maxlen, *_lower_items(form, value, room)])),
    OrderedDict: _lower_counter(_ORDERED),
    Counter: _lower_counter(_COUNTER),
    defaultdict: _lower_defaultdict,
    Fraction: lambda form, value, room: Ext(
        _FRACTION, pack(_lower_items(form, (value.numerator, value.denominator), room))
    ),
    range: lambda form, value, room: Ext(_RANGE, pack(_lower_items(form, (value.start, value.stop, value.step), room))),
    re.Pattern: _lower_pattern,
}

KINDS: frozenset[type[Any]] = frozenset(_LOWERS)
"""The types that need no annotation."""


def _raise_dict(form: Tagged, data: memoryview) -> dict[Any, Any]:
    halves = iter(form.unpack(data))
    return dict(zip(halves, halves, strict=True))


def _raise_counter(form: Tagged, data: memoryview) -> Counter[Any]:
    made: Counter[Any] = Counter()
    _DICT_TYPE.update(made, _raise_dict(form, data))  # its own operators drop what is not positive
    return made


def _raise_defaultdict(form: Tagged, data: memoryview) -> defaultdict[Any, Any]:
    factory, *pairs = form.unpack(data)
    halves = iter(pairs)
    return defaultdict(_FACTORIES[factory], zip(halves, halves, strict=True))


def _raise_deque(form: Tagged, data: memoryview) -> deque[Any]:
    most, *items = form.unpack(data)
    return deque(items, most)


def _raise_datetime(form: Tagged, data: memoryview) -> datetime:
    year, month, day, hour, minute, second, microsecond, fold, zone = form.unpack(data)
    return datetime(year, month, day, hour, minute, second, microsecond, _raise_zone(zone), fold=fold)


def _raise_time(form: Tagged, data: memoryview) -> time:
    hour, minute, second, microsecond, fold, zone = form.unpack(data)
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
        case [seconds]:
            made: tzinfo = _pydantic_zone()(seconds)
            return made
        case _:
            offset, name = zone
            return timezone(offset * _MICROSECOND, name)


def _raise_uuid(form: Tagged, data: memoryview) -> UUID:
    if len(data) == 16:  # noqa: PLR2004 - a UUID has 128 bits
        return UUID(bytes=bytes(data))
    raw, safe = form.unpack(data)
    return UUID(bytes=raw, is_safe=SafeUUID(safe))


def _raise_pattern(form: Tagged, data: memoryview) -> re.Pattern[Any]:
    pattern, flags = form.unpack(data)
    return re.compile(pattern, flags)


_RAISES: dict[int, Raise] = {
    _INT: lambda _form, data: int.from_bytes(data, "big", signed=True),
    _TUPLE: lambda form, data: tuple(form.unpack(data)),
    _SET: lambda form, data: set(form.unpack(data)),
    _FROZENSET: lambda form, data: frozenset(form.unpack(data)),
    _DICT: _raise_dict,
    _DECIMAL: lambda _form, data: Decimal(str(data, "ascii")),
    _DATETIME: _raise_datetime,
    _DATE: lambda form, data: date.fromordinal(form.unpack(data)),
    _TIME: _raise_time,
    _TIMEDELTA: lambda form, data: timedelta(*form.unpack(data)),
    _UUID: _raise_uuid,
    _BYTEARRAY: lambda _form, data: bytearray(data),
    _COMPLEX: lambda form, data: complex(*form.unpack(data)),
    _PATH: lambda _form, data: _PATHS[data[0]](str(data[1:], "utf-8", "surrogatepass")),
    _ADDRESS: lambda _form, data: _ADDRESSES[data[0]](str(data[1:], "ascii")),
    _ZONE: lambda form, data: _raise_zone(form.unpack(data)),
    _DEQUE: _raise_deque,
    _ORDERED: lambda form, data: OrderedDict(_raise_dict(form, data)),
    _COUNTER: _raise_counter,
    _DEFAULTDICT: _raise_defaultdict,
    _FRACTION: lambda form, data: Fraction(*form.unpack(data)),
    _RANGE: lambda form, data: range(*form.unpack(data)),
    _PATTERN: _raise_pattern,
}


class Tagged:
    """The tagged form, as the codec of values that nothing is known about.

    Args:
        lowers: for more types: the function that makes MessagePack of their values.
        raises: for more tags: the function that makes values of their bytes.
        unknown: called with a value of an unknown type; returns why it cannot be stored and what to change.
    """

    __slots__ = ("_lowers", "_unknown", "unpack")

    schema: bytes = fingerprint("tagged 2")

    def __init__(
        self,
        lowers: Mapping[type, Lower] | None = None,
        raises: Mapping[int, Raise] | None = None,
        unknown: Callable[[Any], str] = lambda _value: UNKNOWN,
    ) -> None:
        self._lowers: dict[type, Lower] = {**_LOWERS, **(lowers or {})}
        self._unknown = unknown
        known = {code: partial(each, self) for code, each in {**_RAISES, **(raises or {})}.items()}
        self.unpack: Callable[[bytes | memoryview], Any] = Decoder(ext_hook=lambda code, data: known[code](data)).decode

    def __repr__(self) -> str:
        return "TAGGED"

    def lower(self, value: object, room: int) -> Any:
        """*value* as what MessagePack knows; `Refused` if it has a part of an unknown type."""
        lower = self._lowers.get(type(value))
        if lower is None:
            raise Refused(type_name(value), self._unknown(value))
        if room == 0:
            raise Refused(type_name(value), f"nested deeper than {DEEPEST} levels, or contains itself")
        return lower(self, value, room - 1)

    def dump(self, value: Any) -> bytes:
        """As `encode`; `Refused` names the part that cannot be stored."""
        try:
            return pack(self.lower(value, DEEPEST))
        except UnicodeEncodeError as error:
            refused = Refused("str", f"and this text is no Unicode: {error}")
            refused.path.append(_odd_text(value))
            raise refused from None

    def encode(self, value: Any) -> bytes:
        """The bytes of *value*, which were read back and compared with it."""
        try:
            payload = self.dump(value)
            path = difference(value, self.unpack(payload))
        except Refused as refused:
            raise CodecError(f"a value of type {type_name(value)} cannot be stored: {refused.said()}") from refused
        except Exception as error:  # a container that is changed meanwhile
            raise CodecError(f"a value of type {type_name(value)} cannot be stored: {error}") from error
        if path is not None:
            raise CodecError(
                f"a value of type {type_name(value)} would not come back as itself: {path or 'it'} would be another"
            )
        return payload

    def decode(self, payload: bytes | memoryview) -> Any:
        try:
            return self.unpack(payload)
        except Exception as error:  # foreign bytes fail in more ways than can be listed
            raise CodecError(f"these bytes hold no tagged value: {error}") from error


_DICTS: tuple[type[Any], ...] = (dict,)
_ITEMS: tuple[type[Any], ...] = (list, tuple, set, frozenset, deque)


def _odd_text(value: Any, path: str = "", room: int = DEEPEST) -> str:
    """The path to a text in *value* that has half a surrogate pair."""
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            return path
        return ""
    steps: list[tuple[str, Any]] = []
    if isinstance(value, _DICTS):
        steps = [(f"[{key!r}]", item) for key, item in value.items()]
        steps += [(".keys()", key) for key in value]
    elif isinstance(value, _ITEMS):
        steps = [(f"[{number}]", item) for number, item in enumerate(value)]
    steps += [(f".{name}", part) for name, part in getattr(value, "__dict__", {}).items()]
    found = (_odd_text(item, path + step, room - 1) for step, item in steps if room)
    return next(filter(None, found), "")


TAGGED = Tagged()
