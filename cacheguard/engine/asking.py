"""`get_or_set` and `get_or_set_many`: return cached values and load missing ones (`Engine.read`, `Batch.read`)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from inspect import isawaitable
from typing import TYPE_CHECKING, Any

from .ask import Ask, opened, stored_of
from .batch import Batch

if TYPE_CHECKING:
    from ..codec import Codec
    from ..policy import Rules
    from ..protocol.names import Scope
    from .auditing import Auditor
    from .reading import Engine
    from .shared import Shared

EngineOf = Callable[..., "Engine"]  # of the caller's runtime: with ``l2=False`` the one that works in this process


class Asking:
    """Asks for the callers of one guard, whichever engine they have.

    Args:
        shared: the state that the engines of the guard share.
        auditor: compares a share of the hits with the loader's result; None: no audit.
    """

    def __init__(self, shared: Shared, auditor: Auditor | None) -> None:
        self._shared, self._local, self._auditor = shared, shared.local, auditor

    async def one(self, engine_of: EngineOf, ask: Ask) -> Any:
        """The value of *ask*. No round trip for a hit in L1."""
        rules = ask.rules
        if self._shared.off:
            return await engine_of(l2=rules.l2).runtime.call(ask.load)
        entry = self._local.alive(ask.key) if rules.l1 else None
        if entry is None or not (ask.usable is None or ask.takes(stored_of(entry))):
            return await engine_of(l2=rules.l2).read(ask)
        stored = stored_of(entry)
        answer = opened(stored, rules)
        if self._auditor is not None:
            await self._auditor.consider(engine_of(l2=rules.l2), ask, stored.copy())
        return answer

    async def many(
        self,
        engine_of: EngineOf,
        names: Sequence[str],
        loader: Callable[[list[str]], Any],
        rules: Rules,
        scope: Scope,
        *,
        tags: tuple[str, ...],
        version: Callable[[Any], Any] | None,
        codec: Codec | None,
    ) -> dict[str, Any]:
        """The values of all *names*. At most three round trips, whatever their number."""
        engine = engine_of(l2=rules.l2)
        if self._shared.off:
            loaded = await engine.runtime.call(lambda: loader(list(names)))
            return {name: loaded.get(name) for name in names}
        values: dict[str, Any] = {}
        asks: dict[str, Ask] = {}
        by_key: dict[str, str] = {}
        for name in names:
            key = scope.key(name)
            entry = self._local.alive(key) if rules.l1 else None
            if entry is not None:
                values[name] = opened(stored_of(entry), rules)
            else:
                asks[key] = Ask(key, rules, codec, _loader_of_one(loader, name), tags, scope, version)
                by_key[key] = name
        if asks:
            for key, value in (await Batch(engine, asks, by_key, loader).read()).items():
                values[by_key[key]] = value
        return {name: values[name] for name in names}

    def alone_when(self, asked: Callable[[], object]) -> Callable[[], None]:
        """Also call *asked*: if it returns True, the caller's loads are not shared. Returns a function to undo this."""
        shared = self._shared
        shared.questions = (*shared.questions, asked)

        def end() -> None:
            shared.questions = tuple(each for each in shared.questions if each is not asked)

        return end


def _loader_of_one(loader: Callable[[list[str]], Any], name: str) -> Callable[[], Any]:
    """The loader of many keys as a loader of one, for a key that is read alone."""

    def one() -> Any:
        loaded = loader([name])
        return _picked(loaded, name) if isawaitable(loaded) else loaded.get(name)

    return one


async def _picked(loaded: Any, name: str) -> Any:
    return (await loaded).get(name)
