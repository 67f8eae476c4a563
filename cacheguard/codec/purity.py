"""Does reading bytes run code of the user whose outcome is not decided by the bytes alone?

A library that makes objects calls validators, ``__post_init__`` and the factories of defaults. What these take from a
clock, the environment or a module is another thing in another process, or tomorrow, and the judge cannot see that when
a value is stored. So a function counts as pure only if it is shown to be: it works on its arguments, with builtins and
methods of builtin types, and iterates over nothing, since a set has no order that processes share.
"""

from __future__ import annotations

import collections
import dis
import functools
import json
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from inspect import getattr_static
from types import BuiltinFunctionType, CodeType, FunctionType, MethodDescriptorType, MethodType
from typing import Any
from uuid import UUID

from .annotation import field_names, is_model
from .outline import is_of_library, stable, written_in
from .state import anatomy_of, attributes_of

_TYPES: tuple[type[Any], ...] = (bool, int, float, complex, str, bytes, bytearray, list, tuple, dict, set, frozenset)
_FACTORIES = frozenset({*_TYPES, collections.OrderedDict, collections.Counter, collections.deque})
_BUILTINS: tuple[Any, ...] = (
    *(bool, int, float, complex, str, bytes, dict, object, Decimal, UUID, date, datetime, time, timedelta, re),
    *(abs, all, any, callable, chr, divmod, isinstance, issubclass, len, max, min, ord, pow, range, round, sorted),
    *(super, property, NotImplemented),
)
_OF_FIELDS = ("name", "data", "field_name")  # what libraries tell validators about a field
_METHODS = frozenset(
    name
    for kind in (*_TYPES[:8], dict, set)
    for name in dir(kind)
    if not name.startswith("_") and name not in ("join", "pop", "popitem", "format_map")
) | {"match", "fullmatch", "search", "sub", "group", *_OF_FIELDS}
# Of the classes above, each of which is looked at itself.
_HOOKS = ("__post_init__", "__attrs_pre_init__", "__attrs_post_init__", "model_post_init")
_CHECKED = frozenset({*_HOOKS, "__init__", "__setattr__"})
_READS = frozenset({"LOAD_ATTR", "LOAD_METHOD", "LOAD_SUPER_ATTR"})
_GLOBALS = frozenset({"LOAD_GLOBAL", "LOAD_NAME"})
_NEVER = frozenset(
    {
        *("IMPORT_NAME", "STORE_GLOBAL", "DELETE_GLOBAL", "LOAD_BUILD_CLASS", "GET_ITER", "GET_AITER", "GET_AWAITABLE"),
        *("UNPACK_SEQUENCE", "UNPACK_EX", "LIST_EXTEND", "YIELD_VALUE", "LOAD_CLASSDEREF", "LOAD_FROM_DICT_OR_GLOBALS"),
        *("LOAD_FROM_DICT_OR_DEREF", "LOAD_LOCALS"),
    }
)
_NUMBER = re.compile(r":\d+")
_NOT_FOR_READING = frozenset({"serialization", "metadata", "default"})
_DICTS: tuple[type[Any], ...] = (dict,)
_ROWS: tuple[type[Any], ...] = (list, tuple)
_ROUTINES = (FunctionType, MethodType)
_COMPUTED = (*_ROUTINES, property, staticmethod, classmethod, functools.cached_property)


def is_decided_by_bytes(kinds: Iterable[type[Any]]) -> bool:
    """True if msgspec makes the same objects of *kinds* from the same bytes, everywhere and at any time."""
    purity = Purity(kinds)
    return all(purity.makes(kind) for kind in purity.kinds)


class Purity:
    """What is known of the code of some classes, as far as it takes part in making their objects."""

    def __init__(self, kinds: Iterable[type[Any]]) -> None:
        self.kinds: tuple[Any, ...] = tuple(kinds)
        self._fields = {
            name for kind in self.kinds for name in (*field_names(kind), *getattr(kind, "__private_attributes__", ()))
        }
        self._met: set[CodeType] = set()

    def makes(self, kind: Any) -> bool:
        """True for a class of which msgspec writes all fields, and which has only pure hooks."""
        if Enum in kind.__mro__:
            return True  # its members are there already
        has_attributes = hasattr(kind, "__dataclass_fields__") or hasattr(kind, "__attrs_attrs__")
        if has_attributes and any(name.startswith("_") for name in field_names(kind)):
            return False  # msgspec leaves these out, and reads their defaults
        attributes: Iterable[Any] = getattr(kind, "__attrs_attrs__", ())
        return self.of_hooks(kind) and all(
            each.validator is None or self._of_validator(each.validator) for each in attributes
        )

    def _of_validator(self, validator: Any) -> bool:
        """True for a pure function, and for a validator of attrs with pure functions in it."""
        kind: Any = validator.__class__
        if kind.__module__.partition(".")[0] != "attr":
            return self.of(validator)
        parts: list[Any] = list(attributes_of(validator, anatomy_of(kind)).values())
        parts += [inner for part in parts if isinstance(part, _ROWS) for inner in part]
        asked = (part for part in parts if callable(part) and not isinstance(part, type | BuiltinFunctionType))
        return all(map(self._of_validator, asked))

    def of_hooks(self, kind: Any, names: Iterable[str] = (*_HOOKS, "__setattr__", "__new__")) -> bool:
        """True if the methods of *kind* and its bases of these names are pure, as far as the user has written them."""
        bases: tuple[type[Any], ...] = kind.__mro__[:-1]
        methods = (vars(base).get(name) for base in bases for name in names if not _is_library(base))
        return all(map(self.of, (fn for method in methods for fn in written_in(method))))

    def of(self, fn: Any) -> bool:
        """True if *fn* is shown to be pure."""
        fn = getattr(fn, "__func__", fn)
        if isinstance(fn, MethodDescriptorType):
            return fn.__objclass__ in _TYPES and fn.__name__ in _METHODS
        if not isinstance(fn, FunctionType):
            return fn in _FACTORIES if isinstance(fn, type) else False
        written = written_in(fn)
        if written != [fn]:
            return all(map(self.of, written))
        if fn.__code__ in self._met:
            return True
        self._met.add(fn.__code__)
        known = set(fn.__code__.co_freevars) <= {"__class__"} and not fn.__defaults__ and not fn.__kwdefaults__
        return known and self._is_pure(fn.__code__, fn)

    def _is_pure(self, code: CodeType, fn: FunctionType) -> bool:
        if any(isinstance(each, tuple) and "key" in each for each in code.co_consts):
            return False  # max(…, key=…) of a set
        for each in dis.get_instructions(code):
            if each.opname in _NEVER or each.opname == "BUILD_SET":
                return False
            if each.opname in _GLOBALS and not _is_builtin(fn, each.argval):
                return False
            if each.opname in _READS and not self._is_known(each.argval):
                return False
            if each.opname == "STORE_ATTR" and each.argval not in self._fields:
                return False
        return all(self._is_pure(inner, fn) for inner in code.co_consts if isinstance(inner, CodeType))

    def _is_known(self, name: str) -> bool:
        """True for a field, and for a method of a builtin type that is none of the classes."""
        if name in _CHECKED:
            return True
        held = [getattr_static(kind, name, None) for kind in self.kinds if not _is_library(kind)]
        if name in self._fields:
            return not any(isinstance(each, _COMPUTED) for each in held)
        return name in _METHODS and not any(held)


def _is_library(kind: Any) -> bool:
    return is_of_library(kind.__module__)


def _is_builtin(fn: FunctionType, name: str) -> bool:
    builtins: Any = getattr(fn, "__builtins__")  # noqa: B009 - typeshed does not know it
    found: Any = fn.__globals__.get(name, builtins.get(name))
    if isinstance(found, type) and issubclass(found, BaseException):
        return True
    return any(found is each for each in _BUILTINS)


# Models


class ModelPurity(Purity):
    """The same for pydantic, which says in its core schema what it is going to call."""

    def __init__(self, kinds: Iterable[type[Any]]) -> None:
        super().__init__(kinds)
        self._said: list[Any] = []
        self.said: str = ""
        """What decides the outcome beside the types: functions, and the order in which members of unions are tried."""

    def reads(self, schema: Any) -> bool:
        """True if nothing in *schema* calls what is not pure, but for factories of defaults (see `made_up`)."""
        pure = all(map(self._step, _schemas(schema))) and all(map(self._private, filter(is_model, self.kinds)))
        self.said = json.dumps(sorted({json.dumps(each, sort_keys=True) for each in self._said}))
        return pure

    def _step(self, schema: Mapping[str, Any]) -> bool:
        kind = schema.get("type")
        if kind in ("model", "dataclass"):
            made: Any = schema["cls"]
            names = [name for name in ("custom_init", "post_init") if schema.get(name)]
            hooks = ["__init__"] if "custom_init" in names else []
            return self.of_hooks(made, (*hooks, *_HOOKS, "__new__")) and (kind == "model" or _takes_all(schema))
        if isinstance(kind, str) and kind.startswith("function-"):
            function: Any = schema["function"]
            called: Any = function["function"] if isinstance(function, _DICTS) else function
            self._said.append([kind, stable(called)])
            return self._called(called)
        if kind == "tagged-union" and callable(schema["discriminator"]):
            self._said.append([kind, stable(schema["discriminator"])])
            return self._called(schema["discriminator"])
        if kind == "union":
            choices: list[Any] = [each[0] if isinstance(each, _ROWS) else each for each in schema["choices"]]
            self._said.append([kind, schema.get("mode"), list(map(_label, choices))])
        return kind not in ("call", "custom-error") or self._called(schema.get("function", len))

    def _called(self, fn: Any) -> bool:
        module = str(getattr(fn, "__module__", None) or getattr(fn.__class__, "__module__", ""))
        own: Any = getattr(fn, "__func__", fn)
        if is_of_library(module):
            return not isinstance(own, FunctionType) or self.of(own)
        return (isinstance(fn, type) and module in sys.stdlib_module_names) or self.of(fn)

    def _private(self, kind: Any) -> bool:
        factories = (each.default_factory for each in kind.__private_attributes__.values())
        return all(self._is_pure_factory(each) for each in factories if each is not None)

    def made_up(self) -> dict[type[Any], frozenset[str]]:
        """By model, the fields that a factory fills which is not pure: they must be in the bytes."""
        found: dict[type[Any], frozenset[str]] = {}
        for kind in filter(is_model, self.kinds):
            names = [
                name
                for name, field in kind.model_fields.items()
                if field.default_factory is not None and not self._is_pure_factory(field.default_factory)
            ]
            if names:
                found[kind] = frozenset(names)
        return found

    def _is_pure_factory(self, factory: Any) -> bool:
        if not (isinstance(factory, type) and factory in self.kinds):
            return self.of(factory)
        fields: Mapping[str, Any] = getattr(factory, "model_fields", {})
        inner = [field.default_factory for field in fields.values() if field.default_factory is not None]
        return is_model(factory) and all(each is not factory and self._is_pure_factory(each) for each in inner)


def _label(schema: Mapping[str, Any]) -> list[Any]:
    """What tells the members of a union apart."""
    kinds = [stable(schema[name]) for name in ("cls", "expected") if name in schema]
    return [schema.get("type"), kinds, _NUMBER.sub("", str(schema.get("schema_ref", "")).rpartition(".")[2])]


def _takes_all(schema: Mapping[str, Any]) -> bool:
    """True if the arguments of a dataclass are all of its fields."""
    nothing: list[Any] = []
    found = (each["fields"] for each in _schemas(schema) if each.get("type") == "dataclass-args")
    fields: list[Any] = next(found, nothing)
    taken = {each["name"] for each in fields if each.get("init", True) and not each.get("init_only")}
    return set(field_names(schema["cls"])) <= taken


def _schemas(schema: Any) -> Iterator[Mapping[str, Any]]:
    """All parts of a core schema that have a type, but for what is about writing."""
    waiting: list[Any] = [schema]
    while waiting:
        each = waiting.pop()
        if isinstance(each, _DICTS):
            is_schema = isinstance(each.get("type"), str)  # else it is a dict of fields, one of which may be "type"
            if is_schema:
                yield each
            waiting += [part for name, part in each.items() if not (is_schema and name in _NOT_FOR_READING)]
        elif isinstance(each, _ROWS):
            waiting += each
