"""``CACHES`` → the options of a guard. An error names the setting."""

from __future__ import annotations

import hmac
import pickle
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any, cast

from django.conf import settings
from django.core.cache.backends.base import InvalidCacheBackendError
from django.db import connections
from django.utils.module_loading import import_string

from cacheguard import CacheGuard, Policy
from cacheguard.errors import ConfigurationError
from cacheguard.extending import (
    FOREVER,
    GUARD_OPTIONS,
    POLICY_FIELDS,
    at_thread_end,
    keeps_in_redis,
    take_closures,
)

from .atomic import is_open

NAMESPACE = "django"
OWN = ("fill_in_atomic", "reverse_key_function")
GUARD = tuple(name for name in GUARD_OPTIONS if name not in {"url", "alone"})


class Pickle:
    """Any object that pickles, as Django's own backends store it."""

    def dumps(self, value: Any) -> bytes:
        return pickle.dumps(value, pickle.HIGHEST_PROTOCOL)

    def loads(self, data: bytes) -> Any:
        return pickle.loads(data)  # noqa: S301 - only what is signed with the project's secret comes here


PICKLE = Pickle()


@dataclass(frozen=True)
class Settings:
    """One entry of ``CACHES``, checked.

    Args:
        url: the address of Redis; None: from the environment.
        guard: options of `CacheGuard`.
        policy: fields of `Policy` that were given.
        timeout: seconds, the default of every entry; None: no expiry.
        fill_in_atomic: True: values loaded inside a transaction are cached, too.
        reverse_key_function: the inverse of ``KEY_FUNCTION``.
    """

    url: str | None = field(repr=False)  # with a password
    guard: dict[str, Any] = field(repr=False)  # with a secret
    policy: dict[str, Any]
    timeout: int | None
    fill_in_atomic: bool
    reverse_key_function: Callable[[str], str] | None

    @property
    def in_process(self) -> bool:
        """True if there is no Redis: ``memory://``."""
        return not keeps_in_redis(self.url, self.guard.get("client"), self.guard.get("aclient"))

    def open(self) -> CacheGuard:
        """Make a guard with these settings. Opens no connection yet."""
        # L1 in other processes may lag by a millisecond. Sessions and counters must not, so L1 is off by default.
        ttl = FOREVER if self.timeout is None else max(self.timeout, 0.001)
        fields: dict[str, Any] = {"ttl": ttl, "l1": False, **self.policy}
        policy = Policy(**fields)
        alone = None if self.fill_in_atomic else is_open
        try:
            guard = CacheGuard(self.url, policy=policy, alone=alone, **self.guard)
        except ConfigurationError as error:
            raise InvalidCacheBackendError(f"CACHES: {error}") from error
        take_closures(guard)
        at_thread_end(guard, connections.close_all)
        return guard


def check_options(params: Mapping[str, Any]) -> None:
    """Raise `InvalidCacheBackendError` unless ``OPTIONS`` is a dict."""
    given: Any = params.get("OPTIONS", {})
    if not isinstance(given, Mapping):
        raise InvalidCacheBackendError(f"CACHES: OPTIONS must be a dict, got {given!r}")


def read_settings(location: object, params: Mapping[str, Any], timeout: int | None) -> Settings:
    """Read the settings of one cache; `InvalidCacheBackendError` names a setting that cannot work."""
    options = dict(params.get("OPTIONS", {}))
    unknown = [name for name in options if name not in (*POLICY_FIELDS, *GUARD, *OWN)]
    if unknown:
        known = ", ".join((*OWN, *GUARD, *POLICY_FIELDS))
        raise InvalidCacheBackendError(f"CACHES: unknown OPTIONS {', '.join(map(repr, unknown))}; there are: {known}")
    policy = {name: options.pop(name) for name in POLICY_FIELDS if name in options}
    try:
        Policy(**policy)
    except ConfigurationError as error:
        raise InvalidCacheBackendError(f"CACHES: OPTIONS: {error}") from error
    fill = options.pop("fill_in_atomic", False)
    if not isinstance(fill, bool):
        raise InvalidCacheBackendError(f"CACHES: OPTIONS: fill_in_atomic must be True or False, got {fill!r}")
    reverse = _imported("reverse_key_function", options.pop("reverse_key_function", None))
    if reverse is not None and not callable(reverse):
        raise InvalidCacheBackendError(f"CACHES: OPTIONS: reverse_key_function must be a function, got {reverse!r}")
    if timeout is not None and timeout > FOREVER:
        raise InvalidCacheBackendError(
            f"CACHES: TIMEOUT must be at most 365 days, or None for no expiry, got {timeout!r}"
        )
    url, made = _url(location, options), _guard_options(options)
    return Settings(url, made, policy, timeout, fill_in_atomic=fill, reverse_key_function=cast("Any", reverse))


def _url(location: Any, options: Mapping[str, Any]) -> str | None:
    if type(location) in (list, tuple):
        if len(location) != 1:
            raise InvalidCacheBackendError(
                "CACHES: LOCATION must be one URL (redis+sentinel://, redis+cluster:// and redis+ring:// name several "
                f"servers), got {len(location)} of them"
            )
        (location,) = location
    if not location:
        return None
    if not isinstance(location, str):
        raise InvalidCacheBackendError(
            f"CACHES: LOCATION must be a URL like 'redis://localhost:6379/0', got {type(location).__name__}"
        )
    if "client" in options or "aclient" in options:
        raise InvalidCacheBackendError("CACHES: give a LOCATION or OPTIONS with a client, not both")
    return location


def _guard_options(options: dict[str, Any]) -> dict[str, Any]:
    serializer = options.get("serializer", PICKLE)
    serializer = PICKLE if serializer == "pickle" else _imported("serializer", serializer)
    made = {
        "namespace": NAMESPACE,
        "l1_copy": True,  # Django code may change a value that it got from a cache
        **options,
        "serializer": serializer() if isinstance(serializer, type) else serializer,
    }
    if "secret" not in options:
        made["secret"] = secrets()
    elif isinstance(made["secret"], str):
        made["secret"] = made["secret"].encode()
    return made


def secrets() -> list[bytes]:
    """The signing keys, derived from the project's secrets. The first one signs, all of them verify."""
    keys = [settings.SECRET_KEY, *settings.SECRET_KEY_FALLBACKS]
    raw = [key if isinstance(key, bytes) else str(key).encode() for key in keys]
    return [hmac.new(b"cacheguard_django", key, sha256).digest() for key in raw]


def _imported(name: str, value: Any) -> Any:
    """*value*, or the object that it names if it is a dotted path."""
    if not isinstance(value, str):
        return value
    try:
        return import_string(value)
    except ImportError as error:
        raise InvalidCacheBackendError(f"CACHES: OPTIONS: {name} must be importable, got {value!r}") from error
