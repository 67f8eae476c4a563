"""Warns if a load waits for a connection of the pool: those who hold the connections may wait for the load."""

from __future__ import annotations

import logging
import time
from typing import Any

from sqlalchemy import Engine, QueuePool

log: logging.Logger = logging.getLogger("cacheguard")

SAYS_EVERY = 60.0  # seconds


class PoolWatch:
    """Looks at the pool before a load takes a connection."""

    def __init__(self) -> None:
        self._said_at = float("-inf")

    def consider(self, bind: Any) -> None:
        """Log a warning if all connections of *bind* are in use, once a minute."""
        pool = bind.pool if isinstance(bind, Engine) else None
        if not isinstance(pool, QueuePool) or not is_exhausted(pool):
            return
        if time.monotonic() - self._said_at < SAYS_EVERY:
            return
        self._said_at = time.monotonic()
        log.warning(
            "loads wait for a connection of %r: all %d are in use. If the callers hold them, the loads fail when the "
            "pool's timeout ends: give the loaders an engine of their own",
            bind,
            pool.checkedout(),
        )


def is_exhausted(pool: QueuePool) -> bool:
    """True if the next connection can only be one that somebody gives back."""
    queue: Any = pool
    most: int = queue._max_overflow  # noqa: SLF001 - it has no other name
    return most >= 0 and pool.checkedin() == 0 and pool.overflow() >= most
