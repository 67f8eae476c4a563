"""What a return annotation says about the values: the classes in it, what it leaves unsaid, and its fingerprint."""

from __future__ import annotations

import collections.abc
import dataclasses
import json
import sys
import types
import typing
from collections.abc import Iterable, Mapping
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from typing import Any, Literal, Union, get_args, get_origin
from uuid import UUID

import msgspec

_SCALARS = frozenset({type(None), bool, int, float, str, bytes, bytearray, date, timedelta, Decimal, UUID})
_MOMENTS = frozenset({datetime, time})
_CONTAINERS = frozenset(
    {
        list,
        tuple,
        set,
        frozenset,
        dict,
        collections.abc.Collection,
        collections.abc.Sequence,
        collections.abc.MutableSequence,
        collections.abc.Set,
        collections.abc.MutableSet,
        collections.abc.Mapping,
        collections.abc.MutableMapping,
    }
)
_NAMING = frozenset({"properties", "$defs"})
_PROSE = frozenset({"default", "description", "examples"})
_SAYING_NOTHING = (Any, object)
_UNIONS = (Union, types.UnionType)


@dataclasses.dataclass(slots=True)
class Facts:
    """What stands in an annotation, at any depth."""

    classes: set[type[Any]] = dataclasses.field(default_factory=set[type[Any]])
    """Classes other than builtin values and containers."""
    unsaid: bool = False
    """Somewhere it says ``Any``, a type variable, a bare container or the like."""
    exact: bool = False
    """Two values may be equal and yet differ: moments (time zones), and classes with a notion of their own."""


def facts_of(annotation: object) -> Facts:
    """Walk *annotation*; ``NameError`` if a class in it has a field whose type cannot be resolved (yet)."""
    facts = Facts()
    _visit(annotation, facts)
    return facts


def _visit(annotation: Any, facts: Facts) -> None:
    annotation = _bare(annotation)
    origin = get_origin(annotation)
    if isinstance(annotation, type) and origin is None:
        _visit_type(annotation, facts)
    elif origin in _UNIONS or origin in _CONTAINERS:
        arguments = get_args(annotation)
        facts.unsaid = facts.unsaid or not arguments
        for argument in arguments:
            if argument is not Ellipsis:
                _visit(argument, facts)
    elif isinstance(origin, type):
        _visit_class(origin, facts)
        for argument in get_args(annotation):
            _visit(argument, facts)
    elif annotation is not None and origin is not Literal:
        facts.unsaid = True


def _visit_type(kind: type[Any], facts: Facts) -> None:
    if kind in _MOMENTS:
        facts.exact = True
    elif kind in _CONTAINERS or kind in _SAYING_NOTHING:
        facts.unsaid = True
    elif kind not in _SCALARS:
        _visit_class(kind, facts)


def _bare(annotation: Any) -> Any:
    """*annotation* without what only decorates it: Annotated, NewType, Required, a type alias."""
    while True:
        if get_origin(annotation) in (typing.Annotated, typing.Required, typing.NotRequired, typing.Final):
            annotation = get_args(annotation)[0]
        elif isinstance(annotation, typing.NewType):
            annotation = annotation.__supertype__
        elif type(annotation).__name__ == "TypeAliasType":
            annotation = annotation.__value__
        else:
            return annotation


def _visit_class(kind: type[Any], facts: Facts) -> None:
    if kind in facts.classes:
        return
    facts.classes.add(kind)
    facts.exact = facts.exact or not _compares_every_field(kind)
    if has_fields(kind):
        hints = typing.get_type_hints(kind, include_extras=True)
        facts.unsaid = facts.unsaid or any(name not in hints for name in _declared_apart(kind))
        for hint in hints.values():
            if get_origin(hint) is not typing.ClassVar:
                _visit(hint, facts)


def _declared_apart(kind: Any) -> Iterable[str]:
    """The fields of a class that may have them without annotations: a named tuple, an attrs class."""
    yield from getattr(kind, "_fields", ())
    yield from (attribute.name for attribute in getattr(kind, "__attrs_attrs__", ()))


def has_fields(kind: type[Any]) -> bool:
    """Is *kind* a dataclass, a Struct, an attrs class, a TypedDict or a NamedTuple?"""
    return (
        dataclasses.is_dataclass(kind)
        or hasattr(kind, "__struct_fields__")
        or hasattr(kind, "__attrs_attrs__")
        or typing.is_typeddict(kind)
        or (tuple in kind.__mro__ and hasattr(kind, "_fields"))
    )


def is_storable(kind: type[Any]) -> bool:
    """Does msgspec know how to store and rebuild instances of *kind*?"""
    return has_fields(kind) or issubclass(kind, Enum)


def is_model(kind: type[Any]) -> bool:
    """Is *kind* a pydantic model? It can only be one if somebody has imported pydantic."""
    pydantic = sys.modules.get("pydantic")
    return pydantic is not None and issubclass(kind, pydantic.BaseModel)


def _compares_every_field(kind: Any) -> bool:
    equal = kind.__eq__
    if isinstance(equal, types.FunctionType) and not equal.__code__.co_filename.startswith("<"):
        return False  # written by hand; generated ones have no file
    if dataclasses.is_dataclass(kind):
        return all(field.compare for field in dataclasses.fields(kind))
    return all(attribute.eq and attribute.eq_key is None for attribute in getattr(kind, "__attrs_attrs__", ()))


def union_arms(annotation: object) -> tuple[object, ...]:
    """The members of a union; the annotation alone if it is none."""
    bare = _bare(annotation)
    return get_args(bare) if get_origin(bare) in _UNIONS else (bare,)


def describe(annotation: object) -> str:
    """A canonical text of *annotation*: names, fields and types, nothing that differs between processes.

    Defaults are left out, since every field is stored; modules are, so that a class may move.
    """
    from msgspec.inspect import type_info

    return _text(_outline(type_info(annotation), {}))


def describe_schema(schema: Mapping[str, Any]) -> str:
    """A canonical text of a JSON schema: without defaults, which may be sets, and without prose."""
    return _text(_essence(schema, named=False))


def _essence(node: object, *, named: bool) -> Any:
    """*node* without what does not change how values are read; *named* if its keys are names of fields or models."""
    if isinstance(node, dict):
        entries = typing.cast("dict[str, object]", node)
        return {
            key: _essence(part, named=key in _NAMING and not named)
            for key, part in entries.items()
            if named or key not in _PROSE
        }
    if isinstance(node, list):
        return [_essence(part, named=False) for part in typing.cast("list[object]", node)]
    return node


def _text(outline: object) -> str:
    return json.dumps(outline, sort_keys=True, default=repr)


def _outlines(nodes: Iterable[Any], met: dict[int, int]) -> list[Any]:
    return [_outline(node, met) for node in nodes]


def _outline(node: Any, met: dict[int, int]) -> Any:
    if isinstance(node, msgspec.inspect.Field):
        return [node.encode_name, node.required, _outline(node.type, met)]
    if id(node) in met:  # a class that contains itself
        return ["again", met[id(node)]]
    met[id(node)] = len(met)
    parts: Mapping[str, Any] = {name: getattr(node, name) for name in node.__struct_fields__}
    if isinstance(node, msgspec.inspect.UnionType):
        return ["UnionType", sorted(_outlines(node.types, met), key=_text)]
    if isinstance(node, msgspec.inspect.EnumType):
        return ["EnumType", node.cls.__qualname__, [[n, m.value] for n, m in node.cls.__members__.items()]]
    if "cls" in parts:
        kind = get_origin(parts["cls"]) or parts["cls"]
        parts = {**parts, "cls": kind.__qualname__}
    return [type(node).__name__, {name: _outline_part(part, met) for name, part in parts.items()}]


def _outline_part(part: object, met: dict[int, int]) -> Any:
    if isinstance(part, tuple):
        return [_outline_part(each, met) for each in typing.cast("tuple[object, ...]", part)]
    return _outline(part, met) if isinstance(part, (msgspec.inspect.Type, msgspec.inspect.Field)) else part
