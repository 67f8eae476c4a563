"""Wrappers generated for one signature: CPython binds the arguments, and a hit builds only its key.

Made from source text with `exec`, as in `dataclasses`: the wrapper has the parameters of the function that it wraps.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from inspect import Parameter, Signature
from typing import Any

from ..keys import UNBOUND
from ..tiers.held import Entry, Index

# Subscription, not `get`; `__class__`, not `type()`; a float, not an int: each is faster in CPython 3.11.
# The slow path begins after the handler, so a loader's exception does not have the KeyError as its context.
_HIT = """
    try:
        _cg_entry = _cg_index[{key}]
    except _cg_no_entry:
        pass
    else:
        if _cg_now() < _cg_entry.until{same_type}:
            _cg_entry.hits += 1.0{touch}
            return {value}"""

_WRAPPER = """
def _cg_build(_cg_index, _cg_now, _cg_slow, _cg_touch, _cg_copy, _cg_defaults, _cg_no_entry):
  {prefix}def wrapper({parameters}):{hit}
    return {wait}_cg_slow(({values}))
  return wrapper
"""

# For a function that decorators have wrapped, and that sees how its arguments are given: whatever can be given by
# position is so here, and all keywords are in one dict, in their order.
_AS_GIVEN = """
def _cg_build(_cg_index, _cg_now, _cg_slow, _cg_touch, _cg_copy, _cg_no_entry, _cg_not):
  {prefix}def wrapper({parameters}*_cg_rest, **_cg_named):
    if _cg_named:{named}{named_hit}
    else:{hit}
    return {wait}_cg_slow(({values}*_cg_rest,), _cg_named)
  return wrapper
"""

_CALLER = """
def _cg_call(_cg_function, _cg_values):
    {unpack}
    return _cg_function({arguments})
"""

_STARS: dict[Any, str] = {Parameter.VAR_POSITIONAL: "*", Parameter.VAR_KEYWORD: "**"}
_NAMED_FROM_HERE = (Parameter.KEYWORD_ONLY, Parameter.VAR_POSITIONAL)

_BY_POSITION = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)

# Equal values of these types have equal texts. Float (0.0, -0.0) and Decimal (1, 1.0) do not.
_TEXTS = (str, type(UNBOUND))
BINDABLE = frozenset({int, str, bytes, bool, type(None), type(UNBOUND)})


class IndexKey:
    """The key of a call in its function's index, made from the values of the key's parameters.

    ``1 == 1.0 == True``, so a key of several values contains their types; for a single value, the hit compares the
    type. A parameter annotated ``str`` in a template needs no type: only texts are put into the index for it.
    """

    def __init__(self, names: Sequence[str], texts: Collection[str]) -> None:
        self._names = names
        self._typed = [position for position, name in enumerate(names) if name not in texts]
        self._texts = [position for position, name in enumerate(names) if name in texts]

    def called(self, variables: Sequence[str]) -> IndexKey:
        """The same key, where the values have these names instead of the parameters'."""
        other = IndexKey(variables, ())
        other._typed, other._texts = self._typed, self._texts
        return other

    @property
    def source(self) -> str:
        """The source of the key's expression in a wrapper."""
        if len(self._names) == 1:
            return self._names[0]
        return f"({', '.join([*self._names, *(f'{self._names[position]}.__class__' for position in self._typed)])})"

    @property
    def check(self) -> str:
        """The source of the type comparison of a hit, if it needs one."""
        return f" and _cg_entry.type is {self._names[0]}.__class__" if len(self._names) == 1 else ""

    def of(self, values: Sequence[Any]) -> tuple[Any, type[Any] | None] | None:
        """Return the key for *values* and the type to compare; None for types whose equal values may differ in text."""
        if not BINDABLE.issuperset(map(type, values)):
            return None
        types: list[Any] = [type(value) for value in values]
        if any(types[position] not in _TEXTS for position in self._texts):
            return None
        if len(values) == 1:
            return values[0], types[0]
        return (*values, *(types[position] for position in self._typed)), None


def wrapper(
    signature: Signature,
    key: IndexKey,
    index: Index | None,
    slow: Callable[[tuple[Any, ...]], Any],
    *,
    is_async: bool,
    now: Callable[[], float],
    touch: Callable[[Entry], None] | None,
    copy: Callable[[Any], Any] | None,
) -> Callable[..., Any]:
    """Make a function with the parameters of *signature*: it answers from *index*, else passes all values to *slow*."""
    pieces = {
        "prefix": "async " if is_async else "",
        "wait": "await " if is_async else "",
        "parameters": _parameters(signature),
        "values": "".join(f"{name}, " for name in signature.parameters),
        "touch": "\n            _cg_touch(_cg_entry)" if touch else "",
        "value": "_cg_copy(_cg_entry.value)" if copy else "_cg_entry.value",
    }
    hit = "" if index is None else _HIT.format(key=key.source, same_type=key.check, **pieces)
    scope: dict[str, Any] = {}
    exec(_WRAPPER.format(hit=hit, **pieces), scope)  # noqa: S102 - made of parameter names, which are identifiers
    defaults = {name: each.default for name, each in signature.parameters.items()}
    built: Callable[..., Any] = scope["_cg_build"](index, now, slow, touch, copy, defaults, (KeyError, TypeError))
    return built


def as_given(
    signature: Signature,
    names: Sequence[str],
    key: IndexKey,
    index: Index | None,
    slow: Callable[[tuple[Any, ...], dict[str, Any]], Any],
    *,
    is_async: bool,
    now: Callable[[], float],
    touch: Callable[[Entry], None] | None,
    copy: Callable[[Any], Any] | None,
) -> Callable[..., Any]:
    """Make a function like `wrapper` does, which passes to *slow* what its caller gave: by position and by keyword.

    *names* are the parameters that *key* consists of. What is not given is `UNBOUND` in the key.
    """
    places = [(f"_cg_p{place}", each) for place, each in enumerate(signature.parameters.values())]
    by_position = [variable for variable, each in places if each.kind in _BY_POSITION]
    pieces = {
        "prefix": "async " if is_async else "",
        "wait": "await " if is_async else "",
        "parameters": f"{', '.join(f'{each}=_cg_not' for each in by_position)}, /, " if by_position else "",
        "values": "".join(f"{each}, " for each in by_position),
        "touch": "\n            _cg_touch(_cg_entry)" if touch else "",
        "value": "_cg_copy(_cg_entry.value)" if copy else "_cg_entry.value",
    }
    hit, named, named_hit = " pass", " pass", ""
    if index is not None:
        own = {each.name: variable if each.kind in _BY_POSITION else "_cg_not" for variable, each in places}
        only = {each.name for _, each in places if each.kind is Parameter.POSITIONAL_ONLY}
        values = [own[name] if name in only else f"_cg_named.get({name!r}, {own[name]})" for name in names]
        called = [f"_cg_{place}" for place, _ in enumerate(names)]
        named = "".join(f"\n        {each} = {value}" for each, value in zip(called, values, strict=True))
        hit, named_hit = _inner(key.called([own[name] for name in names]), pieces), _inner(key.called(called), pieces)
    scope: dict[str, Any] = {}
    exec(_AS_GIVEN.format(hit=hit, named=named, named_hit=named_hit, **pieces), scope)  # noqa: S102 - as above

    def given(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return slow(_given(args), kwargs)

    built: Callable[..., Any] = scope["_cg_build"](index, now, given, touch, copy, (KeyError, TypeError), UNBOUND)
    return built


def _inner(key: IndexKey, pieces: dict[str, str]) -> str:
    """The source of a hit, one block deeper."""
    return _HIT.format(key=key.source, same_type=key.check, **pieces).replace("\n", "\n    ")


def _given(args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return the arguments by position that a caller gave: those before the first that is missing."""
    for count, value in enumerate(args):
        if value is UNBOUND:
            return args[:count]
    return args


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
    """Make a function that calls a function of *signature* with the values that `wrapper` passes on."""
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
