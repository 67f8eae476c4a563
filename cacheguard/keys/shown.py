"""Containers as text: equal ones have the same text, whatever the order of what has no order."""

from __future__ import annotations

import inspect
from collections import ChainMap, Counter, OrderedDict, UserDict, defaultdict
from collections.abc import Callable, ItemsView, Iterable, Iterator, KeysView, Mapping, Sequence, ValuesView
from collections.abc import Set as AbstractSet
from datetime import date, time
from decimal import Decimal
from enum import Enum
from types import MappingProxyType, ModuleType
from typing import Any
from uuid import UUID

from .parts import fields_of, state_of
from .text import has_default, without_address

_CONTAINERS: tuple[type[Any], ...] = (list, tuple, set, frozenset, dict, bytes, Mapping, AbstractSet, ValuesView)
_BUILTINS: tuple[Any, ...] = (list, tuple, set, frozenset, dict)
_SHUFFLED: tuple[type[Any], ...] = (Mapping, AbstractSet, KeysView, ItemsView, ValuesView)
_WHOLE: tuple[type[Any], ...] = (str, bytes, int, float, type, Enum, ModuleType, date, time, Decimal, UUID)
_MOST_PARTS = 1000


def is_shown(value: object) -> bool:
    """Return True if `shown` knows how to write *value* by its items."""
    return isinstance(value, _CONTAINERS)


def has_own_text(value: object) -> bool:
    """Return True if the class of a container says how it is written, in ``__format__`` or ``__str__``."""
    kind: Any = type(value)
    return kind not in _SHOWS and not issubclass(kind, bytes) and not has_default(kind, "__str__", "__format__")


def shown(value: object) -> str:
    """The ``repr`` of *value*, with sets and dicts in order; ``ValueError`` if it depends on how they are ordered.

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
            return f"{kind.__qualname__}({text})" if issubclass(base, AbstractSet) else text
    if isinstance(value, _SHUFFLED):
        raise ValueError(  # noqa: TRY004 - the template's error names the type, too
            f"the text of a {kind.__qualname__} depends on the order of its items: pass a dict or a tuple"
        )
    return told(value, repr(value))


def told(value: object, text: str) -> str:
    """*text*, which *value* makes of itself; ``ValueError`` if it would not be the same for an equal one."""
    for part in _unordered(value, set()):
        if len(part) > 1 and repr(part) in text:
            raise ValueError(
                f"its text depends on the order of {type(part).__qualname__} items, {part!r:.80}: name its attributes"
            )
    return without_address(text)


def _unordered(value: Any, seen: set[int]) -> Iterator[Any]:
    """The sets and dicts within *value*."""
    if isinstance(value, _WHOLE) or inspect.isroutine(value) or id(value) in seen or len(seen) > _MOST_PARTS:
        return
    seen.add(id(value))
    kind = _class_of(value)
    parts: Iterable[Any]
    if issubclass(kind, Mapping):
        parts = [*value.keys(), *value.values()]
    elif issubclass(kind, (Sequence, AbstractSet)):
        parts = value
    else:
        parts = [part for _, part in fields_of(value) or state_of(value)]
    for part in parts:
        if issubclass(type(part), (Mapping, AbstractSet)):
            yield part
        yield from _unordered(part, seen)


def _class_of(value: object) -> type:
    return type(value)


def _pairs(items: Iterable[tuple[Any, Any]]) -> list[str]:
    return [f"{shown(key)}: {shown(item)}" for key, item in items]


def _mapping(value: Any) -> str:
    return f"{{{', '.join(sorted(_pairs(value.items())))}}}"


def _all(values: Iterable[object]) -> str:
    return ", ".join(map(shown, values))


def _members(values: Iterable[object]) -> str:
    return ", ".join(sorted(map(shown, values)))


# Of a subclass, what the builtin holds: its own methods may show less of it.
_BASE: Mapping[Any, Any] = {each: each for each in (list, tuple, set, frozenset, dict, OrderedDict)}
_SHOWS: Mapping[type, Callable[[Any], str]] = {
    list: lambda value: f"[{_all(_BASE[list].__iter__(value))}]",
    tuple: lambda value: f"({_all(_BASE[tuple].__iter__(value))}{',' if _BASE[tuple].__len__(value) == 1 else ''})",
    set: lambda value: f"{{{_members(_BASE[set].__iter__(value))}}}" if value else "set()",
    frozenset: lambda value: f"frozenset({{{_members(_BASE[frozenset].__iter__(value))}}})",
    dict: lambda value: f"{{{', '.join(sorted(_pairs(_BASE[dict].items(value))))}}}",
    OrderedDict: lambda value: f"OrderedDict({{{', '.join(_pairs(_BASE[OrderedDict].items(value)))}}})",
    Counter: lambda value: f"Counter({_mapping(value)})",
    defaultdict: lambda value: f"defaultdict({without_address(repr(value.default_factory))}, {_mapping(value)})",
    MappingProxyType: lambda value: f"mappingproxy({_mapping(value)})",
    UserDict: _mapping,
    ChainMap: lambda value: f"ChainMap({_mapping(value)})",
}
