"""What can be read only once: iterators, generators, files, cursors, streamed responses, coroutines.

The first reader uses such a value up, so it is never cached, and callers that wait for one load never share it. A type
shows it by what its objects can do: no library is imported to find out.
"""

from __future__ import annotations

import collections
import collections.abc
import gc
import io
import types
from collections.abc import Callable, Iterable, Iterator
from inspect import isawaitable
from itertools import compress
from typing import Any

from ..errors import CodecError
from .form import MOST_STEPS, type_name

_ROWS = "return its items: list(…)"
_CURSOR = "return the rows: fetchall()"
_FILE = "return its content: read()"
_RESPONSE = "return the data, and make the response of it outside of what is cached"
_AWAIT = "await it, and return the result"

Once = tuple[str, str]
"""What it is, and what to do instead."""

_Path = tuple[Any, ...]
"""The path before and its last step, or nothing: so that a deep value costs no more than a wide one."""

ITERATOR: Once = "an iterator", _ROWS
GENERATOR: Once = "a generator", _ROWS
CURSOR: Once = "a cursor", _CURSOR
FILE: Once = "a file", _FILE
STREAM: Once = "a streaming response", _RESPONSE
COROUTINE: Once = "a coroutine", _AWAIT
AWAITABLE: Once = "an awaitable", _AWAIT
UNREAD: Once = "a response whose body has not been read", "return its content"

# Classes that do not show it by their methods.
_BY_NAME: dict[str, Once] = {
    "os._wrap_close": FILE,
    "tempfile._TemporaryFileWrapper": FILE,
    "contextlib._GeneratorContextManagerBase": ("a context manager", "return what it yields"),
    "django.db.backends.utils.CursorWrapper": CURSOR,
    "django.http.response.StreamingHttpResponse": STREAM,
    "sse_starlette.sse.EventSourceResponse": STREAM,
    "starlette.responses.StreamingResponse": STREAM,
}

_PLAIN: frozenset[type[Any]] = frozenset({str, int, float, bool, bytes, type(None), complex, bytearray})
_NO_DATA = (type, types.FunctionType, types.BuiltinFunctionType, types.MethodType, types.ModuleType)
_CONTAINERS = (list, tuple, dict, set, frozenset, collections.deque, types.MappingProxyType)
_AROUND = (collections.ChainMap, collections.UserDict, collections.UserList, types.SimpleNamespace)
_DECLARED = ("__dataclass_fields__", "__attrs_attrs__", "__struct_fields__", "__pydantic_fields__")
_MOST = 4096  # objects in one step

_SELF: tuple[Any, ...] = (vars(collections.abc.Iterator)["__iter__"], vars(collections.abc.AsyncIterator)["__aiter__"])


# A value


def refuse(key: str, value: object, origin: str = "what its loader returned") -> None:
    """Raise `CodecError` if *value* can be read only once, or holds something that can.

    It looks into builtin containers and classes with declared fields. Other objects may have a file of their own.

    Args:
        key: that it is to be cached under, for the message.
        origin: where it comes from, for the message.
    """
    if type(value) in _PLAIN:
        return
    found = _found(value)
    if found is None:
        return
    path, part, (what, instead) = found
    if issubclass(_kind(part), types.CoroutineType):
        part.close()  # nobody will await it, and it would say so
    place = f"{_written(path)} of {origin}" if path else origin
    raise CodecError(
        f"{key} is not cached: {place} is {what} ({type_name(part)}), which can be read only once; {instead}"
    )


def _found(value: Any) -> tuple[_Path, Any, Once] | None:
    """The first part of *value* that can be read only once, or the value itself; with the path to it."""
    what = None if type(value) in _CONTAINERS else once(value)
    if what is not None:
        return (), value, what
    if _may_hold_any(value):
        for path, part in _parts(value):
            what = _within(part)
            if what is not None:
                return path, part, what
    return None


def once(value: object) -> Once | None:
    """What *value* is, if it can be read only once; None for everything else."""
    return _within(value) or (AWAITABLE if isawaitable(value) else None)


def _within(value: object) -> Once | None:
    """`once`, for a part of a value. A future there is read as often as one likes, in its event loop."""
    kind = _kind(value)
    if kind in _PLAIN or kind in _CONTAINERS or issubclass(kind, _NO_DATA):
        return None
    if isinstance(value, types.CoroutineType):
        return COROUTINE
    if not _shows[kind]:
        return STREAM if "body_iterator" in getattr(value, "__dict__", ()) else None
    return _of_methods(kind) or _iterated(value, kind) or _streamed(value, kind)


def _iterated(value: Any, kind: type[Any]) -> Once | None:
    """What *value* is if it is its own iterator: every loop goes on where the one before has ended."""
    for following, begin, ask in (("__next__", "__iter__", iter), ("__anext__", "__aiter__", aiter)):
        if _has(kind, following):
            if not _has(kind, begin):
                return ITERATOR
            try:
                own = ask(value) is value
            except Exception:  # noqa: BLE001 - the object's own: a closed file
                own = True
            if own:
                return GENERATOR if kind in (types.GeneratorType, types.AsyncGeneratorType) else ITERATOR
    return None


def _streamed(value: Any, kind: type[Any]) -> Once | None:
    """What *value* is if it is a response whose body is still to come."""
    own: dict[str, Any] = getattr(value, "__dict__", {})
    if "body_iterator" in own:  # Starlette, whatever the class
        return STREAM
    if _has(kind, "is_streamed"):  # werkzeug
        try:
            return STREAM if value.is_streamed else None
        except Exception:  # noqa: BLE001 - the object's own
            return None
    if (_has(kind, "iter_bytes") and "stream" in own and "_content" not in own) or (  # httpx
        _has(kind, "iter_content") and own.get("_content", b"") is False  # requests
    ):
        return UNREAD
    return None


# A class


def _kind(value: object) -> type[Any]:
    return type(value)


def _of_methods(kind: type[Any]) -> Once | None:
    """What the objects of *kind* are, as far as the class shows it for all of them."""
    for each in kind.__mro__[:-1]:
        found = _BY_NAME.get(f"{each.__module__}.{each.__qualname__}")
        if found is not None:
            return found
    iterable = _has(kind, "__iter__") or _has(kind, "__aiter__")
    if iterable and (_has(kind, "fetchall") or _has(kind, "fetchmany")):
        return CURSOR
    if issubclass(kind, io.IOBase) or (
        _has(kind, "read") and (_has(kind, "readline") or (_has(kind, "seek") and _has(kind, "close")))
    ):
        return FILE
    return None


def _has(kind: type[Any], name: str) -> bool:
    """`hasattr` for a class that runs nobody's code: a mock's makes a method when it is looked at."""
    return any(name in each.__dict__ for each in kind.__mro__)


def _is_mock(kind: type[Any]) -> bool:
    """True for mocks, which have every method."""
    return any(each.__module__ == "unittest.mock" for each in kind.__mro__)


def of_class(kind: type[Any]) -> Once | None:
    """What every object of *kind* is: a method of the user's may still begin anew."""
    if _is_mock(kind) or issubclass(kind, _NO_DATA):
        return None
    if issubclass(kind, types.CoroutineType):
        return COROUTINE
    found = _of_methods(kind)
    for following, begin in (("__next__", "__iter__"), ("__anext__", "__aiter__")):
        if found is None and _has(kind, following):
            asked = getattr(kind, begin, None)
            found = ITERATOR if asked is None or asked in _SELF or not isinstance(asked, types.FunctionType) else None
    return found


class _ByClass(dict[type[Any], int]):
    """What *find* says of a class, which is found out once.

    A class that a function makes is not kept: there may be any number of them.
    """

    def __init__(self, find: Callable[[type[Any]], int]) -> None:
        super().__init__(dict.fromkeys(_PLAIN, 0))
        self._find = find

    def __missing__(self, kind: type[Any]) -> int:
        found = self._find(kind)
        if "<locals>" not in kind.__qualname__:
            self[kind] = found
        return found


def _may_be(kind: type[Any]) -> int:
    """0 if no object of *kind* is what is sought, as far as its class tells."""
    if _is_mock(kind):
        return 0
    names = ("__next__", "__anext__", "is_streamed", "iter_bytes", "iter_content")
    known = kind is types.CoroutineType or _of_methods(kind) is not None
    return int(known or any(_has(kind, name) for name in names))


# The parts of a value. Every loaded value is looked into, so this is left to C code as far as it goes.


def _class_holds(kind: type[Any]) -> int:
    """0 for no concern of ours, 1 if objects of *kind* hold data, 2 if they may be what is sought."""
    if issubclass(kind, _NO_DATA) or _is_mock(kind):
        return 0
    if issubclass(kind, (*_CONTAINERS, *_AROUND)) or any(_has(kind, name) for name in _DECLARED):
        return 1
    return 2 * _may_be(kind)


_shows, _holds = _ByClass(_may_be), _ByClass(_class_holds)


def _may_hold_any(value: object) -> bool:
    """False if no part of *value* can be of the kind."""
    seen: set[int] = set()
    waiting: list[list[Any]] = [[value]]
    while waiting:
        some = waiting.pop()
        if len(some) > _MOST:
            waiting += [some[at : at + _MOST] for at in range(0, len(some), _MOST)]
            continue
        known = {kind: _holds[kind] for kind in set(map(type, some))}
        if 2 in known.values():  # noqa: PLR2004 - said above
            return True
        if 1 not in known.values():
            continue
        holders = list(compress(some, map(known.__getitem__, map(type, some))))
        fresh = dict(zip(map(id, holders), holders, strict=True))
        if not seen.isdisjoint(fresh):
            for again in seen.intersection(fresh):
                del fresh[again]
        seen.update(fresh)
        parts = gc.get_referents(*fresh.values())
        if not _PLAIN.issuperset(map(type, parts)):
            waiting.append(parts)
        beside = [part for each in fresh.values() if not gc.is_tracked(each) for part in _untracked(each)]
        if beside:
            waiting.append(beside)
    return False


def _untracked(part: Any) -> list[Any]:
    """The fields of a `msgspec.Struct` with ``gc=False``, which the garbage collector does not know."""
    return [getattr(part, name, None) for name in getattr(_kind(part), "__struct_fields__", ())]


def _parts(value: Any) -> Iterator[tuple[_Path, Any]]:
    """All parts of *value*, with the path to each."""
    waiting: list[tuple[_Path, Any]] = [((), value)]
    seen: set[int] = set()
    while waiting:
        path, holder = waiting.pop()
        if _holds[type(holder)] == 1 and id(holder) not in seen:
            seen.add(id(holder))
            for step, part in _steps(holder):
                yield (path, step), part
                waiting.append(((path, step), part))


def _written(path: _Path) -> str:
    steps: list[str] = []
    while path:
        path, step = path
        steps.append(step)
    steps.reverse()
    return "".join(steps if len(steps) <= MOST_STEPS else [*steps[: MOST_STEPS - 1], "…", steps[-1]])


def _steps(value: Any) -> Iterable[tuple[str, Any]]:
    kind: Any = _kind(value)
    if issubclass(kind, dict | types.MappingProxyType):
        for key, part in value.items():
            yield ".keys()", key
            yield f"[{key!r}]", part
    elif issubclass(kind, set | frozenset):
        yield from (("{…}", part) for part in value)
    elif issubclass(kind, _CONTAINERS):
        yield from ((f"[{number}]", part) for number, part in enumerate(value))
    names: list[str] = [name for each in type(value).__mro__ for name in _slots(each)]
    names += getattr(value, "__struct_fields__", ())
    own = {name: getattr(value, name) for name in names if hasattr(value, name)} | getattr(value, "__dict__", {})
    yield from ((f".{name}", part) for name, part in own.items())


def _slots(kind: type[Any]) -> tuple[str, ...]:
    slots: Any = kind.__dict__.get("__slots__", ())
    return tuple(name for name in ((slots,) if isinstance(slots, str) else slots) if not name.startswith("__"))
