"""Wrappers written for one signature, so that CPython binds the arguments and a hit builds nothing but its key.

Source text and `exec`, as `dataclasses` does it: the wrapper has the parameters of the function that it wraps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from inspect import Parameter, Signature
from time import monotonic
from typing import Any

from .tiers.local import Entry, Index

_HIT = """
    try:
        _cg_entry = _cg_find({key})
    except _cg_unhashable:
        _cg_entry = None
    if _cg_entry is not None and {same_type}_cg_now() < _cg_entry.until:
        _cg_entry.hits += 1{touch}
        return {value}"""

_WRAPPER = """
def _cg_build(_cg_find, _cg_now, _cg_slow, _cg_touch, _cg_copy, _cg_defaults, _cg_type, _cg_unhashable):
  {prefix}def wrapper({parameters}):{hit}
    return {wait}_cg_slow(({values}))
  return wrapper
"""

_CALLER = """
def _cg_call(_cg_function, _cg_values):
    {unpack}
    return _cg_function({arguments})
"""

_STARS: dict[Any, str] = {Parameter.VAR_POSITIONAL: "*", Parameter.VAR_KEYWORD: "**"}
_NAMED_FROM_HERE = (Parameter.KEYWORD_ONLY, Parameter.VAR_POSITIONAL)

# Equal values of these types have equal texts. Not so float (0.0, -0.0) and Decimal (1, 1.0).
BINDABLE = frozenset({int, str, bytes, bool, type(None)})


def wrapper(
    signature: Signature,
    keyed_by: Sequence[str],
    index: Index | None,
    slow: Callable[[tuple[Any, ...]], Any],
    *,
    is_async: bool,
    touch: Callable[[Entry], None] | None,
    copy: Callable[[Any], Any] | None,
) -> Callable[..., Any]:
    """A function with the parameters of *signature* that answers from *index* or hands all values to *slow*."""
    names = list(signature.parameters)
    hit = ""
    if index is not None and keyed_by:
        hit = _HIT.format(
            key=_index_key(keyed_by),
            same_type=f"_cg_entry.type is _cg_type({keyed_by[0]}) and " if len(keyed_by) == 1 else "",
            touch="\n        _cg_touch(_cg_entry)" if touch else "",
            value="_cg_copy(_cg_entry.value)" if copy else "_cg_entry.value",
        )
    source = _WRAPPER.format(
        prefix="async " if is_async else "",
        parameters=_parameters(signature),
        hit=hit,
        wait="await " if is_async else "",
        values="".join(f"{name}, " for name in names),
    )
    scope: dict[str, Any] = {}
    exec(source, scope)  # noqa: S102 - made of parameter names, which are identifiers
    defaults = {name: each.default for name, each in signature.parameters.items()}
    find = None if index is None else index.get
    built: Callable[..., Any] = scope["_cg_build"](find, monotonic, slow, touch, copy, defaults, type, TypeError)
    return built


def _index_key(keyed_by: Sequence[str]) -> str:
    """One argument is its own key and its type is compared on a hit; several stand beside their types."""
    if len(keyed_by) == 1:
        return keyed_by[0]
    return f"({', '.join(keyed_by)}, {', '.join(f'_cg_type({name})' for name in keyed_by)})"


def index_key(values: Sequence[Any]) -> tuple[Any, type[Any] | None] | None:
    """The key that `wrapper` looks for, and the type it compares; None for values whose equals are not the same."""
    if not values or not BINDABLE.issuperset(map(type, values)):
        return None
    types: list[Any] = [type(value) for value in values]
    if len(values) == 1:
        return values[0], types[0]
    return (*values, *types), None


def _parameters(signature: Signature) -> str:
    parts: list[str] = []
    previous = None
    for name, parameter in signature.parameters.items():
        if previous is Parameter.POSITIONAL_ONLY and parameter.kind is not previous:
            parts.append("/")
        if parameter.kind is Parameter.KEYWORD_ONLY and previous not in _NAMED_FROM_HERE:
            parts.append("*")
        stars = _STARS.get(parameter.kind, "")
        default = "" if parameter.default is Parameter.empty else f"=_cg_defaults[{name!r}]"
        parts.append(f"{stars}{name}{default}")
        previous = parameter.kind
    if previous is Parameter.POSITIONAL_ONLY:
        parts.append("/")
    return ", ".join(parts)


def caller(signature: Signature) -> Callable[[Callable[..., Any], tuple[Any, ...]], Any]:
    """A function that calls another one of *signature* with the values that `wrapper` hands on."""
    arguments: list[str] = []
    for name, parameter in signature.parameters.items():
        form = f"{_STARS.get(parameter.kind, '')}{name}"
        if parameter.kind is Parameter.KEYWORD_ONLY:
            form = f"{name}={name}"
        arguments.append(form)
    unpack = f"{', '.join(signature.parameters)}, = _cg_values" if signature.parameters else "pass"
    scope: dict[str, Any] = {}
    exec(_CALLER.format(unpack=unpack, arguments=", ".join(arguments)), scope)  # noqa: S102 - as above
    made: Callable[[Callable[..., Any], tuple[Any, ...]], Any] = scope["_cg_call"]
    return made
