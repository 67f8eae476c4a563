"""What hangs on a decorated function, in both colours."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial, update_wrapper
from typing import Any

from ..defenses.consistency import version_text
from ..engine.ask import Ask, opened, stored_of
from ..engine.reading import Engine
from ..missing import MISSING
from ..protocol.entry import CutOff, Found, Stored
from ..protocol.envelope import Kind
from ..runtime import run_now
from .functions import Function

MOST_LOADS_OF_MANY = 16

Values = tuple[Any, ...]
Answer = Callable[[], Any]


def decorated(function: Function) -> Callable[..., Any]:
    """The function that takes the place of the one that was decorated."""
    made = update_wrapper(function.index_wrapper(), function.fn)
    methods = AsyncMethods(function) if function.is_async else Methods(function)
    for name in ("invalidate", "expire", "refresh", "peek", "put", "key", "many"):
        setattr(made, name, getattr(methods, name))
    made.cacheguard = function  # type: ignore[attr-defined]  # by this, `warm` knows a decorated function
    return made


class Operations:
    """What the methods do, as coroutines over an engine of either door."""

    def __init__(self, function: Function) -> None:
        self._function, self._hub, self._rules = function, function.hub, function.rules

    async def invalidate(self, engine: Engine, values: Values) -> None:
        await self._hub.tell(engine.invalidate, [self._function.redis_key(values)])

    async def expire(self, engine: Engine, values: Values) -> None:
        await self._hub.tell(engine.expire, [self._function.redis_key(values)])

    async def refresh(self, engine: Engine, values: Values) -> Any:
        if self._hub.off:
            return await engine.runtime.call(partial(self._function.call, values))
        return self._function.own(await engine.refresh(self._function.ask(values)))

    async def peek(self, engine: Engine, values: Values) -> Any:
        if self._hub.off:
            return MISSING
        key = self._function.redis_key(values)
        entry = self._hub.local.peek(key) if self._rules.l1 else None
        if entry is not None:
            return self._function.own(value_or_missing(stored_of(entry)))
        answers = await engine.peek([key], self._function.codec, self._rules, self._function.scope)
        return self._function.own(value_or_missing(answers[key][0])) if answers else MISSING

    async def put(self, engine: Engine, value: Any, values: Values) -> None:
        ask = self._function.ask(values)
        version = "" if ask.version is None or value is None else version_text(ask.version(value))
        codecs = {ask.key: self._function.codec}
        await self._hub.put(
            engine, {ask.key: value}, self._rules, codecs, tags=ask.tags, scope=ask.scope, version=version
        )

    async def many(self, engine: Engine, calls: list[Values], most: int) -> list[Any]:
        """Those that Redis has come in one round trip, the others are loaded one by one, *most* at once."""
        if self._hub.off:
            works = [partial(engine.runtime.call, partial(self._function.call, values)) for values in calls]
            return await engine.runtime.each(works, most)
        asks = [self._function.ask(values) for values in calls]
        answers: dict[str, Answer] = {}
        wanted: dict[str, Ask] = {}
        for ask, values in zip(asks, calls, strict=True):
            answer = await self._known(engine, ask, values)
            if answer is None:
                wanted.setdefault(ask.key, ask)
            else:
                answers.setdefault(ask.key, answer)
        if wanted:
            answers |= await self._fetched(engine, wanted, most)
        return [self._function.own(answers[ask.key]()) for ask in asks]

    async def _known(self, engine: Engine, ask: Ask, values: Values) -> Answer | None:
        """The answer that this process has."""
        function = self._function
        if function.guarded:
            rejected = function.rejected(values)
            if rejected is None:
                rejected = await function.asked_bloom(engine, values)
            if rejected:
                return partial(function.nothing, values)
        return function.from_l1(ask, values)

    async def _fetched(self, engine: Engine, wanted: dict[str, Ask], most: int) -> dict[str, Answer]:
        """The answers that Redis or the loader has."""
        survey = await engine.survey(wanted)
        answers: dict[str, Answer] = {key: partial(opened, stored, self._rules) for key, stored in survey.there.items()}

        async def load(key: str, found: Found | CutOff | None) -> Any:
            return opened(await engine.rebuilding.rebuild(wanted[key], found), self._rules)

        works = [partial(load, key, found) for key, found in survey.missing.items()]
        loaded = await engine.runtime.each(works, most)
        for key, value in zip(survey.missing, loaded, strict=True):
            answers[key] = partial(_itself, value)
        return answers


def _itself(value: Any) -> Any:
    return value


def value_or_missing(stored: Stored) -> Any:
    """The value, or `MISSING` for a cached exception."""
    return MISSING if stored.kind is Kind.ERROR else stored.value


class Methods:
    """What hangs on a decorated function; each takes the arguments of the call that it is about."""

    def __init__(self, function: Function) -> None:
        self._function, self._do = function, Operations(function)

    def _engine(self) -> Engine:
        return self._function.hub.blocking(l2=self._function.rules.l2)

    def invalidate(self, *args: Any, **kwargs: Any) -> None:
        """Remove the entry of this call everywhere. One round trip."""
        run_now(self._do.invalidate(self._engine(), self._function.values(args, kwargs)))

    def expire(self, *args: Any, **kwargs: Any) -> None:
        """Make the entry of this call stale: still there for when the load fails or is slow. One round trip."""
        run_now(self._do.expire(self._engine(), self._function.values(args, kwargs)))

    def refresh(self, *args: Any, **kwargs: Any) -> Any:
        """Load this call anew, fill both tiers, return the new value. Two round trips."""
        return run_now(self._do.refresh(self._engine(), self._function.runnable_values(args, kwargs)))

    def peek(self, *args: Any, **kwargs: Any) -> Any:
        """What this call would answer without a load; `MISSING` if nothing. At most one round trip."""
        return run_now(self._do.peek(self._engine(), self._function.values(args, kwargs)))

    def put(self, value: Any, /, *args: Any, **kwargs: Any) -> None:
        """Store *value* as the answer of this call. One round trip; `CodecError` if it has no bytes."""
        run_now(self._do.put(self._engine(), value, self._function.values(args, kwargs)))

    def key(self, *args: Any, **kwargs: Any) -> str:
        """The key text of this call, as `invalidate` and `inspect` of the guard take it."""
        return self._function.text(self._function.values(args, kwargs))

    def many(self, calls: Iterable[Any]) -> list[Any]:
        """The answers of several calls, in their order; each a tuple of arguments, or the value of the only one."""
        return run_now(self._do.many(self._engine(), self._function.many_values(calls), 1))


class AsyncMethods:
    """What hangs on a decorated coroutine function; the same as `Methods`, to be awaited."""

    def __init__(self, function: Function) -> None:
        self._function, self._do = function, Operations(function)

    def _engine(self) -> Engine:
        return self._function.hub.running(l2=self._function.rules.l2)

    async def invalidate(self, *args: Any, **kwargs: Any) -> None:
        """Remove the entry of this call everywhere. One round trip."""
        await self._do.invalidate(self._engine(), self._function.values(args, kwargs))

    async def expire(self, *args: Any, **kwargs: Any) -> None:
        """Make the entry of this call stale: still there for when the load fails or is slow. One round trip."""
        await self._do.expire(self._engine(), self._function.values(args, kwargs))

    async def refresh(self, *args: Any, **kwargs: Any) -> Any:
        """Load this call anew, fill both tiers, return the new value. Two round trips."""
        return await self._do.refresh(self._engine(), self._function.runnable_values(args, kwargs))

    async def peek(self, *args: Any, **kwargs: Any) -> Any:
        """What this call would answer without a load; `MISSING` if nothing. At most one round trip."""
        return await self._do.peek(self._engine(), self._function.values(args, kwargs))

    async def put(self, value: Any, /, *args: Any, **kwargs: Any) -> None:
        """Store *value* as the answer of this call. One round trip; `CodecError` if it has no bytes."""
        await self._do.put(self._engine(), value, self._function.values(args, kwargs))

    def key(self, *args: Any, **kwargs: Any) -> str:
        """The key text of this call, as `invalidate` and `inspect` of the guard take it."""
        return self._function.text(self._function.values(args, kwargs))

    async def many(self, calls: Iterable[Any]) -> list[Any]:
        """The answers of several calls, in their order; each a tuple of arguments, or the value of the only one."""
        return await self._do.many(self._engine(), self._function.many_values(calls), MOST_LOADS_OF_MANY)
