"""A backend for Flask-Caching: ``CACHE_TYPE = "cacheguard_flask.CacheGuardBackend"``."""

from __future__ import annotations

import hmac
import pickle
import weakref
from collections.abc import Mapping, Sequence
from datetime import timedelta
from hashlib import sha256
from typing import Any, cast
from urllib.parse import quote

from cachelib.serializers import BaseSerializer, JSONSerializer, SimpleSerializer
from flask import Flask
from flask_caching.backends.base import BaseCache

from cacheguard import MISSING, CacheGuard, Policy
from cacheguard.errors import CodecError, ConfigurationError
from cacheguard.extending import GUARD_OPTIONS, POLICY_FIELDS, TAGGED, keeps_in_redis

from .timeouts import ttl_of
from .values import counted

SHORTEST_SECRET_KEY = 16  # bytes; what is shorter can be guessed, and who guesses it chooses what is unpickled
PURPOSE = b"cacheguard_flask.CacheGuardBackend"

_OPTIONS = tuple(name for name in GUARD_OPTIONS if name != "serializer")
_FIELDS = tuple(name for name in POLICY_FIELDS if name != "ttl")
_OF_FLASK_CACHING = ("default_timeout", "ignore_delete_many_errors")

# Flask-Caching means its timeouts exactly: memoize keeps a version beside its values, which must not go before them.
_POLICY = Policy(jitter=0.0, stale_if_error=None)


class TypedSerializer(BaseSerializer):
    """A ``CACHE_SERIALIZER`` of plain data without pickle: builtin types, dates, `Decimal`, `UUID`, nested."""

    def dumps(self, value: Any, protocol: int = 0) -> bytes | None:  # noqa: ARG002 - cachelib's signature
        """The bytes of *value*; None, with a warning in the log, if it has none."""
        try:
            return TAGGED.encode(value)
        except CodecError as error:
            self._warn(error)
            return None

    def loads(self, bvalue: bytes) -> Any:
        """The value in *bvalue*; None, with a warning in the log, if there is none."""
        try:
            return TAGGED.decode(bvalue)
        except CodecError as error:
            self._warn(error)
            return None


class CacheGuardBackend(BaseCache):
    """Flask-Caching's cache on a guard: two tiers, and other processes hear of what is deleted.

    Values are pickled, as Flask-Caching's users expect, and in Redis they are signed: with ``CACHE_OPTIONS["secret"]``,
    else with a key derived from the app's ``SECRET_KEY`` (and ``SECRET_KEY_FALLBACKS``). What is not signed is a miss
    and is never unpickled. Integers are stored plain, to be counted with.

    `factory` takes its Redis from ``CACHE_OPTIONS["url"]``, ``CACHEGUARD_URL``, ``CACHE_REDIS_URL`` or
    ``CACHE_REDIS_HOST`` (with ``…_PORT``, ``…_DB``, ``…_PASSWORD``), its namespace from ``CACHE_KEY_PREFIX``; every
    other option of `CacheGuard` and field of `Policy` may stand in ``CACHE_OPTIONS``, but ``ttl``: that is the timeout.

    Args:
        guard: where values are kept; it is closed with this object.
        default_timeout: seconds for what is given no timeout; 0: no end.
        ignore_delete_many_errors: as Flask-Caching has it; nothing that fails is left undone here.
    """

    serializer: BaseSerializer = SimpleSerializer()

    def __init__(
        self, guard: CacheGuard, default_timeout: int = 300, *, ignore_delete_many_errors: bool = False
    ) -> None:
        super().__init__(default_timeout, ignore_delete_many_errors)
        self.guard = guard
        self._end = weakref.finalize(self, guard.close)

    @classmethod
    def factory(cls, app: Flask, config: dict[str, Any], args: list[Any], kwargs: dict[str, Any]) -> CacheGuardBackend:
        """What Flask-Caching calls.

        Raises:
            ConfigurationError: a setting that cannot work, by its name; a Redis, but no secret to sign pickles with.
        """
        if args:
            raise ConfigurationError(f"CACHE_ARGS must be empty for this backend, got {args!r}; use CACHE_OPTIONS")
        known = (*_OPTIONS, *_FIELDS, *_OF_FLASK_CACHING)
        for name in kwargs:
            if name not in known:
                raise ConfigurationError(f"unknown CACHE_OPTIONS[{name!r}]; there are: {', '.join(sorted(known))}")
        options = {name: kwargs[name] for name in _OPTIONS if name in kwargs}
        if "client" not in options and "aclient" not in options:
            options.setdefault("url", _url(config))
        options.setdefault("namespace", str(config.get("CACHE_KEY_PREFIX") or app.name)[:100])
        options["secret"] = _secrets(options.get("secret"), config)
        try:
            policy = Policy.of({name: kwargs[name] for name in _FIELDS if name in kwargs}).over(_POLICY)
            guard = CacheGuard(policy=policy, **options)
        except ConfigurationError as error:
            raise ConfigurationError(f"CACHE_OPTIONS: {error}") from error
        in_redis = keeps_in_redis(options.get("url"), options.get("client"), options.get("aclient"))
        if in_redis and not options["secret"] and not _is_safe(config.get("CACHE_SERIALIZER")):
            guard.close()
            raise ConfigurationError(
                "CacheGuardBackend keeps pickles in Redis and needs a secret to sign them with: set SECRET_KEY or "
                f"CACHE_OPTIONS['secret'], at least {SHORTEST_SECRET_KEY} bytes of it, or go without pickle by "
                "CACHE_SERIALIZER = cacheguard_flask.TypedSerializer"
            )
        own = {name: kwargs[name] for name in _OF_FLASK_CACHING if name in kwargs}
        return cls(guard, **own)

    def close(self) -> None:
        """End the guard's threads and connections. Twice is once; it happens by itself at the end of the app."""
        self._end()

    def get(self, key: str) -> Any:
        """The value of *key*; None if there is none. At most one round trip."""
        return self._opened(self.guard.get(key, MISSING))

    def get_many(self, *keys: str) -> list[Any]:
        """The values of *keys*, None for those without. At most one round trip."""
        found = self.guard.get_many(keys)
        return [self._opened(found.get(key, MISSING)) for key in keys]

    def has(self, key: str) -> bool:
        """Whether there is a value for *key*. At most one round trip."""
        return self.guard.get(key, MISSING) is not MISSING

    def set(self, key: str, value: Any, timeout: int | timedelta | None = None) -> bool:
        """Store *value*; False if the serializer has no bytes for it. One round trip."""
        return bool(self.set_many({key: value}, timeout))

    def set_many(self, mapping: Mapping[str, Any], timeout: int | timedelta | None = None) -> list[Any]:
        """Store several values; the keys of those that the serializer has bytes for. One round trip."""
        stored = {key: packed for key, value in mapping.items() if (packed := self._packed(value)) is not None}
        self.guard.set_many(stored, **self._ttl(timeout))
        return list(stored)

    def add(self, key: str, value: Any, timeout: int | timedelta | None = None) -> bool:
        """Store *value* if *key* has none; whether it had none. Of several at a time one is told yes."""
        packed = self._packed(value)
        return packed is not None and self.guard.add(key, packed, **self._ttl(timeout))

    def delete(self, key: str) -> bool:
        """Forget *key*; whether there was a value. Two round trips."""
        there = self.has(key)
        self.guard.invalidate(key)
        return there

    def delete_many(self, *keys: str) -> list[Any]:
        """Forget *keys*; the keys. One round trip."""
        self.guard.invalidate(*keys)
        return list(keys)

    def clear(self) -> bool:
        """Forget everything in the namespace; True. One round trip."""
        self.guard.clear()
        return True

    def inc(self, key: str, delta: int = 1) -> int | None:
        """Add *delta* to the integer under *key*, which begins at 0, in one step among all processes; the sum.

        Its timeout is that of the first count. Two round trips; None if Redis cannot be asked.
        """
        return counted(self.guard, key, delta, self._ttl(None))

    def dec(self, key: str, delta: int = 1) -> int | None:
        """`inc` the other way."""
        return self.inc(key, -delta)

    def _packed(self, value: Any) -> bytes | int | None:
        return value if type(value) is int else self.serializer.dumps(value)

    def _opened(self, stored: Any) -> Any:
        if stored is MISSING or type(stored) is int:
            return None if stored is MISSING else stored
        try:
            return self.serializer.loads(stored)
        except (pickle.UnpicklingError, AttributeError, EOFError, ImportError, IndexError, TypeError, ValueError):
            return None  # of a class that has moved or changed since

    def _ttl(self, timeout: int | timedelta | None) -> dict[str, Any]:
        return ttl_of(self.default_timeout if timeout is None else timeout)


def _url(config: Mapping[str, Any]) -> str | None:
    """Where Redis is, as Flask-Caching's users say it; None: as the guard finds it."""
    url: str | None = config.get("CACHEGUARD_URL") or config.get("CACHE_REDIS_URL")
    host = config.get("CACHE_REDIS_HOST")
    if url or not host:
        return url or None
    if not isinstance(host, str):
        raise ConfigurationError(
            f"CACHE_REDIS_HOST must be text, got {host!r}; a client goes to CACHE_OPTIONS['client']"
        )
    password = config.get("CACHE_REDIS_PASSWORD")
    login = f":{quote(password, safe='')}@" if password else ""
    return f"redis://{login}{host}:{config.get('CACHE_REDIS_PORT', 6379)}/{config.get('CACHE_REDIS_DB', 0)}"


def _secrets(given: Any, config: Mapping[str, Any]) -> list[bytes] | None:
    """What entries are signed with, the first, and by which they are known, the others; None: they are not."""
    if given is not None:
        several: Sequence[Any] = given if issubclass(type(given), list | tuple) else [given]
        return [each.encode() if isinstance(each, str) else each for each in several]
    keys = [config.get("SECRET_KEY"), *cast("Sequence[Any]", config.get("SECRET_KEY_FALLBACKS") or ())]
    octets = [key.encode() if isinstance(key, str) else key for key in keys if key]
    return [hmac.digest(key, PURPOSE, sha256) for key in octets if len(key) >= SHORTEST_SECRET_KEY] or None


def _is_safe(serializer: Any) -> bool:
    """Whether *serializer* is known to build nothing but plain data from bytes that anybody may have written."""
    kind = serializer if isinstance(serializer, type) else type(serializer)
    return kind in (JSONSerializer, TypedSerializer)
