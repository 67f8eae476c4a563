"""What the decorators of views and of functions have in common: whom they ask before they use the cache."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

from cacheguard import Policy
from cacheguard.errors import ConfigurationError
from cacheguard.keys import TextTemplate

from .settings import HashMethod
from .timeouts import Timeout, ttl_of


class Question:
    """A function of the user's that may take the call's arguments or none, such as ``unless``."""

    def __init__(self, name: str, asked: Callable[..., object] | None, *, before: int = 0) -> None:
        """*before*: how many arguments it gets in any case, in front of the call's own."""
        if asked is not None and not callable(asked):
            raise ConfigurationError(f"{name} must be a function, got {asked!r}")
        if inspect.iscoroutinefunction(asked):
            raise ConfigurationError(f"{name} must be a plain function, got the coroutine function {asked!r}")
        self._asked = asked
        self._takes_call = asked is not None and _positional(asked) > before

    def __bool__(self) -> bool:
        return self._asked is not None

    def __call__(self, *first: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        if self._asked is None:
            return False
        return bool(self._asked(*first, *args, **kwargs) if self._takes_call else self._asked(*first))


class Bypass:
    """``unless``, which may take no argument, or the function and the call's arguments."""

    def __init__(self, asked: Callable[..., object] | None) -> None:
        self._question = Question("unless", asked)
        self._takes_function = asked is not None and _positional(asked) > 0

    def __call__(self, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        if not self._question:
            return False
        return self._question(args=(fn, *args) if self._takes_function else (), kwargs=kwargs)


def _positional(fn: Callable[..., Any]) -> int:
    """How many arguments *fn* can take without names; many for ``*args`` or ``**kwargs``."""
    try:
        parameters = inspect.signature(fn).parameters.values()
    except (TypeError, ValueError):  # a builtin that does not say
        return 0
    if any(each.kind in (each.VAR_POSITIONAL, each.VAR_KEYWORD) for each in parameters):
        return 1000
    return sum(each.kind is not each.KEYWORD_ONLY for each in parameters)


class Tags:
    """Templates of tags over a function's parameters; `KeyTemplateError` for one that does not fit."""

    def __init__(self, templates: Sequence[str], fn: Callable[..., Any]) -> None:
        if isinstance(templates, str):
            raise ConfigurationError(f"tags must be a list of texts, got the text {templates!r}")
        self._templates = [TextTemplate(each, fn) for each in templates]
        self._signature = inspect.signature(fn) if self._templates else None

    def of(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[str, ...]:
        """The tags of a call."""
        if self._signature is None:
            return ()
        bound = self._signature.bind(*args, **kwargs)
        bound.apply_defaults()
        return tuple(each.text(bound.arguments) for each in self._templates)


def checked_policy(timeout: Timeout | None, policy: dict[str, Any]) -> dict[str, Any]:
    """*policy*, if its fields and *timeout* can work."""
    if "ttl" in policy:
        raise ConfigurationError("ttl is called timeout here")
    ttl_of(timeout)
    Policy.of(policy)
    return policy


def source_digest(fn: Callable[..., Any], method: HashMethod) -> str:
    """A digest of the source of *fn*."""
    digest: str = method(inspect.getsource(fn).encode()).hexdigest()
    return digest
