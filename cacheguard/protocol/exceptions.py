"""Exceptions as data: an absence that is cached, or a failure told to those who waited in other processes."""

from __future__ import annotations

import sys
from types import BuiltinFunctionType, WrapperDescriptorType
from typing import Any

Described = tuple[str, tuple[Any, ...]]
PLAIN = (str, int, float, bool, bytes, type(None))
MOST_TEXT, MOST_ARGUMENTS = 500, 8


def describe(error: Exception) -> Described:
    """Which exception, with which arguments; arguments that are no plain values become text."""
    kind = type(error)
    return f"{kind.__module__}:{kind.__qualname__}", tuple(map(_plain, error.args[:MOST_ARGUMENTS]))


def _plain(argument: Any) -> Any:
    if type(argument) in PLAIN and not isinstance(argument, str | bytes):
        return argument
    if isinstance(argument, bytes) and len(argument) <= MOST_TEXT:
        return bytes(argument)
    try:
        text = str(argument)
    except Exception:  # noqa: BLE001 - a description must not fail over what it describes
        text = f"<{type(argument).__qualname__}>"
    return text[:MOST_TEXT].encode("utf-8", "replace").decode()


def rebuilt(what: Described) -> Exception | None:
    """The exception of *what* made anew, or None if that takes more than a class of this process and its arguments.

    Nothing is imported, and no constructor written in Python is run: the description came over the wire.
    """
    name, arguments = what
    found: Any = _class(name)
    if found is None:
        return None
    if type(found.__init__) is not WrapperDescriptorType or type(found.__new__) is not BuiltinFunctionType:
        return None
    try:
        error: Exception = found(*arguments)
    except Exception:  # noqa: BLE001 - an exception class with needs of its own
        return None
    error.add_note("raised by the load in another process that this call waited for")
    return error


def _class(name: str) -> type[Exception] | None:
    """The exception class of that name, if this process has imported it."""
    module, _, path = name.partition(":")
    found: Any = sys.modules.get(module)
    for part in path.split("."):
        found = getattr(found, part, None)
    return found if isinstance(found, type) and issubclass(found, Exception) else None


def absence(what: Described, classes: tuple[type[Exception], ...]) -> Exception:
    """The exception that said "does not exist", made anew: one instance must not be raised by many callers.

    Only the policy's own *classes* and their subclasses are made, without running their ``__init__``: the arguments are
    those that it had left. An unknown name becomes the first of *classes*.
    """
    name, arguments = what
    kind = _class(name)
    if kind is None or not issubclass(kind, classes):
        path = name.partition(":")[2]
        kind = next((each for each in classes if each.__qualname__ == path), classes[0] if classes else LookupError)
    error = kind.__new__(kind, *arguments)
    error.args = tuple(arguments)
    return error
