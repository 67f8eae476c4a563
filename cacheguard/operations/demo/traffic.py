"""The requests of one worker: the same for both applications, drawn from the seed alone."""

from __future__ import annotations

import random
from array import array
from dataclasses import dataclass

from .disasters import PROCESSES, Disaster
from .shop import PRODUCTS

_FARTHEST_ID = 2**40
_IMPOSSIBLE = 0.05  # share of ids that no shop could have


@dataclass(frozen=True, slots=True)
class Traffic:
    """What to ask for and when; `due` in seconds after the start, empty if there is no timetable."""

    ids: array[int]
    due: array[float]
    writes: tuple[tuple[float, int, int], ...]
    """When, which product, its new price in cents."""


def plan(disaster: Disaster, seed: int, worker: int) -> Traffic:
    """The requests of *worker*."""
    draw = random.Random(f"{seed}/{disaster.name}/{worker}")
    count = disaster.requests // PROCESSES
    ids = array("q", (_product(disaster, draw) for _ in range(count)))
    if disaster.seconds is None:
        return Traffic(ids, array("d"), ())
    due = array("d", sorted(draw.uniform(0, disaster.seconds) for _ in range(count)))
    moments = sorted(draw.uniform(0, disaster.seconds) for _ in range(disaster.writes // PROCESSES))
    writes = tuple((at, _product(disaster, draw), draw.randrange(199, 99_900)) for at in moments)
    return Traffic(ids, due, writes)


def _product(disaster: Disaster, draw: random.Random) -> int:
    if not disaster.products:
        return -draw.randrange(1000) if draw.random() < _IMPOSSIBLE else draw.randrange(PRODUCTS + 1, _FARTHEST_ID)
    return 1 + int(disaster.products * draw.random() ** (1 + 2 * disaster.hot))


def share(disaster: Disaster, worker: int) -> range:
    """The products that *worker* caches beforehand."""
    each = -(-disaster.products // PROCESSES)
    return range(1 + worker * each, min(disaster.products, (worker + 1) * each) + 1)
