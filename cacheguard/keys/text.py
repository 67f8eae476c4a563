"""Common to all makers of key text: their protocol, a function's parameters, and the refusal of default reprs."""

from __future__ import annotations

import inspect
import re
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

from ..errors import KeyTemplateError

# A text like <shop.User object at 0x7f2c…>: another one in every process, and later another object's.
_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+>")

_UNIONS = (typing.Union, types.UnionType)
_CONTAINERS = (list, tuple, set, frozenset, dict)
_SAYING_NOTHING = (Any, object)  # both are classes
_DECORATIONS = (typing.Annotated, *_UNIONS, *_CONTAINERS)


class KeyMaker(Protocol):
    """Makes a text of a call's arguments."""

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


def function_name(fn: Callable[..., Any]) -> str:
    """The name of *fn* for a message."""
    name: str = getattr(fn, "__qualname__", type(fn).__qualname__)
    return name


def parameters_of(fn: Callable[..., Any]) -> dict[str, Any]:
    """The names of the parameters and what they are annotated with, as far as that can be resolved."""
    try:
        names = inspect.signature(fn).parameters
    except (TypeError, ValueError) as error:
        raise KeyTemplateError(f"no key can be made for {fn!r}: its parameters are unknown ({error})") from error
    try:
        hints = typing.get_type_hints(inspect.unwrap(fn))
    except Exception:  # noqa: BLE001 - annotations are any expressions; unresolved, they forbid nothing
        hints = {}
    return {name: hints.get(name) for name in names}


def stated_classes(hint: Any) -> Iterator[type]:
    """The concrete classes an annotation names, also inside unions and builtin containers."""
    if typing.get_origin(hint) in _DECORATIONS:
        for argument in typing.get_args(hint):
            yield from stated_classes(argument)
    elif isinstance(hint, type) and hint not in _SAYING_NOTHING and not _is_abstract(hint):
        yield hint


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
