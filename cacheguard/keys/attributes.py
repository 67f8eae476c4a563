"""Whether the classes that an annotation names have the attributes that a template reads."""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Iterator
from typing import Any

from .text import meant

_UNIONS = (typing.Union, types.UnionType)
# What a class that does one of these has is not to be seen from outside.
_OPEN = ("__getattr__", "__getattribute__", "__setattr__")
# Their classes set nothing but what they declare.
_LIBRARIES = ("builtins", "typing", "abc", "enum", "datetime", "attr", "pydantic", "msgspec")
_NOTHING = object()
_WRITES = frozenset({"setattr", "__dict__", "__setattr__", "vars"})


def missing(hint: Any, steps: list[str]) -> str | None:
    """Say what is wrong if no class that *hint* names has the attributes *steps*, each of the one before; else None."""
    kinds: list[Any] = [dict if typing.is_typeddict(kind) else kind for kind in _classes(hint)]
    for step in steps:
        if not kinds or not all(isinstance(kind, type) and _is_known(kind) for kind in kinds):
            return None
        having = [kind for kind in kinds if _has(kind, step)]
        if not having:
            return f"{_names(kinds)} has no attribute {step}"
        methods = [kind for kind in having if inspect.isroutine(inspect.getattr_static(kind, step, None))]
        if methods == having:
            return f"{step} is a method of {_names(having)}: make it a property, or pass its result"
        kinds = [each for kind in having for each in _classes(_type_of(kind, step))]
    return None


def no_item(hint: Any, item: str) -> str | None:
    """Say what is wrong if the annotation is a TypedDict without the key *item*; else None."""
    kinds = list(_classes(hint))
    if not kinds or not all(typing.is_typeddict(kind) for kind in kinds):
        return None
    if any(item in kind.__annotations__ for kind in kinds):
        return None
    return f"{_names(kinds)} has no key {item}"


def _names(kinds: list[Any]) -> str:
    return " | ".join(kind.__qualname__ for kind in kinds)


def _classes(hint: Any) -> Iterator[Any]:
    """The members of an annotation; None is left out, as a call with None has an error of its own."""
    hint = meant(hint)
    if typing.get_origin(hint) in _UNIONS:
        for each in typing.get_args(hint):
            yield from _classes(each)
    elif isinstance(hint, typing.TypeVar):
        for each in hint.__constraints__ or (hint.__bound__,):
            yield from _classes(each)
    elif hint is not types.NoneType:
        # A generic class has its attributes whatever its arguments are.
        yield typing.get_origin(hint) or hint


def _is_known(kind: type) -> bool:
    """Can all attributes of the objects of this class be known?"""
    if kind in (object, type, Any) or getattr(kind, "_is_protocol", False) or inspect.isabstract(kind):
        return False
    for each in kind.__mro__[:-1]:
        if _root(each) in _LIBRARIES or hasattr(each, "__pydantic_fields__"):
            continue
        if any(_is_written(vars(each).get(name)) for name in _OPEN) or _root(type(each)) not in _LIBRARIES:
            return False
    extra: dict[str, Any] = getattr(kind, "model_config", {})
    return extra.get("extra") != "allow"


def _root(kind: type) -> str:
    return kind.__module__.partition(".")[0]


def _is_written(function: Any) -> bool:
    """Is this a method that says more than its class declares? Libraries and decorators make those that do not."""
    code = getattr(function, "__code__", None)
    if code is None or code.co_filename.startswith("<"):
        return False
    return function.__globals__.get("__name__", "").partition(".")[0] not in _LIBRARIES


def _has(kind: type, name: str) -> bool:
    return (
        inspect.getattr_static(kind, name, _NOTHING) is not _NOTHING
        or any(_annotates(each, name) for each in kind.__mro__)
        or name in getattr(kind, "__struct_fields__", ())
        or any(name == each.name for each in getattr(kind, "__attrs_attrs__", ()))
        or any(_mentions(each, name) for each in kind.__mro__)
    )


def _annotates(kind: type, name: str) -> bool:
    try:
        return name in inspect.get_annotations(kind)
    except Exception:  # noqa: BLE001 - annotations are any expressions, which some Pythons evaluate only now
        return True


def _mentions(kind: type, name: str) -> bool:
    """Does a method of the class use an attribute of that name, or set attributes by their names?"""
    if _root(kind) in _LIBRARIES:
        return False
    for each in vars(kind).values():
        function = getattr(each, "__func__", None) or getattr(each, "fget", None) or each
        code = getattr(inspect.unwrap(function) if callable(function) else function, "__code__", None)
        if code is not None and _is_written(function) and {name, *_WRITES} & {*code.co_names}:
            return True
    return False


def _type_of(kind: type, name: str) -> Any:
    """What the attribute is annotated with; None if that is unknown, or depends on type arguments."""
    found = inspect.getattr_static(kind, name, None)
    getter = getattr(found, "fget", None) or getattr(found, "func", None)
    try:
        hints = typing.get_type_hints(kind if getter is None else getter)
    except Exception:  # noqa: BLE001 - annotations are any expressions; unresolved, they forbid nothing
        return None
    return hints.get(name if getter is None else "return")
