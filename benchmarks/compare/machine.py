"""Where and with what was measured: nothing that names the host or its folders."""

from __future__ import annotations

import json
import os
import platform
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import redis

CLIENTS = ("cacheguard", "redis", "hiredis", "msgspec", "cachetools", "pybloom-live")
PEERS = (
    "aiocache", "async-lru", "cachebox", "cachetools", "cashews", "coredis", "django", "django-redis", "dogpile.cache",
    "flask-caching", "py-cachify", "pybloom-live", "rbloom", "redis", "theine", "valkey-glide", "valkey-glide-sync",
)  # fmt: skip
ENOUGH = 10  # peers without which a comparison is none
BUSY = 0.25  # load per core, before the run, from which on the figures are not to be quoted


def version_of(name: str) -> str | None:
    """The installed version of a distribution."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def processor() -> str:
    """The model of the processor."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.machine() or "unknown processor"


def server_at(url: str) -> str:
    """What answers at *url*."""
    with redis.Redis.from_url(url) as client:
        return f"redis-server {client.info('server')['redis_version']}"


def describe(server: str) -> dict[str, Any]:
    """Versions and machine, before anything is measured."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "server": server,
        "system": f"{platform.system()} {platform.machine()}",
        "processor": processor(),
        "cores": cores,
        "load": round(os.getloadavg()[0], 2),
        "versions": {name: version_of(name) for name in sorted({*CLIENTS, *PEERS})},
        "not_installed": not_installed(),
    }


def not_installed() -> dict[str, str]:
    """Requirement and reason, as install.py has noted them."""
    notes = Path(sys.prefix) / "not-installed.json"
    return dict(json.loads(notes.read_text(encoding="utf-8"))) if notes.exists() else {}


def busy(machine: dict[str, Any]) -> bool:
    """Whether others were at work when the run began."""
    return bool(machine["load"] > BUSY * machine["cores"])
