"""Texts made without a template: the function and all its arguments, each with its type."""

from __future__ import annotations

import inspect
import re
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterable, Mapping
from datetime import date, datetime, time, timedelta, tzinfo
from decimal import Decimal
from enum import Enum, Flag
from functools import partial
from typing import Any
from uuid import UUID

from ..errors import KeyTemplateError
from ..events import log
from ..protocol.names import escape, quote
from .identity import Leaf, leaves_of
from .parameters import VARIADIC, Unbound, function_name, parameters_of, signature_of
from .parts import declares_fields, fields_of, hidden_parameters, state_of, undeclared
from .text import has_default, scalars, stated_classes, whole_number, without_address


class CallText:
    """The text of a call: ``shop.find(name=sAnn,limit=i10)``.

    Every value is written with a mark of its type, so ``1``, ``1.0``, ``True`` and ``"1"`` differ; what is written is
    quoted, so no value can pose as two. Sets and dicts are sorted.
    """

    __slots__ = ("_head", "_labels", "_name", "_scalars", "_told", "closure", "fields")

    def __init__(self, fn: Callable[..., Any], *, closure: tuple[Leaf, ...] | None = None) -> None:
        """*closure*: what tells *fn* from others of its name; None: it is found out, and must have names."""
        self._name = function_name(fn)
        parameters = parameters_of(fn)
        self.fields: tuple[str, ...] = tuple(parameters)
        _check_function(fn, self.fields)
        for name, hint in parameters.items():
            for kind in stated_classes(hint):
                if has_default(kind, "__repr__") and not declares_fields(kind):
                    raise self._complaint(name, f"a {kind.__qualname__} has only a default repr")
                if hidden := hidden_parameters(kind):
                    raise self._complaint(name, _hides(kind, hidden))
        self.closure: tuple[Leaf, ...] = leaves_of(fn) if closure is None else closure
        if closure is None:
            self._check_closure()
        named = ",".join(f"{leaf.where}={leaf.text}" for leaf in self.closure if leaf.text is not None)
        self._head = (
            f"{escape(f'{fn.__module__}.{fn.__qualname__}{_owner_of(fn)}')}{quote(f'[{named}]') if named else ''}("
        )
        self._labels = tuple(f"{name}=" for name in self.fields)
        kinds = [each.kind for each in signature_of(fn).parameters.values()]
        self._scalars = tuple(
            None if kind in VARIADIC else scalars(hint) for kind, hint in zip(kinds, parameters.values(), strict=True)
        )
        self._told: set[str] = set()

    def __repr__(self) -> str:
        return f"<CallText of {self._name}{self.fields}>"

    def text(self, arguments: Mapping[str, Any]) -> str:
        return self.text_of(*[arguments[name] for name in self.fields])

    @property
    def pattern(self) -> str:
        """What all texts have in common; two functions with the same one share their entries."""
        return self._head

    def text_of(self, *values: Any) -> str:
        parts: list[str] = []
        for label, scalar, value in zip(self._labels, self._scalars, values, strict=True):
            if scalar is not None and type(value) not in scalar:
                self._tell(label, scalar, value)
            parts.append(label + self._written(label, value))
        return f"{self._head}{','.join(parts)})"

    def _check_closure(self) -> None:
        for leaf in self.closure:
            if leaf.text is None:
                raise KeyTemplateError(
                    f"{self._name} needs a key template such as {_example(self.fields)}: its key does not tell it from "
                    f"other functions of its name, since it uses {leaf.where}, {leaf.what}; a parameter would be part "
                    "of the key"
                )

    def _tell(self, label: str, scalar: tuple[type, ...], value: object) -> None:
        """Log once for each parameter that a value of another type than annotated has entries of its own."""
        if label in self._told or value is None or type(value) is Unbound:
            return
        self._told.add(label)
        stated = " | ".join("None" if kind is type(None) else kind.__qualname__ for kind in scalar)
        log.warning(
            "%s: its parameter %s is annotated %s and got %.100r, a %s: calls with values of different types have "
            "different entries, and an invalidation reaches those of its own type; convert the argument, or give a "
            "key template",
            self._name,
            label[:-1],
            stated,
            value,
            type(value).__qualname__,
        )

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


# Of a subclass, what the builtin holds: its own methods may show less of it.
_DICT: Any = dict
_ORDERED: Any = OrderedDict


def _write_items(mark: str, base: Any) -> Callable[[Any], str]:
    return lambda value: f"{mark}({','.join(map(_write, base.__iter__(value)))})"


def _write_members(mark: str, base: Any) -> Callable[[Any], str]:
    return lambda value: f"{mark}({','.join(sorted(map(_write, base.__iter__(value))))})"


def _write_dict(value: Any) -> str:
    return f"m({','.join(sorted(_write_pairs(_DICT.items(value))))})"


def _write_pairs(items: Iterable[tuple[Any, Any]]) -> list[str]:
    return [f"{_write(key)}={_write(item)}" for key, item in items]


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
    list: _write_items("l", list),
    tuple: _write_items("t", tuple),
    set: _write_members("S", set),
    frozenset: _write_members("F", frozenset),
    dict: _write_dict,
    # Two of these are equal only if their orders are.
    OrderedDict: lambda value: f"M({','.join(_write_pairs(_ORDERED.items(value)))})",
    Unbound: lambda _value: "-",
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
_CONTAINERS: tuple[type[Any], ...] = (list, tuple, set, frozenset, OrderedDict, dict)


def _write_other(value: object) -> str:
    kind = type(value)
    if isinstance(value, Enum):
        return f"e{_class_name(kind)}({_write(value.value) if isinstance(value, Flag) else quote(value.name)})"
    if isinstance(value, type):
        return f"T{_class_name(value)}"
    fields = fields_of(value)
    if fields is not None:
        if hidden := hidden_parameters(kind):
            raise ValueError(_hides(kind, hidden))
        if not hasattr(kind, "__pydantic_fields__") and (more := undeclared(value, [name for name, _ in fields])):
            raise ValueError(f"a {kind.__qualname__} has {', '.join(more)}, which is no declared field")
        return f"o{_class_name(kind)}({','.join(f'{name}={_write(part)}' for name, part in fields)})"
    for base in (*_SCALARS, *_CONTAINERS):
        if base in kind.__mro__:
            return _write_subclass(value, kind, base)
    return f"r{_class_name(kind)}({quote(_meaningful_repr(value))})"


def _hides(kind: type, hidden: Iterable[str]) -> str:
    return f"a {kind.__qualname__} does not say what its InitVar {', '.join(hidden)} was"


def _class_name(kind: type) -> str:
    return quote(f"{kind.__module__}.{kind.__qualname__}")


def _write_subclass(value: Any, kind: Any, base: type) -> str:
    """An instance of a class derived from a builtin: as the builtin, and whatever it has besides."""
    parts = [_WRITERS[base](value)]
    if base in _SCALARS and not has_default(kind, "__repr__", base=base):
        parts.append(quote(without_address(repr(value))))  # may tell more, such as the nanoseconds of a timestamp
    if defaultdict in kind.__mro__:
        parts.append(_write(value.default_factory))
    if state := dict(state_of(value)):
        parts.append(_write_dict(state))
    return f"k{_class_name(kind)}({','.join(parts)})"


def _meaningful_repr(value: object) -> str:
    """A ``repr`` that tells two values apart.

    By convention one in angle brackets only describes (``<User: Ann>``, of which there may be two), and containers,
    such as arrays, shorten theirs. What is equal to nothing but itself must show all that it has.
    """
    text, kind = without_address(repr(value)), type(value)
    if text.startswith("<") or hasattr(kind, "__len__") or isinstance(value, partial):
        raise ValueError(f"its repr does not tell it apart from others: {text:.100}")
    if has_default(kind, "__eq__"):
        for name, part in state_of(value):
            if repr(part) not in text and str(part) not in text:
                raise ValueError(f"its repr, {text:.100}, does not show its {name}")
    return text
