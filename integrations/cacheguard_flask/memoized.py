"""`memoize`: a function, under a key made of its arguments."""

from __future__ import annotations

import functools
import inspect
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from cacheguard import current_load
from cacheguard.errors import ConfigurationError, KeyTemplateError
from cacheguard.keys import CallText

from .calls import Bypass, Question, Tags, checked_policy, source_digest
from .contexts import in_its_context
from .objects import Identities
from .settings import HashMethod, checked_hash_method
from .timeouts import Timeout, ttl_of

if TYPE_CHECKING:
    from .extension import AppCache


class Call(NamedTuple):
    """A call as the cache knows it."""

    key: str
    tags: tuple[str, ...]
    here: bool
    """Whether no other process can make the same call."""


class Memoized:
    """What `CacheGuardFlask.memoize` knows of one function."""

    def __init__(
        self,
        caches: Callable[[], AppCache],
        fn: Callable[..., Any],
        *,
        timeout: Timeout | None,
        make_name: Callable[[str], str] | None,
        unless: Callable[..., object] | None,
        forced_update: Callable[..., object] | None,
        is_stale: Callable[..., object] | None,
        response_filter: Callable[[Any], object] | None,
        hash_method: HashMethod | None,
        cache_none: bool | None,
        source_check: bool | None,
        args_to_ignore: Sequence[str] | None,
        tags: Sequence[str],
        policy: dict[str, Any],
    ) -> None:
        if inspect.isgeneratorfunction(fn) or inspect.isasyncgenfunction(fn):
            raise ConfigurationError(f"{fn.__qualname__} is a generator: its items cannot be cached, return a list")
        self._caches, self._fn = caches, fn
        self._policy = checked_policy(timeout, policy)
        self._unless, self._filter = Bypass(unless), response_filter
        self._forced_update = Question("forced_update", forced_update)
        self._is_stale = Question("is_stale", is_stale, before=1)
        self._hash_method = None if hash_method is None else checked_hash_method(hash_method, "hash_method")
        self._cache_none, self._source_check = cache_none, source_check
        self._signature = inspect.signature(fn)
        self._names = self._names_in_key(args_to_ignore)
        self._owner = self._owner_name()
        self._name = f"{fn.__module__}.{fn.__qualname__}"
        self._text = CallText(_stand_in(make_name(self._name) if make_name else self._name, self._names))
        self._owner_text = CallText(_stand_in(self._name, ["owner"]))
        self._tags = Tags(tags, fn)
        self._identities = Identities()
        self.wrapper = self._wrapper(timeout)

    def _names_in_key(self, ignored: Sequence[str] | None) -> list[str]:
        names = list(self._signature.parameters)
        for name in ignored or ():
            if name not in names:
                raise ConfigurationError(
                    f"args_to_ignore names {name!r}; the parameters of {self._fn.__qualname__} are: {', '.join(names)}"
                )
        return [name for name in names if name not in (ignored or ())]

    def _owner_name(self) -> str | None:
        """``self`` or ``cls``, if the function is a method and its object makes a difference."""
        first = next(iter(self._signature.parameters), None)
        return first if first in ("self", "cls") and first in self._names else None

    def _wrapper(self, timeout: Timeout | None) -> Any:
        if inspect.iscoroutinefunction(self._fn):

            @functools.wraps(self._fn)
            async def awaited(*args: Any, **kwargs: Any) -> Any:
                return await self._acall(args, kwargs)

            made = cast("Any", awaited)
        else:

            @functools.wraps(self._fn)
            def wrapper(*args: Any, **kwargs: Any) -> Any:
                return self._call(args, kwargs)

            made = cast("Any", wrapper)
        made.uncached = self._fn
        made.cache_timeout = timeout
        made.make_cache_key = self.make_cache_key
        made.delete_memoized = self.delete_all
        made.cacheguard_memoized = self
        return made

    # What a call is called

    def make_cache_key(self, _fn: Callable[..., Any], *args: Any, **kwargs: Any) -> str:
        """The key text of a call; the function itself comes first, as Flask-Caching has it."""
        return self._named(args, kwargs).key

    def _named(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
        bound = self._signature.bind(*args, **kwargs)
        bound.apply_defaults()
        values = {name: _identity(bound.arguments[name]) for name in self._names}
        tags, here = [self._tag], False
        if self._owner is not None:
            values[self._owner], here = self._named_owner(bound.arguments[self._owner])
            tags.append(self._tag_of_owner(values[self._owner]))
        try:
            key = self._text.text_of(*values.values())
        except KeyTemplateError as error:
            raise self._nameless(error) from error
        cache = self._caches()
        if cache.source_check if self._source_check is None else self._source_check:
            key += source_digest(self._fn, self._hash_method or cache.hash_method)
        return Call(key, (*tags, *self._tags.of(args, kwargs)), here)

    def _named_owner(self, owner: Any) -> tuple[Any, bool]:
        """What tells *owner* apart, and whether it does so in this process alone."""
        identity = _identity(owner)
        try:
            self._owner_text.text_of(identity)
        except KeyTemplateError as error:
            name = self._identities.name(owner)
            if name is None:
                raise self._nameless(error) from error
            return (type(owner), name), True
        return identity, False

    def _nameless(self, error: KeyTemplateError) -> KeyTemplateError:
        return KeyTemplateError(
            f"a call of {self._name} has no key of its own, because one of its arguments has none: give the "
            "class a method __caching_id__ that returns what tells its objects apart, or name the argument in "
            f"args_to_ignore ({error.__cause__ or error})"
        )

    @property
    def _tag(self) -> str:
        """The tag of all that the function ever returned."""
        return f"cacheguard_flask:memoized:{self._name}"

    def _tag_of_owner(self, identity: Any) -> str:
        """The tag of what it returned for one object."""
        return f"{self._tag}:{self._owner_text.text_of(identity)}"

    # Calls

    def _call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self._unless(self._fn, args, kwargs):
            return self._fn(*args, **kwargs)
        cache, call = self._caches(), self._named(args, kwargs)
        alone, caller = list[Any](), threading.get_ident()

        def load() -> Any:
            return self._judged(self._fn(*args, **kwargs), alone if threading.get_ident() == caller else [])

        value = cache.guard.get_or_set(
            call.key,
            in_its_context(cache.app, load),
            tags=call.tags,
            usable=self._usable(args, kwargs),
            returns=self._fn,
            **self._rules(cache, call),
        )
        return alone[0] if alone else value

    async def _acall(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self._unless(self._fn, args, kwargs):
            return await self._fn(*args, **kwargs)
        cache, call = self._caches(), self._named(args, kwargs)
        app, alone = cache.app, list[Any]()

        async def load() -> Any:
            # The task is the guard's and may outlive the request, so its context is its own.
            with app.app_context():
                return self._judged(await self._fn(*args, **kwargs), alone)

        value = await cache.guard.aget_or_set(
            call.key,
            load,
            tags=call.tags,
            usable=self._usable(args, kwargs),
            returns=self._fn,
            **self._rules(cache, call),
        )
        return alone[0] if alone else value

    def _judged(self, value: Any, alone: list[Any]) -> Any:
        """What to cache of *value*; what can be used only once goes to its caller through *alone*."""
        if hasattr(value, "__next__") or hasattr(value, "__anext__"):
            current_load().private = True
            alone.append(value)
            return None
        if self._filter is not None and not self._filter(value):
            current_load().cacheable = False
        return value

    def _usable(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Callable[[Any], bool] | None:
        if self._forced_update(args=args, kwargs=kwargs):
            return _nothing_is_usable
        return (lambda value: not self._is_stale(value, args=args, kwargs=kwargs)) if self._is_stale else None

    def _rules(self, cache: AppCache, call: Call) -> dict[str, Any]:
        timeout = self.wrapper.cache_timeout
        rules = self._policy | ttl_of(timeout, "cache_timeout")
        if call.here and self._policy.get("l1", cache.l1):
            rules["l2"] = False  # nobody else could ever ask for it
        if self._cache_none is not None:
            rules["null_ttl"] = cache.none_ttl(timeout) if self._cache_none else None
        return rules

    # Deleting

    def delete_all(self) -> None:
        """Forget whatever the function returned, for any arguments. One round trip."""
        self._caches().guard.invalidate_tags(self._tag)

    def delete(self, owner: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Forget what the function returned for a call; without arguments, for all of *owner*'s, or all of them.

        Args:
            owner: what a bound method is bound to; None for a function.
            args: of the call, with or without the object that the method belongs to.
            kwargs: of the call.
        """
        guard = self._caches().guard
        if args or kwargs:
            if self._needs(owner, args):
                args = (owner, *args)
            guard.invalidate(self._named(args, kwargs).key)
        elif self._owner == "self" and owner is not None and not isinstance(owner, type):
            guard.invalidate_tags(self._tag_of_owner(self._named_owner(owner)[0]))
        else:
            guard.invalidate_tags(self._tag)

    def _needs(self, owner: Any, args: tuple[Any, ...]) -> bool:
        first = next(iter(self._signature.parameters), None)
        return owner is not None and first in ("self", "cls") and not (args and args[0] is owner)


def memoized_of(fn: Any) -> Memoized:
    """What is behind a memoized function or bound method; `TypeError` if it is none."""
    found = getattr(fn, "cacheguard_memoized", None)
    if not isinstance(found, Memoized):
        raise TypeError(f"expected a function decorated with memoize(…), got {fn!r}")
    return found


def _identity(value: Any) -> Any:
    """What tells *value* apart: what its ``__caching_id__`` says, if it has one."""
    ask = None if isinstance(value, type) else getattr(value, "__caching_id__", None)
    return (type(value), ask()) if callable(ask) else value


def _nothing_is_usable(_value: Any) -> bool:
    return False


def _stand_in(name: str, parameters: Sequence[str]) -> Callable[..., Any]:
    """A function called *name* with these parameters, for the maker of key texts to look at."""

    def stand_in() -> None:
        """Is looked at, never called."""

    module, _, own = name.rpartition(".")
    stand_in.__module__, stand_in.__qualname__ = module, own
    # An object stands under another name than self: what tells it apart is in its place already.
    kinds = [
        inspect.Parameter(f"{each}_" if each == "self" else each, inspect.Parameter.KEYWORD_ONLY) for each in parameters
    ]
    cast("Any", stand_in).__signature__ = inspect.Signature(kinds)
    return stand_in
