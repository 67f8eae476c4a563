"""A hot key that expires must be rebuilt once, not by every reader."""

from __future__ import annotations

import math
from enum import Enum, auto

FIRST_POLL, LONGEST_POLL, POLL_GROWTH = 0.010, 0.200, 0.2
XFETCH_BETA = 1.0

MOST_DOUBLINGS = 62


class Verdict(Enum):
    """What a reader may do with the entry that it found."""

    FRESH = auto()
    REVALIDATE = auto()  # serve it, and reload in the background
    LOAD = auto()  # there is nothing, or it is too old to serve while a load may still succeed


def judge(fresh_left: float | None, revalidate: float) -> Verdict:
    """The verdict on an entry that stays fresh for *fresh_left* seconds (negative: stale since); None: no entry."""
    if fresh_left is None:
        return Verdict.LOAD
    if fresh_left > 0:
        return Verdict.FRESH
    return Verdict.REVALIDATE if -fresh_left < revalidate else Verdict.LOAD


def early_by(load_time: float, draw: float) -> float:
    """How many seconds before its expiry an entry should be reloaded by a reader that drew *draw* from [0, 1).

    XFetch: ``-delta * beta * ln(draw)`` (Vattani, Chierichetti, Lowenstein: Optimal Probabilistic Cache Stampede
    Prevention, VLDB 2015). The slower the load, the earlier it starts.
    """
    return -load_time * XFETCH_BETA * math.log(1.0 - draw)


def poll_delay(waited: float, draw: float, *, told: bool = False) -> float:
    """How long a waiter sleeps before it asks again for a lease that another process holds.

    A fifth of what it has waited already, between 10 and 200 ms, so that a short load is noticed at once and a long
    one costs few polls; up to a quarter less, so that waiters do not come in step.

    Args:
        waited: for how many seconds.
        draw: from [0, 1).
        told: True if it will be told of the end of that load, as a rule: then it asks only in case it is not.
    """
    pause = LONGEST_POLL if told else min(LONGEST_POLL, max(FIRST_POLL, waited * POLL_GROWTH))
    return pause * (0.75 + 0.25 * draw)


def next_pause(previous: float | None, backoff: tuple[float, float]) -> float:
    """The pause after another failed load: the first one, doubling up to the longest."""
    first, longest = backoff
    return first if previous is None else min(longest, previous * 2)


def pause_after(failures: int, backoff: tuple[float, float]) -> float:
    """The pause after so many failed loads in a row, in whatever processes they ran."""
    first, longest = backoff
    return min(longest, first * 2.0 ** min(failures - 1, MOST_DOUBLINGS))
