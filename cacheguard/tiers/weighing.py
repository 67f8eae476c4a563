"""How many bytes a value takes in this process: each object that it holds is looked at, once."""

from __future__ import annotations

import gc
import math
from collections.abc import Collection, Iterable
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from sys import getsizeof
from types import (
    BuiltinFunctionType,
    CodeType,
    FrameType,
    FunctionType,
    GetSetDescriptorType,
    MemberDescriptorType,
    MethodDescriptorType,
    ModuleType,
    WrapperDescriptorType,
)
from typing import Any

AT_ONCE = 4096  # objects
UNKNOWN = 64  # bytes of an object that does not say its size
POINTER = 8
MANAGED_DICT = 1 << 4  # of ``type.__flags__``: the attributes lie beside the object, in no dict

# Types that have no class attributes worth a look.
PLAIN: frozenset[type[Any]] = frozenset(
    {type(None), bool, int, float, complex, str, bytes, bytearray, list, tuple, dict, set, frozenset}
    | {date, datetime, time, timedelta, Decimal}
)

# What a value refers to and does not own.
NOT_ITS_OWN = (
    type, ModuleType, FunctionType, BuiltinFunctionType, MethodDescriptorType, WrapperDescriptorType,
    GetSetDescriptorType, MemberDescriptorType, CodeType, FrameType, property, staticmethod, classmethod, Enum,
)  # fmt: skip

# CPython has one of each of these.
_SINGLE: list[object] = [None, True, False, ..., (), "", b"", *range(-5, 257), *map(chr, range(256))]
_ONE_OF_EACH: frozenset[int] = frozenset(map(id, _SINGLE))


def weigh(value: object, most: float = math.inf) -> int:
    """The bytes of *value* with all that it holds; it stops looking when there are more than *most*.

    Classes, modules, functions, members of an `Enum` and what is an attribute of a class are shared by all values, so
    they do not count. An object that several values share counts for each of them.
    """
    total, seen = 0, set(_ONE_OF_EACH)
    owns: dict[type[Any], bool] = {}
    waiting: list[list[Any]] = [[value]]
    while waiting and total <= most:
        some = waiting.pop()
        if len(some) > AT_ONCE:
            waiting += [some[at : at + AT_ONCE] for at in range(0, len(some), AT_ONCE)]
            continue
        parts = dict(zip(map(id, some), some, strict=True))
        if not seen.isdisjoint(parts):
            for known in seen.intersection(parts):
                del parts[known]
        seen.update(parts)
        found: Collection[Any] = parts.values()
        if not PLAIN.issuperset(map(type, found)):
            for kind in set(map(type, found)) - PLAIN:
                if kind not in owns:
                    owns[kind] = not issubclass(kind, NOT_ITS_OWN)
                    seen.update(_of_class(kind))
            found = [part for part in found if owns.get(_kind(part), True)]
            total += sum(map(_beside, found))
        total += _sizes(found)
        waiting += [each for each in (gc.get_referents(*found), *(map(_untracked, found) if owns else ())) if each]
    return total


def _of_class(kind: type[Any]) -> Iterable[int]:
    """The identities of the attributes of a class: the mapper of an ORM, a logger, a validator."""
    for each in kind.__mro__[:-1]:
        yield from map(id, vars(each).values())


def _kind(part: object) -> type[Any]:
    return type(part)


def _beside(part: object) -> int:
    """The bytes of attributes that lie beside an object."""
    return POINTER * (len(gc.get_referents(part)) + 1) if type(part).__flags__ & MANAGED_DICT else 0


def _untracked(part: Any) -> list[Any]:
    """The fields of a `msgspec.Struct` with ``gc=False``, which the garbage collector does not know."""
    if _kind(part) in PLAIN or gc.is_tracked(part):
        return []
    names: Iterable[str] = getattr(_kind(part), "__struct_fields__", ())
    return [getattr(part, name, None) for name in names]


def _sizes(found: Iterable[Any]) -> int:
    try:
        return sum(map(getsizeof, found))
    except Exception:  # noqa: BLE001 - a `__sizeof__` of the user's
        return sum(map(_size, found))


def _size(part: object) -> int:
    try:
        return getsizeof(part, UNKNOWN)
    except Exception:  # noqa: BLE001 - a `__sizeof__` of the user's
        return UNKNOWN
