"""Containers as text: equal ones have the same text, whatever the order of what has no order."""

from __future__ import annotations

import inspect
from collections import ChainMap, Counter, OrderedDict, UserDict, defaultdict
from collections.abc import Callable, ItemsView, Iterable, Iterator, KeysView, Mapping, Set, ValuesView
from datetime import date, time
from decimal import Decimal
from enum import Enum
from types import MappingProxyType, ModuleType
from typing import Any
from uuid import UUID

from .parts import fields_of, state_of
from .text import without_address

_CONTAINERS: tuple[type[Any], ...] = (list, tuple, set, frozenset, dict, bytes, Mapping, Set, ValuesView)
_BUILTINS: tuple[type[Any], ...] = (list, tuple, set, frozenset, dict)
_VIEWS: tuple[type[Any], ...] = (KeysView, ItemsView, ValuesView)
_WHOLE: tuple[type[Any], ...] = (str, bytes, int, float, type, Enum, ModuleType, date, time, Decimal, UUID)
_MOST_PARTS = 1000


def is_shown(value: object) -> bool:
    """Return True if `shown` knows how to write *value* by its items."""
    return isinstance(value, _CONTAINERS)


def shown(value: object) -> str:
    """The ``repr`` of *value*, with sets and dicts in order; ``ValueError`` if it depends on an order that has no meaning.

    An `OrderedDict` is equal to another only in the same order, so its order stays.
    """
    kind = type(value)
    show = _SHOWS.get(kind)
    if show is not None:
        return show(value)
    if isinstance(value, str):
        return repr(value)
    for base in _BUILTINS:
        if issubclass(kind, base) and kind.__repr__ is base.__repr__:
            text = _SHOWS[base](value)
            return f"{kind.__qualname__}({text})" if issubclass(base, Set) else text
    if isinstance(value, (Mapping, Set, *_VIEWS)):
        raise ValueError(f"the text of a {kind.__qualname__} depends on the order of its items: pass a dict or a tuple")
    return told(value, repr(value))


def told(value: object, text: str) -> str:
    """*text*, which *value* makes of itself; ``ValueError`` if it would not be the same for an equal one."""
    for part in _unordered(value, set()):
        if len(part) > 1 and repr(part) in text:
            raise ValueError(
                f"its text depends on the order of {type(part).__qualname__} items, {part!r:.80}: name its attributes"
            )
    return without_address(text)


def _unordered(value: object, seen: set[int]) -> Iterator[Any]:
    """The sets and dicts within *value*."""
    if isinstance(value, _WHOLE) or inspect.isroutine(value) or id(value) in seen or len(seen) > _MOST_PARTS:
        return
    seen.add(id(value))
    parts: Iterable[Any]
    if isinstance(value, Mapping):
        parts = [*value.keys(), *value.values()]
    elif isinstance(value, (list, tuple, set, frozenset)):
        parts = value
    else:
        parts = [part for _, part in fields_of(value) or state_of(value)]
    for part in parts:
        if isinstance(part, (Mapping, Set)):
            yield part
        yield from _unordered(part, seen)


def _pairs(items: Iterable[tuple[Any, Any]]) -> list[str]:
    return [f"{shown(key)}: {shown(item)}" for key, item in items]


def _mapping(value: Any) -> str:
    return f"{{{', '.join(sorted(_pairs(value.items())))}}}"


def _all(values: Iterable[object]) -> str:
    return ", ".join(map(shown, values))


def _members(values: Iterable[object]) -> str:
    return ", ".join(sorted(map(shown, values)))


# Of a subclass, what the builtin holds: its own methods may show less of it.
_SHOWS: Mapping[type, Callable[[Any], str]] = {
    list: lambda value: f"[{_all(list.__iter__(value))}]",
    tuple: lambda value: f"({_all(tuple.__iter__(value))}{',' if tuple.__len__(value) == 1 else ''})",
    set: lambda value: f"{{{_members(set.__iter__(value))}}}" if value else "set()",
    frozenset: lambda value: f"frozenset({{{_members(frozenset.__iter__(value))}}})",
    dict: lambda value: f"{{{', '.join(sorted(_pairs(dict.items(value))))}}}",
    OrderedDict: lambda value: f"OrderedDict({{{', '.join(_pairs(OrderedDict.items(value)))}}})",
    Counter: lambda value: f"Counter({_mapping(value)})",
    defaultdict: lambda value: f"defaultdict({without_address(repr(value.default_factory))}, {_mapping(value)})",
    MappingProxyType: lambda value: f"mappingproxy({_mapping(value)})",
    UserDict: _mapping,
    ChainMap: lambda value: f"ChainMap({_mapping(value)})",
}
