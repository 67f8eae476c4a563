"""The checks of ``flask cacheguard doctor``."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple
from uuid import uuid4

from cacheguard.extending import DEFAULTS, keeps_in_redis, seconds

from .app_cache import AppCache

SLOW = 0.02  # seconds for a round trip; each hit in Redis takes one


class Finding(NamedTuple):
    """One result of the checks."""

    level: Literal["ok", "warning", "error"]
    text: str


def findings(cache: AppCache, config: Mapping[str, Any]) -> list[Finding]:
    """Try an app's cache and check its settings."""
    return [*_tried(cache), *_settings(cache, config)]


def _tried(cache: AppCache) -> list[Finding]:
    if cache.disabled:
        return [Finding("warning", "CACHEGUARD_DISABLED is set: everything loads, nothing is cached")]
    key = f"cacheguard-doctor:{uuid4()}"
    guard = cache.guard
    guard.set(key, "well", ttl="1m", l1=False)
    began = time.perf_counter()
    came_back = guard.get_or_set(key, lambda: "lost", l1=False)
    took = time.perf_counter() - began
    guard.invalidate(key)
    stats = guard.stats()
    if not stats.l2_up or stats.invalidations_queued:
        return [Finding("error", "Redis cannot be reached; the app works without it, each process for itself")]
    if came_back != "well":
        return [Finding("error", "what was stored did not come back; is Redis full, or read-only?")]
    found = [Finding("ok", f"stored, read and invalidated; a round trip took {took * 1000:.1f} ms")]
    if took > SLOW:
        found.append(Finding("warning", f"a round trip takes {took * 1000:.0f} ms; Redis is far away or busy"))
    return found


def _settings(cache: AppCache, config: Mapping[str, Any]) -> list[Finding]:
    found: list[Finding] = []
    if not keeps_in_redis(*(config.get(f"CACHEGUARD_{name}") for name in ("URL", "CLIENT", "ACLIENT"))):
        found.append(Finding("warning", "memory://: each process has a cache of its own, and cannot hear of others"))
    if config.get("CACHEGUARD_SERIALIZER") is not None and not config.get("CACHEGUARD_SECRET"):
        text = (
            "CACHEGUARD_SERIALIZER without CACHEGUARD_SECRET: who can write to Redis chooses what it is given to read"
        )
        found.append(Finding("warning", text))
    ttl: Any = cache.ttl
    l1_ttl: Any = config.get("CACHEGUARD_L1_TTL", DEFAULTS.l1_ttl)
    if not callable(ttl) and ttl is not None and l1_ttl is not None and seconds(l1_ttl, "") > seconds(ttl, ""):
        found.append(Finding("ok", "CACHEGUARD_L1_TTL is above CACHEGUARD_TTL, which then counts"))
    if config.get("CACHEGUARD_JITTER", DEFAULTS.jitter) in (0, None):
        found.append(Finding("warning", "CACHEGUARD_JITTER=0: what is stored together expires together"))
    if config.get("TRUSTED_HOSTS") is None and config.get("SERVER_NAME") is None:
        found.append(
            Finding("warning", "TRUSTED_HOSTS is not set: pages are kept apart by host, and anybody may make one up")
        )
    return found
