"""`CacheGuard`: one object, two doors. A hit in the process is answered here, everything else by the engine."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from inspect import isawaitable
from os import PathLike
from types import TracebackType
from typing import Any, Literal, ParamSpec, Self, TypeVar, Unpack, cast, overload

from .codec import CustomCodec, runs_code
from .defenses.consistency import Version, version_text
from .defenses.penetration.filter import BloomTier
from .delivery.outbox import Invalidation
from .doors.bloom import BloomFilter
from .doors.feed import Change, invalidations
from .doors.functions import Function
from .doors.methods import decorated
from .doors.shapes import CachedCoroutineFunction, CachedFunction, Decorator
from .doors.warming import Progress, Warmed, warm
from .doors.writing import (
    DELAY,
    INTENT,
    Mode,
    OfResult,
    Terms,
    Writing,
    decorate_writes,
    names_of,
    settle_seconds,
)
from .durations import Duration, seconds
from .engine.batch import Batch
from .engine.loading import Ask
from .engine.reading import Engine
from .engine.rebuilding import opened, stored_of
from .errors import ConfigurationError, Unreachable
from .events import StateChange, Stats, log
from .missing import MISSING
from .options import (
    Options,
    check_change,
    check_loader,
    check_usable,
    count,
    flag,
    listener,
    path_of,
    question,
    share,
    tags_of,
    texts,
)
from .policy import Policy, PolicyOptions, Rules, resolve
from .process.hub import Hub
from .protocol.envelope import Kind, Sealer
from .protocol.names import namespace_scope
from .runtime import run_now
from .servers.lending import pools
from .tiers.local import Entry, Eviction, check
from .tiers.packing import copied
from .tiers.remote import Stored

P = ParamSpec("P")
R = TypeVar("R")

DEFAULT_MAX_ABSENCES = 100_000
MOST_CALL_POLICIES = 256
MOST_AT_ONCE = 1000  # changes in one round trip


@dataclass(frozen=True, slots=True)
class Inspection:
    """What is cached for a key.

    Args:
        state: ``"fresh"``, ``"stale"``, ``"null"`` (a fresh absence) or ``"missing"``.
        tier: ``"l1"``, ``"l2"``, or None where nothing is.
        age: seconds since it was stored; None where nothing is.
        ttl_left: seconds until it is stale; negative since it is; None where nothing is.
        tags: its tags.
    """

    state: Literal["fresh", "stale", "null", "missing"]
    tier: Literal["l1", "l2"] | None
    age: float | None
    ttl_left: float | None
    tags: tuple[str, ...]


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
        max_value_bytes: int = 8 * 1024 * 1024,
        compression: str | None = "auto",
        compress_above: int = 2048,
        operation_timeout: Duration = 0.2,
        max_loads: int = 64,
        load_wait: Duration = "1s",
        load_queue: int = 1000,
        max_absences: int = DEFAULT_MAX_ABSENCES,
        on_unreachable: Literal["queue", "raise"] = "queue",
        read_from: Literal["master", "replica"] = "master",
        outbox: str | PathLike[str] | None = None,
        alone: Callable[[], object] | None = None,
        audit: float = 0.0,
        on_state_change: Callable[[StateChange], object] | None = None,
    ) -> None:
        check(l1_size, l1_max_bytes, l1_eviction)
        if on_unreachable not in ("queue", "raise"):
            raise ConfigurationError(f"on_unreachable must be 'queue' or 'raise', got {on_unreachable!r}")
        if read_from not in ("master", "replica"):
            raise ConfigurationError(f"read_from must be 'master' or 'replica', got {read_from!r}")
        options = Options(
            l1_size=l1_size,
            l1_max_bytes=l1_max_bytes,
            l1_eviction=l1_eviction,
            l1_copy=flag("l1_copy", l1_copy),
            codec=None if serializer is None else CustomCodec(serializer),
            sealer=Sealer(
                secret=secret,
                compression=compression,
                compress_above=compress_above,
                max_value_bytes=max_value_bytes,
            ),
            operation_timeout=seconds(operation_timeout, "operation_timeout"),
            max_loads=count("max_loads", max_loads),
            load_wait=seconds(load_wait, "load_wait"),
            load_queue=count("load_queue", load_queue),
            max_absences=count("max_absences", max_absences),
            raise_unreachable=on_unreachable == "raise",
            from_replicas=read_from == "replica",
            outbox=path_of("outbox", outbox),
            audit=share("audit", audit),
            alone=question("alone", alone),
            on_state_change=listener("on_state_change", on_state_change),
        )
        self._names: tuple[str, ...] = (namespace,)
        self._scope = namespace_scope(self._names)
        self._policy = _policy(policy)
        self._rules = resolve(self._policy)
        self._calls: dict[tuple[tuple[str, Any], ...], Rules] = {}
        pool, apool, memory = pools(url, client, aclient)
        known = pool or apool
        if options.from_replicas and not (known is not None and known.has_replicas):
            raise ConfigurationError(
                "read_from='replica' needs replicas that can be found: redis+sentinel://, redis+cluster://, or a "
                f"client of either; got {'memory://' if memory else 'a single server'}"
            )
        if secret is None and not memory and runs_code(serializer):
            log.warning(
                "serializer=%s runs what it reads, and whoever can write to Redis can run code here: give a secret as "
                "well, so that only what is signed is read",
                getattr(serializer, "__name__", type(serializer).__name__),
            )
        self._hub = Hub(options, namespace, pool, apool, memory=memory)
        if options.codec is not None:
            self._hub.registry.register(options.codec)

    def __repr__(self) -> str:
        return f"<CacheGuard {'/'.join(self._names)!r} at {self._hub.where}>"

    def namespace(self, name: str, policy: Policy | None = None) -> Self:
        """A guard for keys of its own on the same tiers; *policy* goes over this guard's."""
        child = object.__new__(type(self))
        child._names = (*self._names, name)
        child._scope = namespace_scope(child._names)
        child._policy = _policy(policy).over(self._policy)
        child._rules = resolve(child._policy)
        child._calls = {}
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
        if key is not None and (not isinstance(key, str) or not key):
            raise ConfigurationError(f"key must be a template like 'user:{{user_id}}', got {key!r}")
        _check_bloom(bloom)
        if version is not None and not callable(version):
            raise ConfigurationError(f"version must be a function of the value, got {version!r}")
        rules = self._merged(policy)

        def decorate(fn: Any) -> Any:
            if type(fn) in (staticmethod, classmethod):
                return type(fn)(decorate(fn.__func__))
            if not callable(fn):
                raise ConfigurationError(f"only functions can be decorated, got {fn!r}")
            function = Function(
                self._hub,
                self._scope,
                fn,
                key,
                rules,
                tags=tags,
                version=version,
                bloom=bloom,
                bloom_item=bloom_item,
                validate=validate,
            )
            return decorated(function)

        return decorate

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
        known = (self._names, name, capacity, error_rate, lease)
        tier = self._hub.filters.get(known) or BloomTier(
            name,
            capacity=capacity,
            error_rate=error_rate,
            lock=self._hub.new_lock(),
            namespace="/".join(self._names),
            shared=not self._hub.memory,
            mirror_lease=lease,
        )
        self._hub.filters[known] = tier
        return BloomFilter(self._hub, tier)

    # Reading

    def get(self, key: str, default: Any = None) -> Any:
        """The value of *key*, or *default* if there is none that may be served. At most one round trip."""
        redis_name = self._scope.key(key)
        entry = self._alive(redis_name, self._rules)
        if entry is not None:
            return self._out(stored_of(entry), default)
        return run_now(self._get(self._hub.blocking(l2=self._rules.l2), redis_name, default))

    async def aget(self, key: str, default: Any = None) -> Any:
        """`get`, to be awaited."""
        redis_name = self._scope.key(key)
        entry = self._alive(redis_name, self._rules)
        if entry is not None:
            return self._out(stored_of(entry), default)
        return await self._get(self._hub.running(l2=self._rules.l2), redis_name, default)

    async def _get(self, engine: Engine, key: str, default: Any) -> Any:
        if self._hub.off:
            return default
        found = await engine.peek([key], None, self._rules, self._scope)
        return self._out(found[key][0], default) if found else default

    def at_hand(self, key: str, default: Any = None) -> Any:
        """The value of *key* if this process has it, else *default*. No round trip, and nothing to await."""
        entry = self._alive(self._scope.key(key), self._rules)
        return default if entry is None or self._hub.off else self._out(stored_of(entry), default)

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
        rules = self._merged(cast("dict[str, Any]", policy))
        ask = self._ask(key, loader, rules, tags=tags, version=version, usable=usable, returns=returns, bounded=bounded)
        return run_now(self._get_or_set(self._hub.blocking, ask))

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
        rules = self._merged(cast("dict[str, Any]", policy))
        ask = self._ask(key, loader, rules, tags=tags, version=version, usable=usable, returns=returns, bounded=bounded)
        return await self._get_or_set(self._hub.running, ask)

    def _ask(
        self,
        key: str,
        loader: Callable[[], Any],
        rules: Rules,
        *,
        tags: Sequence[str],
        version: Callable[[Any], Any] | None,
        usable: Callable[[Any], bool] | None,
        returns: Any,
        bounded: bool,
    ) -> Ask:
        check_loader(loader)
        check_usable(usable)
        codec = self._hub.options.codec
        if codec is None and returns is not None:
            codec = self._hub.registry.returned(returns)
        return Ask(self._scope.key(key), rules, codec, loader, tags_of(tags), self._scope, version, usable, bounded)

    async def _get_or_set(self, engine_of: Callable[..., Engine], ask: Ask) -> Any:
        rules = ask.rules
        if self._hub.off:
            return await engine_of(l2=rules.l2).runtime.call(ask.load)
        entry = self._alive(ask.key, rules)
        if entry is None or not ask.takes(stored_of(entry)):
            answer = await engine_of(l2=rules.l2).read(ask)
        else:
            answer = opened(stored_of(entry), rules)
            if self._hub.auditor is not None:
                await self._hub.auditor.consider(engine_of(l2=rules.l2), ask, answer)
        return copied(answer) if self._hub.options.l1_copy else answer

    def get_many(self, keys: Iterable[str]) -> dict[str, Any]:
        """The values of those of *keys* that have one. At most one round trip."""
        return run_now(self._get_many(self._hub.blocking(l2=self._rules.l2), keys))

    async def aget_many(self, keys: Iterable[str]) -> dict[str, Any]:
        """`get_many`, to be awaited."""
        return await self._get_many(self._hub.running(l2=self._rules.l2), keys)

    async def _get_many(self, engine: Engine, keys: Iterable[str]) -> dict[str, Any]:
        names = texts(keys)
        if self._hub.off:
            return {}
        found = {name: entry for name in names if (entry := self._alive(self._scope.key(name), self._rules))}
        values = {name: self._out(stored_of(entry), MISSING) for name, entry in found.items()}
        rest = {self._scope.key(name): name for name in names if name not in found}
        if rest:
            for key, (stored, _) in (await engine.peek(list(rest), None, self._rules, self._scope)).items():
                values[rest[key]] = self._out(stored, MISSING)
        return {name: values[name] for name in names if values.get(name, MISSING) is not MISSING}

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
        return run_now(
            self._get_or_set_many(self._hub.blocking, keys, loader, tags, version, cast("dict[str, Any]", policy))
        )

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
        return await self._get_or_set_many(
            self._hub.running, keys, loader, tags, version, cast("dict[str, Any]", policy)
        )

    async def _get_or_set_many(
        self,
        engine_of: Callable[..., Engine],
        keys: Iterable[str],
        loader: Callable[[list[str]], Any],
        tags: Sequence[str],
        version: Callable[[Any], Any] | None,
        policy: dict[str, Any],
    ) -> dict[str, Any]:
        check_loader(loader)
        names, rules, tags = texts(keys), self._merged(policy), tags_of(tags)
        engine = engine_of(l2=rules.l2)
        if self._hub.off:
            loaded = await engine.runtime.call(lambda: loader(list(names)))
            return {name: loaded.get(name) for name in names}
        values: dict[str, Any] = {}
        asks: dict[str, Ask] = {}
        by_key: dict[str, str] = {}
        for name in names:
            key = self._scope.key(name)
            entry = self._alive(key, rules)
            if entry is not None:
                values[name] = opened(stored_of(entry), rules)
            else:
                one = _loader_of_one(loader, name)
                asks[key] = Ask(key, rules, self._hub.options.codec, one, tags, self._scope, version)
                by_key[key] = name
        if asks:
            for key, value in (await Batch(engine, asks, by_key, loader).read()).items():
                values[by_key[key]] = value
        copies = self._hub.options.l1_copy
        return {name: copied(values[name]) if copies else values[name] for name in names}

    def inspect(self, key: str) -> Inspection:
        """What is cached for *key*, and where; counts as no hit. At most one round trip."""
        return run_now(self._inspect(self._hub.blocking(l2=self._rules.l2), key))

    async def ainspect(self, key: str) -> Inspection:
        """`inspect`, to be awaited."""
        return await self._inspect(self._hub.running(l2=self._rules.l2), key)

    async def _inspect(self, engine: Engine, key: str) -> Inspection:
        redis_name = self._scope.key(key)
        entry, now = self._hub.local.peek(redis_name), self._hub.now()
        if self._rules.l1 and entry is not None:
            state: Literal["fresh", "null"] = "null" if entry.kind else "fresh"
            return Inspection(state, "l1", max(0.0, now - entry.born), entry.fresh_until - now, entry.tags)
        found = await engine.look(redis_name, self._scope)
        if found is None or found.stored is None:
            return Inspection("missing", None, None, None, ())
        stored, left = found.stored, found.fresh_left
        fresh: Literal["fresh", "null"] = "null" if stored.kind is not Kind.VALUE else "fresh"
        return Inspection(fresh if left > 0 else "stale", "l2", max(0.0, stored.ttl - left), left, stored.tags)

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
        run_now(self._set_many(self._hub.blocking, values, tags, version, cast("dict[str, Any]", policy)))

    async def aset_many(
        self,
        values: Mapping[str, Any],
        *,
        tags: Sequence[str] = (),
        version: Version | None = None,
        **policy: Unpack[PolicyOptions],
    ) -> None:
        """`set_many`, to be awaited."""
        await self._set_many(self._hub.running, values, tags, version, cast("dict[str, Any]", policy))

    async def _set_many(
        self,
        engine_of: Callable[..., Engine],
        values: Mapping[str, Any],
        tags: Sequence[str],
        of_source: Version | None,
        policy: dict[str, Any],
    ) -> None:
        tags, version = tags_of(tags), version_text(of_source)
        if not values:
            return
        rules = self._merged(policy)
        named = {self._scope.key(name): value for name, value in values.items()}
        if rules.l2:
            self._hub.forget_here([Invalidation(key) for key in named])
        codec = self._hub.options.codec
        codecs = {key: codec or self._hub.registry.for_value(value) for key, value in named.items()}
        engine = engine_of(l2=rules.l2)
        await self._hub.put(engine, named, rules, codecs, tags=tags, scope=self._scope, version=version)

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
        return run_now(self._add(self._hub.blocking, key, value, tags, cast("dict[str, Any]", policy)))

    async def aadd(self, key: str, value: Any, *, tags: Sequence[str] = (), **policy: Unpack[PolicyOptions]) -> bool:
        """`add`, to be awaited."""
        return await self._add(self._hub.running, key, value, tags, cast("dict[str, Any]", policy))

    async def _add(
        self,
        engine_of: Callable[..., Engine],
        key: str,
        value: Any,
        tags: Sequence[str],
        policy: dict[str, Any],
    ) -> bool:
        rules, name = self._merged(policy), self._scope.key(key)
        codec = self._hub.options.codec or self._hub.registry.for_value(value)
        return await self._hub.add(
            engine_of(l2=rules.l2), name, value, rules, codec, tags=tags_of(tags), scope=self._scope
        )

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
        return run_now(self._update(self._hub.blocking(l2=self._rules.l2), key, change))

    async def aupdate(self, key: str, change: Callable[[Any], Any]) -> Any:
        """`update`, to be awaited; goes on to its end if it is cancelled."""
        return await self._update(self._hub.running(l2=self._rules.l2), key, change)

    async def _update(self, engine: Engine, key: str, change: Callable[[Any], Any]) -> Any:
        check_change(change)
        return await self._hub.update(engine, self._scope.key(key), change, self._hub.options.codec, self._scope)

    def remove(self, *keys: str) -> int:
        """`invalidate` *keys*, and say how many of them there were. One round trip for a thousand of them.

        Of several who remove a key at the same time, one counts it. 0 if Redis does not acknowledge it; it is queued
        then, or `Unreachable` is raised, as `invalidate` does.
        """
        return run_now(self._remove(self._hub.blocking(l2=self._rules.l2), keys))

    async def aremove(self, *keys: str) -> int:
        """`remove`, to be awaited; goes on to its end if it is cancelled."""
        return await self._remove(self._hub.running(l2=self._rules.l2), keys)

    async def _remove(self, engine: Engine, keys: Sequence[str]) -> int:
        names = [self._scope.key(key) for key in texts(keys)]
        count = 0

        async def removed(names: Sequence[str]) -> bool:
            nonlocal count
            done, there = await engine.remove(names, self._scope)
            count += there
            return done

        if self._rules.l2:
            self._hub.forget_here([Invalidation(name) for name in names])
        for at in range(0, len(names), MOST_AT_ONCE):
            await self._hub.tell(removed, names[at : at + MOST_AT_ONCE])
        return count

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
        return run_now(self._scan(self._hub.blocking(l2=self._rules.l2), match, cursor, count))

    async def ascan(self, match: str = "*", *, cursor: str = "", count: int = 1000) -> tuple[list[str], str]:
        """`scan`, to be awaited."""
        return await self._scan(self._hub.running(l2=self._rules.l2), match, cursor, count)

    async def _scan(self, engine: Engine, match: str, cursor: str, most: int) -> tuple[list[str], str]:
        at, _, there = (cursor or "0-0").partition("-")
        if not (at.isdecimal() and there.isdecimal()):
            raise ValueError(f"cursor must be one that came with a page, got {cursor!r}")
        pattern = self._scope.pattern(match)
        names, following = await engine.remote.scan(self._scope, int(at), there, pattern, count("count", most))
        plain = [text for name in names if (text := self._scope.text(name)) is not None]
        return plain, "" if following is None else f"{following[0]}-{following[1]}"

    def touch(self, key: str, **policy: Unpack[PolicyOptions]) -> bool:
        """Give a fresh entry a new TTL; whether there was one. Two round trips."""
        return run_now(self._touch(self._hub.blocking, key, cast("dict[str, Any]", policy)))

    async def atouch(self, key: str, **policy: Unpack[PolicyOptions]) -> bool:
        """`touch`, to be awaited."""
        return await self._touch(self._hub.running, key, cast("dict[str, Any]", policy))

    async def _touch(self, engine_of: Callable[..., Engine], key: str, policy: dict[str, Any]) -> bool:
        rules = self._merged(policy)
        return await self._hub.touch(engine_of(l2=rules.l2), self._scope.key(key), rules, self._scope)

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
        run_now(self._hub.write(self._hub.blocking(), self._named(keys, (), version, settle)))

    async def ainvalidate(self, *keys: str, version: Version | None = None, settle: Duration | None = None) -> None:
        """`invalidate`, to be awaited; goes on to its end if it is cancelled."""
        await self._hub.write(self._hub.running(), self._named(keys, (), version, settle))

    def invalidate_tags(self, *tags: str, settle: Duration | None = None) -> None:
        """Remove every entry of this namespace that has one of *tags*, everywhere. One round trip, however many.

        A load that began before this returned never counts as fresh, even if it names the tag only at its end.

        Args:
            tags: texts, as given to ``tags=`` or `current_load`.
            settle: as in `invalidate`.
        """
        run_now(self._hub.write(self._hub.blocking(), self._named((), tags, None, settle)))

    async def ainvalidate_tags(self, *tags: str, settle: Duration | None = None) -> None:
        """`invalidate_tags`, to be awaited; goes on to its end if it is cancelled."""
        await self._hub.write(self._hub.running(), self._named((), tags, None, settle))

    def clear(self) -> None:
        """Remove every entry of this namespace and of those inside it, everywhere. One round trip, however many.

        Nothing is scanned: the entries can no longer be read from now on, and leave Redis with their TTLs.
        """
        run_now(self._hub.write(self._hub.blocking(), [Invalidation(self._scope.epochs[-1])]))

    async def aclear(self) -> None:
        """`clear`, to be awaited; goes on to its end if it is cancelled."""
        await self._hub.write(self._hub.running(), [Invalidation(self._scope.epochs[-1])])

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
        return run_now(self._apply(self._hub.blocking(), changes, settle))

    async def aapply(
        self, changes: Iterable[Change | tuple[str, Version | None]], *, settle: Duration | None = None
    ) -> int:
        """`apply`, to be awaited."""
        return await self._apply(self._hub.running(), changes, settle)

    async def _apply(self, engine: Engine, changes: Iterable[Any], settle: Duration | None) -> int:
        items = invalidations(self._scope, changes, round(settle_seconds(settle) * 1000))
        missed: Unreachable | None = None
        for at in range(0, len(items), MOST_AT_ONCE):
            try:
                await self._hub.write(engine, items[at : at + MOST_AT_ONCE])
            except Unreachable as error:  # queued; so must the others be
                missed = error
        if missed is not None:
            raise missed
        return len(items)

    def _named(
        self, keys: Sequence[str], tags: Sequence[str], version: Version | None, settle: Duration | None
    ) -> list[Invalidation]:
        of_source, settle_ms = version_text(version), round(settle_seconds(settle) * 1000)
        return [Invalidation(name, settle_ms, of_source) for name in names_of(self._scope, keys, tags)]

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
        return Writing(self._hub, self._scope, keys, tags, version, Terms(mode, settle, delay, intent))

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
        terms = Terms(mode, settle, delay, intent)

        def open_write(keys: list[str], tags: list[str]) -> Writing:
            return Writing(self._hub, self._scope, keys, tags, None, terms)

        return decorate_writes(open_write, keys, tags, version, called="guard.invalidates")

    def expire(self, *keys: str) -> None:
        """Make *keys* stale: the old value is still there for when the load is slow or fails. One round trip."""
        run_now(self._tell(self._hub.blocking().expire, keys))

    async def aexpire(self, *keys: str) -> None:
        """`expire`, to be awaited."""
        await self._tell(self._hub.running().expire, keys)

    async def _tell(self, engine_call: Callable[[list[str]], Any], keys: Sequence[str]) -> None:
        names = [self._scope.key(key) for key in texts(keys)]
        self._hub.forget_here([Invalidation(name) for name in names])
        await self._hub.tell(engine_call, names)

    # Running

    def load_alone_when(self, alone: Callable[[], object]) -> Callable[[], None]:
        """Ask *alone*, too, before every load, like the option of that name; for what is set up after the guard.

        Args:
            alone: a plain function without parameters; where it says yes, the load is its caller's own. Of this guard
                and all its namespaces.

        Returns:
            A function that ends it. No round trip.
        """
        shared = self._hub.shared
        asked = question("alone", alone)
        shared.questions = (*shared.questions, asked)

        def end() -> None:
            shared.questions = tuple(each for each in shared.questions if each is not asked)

        return end

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
        _check_color(fn, is_async=False)
        engine = self._hub.blocking(l2=self._rules.l2)
        return run_now(
            warm(engine.runtime, self._hub.new_lock(), fn, calls, rate=rate, progress=progress, concurrency=concurrency)
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
        _check_color(fn, is_async=True)
        engine = self._hub.running(l2=self._rules.l2)
        return await warm(
            engine.runtime, self._hub.new_lock(), fn, calls, rate=rate, progress=progress, concurrency=concurrency
        )

    def stats(self) -> Stats:
        """Counts since the guard was made, of all its namespaces in this process."""
        return self._hub.stats()

    @contextmanager
    def disabled(self) -> Generator[None]:
        """Everything loads and nothing is cached while this is open, in this process and all its threads.

        Invalidations go on as ever. The in-process tier is empty afterwards.
        """
        self._hub.switch(off=True)
        try:
            yield
        finally:
            self._hub.switch(off=False)

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

    # What they share

    def _merged(self, options: Mapping[str, Any]) -> Rules:
        if not options:
            return self._rules
        try:
            name = tuple(options.items())
            known = self._calls.get(name)
        except TypeError:  # an option without a hash
            return resolve(Policy.of(options).over(self._policy))
        if known is None:
            known = resolve(Policy.of(options).over(self._policy))
            if len(self._calls) < MOST_CALL_POLICIES:
                self._calls[name] = known
        return known

    def _alive(self, key: str, rules: Rules) -> Entry | None:
        """The entry in the process that can be used; counts the hit."""
        return self._hub.local.alive(key) if rules.l1 else None

    def _out(self, stored: Stored, default: Any) -> Any:
        if stored.kind is Kind.ERROR:
            return default
        return copied(stored.value) if self._hub.options.l1_copy else stored.value


def _policy(policy: object) -> Policy:
    if policy is None:
        return Policy()
    if not isinstance(policy, Policy):
        raise ConfigurationError(f"policy must be a Policy, got {policy!r}")
    return policy


def _check_bloom(bloom: object) -> None:
    if bloom is not None and not isinstance(bloom, BloomFilter):
        raise ConfigurationError(f"bloom must be a filter made by guard.bloom(…), got {bloom!r}")


def _check_color(fn: object, *, is_async: bool) -> None:
    if getattr(getattr(fn, "cacheguard", None), "is_async", is_async) is not is_async:
        wanted, other = ("a coroutine function", "warm") if is_async else ("a blocking function", "awarm")
        raise ConfigurationError(f"this takes {wanted}, got {fn!r}; use {other} for it")


def _loader_of_one(loader: Callable[[list[str]], Any], name: str) -> Callable[[], Any]:
    """The loader of many keys as a loader of one, for a key that goes its own way."""

    def one() -> Any:
        loaded = loader([name])
        return _picked(loaded, name) if isawaitable(loaded) else loaded.get(name)

    return one


async def _picked(loaded: Any, name: str) -> Any:
    return (await loaded).get(name)
