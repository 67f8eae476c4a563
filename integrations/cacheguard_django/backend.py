"""The cache backend: Django's API and that of django-redis, over one guard."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator, Iterable, Mapping
from datetime import datetime
from typing import Any

from django.core.cache.backends.base import DEFAULT_TIMEOUT, BaseCache

from cacheguard import MISSING, CacheGuard
from cacheguard.extending import FOREVER, Oversize, bus_channel, seconds_up_to_forever

from .guards import opened
from .listing import PAGE, apages, pages
from .options import Settings, check_options
from .recording import recorded
from .sessions import is_session
from .texts import key_of, literal, pattern_of, text_of
from .timeouts import in_seconds, milliseconds_left, rounded_seconds, seconds_of, until, without_infinity
from .values import adding, counted, evaluated, evaluating, serializer_errors, too_large

_KEY_PARTS = 3


class CacheGuardCache(BaseCache):
    """``BACKEND: "cacheguard_django.CacheGuardCache"``.

    A read costs at most one round trip for any number of keys. So does a write, except `touch` and `incr`, which cost
    two. Without Redis, reads are misses, writes are dropped, and deletions are pending until it is back.

    Args:
        server: ``LOCATION``: ``redis://``, ``rediss://``, ``unix://``, ``redis+sentinel://``, ``redis+cluster://``, ``redis+ring://``,
            ``memory://``; empty: the environment's ``CACHEGUARD_URL``.
        params: the rest of the entry in ``CACHES``; ``OPTIONS`` may hold every option of `CacheGuard`, every field of
            `Policy`, ``fill_in_atomic`` and ``reverse_key_function``.

    Raises:
        InvalidCacheBackendError: a setting cannot work; the message names it.
    """

    def __init__(self, server: Any, params: dict[str, Any]) -> None:
        check_options(params)
        super().__init__(without_infinity(params))
        timeout: Any = self.default_timeout
        self._opened = opened(server, params, timeout)
        self.guard: CacheGuard = self._opened.guard
        policy = self._opened.settings.policy
        # As in Django, timeouts are exact and expired entries are not served, unless OPTIONS say otherwise.
        self._exact: dict[str, Any] = {
            "jitter": policy.get("jitter", 0.0),
            "stale_if_error": policy.get("stale_if_error"),
        }

    @property
    def settings(self) -> Settings:
        """The settings from ``CACHES``, checked."""
        return self._opened.settings

    @property
    def in_process(self) -> bool:
        """True if there is no Redis: ``memory://``."""
        return self.settings.in_process

    @property
    def channel(self) -> str:
        """The Pub/Sub channel of the invalidation bus."""
        return bus_channel(self.settings.guard["namespace"])

    def text_of(self, key: Any, version: int | None = None) -> str:
        """The guard's key text for *key*."""
        return self._text(key, version)

    # Common to all methods

    def get_backend_timeout(self, timeout: Any = DEFAULT_TIMEOUT) -> float | None:
        """*timeout* in seconds, at least 0; None: no expiry. `ValueError` or `TypeError` for what is no number."""
        if timeout is DEFAULT_TIMEOUT:
            timeout = self.default_timeout
        return seconds_of(timeout)

    def _text(self, key: Any, version: int | None) -> str:
        return text_of(str(self.make_and_validate_key(key, version=version)))

    def _texts(self, keys: Iterable[Any], version: int | None) -> dict[str, Any]:
        """The keys by their key texts."""
        return {self._text(key, version): key for key in keys}

    def _lifetime(self, timeout: Any) -> dict[str, Any] | None:
        """The policy of an entry with this *timeout*; None if it expires at once."""
        seconds = self.get_backend_timeout(timeout)
        if seconds is not None and seconds <= 0:
            return None
        ttl = FOREVER if seconds is None else seconds_up_to_forever(seconds, "timeout")
        return {**self._exact, "ttl": ttl, "null_ttl": None}

    def _lasting(self, timeout: Any) -> dict[str, Any] | None:
        """`_lifetime`, with None cached like any other value."""
        policy = self._lifetime(timeout)
        return None if policy is None else {**policy, "null_ttl": policy["ttl"]}

    def _is_lost_session(self, key: Any) -> bool:
        """True if *key* is that of a new session which cannot be stored, because Redis is away."""
        return is_session(key) and not self.guard.stats().l2_up

    # Reading

    @recorded
    def get(self, key: Any, default: Any = None, version: int | None = None) -> Any:
        return self.guard.get(self._text(key, version), default)

    @recorded
    async def aget(self, key: Any, default: Any = None, version: int | None = None) -> Any:
        return await self.guard.aget(self._text(key, version), default)

    @recorded
    def get_many(self, keys: Iterable[Any], version: int | None = None) -> dict[Any, Any]:
        texts = self._texts(keys, version)
        return {texts[text]: value for text, value in self.guard.get_many(texts).items()}

    @recorded
    async def aget_many(self, keys: Iterable[Any], version: int | None = None) -> dict[Any, Any]:
        texts = self._texts(keys, version)
        return {texts[text]: value for text, value in (await self.guard.aget_many(texts)).items()}

    @recorded
    def has_key(self, key: Any, version: int | None = None) -> bool:
        return self.guard.inspect(self._text(key, version)).state in {"fresh", "null"}

    @recorded
    async def ahas_key(self, key: Any, version: int | None = None) -> bool:
        return (await self.guard.ainspect(self._text(key, version))).state in {"fresh", "null"}

    @recorded
    def get_or_set(self, key: Any, default: Any, timeout: Any = DEFAULT_TIMEOUT, version: int | None = None) -> Any:
        """The value of *key*. On a miss, store and return *default*, or its result if it is a function.

        Concurrent callers in all processes share one call of the function. Inside a transaction, it is called for this
        caller only and its result is not cached, unless ``fill_in_atomic`` is set in ``OPTIONS``.
        """
        policy = self._lasting(timeout)
        if callable(default) and policy is not None:
            return self.guard.get_or_set(self._text(key, version), default, **_without_stale(policy))
        value = self.get(key, MISSING, version=version)
        if value is not MISSING:
            return value
        if callable(default):
            return default()
        if self.add(key, default, timeout=timeout, version=version):
            return default
        return self.get(key, default, version=version)

    @recorded
    async def aget_or_set(
        self, key: Any, default: Any, timeout: Any = DEFAULT_TIMEOUT, version: int | None = None
    ) -> Any:
        """`get_or_set`, to be awaited; *default* may be a coroutine function."""
        policy = self._lasting(timeout)
        if callable(default) and policy is not None:
            return await self.guard.aget_or_set(self._text(key, version), evaluating(default), **_without_stale(policy))
        value = await self.aget(key, MISSING, version=version)
        if value is not MISSING:
            return value
        if callable(default):
            made: Any = default()
            return await made if hasattr(made, "__await__") else made
        if await self.aadd(key, default, timeout=timeout, version=version):
            return default
        return await self.aget(key, default, version=version)

    # Writing

    @recorded
    def add(self, key: Any, value: Any, timeout: Any = DEFAULT_TIMEOUT, version: int | None = None) -> bool:
        policy = self._lifetime(timeout)
        if policy is None:
            return not self.has_key(key, version=version)
        text = self._text(key, version)
        try:
            with serializer_errors():
                added = self.guard.add(text, value, **policy)
        except Oversize as error:
            if is_session(key):  # Django would try again, with 10,000 keys
                raise
            too_large(text, error)
            return False
        return added or self._is_lost_session(key)

    @recorded
    async def aadd(self, key: Any, value: Any, timeout: Any = DEFAULT_TIMEOUT, version: int | None = None) -> bool:
        policy = self._lifetime(timeout)
        if policy is None:
            return not await self.ahas_key(key, version=version)
        text = self._text(key, version)
        try:
            with serializer_errors():
                added = await self.guard.aadd(text, await evaluated(value), **policy)
        except Oversize as error:
            if is_session(key):  # as above
                raise
            too_large(text, error)
            return False
        return added or self._is_lost_session(key)

    @recorded
    def set(  # type: ignore[override]  # Django's answers nothing; with nx it has to
        self,
        key: Any,
        value: Any,
        timeout: Any = DEFAULT_TIMEOUT,
        version: int | None = None,
        *,
        nx: bool = False,
    ) -> bool:
        """Store *value*; with *nx*, only if there is no value, like `add`. True if it was stored.

        A value larger than ``max_value_bytes`` is not stored, and the old value is deleted. It is logged and counted.
        """
        if nx:
            return self.add(key, value, timeout=timeout, version=version)
        policy, text = self._lifetime(timeout), self._text(key, version)
        if policy is None:
            self.guard.invalidate(text)
            return True
        try:
            with serializer_errors():
                self.guard.set(text, value, **policy)
        except Oversize as error:
            too_large(text, error)
            self.guard.invalidate(text)
            return False
        return True

    @recorded
    async def aset(  # type: ignore[override]  # as above
        self,
        key: Any,
        value: Any,
        timeout: Any = DEFAULT_TIMEOUT,
        version: int | None = None,
        *,
        nx: bool = False,
    ) -> bool:
        """`set`, to be awaited."""
        if nx:
            return await self.aadd(key, value, timeout=timeout, version=version)
        policy, text = self._lifetime(timeout), self._text(key, version)
        if policy is None:
            await self.guard.ainvalidate(text)
            return True
        try:
            with serializer_errors():
                await self.guard.aset(text, await evaluated(value), **policy)
        except Oversize as error:
            too_large(text, error)
            await self.guard.ainvalidate(text)
            return False
        return True

    @recorded
    def set_many(
        self, data: Mapping[Any, Any], timeout: Any = DEFAULT_TIMEOUT, version: int | None = None
    ) -> list[Any]:
        """Store all of *data*; return the keys that were not stored. One round trip."""
        values = {self._text(key, version): value for key, value in data.items()}
        policy = self._lifetime(timeout)
        if policy is None:
            self.guard.invalidate(*values)
            return []
        try:
            with serializer_errors():
                self.guard.set_many(values, **policy)
        except Oversize:
            return [key for key, value in data.items() if not self.set(key, value, timeout, version)]
        return [] if self.guard.stats().l2_up else list(data)

    @recorded
    async def aset_many(
        self, data: Mapping[Any, Any], timeout: Any = DEFAULT_TIMEOUT, version: int | None = None
    ) -> list[Any]:
        """`set_many`, to be awaited."""
        values = {self._text(key, version): await evaluated(value) for key, value in data.items()}
        policy = self._lifetime(timeout)
        if policy is None:
            await self.guard.ainvalidate(*values)
            return []
        try:
            with serializer_errors():
                await self.guard.aset_many(values, **policy)
        except Oversize:
            return [key for key, value in data.items() if not await self.aset(key, value, timeout, version)]
        return [] if self.guard.stats().l2_up else list(data)

    @recorded
    def touch(self, key: Any, timeout: Any = DEFAULT_TIMEOUT, version: int | None = None) -> bool:
        policy, text = self._lasting(timeout), self._text(key, version)
        return self.guard.remove(text) > 0 if policy is None else self.guard.touch(text, **policy)

    @recorded
    async def atouch(self, key: Any, timeout: Any = DEFAULT_TIMEOUT, version: int | None = None) -> bool:
        policy, text = self._lasting(timeout), self._text(key, version)
        return await self.guard.aremove(text) > 0 if policy is None else await self.guard.atouch(text, **policy)

    @recorded
    def delete(self, key: Any, version: int | None = None) -> bool:
        return self.guard.remove(self._text(key, version)) > 0

    @recorded
    async def adelete(self, key: Any, version: int | None = None) -> bool:
        return await self.guard.aremove(self._text(key, version)) > 0

    @recorded
    def delete_many(  # type: ignore[override]  # Django's answers nothing
        self, keys: Iterable[Any], version: int | None = None
    ) -> int | None:
        """Delete *keys* in one round trip; return how many existed, None if *keys* is empty."""
        texts = self._texts(keys, version)
        return self.guard.remove(*texts) if texts else None

    @recorded
    async def adelete_many(  # type: ignore[override]  # as above
        self, keys: Iterable[Any], version: int | None = None
    ) -> int | None:
        """`delete_many`, to be awaited."""
        texts = self._texts(keys, version)
        return await self.guard.aremove(*texts) if texts else None

    @recorded
    def incr(self, key: Any, delta: int = 1, version: int | None = None, *, ignore_key_check: bool = False) -> int:
        """Add *delta* to a value, atomically across all processes; return the sum. The timeout does not change.

        `ValueError` if there is no value; with *ignore_key_check*, the value is then set to *delta*. Two round trips.
        """
        with serializer_errors():
            value = self.guard.update(self._text(key, version), adding(delta))
            while value is MISSING and ignore_key_check and self.guard.stats().l2_up:
                if self.add(key, delta, version=version):
                    return delta
                value = self.guard.update(self._text(key, version), adding(delta))
            return counted(value, key)

    @recorded
    async def aincr(
        self, key: Any, delta: int = 1, version: int | None = None, *, ignore_key_check: bool = False
    ) -> int:
        """`incr`, to be awaited."""
        with serializer_errors():
            value = await self.guard.aupdate(self._text(key, version), adding(delta))
            while value is MISSING and ignore_key_check and self.guard.stats().l2_up:
                if await self.aadd(key, delta, version=version):
                    return delta
                value = await self.guard.aupdate(self._text(key, version), adding(delta))
            return counted(value, key)

    def decr(self, key: Any, delta: int = 1, version: int | None = None, *, ignore_key_check: bool = False) -> int:
        """Subtract *delta*, as `incr` adds it."""
        return self.incr(key, -delta, version=version, ignore_key_check=ignore_key_check)

    async def adecr(
        self, key: Any, delta: int = 1, version: int | None = None, *, ignore_key_check: bool = False
    ) -> int:
        """`decr`, to be awaited."""
        return await self.aincr(key, -delta, version=version, ignore_key_check=ignore_key_check)

    @recorded
    def clear(self) -> None:
        """Delete everything in the namespace, also the results of decorated functions; nothing else in Redis."""
        self.guard.clear()

    @recorded
    async def aclear(self) -> None:
        """`clear`, to be awaited."""
        await self.guard.aclear()

    def close(self, **kwargs: Any) -> None:
        """Do nothing: Django calls this after every request, but the connections belong to the process."""

    async def aclose(self, **kwargs: Any) -> None:
        """Do nothing, like `close`."""

    # The API of django-redis

    @recorded
    def pttl(self, key: Any, version: int | None = None) -> int | None:
        """The remaining lifetime of *key* in milliseconds: None without expiry, 0 if there is no value."""
        return milliseconds_left(self.guard.inspect(self._text(key, version)))

    @recorded
    async def apttl(self, key: Any, version: int | None = None) -> int | None:
        """`pttl`, to be awaited."""
        return milliseconds_left(await self.guard.ainspect(self._text(key, version)))

    def ttl(self, key: Any, version: int | None = None) -> int | None:
        """The remaining lifetime of *key* in seconds, rounded: None without expiry, 0 if there is no value."""
        return rounded_seconds(self.pttl(key, version=version))

    async def attl(self, key: Any, version: int | None = None) -> int | None:
        """`ttl`, to be awaited."""
        return rounded_seconds(await self.apttl(key, version=version))

    def persist(self, key: Any, version: int | None = None) -> bool:
        """Remove the expiry of *key*; True if there is a value."""
        return self.touch(key, timeout=None, version=version)

    async def apersist(self, key: Any, version: int | None = None) -> bool:
        """`persist`, to be awaited."""
        return await self.atouch(key, timeout=None, version=version)

    def expire(self, key: Any, timeout: Any, version: int | None = None) -> bool:
        """Let *key* expire in *timeout* seconds, or a `timedelta`; True if there is a value."""
        return self.touch(key, timeout=in_seconds(timeout), version=version)

    async def aexpire(self, key: Any, timeout: Any, version: int | None = None) -> bool:
        """`expire`, to be awaited."""
        return await self.atouch(key, timeout=in_seconds(timeout), version=version)

    def pexpire(self, key: Any, timeout: Any, version: int | None = None) -> bool:
        """Let *key* expire in *timeout* milliseconds, or a `timedelta`; True if there is a value."""
        return self.touch(key, timeout=in_seconds(timeout, 1000), version=version)

    async def apexpire(self, key: Any, timeout: Any, version: int | None = None) -> bool:
        """`pexpire`, to be awaited."""
        return await self.atouch(key, timeout=in_seconds(timeout, 1000), version=version)

    def expire_at(self, key: Any, when: float | datetime, version: int | None = None) -> bool:
        """Let *key* expire at *when*, in seconds since 1970 or a `datetime`; True if there is a value.

        By the clock of this machine.
        """
        return self.touch(key, timeout=until(when), version=version)

    async def aexpire_at(self, key: Any, when: float | datetime, version: int | None = None) -> bool:
        """`expire_at`, to be awaited."""
        return await self.atouch(key, timeout=until(when), version=version)

    def pexpire_at(self, key: Any, when: float | datetime, version: int | None = None) -> bool:
        """`expire_at`, with milliseconds since 1970."""
        return self.touch(key, timeout=until(when, 1000), version=version)

    async def apexpire_at(self, key: Any, when: float | datetime, version: int | None = None) -> bool:
        """`pexpire_at`, to be awaited."""
        return await self.atouch(key, timeout=until(when, 1000), version=version)

    def iter_keys(self, search: str, version: int | None = None, itersize: int = PAGE) -> Generator[str]:
        """Yield the keys that match *search*, as they were given to `set`. Two round trips per *itersize* keys.

        Args:
            search: a Redis pattern (``*``, ``?``, ``[a-c]``) over the key without prefix and version.
            version: as everywhere.
            itersize: how many keys of the namespace are scanned at a time.

        Keys of more than 250 characters are not found. Raises `Unreachable` without Redis.
        """
        for texts in pages(self.guard, self._pattern(search, version), itersize):
            yield from map(self._reversed, texts)

    async def aiter_keys(self, search: str, version: int | None = None, itersize: int = PAGE) -> AsyncGenerator[str]:
        """`iter_keys`, for ``async for``."""
        async for texts in apages(self.guard, self._pattern(search, version), itersize):
            for text in texts:
                yield self._reversed(text)

    @recorded
    def keys(self, search: str = "*", version: int | None = None) -> list[str]:
        """The keys that match *search*, each once."""
        return list(dict.fromkeys(self.iter_keys(search, version=version)))

    @recorded
    async def akeys(self, search: str = "*", version: int | None = None) -> list[str]:
        """`keys`, to be awaited."""
        return list(dict.fromkeys([key async for key in self.aiter_keys(search, version=version)]))

    @recorded
    def delete_pattern(self, pattern: str, version: int | None = None, itersize: int = PAGE) -> int:
        """Delete the keys that match *pattern*, as `iter_keys` finds them; return how many existed.

        Three round trips per *itersize* keys scanned. Invalidating a tag costs one, for any number of keys.
        """
        return sum(self.guard.remove(*texts) for texts in pages(self.guard, self._pattern(pattern, version), itersize))

    @recorded
    async def adelete_pattern(self, pattern: str, version: int | None = None, itersize: int = PAGE) -> int:
        """`delete_pattern`, to be awaited."""
        count = 0
        async for texts in apages(self.guard, self._pattern(pattern, version), itersize):
            count += await self.guard.aremove(*texts)
        return count

    def lock(
        self,
        key: Any,
        version: int | None = None,
        timeout: float | None = None,
        sleep: float = 0.1,
        *,
        blocking: bool = True,
        blocking_timeout: float | None = None,
        thread_local: bool = True,
    ) -> Any:
        """Return a `redis.lock.Lock` of redis-py under a key of this namespace; ``with cache.lock("import"):``.

        It is stored beside the entries: neither `get` nor `clear` sees it. Without *timeout* it stays locked if its
        process dies.

        Args:
            key: the name of the lock.
            version: as everywhere.
            timeout: seconds after which it is released automatically.
            sleep: seconds between two attempts.
            blocking: True: ``acquire`` waits.
            blocking_timeout: seconds that it waits at most; None: no limit.
            thread_local: True: only the thread that acquired the lock can release it.

        Raises `ConfigurationError` with ``memory://``.
        """
        return self.client.lock(
            f"cg-lock:{self.settings.guard['namespace']}:{self._text(key, version)}",
            timeout=timeout,
            sleep=sleep,
            blocking=blocking,
            blocking_timeout=blocking_timeout,
            thread_local=thread_local,
        )

    @property
    def client(self) -> Any:
        """A `redis.Redis` for the same server, shared by the process, for everything that is not a cache."""
        return self._opened.client()

    def _pattern(self, search: str, version: int | None) -> str:
        """A pattern over key texts for *search* over keys."""
        prefix = literal(self.key_prefix)
        return pattern_of(str(self.key_func(search, prefix, self.version if version is None else version)))

    def _reversed(self, text: str) -> str:
        """The key as it was given, from its text."""
        key, reverse = key_of(text), self.settings.reverse_key_function
        if reverse is not None:
            return reverse(key)
        # Django's own key function makes prefix:version:key; the prefix may contain colons.
        inner = key.removeprefix(f"{self.key_prefix}:")
        parts = f":{inner}".split(":", _KEY_PARTS - 1)
        return parts[-1]


def _without_stale(policy: dict[str, Any]) -> dict[str, Any]:
    """*policy* for a load, with the stale windows from OPTIONS."""
    return {name: value for name, value in policy.items() if name != "stale_if_error" or value is not None}
