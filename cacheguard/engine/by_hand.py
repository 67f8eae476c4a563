"""Manual writes: what `disabled()`, ``on_unreachable``, ``l2=False`` and cancellation mean for all of them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from ..codec.once import refuse
from ..delivery.outbox import Invalidation
from ..delivery.parts import parts
from ..errors import Unreachable
from ..missing import MISSING
from .writes import most_at_once

if TYPE_CHECKING:
    from ..codec import Codec, Registry
    from ..policy import Rules
    from ..protocol.names import Scope
    from .here import Here
    from .reading import Engine
    from .shared import Shared
    from .writes import Writes

VALUE = "the value"  # in messages
EngineOf = Callable[..., "Engine"]  # of the caller's runtime: with ``l2=False`` the one that works in this process


@dataclass(frozen=True, slots=True, kw_only=True)
class Verb:
    """The answers of one verb when it cannot do its work.

    Args:
        off: its answer under `disabled()`.
        away: its answer if Redis is unreachable, and ``on_unreachable="queue"``.
        lost: the message of `Unreachable` under ``on_unreachable="raise"``.
        replaces: under `disabled()` it reports that it has stored, so nothing older may be left.
        is_news: True for an answer after which the copies of other processes are old; None: never.
    """

    off: Any
    away: Any
    lost: str
    replaces: bool = False
    is_news: Callable[[Any], bool] | None


class _Away(Exception):  # noqa: N818 - never seen outside
    """Redis was unreachable for the work of a verb. Its invalidation may be pending nevertheless."""


SET = Verb(
    off=None,
    away=None,
    lost="not everything is stored, and older values are invalidated",
    replaces=True,
    is_news=lambda _: True,
)
ADD = Verb(off=True, away=False, lost="nothing is added, or nobody knows", replaces=True, is_news=bool)
UPDATE = Verb(
    off=MISSING,
    away=MISSING,
    lost="nothing is changed, or nobody knows",
    is_news=lambda value: value is not MISSING,
)
TOUCH = Verb(off=False, away=False, lost="no TTL is changed, or nobody knows", is_news=None)


class ByHand:
    """The verbs of one guard that store and change what is cached.

    Args:
        shared: the state that the engines of the guard share.
        here: the store of this process that replaces Redis.
        writes: publishes invalidations to the other processes.
        registry: finds a codec for a value.
        codec: for all values; None: one for each.
        raises: ``on_unreachable="raise"``.
    """

    def __init__(
        self, shared: Shared, here: Here, writes: Writes, registry: Registry, codec: Codec | None, *, raises: bool
    ) -> None:
        self._shared, self._here, self._writes = shared, here, writes
        self._registry, self._codec, self._raises = registry, codec, raises

    async def set(
        self,
        engine_of: EngineOf,
        values: Mapping[str, Any],
        rules: Rules,
        scope: Scope,
        *,
        tags: tuple[str, ...],
        version: str,
        codec: Codec | None = None,
    ) -> None:
        """Store *values*, by Redis key. Values that Redis did not take are invalidated, so that nothing older stays.

        One round trip for each `MOST_AT_ONCE` of them, in an event loop for each `MOST_IN_A_LOOP`; one more if this
        process does not know the nonces of the namespace and the tags. `CodecError` for a value that can be read only
        once, whatever the state of Redis, and for one that cannot be encoded: its part and those behind it are not
        stored.
        """
        for key, value in values.items():
            refuse(key, value, VALUE)
        codec = codec or self._codec
        codecs = {key: codec or self._registry.for_value(value) for key, value in values.items()}
        failures: list[Unreachable] = []

        async def store(engine: Engine, keys: Sequence[str]) -> None:
            try:
                some = {key: values[key] for key in keys}
                await engine.changes.store(some, rules, codecs, tags, scope, version)
            except Unreachable as error:
                failures.append(error)
                items = [Invalidation(key, version=version) for key in keys]
                await self._writes.write(engine_of(), items, quietly=True)

        async def store_parts(engine: Engine, keys: Sequence[str]) -> None:
            for some in parts(keys, most_at_once(engine.runtime)):
                await store(engine, some)

        async def store_all(engine: Engine) -> None:
            works = [partial(store_parts, engine, keys) for keys in engine.remote.groups(values)]
            await engine.runtime.each(works, engine.remote.abreast)
            if failures:
                raise failures[0]

        if values:
            await self._do(SET, engine_of, list(values), store_all, l2=rules.l2, version=version)

    async def add(
        self, engine_of: EngineOf, key: str, value: Any, rules: Rules, scope: Scope, *, tags: tuple[str, ...]
    ) -> bool:
        """Store *value* if *key* has no fresh entry; True if it was stored."""
        refuse(key, value, VALUE)
        codec = self._codec or self._registry.for_value(value)

        async def add(engine: Engine) -> bool:
            return await engine.changes.add(key, value, rules, codec, tags, scope)

        return bool(await self._do(ADD, engine_of, [key], add, l2=rules.l2))

    async def update(
        self, engine_of: EngineOf, key: str, change: Callable[[Any], Any], rules: Rules, scope: Scope
    ) -> Any:
        """Change a fresh value atomically; returns the new one, `MISSING` if there was none. Two round trips."""

        async def update(engine: Engine) -> Any:
            return await engine.changes.update(key, change, self._codec, scope)

        return await self._do(UPDATE, engine_of, [key], update, l2=rules.l2)

    async def touch(self, engine_of: EngineOf, key: str, rules: Rules, scope: Scope) -> bool:
        """Restart the TTL of a fresh entry; True if there was one. Three round trips."""

        async def touch(engine: Engine) -> bool:
            return await engine.changes.touch(key, rules, scope)

        return bool(await self._do(TOUCH, engine_of, [key], touch, l2=rules.l2))

    async def _do(
        self,
        verb: Verb,
        engine_of: EngineOf,
        keys: Sequence[str],
        work: Callable[[Engine], Awaitable[Any]],
        *,
        l2: bool,
        version: str = "",
    ) -> Any:
        """The rule of all verbs that change what is stored under *keys*.

        - Under `disabled()` nothing is stored.
        - If Redis is unreachable, ``on_unreachable`` decides: `Unreachable` is raised, or the verb's answer returned.
        - With ``l2=False`` the value stays in this process, but the other processes drop their copies. With L2, the
          value of a function with ``l2=False`` under the same key is dropped.
        - If the caller is cancelled, all of this still runs to its end.
        """
        if self._shared.off:
            if verb.replaces:
                await self._writes.write(engine_of(), [Invalidation(key, version=version) for key in keys])
            return verb.off
        engine = engine_of(l2=l2)
        try:
            return await engine.runtime.through(self._done(verb, engine, engine_of, keys, work, l2=l2, version=version))
        except _Away as away:
            if self._raises:
                raise Unreachable(f"Redis cannot be reached: {verb.lost}") from away.__cause__
            return verb.away

    async def _done(
        self,
        verb: Verb,
        engine: Engine,
        engine_of: EngineOf,
        keys: Sequence[str],
        work: Callable[[Engine], Awaitable[Any]],
        *,
        l2: bool,
        version: str,
    ) -> Any:
        if l2 and verb.is_news is not None:
            self._here.forget([Invalidation(key) for key in keys])
            if version:
                self._here.forget([Invalidation(key, version=version) for key in keys])
        try:
            answer = await work(engine)
        except Unreachable as error:
            raise _Away from error
        if not l2 and verb.is_news is not None and verb.is_news(answer):
            await self._writes.elsewhere(engine_of(), keys, version)
        return answer
