"""The parameters that a function takes, also one that decorators have wrapped, and what they are annotated with."""

from __future__ import annotations

import functools
import inspect
import sys
import typing
from collections.abc import Callable, Iterable
from inspect import Parameter, Signature
from typing import Any

from ..errors import KeyTemplateError

VARIADIC: tuple[Any, ...] = (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)
_NAMED_BY_POSITION = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)
_MOST_WRAPPERS = 100


class Unbound:
    """The type of `UNBOUND`."""

    def __repr__(self) -> str:
        return "UNBOUND"


UNBOUND = Unbound()
"""Stands for an argument that a call does not give, because a decorator below the cache does."""


def function_name(fn: Callable[..., Any]) -> str:
    """The name of *fn* for a message."""
    name: str = getattr(fn, "__qualname__", type(fn).__qualname__)
    return name


def called_as_bound(fn: Callable[..., Any]) -> bool:
    """Return True if *fn* cannot see whether an argument was given by position, by keyword, or was its default.

    That is a plain function. A function that decorators have wrapped sees what its caller passed.
    """
    own = fn.__func__ if inspect.ismethod(fn) else fn
    return inspect.isfunction(own) and not hasattr(own, "__wrapped__") and not hasattr(own, "__signature__")


def signature_of(fn: Callable[..., Any]) -> Signature:
    """The parameters that a caller of *fn* may give; `KeyTemplateError` if they cannot be known.

    A wrapper that has only ``*args`` and ``**kwargs`` takes what the wrapped function takes. One that names its
    parameters takes these. One that has both takes these and the wrapped function's.
    """
    try:
        return _taken(fn, _MOST_WRAPPERS)
    except (TypeError, ValueError) as error:
        if isinstance(error, KeyTemplateError):
            raise
        raise KeyTemplateError(f"no key can be made for {fn!r}: its parameters are unknown ({error})") from error


def given_values(
    fn: Callable[..., Any], signature: Signature, needed: Iterable[str], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Bind a call of a wrapped function, some of whose arguments may come from its wrapper.

    Args:
        fn: the function.
        signature: what `signature_of` says of it.
        needed: the parameters that must have a value; ``TypeError`` if one has none.
        args: what the caller gives by position.
        kwargs: what the caller gives by keyword.

    Returns:
        The values of all parameters, with defaults, `UNBOUND` for those that are missing; and those that were given.
    """
    bound = signature.bind_partial(*args, **kwargs)
    given = dict(bound.arguments)
    bound.apply_defaults()
    values = {name: bound.arguments.get(name, UNBOUND) for name in signature.parameters}
    for name in needed:
        if values[name] is UNBOUND:
            raise TypeError(
                f"{function_name(fn)}() is called without {name}, which its key is made of; its parameters are "
                f"{signature}: if what wraps it takes others, set __signature__ on the wrapper"
            )
    return values, given


class Binder:
    """Binds the calls of a function, plain or wrapped, to its parameters.

    Args:
        fn: the function; `KeyTemplateError` if its parameters cannot be known.
    """

    def __init__(self, fn: Callable[..., Any]) -> None:
        self._fn, self._is_plain = fn, called_as_bound(fn)
        self.signature: Signature = signature_of(fn)

    @property
    def names(self) -> list[str]:
        """The names of the parameters."""
        return list(self.signature.parameters)

    def values(self, args: tuple[Any, ...], kwargs: dict[str, Any], needed: Iterable[str] = ()) -> dict[str, Any]:
        """Return the values of all parameters, with defaults; ``TypeError`` if the call does not fit.

        What a wrapper gives may be missing, except for the parameters *needed*; `UNBOUND` stands for it.
        """
        if not self._is_plain:
            return given_values(self._fn, self.signature, needed, args, kwargs)[0]
        bound = self.signature.bind(*args, **kwargs)
        bound.apply_defaults()
        return dict(bound.arguments)


def _taken(fn: Any, left: int) -> Signature:
    if inspect.ismethod(fn):
        function = _taken(fn.__func__, left)
        parameters = list(function.parameters.values())
        first = 1 if parameters and parameters[0].kind in _NAMED_BY_POSITION else 0
        return function.replace(parameters=parameters[first:])
    wrapped = getattr(fn, "__wrapped__", None)
    if wrapped is None or getattr(fn, "__signature__", None) is not None or isinstance(fn, type) or left == 0:
        return inspect.signature(fn)
    if issubclass(type(fn), functools.partial):
        return inspect.signature(fn, follow_wrapped=False)
    try:
        own = inspect.signature(fn, follow_wrapped=False)
    except (TypeError, ValueError):
        return inspect.signature(fn)
    kinds = {each.kind for each in own.parameters.values()}
    if not kinds & {Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD}:
        return own
    return _merged(fn, own, _taken(wrapped, left - 1), by_position=Parameter.VAR_POSITIONAL in kinds)


def _merged(fn: Any, own: Signature, inner: Signature, *, by_position: bool) -> Signature:
    """What a wrapper with the parameters *own*, some of them variadic, takes of a function with *inner*."""
    named = [each for each in own.parameters.values() if each.kind in _NAMED_BY_POSITION]
    theirs = [name for name, each in inner.parameters.items() if each.kind in _NAMED_BY_POSITION]
    wanted = [each.name for each in named]
    if wanted and (wanted != theirs[: len(wanted)] if by_position else not set(wanted) <= set(theirs)):
        raise KeyTemplateError(
            f"{function_name(fn)} is wrapped by a function with the parameters {own}, and takes {inner} itself: which "
            "argument is which cannot be known; give the wrapper the same names, or set its __signature__"
        )
    added = {each.name: each for each in own.parameters.values() if each.kind is Parameter.KEYWORD_ONLY}
    parameters = [each for each in inner.parameters.values() if each.name not in added]
    at = next((place for place, each in enumerate(parameters) if each.kind is Parameter.VAR_KEYWORD), len(parameters))
    parameters[at:at] = added.values()
    return inner.replace(parameters=parameters)


def parameters_of(fn: Callable[..., Any]) -> dict[str, Any]:
    """The names of the parameters and what they are annotated with; None for what cannot be resolved."""
    parameters = signature_of(fn).parameters
    return {name: _hint(fn, each.annotation) for name, each in parameters.items()}


def _hint(fn: Any, annotation: Any) -> Any:
    """An annotation as it is meant; each is resolved on its own, so an unknown name spoils no other."""
    if annotation is Parameter.empty:
        return None
    names = getattr(inspect.unwrap(fn), "__globals__", None)
    holder = type("holder", (), {"__annotations__": {"x": annotation}, "__module__": __name__})
    try:
        found = typing.get_type_hints(holder, names or vars(sys.modules[__name__]), include_extras=True)
        return found["x"]
    except Exception:  # noqa: BLE001 - annotations are any expressions; unresolved, they forbid nothing
        return None
