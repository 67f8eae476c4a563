"""`memoize`: a function, under a key made of its arguments."""

from __future__ import annotations

import functools
import inspect
import threading
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

from cacheguard import current_load
from cacheguard.errors import ConfigurationError, KeyTemplateError
from cacheguard.extending import Binder, CallText, KeyOwner, call_text

from .app_cache import AppCache
from .calls import Common
from .contexts import in_its_context
from .objects import Identities


class Call(NamedTuple):
    """A call as the cache knows it."""

    key: str
    tags: tuple[str, ...]
    here: bool
    """Whether no other process can make the same call."""


class Memoized:
    """One function decorated with `CacheGuardFlask.memoize`."""

    def __init__(
        self,
        caches: Callable[[], AppCache],
        common: Common,
        *,
        make_name: Callable[[str], str] | None,
        args_to_ignore: Sequence[str] | None,
    ) -> None:
        self._caches, self._common = caches, common
        self._fn = fn = common.fn
        if inspect.isgeneratorfunction(fn) or inspect.isasyncgenfunction(fn):
            raise ConfigurationError(f"{fn.__qualname__} is a generator: its items cannot be cached, return a list")
        self._binder, self._key_owner = Binder(fn), KeyOwner(fn)
        self._names: list[str] = self._names_in_key(args_to_ignore)
        self._owner = self._owner_name()
        self._name = f"{fn.__module__}.{fn.__qualname__}"
        self._named_for_all = make_name(self._name) if make_name else self._name
        self._text: CallText = call_text(self._named_for_all, self._names)
        self._owner_text: CallText = call_text(self._name, ["owner"])
        self._identities = Identities()
        self.wrapper: Any = self._wrapper()

    def _names_in_key(self, ignored: Sequence[str] | None) -> list[str]:
        names = self._binder.names
        for name in ignored or ():
            if name not in names:
                raise ConfigurationError(
                    f"args_to_ignore names {name!r}; the parameters of {self._fn.__qualname__} are: {', '.join(names)}"
                )
        return [name for name in names if name not in (ignored or ())]

    def _owner_name(self) -> str | None:
        """``self`` or ``cls``, if the function is a method and its object is part of the key."""
        first = next(iter(self._binder.names), None)
        return first if first in ("self", "cls") and first in self._names else None

    def _wrapper(self) -> Any:
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
        made.cache_timeout = self._common.timeout
        made.make_cache_key = self.make_cache_key
        made.delete_memoized = self.delete_all
        made.cacheguard_memoized = self
        return made

    # Keys

    def make_cache_key(self, _fn: Callable[..., Any], *args: Any, **kwargs: Any) -> str:
        """The key text of a call. The first argument is the function, as in Flask-Caching."""
        return self._named(args, kwargs).key

    def _named(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
        bound = self._binder.values(args, kwargs)
        values = {name: _identity(bound[name]) for name in self._names}
        tags, here = [self._tag], False
        if self._owner is not None:
            values[self._owner], here = self._named_owner(bound[self._owner])
            tags.append(self._tag_of_owner(values[self._owner]))
        try:
            key = self._text.text_of(*values.values())
        except KeyTemplateError as error:
            raise self._nameless(error) from error
        cache = self._caches()
        self._key_owner.claim(cache.guard, self._named_for_all)
        key += self._common.source_digest(cache)
        return Call(key, (*tags, *self._common.tags.of(args, kwargs)), here)

    def _named_owner(self, owner: Any) -> tuple[Any, bool]:
        """The identity of *owner*, and True if it is only valid in this process."""
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
        """The tag of all results of the function."""
        return f"cacheguard_flask:memoized:{self._name}"

    def _tag_of_owner(self, identity: Any) -> str:
        """The tag of the results for one object."""
        return f"{self._tag}:{self._owner_text.text_of(identity)}"

    # Calls

    def _call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self._common.is_bypassed(args, kwargs):
            return self._fn(*args, **kwargs)
        cache, call = self._caches(), self._named(args, kwargs)
        alone, caller = list[Any](), threading.get_ident()

        def load() -> Any:
            return self._judged(self._fn(*args, **kwargs), alone if threading.get_ident() == caller else [])

        value = cache.guard.get_or_set(
            call.key,
            in_its_context(cache.app, load),
            tags=call.tags,
            usable=self._common.usable(args, kwargs),
            returns=self._fn,
            **self._rules(cache, call),
        )
        return alone[0] if alone else value

    async def _acall(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self._common.is_bypassed(args, kwargs):
            return await self._fn(*args, **kwargs)
        cache, call = self._caches(), self._named(args, kwargs)
        app, alone = cache.app, list[Any]()

        async def load() -> Any:
            # The guard owns the task, which may outlive the request. So it gets its own context.
            with app.app_context():
                return self._judged(await self._fn(*args, **kwargs), alone)

        value = await cache.guard.aget_or_set(
            call.key,
            load,
            tags=call.tags,
            usable=self._common.usable(args, kwargs),
            returns=self._fn,
            **self._rules(cache, call),
        )
        return alone[0] if alone else value

    def _judged(self, value: Any, alone: list[Any]) -> Any:
        """The value to cache. A value that can be used only once goes to the caller through *alone*."""
        if hasattr(value, "__next__") or hasattr(value, "__anext__"):
            current_load().private = True
            alone.append(value)
            return None
        if self._common.is_unwanted(value):
            current_load().cacheable = False
        return value

    def _rules(self, cache: AppCache, call: Call) -> dict[str, Any]:
        rules = self._common.rules(cache, self.wrapper.cache_timeout)
        if call.here and self._common.policy.get("l1", cache.l1):
            rules["l2"] = False  # no other process can make this key
        return rules

    # Deleting

    def delete_all(self) -> None:
        """Delete the results of the function for all arguments. One round trip."""
        self._caches().guard.invalidate_tags(self._tag)

    def delete(self, owner: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Delete the result of one call; without arguments, those of all calls on *owner*, or of all calls.

        Args:
            owner: the object that a bound method is bound to; None for a function.
            args: of the call, with or without the object of the method.
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
        first = next(iter(self._binder.names), None)
        return owner is not None and first in ("self", "cls") and not (args and args[0] is owner)


def memoized_of(fn: Any) -> Memoized:
    """The `Memoized` of a memoized function or bound method; `TypeError` for anything else."""
    found = getattr(fn, "cacheguard_memoized", None)
    if not isinstance(found, Memoized):
        raise TypeError(f"expected a function decorated with memoize(…), got {fn!r}")
    return found


def _identity(value: Any) -> Any:
    """The identity of *value*: the result of its ``__caching_id__``, or the value itself."""
    ask = None if isinstance(value, type) else getattr(value, "__caching_id__", None)
    return (type(value), ask()) if callable(ask) else value
