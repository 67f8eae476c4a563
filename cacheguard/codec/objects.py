"""The form with objects: as the tagged one, and objects of the classes in one table, which the annotation names.

An object is stored as the number of its class and all its state, and is made anew without its constructor. Bytes name
no class, so they can make none that is not in the table.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from enum import Enum, Flag
from functools import partial
from typing import Any, Protocol

from msgspec import Struct
from msgspec.msgpack import Ext

from .annotation import field_names
from .form import Refused, type_name
from .state import CONTENT, anatomy_of, attributes_of
from .tagged import OBJECT, PLAIN, Lower, Tagged, pack

_ALIAS = OBJECT + 1
_FILLED: dict[Any, str] = {list: "extend", bytearray: "extend", dict: "update", set: "update"}
_FIELDS_SET = "__pydantic_fields_set__"


class _Plan(Protocol):
    """How the instances of one class become parts, and parts an instance.

    The number of the class comes first: as it is if only what is declared is there, else negative.
    """

    def lower(self, form: Tagged, value: Any, room: int) -> list[Any]: ...

    def build(self, parts: list[Any]) -> Any: ...


class _Members:
    """Members of an Enum: by name; combined flags, which may have none, by value."""

    def __init__(self, kind: type[Enum], number: int) -> None:
        self._kind, self._number = kind, number

    def lower(self, form: Tagged, value: Any, room: int) -> list[Any]:
        name = value._name_
        if self._kind.__members__.get(name) is value:
            return [self._number, name]
        if not isinstance(value, Flag):
            raise Refused(type_name(value), "which is none of the members of its class: define it there")
        return [-1 - self._number, form.lower(value._value_, room)]

    def build(self, parts: list[Any]) -> Any:
        number, what = parts
        return self._kind.__members__[what] if number >= 0 else self._kind(what)


class _Rows:
    """Named tuples without attributes of their own: item by item."""

    def __init__(self, kind: Any, number: int) -> None:
        self._kind, self._number = kind, number
        self._names: tuple[str, ...] = kind._fields
        self._made: Callable[[Any], Any] = partial(_new(tuple), kind)

    def lower(self, form: Tagged, value: Any, room: int) -> list[Any]:
        more: dict[str, Any] = getattr(value, "__dict__", {})
        if more:
            raise Refused(type_name(value), f"with attributes beside its items ({', '.join(more)}): use a dataclass")
        return [self._number, *_lower_named(form, zip(self._names, CONTENT[tuple](value), strict=True), room)]

    def build(self, parts: list[Any]) -> Any:
        return self._made(parts[1:])


def _new(base: Any) -> Callable[..., Any]:
    """What makes an instance of a class that is derived from the builtin *base*."""
    made: Callable[..., Any] = base.__new__
    return made


def _lower_named(form: Tagged, named: Any, room: int) -> list[Any]:
    lowered: list[Any] = []
    name, lower, add = "", form.lower, lowered.append
    try:
        for name, part in named:  # noqa: B007 - it is used below
            add(part if type(part) in PLAIN else lower(part, room))
    except Refused as refused:
        raise refused.within(f".{name}")  # noqa: B904 - the same refusal goes on
    return lowered


class _Objects:
    """Any other class: its attributes, and the content of the builtin that it is derived from."""

    def __init__(self, kind: type[Any], number: int) -> None:
        anatomy = anatomy_of(kind)
        self._kind, self._number, self._anatomy = kind, number, anatomy
        model = _FIELDS_SET in anatomy.slots
        self._fields = field_names(kind)
        self._names = (*self._fields, *anatomy.slots) if model else self._fields
        self._declared = frozenset(self._names)
        self._set_at = self._names.index(_FIELDS_SET) if model else None
        self._setters = {name: slot.__set__ for name, slot in anatomy.slots.items()}
        self._empty = self._maker()
        self._plain = self._declared.isdisjoint(self._setters) and not anatomy.hashes and not issubclass(kind, Struct)

    def _maker(self) -> Callable[..., Any]:
        kind, base = self._kind, self._anatomy.base
        if issubclass(kind, Struct):
            return _made_of_copies(kind) if hasattr(kind, "__post_init__") else kind
        return partial(_new(base or object), kind)

    def lower(self, form: Tagged, value: Any, room: int) -> list[Any]:
        state, base = attributes_of(value, self._anatomy), self._anatomy.base
        if state.keys() != self._declared or base is not None:
            lowered = _lower_named(form, state.items(), room)
            content = None if base is None else form.lower(CONTENT[base](value), room)
            return [-1 - self._number, dict(zip(state, lowered, strict=True)), content]
        if self._set_at is not None:
            state = {**state, _FIELDS_SET: self._mask(state[_FIELDS_SET])}
        return [self._number, *_lower_named(form, [(name, state[name]) for name in self._names], room)]

    def _mask(self, fields_set: set[str]) -> set[str] | int:
        """One bit for each field that was set; the names themselves if others are among them."""
        if not fields_set.issubset(self._fields):
            return fields_set
        return sum(1 << place for place, name in enumerate(self._fields) if name in fields_set)

    def build(self, parts: list[Any]) -> Any:
        if parts[0] >= 0:
            return self._declared_only(parts)
        _, state, content = parts
        if issubclass(self._kind, Struct):
            made = self._empty(**{name: state[name] for name in self._fields})
        else:
            made = self._made(content)
        if state:
            self._put(made, state)
        return made

    def _declared_only(self, parts: list[Any]) -> Any:
        if self._set_at is not None and type(parts[self._set_at + 1]) is int:
            mask = parts[self._set_at + 1]
            parts[self._set_at + 1] = {name for place, name in enumerate(self._fields) if mask >> place & 1}
        state = dict(zip(self._names, parts[1:], strict=True))
        if self._plain:
            made = self._empty()
            made.__dict__.update(state)
        elif issubclass(self._kind, Struct):
            made = self._empty(**state)
            self._put(made, state)  # its __post_init__ may have changed them
        else:
            made = self._made(None)
            self._put(made, state)
        return made

    def _made(self, content: Any) -> Any:
        base: Any = self._anatomy.base
        fill = _FILLED.get(base)
        if fill is not None or base is None:
            made = self._empty()
            if fill is not None:
                getattr(base, fill)(made, content)
        else:
            made = self._empty(*(content.real, content.imag) if base is complex else (content,))
        for name in self._anatomy.hashes:
            self._put(made, {name: None})
        return made

    def _put(self, made: Any, state: dict[str, Any]) -> None:
        setters = self._setters
        for name, value in state.items():
            setter = setters.get(name)
            if setter is None:
                made.__dict__[name] = value
            else:
                setter(made, value)


def _made_of_copies(kind: type[Struct]) -> Callable[..., Any]:
    """Makes a Struct of copies, for its ``__post_init__`` to change; what it has comes afterwards."""

    def make(**state: Any) -> Struct:
        return kind(**deepcopy(state))

    return make


def _plan(kind: type[Any], number: int) -> _Plan:
    if issubclass(kind, Enum):
        return _Members(kind, number)
    if tuple in kind.__mro__ and hasattr(kind, "_fields"):
        return _Rows(kind, number)
    return _Objects(kind, number)


def objects_form(kinds: Sequence[type[Any]], aliases: Sequence[Any], unknown: Callable[[Any], str]) -> Tagged:
    """The tagged form with a table of classes.

    Args:
        kinds: the classes, in an order that is the same in all processes.
        aliases: the generic classes with their arguments, which their instances remember.
        unknown: called with a value of a type that is not in the table; returns why it cannot be stored.
    """
    plans: list[_Plan] = [_plan(kind, number) for number, kind in enumerate(kinds)]

    def lower_with(plan: _Plan) -> Lower:
        return lambda form, value, room: Ext(OBJECT, pack(plan.lower(form, value, room)))

    def lower_alias(_form: Tagged, value: Any, _room: int) -> Ext:
        if value not in aliases:
            raise Refused(type_name(value), unknown(value))
        return Ext(_ALIAS, pack(aliases.index(value)))

    def build(form: Tagged, data: memoryview) -> Any:
        parts = form.unpack(data)
        number: int = parts[0]
        plan = plans[number if number >= 0 else -1 - number]
        return plan.build(parts)

    lowers: dict[type, Lower] = {kind: lower_with(plan) for kind, plan in zip(kinds, plans, strict=True)}
    lowers |= dict.fromkeys(map(type, aliases), lower_alias)
    return Tagged(lowers, {OBJECT: build, _ALIAS: lambda form, data: aliases[form.unpack(data)]}, unknown)
