"""Checks of arguments. Each error says what was expected, what came, and what to use instead.

A bad argument raises `ConfigurationError` when a guard is built or a function is decorated, and `TypeError` or
`ValueError` when it comes with a call, such as a key. `durations.seconds` checks durations.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from inspect import isasyncgenfunction, iscoroutinefunction, isfunction, isgeneratorfunction
from os import PathLike, fspath
from typing import Any, cast

from .errors import ConfigurationError


def flag(name: str, value: object) -> bool:
    """Return *value* if it is a bool, else raise `ConfigurationError`; so do the other checks of options."""
    if not isinstance(value, bool):
        raise ConfigurationError(f"{name} must be True or False, got {value!r}")
    return value


def number_of(value: object) -> float:
    """Return *value* if it is a number; NaN for everything else and for bools, so that every comparison is False."""
    return value if isinstance(value, int | float) and not isinstance(value, bool) else math.nan


def share(name: str, value: object) -> float:
    """Return *value* if it is a number from 0 to 1."""
    if not 0 <= number_of(value) <= 1:
        raise ConfigurationError(f"{name} must be a share from 0 to 1, got {value!r}")
    return float(number_of(value))


def positive_share(name: str, value: object) -> float:
    """Return *value* if it is a number above 0 and up to 1."""
    if not 0 < number_of(value) <= 1:
        raise ConfigurationError(f"{name} must be a share above 0 and up to 1, got {value!r}")
    return float(number_of(value))


def count(
    name: str, value: object, least: int = 1, most: float = math.inf, *, allowed: str = "", instead: str = ""
) -> int:
    """Return *value* if it is a whole number from *least* to *most*.

    Args:
        allowed: the allowed values in words, if the message needs more than "a whole number >= 1".
        instead: advice for the message, beginning with a semicolon.
    """
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise ConfigurationError(f"{name} must be {allowed or f'a whole number >= {least}'}, got {value!r}{instead}")
    return value


def text(name: str, value: object) -> str:
    """Return *value* if it is text and not empty."""
    if not isinstance(value, str) or not value:
        raise ConfigurationError(f"{name} must be a text, got {value!r}")
    return value


def one_of(name: str, value: object, words: Sequence[str]) -> None:
    """Raise `ConfigurationError` if *value* is not one of *words*."""
    if value not in words:
        raise ConfigurationError(f"{name} must be one of {', '.join(map(repr, words))}, got {value!r}")


def path_of(name: str, value: object) -> str | None:
    """Return *value* as the path of a file; None stays None."""
    if value is None:
        return None
    if not isinstance(value, str | PathLike):
        raise ConfigurationError(f"{name} must be the path of a file or None, got {value!r}")
    path = fspath(cast("str | PathLike[str]", value))
    if not path or path == ":memory:":
        raise ConfigurationError(f"{name} must be the path of a file or None, got {value!r}")
    return path


def exception_classes(name: str, value: Any) -> tuple[type[Exception], ...]:
    """Return *value*, an exception class or a tuple of them, as a tuple."""
    classes: tuple[Any, ...] = value if issubclass(type(value), tuple) else (value,)
    for each in classes:
        if not (isinstance(each, type) and issubclass(each, Exception)):
            raise ConfigurationError(f"{name} must be an exception class or a tuple of them, got {value!r}")
    return classes


def is_coroutine_function(value: object) -> bool:
    """Return True if a call of *value* returns a coroutine.

    That is an ``async def``, a `functools.partial` of one, an object whose class has an ``async def __call__``, or a
    function with the mark of asyncio, as `asgiref.sync.markcoroutinefunction` sets it.
    """
    called = called_function(value)
    return iscoroutinefunction(called) or type(getattr(called, "_is_coroutine", None)) is object


def is_generator_function(value: object) -> bool:
    """Return True if a call of *value* returns a generator, plain or async."""
    called = called_function(value)
    return isgeneratorfunction(called) or isasyncgenfunction(called)


def called_function(value: Any) -> Any:
    """Return the function that runs if *value* is called."""
    while issubclass(type(value), partial):
        value = value.func
    own = getattr(_class_of(value), "__call__", None)  # noqa: B004 - the function itself is wanted
    return own if isfunction(own) else value


def _class_of(value: object) -> type[Any]:
    return type(value)


def plain_function(
    name: str, value: object, of: str, *, error: type[Exception] = ConfigurationError
) -> Callable[..., Any]:
    """Return *value* if it can be called and is not a coroutine function.

    Args:
        of: the parameters of the function, in words.
        error: the class of the error that is raised otherwise.
    """
    if not callable(value) or is_coroutine_function(value):
        raise error(f"{name} must be a plain function {of}, got {value!r}")
    function: Callable[..., Any] = value
    return function


def question(name: str, value: object) -> Callable[[], object]:
    """Return *value* if it is a plain function without parameters; for None, a function that returns False."""
    return bool if value is None else plain_function(name, value, "without parameters")


def listener(name: str, value: object) -> Callable[[Any], object] | None:
    """Return *value* if it is a plain function of a `StateChange`, or None."""
    return None if value is None else plain_function(name, value, "of a StateChange or None")


# Arguments of single calls


def check_key(key: object) -> None:
    """Raise `TypeError` if *key* cannot be a key."""
    if not isinstance(key, str):
        raise TypeError(f"a key must be text, got {key!r}")


def check_tag(tag: object) -> None:
    """Raise `TypeError` or `ValueError` if *tag* cannot be a tag."""
    if not isinstance(tag, str):
        raise TypeError(f"a tag must be text, got {tag!r}")
    if not tag:
        raise ValueError("a tag must not be empty, got ''")


def texts(keys: Iterable[Any]) -> list[str]:
    """Return *keys* without duplicates; `TypeError` if one of them is not text."""
    if isinstance(keys, str):
        raise TypeError(f"keys must be several texts, got the text {keys!r}")
    names = list(dict.fromkeys(keys))
    for name in names:
        if not isinstance(name, str):  # tested here too: a function call for each key would cost more than a hit
            check_key(name)
    return names


def tags_of(tags: Sequence[str]) -> tuple[str, ...]:
    """Return *tags* without duplicates; `TypeError` or `ValueError` if one of them cannot be a tag."""
    if isinstance(tags, str):
        raise TypeError(f"tags must be several texts, got the text {tags!r}")
    for tag in tags:
        check_tag(tag)
    return tuple(dict.fromkeys(tags))


def check_loader(loader: object) -> None:
    """Raise `TypeError` if *loader* cannot be called."""
    if not callable(loader):
        raise TypeError(f"loader must be a function, got {loader!r}")


def check_usable(usable: object) -> None:
    """Raise `TypeError` if *usable* is neither None nor a plain function of a value."""
    if usable is not None and (not callable(usable) or is_coroutine_function(usable)):
        raise TypeError(f"usable must be a plain function of the cached value, got {usable!r}")


def check_change(change: object) -> None:
    """Raise `TypeError` if *change* is not a plain function of a value."""
    plain_function("change", change, "of the value", error=TypeError)
