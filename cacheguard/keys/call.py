"""Texts made without a template: the function and all its arguments, each with its type."""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Callable, Iterable, Mapping
from datetime import date, datetime, time, timedelta, tzinfo
from decimal import Decimal
from enum import Enum, Flag
from typing import Any
from uuid import UUID

from ..errors import KeyTemplateError
from ..protocol.names import escape, quote
from .text import function_name, has_default, parameters_of, stated_classes, whole_number, without_address


class CallText:
    """The text of a call: ``shop.find(name=sAnn,limit=i10)``.

    Every value is written with a mark of its type, so ``1``, ``1.0``, ``True`` and ``"1"`` differ; what is written is
    quoted, so no value can pose as two. Sets and dicts are sorted.
    """

    __slots__ = ("_head", "_labels", "_name", "fields")

    def __init__(self, fn: Callable[..., Any]) -> None:
        self._name = function_name(fn)
        parameters = parameters_of(fn)
        self.fields: tuple[str, ...] = tuple(parameters)
        _check_function(fn, self.fields)
        for name, hint in parameters.items():
            for kind in stated_classes(hint):
                if has_default(kind, "__repr__") and not _declares_fields(kind):
                    raise self._complaint(name, f"a {kind.__qualname__} has only a default repr")
        self._head = escape(f"{fn.__module__}.{fn.__qualname__}{_owner_of(fn)}(")
        self._labels = tuple(f"{name}=" for name in self.fields)

    def __repr__(self) -> str:
        return f"<CallText of {self._name}{self.fields}>"

    def text(self, arguments: Mapping[str, Any]) -> str:
        return self.text_of(*[arguments[name] for name in self.fields])

    def text_of(self, *values: Any) -> str:
        parts = [label + self._written(label, value) for label, value in zip(self._labels, values, strict=True)]
        return f"{self._head}{','.join(parts)})"

    def _written(self, label: str, value: Any) -> str:
        try:
            return _write(value)
        except Exception as error:
            raise self._complaint(label[:-1], f"{type(error).__name__}: {error}") from error

    def _complaint(self, parameter: str, what: str) -> KeyTemplateError:
        return KeyTemplateError(
            f"{self._name} needs a key template such as {_example(self.fields)}: "
            f"its argument {parameter} cannot become part of a key ({what})"
        )


def _example(fields: tuple[str, ...]) -> str:
    return repr(":".join(["name", *(f"{{{field}}}" if field != "self" else "{self.id}" for field in fields)]))


def _owner_of(fn: Any) -> str:
    """The class that a class method was taken from, which may be another than the one that defines it."""
    owner: Any = fn.__self__ if inspect.ismethod(fn) else None
    return "" if owner is None else f"[{_class_name(owner)}]"


def _check_function(fn: Callable[..., Any], fields: tuple[str, ...]) -> None:
    name = getattr(fn, "__qualname__", None)
    if name is None or name.endswith("<lambda>"):
        raise KeyTemplateError(f"{fn!r} needs a key template such as {_example(fields)}: it has no name of its own")
    owner = name.rpartition(".")[0]
    in_class = bool(owner) and not owner.endswith("<locals>")
    bound = inspect.ismethod(fn) and not isinstance(fn.__self__, type)
    if bound or (in_class and fields[:1] == ("self",)):
        raise KeyTemplateError(
            f"the method {name} needs a key template, since nothing tells its objects apart: "
            f'"user:{{self.tenant}}:{{user_id}}" names what does; its parameters are: {", ".join(fields)}'
        )


def _write(value: object) -> str:
    """The text of *value*, which no value of another type or content has."""
    write = _WRITERS.get(type(value))
    return write(value) if write is not None else _write_other(value)


def _write_items(mark: str) -> Callable[[Any], str]:
    return lambda value: f"{mark}({','.join(map(_write, value))})"


def _write_members(mark: str) -> Callable[[Any], str]:
    return lambda value: f"{mark}({','.join(sorted(map(_write, value)))})"


def _write_dict(value: Any) -> str:
    return f"m({','.join(sorted(f'{_write(key)}={_write(item)}' for key, item in value.items()))})"


def _write_moment(mark: str) -> Callable[[Any], str]:
    return lambda value: f"{mark}{_moment(value)}"


def _moment(value: Any) -> str:
    zone: tzinfo | None = value.tzinfo
    key = getattr(zone, "key", None)
    text = value.isoformat().replace(":", "")
    return quote(f"{text}{'~' if value.fold else ''}{'' if key is None else f'[{key}]'}")


_WRITERS: dict[type, Callable[[Any], str]] = {
    type(None): lambda _value: "n",
    bool: lambda value: "b1" if value else "b0",
    int: lambda value: f"i{whole_number(value)}",
    float: lambda value: f"f{float.__repr__(value)}",
    complex: lambda value: f"c{float.__repr__(value.real)}_{float.__repr__(value.imag)}",
    str: lambda value: f"s{quote(str.__str__(value))}",
    bytes: lambda value: f"y{bytes.hex(value)}",
    bytearray: lambda value: f"Y{bytearray.hex(value)}",
    Decimal: lambda value: f"d{Decimal.__str__(value)}",
    UUID: lambda value: f"u{value.hex}",
    datetime: _write_moment("w"),
    date: lambda value: f"D{value.isoformat()}",
    time: _write_moment("h"),
    timedelta: lambda value: f"x{value.days}_{value.seconds}_{value.microseconds}",
    list: _write_items("l"),
    tuple: _write_items("t"),
    set: _write_members("S"),
    frozenset: _write_members("F"),
    dict: _write_dict,
    range: lambda value: f"g({value.start},{value.stop},{value.step})",
    slice: lambda value: f"G({_write(value.start)},{_write(value.stop)},{_write(value.step)})",
    re.Pattern: lambda value: f"p({_write(value.pattern)},{value.flags})",
}

_SCALARS: tuple[type[Any], ...] = (
    str,
    int,
    float,
    complex,
    bytes,
    bytearray,
    Decimal,
    UUID,
    datetime,
    date,
    time,
    timedelta,
)
_CONTAINERS: tuple[type[Any], ...] = (list, tuple, set, frozenset, dict)


def _write_other(value: object) -> str:
    kind = type(value)
    if isinstance(value, Enum):
        return f"e{_class_name(kind)}({_write(value.value) if isinstance(value, Flag) else quote(value.name)})"
    if isinstance(value, type):
        return f"T{_class_name(value)}"
    fields = _fields(value, kind)
    if fields is not None:
        return f"o{_class_name(kind)}({','.join(f'{name}={_write(part)}' for name, part in fields)})"
    for base in (*_SCALARS, *_CONTAINERS):
        if base in kind.__mro__:
            return _write_subclass(value, kind, base)
    return f"r{_class_name(kind)}({quote(_meaningful_repr(value))})"


def _class_name(kind: type) -> str:
    return quote(f"{kind.__module__}.{kind.__qualname__}")


def _write_subclass(value: object, kind: type, base: type) -> str:
    """An instance of a class derived from a builtin: as the builtin, and whatever it has besides."""
    parts = [_WRITERS[base](value)]
    if base in _SCALARS and not has_default(kind, "__repr__", base=base):
        parts.append(quote(without_address(repr(value))))  # may tell more, such as the nanoseconds of a timestamp
    if getattr(value, "__dict__", None):
        parts.append(_write_dict(vars(value)))
    return f"k{_class_name(kind)}({','.join(parts)})"


def _meaningful_repr(value: object) -> str:
    """A ``repr`` that tells two values apart.

    By convention one in angle brackets only describes (``<User: Ann>``, of which there may be two), and containers,
    such as arrays, shorten theirs.
    """
    text = without_address(repr(value))
    if text.startswith("<") or hasattr(type(value), "__len__"):
        raise ValueError(f"its repr does not tell it apart from others: {text:.100}")
    return text


def _declares_fields(kind: type[Any]) -> bool:
    return (
        dataclasses.is_dataclass(kind)
        or hasattr(kind, "__struct_fields__")
        or hasattr(kind, "__attrs_attrs__")
        or hasattr(kind, "__pydantic_fields__")
    )


def _fields(value: Any, kind: type[Any]) -> Iterable[tuple[str, Any]] | None:
    """The named parts of *value*, if its class declares them."""
    if dataclasses.is_dataclass(kind):
        return _attributes(value, [field.name for field in dataclasses.fields(kind)])
    names: Iterable[str] | None = getattr(kind, "__struct_fields__", None)
    if names is not None:
        return _attributes(value, names)
    declared: Iterable[Any] | None = getattr(kind, "__attrs_attrs__", None)
    if declared is not None:
        return _attributes(value, [attribute.name for attribute in declared])
    if hasattr(kind, "__pydantic_fields__"):
        parts: dict[str, Any] = value.__dict__
        return [*sorted(parts.items()), ("+", value.__pydantic_extra__), ("-", value.__pydantic_private__)]
    if tuple in kind.__mro__ and hasattr(kind, "_fields"):
        return zip(kind._fields, value, strict=True)
    return None


def _attributes(value: object, names: Iterable[str]) -> Iterable[tuple[str, Any]]:
    return [(name, getattr(value, name)) for name in names]
