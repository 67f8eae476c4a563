"""``CACHEGUARD_…`` in an app's configuration → a guard."""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias, cast

from cacheguard import CacheGuard, Policy
from cacheguard.errors import ConfigurationError
from cacheguard.extending import DEFAULTS, GUARD_OPTIONS, POLICY_FIELDS, seconds

log: logging.Logger = logging.getLogger("cacheguard")

PREFIX = "CACHEGUARD_"
LONGEST_NAMESPACE = 100

HashMethod: TypeAlias = Callable[[bytes], Any]

# Flask-Caching's settings, with what does the same here; None: nothing does.
_OF_FLASK_CACHING: Mapping[str, str | None] = {
    "CACHE_TYPE": "CACHEGUARD_URL",
    "CACHE_DEFAULT_TIMEOUT": "CACHEGUARD_TTL",
    "CACHE_KEY_PREFIX": "CACHEGUARD_NAMESPACE",
    "CACHE_REDIS_URL": "CACHEGUARD_URL",
    "CACHE_REDIS_HOST": "CACHEGUARD_URL",
    "CACHE_REDIS_PORT": "CACHEGUARD_URL",
    "CACHE_REDIS_PASSWORD": "CACHEGUARD_URL",
    "CACHE_REDIS_DB": "CACHEGUARD_URL",
    "CACHE_REDIS_SENTINELS": "CACHEGUARD_URL",
    "CACHE_REDIS_SENTINEL_MASTER": "CACHEGUARD_URL",
    "CACHE_REDIS_CLUSTER": "CACHEGUARD_URL",
    "CACHE_THRESHOLD": "CACHEGUARD_L1_SIZE",
    "CACHE_SOURCE_CHECK": "CACHEGUARD_SOURCE_CHECK",
    "CACHE_SERIALIZER": "CACHEGUARD_SERIALIZER",
    "CACHE_OPTIONS": "CACHEGUARD_…",
    "CACHE_NO_NULL_WARNING": None,
    "CACHE_IGNORE_ERRORS": None,
    "CACHE_ARGS": None,
    "CACHE_DIR": None,
    "CACHE_MEMCACHED_SERVERS": None,
    "CACHE_MEMCACHED_USERNAME": None,
    "CACHE_MEMCACHED_PASSWORD": None,
    "CACHE_UWSGI_NAME": None,
}

_OWN = ("disabled", "hash_method", "source_check")
_PAIRS = ("error_backoff", "not_found")  # tuples, which JSON (and so the environment) can only give as lists


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What an app's configuration asks for, checked.

    Args:
        guard: made of ``CACHEGUARD_<option of CacheGuard>`` and ``CACHEGUARD_<field of Policy>``.
        disabled: ``CACHEGUARD_DISABLED``: everything loads, nothing is cached.
        hash_method: ``CACHEGUARD_HASH_METHOD``: what digests in keys are made with.
        source_check: ``CACHEGUARD_SOURCE_CHECK``: whether a function's source is part of its keys.
        null_ttl: seconds for which what does not exist is remembered; None: it is not.
        ttl: how long what is given no timeout is kept, as the policy has it.
        l1: whether the in-process tier is used.
    """

    guard: CacheGuard
    disabled: bool
    hash_method: HashMethod
    source_check: bool
    null_ttl: float | None
    ttl: Any
    l1: bool


def settings_of(config: Mapping[str, Any], default_namespace: str) -> Settings:
    """The settings in *config*.

    Raises:
        ConfigurationError: a ``CACHEGUARD_…`` that does not exist, or cannot work; it names the setting.
    """
    given = {name.removeprefix(PREFIX): config[name] for name in config if name.startswith(PREFIX)}
    for name in given:
        _check_name(name)
    own = {name.lower(): value for name, value in given.items() if name.lower() in _OWN}
    policy = Policy(**{name: _field(name, given[name.upper()]) for name in POLICY_FIELDS if name.upper() in given})
    options = {name: _option(name, given[name.upper()]) for name in GUARD_OPTIONS if name.upper() in given}
    options.setdefault("namespace", default_namespace[:LONGEST_NAMESPACE])
    disabled, source_check = own.get("disabled", False), own.get("source_check", False)
    for name, value in (("DISABLED", disabled), ("SOURCE_CHECK", source_check)):
        if not isinstance(value, bool):
            raise ConfigurationError(f"{PREFIX}{name} must be True or False, got {value!r}")
    hash_method = checked_hash_method(own.get("hash_method", hashlib.sha256), f"{PREFIX}HASH_METHOD")
    whole: Any = policy.over(DEFAULTS)
    try:
        guard = CacheGuard(policy=policy, **options)
    except ConfigurationError as error:
        raise ConfigurationError(_named(str(error))) from error
    return Settings(
        guard=guard,
        disabled=disabled,
        hash_method=hash_method,
        source_check=source_check,
        null_ttl=None if whole.null_ttl is None else seconds(whole.null_ttl, "null_ttl"),
        ttl=whole.ttl,
        l1=whole.l1,
    )


def say_what_is_ignored(config: Mapping[str, Any]) -> None:
    """Log one warning that names the settings of Flask-Caching: they have no effect here."""
    ignored = [name for name in config if name in _OF_FLASK_CACHING and config[name] is not None]
    if ignored:
        listed = [f"{name} (here {_OF_FLASK_CACHING[name]})" if _OF_FLASK_CACHING[name] else name for name in ignored]
        log.warning("settings of Flask-Caching without an effect on CacheGuardFlask: %s", ", ".join(sorted(listed)))


def checked_hash_method(method: Any, name: str) -> HashMethod:
    """*method* if it makes a digest of bytes, as `hashlib.sha256` does."""
    try:
        if isinstance(method(b"").hexdigest(), str):
            return cast("HashMethod", method)
    except Exception as error:
        raise ConfigurationError(f"{name} must be a function like hashlib.sha256, got {method!r}") from error
    raise ConfigurationError(f"{name} must be a function like hashlib.sha256, got {method!r}")


def _check_name(name: str) -> None:
    known = sorted({each.upper() for each in (*GUARD_OPTIONS, *POLICY_FIELDS, *_OWN)})
    if name not in known:
        raise ConfigurationError(f"unknown setting {PREFIX}{name}; there are {PREFIX} and: {', '.join(known)}")


def _field(name: str, value: Any) -> Any:
    """The value of a field of the policy, checked by itself, so that the message can name the setting."""
    if name in _PAIRS and issubclass(type(value), list):
        several: list[Any] = value
        value = (*several,)
    try:
        Policy(**{name: value})
    except ConfigurationError as error:
        raise ConfigurationError(_named(str(error))) from error
    return value


def _option(name: str, value: Any) -> Any:
    """The value of an option of the guard; configuration files and the environment have text where it takes bytes."""
    if name != "secret":
        return value
    if issubclass(type(value), list | tuple):
        several: Iterable[Any] = value
        return [_option(name, each) for each in several]
    return value.encode() if isinstance(value, str) else value


def _named(message: str) -> str:
    """*message* of the core, which names options as parameters, with the names that they have here."""
    return re.sub(
        r"^(\w+)( and (\w+))?",
        lambda found: " and ".join(_setting(name) for name in (found[1], found[3]) if name),
        message,
        count=1,
    )


def _setting(name: str) -> str:
    return f"{PREFIX}{name.upper()}" if name in GUARD_OPTIONS or name in POLICY_FIELDS else name
