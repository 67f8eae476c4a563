"""What a function is beyond its name: what it uses of the function around it, and what it is bound to.

Module and qualified name tell a function from others, if it is the one of that name. A function made inside of another
is made anew at each call of that one, with other variables each time. Modules, classes and functions among these have
names, which tell them apart in every process; other values have none.
"""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Iterator
from logging import Logger
from types import CodeType, FunctionType, ModuleType
from typing import Any, NamedTuple

_LOCAL = "<locals>"
_LAMBDA = "<lambda>"
_CACHED = type(functools.lru_cache(len))
_METHOD_OBJECTS: tuple[type[Any], ...] = (staticmethod, classmethod, property, functools.cached_property)
_MOST_WRAPPERS = 100


class Leaf(NamedTuple):
    """Something that a function uses or is bound to."""

    where: str
    """Like ``tenant``, or ``helper.tenant`` for what a function uses that it uses."""

    text: str | None
    """The name that tells it apart in every process; None if it has none."""

    value: Any

    @property
    def what(self) -> str:
        """It in words; not its value, which may be a secret."""
        if isinstance(self.value, _Words):
            return str(self.value)
        return "which is None" if self.value is None else f"of the type {type(self.value).__qualname__}"


class _Words(str):
    """Says why there is no value."""

    __slots__ = ()


def leaves_of(fn: Callable[..., Any]) -> tuple[Leaf, ...]:
    """Return what tells *fn* from other functions of its name; empty if it is the only one."""
    chain = _chain(fn)
    if _is_importable(fn) or _is_being_defined(chain):
        return ()
    return tuple(_Walk(chain).of_function(fn, ""))


def same_leaves(one: tuple[Leaf, ...], other: tuple[Leaf, ...]) -> bool:
    """Do these belong to functions that do the same?"""
    return len(one) == len(other) and all(map(_same, one, other))


def _same(one: Leaf, other: Leaf) -> bool:
    if (one.where, one.text) != (other.where, other.text):
        return False
    return one.text is not None or one.value is other.value or _same_scalar(one.value, other.value)


def _same_scalar(one: object, other: object) -> bool:
    plain = (str, bytes, int, float, bool, type(None), _Words)
    return type(one) is type(other) and isinstance(one, plain) and one == other


def code_of(fn: Any) -> CodeType | None:
    """The code of a function, or of the outermost function around it."""
    own = fn.__func__ if inspect.ismethod(fn) else fn
    return getattr(own, "__code__", None)


def _chain(fn: Any) -> list[Any]:
    chain = [fn]
    while len(chain) < _MOST_WRAPPERS and (inner := getattr(chain[-1], "__wrapped__", None)) is not None:
        chain.append(inner)
    return chain


def _is_importable(value: Any) -> bool:
    """Is *value* what its module has under its name?"""
    name: Any = getattr(value, "__qualname__", None)
    found: Any = sys.modules.get(getattr(value, "__module__", None) or "")
    if not isinstance(name, str) or found is None:
        return False
    for part in name.split("."):
        found = getattr(found, part, None)
    return found is value or (inspect.ismethod(value) and found == value)


def _is_being_defined(chain: list[Any]) -> bool:
    """Is it a ``def`` of a module or a class with its decorators, which no name stands for yet?"""
    innermost = chain[-1]
    if not isinstance(innermost, FunctionType):
        return False
    name = innermost.__code__.co_qualname
    return _LOCAL not in name and _LAMBDA not in name and not any(map(_is_importable, chain))


class _Walk:
    """Finds what a function uses, and what those use."""

    def __init__(self, chain: list[Any]) -> None:
        self._seen = {id(chain[0])}
        self._chain = {id(each) for each in chain}

    def of_function(self, fn: Any, where: str) -> Iterator[Leaf]:
        """What a function that is not the only one of its name uses."""
        if inspect.ismethod(fn):
            yield from self._of_method(fn, where)
        elif isinstance(fn, FunctionType):
            name = _code_name(fn)
            if where or name != f"{fn.__module__}.{fn.__qualname__}":
                yield Leaf(where or "def", None if _LAMBDA in name else name, fn)
            yield from self._of_cells(fn, where)
            if id(fn) not in self._chain:  # the defaults of the function itself are arguments, and part of the key
                yield from self._of_defaults(fn, where)
        elif isinstance(fn, type):
            yield from self.of(fn, where or "class")
        elif isinstance(fn, _CACHED):
            yield from self.of(fn.__wrapped__, where)
        else:
            yield Leaf(where or "its own state", None, fn)

    def _of_method(self, fn: Any, where: str) -> Iterator[Leaf]:
        if where or not _is_importable(fn.__self__):  # the class that a class method is taken from is in the key
            yield from self.of(fn.__self__, _join(where, "__self__"))
        if where or not _is_importable(fn.__func__):
            yield from self.of_function(fn.__func__, where)

    def _of_defaults(self, fn: FunctionType, where: str) -> Iterator[Leaf]:
        defaults = [*zip(_defaulted(fn), fn.__defaults__ or (), strict=True), *(fn.__kwdefaults__ or {}).items()]
        for name, value in defaults:
            if value is not None:
                yield from self.of(value, _join(where, name))

    def _of_cells(self, fn: FunctionType, where: str) -> Iterator[Leaf]:
        for name, cell in zip(fn.__code__.co_freevars, fn.__closure__ or (), strict=True):
            try:
                value = cell.cell_contents
            except ValueError:
                if name not in ("__class__", fn.__code__.co_name, fn.__name__):
                    yield Leaf(_join(where, name), None, _Words("which is not set yet"))
            else:
                yield from self.of(value, _join(where, name))

    def of(self, value: Any, where: str) -> Iterator[Leaf]:
        """What tells *value* apart, which is found at *where*."""
        if id(value) in self._seen:
            return
        self._seen.add(id(value))
        if isinstance(value, ModuleType):
            yield Leaf(where, value.__name__, value)
        elif isinstance(value, type):
            yield from self._of_class(value, where)
        elif _is_cached(value):
            yield from self.of(value.__wrapped__, where)
        elif isinstance(value, FunctionType):
            yield from self._of_inner_function(value, where)
        elif inspect.ismethod(value) or isinstance(value, _CACHED):
            yield from self.of_function(value, where)
        elif isinstance(value, _METHOD_OBJECTS):
            for name in ("__func__", "fget", "fset", "fdel", "func"):
                inner = getattr(value, name, None)
                if inner is not None:
                    yield from self.of(inner, where)
        else:
            yield Leaf(where, _logger_name(value) or _builtin_name(value), value)

    def _of_inner_function(self, fn: FunctionType, where: str) -> Iterator[Leaf]:
        chain = _chain(fn)
        if _is_importable(fn):
            yield Leaf(where, f"{fn.__module__}.{fn.__qualname__}", fn)
        elif _is_being_defined(chain):
            yield Leaf(where, _code_name(chain[-1]), fn)
        else:
            yield from self.of_function(fn, where)

    def _of_class(self, kind: type, where: str) -> Iterator[Leaf]:
        if _is_importable(kind):
            yield Leaf(where, f"{kind.__module__}.{kind.__qualname__}", kind)
            return
        if _LOCAL not in kind.__qualname__:
            yield Leaf(where, None, kind)
            return
        yield Leaf(where, f"{kind.__module__}.{kind.__qualname__}", kind)
        for base in kind.__bases__:
            yield from self.of(base, _join(where, base.__name__))
        for name, value in vars(kind).items():
            if inspect.ismemberdescriptor(value) or inspect.isgetsetdescriptor(value):
                continue
            # Of the names between underscores, only functions are looked at that the module of the class has: others
            # are made by Python, or by a decorator such as dataclass.
            if name.startswith("__") and not (isinstance(value, FunctionType) and _is_written(value, kind)):
                continue
            yield from self.of(value, _join(where, name))


def _is_cached(value: Any) -> bool:
    """Is it a function that a guard has decorated? Then it is what it caches."""
    function = getattr(value, "cacheguard", None)
    return function is not None and getattr(function, "fn", None) is getattr(value, "__wrapped__", function)


def _is_written(fn: FunctionType, kind: type) -> bool:
    return fn.__globals__.get("__name__") == kind.__module__ and not fn.__code__.co_filename.startswith("<")


def _logger_name(value: Any) -> str | None:
    """What a logger is got by: there is one of that name."""
    known = type(value) is Logger and value.manager.loggerDict.get(value.name) is value
    return f"logging.getLogger({value.name!r})" if known else None


def _builtin_name(value: Any) -> str | None:
    """The name of a function that is not written in Python, unless it is bound to an object."""
    owner = getattr(value, "__self__", None)
    named = inspect.isroutine(value) and (owner is None or isinstance(owner, type | ModuleType))
    return _code_name(value) if named else None


def _code_name(fn: Any) -> str:
    code = getattr(fn, "__code__", None)
    if code is None:
        owner = getattr(fn, "__objclass__", None) or getattr(fn, "__self__", None)
        module = getattr(fn, "__module__", None) or getattr(owner, "__module__", "")
        return f"{module}.{getattr(fn, '__qualname__', fn.__name__)}"
    return f"{fn.__globals__.get('__name__', fn.__module__)}.{code.co_qualname}"


def _defaulted(fn: FunctionType) -> tuple[str, ...]:
    """The names of the positional parameters that have defaults."""
    positional = fn.__code__.co_varnames[: fn.__code__.co_argcount]
    return positional[len(positional) - len(fn.__defaults__ or ()) :]


def _join(where: str, name: str) -> str:
    return f"{where}.{name}" if where else name
