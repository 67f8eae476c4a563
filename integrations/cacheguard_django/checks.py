"""System checks: mistakes in ``CACHES``, and settings with surprising effects.

=====================  =========================================================================================
``cacheguard.W001``    ``memory://`` without ``DEBUG``: every process has a cache of its own
``cacheguard.W002``    sessions in a cache that keeps entries in the process
``cacheguard.W003``    pickle without signatures
``cacheguard.W004``    ``ATOMIC_REQUESTS`` and a cache that is not filled inside transactions
``cacheguard.W005``    two caches share a namespace and cannot read each other's entries
``cacheguard.W006``    sessions that are in the cache alone
=====================  =========================================================================================
"""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from typing import Any

from django.apps import AppConfig
from django.conf import settings
from django.core.cache import caches
from django.core.checks import CheckMessage, Warning  # noqa: A004 - Django's name for it
from django.utils.module_loading import import_string

from .backend import CacheGuardCache
from .options import Pickle, Settings
from .sessions import CACHE_ONLY

SESSIONS = (CACHE_ONLY, "django.contrib.sessions.backends.cached_db")


def check_caches(
    app_configs: Sequence[AppConfig] | None = None,  # noqa: ARG001 - what Django passes
    **_: Any,
) -> list[CheckMessage]:
    """Check every cache of this backend in ``CACHES``. Opens no connection.

    Raises `InvalidCacheBackendError` for a cache that cannot be made, as Django's own checks do.
    """
    messages: list[CheckMessage] = []
    found: dict[str, Settings] = {}
    for alias in settings.CACHES:
        if not _is_ours(settings.CACHES[alias].get("BACKEND")):
            continue
        cache: Any = caches[alias]
        found[alias] = cache.settings
    for alias, each in found.items():
        messages += _about(alias, each)
    return messages + _unreadable(found)


def _is_ours(name: Any) -> bool:
    try:
        kind: Any = import_string(name)
    except (ImportError, AttributeError, TypeError):
        return False
    return isinstance(kind, type) and issubclass(kind, CacheGuardCache)


def _about(alias: str, each: Settings) -> list[CheckMessage]:
    messages: list[CheckMessage] = []
    if each.in_process and not settings.DEBUG:
        messages.append(
            Warning(
                f"CACHES[{alias!r}] is memory://: every process has a cache of its own, and nobody hears of what the "
                "others invalidate.",
                hint="Give it a LOCATION like 'redis://localhost:6379/0', or set CACHEGUARD_URL.",
                id="cacheguard.W001",
            )
        )
    sessions = settings.SESSION_ENGINE in SESSIONS and alias == settings.SESSION_CACHE_ALIAS
    if each.policy.get("l1") and sessions and not each.in_process:
        messages.append(
            Warning(
                f"CACHES[{alias!r}] keeps entries in the process (l1) and holds the sessions: for about a millisecond "
                "after a login or a logout, other processes may see the old session.",
                hint="Leave l1 off there, or give the sessions a cache of their own by SESSION_CACHE_ALIAS.",
                id="cacheguard.W002",
            )
        )
    if settings.SESSION_ENGINE == CACHE_ONLY and alias == settings.SESSION_CACHE_ALIAS:
        messages.append(
            Warning(
                f"CACHES[{alias!r}] holds the sessions, and nothing else does: while Redis is away, and after it has "
                "lost its data, everybody is logged out.",
                hint="Set SESSION_ENGINE to 'django.contrib.sessions.backends.cached_db'.",
                id="cacheguard.W006",
            )
        )
    if each.guard["secret"] is None and (
        each.guard["serializer"] is pickle or isinstance(each.guard["serializer"], Pickle)
    ):
        messages.append(
            Warning(
                f"CACHES[{alias!r}] reads pickles that nobody has signed: whoever can write to Redis can run code "
                "here.",
                hint="Leave secret out of OPTIONS: entries are signed with a key derived from SECRET_KEY then.",
                id="cacheguard.W003",
            )
        )
    atomic = [name for name, database in settings.DATABASES.items() if database.get("ATOMIC_REQUESTS")]
    if atomic and not each.fill_in_atomic:
        messages.append(
            Warning(
                f"DATABASES[{atomic[0]!r}] has ATOMIC_REQUESTS: what views load inside that transaction is not put "
                f"into CACHES[{alias!r}].",
                hint="Decorate reading views with transaction.non_atomic_requests, or set fill_in_atomic in OPTIONS, "
                "if no reader of what is cached minds rows that are not committed yet.",
                id="cacheguard.W004",
            )
        )
    return messages


def _unreadable(found: dict[str, Settings]) -> list[CheckMessage]:
    messages: list[CheckMessage] = []
    first: dict[tuple[Any, ...], tuple[str, Settings]] = {}
    for alias, each in found.items():
        where = (each.url, each.guard.get("client"), each.guard["namespace"])
        other, theirs = first.setdefault(where, (alias, each))
        mine = (each.guard["secret"], each.guard["serializer"])
        if mine != (theirs.guard["secret"], theirs.guard["serializer"]):
            messages.append(
                Warning(
                    f"CACHES[{alias!r}] and CACHES[{other!r}] share a namespace in the same Redis, but differ in "
                    "secret or serializer: each takes the other's entries for damaged, and overwrites them.",
                    hint="Give one of them a namespace of its own in OPTIONS.",
                    id="cacheguard.W005",
                )
            )
    return messages
