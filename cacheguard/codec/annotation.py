"""What a return annotation says about the values: the classes in it, and what it leaves unsaid."""

from __future__ import annotations

import collections.abc
import dataclasses
import inspect
import sys
import types
import typing
from collections.abc import Iterable, Mapping
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from pathlib import Path, PurePath
from typing import Any, Literal, Union, get_args, get_origin
from uuid import UUID

from .names import NO_NAMES, Names, hints_of
from .state import BUILTINS, anatomy_of
from .tagged import KINDS

# What msgspec reads and writes by itself.
SCALARS = frozenset(
    {type(None), bool, int, float, str, bytes, bytearray, date, timedelta, datetime, time, Decimal, UUID}
)
_CONTAINERS = frozenset(
    {
        *(list, tuple, set, frozenset, dict),
        *(collections.abc.Collection, collections.abc.Sequence, collections.abc.MutableSequence),
        *(collections.abc.Set, collections.abc.MutableSet, collections.abc.Mapping, collections.abc.MutableMapping),
    }
)
_STANDARD = frozenset({"collections", "collections.abc", "typing", "contextlib", "builtins", "numbers", "os"})
_SAYING_NOTHING = (Any, object, Path, PurePath)
_LISTS: tuple[type[Any], ...] = (list,)
SELF: Any = typing.Self
_UNIONS = (Union, types.UnionType)
_WRAPPERS = (typing.Annotated, typing.Required, typing.NotRequired, typing.Final, typing.ClassVar)


@dataclasses.dataclass(slots=True)
class Facts:
    """What stands in an annotation, at any depth."""

    names: Names = dataclasses.field(default_factory=lambda: NO_NAMES)
    """What names in annotations mean beside those of their modules."""
    classes: dict[type[Any], None] = dataclasses.field(default_factory=dict[type[Any], None])
    """Classes whose objects can be made anew, and TypedDicts."""
    strange: dict[type[Any], None] = dataclasses.field(default_factory=dict[type[Any], None])
    """Classes whose objects cannot."""
    aliases: list[Any] = dataclasses.field(default_factory=list[Any])
    """Generic classes with their arguments."""
    unsaid: bool = False
    """Somewhere it says ``Any``, a type variable, a bare container, or a type that msgspec does not know."""
    named: list[Any] = dataclasses.field(default_factory=list[Any])
    """Type aliases that were met."""


def facts_of(annotation: object, names: Names = NO_NAMES) -> Facts:
    """Walk *annotation*; ``NameError`` if a class in it has a field whose type cannot be resolved (yet)."""
    facts = Facts(names)
    _visit(annotation, facts)
    return facts


def _visit(annotation: Any, facts: Facts) -> None:
    if is_alias(annotation):
        _visit_alias(annotation, annotation.__value__, facts)
        return
    annotation = bare(annotation)
    origin = get_origin(annotation)
    if isinstance(annotation, type) and origin is None:
        _visit_type(annotation, facts)
    elif origin is Literal:
        values: tuple[object, ...] = get_args(annotation)
        for value in values:
            _visit_type(type(value), facts)
    elif isinstance(origin, type) or origin in _UNIONS:
        _visit_generic(annotation, origin, facts)
    elif is_alias(origin):
        _visit_alias(annotation, origin.__value__, facts)
    else:
        _visit_variable(annotation, facts)


def _visit_variable(annotation: Any, facts: Facts) -> None:
    """A type variable, which may say something; or what says nothing."""
    facts.unsaid = facts.unsaid or annotation is not None
    if isinstance(annotation, typing.TypeVar):
        for bound in (annotation.__bound__, *annotation.__constraints__):
            if bound is not None:
                _visit(bound, facts)


def _visit_generic(annotation: Any, origin: Any, facts: Facts) -> None:
    arguments = get_args(annotation)
    if origin not in _UNIONS and origin not in _CONTAINERS:
        if origin in KINDS or (origin.__module__ in _STANDARD and not _is_written_here(origin)):
            facts.unsaid = True
        else:
            _visit_class(origin, facts)
            if annotation not in facts.aliases:
                facts.aliases.append(annotation)
    facts.unsaid = facts.unsaid or not arguments
    for argument in arguments:
        parts: list[Any] = argument if isinstance(argument, _LISTS) else [argument]
        for each in parts:
            if each is not Ellipsis:
                _visit(each, facts)


def _visit_alias(annotation: Any, value: Any, facts: Facts) -> None:
    """A type alias, which may contain itself."""
    if annotation not in facts.named:
        facts.named.append(annotation)
        for part in (value, *get_args(annotation)):
            _visit(part, facts)


def _visit_type(kind: type[Any], facts: Facts) -> None:
    if kind in SCALARS:
        return
    if kind in KINDS or kind in _CONTAINERS or kind in _SAYING_NOTHING or _is_abstract(kind):
        facts.unsaid = True
    else:
        _visit_class(kind, facts)


def _is_abstract(kind: type[Any]) -> bool:
    """True for ABCs and protocols: their instances are of other classes."""
    return (inspect.isabstract(kind) or getattr(kind, "_is_protocol", False)) and not has_fields(kind)


def _is_written_here(kind: type[Any]) -> bool:
    return has_fields(kind) or is_model(kind)


def is_alias(annotation: object) -> bool:
    """True for what a ``type`` statement makes, or TypeAliasType of typing_extensions."""
    return type(annotation).__name__ == "TypeAliasType"


def bare(annotation: Any) -> Any:
    """*annotation* without what only decorates it: Annotated, NewType, Required, a type alias."""
    while True:
        if get_origin(annotation) in _WRAPPERS:
            annotation = get_args(annotation)[0]
        elif isinstance(annotation, typing.NewType):
            annotation = annotation.__supertype__
        elif is_alias(annotation):
            annotation = annotation.__value__
        else:
            return annotation


def _visit_class(kind: type[Any], facts: Facts) -> None:
    if kind in facts.classes or kind in facts.strange:
        return
    if not is_storable(kind):
        facts.strange[kind] = None
        return
    facts.classes[kind] = None
    for generic in origin_of(kind):
        _visit_class(generic, facts)
    if is_model(kind) or has_fields(kind):
        hints = fields_of(kind, facts.names)
        facts.unsaid = facts.unsaid or any(name not in hints for name in field_names(kind))
        for hint in hints.values():
            if get_origin(hint) is not typing.ClassVar:
                _visit(hint, facts)


def origin_of(kind: Any) -> tuple[type[Any], ...]:
    """The generic model of which *kind* is a version with arguments: values are often made by its own name."""
    generic = getattr(kind, "__pydantic_generic_metadata__", {}).get("origin") if is_model(kind) else None
    return () if generic is None else (generic,)


def fields_of(kind: Any, names: Names) -> dict[str, Any]:
    """The fields of a class and their types; ``NameError`` if one cannot be resolved (yet)."""
    if is_model(kind):
        if not kind.__pydantic_complete__ and not kind.model_rebuild(raise_errors=False):
            raise NameError(f"{kind.__qualname__} has a field whose type is not defined yet")
        return {name: field.annotation for name, field in kind.model_fields.items()} | _private_fields(kind, names)
    return {name: hint for name, hint in hints_of(kind, names).items() if not isinstance(hint, dataclasses.InitVar)}


def _private_fields(kind: Any, names: Names) -> dict[str, Any]:
    try:
        hints = hints_of(kind, names)
    except NameError:  # pydantic does not resolve them
        return {}
    return {name: hint for name, hint in hints.items() if name in kind.__private_attributes__}


def field_names(kind: Any) -> tuple[str, ...]:
    """The declared fields of a class, in their order."""
    if is_model(kind):
        return tuple(kind.model_fields)
    if hasattr(kind, "__struct_fields__"):
        return tuple(kind.__struct_fields__)
    if dataclasses.is_dataclass(kind):
        return tuple(field.name for field in dataclasses.fields(kind))
    if hasattr(kind, "__attrs_attrs__"):
        return tuple(attribute.name for attribute in kind.__attrs_attrs__)
    return tuple(getattr(kind, "_fields", ()))


def has_fields(kind: type[Any]) -> bool:
    """Is *kind* a dataclass, a Struct, an attrs class, a TypedDict or a NamedTuple?"""
    return (
        dataclasses.is_dataclass(kind)
        or hasattr(kind, "__struct_fields__")
        or hasattr(kind, "__attrs_attrs__")
        or is_row(kind)
        or (tuple in kind.__mro__ and hasattr(kind, "_fields"))
    )


def is_row(kind: type[Any]) -> bool:
    """Is *kind* a TypedDict, whose values are plain dicts?"""
    return dict in kind.__mro__ and hasattr(kind, "__total__")


def is_storable(kind: Any) -> bool:
    """Can instances of *kind* be made anew from their state?"""
    if is_row(kind) or issubclass(kind, Enum):
        return True
    if not (has_fields(kind) or is_model(kind) or any(base in BUILTINS for base in kind.__mro__)):
        return False
    return kind not in BUILTINS and kind is not bool and not anatomy_of(kind).opaque


def is_model(kind: type[Any]) -> bool:
    """Is *kind* a pydantic model? It can only be one if somebody has imported pydantic."""
    pydantic = sys.modules.get("pydantic")
    return pydantic is not None and issubclass(kind, pydantic.BaseModel)


def union_arms(annotation: object) -> tuple[object, ...]:
    """The members of a union; the annotation alone if it is none."""
    outer = bare(annotation)
    return get_args(outer) if get_origin(outer) in _UNIONS else (outer,)


def substituted(annotation: Any, meanings: Mapping[Any, Any]) -> Any:
    """*annotation* with the type variables (and ``Self``) in *meanings* replaced."""
    if isinstance(annotation, typing.TypeVar) or annotation is SELF:
        return meanings.get(annotation, annotation)
    arguments = get_args(annotation)
    made = tuple(substituted(each, meanings) for each in arguments)
    if made == arguments or get_origin(annotation) is Literal:
        return annotation
    if get_origin(annotation) in _UNIONS:
        return typing.Union[made]  # noqa: UP007 - of as many as there are
    if get_origin(annotation) is typing.Annotated:
        return typing.Annotated[(made[0], *annotation.__metadata__)]
    copy = getattr(annotation, "copy_with", None)
    return types.GenericAlias(get_origin(annotation), made) if copy is None else copy(made)


def variables_of(annotation: Any) -> Iterable[Any]:
    """The type variables in *annotation*, and ``Self``."""
    if isinstance(annotation, typing.TypeVar) or annotation is SELF:
        yield annotation
    for each in get_args(annotation):
        yield from variables_of(each)
