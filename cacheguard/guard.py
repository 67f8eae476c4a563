"""`CacheGuard`: one object, two doors. A hit in the process is answered here, everything else by the engine."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from inspect import isawaitable
from time import monotonic
from types import TracebackType
from typing import Any, Literal, ParamSpec, Self, TypeVar, Unpack, cast, overload

from .batch import Batch
from .bloom import BloomFilter
from .cached import CachedCoroutineFunction, CachedFunction, Decorator
from .codec import CustomCodec
from .engine import Engine
from .envelope import Kind, Sealer
from .errors import ConfigurationError
from .events import Stats
from .functions import Function
from .hub import Hub, Options, pools
from .keys import namespace_prefix, redis_key
from .loading import Ask
from .methods import decorated
from .missing import MISSING
from .policy import Duration, Policy, PolicyOptions, Rules, resolve, seconds
from .rebuilding import opened, stored_of
from .runtime import run_now
from .tiers.bloom import BloomTier
from .tiers.local import Entry, Eviction, check
from .tiers.packing import copied
from .tiers.remote import Stored
from .warming import Progress, Warmed, warm

P = ParamSpec("P")
R = TypeVar("R")

DEFAULT_MAX_ABSENCES = 100_000
MOST_CALL_POLICIES = 256


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
        url: ``memory://`` (this process alone), ``redis://``, ``rediss://`` or ``unix://``; the environment's
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
        serializer: an object with ``dumps`` and ``loads`` (such as `pickle`, if you trust whoever writes to Redis)
            instead of the typed, safe encoding.
        secret: 16 bytes or more, or several of them (the first signs); entries are signed with HMAC-SHA256, and
            unsigned ones are misses.
        max_value_bytes: largest encoded value that is stored, and to which one may be inflated.
        compression: ``"auto"``, ``"zstd"``, ``"lz4"``, ``"zlib"`` or None.
        compress_above: bytes from which on a value is compressed.
        operation_timeout: seconds for one round trip to Redis; nothing is retried behind it.
        max_loads: loads at once in this process; more wait in line.
        load_wait: how long they wait before `Overloaded`.
        max_absences: absences that this process may have in Redis at a time; beyond, an absence is answered and not
            stored, so random ids cannot fill Redis.
        on_unreachable: ``"queue"``: an invalidation that Redis does not acknowledge is queued and delivered before
            anything else is asked; ``"raise"``: that, and `Unreachable` is raised.

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
        max_absences: int = DEFAULT_MAX_ABSENCES,
        on_unreachable: Literal["queue", "raise"] = "queue",
    ) -> None:
        check(l1_size, l1_max_bytes, l1_eviction)
        if on_unreachable not in ("queue", "raise"):
            raise ConfigurationError(f"on_unreachable must be 'queue' or 'raise', got {on_unreachable!r}")
        options = Options(
            l1_size=l1_size,
            l1_max_bytes=l1_max_bytes,
            l1_eviction=l1_eviction,
            l1_copy=_flag("l1_copy", l1_copy),
            codec=None if serializer is None else CustomCodec(serializer),
            sealer=Sealer(
                secret=secret,
                compression=compression,
                compress_above=compress_above,
                max_value_bytes=max_value_bytes,
            ),
            operation_timeout=seconds(operation_timeout, "operation_timeout"),
            max_loads=_count("max_loads", max_loads),
            load_wait=seconds(load_wait, "load_wait"),
            max_absences=_count("max_absences", max_absences),
            raise_unreachable=on_unreachable == "raise",
        )
        self._names: tuple[str, ...] = (namespace,)
        self._prefix = namespace_prefix(self._names)
        self._policy = _policy(policy)
        self._rules = resolve(self._policy)
        self._calls: dict[tuple[tuple[str, Any], ...], Rules] = {}
        pool, apool, memory = pools(url, client, aclient)
        self._hub = Hub(options, pool, apool, memory=memory)
        if options.codec is not None:
            self._hub.registry.register(options.codec)

    def __repr__(self) -> str:
        return f"<CacheGuard {'/'.join(self._names)!r}>"

    def namespace(self, name: str, policy: Policy | None = None) -> Self:
        """A guard for keys of its own on the same tiers; *policy* goes over this guard's."""
        child = object.__new__(type(self))
        child._names = (*self._names, name)
        child._prefix = namespace_prefix(child._names)
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
        rules = self._merged(policy)

        def decorate(fn: Any) -> Any:
            if type(fn) in (staticmethod, classmethod):
                return type(fn)(decorate(fn.__func__))
            if not callable(fn):
                raise ConfigurationError(f"only functions can be decorated, got {fn!r}")
            function = Function(
                self._hub,
                self._prefix,
                fn,
                key,
                rules,
                tags=tags,
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
        redis_name = redis_key(self._prefix, key)
        entry = self._alive(redis_name, self._rules)
        if entry is not None:
            return self._out(stored_of(entry), default)
        return run_now(self._get(self._hub.blocking(l2=self._rules.l2), redis_name, default))

    async def aget(self, key: str, default: Any = None) -> Any:
        """`get`, to be awaited."""
        redis_name = redis_key(self._prefix, key)
        entry = self._alive(redis_name, self._rules)
        if entry is not None:
            return self._out(stored_of(entry), default)
        return await self._get(self._hub.running(l2=self._rules.l2), redis_name, default)

    async def _get(self, engine: Engine, key: str, default: Any) -> Any:
        if self._hub.off:
            return default
        found = await engine.peek([key], None, self._rules)
        return self._out(found[key][0], default) if found else default

    def get_or_set(self, key: str, loader: Callable[[], Any], **policy: Unpack[PolicyOptions]) -> Any:
        """The value of *key*, loaded by *loader* if there is none. No round trip for a hit in the process."""
        return run_now(self._get_or_set(self._hub.blocking, key, loader, cast("dict[str, Any]", policy)))

    async def aget_or_set(self, key: str, loader: Callable[[], Any], **policy: Unpack[PolicyOptions]) -> Any:
        """`get_or_set`, to be awaited; *loader* may be a coroutine function."""
        return await self._get_or_set(self._hub.running, key, loader, cast("dict[str, Any]", policy))

    async def _get_or_set(
        self, engine_of: Callable[..., Engine], key: str, loader: Callable[[], Any], policy: dict[str, Any]
    ) -> Any:
        _check_loader(loader)
        rules = self._merged(policy)
        ask = Ask(redis_key(self._prefix, key), rules, self._hub.options.codec, loader)
        if self._hub.off:
            return await engine_of(l2=rules.l2).runtime.call(loader)
        entry = self._alive(ask.key, rules)
        answer = opened(stored_of(entry), rules) if entry else await engine_of(l2=rules.l2).read(ask)
        return copied(answer) if self._hub.options.l1_copy else answer

    def get_many(self, keys: Iterable[str]) -> dict[str, Any]:
        """The values of those of *keys* that have one. At most one round trip."""
        return run_now(self._get_many(self._hub.blocking(l2=self._rules.l2), keys))

    async def aget_many(self, keys: Iterable[str]) -> dict[str, Any]:
        """`get_many`, to be awaited."""
        return await self._get_many(self._hub.running(l2=self._rules.l2), keys)

    async def _get_many(self, engine: Engine, keys: Iterable[str]) -> dict[str, Any]:
        names = _texts(keys)
        if self._hub.off:
            return {}
        found = {name: entry for name in names if (entry := self._alive(redis_key(self._prefix, name), self._rules))}
        values = {name: self._out(stored_of(entry), MISSING) for name, entry in found.items()}
        rest = {redis_key(self._prefix, name): name for name in names if name not in found}
        if rest:
            for key, (stored, _) in (await engine.peek(list(rest), None, self._rules)).items():
                values[rest[key]] = self._out(stored, MISSING)
        return {name: values[name] for name in names if values.get(name, MISSING) is not MISSING}

    def get_or_set_many(
        self, keys: Iterable[str], loader: Callable[[list[str]], Any], **policy: Unpack[PolicyOptions]
    ) -> dict[str, Any]:
        """The values of all *keys*; *loader* gets a list of those that are missing and returns a dict.

        What the dict leaves out is an absence, and None in the answer. Keys that another call in this process is
        loading are waited for. Three round trips at most, whatever the number of keys.
        """
        return run_now(self._get_or_set_many(self._hub.blocking, keys, loader, cast("dict[str, Any]", policy)))

    async def aget_or_set_many(
        self, keys: Iterable[str], loader: Callable[[list[str]], Any], **policy: Unpack[PolicyOptions]
    ) -> dict[str, Any]:
        """`get_or_set_many`, to be awaited; *loader* may be a coroutine function."""
        return await self._get_or_set_many(self._hub.running, keys, loader, cast("dict[str, Any]", policy))

    async def _get_or_set_many(
        self,
        engine_of: Callable[..., Engine],
        keys: Iterable[str],
        loader: Callable[[list[str]], Any],
        policy: dict[str, Any],
    ) -> dict[str, Any]:
        _check_loader(loader)
        names, rules = _texts(keys), self._merged(policy)
        engine = engine_of(l2=rules.l2)
        if self._hub.off:
            loaded = await engine.runtime.call(lambda: loader(list(names)))
            return {name: loaded.get(name) for name in names}
        values: dict[str, Any] = {}
        asks: dict[str, Ask] = {}
        by_key: dict[str, str] = {}
        for name in names:
            key = redis_key(self._prefix, name)
            entry = self._alive(key, rules)
            if entry is not None:
                values[name] = opened(stored_of(entry), rules)
            else:
                one = _loader_of_one(loader, name)
                asks[key], by_key[key] = Ask(key, rules, self._hub.options.codec, one), name
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
        redis_name = redis_key(self._prefix, key)
        entry, now = self._hub.local.find(redis_name), monotonic()
        if self._rules.l1 and entry is not None and now < entry.until:
            state: Literal["fresh", "null"] = "null" if entry.kind else "fresh"
            return Inspection(state, "l1", max(0.0, now - entry.born), entry.fresh_until - now, entry.tags)
        found = await engine.look(redis_name)
        if found is None or found.stored is None:
            return Inspection("missing", None, None, None, ())
        stored, left = found.stored, found.fresh_left
        fresh: Literal["fresh", "null"] = "null" if stored.kind is not Kind.VALUE else "fresh"
        return Inspection(fresh if left > 0 else "stale", "l2", max(0.0, stored.ttl - left), left, stored.tags)

    # Writing

    def set(self, key: str, value: Any, *, tags: Sequence[str] = (), **policy: Unpack[PolicyOptions]) -> None:
        """Store *value*; the last writer wins, and a load under way may no longer fill. One round trip.

        Raises `CodecError` if the value has no bytes.
        """
        self.set_many({key: value}, tags=tags, **policy)

    async def aset(self, key: str, value: Any, *, tags: Sequence[str] = (), **policy: Unpack[PolicyOptions]) -> None:
        """`set`, to be awaited."""
        await self.aset_many({key: value}, tags=tags, **policy)

    def set_many(self, values: Mapping[str, Any], *, tags: Sequence[str] = (), **policy: Unpack[PolicyOptions]) -> None:
        """`set` for several keys, in one round trip."""
        run_now(self._set_many(self._hub.blocking, values, tuple(tags), cast("dict[str, Any]", policy)))

    async def aset_many(
        self, values: Mapping[str, Any], *, tags: Sequence[str] = (), **policy: Unpack[PolicyOptions]
    ) -> None:
        """`set_many`, to be awaited."""
        await self._set_many(self._hub.running, values, tuple(tags), cast("dict[str, Any]", policy))

    async def _set_many(
        self, engine_of: Callable[..., Engine], values: Mapping[str, Any], tags: tuple[str, ...], policy: dict[str, Any]
    ) -> None:
        if not values:
            return
        rules = self._merged(policy)
        named = {redis_key(self._prefix, name): value for name, value in values.items()}
        if rules.l2:
            await self._hub.forget_here(list(named))
        codec = self._hub.options.codec
        codecs = {key: codec or self._hub.registry.for_value(value) for key, value in named.items()}
        await self._hub.put(engine_of(l2=rules.l2), named, rules, codecs, tags)

    def touch(self, key: str, **policy: Unpack[PolicyOptions]) -> bool:
        """Give a fresh entry a new TTL; whether there was one. Two round trips."""
        return run_now(self._touch(self._hub.blocking, key, cast("dict[str, Any]", policy)))

    async def atouch(self, key: str, **policy: Unpack[PolicyOptions]) -> bool:
        """`touch`, to be awaited."""
        return await self._touch(self._hub.running, key, cast("dict[str, Any]", policy))

    async def _touch(self, engine_of: Callable[..., Engine], key: str, policy: dict[str, Any]) -> bool:
        rules = self._merged(policy)
        return await self._hub.touch(engine_of(l2=rules.l2), redis_key(self._prefix, key), rules)

    def invalidate(self, *keys: str) -> None:
        """Remove *keys* everywhere. A load that began before this returned fills no tier afterwards. One round trip."""
        run_now(self._tell(self._hub.blocking().invalidate, keys))

    async def ainvalidate(self, *keys: str) -> None:
        """`invalidate`, to be awaited."""
        await self._tell(self._hub.running().invalidate, keys)

    def expire(self, *keys: str) -> None:
        """Make *keys* stale: the old value is still there for when the load is slow or fails. One round trip."""
        run_now(self._tell(self._hub.blocking().expire, keys))

    async def aexpire(self, *keys: str) -> None:
        """`expire`, to be awaited."""
        await self._tell(self._hub.running().expire, keys)

    async def _tell(self, engine_call: Callable[[list[str]], Any], keys: Sequence[str]) -> None:
        names = [redis_key(self._prefix, key) for key in _texts(keys)]
        await self._hub.forget_here(names)
        await self._hub.tell(engine_call, names)

    # Running

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
        entry = self._hub.local.find(key) if rules.l1 else None
        if entry is None or monotonic() >= entry.until:
            return None
        entry.hits += 1
        self._hub.local.touch(entry)
        return entry

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


def _flag(name: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise ConfigurationError(f"{name} must be True or False, got {value!r}")
    return value


def _count(name: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConfigurationError(f"{name} must be a whole number >= 1, got {value!r}")
    return value


def _check_bloom(bloom: object) -> None:
    if bloom is not None and not isinstance(bloom, BloomFilter):
        raise ConfigurationError(f"bloom must be a filter made by guard.bloom(…), got {bloom!r}")


def _texts(keys: Iterable[Any]) -> list[str]:
    if isinstance(keys, str):
        raise TypeError(f"keys must be several texts, got the text {keys!r}")
    names = list(dict.fromkeys(keys))
    for name in names:
        if not isinstance(name, str):
            raise TypeError(f"a key must be text, got {name!r}")
    return names


def _check_color(fn: object, *, is_async: bool) -> None:
    if getattr(getattr(fn, "cacheguard", None), "is_async", is_async) is not is_async:
        wanted, other = ("a coroutine function", "warm") if is_async else ("a blocking function", "awarm")
        raise ConfigurationError(f"this takes {wanted}, got {fn!r}; use {other} for it")


def _check_loader(loader: object) -> None:
    if not callable(loader):
        raise TypeError(f"loader must be a function, got {loader!r}")


def _loader_of_one(loader: Callable[[list[str]], Any], name: str) -> Callable[[], Any]:
    """The loader of many keys as a loader of one, for a key that goes its own way."""

    def one() -> Any:
        loaded = loader([name])
        return _picked(loaded, name) if isawaitable(loaded) else loaded.get(name)

    return one


async def _picked(loaded: Any, name: str) -> Any:
    return (await loaded).get(name)
