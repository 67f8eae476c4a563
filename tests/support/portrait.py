"""A text that two values share only if they are the same: types, content, order, and all attributes."""

from __future__ import annotations

import collections
import struct
from collections.abc import Callable
from datetime import datetime, time
from decimal import Decimal
from enum import Enum
from types import FunctionType, MemberDescriptorType
from typing import Any
from uuid import UUID

_BY_REPR = {
    "pathlib",
    "ipaddress",
    "fractions",
    "re",
    "zoneinfo",
    "datetime",
    "builtins",
    "typing",
    "pydantic_core._pydantic_core",
}
_BUILTINS = (int, float, str, bytes, bytearray, complex, list, tuple, dict, set, frozenset)


def portrait(value: Any) -> str:
    """The text. It says nothing that differs between processes."""
    kind = type(value)
    if kind is type(None) or isinstance(value, type | FunctionType):
        return repr(value)
    if isinstance(value, Enum):
        return f"{kind.__qualname__}.{value.name}/{value.value!r}"
    show = _SHOWN.get(kind)
    if show is not None:
        return f"{kind.__name__}({show(value)})"
    if kind.__module__ in _BY_REPR:
        return f"{kind.__name__}: {value!r}"
    parts = [f".{name}={portrait(held)}" for name, held in sorted(_attributes(value).items())]
    base = next((each for each in kind.__mro__ if each in _BUILTINS), None)
    if base is not None:
        parts.append(portrait(_SHOWN_AS[base](value)))
    if isinstance(value, BaseException):
        parts.append(f"{portrait(value.args)} from {portrait(value.__cause__)}")
    return f"<{kind.__module__.rpartition('.')[2]}.{kind.__qualname__} {' '.join(parts)}>"


def _attributes(value: Any) -> dict[str, Any]:
    found: dict[str, Any] = dict(getattr(value, "__dict__", {}))
    for base in type(value).__mro__:
        for name, slot in vars(base).items():
            if isinstance(slot, MemberDescriptorType):
                try:
                    found[f"{base.__name__}:{name}"] = slot.__get__(value)
                except AttributeError:
                    continue
    return {name: held for name, held in found.items() if "cached_hash" not in name}


def _items(value: Any) -> str:
    return ", ".join(map(portrait, value))


def _members(value: Any) -> str:
    return ", ".join(sorted(map(portrait, value)))


def _pairs(value: Any) -> str:
    return ", ".join(f"{portrait(key)}: {portrait(item)}" for key, item in value.items())


def _moment(value: Any) -> str:
    return f"{value.replace(tzinfo=None).isoformat()} {value.fold} {type(value.tzinfo).__name__} {value.tzinfo!r}"


_SHOWN: dict[type, Callable[[Any], str]] = {
    int: repr,
    bool: repr,
    str: ascii,
    bytes: repr,
    bytearray: repr,
    float: lambda value: struct.pack(">d", value).hex(),
    complex: lambda value: struct.pack(">dd", value.real, value.imag).hex(),
    Decimal: lambda value: repr(value.as_tuple()),
    UUID: lambda value: f"{value} {value.is_safe}",
    datetime: _moment,
    time: _moment,
    list: _items,
    tuple: _items,
    set: _members,
    frozenset: _members,
    dict: _pairs,
    collections.OrderedDict: _pairs,
    collections.Counter: _pairs,
    collections.defaultdict: lambda value: f"{value.default_factory} {_pairs(value)}",
    collections.deque: lambda value: f"{value.maxlen} {_items(value)}",
}
_SHOWN_AS: dict[type, Callable[[Any], Any]] = {
    int: lambda value: int.__add__(value, 0),
    float: lambda value: float.__mul__(value, 1.0),
    complex: lambda value: complex(value.real, value.imag),
    str: lambda value: str.__getitem__(value, slice(None)),
    bytes: lambda value: bytes.__getitem__(value, slice(None)),
    bytearray: bytes,
    list: lambda value: list(list.__iter__(value)),
    tuple: lambda value: tuple(tuple.__iter__(value)),
    dict: lambda value: dict(dict.items(value)),
    set: lambda value: set(set.__iter__(value)),
    frozenset: lambda value: frozenset(frozenset.__iter__(value)),
}
