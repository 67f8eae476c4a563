"""The judge: does a value come back as itself?

Equality is not enough to say so: a class may compare by its id alone, ``1 == True``, two equal moments may carry
different time zones, and two equal models may have had different fields set. So values are compared part by part: the
exact type of every part, its content, and all state that the object has. What cannot be compared counts as different.
"""

from __future__ import annotations

import re
from array import array
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Mapping
from datetime import date, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal
from enum import Enum, Flag
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network
from math import copysign
from pathlib import PosixPath, PurePosixPath, PureWindowsPath, WindowsPath
from types import BuiltinFunctionType, FunctionType, GenericAlias, ModuleType
from typing import Any, Generic, TypeVar, cast
from uuid import UUID
from zoneinfo import ZoneInfo

from .state import CONTENT, Anatomy, anatomy_of, attributes_of

_MOST_ODD = 32  # members of a set without a twin; matching them takes every pair

# For these, the same type and equality are the same value.
_EQUAL_IS_SAME = frozenset({str, int, bool, bytes, type(None), date, timedelta})

Path = list[str]
"""The steps from a part that differs up to the root: the last step first."""

_HERE: Path = []

_FLOATS = {float}

_FIELDS_SET = "__pydantic_fields_set__"
_NONE: frozenset[str] = frozenset()

_IDENTICAL = (Enum, type, FunctionType, BuiltinFunctionType, ModuleType)


def difference(given: object, back: object, judge: Judge | None = None) -> str | None:
    """The path to the first part of *given* that is not the same in *back*; None if all of it is.

    May raise whatever a user's ``__eq__`` or ``__hash__`` raises, and ``RecursionError`` if both contain themselves.
    """
    path = (judge or Judge()).differ(given, back)
    return None if path is None else "".join(reversed(path))


class Judge:
    """Compares values, and remembers how the classes are made that it has met.

    Every method that compares returns None for "the same", else the path from the part that differs.

    Args:
        made_up: by class, fields that are made up when they were not set, such as by a clock. They count as different.
    """

    __slots__ = ("_anatomies", "_made_up")

    def __init__(self, made_up: Mapping[type[Any], frozenset[str]] | None = None) -> None:
        self._anatomies: dict[type, Anatomy] = {}
        self._made_up = made_up or {}

    def differ(self, given: object, back: object) -> Path | None:
        kind = type(given)
        if kind is not type(back):
            return []
        if given is back:
            return None
        if kind in _EQUAL_IS_SAME:
            return None if given == back else []
        compare = _COMPARE.get(kind)
        if compare is not None:
            return compare(self, given, back)
        anatomy = self._anatomies.get(kind)
        if anatomy is None:
            if kind is object or hasattr(kind, "__next__") or issubclass(kind, _IDENTICAL):
                # These are what they are by identity, or used up by a look; up to Python 3.11.3 some combined flags are
                # made anew each time.
                return None if isinstance(given, Flag) and given.value == cast("Flag", back).value else []
            anatomy = self._anatomies[kind] = anatomy_of(kind)
        return self._objects(given, back, anatomy)

    def _objects(self, given: Any, back: Any, anatomy: Anatomy) -> Path | None:
        mine, theirs = attributes_of(given, anatomy), attributes_of(back, anatomy)
        if len(mine) != len(theirs):
            return [f".{next(name for name in (*mine, *theirs) if (name in mine) is not (name in theirs))}"]
        for name, value in mine.items():
            other = theirs.get(name, _HERE)
            if value is not other and (path := self.differ(value, other)) is not None:
                path.append(f".{name}")
                return path
        if self._made_up and (unset := self._made_up.get(given.__class__, _NONE) - mine.get(_FIELDS_SET, _NONE)):
            return [f".{min(unset)}"]
        return None if anatomy.base is None and not anatomy.opaque else self._beyond(given, back, anatomy)

    def _beyond(self, given: Any, back: Any, anatomy: Anatomy) -> Path | None:
        """Compare what is no attribute."""
        if anatomy.base is not None:
            content = CONTENT[anatomy.base]
            found = self.differ(content(given), content(back))
            if found is not None:
                return found
        if isinstance(given, BaseException):
            return self._exceptions(given, back)
        return self._reduced(given, back) if anatomy.opaque else None

    def _exceptions(self, given: BaseException, back: BaseException) -> Path | None:
        for name in ("args", "__cause__", "__suppress_context__", "__notes__"):
            found = self.differ(getattr(given, name, None), getattr(back, name, None))
            if found is not None:
                return [*found, f".{name}"]
        return self._reduced(given, back)

    def _reduced(self, given: Any, back: Any) -> Path | None:
        """Compare by what `pickle` would ask for: the only way to see the state of what is written in C."""
        try:
            one, other = given.__reduce_ex__(4), back.__reduce_ex__(4)
        except TypeError:  # "cannot pickle"
            return []
        if isinstance(one, str) or isinstance(other, str):
            return None if one == other else []
        (make, *parts), (other_make, *other_parts) = one, other
        parts, other_parts = [_listed(each) for each in parts], [_listed(each) for each in other_parts]
        return None if make is other_make and self.differ(parts, other_parts) is None else []

    # Containers

    def items(self, given: Any, back: Any) -> Path | None:
        if len(given) != len(back):
            return []
        kinds = set(map(type, given))
        if len(kinds) == 1 and set(map(type, back)) == kinds:  # most lists; done by C code
            same = given == back if kinds <= _EQUAL_IS_SAME else kinds == _FLOATS and _same_floats(given, back)
            if same:
                return None
        for number, (one, other) in enumerate(zip(given, back, strict=True)):
            if one is not other and (path := self.differ(one, other)) is not None:
                path.append(f"[{number}]")
                return path
        return None

    def pairs(self, given: Any, back: Any) -> Path | None:
        if len(given) != len(back):
            return []
        for (key, item), (other_key, other) in zip(given.items(), back.items(), strict=True):
            if self.differ(key, other_key) is not None:
                return [".keys()"]
            if item is not other and (path := self.differ(item, other)) is not None:
                path.append(f"[{key!r}]")
                return path
        return None

    def members(self, given: Any, back: Any) -> Path | None:
        if len(given) != len(back):
            return []
        kinds = set(map(type, given))
        if len(kinds) == 1 and kinds <= _EQUAL_IS_SAME and given == back and set(map(type, back)) == kinds:
            return None
        twins = {member: member for member in back}
        odd: list[Any] = []
        for member in given:
            twin = twins.pop(member, _HERE)
            if twin is _HERE:
                odd.append(member)
            elif self.differ(member, twin) is not None:
                return ["{…}"]
        spare = list(twins.values())
        return None if len(odd) <= _MOST_ODD and all(self._take(member, spare) for member in odd) else ["{…}"]

    def _take(self, member: Any, spare: list[Any]) -> bool:
        for place, other in enumerate(spare):
            if self.differ(member, other) is None:
                del spare[place]
                return True
        return False

    def zones(self, given: tzinfo | None, back: tzinfo | None) -> Path | None:
        if given is back:
            return None
        if type(given) is not type(back):
            return []
        if isinstance(given, ZoneInfo) and isinstance(back, ZoneInfo):
            return None if given.key == back.key else []
        return self._objects(given, back, anatomy_of(type(given)))


def _listed(part: Any) -> Any:
    """The iterators in what `pickle` would ask for, as lists."""
    return list(part) if part is not None and hasattr(part, "__next__") else part


def _same_floats(given: Any, back: Any) -> bool:
    return array("d", given).tobytes() == array("d", back).tobytes()


def _same_if(same: bool) -> Path | None:  # noqa: FBT001 - the only argument
    return None if same else []


def _float(_judge: Judge, given: float, back: float) -> Path | None:
    if given == back:
        return _same_if(given != 0.0 or copysign(1.0, given) == copysign(1.0, back))
    return _same_if(given != given and back != back)  # noqa: PLR0124 - only nan differs from itself


def _moment(judge: Judge, given: Any, back: Any) -> Path | None:
    if given.tzinfo is back.tzinfo:
        return _same_if(given == back and given.fold == back.fold)  # the same zone: the clocks are compared
    if given.replace(tzinfo=None) != back.replace(tzinfo=None) or given.fold != back.fold:
        return []
    found = judge.zones(given.tzinfo, back.tzinfo)
    return None if found is None else [".tzinfo"]


def _defaultdict(judge: Judge, given: Any, back: Any) -> Path | None:
    return judge.pairs(given, back) if given.default_factory is back.default_factory else [".default_factory"]


def _deque(judge: Judge, given: Any, back: Any) -> Path | None:
    return judge.items(list(given), list(back)) if given.maxlen == back.maxlen else [".maxlen"]


def _ordered(judge: Judge, given: Any, back: Any) -> Path | None:
    found = judge.pairs(given, back)
    return judge.pairs(vars(given), vars(back)) if found is None else found


def _by(*views: Callable[[Any], Any]) -> Callable[[Judge, Any, Any], Path | None]:
    """Compare what each of *views* makes of the two values."""
    return lambda judge, given, back: _same_if(all(judge.differ(view(given), view(back)) is None for view in views))


_same_text = _by(str)
_BY_TEXT: tuple[type[Any], ...] = (
    *(PurePosixPath, PureWindowsPath, PosixPath, WindowsPath),
    *(IPv4Address, IPv6Address, IPv4Network, IPv6Network, IPv4Interface, IPv6Interface),
)

_subscripted: Any = Generic


def _equal(_judge: Judge, given: object, back: object) -> Path | None:
    return _same_if(given == back)


_COMPARE: dict[type, Callable[[Judge, Any, Any], Path | None]] = {
    float: _float,
    complex: _by(lambda value: value.real, lambda value: value.imag),
    Decimal: _by(lambda value: tuple(value.as_tuple())),  # also for a signaling nan, which refuses to be compared
    UUID: _by(lambda value: value.int, lambda value: value.is_safe),
    datetime: _moment,
    time: _moment,
    timezone: _by(lambda value: value.__getinitargs__()),
    ZoneInfo: Judge.zones,
    bytearray: lambda _judge, given, back: _same_if(given == back),
    list: Judge.items,
    tuple: Judge.items,
    dict: Judge.pairs,
    set: Judge.members,
    frozenset: Judge.members,
    OrderedDict: _ordered,
    defaultdict: _defaultdict,
    deque: _deque,
    range: _by(lambda value: value.start, lambda value: value.stop, lambda value: value.step),
    re.Pattern: _by(lambda value: value.pattern, lambda value: value.flags),
    # Generic classes with their arguments; libraries keep caches on them.
    GenericAlias: _equal,
    type(_subscripted[TypeVar("T")]): _equal,
    **dict.fromkeys(_BY_TEXT, _same_text),  # they keep caches beside their content
}
