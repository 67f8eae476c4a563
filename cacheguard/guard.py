"""`CacheGuard`: one object, two doors. A hit in the process is answered here, everything else by the engine."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from os import PathLike
from types import TracebackType
from typing import Any, Literal, ParamSpec, Self, TypeVar, Unpack, cast, overload

from .checks import check_change, check_loader, check_usable, question, tags_of, texts
from .defenses.consistency import Version, version_text
from .delivery.outbox import Invalidation
from .doors.bloom import BloomFilter
from .doors.feed import Change, invalidations
from .doors.methods import decorator
from .doors.shapes import CachedCoroutineFunction, CachedFunction, Decorator
from .doors.warming import Progress, Warmed, warm
from .doors.writing import (
    DELAY,
    INTENT,
    Mode,
    OfResult,
    WriteTerms,
    Writing,
    decorate_writes,
    named,
    settle_seconds,
)
from .durations import Duration, seconds
from .engine.ask import Ask
from .engine.looking import Inspection, scan
from .events import StateChange, Stats
from .options import Options, Policies
from .policy import Policy, PolicyOptions
from .process.hub import Hub
from .protocol.envelope import DEFAULT_COMPRESS_ABOVE, DEFAULT_MAX_VALUE_BYTES
from .protocol.names import namespace_scope
from .runtime import run_now
from .tiers.local import Eviction

P = ParamSpec("P")
R = TypeVar("R")


class CacheGuard:
    """A two-tier cache that keeps the database up.

    Args:
        url: ``memory://`` (this process alone), ``redis://``, ``unix://``, ``redis+sentinel://`` or
            ``redis+cluster://``, with TLS ``rediss…``, and redis-py's options behind a ``?``; the environment's
            ``CACHEGUARD_URL`` if left out, else ``memory://``.
        client: a `redis.Redis` of yours instead; its settings are used, it is never closed.
        aclient: a `redis.asyncio.Redis` of yours, for coroutines.
        namespace: what this guard's keys begin with in Redis.
        policy: the defaults of everything cached here.
        l1_size: most entries in the process.
        l1_max_bytes: most bytes in the process, estimated; None: no bound beside `l1_size`.
        l1_eviction: which entry leaves when there is no room: ``"lru"`` (with second chance), ``"lfu"``, ``"fifo"``,
            ``"random"``.
        l1_copy: give every caller a copy of its own; costs a deep copy for each hit on a mutable value.
        serializer: an object with ``dumps`` and ``loads`` instead of the typed, safe encoding. One that runs what it
            reads, such as `pickle`, should have a `secret` beside it; without one, that is warned about.
        secret: 16 bytes or more, or several of them (the first signs); entries are signed with HMAC-SHA256, and
            unsigned ones are misses.
        max_value_bytes: largest encoded value that is stored, and to which one may be inflated.
        compression: ``"auto"``, ``"zstd"``, ``"lz4"``, ``"zlib"`` or None.
        compress_above: bytes from which on a value is compressed.
        operation_timeout: seconds for one round trip to Redis; nothing is retried behind it.
        max_loads: loads at once in this process; more wait in line.
        load_wait: how long they wait before `Overloaded`.
        load_queue: how many may wait; who comes when there are so many gets `Overloaded` at once.
        max_absences: absences that this process may have in Redis at a time; beyond, an absence is answered and not
            stored, so random ids cannot fill Redis.
        on_unreachable: ``"queue"``: an invalidation that Redis does not acknowledge is queued and delivered before
            anything else is asked; ``"raise"``: that, and `Unreachable` is raised.
        read_from: ``"replica"``: what may be in L1 (``l1=True``) is read from the replicas of a Sentinel group or a
            cluster, where their answer is fresh beyond doubt and contains all that this process has heard of: the
            guarantee is that of another process's L1. What they do not have costs one round trip more. Leases, fills,
            invalidations and functions with ``l1=False`` go to the master. One small write a second for each master.
        outbox: an SQLite file for that queue, so that it outlives the process; written only while Redis does not
            acknowledge. Processes may share it. None: the queue lives in memory.
        alone: asked before every load, without parameters: where it says yes, the load is its caller's own. It takes no
            lease, nobody else joins it, and no tier keeps what it brings. For callers inside a database transaction,
            who may see what nobody else may. Hits are served as ever. None: never.
        audit: the share of hits, from 0 to 1, that are compared with what the loader says, behind the caller;
            `Stats.audits` and `Stats.audits_different` count them. Each costs a load, two if they differ.
        on_state_change: called with a `StateChange` when Redis, the invalidation bus or a breaker of Redis changes its
            state, in whichever thread notices it: it must be quick, and what it raises is logged once. None: nobody.

    Raises:
        ConfigurationError: an option that cannot work, by its name.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        client: Any = None,
        aclient: Any = None,
        namespace: str = "cacheguard",
        policy: Policy | None = None,
        l1_size: int = 10_000,
        l1_max_bytes: int | None = None,
        l1_eviction: Eviction = "lru",
        l1_copy: bool = False,
        serializer: Any = None,
        secret: bytes | Sequence[bytes] | None = None,
        max_value_bytes: int = DEFAULT_MAX_VALUE_BYTES,
        compression: str | None = "auto",
        compress_above: int = DEFAULT_COMPRESS_ABOVE,
        operation_timeout: Duration = 0.2,
        max_loads: int = 64,
        load_wait: Duration = "1s",
        load_queue: int = 1000,
        max_absences: int = 100_000,
        on_unreachable: Literal["queue", "raise"] = "queue",
        read_from: Literal["master", "replica"] = "master",
        outbox: str | PathLike[str] | None = None,
        alone: Callable[[], object] | None = None,
        audit: float = 0.0,
        on_state_change: Callable[[StateChange], object] | None = None,
    ) -> None:
        options = Options.of(
            l1_size=l1_size,
            l1_max_bytes=l1_max_bytes,
            l1_eviction=l1_eviction,
            l1_copy=l1_copy,
            serializer=serializer,
            secret=secret,
            max_value_bytes=max_value_bytes,
            compression=compression,
            compress_above=compress_above,
            operation_timeout=operation_timeout,
            max_loads=max_loads,
            load_wait=load_wait,
            load_queue=load_queue,
            max_absences=max_absences,
            on_unreachable=on_unreachable,
            read_from=read_from,
            outbox=outbox,
            alone=alone,
            audit=audit,
            on_state_change=on_state_change,
        )
        self._names: tuple[str, ...] = (namespace,)
        self._scope = namespace_scope(self._names)
        self._policies = Policies(policy)
        self._rules = self._policies.rules
        self._hub = Hub(options, namespace, url, client, aclient)

    def __repr__(self) -> str:
        return f"<CacheGuard {'/'.join(self._names)!r} at {self._hub.where}>"

    def namespace(self, name: str, policy: Policy | None = None) -> Self:
        """A guard for keys of its own on the same tiers; *policy* goes over this guard's."""
        child = object.__new__(type(self))
        child._names = (*self._names, name)
        child._scope = namespace_scope(child._names)
        child._policies = Policies(policy, self._policies.policy)
        child._rules = child._policies.rules
        child._hub = self._hub
        return child

    # Decorating

    @overload
    def cached(  # type: ignore[overload-overlap]  # a coroutine function is a function, too: the first match counts
        self, key: Callable[P, Coroutine[Any, Any, R]], /
    ) -> CachedCoroutineFunction[P, R]: ...

    @overload
    def cached(self, key: Callable[P, R], /) -> CachedFunction[P, R]: ...

    @overload
    def cached(
        self,
        key: str | None = None,
        *,
        tags: Sequence[str] = (),
        version: Callable[[Any], Any] | None = None,
        bloom: BloomFilter | None = None,
        bloom_item: str | None = None,
        validate: Callable[..., object] | None = None,
        **policy: Unpack[PolicyOptions],
    ) -> Decorator: ...

    def cached(
        self,
        key: Any = None,
        *,
        tags: Sequence[str] = (),
        version: Callable[[Any], Any] | None = None,
        bloom: BloomFilter | None = None,
        bloom_item: str | None = None,
        validate: Callable[..., object] | None = None,
        **policy: Any,
    ) -> Any:
        """Cache what a function returns, ``def`` or ``async def``.

        Args:
            key: template over the function's parameters, like ``"user:{user_id}"``; without one, module, name and all
                arguments with their types.
            tags: templates of tags, like ``"org:{org_id}"``.
            version: a function of the value that gives its source version (a row version, a log position, an aware
                datetime); what is older than a version known to have been written is not cached.
            bloom: answers calls whose item it knows to be absent.
            bloom_item: template of that item; may be left out for a function of one parameter.
            validate: a function of the same parameters; where it says no, the answer is "absent", without a load.
            policy: fields of `Policy`, over the guard's own.

        The wrapper keeps signature and types and carries ``invalidate``, ``expire``, ``refresh``, ``peek``, ``put``,
        ``key`` and ``many``, each with the call's own arguments.

        Raises:
            KeyTemplateError: a template that does not fit the function.
            ConfigurationError: an option that cannot work.
        """
        if callable(key):
            return self.cached()(key)
        return decorator(
            self._hub,
            self._scope,
            self._policies.of(policy),
            key,
            tags=tags,
            version=version,
            bloom=bloom,
            bloom_item=bloom_item,
            validate=validate,
        )

    def bloom(
        self,
        name: str,
        *,
        capacity: int,
        error_rate: float = 0.001,
        mirror_lease: Duration | None = "50ms",
    ) -> BloomFilter:
        """A Bloom filter in front of the loader, shared by all processes that name it alike.

        Args:
            name: which filter.
            capacity: items it is made for (1 to 2**32); it grows when there are more.
            error_rate: share of absent items that it takes for maybe present, in (0, 1).
            mirror_lease: how long this process may answer "absent" without asking Redis, and how long an `add` waits at
                most; None: every "absent" costs one round trip and an `add` never waits.

        Nothing is read or written before it is first used.
        """
        lease = None if mirror_lease is None else seconds(mirror_lease, "mirror_lease")
        return BloomFilter(self._hub, self._hub.filter(self._names, name, capacity, error_rate, lease))

    # Reading

    def get(self, key: str, default: Any = None) -> Any:
        """The value of *key*, or *default* if there is none that may be served. At most one round trip."""
        redis_name, rules, hub = self._scope.key(key), self._rules, self._hub
        entry = hub.local.alive(redis_name) if rules.l1 else None
        if entry is not None:
            return hub.looking.value_in(entry, default)
        return run_now(hub.looking.get(hub.blocking(l2=rules.l2), redis_name, default, rules, self._scope))

    async def aget(self, key: str, default: Any = None) -> Any:
        """`get`, to be awaited."""
        redis_name, rules, hub = self._scope.key(key), self._rules, self._hub
        entry = hub.local.alive(redis_name) if rules.l1 else None
        if entry is not None:
            return hub.looking.value_in(entry, default)
        return await hub.looking.get(hub.running(l2=rules.l2), redis_name, default, rules, self._scope)

    def at_hand(self, key: str, default: Any = None) -> Any:
        """The value of *key* if this process has it, else *default*. No round trip, and nothing to await."""
        return self._hub.looking.at_hand(self._scope.key(key), default, self._rules)

    def get_or_set(
        self,
        key: str,
        loader: Callable[[], Any],
        *,
        tags: Sequence[str] = (),
        version: Callable[[Any], Any] | None = None,
        usable: Callable[[Any], bool] | None = None,
        returns: Any = None,
        bounded: bool = True,
        **policy: Unpack[PolicyOptions],
    ) -> Any:
        """The value of *key*, loaded by *loader* if there is none. No round trip for a hit in the process.

        Args:
            key: key text.
            loader: a function without parameters; it may add tags by `current_load`.
            tags: texts that `invalidate_tags` takes.
            version: a function of the loaded value that gives its source version; what is older than a version known
                to have been written is not cached.
            usable: a function of the cached value; where it says no, the value counts as missing, and one caller in the
                fleet loads anew. What is loaded then is not asked about.
            returns: the type of what is loaded, as an annotation would say it, or a function whose annotation says it;
                values come back as that. None: whatever can be told from the value.
            bounded: whether the load counts among ``max_loads``; False for one that only waits for work whose number is
                bounded elsewhere.
            policy: fields of `Policy`, over the guard's own.
        """
        ask = self._ask(
            key, loader, policy, tags=tags, version=version, usable=usable, returns=returns, bounded=bounded
        )
        return run_now(self._hub.asking.one(self._hub.blocking, ask))

    async def aget_or_set(
        self,
        key: str,
        loader: Callable[[], Any],
        *,
        tags: Sequence[str] = (),
        version: Callable[[Any], Any] | None = None,
        usable: Callable[[Any], bool] | None = None,
        returns: Any = None,
        bounded: bool = True,
        **policy: Unpack[PolicyOptions],
    ) -> Any:
        """`get_or_set`, to be awaited; *loader* may be a coroutine function."""
        ask = self._ask(
            key, loader, policy, tags=tags, version=version, usable=usable, returns=returns, bounded=bounded
        )
        return await self._hub.asking.one(self._hub.running, ask)

    def _ask(
        self,
        key: str,
        loader: Callable[[], Any],
        policy: PolicyOptions,
        tags: Sequence[str],
        version: Callable[[Any], Any] | None,
        *,
        usable: Callable[[Any], bool] | None,
        returns: Any,
        bounded: bool,
    ) -> Ask:
        check_loader(loader)
        check_usable(usable)
        rules = self._policies.of(cast("dict[str, Any]", policy))
        codec = self._hub.options.codec
        if codec is None and returns is not None:
            codec = self._hub.registry.returned(returns)
        return Ask(self._scope.key(key), rules, codec, loader, tags_of(tags), self._scope, version, usable, bounded)

    def get_many(self, keys: Iterable[str]) -> dict[str, Any]:
        """The values of those of *keys* that have one. At most one round trip."""
        hub = self._hub
        return run_now(hub.looking.get_many(hub.blocking, texts(keys), self._rules, self._scope))

    async def aget_many(self, keys: Iterable[str]) -> dict[str, Any]:
        """`get_many`, to be awaited."""
        hub = self._hub
        return await hub.looking.get_many(hub.running, texts(keys), self._rules, self._scope)

    def get_or_set_many(
        self,
        keys: Iterable[str],
        loader: Callable[[list[str]], Any],
        *,
        tags: Sequence[str] = (),
        version: Callable[[Any], Any] | None = None,
        **policy: Unpack[PolicyOptions],
    ) -> dict[str, Any]:
        """The values of all *keys*; *loader* gets a list of those that are missing and returns a dict.

        What the dict leaves out is an absence, and None in the answer. Keys that another call in this process is
        loading are waited for. Three round trips at most, whatever the number of keys.
        """
        return run_now(self._ask_many(self._hub.blocking, keys, loader, policy, tags, version))

    async def aget_or_set_many(
        self,
        keys: Iterable[str],
        loader: Callable[[list[str]], Any],
        *,
        tags: Sequence[str] = (),
        version: Callable[[Any], Any] | None = None,
        **policy: Unpack[PolicyOptions],
    ) -> dict[str, Any]:
        """`get_or_set_many`, to be awaited; *loader* may be a coroutine function."""
        return await self._ask_many(self._hub.running, keys, loader, policy, tags, version)

    def _ask_many(
        self,
        engine_of: Callable[..., Any],
        keys: Iterable[str],
        loader: Callable[[list[str]], Any],
        policy: PolicyOptions,
        tags: Sequence[str],
        version: Callable[[Any], Any] | None,
    ) -> Coroutine[Any, Any, dict[str, Any]]:
        check_loader(loader)
        return self._hub.asking.many(
            engine_of,
            texts(keys),
            loader,
            self._policies.of(cast("dict[str, Any]", policy)),
            self._scope,
            tags=tags_of(tags),
            version=version,
            codec=self._hub.options.codec,
        )

    def inspect(self, key: str) -> Inspection:
        """What is cached for *key*, and where; counts as no hit. At most one round trip."""
        engine = self._hub.blocking(l2=self._rules.l2)
        return run_now(self._hub.looking.inspect(engine, self._scope.key(key), self._rules, self._scope))

    async def ainspect(self, key: str) -> Inspection:
        """`inspect`, to be awaited."""
        engine = self._hub.running(l2=self._rules.l2)
        return await self._hub.looking.inspect(engine, self._scope.key(key), self._rules, self._scope)

    # Writing

    def set(
        self,
        key: str,
        value: Any,
        *,
        tags: Sequence[str] = (),
        version: Version | None = None,
        **policy: Unpack[PolicyOptions],
    ) -> None:
        """Store *value*; the last writer wins, and a load under way may no longer fill. One round trip.

        With a *version* the newest one wins: a value that is older than a version known of the key is not stored. The
        first time that this process stores under a tag, it costs one round trip more. Raises `CodecError` if the value
        has no bytes.
        """
        self.set_many({key: value}, tags=tags, version=version, **policy)

    async def aset(
        self,
        key: str,
        value: Any,
        *,
        tags: Sequence[str] = (),
        version: Version | None = None,
        **policy: Unpack[PolicyOptions],
    ) -> None:
        """`set`, to be awaited."""
        await self.aset_many({key: value}, tags=tags, version=version, **policy)

    def set_many(
        self,
        values: Mapping[str, Any],
        *,
        tags: Sequence[str] = (),
        version: Version | None = None,
        **policy: Unpack[PolicyOptions],
    ) -> None:
        """`set` for several keys, in one round trip."""
        run_now(self._set(self._hub.blocking, values, tags, version, policy))

    async def aset_many(
        self,
        values: Mapping[str, Any],
        *,
        tags: Sequence[str] = (),
        version: Version | None = None,
        **policy: Unpack[PolicyOptions],
    ) -> None:
        """`set_many`, to be awaited."""
        await self._set(self._hub.running, values, tags, version, policy)

    def _set(
        self,
        engine_of: Callable[..., Any],
        values: Mapping[str, Any],
        tags: Sequence[str],
        version: Version | None,
        policy: PolicyOptions,
    ) -> Coroutine[Any, Any, None]:
        return self._hub.by_hand.set(
            engine_of,
            {self._scope.key(name): value for name, value in values.items()},
            self._policies.of(cast("dict[str, Any]", policy)),
            self._scope,
            tags=tags_of(tags),
            version=version_text(version),
        )

    def add(self, key: str, value: Any, *, tags: Sequence[str] = (), **policy: Unpack[PolicyOptions]) -> bool:
        """Store *value* if there is nothing fresh under *key*, in one step. One round trip, as a rule.

        Args:
            key: key text.
            value: what to store.
            tags: texts that `invalidate_tags` takes.
            policy: fields of `Policy`, over the guard's own.

        Returns:
            Whether it was stored: of several who add at the same time, one is told so. False also while a write to the
            key is announced, and if Redis cannot be asked.

        Raises `CodecError` if the value has no bytes.
        """
        rules, name = self._policies.of(cast("dict[str, Any]", policy)), self._scope.key(key)
        engine_of = self._hub.blocking
        return run_now(self._hub.by_hand.add(engine_of, name, value, rules, self._scope, tags=tags_of(tags)))

    async def aadd(self, key: str, value: Any, *, tags: Sequence[str] = (), **policy: Unpack[PolicyOptions]) -> bool:
        """`add`, to be awaited."""
        rules, name = self._policies.of(cast("dict[str, Any]", policy)), self._scope.key(key)
        engine_of = self._hub.running
        return await self._hub.by_hand.add(engine_of, name, value, rules, self._scope, tags=tags_of(tags))

    def update(self, key: str, change: Callable[[Any], Any]) -> Any:
        """Change a fresh value in one step, among all processes; its TTL and its tags stay. Two round trips.

        Args:
            key: key text.
            change: a plain function of the value that returns the new one, like ``lambda count: count + 1``; it is
                called again, with what is there by then, if somebody else was faster (one round trip more each time).

        Returns:
            The new value; `MISSING` if there was none, or if Redis cannot be asked.

        Raises what *change* raises; `CodecError` if the new value has no bytes; `Overloaded` if others were faster a
        thousand times.
        """
        check_change(change)
        engine_of, name = self._hub.blocking, self._scope.key(key)
        return run_now(self._hub.by_hand.update(engine_of, name, change, self._rules, self._scope))

    async def aupdate(self, key: str, change: Callable[[Any], Any]) -> Any:
        """`update`, to be awaited; goes on to its end if it is cancelled."""
        check_change(change)
        engine_of, name = self._hub.running, self._scope.key(key)
        return await self._hub.by_hand.update(engine_of, name, change, self._rules, self._scope)

    def remove(self, *keys: str) -> int:
        """`invalidate` *keys*, and say how many of them there were. One round trip for a thousand of them.

        Of several who remove a key at the same time, one counts it. 0 if Redis does not acknowledge it; it is queued
        then, or `Unreachable` is raised, as `invalidate` does.
        """
        names = [self._scope.key(key) for key in texts(keys)]
        engine_of, l2 = self._hub.blocking, self._rules.l2
        return run_now(self._hub.writes.remove(engine_of, names, self._scope, l2=l2))

    async def aremove(self, *keys: str) -> int:
        """`remove`, to be awaited; goes on to its end if it is cancelled."""
        names = [self._scope.key(key) for key in texts(keys)]
        engine_of, l2 = self._hub.running, self._rules.l2
        return await self._hub.writes.remove(engine_of, names, self._scope, l2=l2)

    def scan(self, match: str = "*", *, cursor: str = "", count: int = 1000) -> tuple[list[str], str]:
        r"""The key texts of this namespace's fresh entries, one page of them. Two round trips.

        What is there from the first page to the last is in one of them, or in several; whatever comes or goes meanwhile
        may be. Keys that are stored under a digest (longer than 250 characters, or with characters beside printable
        ASCII) are not listed. Nothing but Redis is asked.

        Args:
            match: as Redis understands it: ``*``, ``?``, ``[a-c]``, ``\*``.
            cursor: what came with the page before; ``""`` for the first.
            count: about how many keys to look at, not to find.

        Returns:
            Key texts, and the cursor of the next page, ``""`` after the last.

        Raises:
            Unreachable: Redis cannot be asked.
        """
        return run_now(scan(self._hub.blocking(l2=self._rules.l2), self._scope, match, cursor, count))

    async def ascan(self, match: str = "*", *, cursor: str = "", count: int = 1000) -> tuple[list[str], str]:
        """`scan`, to be awaited."""
        return await scan(self._hub.running(l2=self._rules.l2), self._scope, match, cursor, count)

    def touch(self, key: str, **policy: Unpack[PolicyOptions]) -> bool:
        """Give a fresh entry a new TTL; whether there was one. Two round trips.

        False also if Redis cannot be asked, unless the guard was made with ``on_unreachable="raise"``: then it raises
        `Unreachable`.
        """
        rules, name = self._policies.of(cast("dict[str, Any]", policy)), self._scope.key(key)
        return run_now(self._hub.by_hand.touch(self._hub.blocking, name, rules, self._scope))

    async def atouch(self, key: str, **policy: Unpack[PolicyOptions]) -> bool:
        """`touch`, to be awaited."""
        rules, name = self._policies.of(cast("dict[str, Any]", policy)), self._scope.key(key)
        return await self._hub.by_hand.touch(self._hub.running, name, rules, self._scope)

    def invalidate(self, *keys: str, version: Version | None = None, settle: Duration | None = None) -> None:
        """Remove *keys* everywhere. A load that began before this returned fills no tier afterwards. One round trip.

        Args:
            keys: key texts.
            version: the source version that the rows have now; what is older is not cached for five minutes, and an
                entry that is known to be as new stays.
            settle: how far the database that loaders read may lag behind; what is cached within that time dies at its
                end. None: not at all.

        Raises `Unreachable` if Redis does not acknowledge it and the guard was made with ``on_unreachable="raise"``.
        """
        run_now(self._hub.writes.write(self._hub.blocking(), named(self._scope, keys, (), version, settle)))

    async def ainvalidate(self, *keys: str, version: Version | None = None, settle: Duration | None = None) -> None:
        """`invalidate`, to be awaited; goes on to its end if it is cancelled."""
        await self._hub.writes.write(self._hub.running(), named(self._scope, keys, (), version, settle))

    def invalidate_tags(self, *tags: str, settle: Duration | None = None) -> None:
        """Remove every entry of this namespace that has one of *tags*, everywhere. One round trip, however many.

        A load that began before this returned never counts as fresh, even if it names the tag only at its end.

        Args:
            tags: texts, as given to ``tags=`` or `current_load`.
            settle: as in `invalidate`.
        """
        run_now(self._hub.writes.write(self._hub.blocking(), named(self._scope, (), tags, None, settle)))

    async def ainvalidate_tags(self, *tags: str, settle: Duration | None = None) -> None:
        """`invalidate_tags`, to be awaited; goes on to its end if it is cancelled."""
        await self._hub.writes.write(self._hub.running(), named(self._scope, (), tags, None, settle))

    def clear(self) -> None:
        """Remove every entry of this namespace and of those inside it, everywhere. One round trip, however many.

        Nothing is scanned: the entries can no longer be read from now on, and leave Redis with their TTLs.
        """
        run_now(self._hub.writes.write(self._hub.blocking(), [Invalidation(self._scope.epochs[-1])]))

    async def aclear(self) -> None:
        """`clear`, to be awaited; goes on to its end if it is cancelled."""
        await self._hub.writes.write(self._hub.running(), [Invalidation(self._scope.epochs[-1])])

    def apply(self, changes: Iterable[Change | tuple[str, Version | None]], *, settle: Duration | None = None) -> int:
        """Invalidate what a change feed reports; events may be repeated and out of order.

        An entry that was filled with a version as new as the event's stays; one that is older, or has none, goes. Older
        fills are refused for five minutes. One round trip for a thousand changes.

        Args:
            changes: `Change` objects, or pairs of key text and version.
            settle: as in `invalidate`.

        Returns:
            How many keys and tags were concerned.
        """
        items = invalidations(self._scope, changes, round(settle_seconds(settle) * 1000))
        return run_now(self._hub.writes.apply(self._hub.blocking(), items))

    async def aapply(
        self, changes: Iterable[Change | tuple[str, Version | None]], *, settle: Duration | None = None
    ) -> int:
        """`apply`, to be awaited."""
        items = invalidations(self._scope, changes, round(settle_seconds(settle) * 1000))
        return await self._hub.writes.apply(self._hub.running(), items)

    def writing(
        self,
        *keys: str,
        tags: Sequence[str] = (),
        mode: Mode = "fence",
        settle: Duration | None = None,
        version: Version | None = None,
        delay: Duration = DELAY,
        intent: Duration = INTENT,
    ) -> Writing:
        """Guard a write to the database: ``with guard.writing("user:42") as write:``, or ``async with``.

        What is named is invalidated when the block ends, on an exception and on cancellation, too.

        Args:
            keys: key texts.
            tags: tags; they are invalidated at the beginning and at the end, but not fenced.
            mode: ``"fence"``: from the beginning of the block to its end nothing is cached under the keys, so no reader
                gets an older value from COMMIT on, and the death of this process changes nothing (two round trips).
                ``"delete"``: invalidated at the end (one). ``"double"``: at the beginning and at the end, and what is
                cached within *delay* after that dies then (two).
            settle: how far the database that loaders read may lag behind; what is cached within that time after the
                block dies at its end. None: not at all.
            version: the source version that the rows will have; may be set on the block's `Write` later.
            delay: of ``mode="double"``.
            intent: how long a fence stands if this process dies; must be longer than a transaction goes on after its
                client is gone. It is renewed while the block runs.

        Raises `ConfigurationError`, `TypeError` or `ValueError` here for what cannot work; `Unreachable` at the end of
        the block if Redis does not acknowledge it and the guard was made with ``on_unreachable="raise"``.
        """
        return Writing(self._hub, self._scope, keys, tags, version, WriteTerms(mode, settle, delay, intent))

    def invalidates(
        self,
        *keys: str | OfResult,
        tags: Sequence[str | OfResult] = (),
        mode: Mode = "fence",
        settle: Duration | None = None,
        version: Callable[[Any], Version | None] | None = None,
        delay: Duration = DELAY,
        intent: Duration = INTENT,
    ) -> Callable[[Callable[P, R]], Callable[P, R]]:
        """Decorate a function that writes, ``def`` or ``async def``: its call is a `writing` block.

        Args:
            keys: templates over the parameters, like ``"user:{user_id}"``, and over ``result``, what the function
                returned, like ``"user:{result.id}"``; or functions of the result that return key texts. What depends on
                the result is invalidated at the end only, and not if the function raised.
            tags: likewise.
            mode: as in `writing`.
            settle: as in `writing`.
            version: a function of the result that gives the source version of what was written.
            delay: as in `writing`.
            intent: as in `writing`.

        Raises:
            KeyTemplateError: a template that does not fit the function.
            ConfigurationError: an option that cannot work.
        """
        terms = WriteTerms(mode, settle, delay, intent)

        def open_write(keys: list[str], tags: list[str]) -> Writing:
            return Writing(self._hub, self._scope, keys, tags, None, terms)

        return decorate_writes(open_write, keys, tags, version, called="guard.invalidates")

    def expire(self, *keys: str) -> None:
        """Make *keys* stale: the old value is still there for when the load is slow or fails. One round trip."""
        names = [self._scope.key(key) for key in texts(keys)]
        run_now(self._hub.writes.expire(self._hub.blocking(), names))

    async def aexpire(self, *keys: str) -> None:
        """`expire`, to be awaited."""
        names = [self._scope.key(key) for key in texts(keys)]
        await self._hub.writes.expire(self._hub.running(), names)

    # Running

    def load_alone_when(self, alone: Callable[[], object]) -> Callable[[], None]:
        """Ask *alone*, too, before every load, like the option of that name; for what is set up after the guard.

        Args:
            alone: a plain function without parameters; where it says yes, the load is its caller's own. Of this guard
                and all its namespaces.

        Returns:
            A function that ends it. No round trip.
        """
        return self._hub.asking.alone_when(question("alone", alone))

    def warm(
        self,
        fn: Callable[..., Any],
        calls: Iterable[Any],
        *,
        rate: float | None = None,
        progress: Progress | None = None,
        concurrency: int = 8,
    ) -> Warmed:
        """Call a cached function for many arguments, so that they are cached before they are wanted.

        Args:
            fn: a function decorated by this guard.
            calls: tuples of arguments, or the bare value of the only parameter.
            rate: loads started per second at most; None: no bound.
            progress: called with the calls done and their number (None if it is not known), from one thread at a time.
            concurrency: calls at once, in threads of their own.

        A load that fails is counted, not raised. Their TTLs are jittered, so they will not expire together.
        """
        engine, lock = self._hub.blocking(l2=self._rules.l2), self._hub.new_lock()
        return run_now(
            warm(engine.runtime, lock, fn, calls, rate=rate, progress=progress, concurrency=concurrency, is_async=False)
        )

    async def awarm(
        self,
        fn: Callable[..., Any],
        calls: Iterable[Any],
        *,
        rate: float | None = None,
        progress: Progress | None = None,
        concurrency: int = 8,
    ) -> Warmed:
        """`warm` for a coroutine function, to be awaited."""
        engine, lock = self._hub.running(l2=self._rules.l2), self._hub.new_lock()
        return await warm(
            engine.runtime, lock, fn, calls, rate=rate, progress=progress, concurrency=concurrency, is_async=True
        )

    def stats(self) -> Stats:
        """Counts since the guard was made, of all its namespaces in this process."""
        return self._hub.stats()

    @contextmanager
    def disabled(self) -> Generator[None]:
        """Everything loads and nothing is cached while this is open, in this process and all its threads.

        Invalidations go on as ever. The in-process tier is empty afterwards.
        """
        self._hub.shared.switch(off=True)
        try:
            yield
        finally:
            self._hub.shared.switch(off=False)

    def new_client(self, *, is_async: bool = False, key: str | None = None) -> Any:
        """A `redis.Redis` for the same servers, or a `redis.asyncio.Redis`, of redis-py's own; yours to close.

        For what is no cache: locks, counters, queues. A `redis.RedisCluster` where the guard is on a cluster. What it
        does to the guard's own keys goes past every promise. Nothing is connected yet.

        Args:
            key: where the guard is on several nodes (``redis+ring://``), the Redis key whose node is meant; it has no
                meaning elsewhere.

        Raises `ConfigurationError` if there is no Redis (``memory://``), or several and no *key*.
        """
        return self._hub.new_client(is_async=is_async, key=key)

    @property
    def closed(self) -> bool:
        """Whether `close` or `aclose` was called."""
        return self._hub.closed

    def close(self) -> None:
        """End every thread and connection that this guard started. Twice is once; a namespace closes the whole."""
        self._hub.close()

    async def aclose(self) -> None:
        """`close`, waiting for the tasks of this event loop."""
        await self._hub.aclose()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()
