"""Many keys stored together must not expire together, nor be warmed all at once."""

from __future__ import annotations


def jittered(ttl: float, jitter: float, draw: float) -> float:
    """A TTL from ``(ttl * (1 - jitter), ttl]`` for a *draw* from [0, 1): spread out, never longer than asked."""
    return ttl * (1.0 - jitter * draw)


def next_start(index: int, began: float, rate: float | None) -> float:
    """When the load of number *index* may start so that a warm-up keeps to *rate* loads per second."""
    return began if rate is None else began + index / rate
