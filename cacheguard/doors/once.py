"""What a function says before its first call: does it return what can be read only once?"""

from __future__ import annotations

import collections
import collections.abc
import types
import typing
from collections.abc import Callable
from typing import Any, get_args, get_origin

from ..checks import called_function, is_generator_function
from ..codec.annotation import bare
from ..codec.names import names_around
from ..codec.once import Once, of_class
from ..codec.registry import return_annotation
from ..errors import ConfigurationError

_UNIONS = (typing.Union, types.UnionType)
_OF_ITEMS = (
    *(list, set, frozenset, tuple, dict, collections.deque),
    *(collections.abc.Collection, collections.abc.Sequence, collections.abc.MutableSequence),
    *(collections.abc.Set, collections.abc.MutableSet, collections.abc.Mapping, collections.abc.MutableMapping),
)


def refuse_once(fn: Callable[..., Any]) -> None:
    """Raise `ConfigurationError` if it shows that what *fn* returns can be read only once.

    A decorated function (one with ``__wrapped__``) shows nothing: its decorator may have made a list of a generator,
    and kept the annotation. Its value is looked at when it comes.
    """
    name = getattr(fn, "__qualname__", repr(fn))
    if is_generator_function(fn):
        raise ConfigurationError(f"{name} is a generator: its items cannot be cached, return a list")
    found = _shown(called_function(fn))
    if found is not None:
        what, instead = found
        raise ConfigurationError(
            f"{name} is annotated to return {what}, which can be read only once and is never cached; {instead}"
        )


def _shown(fn: Any) -> Once | None:
    if hasattr(fn, "__wrapped__") or "return" not in getattr(fn, "__annotations__", {}):
        return None
    try:
        annotation = return_annotation(fn, names_around(fn))
    except Exception:  # noqa: BLE001 - an annotation is any expression; what cannot be resolved shows nothing
        return None
    return _of_annotation(annotation)


def _of_annotation(annotation: Any) -> Once | None:
    """What values of *annotation* are, if all of them but None can be read only once, or hold what can."""
    annotation = bare(annotation)
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin in _UNIONS:
        members = [_of_annotation(each) for each in arguments if each not in (None, type(None))]
        return members[0] if members and None not in members else None
    kind = annotation if origin is None else origin
    if kind in _OF_ITEMS:
        return next((found for each in arguments if (found := _of_annotation(each)) is not None), None)
    return of_class(kind) if isinstance(kind, type) else None
