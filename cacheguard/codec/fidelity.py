"""Does a value come back as itself?

Equality is not enough to say so: a class may compare by its id alone, ``nan`` differs from itself, and two equal
moments may carry different time zones. So values are compared part by part.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import date, datetime, time, timedelta, tzinfo
from decimal import Decimal
from itertools import repeat
from typing import Any
from uuid import UUID

_ROWS: tuple[type[Any], ...] = (list, tuple)
_SETS: tuple[type[Any], ...] = (set, frozenset)
_TEXT_OR_NUMBER = (int, str)

_UNSET = object()
_MOST_ODD = 32  # members of a set without a twin; matching them takes every pair


def same(given: object, back: object, guessed: bool) -> bool:  # noqa: FBT001 - called for every part of a value
    """Is *back* the value *given*, at most changed to what the annotation states for it?

    With *guessed* the annotation leaves parts unsaid, and changes that may have happened there count as losses.
    May raise whatever a user's ``__eq__`` or ``__hash__`` raises.
    """
    if given is back:
        return True
    kind = type(back)
    if type(given) is not kind:
        return _stated(given, back, guessed)
    compare = _COMPARE.get(kind)
    if compare is not None:
        return compare(given, back, guessed)
    names = _part_names(kind)
    if names is not None:
        return all(same(getattr(given, name, _UNSET), getattr(back, name, _UNSET), guessed) for name in names)
    if isinstance(back, tuple):
        return _same_items(given, back, guessed)
    return (given == back) is True


def _part_names(kind: type[Any]) -> Iterable[str] | None:
    """The names of the attributes that make up an instance, if its class says so."""
    for declared in ("__struct_fields__", "__dataclass_fields__"):
        names: Iterable[str] | None = getattr(kind, declared, None)
        if names is not None:
            return names
    attributes: Iterable[Any] | None = getattr(kind, "__attrs_attrs__", None)
    if attributes is not None:
        return [attribute.name for attribute in attributes]
    if hasattr(kind, "__pydantic_fields__"):
        return ("__dict__", "__pydantic_extra__", "__pydantic_private__")
    return None


def _stated(given: object, back: object, guessed: bool) -> bool:  # noqa: FBT001
    """Is the change of type one that an annotation states: a tuple under ``list[int]``, an int under ``float``?"""
    kind = type(back)
    if kind is float and type(given) is int:
        return given == back
    if kind is tuple and isinstance(given, list):
        return _same_items(given, back, guessed)
    if kind in _SETS and isinstance(given, _SETS):
        return _same_members(given, back, guessed)
    return not guessed and _simplified(given, back)


def _simplified(given: object, back: object) -> bool:
    """Is *back* what MessagePack makes of *given* by itself: a list of a tuple, a plain builtin of a subclass?

    It is what the annotation states, or it would not have been read back.
    """
    kind = type(back)
    if kind in _ROWS and isinstance(given, _ROWS):
        return _same_items(given, back, guessed=False)
    if kind is dict and isinstance(given, dict):
        return _same_pairs(given, back, guessed=False)
    return kind in _TEXT_OR_NUMBER and isinstance(given, kind) and type(given) is not bool and (given == back) is True


def _same_items(given: Any, back: Any, guessed: bool) -> bool:  # noqa: FBT001
    return len(given) == len(back) and all(map(same, given, back, repeat(guessed)))


def _same_pairs(given: Any, back: Any, guessed: bool) -> bool:  # noqa: FBT001
    if len(given) != len(back):
        return False
    if all(map(same, given, back, repeat(guessed))):
        return all(map(same, given.values(), back.values(), repeat(guessed)))
    return _same_members(given, back, guessed) and all(
        same(item, back.get(key, _UNSET), guessed) for key, item in given.items()
    )


def _same_members(given: Any, back: Any, guessed: bool) -> bool:  # noqa: FBT001
    if len(given) != len(back):
        return False
    twins = {member: member for member in back}
    odd: list[Any] = []
    for member in given:
        twin = twins.pop(member, _UNSET)
        if twin is _UNSET:
            odd.append(member)
        elif not same(member, twin, guessed):
            return False
    spare = list(twins.values())
    return len(odd) <= _MOST_ODD and all(_take(member, spare, guessed) for member in odd)


def _take(member: Any, spare: list[Any], guessed: bool) -> bool:  # noqa: FBT001
    for place, other in enumerate(spare):
        if same(member, other, guessed):
            del spare[place]
            return True
    return False


def _same_float(given: float, back: float, _guessed: bool) -> bool:  # noqa: FBT001
    return given == back or (given != given and back != back)  # noqa: PLR0124 - only nan differs from itself


def _same_decimal(given: Decimal, back: Decimal, _guessed: bool) -> bool:  # noqa: FBT001
    return given.as_tuple() == back.as_tuple()  # also for a signaling nan, which refuses to be compared


def _same_moment(given: Any, back: Any, _guessed: bool) -> bool:  # noqa: FBT001
    return (
        given.replace(tzinfo=None) == back.replace(tzinfo=None)
        and given.fold == back.fold
        and _same_zone(given.tzinfo, back.tzinfo)
    )


def _same_zone(given: tzinfo | None, back: tzinfo | None) -> bool:
    if given is None or back is None:
        return given is back
    if given == back:
        return True
    offset = given.utcoffset(None)
    return offset is not None and offset == back.utcoffset(None)


def _equal(given: object, back: object, _guessed: bool) -> bool:  # noqa: FBT001
    return given == back


_COMPARE: dict[type, Callable[[Any, Any, bool], bool]] = {
    **dict.fromkeys((str, int, bool, bytes, date, timedelta, UUID), _equal),
    float: _same_float,
    Decimal: _same_decimal,
    datetime: _same_moment,
    time: _same_moment,
    list: _same_items,
    tuple: _same_items,
    dict: _same_pairs,
    set: _same_members,
    frozenset: _same_members,
}
