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
from cacheguard.extending import GUARD_OPTIONS, POLICY_FIELDS, TAGGED, keeps_in_redis, refuse_once

from .timeouts import ttl_of_call
from .values import counted

SHORTEST_SECRET_KEY = 16  # bytes; a shorter key can be guessed, and an attacker who knows it can forge pickles
PURPOSE = b"cacheguard_flask.CacheGuardBackend"

_OPTIONS = tuple(name for name in GUARD_OPTIONS if name != "serializer")
_FIELDS = tuple(name for name in POLICY_FIELDS if name != "ttl")
_OF_FLASK_CACHING = ("default_timeout", "ignore_delete_many_errors")

# Flask-Caching needs exact timeouts: memoize stores a version beside its values, and it must not expire before them.
_POLICY = Policy(jitter=0.0, stale_if_error=None)


class TypedSerializer(BaseSerializer):
    """A ``CACHE_SERIALIZER`` of plain data without pickle: builtin types, dates, `Decimal`, `UUID`, nested."""

    def dumps(self, value: Any, protocol: int = 0) -> bytes | None:  # noqa: ARG002 - cachelib's signature
        """Encode *value*; None, with a warning in the log, if it cannot be encoded."""
        try:
            return TAGGED.encode(value)
        except CodecError as error:
            self._warn(error)
            return None

    def loads(self, bvalue: bytes) -> Any:
        """Decode *bvalue*; None, with a warning in the log, if it cannot be decoded."""
        try:
            return TAGGED.decode(bvalue)
        except CodecError as error:
            self._warn(error)
            return None


class CacheGuardBackend(BaseCache):
    """A Flask-Caching backend on a guard: two tiers, and deletions reach the other processes.

    Values are pickled, as in Flask-Caching, and signed in Redis: with ``CACHE_OPTIONS["secret"]``, else with a key
    derived from the app's ``SECRET_KEY`` (and ``SECRET_KEY_FALLBACKS``). A value without a valid signature is a miss
    and is never unpickled. Integers are stored plain, so that they can be counted.

    `factory` takes the Redis address from ``CACHE_OPTIONS["url"]``, ``CACHEGUARD_URL``, ``CACHE_REDIS_URL`` or
    ``CACHE_REDIS_HOST`` (with ``…_PORT``, ``…_DB``, ``…_PASSWORD``), and the namespace from ``CACHE_KEY_PREFIX``.
    ``CACHE_OPTIONS`` takes every other option of `CacheGuard` and field of `Policy` except ``ttl``: use the timeout.

    Args:
        guard: stores the values; it is closed with this object.
        default_timeout: in seconds, for values without a timeout; 0: no expiry.
        ignore_delete_many_errors: accepted for Flask-Caching; here a failed deletion stays pending.
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
        """Build the backend from an app's configuration; called by Flask-Caching.

        Raises:
            ConfigurationError: a setting cannot work (the message names it), or Redis is used without a secret for
                signing pickles.
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
        """Close the guard: end its threads and connections. Idempotent; called automatically when the app ends."""
        self._end()

    def get(self, key: str) -> Any:
        """The value of *key*; None if there is none. At most one round trip."""
        return self._opened(self.guard.get(key, MISSING))

    def get_many(self, *keys: str) -> list[Any]:
        """The values of *keys*, None for those without. At most one round trip."""
        found = self.guard.get_many(keys)
        return [self._opened(found.get(key, MISSING)) for key in keys]

    def has(self, key: str) -> bool:
        """True if there is a value for *key*. At most one round trip."""
        return self.guard.get(key, MISSING) is not MISSING

    def set(self, key: str, value: Any, timeout: int | timedelta | None = None) -> bool:
        """Store *value*; False if it cannot be serialized. `CodecError` if it can be read only once. One round trip."""
        return bool(self.set_many({key: value}, timeout))

    def set_many(self, mapping: Mapping[str, Any], timeout: int | timedelta | None = None) -> list[Any]:
        """Store several values; return the keys of those that could be serialized. One round trip."""
        stored = {key: packed for key, value in mapping.items() if (packed := self._packed(key, value)) is not None}
        self.guard.set_many(stored, **self._ttl(timeout))
        return list(stored)

    def add(self, key: str, value: Any, timeout: int | timedelta | None = None) -> bool:
        """Store *value* only if *key* has none; True if stored. Of several concurrent calls, one returns True."""
        packed = self._packed(key, value)
        return packed is not None and self.guard.add(key, packed, **self._ttl(timeout))

    def delete(self, key: str) -> bool:
        """Delete *key*; True if there was a value. Two round trips."""
        there = self.has(key)
        self.guard.invalidate(key)
        return there

    def delete_many(self, *keys: str) -> list[Any]:
        """Delete *keys*; return them. One round trip."""
        self.guard.invalidate(*keys)
        return list(keys)

    def clear(self) -> bool:
        """Delete everything in the namespace; return True. One round trip."""
        self.guard.clear()
        return True

    def inc(self, key: str, delta: int = 1) -> int | None:
        """Add *delta* to the integer under *key*, atomically across all processes; return the sum.

        A missing value counts as 0. The timeout is that of the first call. Two round trips; None without Redis.
        """
        return counted(self.guard, key, delta, self._ttl(None))

    def dec(self, key: str, delta: int = 1) -> int | None:
        """Subtract *delta*, as `inc` adds it."""
        return self.inc(key, -delta)

    def _packed(self, key: str, value: Any) -> bytes | int | None:
        refuse_once(key, value, "the value")
        return value if type(value) is int else self.serializer.dumps(value)

    def _opened(self, stored: Any) -> Any:
        if stored is MISSING or type(stored) is int:
            return None if stored is MISSING else stored
        try:
            return self.serializer.loads(stored)
        except (pickle.UnpicklingError, AttributeError, EOFError, ImportError, IndexError, TypeError, ValueError):
            return None  # its class has moved or changed since it was stored

    def _ttl(self, timeout: int | timedelta | None) -> dict[str, Any]:
        return ttl_of_call(self.default_timeout if timeout is None else timeout)


def _url(config: Mapping[str, Any]) -> str | None:
    """The Redis URL from Flask-Caching's settings; None: the guard's own default."""
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
    """The signing keys: the first one signs, all of them verify. None: entries are not signed."""
    if given is not None:
        several: Sequence[Any] = given if issubclass(type(given), list | tuple) else [given]
        return [each.encode() if isinstance(each, str) else each for each in several]
    keys = [config.get("SECRET_KEY"), *cast("Sequence[Any]", config.get("SECRET_KEY_FALLBACKS") or ())]
    octets = [key.encode() if isinstance(key, str) else key for key in keys if key]
    return [hmac.digest(key, PURPOSE, sha256) for key in octets if len(key) >= SHORTEST_SECRET_KEY] or None


def _is_safe(serializer: Any) -> bool:
    """True if *serializer* is known to build only plain data, even from untrusted bytes."""
    kind = serializer if isinstance(serializer, type) else type(serializer)
    return kind in (JSONSerializer, TypedSerializer)
