"""Exceptions as data: an absence that is cached, a failure told to other processes, and one that several callers get.

An exception is described by its class, its arguments, all its attributes and its cause, and made anew from that for
every caller, without running a constructor. What would not come back whole is not described: it stays where it is.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from copy import copy
from inspect import Parameter, signature
from types import GetSetDescriptorType, MemberDescriptorType, MethodDescriptorType
from typing import Any, NamedTuple

from ..codec import TAGGED
from ..codec.fidelity import difference
from ..codec.state import anatomy_of, attributes_of
from ..errors import CodecError
from .frameless import frameless

MOST_BYTES = 4096  # of a failure that is told to others
_MOST_TEXT, _MOST_CAUSES = 500, 8
_WRITTEN_IN_PYTHON = 1 << 9
_SHARED = frozenset({"obj"})  # what AttributeError and NameError point at is a help for debuggers, no content


class Described(NamedTuple):
    """What makes an exception."""

    name: str
    """Module and qualified name of its class."""
    arguments: tuple[Any, ...]
    attributes: dict[str, Any]
    members: dict[str, Any]
    """What classes written in C keep, like the ``filename`` of an OSError."""
    cause: Described | None
    suppresses: bool
    """``raise … from …`` was used."""
    whole: bool
    """An exception made of this is the same."""
    kind: type[Exception] | None
    """The class itself, in this process."""


def describe(error: Exception) -> Described:
    """All that makes *error*."""
    return _described(error, _MOST_CAUSES)


def _described(error: Exception, room: int) -> Described:
    kind = type(error)
    name, whole, cause = f"{kind.__module__}:{kind.__qualname__}", True, None
    if error.__cause__ is not None:
        if room and isinstance(error.__cause__, Exception):
            cause = _described(error.__cause__, room - 1)
        whole = cause is not None and cause.whole
    arguments = tuple(map(_fresh, error.args))
    attributes = {name: _fresh(held) for name, held in attributes_of(error, anatomy_of(kind)).items()}
    what = Described(name, arguments, attributes, _members_of(error), cause, error.__suppress_context__, whole, kind)
    return what._replace(whole=whole and _is_same(error, what))


def _is_same(error: Exception, what: Described) -> bool:
    try:
        made = made_of(what)
        return difference(error, made) is None and str(error) == str(made)
    except Exception:  # noqa: BLE001 - classes of the user, and their texts, run code of their own
        return False


def made_of(what: Described) -> Exception:
    """A new exception that is the same as the one described."""
    kind: Any = what.kind
    base = _base_of(kind)
    error: Exception = base.__new__(kind, *what.arguments)
    base.__init__(error, *what.arguments)
    error.args = tuple(map(_fresh, what.arguments))
    for name, held in what.members.items():
        descriptor = getattr(kind, name)
        if _held(descriptor, error) != held:
            descriptor.__set__(error, held)
    slots = anatomy_of(kind).slots
    for name, held in what.attributes.items():
        if name in slots:
            slots[name].__set__(error, _fresh(held))
        else:
            error.__dict__[name] = _fresh(held)
    if what.cause is not None:
        error.__cause__ = made_of(what.cause)
    error.__suppress_context__ = what.suppresses
    return error


def _base_of(kind: type[Any]) -> Any:
    """The class above *kind* that is written in C."""
    return next(each for each in kind.__mro__ if not each.__flags__ & _WRITTEN_IN_PYTHON)


def _members_of(error: Exception) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for base in type(error).__mro__:
        if base is BaseException:
            break
        for name, descriptor in () if base.__flags__ & _WRITTEN_IN_PYTHON else vars(base).items():
            if type(descriptor) in (MemberDescriptorType, GetSetDescriptorType) and name not in _SHARED:
                held = _held(descriptor, error)
                if held is not None:
                    found[name] = held
    return found


def _held(descriptor: Any, error: Exception) -> Any:
    try:
        return descriptor.__get__(error)
    except AttributeError:
        return None


def _fresh(value: object) -> Any:
    """*value*, with builtin containers of its own, and no frames of exceptions in it."""
    copy = _COPIES.get(type(value))
    if copy is not None:
        return copy(value)
    return (frameless(value) or value) if isinstance(value, BaseException) else value


_COPIES: dict[type, Callable[[Any], Any]] = {
    list: lambda value: list(map(_fresh, value)),
    tuple: lambda value: tuple(map(_fresh, value)),
    dict: lambda value: {key: _fresh(part) for key, part in value.items()},
    set: set,
    bytearray: bytearray,
}


# To other processes and back


def packed(what: Described) -> Any:
    """*what* as plain values; `CodecError` if it would not be whole in another process."""
    if not what.whole:
        raise CodecError(f"{what.name} would not come back with all its attributes: give it plain ones")
    cause = None if what.cause is None else packed(what.cause)
    return (what.name, what.arguments, what.attributes, what.members, cause, what.suppresses)


def unpacked(raw: Any, known: Iterable[type[Exception]] = ()) -> Described:
    """What `packed` wrote; `CodecError` if this process does not have the class.

    Nothing is imported: the class is one that this process has imported, or one of *known* or derived from it.
    """
    try:
        name, arguments, attributes, members, cause, suppresses = raw
        kind = _class(name) or next((each for each in _family(known) if _name(each) == name), None)
        described = None if cause is None else unpacked(cause, known)
    except (TypeError, ValueError, AttributeError, RecursionError) as error:
        raise CodecError("not the description of an exception") from error
    if kind is None or not (isinstance(arguments, tuple) and type(attributes) is dict and type(members) is dict):
        raise CodecError(f"there is no exception {name} in this process")
    what = Described(name, arguments, attributes, members, described, bool(suppresses), whole=True, kind=kind)
    try:
        made_of(what)
    except Exception as error:  # another version of the class, or nothing that we have written
        raise CodecError(f"{name} cannot be made anew here: {error}") from error
    return what


def _name(kind: type[Any]) -> str:
    return f"{kind.__module__}:{kind.__qualname__}"


def _family(known: Iterable[type[Exception]]) -> Iterable[type[Exception]]:
    for kind in known:
        yield kind
        yield from _family(type.__subclasses__(kind))


def _class(name: str) -> type[Exception] | None:
    """The exception class of that name, if this process has imported it."""
    module, _, path = name.partition(":")
    found: Any = sys.modules.get(module)
    for part in path.split("."):
        found = getattr(found, "__dict__", {}).get(part)
    return found if isinstance(found, type) and issubclass(found, Exception) else None


def told(error: Exception) -> Described:
    """*error* for the processes that wait for its load: all of it, or only what it was if that is too much."""
    what = describe(error)
    try:
        if len(TAGGED.encode(packed(what))) <= MOST_BYTES:
            return what
    except CodecError:
        pass
    try:
        text = (str(error) or ", ".join(map(str, error.args)))[:_MOST_TEXT].encode("utf-8", "replace").decode()
    except Exception:  # noqa: BLE001 - a description must not fail over what it describes
        text = ""
    lost: type[Exception] = NotTold
    return Described(_name(lost), (_name(type(error)), text), {}, {}, None, suppresses=False, whole=True, kind=lost)


class NotTold(Exception):  # noqa: N818 - it is never raised
    """Stands for a failure that cannot be told to other processes."""


def absent(kind: type[Exception], text: str) -> Exception:
    """An exception of *kind* for a key that is known to be absent without a load: of its *text*, or of nothing.

    ``TypeError`` if its constructor demands something else.
    """
    try:
        parameters = list(signature(kind).parameters.values())
    except (TypeError, ValueError):  # written in C: it takes anything
        return kind(text)
    first = parameters[0] if parameters else None
    if first is None or first.default is not Parameter.empty:
        return kind()
    wanted = str(first.annotation)
    if first.annotation is not Parameter.empty and not any(word in wanted for word in ("str", "object", "Any")):
        raise TypeError(f"its first argument is {first}")
    return kind(text)


def rebuilt(what: Described) -> Exception | None:
    """The failure of another process, made anew, or None if it could not be told."""
    if what.kind is NotTold:
        return None
    error = made_of(what)
    error.add_note("raised by the load in another process that this call waited for")
    return error


# To several callers


def again(error: Exception) -> Exception:
    """*error* as a new object, without its traceback and context; itself if it cannot be made anew."""
    what = describe(error)
    if what.whole:
        return made_of(what)
    twin = frameless(error) or _copied(error)
    if twin is None:
        return error
    twin.__context__ = None
    return twin


def _copied(error: Exception) -> Exception | None:
    """*error* as its class copies it, if that is C code and gives the same, as with pydantic's ``ValidationError``."""
    reduce: Any = type(error).__reduce__
    if not isinstance(reduce, MethodDescriptorType) or reduce is BaseException.__reduce__:
        return None
    try:
        twin = copy(error)
        twin.args = error.args
        same = twin is not error and type(twin) is type(error) and str(twin) == str(error)
    except Exception:  # noqa: BLE001 - code of others
        return None
    return twin.with_traceback(None) if same else None
