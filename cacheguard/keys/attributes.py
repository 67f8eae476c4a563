"""Whether the classes that an annotation names have the attributes that a template reads."""

from __future__ import annotations

import enum
import inspect
import types
import typing
from collections.abc import Iterator
from typing import Any

from .parts import declares_fields
from .text import meant

_UNIONS = (typing.Union, types.UnionType)
# What a class that does one of these has is not to be seen from outside.
_OPEN = ("__getattr__", "__getattribute__", "__setattr__")
_WRITES = frozenset({"setattr", "__dict__", "__setattr__", "vars"})


def missing(hint: Any, steps: list[str]) -> str | None:
    """Say what is wrong if no class that *hint* names has the attributes *steps*, each of the one before; else None."""
    kinds = list(_classes(hint))
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
        if each.__module__ == "builtins" or (declares_fields(each) and _is_made(each)):
            continue
        if any(name in vars(each) for name in _OPEN) and not issubclass(kind, enum.Enum):
            return False
        if type(each) is not type and each.__module__ not in ("builtins", "abc", "enum"):
            return _is_plain_metaclass(type(each))
    extra: dict[str, Any] = getattr(kind, "model_config", {})
    return extra.get("extra") != "allow"


def _is_made(kind: type) -> bool:
    """Pydantic, msgspec and attrs have ways of their own to set fields, which say nothing about others."""
    return hasattr(kind, "__pydantic_fields__") or hasattr(kind, "__struct_fields__") or "__attrs_attrs__" in vars(kind)


def _is_plain_metaclass(meta: type) -> bool:
    return meta.__module__ in ("abc", "enum", "typing") or meta.__module__.partition(".")[0] in ("pydantic", "msgspec")


def _has(kind: type, name: str) -> bool:
    return (
        inspect.getattr_static(kind, name, None) is not None
        or any(name in vars(each).get("__annotations__", ()) for each in kind.__mro__)
        or name in getattr(kind, "__struct_fields__", ())
        or any(name == each.name for each in getattr(kind, "__attrs_attrs__", ()))
        or any(_mentions(each, name) for each in kind.__mro__)
    )


def _mentions(kind: type, name: str) -> bool:
    """Does a method of the class use an attribute of that name, or set attributes by their names?"""
    for each in vars(kind).values():
        function = getattr(each, "__func__", None) or getattr(each, "fget", None) or each
        code = getattr(inspect.unwrap(function) if callable(function) else function, "__code__", None)
        if code is not None and not code.co_filename.startswith("<") and {name, *_WRITES} & {*code.co_names}:
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
