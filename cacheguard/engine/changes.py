"""The steps of invalidations and manual writes, under one runtime.

`writes` and `by_hand` decide when these steps run, and what happens if Redis does not answer. They know several
engines (Redis, and the store of this process that replaces it); these steps know one. Hence two modules.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import replace
from inspect import isawaitable
from typing import TYPE_CHECKING, Any

from ..codec.once import refuse
from ..defenses.avalanche import jittered
from ..delivery.outbox import Invalidation
from ..errors import CodecError, Overloaded
from ..missing import MISSING
from ..protocol.entry import Stored, ms
from ..protocol.envelope import Kind, Oversize
from ..protocol.names import Scope
from ..tiers.copies import a_copy
from .lifetimes import marker_ms, stale_window, ttl_of

if TYPE_CHECKING:
    from ..codec import Codec
    from ..policy import Rules
    from ..ports import Runtime
    from ..tiers.entries import Entries
    from .shared import Shared

MOST_ATTEMPTS = 1000  # to change a value that others change, too; each time one of them succeeds
EAGER_ATTEMPTS = 3
LONGEST_PAUSE = 0.02  # seconds between two later ones


class Changes:
    """Invalidates and stores under one runtime.

    Args:
        in_process: values are stored as the objects that they are, not as bytes.

    Raises `Unreachable` if Redis has to answer and does not. An invalidation does not raise: it becomes pending, and
    False is returned.
    """

    def __init__(self, runtime: Runtime, remote: Entries, shared: Shared, *, in_process: bool) -> None:
        self._runtime, self._remote, self._shared, self._in_process = runtime, remote, shared, in_process

    async def _dropping(self, names: Sequence[str], saying: Awaitable[Any]) -> Any:
        """Drop *names* here before and after they are published, even if that fails."""
        self._shared.drop(names)
        try:
            return await saying
        finally:
            self._shared.drop(names)

    # Invalidating

    async def invalidate(self, items: Sequence[Invalidation]) -> bool:
        """Invalidate *items* everywhere; False if they are pending. One round trip."""
        self._shared.events.invalidations += len(items)
        return bool(await self._dropping([item.key for item in items], self._remote.invalidate(items)))

    async def expire(self, keys: Sequence[str]) -> bool:
        """Make *keys* stale; False if that is pending. One round trip."""
        self._shared.events.invalidations += len(keys)
        return bool(await self._dropping(keys, self._remote.expire(keys)))

    async def remove(self, keys: Sequence[str], scope: Scope) -> tuple[bool, int]:
        """Remove *keys* everywhere; returns False if that is pending, and how many Redis held. One round trip."""
        self._shared.events.invalidations += len(keys)
        done, count = await self._dropping(keys, self._remote.remove(keys, scope))
        return bool(done), int(count)

    # Storing

    async def store(
        self,
        values: dict[str, Any],
        rules: Rules,
        codecs: dict[str, Codec],
        tags: tuple[str, ...],
        scope: Scope,
        version: str = "",
    ) -> bool:
        """Store *values* of keys that live in one place; `CodecError` if one of them cannot be stored.

        One round trip; one more if this process does not know the nonces of the namespace and the tags.
        """
        drawn = {key: self._drawn(value, rules, tags) for key, value in values.items()}
        work = self._stored(drawn, rules, codecs, scope, tags, version)
        return bool(await self._dropping(list(values), work))

    def _drawn(self, value: Any, rules: Rules, tags: tuple[str, ...]) -> tuple[Stored, float]:
        """The entry of *value*, and the seconds for which it is fresh."""
        if value is None and rules.null_ttl is not None:
            kind, ttl = Kind.ABSENT, rules.null_ttl
        else:
            kind, ttl = Kind.VALUE, ttl_of(rules, value, self._shared.events)
        fresh = jittered(ttl, rules.jitter, self._runtime.random())
        return Stored(kind, value, fresh, 0.0, tags), fresh

    async def _stored(
        self,
        drawn: dict[str, tuple[Stored, float]],
        rules: Rules,
        codecs: dict[str, Codec],
        scope: Scope,
        tags: tuple[str, ...],
        version: str,
    ) -> bool:
        markers = scope.markers(tags)
        keep_ms = max(marker_ms(rules), *(ms(fresh + rules.stale) for _, fresh in drawn.values()))
        remote = self._remote.of(next(iter(drawn)))
        nonces = remote.markers.last_seen(markers) or await remote.markers.ask(markers, keep_ms)
        limit = math.inf
        while True:
            under = b"".join(nonces[: len(scope.epochs)])
            items: dict[str, tuple[Any, float, float]] = {}
            for key, (stored, fresh) in drawn.items():
                stored.nonces = nonces
                stale = 0.0 if fresh > limit else stale_window(stored, rules)
                items[key] = self._packed(remote, key, stored, codecs[key]), min(fresh, limit), stale
            put = await remote.by_hand.store(items, version, under, markers, keep_ms)
            if put.nonces == nonces and (not put.quarantine or limit < math.inf):
                self._count_absences(drawn.values(), scope, keep_ms)
                await self._remote.elsewhere([Invalidation(key, version=version) for key in items], remote)
                return put.done
            # The stored value is void already, or would outlive a quarantine: store again, under the current markers.
            nonces, limit = put.nonces, put.quarantine or math.inf

    async def add(self, key: str, value: Any, rules: Rules, codec: Codec, tags: tuple[str, ...], scope: Scope) -> bool:
        """Store *value* unless *key* has a usable entry; True if it was stored.

        As many round trips as `store`.
        """
        return bool(await self._dropping([key], self._added(key, self._drawn(value, rules, tags), rules, codec, scope)))

    async def _added(self, key: str, drawn: tuple[Stored, float], rules: Rules, codec: Codec, scope: Scope) -> bool:
        stored, fresh = drawn
        markers = scope.markers(stored.tags)
        keep_ms = max(marker_ms(rules), ms(fresh + rules.stale))
        remote = self._remote.of(key)
        nonces = remote.markers.last_seen(markers) or await remote.markers.ask(markers, keep_ms)
        limit, token, unusable = math.inf, self._runtime.token(), ""
        while True:
            stored = replace(stored, nonces=nonces)
            envelope = self._packed(remote, key, stored, codec)
            stale = 0.0 if fresh > limit else stale_window(stored, rules)
            put = await remote.by_hand.add(
                key,
                envelope,
                min(fresh, limit),
                stale,
                scope=scope,
                token=token,
                unusable=unusable,
                markers=markers,
                keep_ms=keep_ms,
            )
            if put.done and (put.nonces != nonces or (put.quarantine and limit == math.inf)):
                # As in `_stored`: void already, or it would outlive a quarantine.
                nonces, limit, token = put.nonces, put.quarantine or math.inf, self._runtime.token()
                unusable = remote.by_hand.stamp(envelope)
            elif put.done or put.useless is None:
                if put.done:
                    self._count_absences([drawn], scope, keep_ms)
                    await self._remote.elsewhere([Invalidation(key)], remote)
                return put.done
            else:
                unusable = put.useless

    def _count_absences(self, drawn: Iterable[tuple[Stored, float]], scope: Scope, keep_ms: int) -> None:
        for stored, fresh in drawn:
            if stored.kind is Kind.ABSENT:
                markers = map(scope.tag, stored.tags)
                self._shared.put_by_hand(fresh, markers, self._runtime.now(), keep_ms / 1000)

    async def update(self, key: str, change: Callable[[Any], Any], codec: Codec | None, scope: Scope) -> Any:
        """Change the value of *key* atomically, for the rest of its lifetime; returns the new one, or `MISSING`.

        Two round trips; one more each time that another writer was faster.
        """
        return await self._dropping([key], self._updated(key, change, codec, scope))

    async def _updated(self, key: str, change: Callable[[Any], Any], codec: Codec | None, scope: Scope) -> Any:
        remote = self._remote.of(key)
        exact = await remote.by_hand.read_exactly(key, codec, scope)
        for attempt in range(MOST_ATTEMPTS):
            found = exact.found
            if found is None or found.stored is None or found.fresh_left <= 0 or found.stored.kind is Kind.ERROR:
                return MISSING
            stored = found.stored
            value = self._changed(key, change, stored)
            changed = replace(stored, kind=Kind.VALUE, value=value, weight=0, master=None)
            # Packed by its own codec: the entry of a function stays readable for the function.
            envelope = self._packed(remote, key, changed, codec)
            replaced = await remote.by_hand.replace(
                key, envelope, exact.stamp, codec=codec, scope=scope, token=self._runtime.token()
            )
            if replaced.done:
                await self._remote.elsewhere([Invalidation(key)], remote)
                return value
            exact = replaced.there
            if attempt >= EAGER_ATTEMPTS:
                await self._runtime.sleep(self._runtime.random() * min(0.001 * attempt, LONGEST_PAUSE))
        raise Overloaded(f"{key} was changed by others {MOST_ATTEMPTS} times while it was to be updated")

    def _packed(self, remote: Any, key: str, stored: Stored, codec: Codec | None) -> Any:
        try:
            return remote.pack(key, stored, codec)
        except Oversize:
            self._shared.events.oversize += 1
            raise

    def _changed(self, key: str, change: Callable[[Any], Any], stored: Stored) -> Any:
        """The new value. *change* may change the one that it gets in place: it gets one of its own.

        one change:  gets 1 ... makes it 2 in place .......... stores it
        another:                       reads 2, stores 3: its stamp is that of the same object
        """
        value = stored.own()
        if self._in_process and stored.master is None:
            try:
                value = a_copy(value)
            except CodecError as error:
                raise CodecError(f"{key} cannot be updated: {error}") from error
        made = change(value)
        if isawaitable(made):
            close = getattr(made, "close", None) or getattr(made, "cancel", None)
            if close is not None:
                close()
            raise TypeError(f"change must be a plain function of the value, got {change!r}, which returns an awaitable")
        refuse(key, made, "the changed value")
        return made

    async def touch(self, key: str, rules: Rules, scope: Scope) -> bool:
        """Restart the TTL of a fresh entry; True if there was one. Three round trips."""
        return bool(await self._dropping([key], self._touched(key, rules, scope)))

    async def _touched(self, key: str, rules: Rules, scope: Scope) -> bool:
        remote = self._remote.of(key)
        # Only a function of the value needs the value, which may be of a type that this process cannot read.
        of_value = callable(rules.ttl)
        found = await (remote.read(key, None, scope, ()) if of_value else remote.look(key, scope))
        if found is None or found.stored is None or found.fresh_left <= 0:
            return False
        stored = found.stored
        ttl = ttl_of(rules, stored.own(), self._shared.events) if stored.kind is Kind.VALUE else rules.null_ttl
        if ttl is None:
            return False
        fresh = jittered(ttl, rules.jitter, self._runtime.random())
        window = stale_window(stored, rules)
        keep_ms = max(marker_ms(rules), ms(fresh + window))
        return await remote.by_hand.touch(key, fresh, window, scope.markers(stored.tags), keep_ms)
