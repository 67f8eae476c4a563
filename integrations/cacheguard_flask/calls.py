"""The options that `cached` and `memoize` both take, checked."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

from cacheguard import Policy
from cacheguard.errors import ConfigurationError
from cacheguard.extending import Binder, TextTemplate

from .app_cache import AppCache
from .settings import HashMethod, checked_hash_method
from .timeouts import Timeout, ttl_of


class Question:
    """A function of the user's that may take the call's arguments or none, such as ``unless``."""

    def __init__(self, name: str, asked: Callable[..., object] | None, *, before: int = 0) -> None:
        """*before*: how many arguments it always gets, in front of the call's own."""
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
    """Count the positional arguments that *fn* can take; many for ``*args`` or ``**kwargs``."""
    try:
        parameters = inspect.signature(fn).parameters.values()
    except (TypeError, ValueError):  # a builtin without a signature
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
        self._binder = Binder(fn) if self._templates else None
        self._needed = {name for each in self._templates for name in each.fields}

    def of(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[str, ...]:
        """The tags of a call."""
        if self._binder is None:
            return ()
        values = self._binder.values(args, kwargs, self._needed)
        return tuple(each.text(values) for each in self._templates)


class Common:
    """The options that `cached` and `memoize` both take, checked. Their meaning is documented there.

    `ConfigurationError` for one that cannot work, `KeyTemplateError` for a tag that does not fit the function.
    """

    def __init__(
        self,
        fn: Callable[..., Any],
        *,
        timeout: Timeout | None,
        unless: Callable[..., object] | None,
        forced_update: Callable[..., object] | None,
        is_stale: Callable[..., object] | None,
        response_filter: Callable[[Any], object] | None,
        hash_method: HashMethod | None,
        cache_none: bool | None,
        source_check: bool | None,
        tags: Sequence[str],
        policy: dict[str, Any],
    ) -> None:
        self.fn: Callable[..., Any] = fn
        self.timeout: Timeout | None = timeout
        self.policy: dict[str, Any] = _checked_policy(timeout, policy)
        self.tags: Tags = Tags(tags, fn)
        self._unless, self._filter = Bypass(unless), response_filter
        self._forced_update = Question("forced_update", forced_update)
        self._is_stale = Question("is_stale", is_stale, before=1)
        self._hash_method = None if hash_method is None else checked_hash_method(hash_method, "hash_method")
        self._cache_none, self._source_check = cache_none, source_check

    def is_bypassed(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """True if this call must not use the cache."""
        return self._unless(self.fn, args, kwargs)

    def is_unwanted(self, value: Any) -> bool:
        """True if *value*, the result of the function, must not be cached."""
        return self._filter is not None and not self._filter(value)

    def usable(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], shown: Callable[[Any], Any] | None = None
    ) -> Callable[[Any], bool] | None:
        """A function that is true for the cached values that may answer this call; None: all may.

        Args:
            args: of the call.
            kwargs: of the call.
            shown: converts a cached value for the user's function.
        """
        if self._forced_update(args=args, kwargs=kwargs):
            return _nothing_is_usable
        if not self._is_stale:
            return None
        return lambda stored: not self._is_stale(stored if shown is None else shown(stored), args=args, kwargs=kwargs)

    def rules(self, cache: AppCache, timeout: Timeout | None) -> dict[str, Any]:
        """The policy of a call; *timeout* is the function's ``cache_timeout``, which the user may have changed."""
        rules = self.policy | ttl_of(timeout, "cache_timeout")
        if self._cache_none is not None:
            rules["null_ttl"] = cache.none_ttl(timeout) if self._cache_none else None
        return rules

    def digest(self, cache: AppCache, data: bytes) -> str:
        """A digest of *data*, for a key."""
        digest: str = (self._hash_method or cache.hash_method)(data).hexdigest()
        return digest

    def source_digest(self, cache: AppCache) -> str:
        """A digest of the function's source if it is part of the key; else empty."""
        is_checked = cache.source_check if self._source_check is None else self._source_check
        return self.digest(cache, inspect.getsource(self.fn).encode()) if is_checked else ""


def _checked_policy(timeout: Timeout | None, policy: dict[str, Any]) -> dict[str, Any]:
    """*policy*, if its fields and *timeout* can work."""
    if "ttl" in policy:
        raise ConfigurationError("ttl is called timeout here")
    ttl_of(timeout)
    Policy.of(policy)
    return policy


def _nothing_is_usable(_value: Any) -> bool:
    return False
