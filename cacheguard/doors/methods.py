"""The methods of a decorated function, blocking and async."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial, update_wrapper
from typing import TYPE_CHECKING, Any

from ..codec.once import refuse
from ..defenses.consistency import version_text
from ..delivery.outbox import Invalidation
from ..engine.ask import Ask, opened
from ..engine.by_hand import VALUE
from ..engine.reading import Engine
from ..errors import ConfigurationError
from ..runtime import run_now
from .bloom import BloomFilter
from .functions import Function

if TYPE_CHECKING:
    from ..engine.ask import Ask
    from ..engine.reading import Engine
    from ..policy import Rules
    from ..process.hub import Hub
    from ..protocol.names import Scope

MOST_LOADS_OF_MANY = 16

Values = tuple[Any, ...]
Answer = Callable[[], Any]
EngineOf = Callable[..., "Engine"]  # blocking or running of the hub


def decorator(
    hub: Hub,
    scope: Scope,
    rules: Rules,
    key: Any,
    *,
    tags: Sequence[str],
    version: Any,
    bloom: Any,
    bloom_item: str | None,
    validate: Callable[..., object] | None,
) -> Callable[[Any], Any]:
    """Make the decorator of `CacheGuard.cached`; options that cannot work with any function raise at once."""
    if key is not None and (not isinstance(key, str) or not key):
        raise ConfigurationError(f"key must be a template like 'user:{{user_id}}', got {key!r}")
    if bloom is not None and not isinstance(bloom, BloomFilter):
        raise ConfigurationError(f"bloom must be a filter made by guard.bloom(…), got {bloom!r}")
    if version is not None and not callable(version):
        raise ConfigurationError(f"version must be a function of the value, got {version!r}")

    def decorate(fn: Any) -> Any:
        if type(fn) in (staticmethod, classmethod):
            return type(fn)(decorate(fn.__func__))
        if not callable(fn):
            raise ConfigurationError(f"only functions can be decorated, got {fn!r}")
        function = Function(
            hub,
            scope,
            fn,
            key,
            rules,
            tags=tags,
            version=version,
            bloom=bloom,
            bloom_item=bloom_item,
            validate=validate,
            by=decorate,
        )
        return _decorated(function)

    return decorate


def _decorated(function: Function) -> Callable[..., Any]:
    """Return the wrapper that replaces the decorated function."""
    made: Any = update_wrapper(function.index_wrapper(), function.fn)
    if not function.is_plain:
        made.__signature__ = function.signature  # its own parameters have other names
    methods = AsyncMethods(function) if function.is_async else Methods(function)
    for name in ("invalidate", "expire", "refresh", "peek", "put", "key", "many"):
        setattr(made, name, getattr(methods, name))
    made.cacheguard = function  # `warm` recognises a decorated function by this attribute
    decorated: Callable[..., Any] = made
    return decorated


class Operations:
    """The work of the methods, written once as coroutines for both kinds of engines."""

    def __init__(self, function: Function) -> None:
        self._function, self._hub, self._rules = function, function.hub, function.rules
        self._shared = function.hub.shared

    async def invalidate(self, engine_of: EngineOf, values: Values) -> None:
        await self._hub.writes.write(engine_of(), [Invalidation(self._function.redis_key(values))])

    async def expire(self, engine_of: EngineOf, values: Values) -> None:
        await self._hub.writes.expire(engine_of(), [self._function.redis_key(values)])

    async def refresh(self, engine_of: EngineOf, values: Values) -> Any:
        engine = engine_of(l2=self._rules.l2)
        if self._shared.off:
            return await engine.runtime.call(partial(self._function.call, values))
        ask = self._function.ask(values)
        value = await engine.refresh(ask)  # the answer of a load that began now, so older copies are old
        await self._hub.writes.refreshed(engine_of(), ask.key, l2=self._rules.l2)
        return value

    async def peek(self, engine_of: EngineOf, values: Values) -> Any:
        engine, function = engine_of(l2=self._rules.l2), self._function
        key = function.redis_key(values)
        return await self._hub.looking.peek(engine, key, function.codec_of(values), self._rules, function.scope)

    async def put(self, engine_of: EngineOf, value: Any, values: Values) -> None:
        function, of_value = self._function, self._function.version
        refuse(function.redis_key(values), value, VALUE)
        version = "" if of_value is None or value is None else version_text(of_value(value))
        key, tags = function.redis_key(values), function.tags(values)
        await self._hub.by_hand.set(
            engine_of,
            {key: value},
            self._rules,
            function.scope,
            tags=tags,
            version=version,
            codec=function.codec_of(values),
        )

    async def many(self, engine_of: EngineOf, calls: list[Values], most: int) -> list[Any]:
        """Read what Redis has in one round trip; load each of the others on its own, at most *most* at once."""
        engine = engine_of(l2=self._rules.l2)
        if self._shared.off:
            works = [partial(engine.runtime.call, partial(self._function.call, values)) for values in calls]
            return await engine.runtime.each(works, most)
        asks = [self._function.ask(values) for values in calls]
        answers: dict[str, Answer] = {}
        wanted: dict[str, Ask] = {}
        guarded = self._function.guarded
        for ask, values in zip(asks, calls, strict=True):
            answer = await self._known(engine, ask, values) if guarded else self._function.from_l1(ask, values)
            if answer is None:
                wanted.setdefault(ask.key, ask)
            else:
                answers.setdefault(ask.key, answer)
        if wanted:
            answers |= await self._fetched(engine, wanted, most)
        found = [answers[ask.key]() for ask in asks]
        engine.given(found)
        return found

    async def _known(self, engine: Engine, ask: Ask, values: Values) -> Answer | None:
        """Return the answer of this process or of the Bloom filter, if there is one."""
        function = self._function
        rejected = function.rejected(values)
        if rejected is None:
            rejected = await function.asked_bloom(engine, values)
        if rejected:
            return partial(function.nothing, values)
        return function.from_l1(ask, values)

    async def _fetched(self, engine: Engine, wanted: dict[str, Ask], most: int) -> dict[str, Answer]:
        """Return the answers from Redis, and from the loader for the rest."""
        survey = await engine.survey(wanted)
        answers: dict[str, Answer] = {key: partial(opened, stored, self._rules) for key, stored in survey.there.items()}

        works = [partial(engine.rebuilding.rebuild, wanted[key], found) for key, found in survey.missing.items()]
        loaded = await engine.runtime.each(works, most)
        for key, stored in zip(survey.missing, loaded, strict=True):
            answers[key] = partial(opened, stored, self._rules)
        return answers


class Methods:
    """The methods of a decorated function; each takes the arguments of the call whose entry it concerns."""

    def __init__(self, function: Function) -> None:
        self._function, self._do, self._engine_of = function, Operations(function), function.hub.blocking

    def invalidate(self, *args: Any, **kwargs: Any) -> None:
        """Remove the entry of this call everywhere. One round trip."""
        run_now(self._do.invalidate(self._engine_of, self._function.values(args, kwargs)))

    def expire(self, *args: Any, **kwargs: Any) -> None:
        """Make the entry of this call stale: still served if the next load fails or is slow. One round trip."""
        run_now(self._do.expire(self._engine_of, self._function.values(args, kwargs)))

    def refresh(self, *args: Any, **kwargs: Any) -> Any:
        """Reload this call and return the new value; other processes drop their copies. Three round trips."""
        return run_now(self._do.refresh(self._engine_of, self._function.runnable_values(args, kwargs)))

    def peek(self, *args: Any, **kwargs: Any) -> Any:
        """Return the cached answer of this call without a load; `MISSING` if none. At most one round trip."""
        return run_now(self._do.peek(self._engine_of, self._function.values(args, kwargs)))

    def put(self, value: Any, /, *args: Any, **kwargs: Any) -> None:
        """Store *value* as the answer of this call. One round trip; `CodecError` if it cannot be encoded."""
        run_now(self._do.put(self._engine_of, value, self._function.values(args, kwargs)))

    def key(self, *args: Any, **kwargs: Any) -> str:
        """Return the key text of this call, as `invalidate` and `inspect` of the guard take it."""
        return self._function.text(self._function.values(args, kwargs))

    def many(self, calls: Iterable[Any]) -> list[Any]:
        """Return the answers of several calls in order; a call is a tuple of arguments, or its only argument.

        One round trip for all that Redis has; each of the others is loaded on its own.
        """
        return run_now(self._do.many(self._engine_of, self._function.many_values(calls), 1))


class AsyncMethods:
    """The methods of a decorated coroutine function: those of `Methods` for coroutines."""

    def __init__(self, function: Function) -> None:
        self._function, self._do, self._engine_of = function, Operations(function), function.hub.running

    async def invalidate(self, *args: Any, **kwargs: Any) -> None:
        """Remove the entry of this call everywhere. One round trip."""
        await self._do.invalidate(self._engine_of, self._function.values(args, kwargs))

    async def expire(self, *args: Any, **kwargs: Any) -> None:
        """Make the entry of this call stale: still served if the next load fails or is slow. One round trip."""
        await self._do.expire(self._engine_of, self._function.values(args, kwargs))

    async def refresh(self, *args: Any, **kwargs: Any) -> Any:
        """Reload this call and return the new value; other processes drop their copies. Three round trips."""
        return await self._do.refresh(self._engine_of, self._function.runnable_values(args, kwargs))

    async def peek(self, *args: Any, **kwargs: Any) -> Any:
        """Return the cached answer of this call without a load; `MISSING` if none. At most one round trip."""
        return await self._do.peek(self._engine_of, self._function.values(args, kwargs))

    async def put(self, value: Any, /, *args: Any, **kwargs: Any) -> None:
        """Store *value* as the answer of this call. One round trip; `CodecError` if it cannot be encoded."""
        await self._do.put(self._engine_of, value, self._function.values(args, kwargs))

    def key(self, *args: Any, **kwargs: Any) -> str:
        """Return the key text of this call, as `invalidate` and `inspect` of the guard take it."""
        return self._function.text(self._function.values(args, kwargs))

    async def many(self, calls: Iterable[Any]) -> list[Any]:
        """Return the answers of several calls in order; a call is a tuple of arguments, or its only argument.

        One round trip for all that Redis has; each of the others is loaded on its own.
        """
        return await self._do.many(self._engine_of, self._function.many_values(calls), MOST_LOADS_OF_MANY)
