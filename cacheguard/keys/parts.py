"""The parts that an argument consists of: declared fields, and the state that no field declares."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Iterator
from typing import Any

Part = tuple[str, Any]


def declares_fields(kind: type[Any]) -> bool:
    """Return True if the class says which fields its objects have."""
    return (
        dataclasses.is_dataclass(kind)
        or hasattr(kind, "__struct_fields__")
        or hasattr(kind, "__attrs_attrs__")
        or hasattr(kind, "__pydantic_fields__")
        or (tuple in kind.__mro__ and hasattr(kind, "_fields"))
    )


def hidden_parameters(kind: type[Any]) -> list[str]:
    """Return the names of a dataclass's ``InitVar``s: its objects do not say what they were made with."""
    declared: dict[str, Any] = getattr(kind, "__dataclass_fields__", {})
    return [name for name, each in declared.items() if "INITVAR" in repr(each._field_type)]  # noqa: SLF001 - no public name


def fields_of(value: Any) -> list[Part] | None:
    """The named parts of *value*, if its class declares them; a field that is not set is left out."""
    return _fields_of(value, type(value))


def _fields_of(value: Any, kind: Any) -> list[Part] | None:
    if dataclasses.is_dataclass(kind):
        return _attributes(value, [field.name for field in dataclasses.fields(kind)])
    names: Iterable[str] | None = getattr(kind, "__struct_fields__", None)
    if names is not None:
        return _attributes(value, names)
    declared: Iterable[Any] | None = getattr(kind, "__attrs_attrs__", None)
    if declared is not None:
        return _attributes(value, [attribute.name for attribute in declared])
    if hasattr(kind, "__pydantic_fields__"):
        # Fields first; which of them were set, extras and private attributes are what a model has besides.
        return [
            *sorted(_kept(value, kind)),
            ("+", value.__pydantic_extra__),
            ("-", value.__pydantic_private__),
            ("?", value.__pydantic_fields_set__),
        ]
    if tuple in kind.__mro__ and hasattr(kind, "_fields"):
        return list(zip(kind._fields, value, strict=True))
    return None


def _attributes(value: object, names: Iterable[str]) -> list[Part]:
    return [(name, getattr(value, name)) for name in names if hasattr(value, name)]


def state_of(value: object) -> Iterator[Part]:
    """The attributes of *value* itself, in ``__dict__`` and in slots; what is computed once and kept is none."""
    kind: type[Any] = type(value)
    yield from _kept(value, kind)
    for each in kind.__mro__:
        # attrs makes the slots of its classes: one for each field, and for each property that is computed once.
        slots: Any = () if "__attrs_attrs__" in vars(each) else vars(each).get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            full = f"_{each.__name__.lstrip('_')}{name}" if name.startswith("__") and not name.endswith("__") else name
            if name not in ("__dict__", "__weakref__") and hasattr(value, full):
                yield full, getattr(value, full)


def _kept(value: object, kind: type[Any]) -> Iterator[Part]:
    own: dict[str, Any] = getattr(value, "__dict__", None) or {}
    for name, part in own.items():
        if not isinstance(getattr(kind, name, None), functools.cached_property):
            yield name, part


def undeclared(value: object, declared: Iterable[str]) -> list[str]:
    """Return the names of the attributes of *value* that are none of the *declared* fields."""
    known = {*declared}
    return [name for name, _ in state_of(value) if name not in known]
