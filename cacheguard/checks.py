"""Is this argument what it must be? Every check says what was expected, what came, and what to use instead."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from inspect import iscoroutinefunction
from os import PathLike, fspath
from typing import Any, cast

from .errors import ConfigurationError


def flag(name: str, value: object) -> bool:
    """*value* if it is a bool."""
    if not isinstance(value, bool):
        raise ConfigurationError(f"{name} must be True or False, got {value!r}")
    return value


def share(name: str, value: object) -> float:
    """*value* if it is a number from 0 to 1."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise ConfigurationError(f"{name} must be a share from 0 to 1, got {value!r}")
    return float(value)


def path_of(name: str, value: object) -> str | None:
    """*value* as the path of a file; None stays None."""
    if value is None:
        return None
    if not isinstance(value, str | PathLike):
        raise ConfigurationError(f"{name} must be the path of a file or None, got {value!r}")
    path = fspath(cast("str | PathLike[str]", value))
    if not path or path == ":memory:":
        raise ConfigurationError(f"{name} must be the path of a file or None, got {value!r}")
    return path


def count(name: str, value: object) -> int:
    """*value* if it is a whole number of at least one."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConfigurationError(f"{name} must be a whole number >= 1, got {value!r}")
    return value


def texts(keys: Iterable[Any]) -> list[str]:
    """*keys*, each once; `TypeError` if one of them is no text."""
    if isinstance(keys, str):
        raise TypeError(f"keys must be several texts, got the text {keys!r}")
    names = list(dict.fromkeys(keys))
    for name in names:
        if not isinstance(name, str):
            raise TypeError(f"a key must be text, got {name!r}")
    return names


def tags_of(tags: Sequence[str]) -> tuple[str, ...]:
    """*tags*, each once; `TypeError` or `ValueError` if one of them is none."""
    if isinstance(tags, str):
        raise TypeError(f"tags must be several texts, got the text {tags!r}")
    for tag in tags:
        check_tag(tag)
    return tuple(dict.fromkeys(tags))


def check_tag(tag: object, what: str = "tag") -> None:
    """`TypeError` or `ValueError` for what cannot be a tag."""
    if not isinstance(tag, str):
        raise TypeError(f"a {what} must be text, got {tag!r}")
    if not tag and what == "tag":
        raise ValueError("a tag must not be empty, got ''")


def check_loader(loader: object) -> None:
    """`TypeError` if *loader* cannot be called."""
    if not callable(loader):
        raise TypeError(f"loader must be a function, got {loader!r}")


def check_usable(usable: object) -> None:
    """`TypeError` if *usable* can say nothing of a value."""
    if usable is not None and (not callable(usable) or iscoroutinefunction(usable)):
        raise TypeError(f"usable must be a plain function of the cached value, got {usable!r}")


def check_change(change: object) -> None:
    """`TypeError` if *change* makes no new value of an old one."""
    if not callable(change) or iscoroutinefunction(change):
        raise TypeError(f"change must be a plain function of the value, got {change!r}")


def listener(name: str, value: Any) -> Callable[[Any], object] | None:
    """*value* if it is a plain function of one parameter, or None."""
    if value is not None and (not callable(value) or iscoroutinefunction(value)):
        raise ConfigurationError(f"{name} must be a plain function of a StateChange or None, got {value!r}")
    told: Callable[[Any], object] | None = value
    return told


def question(name: str, value: Any) -> Callable[[], object]:
    """*value* if it is a plain function; None is one that says no."""
    if value is None:
        return bool
    if not callable(value) or iscoroutinefunction(value):
        raise ConfigurationError(f"{name} must be a plain function without parameters, got {value!r}")
    asked: Callable[[], object] = value
    return asked
