"""`CacheGuard`: one object for ``def`` and ``async def``. L1 hits are answered here, all else by the engine."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from os import PathLike
from types import TracebackType
from typing import Any, Literal, ParamSpec, Self, TypeVar, Unpack, cast, overload

from .checks import check_change, check_loader, check_usable, question, tags_of, texts
from .defenses.consistency import Version, version_text
from .delivery.outbox import Invalidation
from .doors.bloom import BloomFilter, queues_of
from .doors.feed import Change, Latest
from .doors.methods import decorator
from .doors.shapes import CachedCoroutineFunction, CachedFunction, Decorator, LoadOptions
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
T = TypeVar("T")


class CacheGuard:
    """A two-tier cache that protects the database from overload.

    Args:
        url: ``memory://`` (this process alone), ``redis://``, ``unix://``, ``redis+sentinel://`` or
            ``redis+cluster://``; ``rediss…`` for TLS; redis-py options follow a ``?``. Default: the environment
            variable ``CACHEGUARD_URL``, else ``memory://``.
        client: your own `redis.Redis`, instead of a URL. Its settings are used; it is never closed.
        aclient: your own `redis.asyncio.Redis`, for coroutines.
        namespace: the prefix of this guard's keys in Redis.
        policy: the defaults of everything cached here.
        l1_size: maximum number of entries in L1.
        l1_max_bytes: maximum size of L1 in bytes. Each put walks the whole value. None: only `l1_size` limits it.
        l1_eviction: which entry is evicted when L1 is full: ``"lru"`` (with second chance), ``"lfu"``, ``"fifo"``,
            ``"random"``.
        l1_copy: give every caller its own copy. Each hit on a mutable value makes one, by the codec, else by `pickle`
            or `copy.deepcopy`. What cannot be copied is returned and not kept. False: callers share one object.
        serializer: an object with ``dumps`` and ``loads`` that replaces the typed, safe encoding. A serializer that can
            run code while it reads, such as `pickle`, needs a `secret`; without one, a warning is logged.
        secret: 16 bytes or more, or several such secrets (the first one signs). Entries are signed with HMAC-SHA256;
            unsigned entries are misses.
        max_value_bytes: maximum size of an encoded value, before it is stored and after it is decompressed.
        compression: ``"auto"``, ``"zstd"``, ``"lz4"``, ``"zlib"`` or None.
        compress_above: size in bytes from which values are compressed.
        operation_timeout: seconds for each step of a call to Redis: connect, send, whole reply. A call that timed out
            is not retried.
        max_loads: maximum number of concurrent loads in this process; further loads wait in a queue.
        load_wait: how long a load waits in the queue before its caller gets `Overloaded`.
        load_queue: maximum number of waiting loads; further callers get `Overloaded` immediately.
        max_absences: maximum number of keys that this process may have in Redis at a time for ids that do not exist:
            absences, and the markers of their tags. Further absences are returned but not stored, so random ids cannot
            fill Redis.
        on_unreachable: what happens if Redis does not acknowledge an invalidation. ``"queue"``: it is pending, and is
            delivered before anything else is read. ``"raise"``: the same, and `Unreachable` is raised.
        read_from: ``"replica"``: entries that L1 may hold (``l1=True``) are read from the replicas of a Sentinel group
            or a cluster, but only if the replica has provably seen every invalidation that this process knows of. You
            get the freshness of another process's L1. A replica miss costs one extra round trip to the master. Leases,
            fills, invalidations and functions with ``l1=False`` use the master. Costs one small write per second for
            each master.
        outbox: an SQLite file for pending invalidations, so that they survive the process. It is written only while
            Redis does not acknowledge. Processes may share it. None: they are kept in memory.
        alone: a plain function without parameters, called before every load. If it returns True, the load is private:
            it takes no lease, no other caller joins it, and no tier stores its value. For callers inside a database
            transaction, which may see uncommitted rows. Hits are served as usual. None: no load is private.
        audit: the share of hits, from 0 to 1, that are compared with a load in the background. `Stats.audits` and
            `Stats.audits_different` count them. Each costs one load, or two if the values differ.
        on_state_change: called with a `StateChange` when Redis, the invalidation bus or a breaker of Redis changes its
            state, in the thread that notices it. It must be quick; if it raises, this is logged once.

    Raises:
        ConfigurationError: an option cannot work; the message names it.
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
        """Return a guard with its own keys in the same tiers; the fields of *policy* override this guard's."""
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
            key: template over the function's parameters, like ``"user:{user_id}"``. Default: module, name and all
                arguments with their types.
            tags: templates of tags, like ``"org:{org_id}"``.
            version: a function of the value that returns its source version (a row version, a log position, an aware
                datetime); a value older than the newest known version of the key is not cached.
            bloom: a filter; if it says that the item is absent, the call is answered "absent" without a load.
            bloom_item: template of that item; optional for a function of one parameter.
            validate: a function of the same parameters; if it returns False, the call is answered "absent" without a
                load.
            policy: fields of `Policy`; they override the guard's.

        The wrapper keeps signature and types. It has the methods ``invalidate``, ``expire``, ``refresh``, ``peek``,
        ``put``, ``key`` and ``many``, which take the arguments of the call.

        Raises:
            KeyTemplateError: a template does not fit the function.
            ConfigurationError: an option cannot work.
        """
        if callable(key) or type(key) is classmethod:
            decorate: Any = self.cached()
            return decorate(key)
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
        on_unreachable: Literal["raise", "queue"] = "raise",
        on_lost: Callable[[BloomFilter], object] | None = None,
    ) -> BloomFilter:
        """Return a Bloom filter in front of the loader, shared by all processes that use the same *name*.

        Where the guard has a `secret`, the filter is signed with it.

        Args:
            name: the name of the filter.
            capacity: number of items it is made for (1 to 2**32); it grows if there are more.
            error_rate: share of absent items that get the answer "maybe", in (0, 1).
            mirror_lease: how long this process may answer "absent" without a request to Redis, and the longest wait of
                an `add`. None: every "absent" costs one round trip and an `add` never waits.
            on_unreachable: what `add` does if Redis is unreachable. ``"raise"``: it raises `Unreachable`, and the row
                must not be committed. ``"queue"``: it returns, and the item is added as soon as Redis answers; until
                then a process that does reach Redis may answer "absent" for the row.
            on_lost: is called with the filter when this process finds it lost or damaged, in the background; it may
                call `ensure`. For filters that are used in an event loop, it may be a coroutine function.

        No round trip here; Redis is read and written at the first use.
        """
        lease = None if mirror_lease is None else seconds(mirror_lease, "mirror_lease")
        queues = queues_of(on_unreachable)
        tier = self._hub.filter(self._names, name, capacity, error_rate, lease, queues=queues)
        return BloomFilter(self._hub, tier, on_lost)

    # Reading

    def get(self, key: str, default: Any = None) -> Any:
        """Return the value of *key*, or *default* if no entry may be served. At most one round trip."""
        redis_name, rules, hub = self._scope.key(key), self._rules, self._hub
        entry = hub.local.alive(redis_name) if rules.l1 else None
        if entry is not None:
            return hub.looking.value_in(entry, default)
        return run_now(hub.looking.get(hub.blocking(l2=rules.l2), redis_name, default, rules, self._scope))

    async def aget(self, key: str, default: Any = None) -> Any:
        """`get` for coroutines."""
        redis_name, rules, hub = self._scope.key(key), self._rules, self._hub
        entry = hub.local.alive(redis_name) if rules.l1 else None
        if entry is not None:
            return hub.looking.value_in(entry, default)
        return await hub.looking.get(hub.running(l2=rules.l2), redis_name, default, rules, self._scope)

    def at_hand(self, key: str, default: Any = None) -> Any:
        """Return the value of *key* if L1 has it, else *default*. No round trip, and nothing to await."""
        return self._hub.looking.at_hand(self._scope.key(key), default, self._rules)

    def get_or_set(
        self,
        key: str,
        loader: Callable[[], T],
        *,
        tags: Sequence[str] = (),
        version: Callable[[Any], Any] | None = None,
        usable: Callable[[Any], bool] | None = None,
        returns: Any = None,
        bounded: bool = True,
        **policy: Unpack[PolicyOptions],
    ) -> T:
        """Return the value of *key*; on a miss, load it with *loader*. No round trip for an L1 hit.

        Args:
            key: key text.
            loader: a function without parameters; it may add tags through `current_load`.
            tags: texts that `invalidate_tags` takes.
            version: a function of the loaded value that returns its source version; a value older than the newest known
                version of the key is not cached.
            usable: a function of the cached value. If it returns False, the cached value is treated as a miss and one
                caller reloads it. It is not applied to the freshly loaded value.
            returns: the type of the loaded value, written as an annotation, or a function with such a return
                annotation; cached values come back as this type. None: the type follows from the value.
            bounded: True: the load takes one of the ``max_loads`` permits. Set False if the loader merely waits for
                work that has its own concurrency limit.
            policy: fields of `Policy`; they override the guard's.

        Raises what *loader* raises; `LoadTimeout` after ``hard_timeout``; `Overloaded` if the load is refused.
        """
        ask = self._ask(
            key, loader, policy, tags=tags, version=version, usable=usable, returns=returns, bounded=bounded
        )
        value: T = run_now(self._hub.asking.one(self._hub.blocking, ask))
        return value

    @overload
    async def aget_or_set(self, key: str, loader: Callable[[], Awaitable[T]], **options: Unpack[LoadOptions]) -> T: ...

    @overload
    async def aget_or_set(self, key: str, loader: Callable[[], T], **options: Unpack[LoadOptions]) -> T: ...

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
        """`get_or_set` for coroutines; *loader* may be a coroutine function."""
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
        """Return a dict with those of *keys* that have a value. At most one round trip for each 1,000 keys."""
        hub = self._hub
        return run_now(hub.looking.get_many(hub.blocking, texts(keys), self._rules, self._scope))

    async def aget_many(self, keys: Iterable[str]) -> dict[str, Any]:
        """`get_many` for coroutines."""
        hub = self._hub
        return await hub.looking.get_many(hub.running, texts(keys), self._rules, self._scope)

    def get_or_set_many(
        self,
        keys: Iterable[str],
        loader: Callable[[list[str]], Mapping[str, T]],
        *,
        tags: Sequence[str] = (),
        version: Callable[[Any], Any] | None = None,
        **policy: Unpack[PolicyOptions],
    ) -> dict[str, T | None]:
        """Return a dict with the values of all *keys*; *loader* gets a list of the missing keys and returns a dict.

        A key that the loader's dict does not contain is an absence, and None in the result. If another call in this
        process is loading a key, this call waits for it. At most three round trips for each 1,000 keys; the loader is
        called once.
        """
        return run_now(self._ask_many(self._hub.blocking, keys, loader, policy, tags, version))

    async def aget_or_set_many(
        self,
        keys: Iterable[str],
        loader: Callable[[list[str]], Awaitable[Mapping[str, T]] | Mapping[str, T]],
        *,
        tags: Sequence[str] = (),
        version: Callable[[Any], Any] | None = None,
        **policy: Unpack[PolicyOptions],
    ) -> dict[str, T | None]:
        """`get_or_set_many` for coroutines; *loader* may be a coroutine function."""
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
        """Return what each tier has for *key*; this does not count as a hit. At most one round trip."""
        engine = self._hub.blocking(l2=self._rules.l2)
        return run_now(self._hub.looking.inspect(engine, self._scope.key(key), self._rules, self._scope))

    async def ainspect(self, key: str) -> Inspection:
        """`inspect` for coroutines."""
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
        """Store *value*; the last writer wins, and a load that runs already may no longer fill. One round trip.

        With a *version*, the newest version wins: a value older than the newest known version of the key is not stored.
        The first time that this process uses a tag, the call costs one more round trip. Raises `CodecError` if the
        value cannot be encoded.
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
        """`set` for coroutines."""
        await self.aset_many({key: value}, tags=tags, version=version, **policy)

    def set_many(
        self,
        values: Mapping[str, Any],
        *,
        tags: Sequence[str] = (),
        version: Version | None = None,
        **policy: Unpack[PolicyOptions],
    ) -> None:
        """`set` several keys. One round trip for each 1,000 keys, in an event loop for each 250.

        A value that cannot be encoded raises `CodecError`: its part, and what comes behind it, is not stored.
        """
        run_now(self._set(self._hub.blocking, values, tags, version, policy))

    async def aset_many(
        self,
        values: Mapping[str, Any],
        *,
        tags: Sequence[str] = (),
        version: Version | None = None,
        **policy: Unpack[PolicyOptions],
    ) -> None:
        """`set_many` for coroutines."""
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
        """Store *value* if *key* has no fresh entry, atomically. Usually one round trip.

        Args:
            key: key text.
            value: what to store.
            tags: texts that `invalidate_tags` takes.
            policy: fields of `Policy`; they override the guard's.

        Returns:
            True if the value was stored; of several concurrent callers, one gets True. False also while a fence stands
            on the key, and if Redis is unreachable.

        Raises `CodecError` if the value cannot be encoded.
        """
        rules, name = self._policies.of(cast("dict[str, Any]", policy)), self._scope.key(key)
        engine_of = self._hub.blocking
        return run_now(self._hub.by_hand.add(engine_of, name, value, rules, self._scope, tags=tags_of(tags)))

    async def aadd(self, key: str, value: Any, *, tags: Sequence[str] = (), **policy: Unpack[PolicyOptions]) -> bool:
        """`add` for coroutines."""
        rules, name = self._policies.of(cast("dict[str, Any]", policy)), self._scope.key(key)
        engine_of = self._hub.running
        return await self._hub.by_hand.add(engine_of, name, value, rules, self._scope, tags=tags_of(tags))

    def update(self, key: str, change: Callable[[Any], Any]) -> Any:
        """Change a fresh value atomically across all processes; its TTL and its tags stay. Two round trips.

        Args:
            key: key text.
            change: a plain function of the value that returns the new one, like ``lambda count: count + 1``. It may
                change the value that it gets in place: nobody else has it, and if it raises, nothing is changed. If
                another writer was faster, it is called again with the current value (one more round trip each time).

        Returns:
            The new value; `MISSING` if there is no fresh value, or if Redis is unreachable.

        Raises what *change* raises; `CodecError` if the new value cannot be encoded; `Overloaded` if other writers were
        faster 1000 times in a row.
        """
        check_change(change)
        engine_of, name = self._hub.blocking, self._scope.key(key)
        return run_now(self._hub.by_hand.update(engine_of, name, change, self._rules, self._scope))

    async def aupdate(self, key: str, change: Callable[[Any], Any]) -> Any:
        """`update` for coroutines; if cancelled, it still runs to its end."""
        check_change(change)
        engine_of, name = self._hub.running, self._scope.key(key)
        return await self._hub.by_hand.update(engine_of, name, change, self._rules, self._scope)

    def remove(self, *keys: str) -> int:
        """`invalidate` *keys* and return how many of them existed. One round trip per thousand keys.

        Of several callers that remove a key at the same time, one counts it. If Redis does not acknowledge, the result
        is 0 and the invalidation is pending, or `Unreachable` is raised, as in `invalidate`.
        """
        names = map(self._scope.key, texts(keys))
        engine_of, l2 = self._hub.blocking, self._rules.l2
        return run_now(self._hub.writes.remove(engine_of, names, self._scope, l2=l2))

    async def aremove(self, *keys: str) -> int:
        """`remove` for coroutines; if cancelled, it still runs to its end."""
        names = map(self._scope.key, texts(keys))
        engine_of, l2 = self._hub.running, self._rules.l2
        return await self._hub.writes.remove(engine_of, names, self._scope, l2=l2)

    def scan(self, match: str = "*", *, cursor: str = "", count: int = 1000) -> tuple[list[str], str]:
        r"""Return one page of the key texts of this namespace's fresh entries. Two round trips.

        A key that exists during the whole scan is returned at least once. Keys added or removed meanwhile may or may
        not be. Keys that are stored under a digest (longer than 250 characters, or with characters that are not
        printable ASCII) are not listed. Only Redis is read, not L1.

        Args:
            match: a pattern of Redis: ``*``, ``?``, ``[a-c]``, ``\*``.
            cursor: the cursor that the previous page returned; ``""`` for the first page.
            count: about how many keys to examine; the page may have fewer.

        Returns:
            Key texts, and the cursor of the next page; ``""`` after the last page.

        Raises:
            Unreachable: Redis is unreachable.
        """
        return run_now(scan(self._hub.blocking(l2=self._rules.l2), self._scope, match, cursor, count))

    async def ascan(self, match: str = "*", *, cursor: str = "", count: int = 1000) -> tuple[list[str], str]:
        """`scan` for coroutines."""
        return await scan(self._hub.running(l2=self._rules.l2), self._scope, match, cursor, count)

    def touch(self, key: str, **policy: Unpack[PolicyOptions]) -> bool:
        """Give a fresh entry a new TTL. Return True if there was a fresh entry. Three round trips.

        If Redis is unreachable, it returns False, or raises `Unreachable` if the guard has ``on_unreachable="raise"``.
        """
        rules, name = self._policies.of(cast("dict[str, Any]", policy)), self._scope.key(key)
        return run_now(self._hub.by_hand.touch(self._hub.blocking, name, rules, self._scope))

    async def atouch(self, key: str, **policy: Unpack[PolicyOptions]) -> bool:
        """`touch` for coroutines."""
        rules, name = self._policies.of(cast("dict[str, Any]", policy)), self._scope.key(key)
        return await self._hub.by_hand.touch(self._hub.running, name, rules, self._scope)

    def invalidate(self, *keys: str, version: Version | None = None, settle: Duration | None = None) -> None:
        """Remove *keys* everywhere. A load that began before this call returns fills no tier.

        One round trip per thousand keys; `ainvalidate`, which leaves the event loop its turn, needs one per 250.

        Args:
            keys: key texts.
            version: the source version that the rows have now. For five minutes, older values are not cached; an entry
                with this version or a newer one stays.
            settle: how far the database that loaders read may lag behind (the lag window). Values cached within it
                expire when it ends. None: the database does not lag.

        Raises `Unreachable` if Redis does not acknowledge it and the guard has ``on_unreachable="raise"``.
        """
        run_now(self._hub.writes.write(self._hub.blocking(), named(self._scope, keys, (), version, settle)))

    async def ainvalidate(self, *keys: str, version: Version | None = None, settle: Duration | None = None) -> None:
        """`invalidate` for coroutines; if cancelled, it still runs to its end."""
        await self._hub.writes.write(self._hub.running(), named(self._scope, keys, (), version, settle))

    def invalidate_tags(self, *tags: str, settle: Duration | None = None) -> None:
        """Remove every entry of this namespace that has one of *tags*, everywhere. One round trip for any number.

        A load that began before this call returns is never served as fresh, even if it adds the tag only at its end.

        Args:
            tags: the texts given to ``tags=`` or `current_load`.
            settle: as in `invalidate`.
        """
        run_now(self._hub.writes.write(self._hub.blocking(), named(self._scope, (), tags, None, settle)))

    async def ainvalidate_tags(self, *tags: str, settle: Duration | None = None) -> None:
        """`invalidate_tags` for coroutines; if cancelled, it still runs to its end."""
        await self._hub.writes.write(self._hub.running(), named(self._scope, (), tags, None, settle))

    def clear(self) -> None:
        """Remove every entry of this namespace and of those inside it, everywhere. One round trip for any number.

        Nothing is scanned: the entries can no longer be read, and Redis deletes them when their TTLs end.
        """
        run_now(self._hub.writes.write(self._hub.blocking(), [Invalidation(self._scope.epochs[-1])]))

    async def aclear(self) -> None:
        """`clear` for coroutines; if cancelled, it still runs to its end."""
        await self._hub.writes.write(self._hub.running(), [Invalidation(self._scope.epochs[-1])])

    def apply(self, changes: Iterable[Change | tuple[str, Version | None]], *, settle: Duration | None = None) -> int:
        """Invalidate what a change feed reports; events may be repeated and out of order.

        An entry with the event's version or a newer one stays; an entry with an older version or none is removed. Older
        fills are refused for five minutes. One round trip per thousand changes.

        Args:
            changes: `Change` objects, or pairs of key text and version.
            settle: as in `invalidate`.

        Returns:
            The number of distinct keys and tags in *changes*.
        """
        latest = Latest(self._scope, round(settle_seconds(settle) * 1000))
        return run_now(self._hub.writes.apply(self._hub.blocking(), latest, changes))

    async def aapply(
        self, changes: Iterable[Change | tuple[str, Version | None]], *, settle: Duration | None = None
    ) -> int:
        """`apply` for coroutines."""
        latest = Latest(self._scope, round(settle_seconds(settle) * 1000))
        return await self._hub.writes.apply(self._hub.running(), latest, changes)

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

        Keys and tags are invalidated when the block ends, also after an exception or a cancellation.

        Args:
            keys: key texts.
            tags: tags; they are invalidated at the beginning and at the end, but not fenced.
            mode: ``"fence"``: nothing is cached under the keys while the block runs, so from COMMIT on no reader gets
                an older value, even if this process dies (two round trips). ``"delete"``: invalidated at the end (one
                round trip). ``"double"``: invalidated at the beginning and at the end; values cached within *delay*
                after the end expire when the delay is over (two round trips).
            settle: how far the database that loaders read may lag behind (the lag window). Values cached within this
                time after the block expire when it ends. None: the database does not lag.
            version: the source version that the rows will have; may be set later on the block's `Write`.
            delay: the delay of ``mode="double"``.
            intent: how long a fence stands if this process dies. It must be longer than the database keeps a
                transaction whose client is gone. It is renewed while the block runs.

        Raises `ConfigurationError`, `TypeError` or `ValueError` here if an argument cannot work; `Unreachable` at the
        end of the block if Redis does not acknowledge it and the guard has ``on_unreachable="raise"``.
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
        """Decorate a function that writes, ``def`` or ``async def``: each call is a `writing` block.

        If a ``def`` returns a coroutine or another awaitable, the caller gets a coroutine that awaits it inside of a
        block. A task, a future or a generator is refused with `TypeError`: its work would go on after the block.

        Args:
            keys: templates over the parameters, like ``"user:{user_id}"``, or over the returned ``result``, like
                ``"user:{result.id}"``; or functions of the result that return key texts. Keys that depend on the result
                are invalidated only at the end, and not if the function raises.
            tags: the same for tags.
            mode: as in `writing`.
            settle: as in `writing`.
            version: a function of the result that returns the source version of the written rows.
            delay: as in `writing`.
            intent: as in `writing`.

        Raises:
            KeyTemplateError: a template does not fit the function.
            ConfigurationError: an option cannot work.
        """
        terms = WriteTerms(mode, settle, delay, intent)

        def open_write(keys: list[str], tags: list[str]) -> Writing:
            return Writing(self._hub, self._scope, keys, tags, None, terms)

        return decorate_writes(open_write, keys, tags, version, called="guard.invalidates")

    def expire(self, *keys: str) -> None:
        """Make *keys* stale: the old value stays available if the next load is slow or fails.

        One round trip per thousand keys.
        """
        names = map(self._scope.key, texts(keys))
        run_now(self._hub.writes.expire(self._hub.blocking(), names))

    async def aexpire(self, *keys: str) -> None:
        """`expire` for coroutines."""
        names = map(self._scope.key, texts(keys))
        await self._hub.writes.expire(self._hub.running(), names)

    # Running

    def load_alone_when(self, alone: Callable[[], object]) -> Callable[[], None]:
        """Add a condition for private loads, like the option ``alone`` of `CacheGuard`, after the guard is built.

        Args:
            alone: a plain function without parameters, called before every load of this guard and all its namespaces.
                If it returns True, the load is private.

        Returns:
            A function that removes the condition. No round trip.
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
        """Call a cached function with many arguments, so that the values are cached before they are needed.

        Args:
            fn: a function decorated by this guard.
            calls: tuples of arguments, or the bare value of the only parameter.
            rate: maximum number of calls started per second; None: no limit.
            progress: called after each call with the number of finished calls and the total (None if unknown), from one
                thread at a time.
            concurrency: number of concurrent calls, each in its own thread.

        A failed load is counted, not raised. The TTLs are jittered, so the entries do not expire together.
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
        """`warm` for a coroutine function."""
        engine, lock = self._hub.running(l2=self._rules.l2), self._hub.new_lock()
        return await warm(
            engine.runtime, lock, fn, calls, rate=rate, progress=progress, concurrency=concurrency, is_async=True
        )

    def stats(self) -> Stats:
        """Return the counters since the guard was made, of all its namespaces in this process. No round trip."""
        return self._hub.stats()

    @contextmanager
    def disabled(self) -> Generator[None]:
        """Disable caching inside the block, in this process and all its threads: every call loads, nothing is stored.

        Invalidations work as usual. L1 is empty afterwards.
        """
        self._hub.shared.switch(off=True)
        try:
            yield
        finally:
            self._hub.shared.switch(off=False)

    def new_client(self, *, is_async: bool = False, key: str | None = None) -> Any:
        """Return a new `redis.Redis` (or `redis.asyncio.Redis`) for the same servers; you must close it.

        For what is not a cache: locks, counters, queues. On a cluster it is a `redis.RedisCluster`. If it changes the
        guard's own keys, none of the guard's promises hold. It does not connect before its first command.

        Args:
            is_async: return an asyncio client.
            key: on several nodes (``redis+ring://``), the Redis key that selects the node; ignored elsewhere.

        Raises `ConfigurationError` if there is no Redis (``memory://``), or several nodes and no *key*.
        """
        return self._hub.new_client(is_async=is_async, key=key)

    @property
    def closed(self) -> bool:
        """True if `close` or `aclose` was called."""
        return self._hub.closed

    def close(self) -> None:
        """End every thread and connection that this guard started. May be repeated; a namespace closes the guard."""
        self._hub.close()

    async def aclose(self) -> None:
        """`close` for coroutines; also waits for the tasks of this event loop."""
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
