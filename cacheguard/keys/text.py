"""Common to all makers of key text: their protocol, what annotations say, and the refusal of default reprs."""

from __future__ import annotations

import inspect
import re
import types
import typing
from collections.abc import Iterator, Mapping
from datetime import date, datetime
from decimal import Decimal
from typing import Any, Protocol
from uuid import UUID

# A text like <shop.User object at 0x7f2c…>: another one in every process, and later another object's.
_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+>")

_UNIONS = (typing.Union, types.UnionType)
_CONTAINERS = (list, tuple, set, frozenset, dict)
_SCALARS: frozenset[Any] = frozenset({str, bytes, bool, int, float, Decimal, UUID, date, datetime})
_ALLOWED: frozenset[Any] = _SCALARS | {type(None)}
_SAYING_NOTHING = (Any, object)  # both are classes
_DECORATIONS = (typing.Annotated, *_UNIONS, *_CONTAINERS)


class KeyMaker(Protocol):
    """Makes a text of a call's arguments."""

    @property
    def pattern(self) -> str:
        """What the texts of all calls have in common."""
        ...

    @property
    def fields(self) -> tuple[str, ...]:
        """The parameters that the text depends on."""
        ...

    def text(self, arguments: Mapping[str, Any]) -> str:
        """The text for bound arguments, defaults included; `KeyTemplateError` if one of them has no text."""
        ...

    def text_of(self, *values: Any) -> str:
        """The same, from the values of `fields` in their order."""
        ...


def stated_classes(hint: Any) -> Iterator[type]:
    """The concrete classes an annotation names, also inside unions and builtin containers."""
    hint = meant(hint)
    if typing.get_origin(hint) in _DECORATIONS:
        for argument in typing.get_args(hint):
            yield from stated_classes(argument)
    elif isinstance(hint, type) and hint not in _SAYING_NOTHING and not _is_abstract(hint):
        yield hint


def scalars(hint: Any) -> tuple[type, ...] | None:
    """The types that an annotation allows, if it names nothing but plain scalars and None."""
    hint = meant(hint)
    members = [meant(each) for each in typing.get_args(hint)] if typing.get_origin(hint) in _UNIONS else [hint]
    return tuple(members) if any(each in _SCALARS for each in members) and _ALLOWED.issuperset(members) else None


def meant(hint: Any) -> Any:
    """What an annotation stands for: behind ``Annotated``, a `NewType` or an alias."""
    while True:
        if typing.get_origin(hint) is typing.Annotated:
            hint = typing.get_args(hint)[0]
        elif isinstance(hint, typing.NewType):
            hint = hint.__supertype__
        elif type(hint).__name__ == "TypeAliasType":
            hint = hint.__value__
        else:
            return hint


def _is_abstract(kind: type) -> bool:
    return inspect.isabstract(kind) or bool(getattr(kind, "_is_protocol", False))


def has_default(kind: type, *methods: str, base: type = object) -> bool:
    """Does *kind* inherit all of these methods from *base*?"""
    return all(getattr(kind, method) is getattr(base, method) for method in methods)


def without_address(text: str) -> str:
    """*text*; ``ValueError`` if a default ``repr`` is part of it."""
    if _ADDRESS.search(text):
        raise ValueError(f"it would be made of a default repr: {text:.100}")
    return text


def whole_number(value: int) -> str:
    """*value* in decimal, or in hexadecimal if it has more digits than the interpreter is willing to convert."""
    try:
        return int.__repr__(value)
    except ValueError:
        return hex(value)
