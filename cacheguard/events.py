"""What happened: counters, and a log line when a state changes."""

from __future__ import annotations

import logging
import math
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Literal

from .durations import NOW
from .errors import Refused

log: logging.Logger = logging.getLogger("cacheguard")

AGES = (0.01, 0.1, 1.0, 10.0, 60.0, 600.0, 3600.0, 86_400.0, math.inf)
"""Upper bounds, in seconds, of the buckets in `Stats.age_at_serve`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StateChange:
    """Something has changed its state: what ``on_state_change`` is called with."""

    of: Literal["redis", "bus", "breaker"]
    """``"redis"``: whether its last answer came. ``"bus"``: whether invalidations are proven to arrive. ``"breaker"``:
    whether a server is asked at all."""
    name: str
    """Of the server, where there are several; otherwise as ``of``."""
    before: str
    after: str
    """``"up"`` or ``"down"``; of a breaker: ``"closed"``, ``"open"`` or ``"half-open"``."""
    why: str
    """In words, for people."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stats:
    """Counts since the guard was made. Hits are counted without locks and may miss a few under many threads."""

    l1_hits: int
    """Answers from the in-process tier."""
    l2_hits: int
    """Answers from Redis (one round trip)."""
    replica_hits: int
    """Of these, answers from a replica (``read_from="replica"``)."""
    misses: int
    """Reads that found no usable entry in either tier."""
    stale_hits: int
    """Answers older than their TTL: revalidated behind, or instead of a failed or slow load."""
    null_hits: int
    """Answers that were a cached absence, whatever the tier."""
    shared: int
    """Reads that were answered by a load that another reader in this process had started."""
    waits: int
    """Times this process waited for a load in another process."""
    loads: int
    """Loaders started."""
    load_failures: int
    """Loaders that raised something other than an absence."""
    load_timeouts: int
    """Loaders that took longer than their hard timeout."""
    refreshes: int
    """Loads started behind an answer (stale or early)."""
    backoffs: int
    """Reads answered with the exception of a load that had just failed."""
    overloads: int
    """Loads refused because too many ran already."""
    fills: int
    """Loaded values stored in Redis."""
    fills_refused: int
    """Loaded values not stored because an invalidation came in between."""
    fills_old: int
    """Loaded values not stored because a newer version of their row is known: a replica lags behind."""
    fills_failed: int
    """Loaded values not stored because Redis did not take them."""
    invalidations: int
    """Keys, tags and namespaces invalidated or expired here."""
    invalidations_queued: int
    """Invalidations that Redis has not acknowledged yet (now, not since start)."""
    replayed: int
    """Invalidations repeated because another Redis answers than the one that had acknowledged them."""
    outbox_overflows: int
    """Times more was pending than can be kept, so that the whole namespace was invalidated instead."""
    bus_messages: int
    """Invalidations heard of from other processes."""
    bus_gaps: int
    """Times the invalidation bus was interrupted."""
    audits: int
    """Hits compared with what the loader says."""
    audits_different: int
    """Of these, those where the cache was stale: still different when looked at once more."""
    absences_over_budget: int
    """Absences not cached because too many were outstanding."""
    bloom_rejects: int
    """Calls answered "absent" by a Bloom filter."""
    bloom_losses: int
    """Times a Bloom filter was found lost or damaged."""
    validate_rejects: int
    """Calls answered "absent" by ``validate``."""
    undecodable: int
    """Entries in Redis that could not be read: garbage, foreign types, other versions of a class."""
    unencodable: int
    """Values that could not become bytes and were kept out of Redis."""
    oversize: int
    """Values larger than ``max_value_bytes``."""
    redis_errors: int
    """Round trips that failed."""
    evictions: int
    """Entries that left the in-process tier to make room."""
    l1_entries: int
    """Entries in the in-process tier (now)."""
    l1_bytes: int
    """Their size in bytes (now); 0 unless ``l1_max_bytes`` is set."""
    l2_skips: int
    """Round trips not made because Redis was left alone: its breaker was open."""
    breaker_opens: int
    """Times the breaker of a Redis server opened."""
    breaker_rejects: int
    """Loads not begun because the breaker of what they load from was open."""
    fallbacks: int
    """Reads answered with the caller's ``fallback``."""
    breaker: str
    """Of Redis, now: ``"closed"``, ``"open"`` or ``"half-open"``; of several servers, the worst."""
    l2_up: bool
    """Whether the last round trip to Redis succeeded; where there are several nodes, to each of them."""
    bus_up: bool
    """Whether it is proven that other processes' invalidations arrive; while not, L1 is off unless Redis is away."""
    age_at_serve: tuple[tuple[float, int], ...]
    """How old what was served was: (upper bound in seconds, count), a bucket each. An L1 hit counts as old as its entry
    was when its hits were counted, a few seconds later at most."""


class Events:
    """The guard's counters; plain ints, exported when asked.

    Args:
        node: what this Redis is called, where there are several and each has counters of its own.
        above: the counters of the guard, in that case.
    """

    __slots__ = (
        *(field.name for field in fields(Stats) if field.name != "age_at_serve"),
        "_ages",
        "_warned",
        "_above",
        "_node",
        "_now",
        "_where",
        "failed_at",
        "failures",
        "on_state_change",
        "over",
    )

    def __init__(
        self,
        node: str = "",
        above: Events | None = None,
        on_state_change: Callable[[StateChange], object] | None = None,
    ) -> None:
        for name in self.__slots__:
            setattr(self, name, 0)
        self._node, self._above = node, above
        self._where = f" ({node})" if node else ""
        self.l2_up: bool = True
        self.breaker: str = "closed"
        self.on_state_change = on_state_change
        self.bus_up: bool = False
        self.over: bool = False  # the guard is closed: what breaks from now on is no news
        self.failures: int = 0  # round trips in a row that Redis did not answer
        self.failed_at: float = -math.inf  # monotonic: the last of them
        self._now = NOW.get()
        self._ages = [0] * len(AGES)
        self._warned: set[str] = set()

    if TYPE_CHECKING:
        # The counters are named once, as the fields of `Stats`; a test sees that everything counted is one of them.
        redis_errors: int  # counted here: a checker wants to know
        breaker_opens: int

        def __getattr__(self, name: str) -> int: ...
        def __setattr__(self, name: str, value: Any) -> None: ...

    def redis_failed(self, error: BaseException) -> None:
        """Count a failed round trip; the first of a row is logged."""
        self.redis_errors += 1
        if not isinstance(error, Refused):
            self.failures += 1
            self.failed_at = self._now()
        if self.l2_up and not self.over:
            self.l2_up = False
            log.warning("Redis%s is out of reach, going on without it: %s", self._where, error)
            self._report("redis", "redis", "up", "down", str(error))

    def redis_partly_failed(self, error: BaseException) -> None:
        """Count a round trip in which one of several servers could not be asked; the first is logged."""
        self.redis_errors += 1
        self.once("partly", "a server of Redis is out of reach, going on with the others: %s", error)

    def redis_refused(self, error: BaseException) -> None:
        """Count a call that Redis answered with an error; each kind of error is logged once."""
        self.redis_errors += 1
        self.once(f"refused {str(error).partition(' ')[0]}", "Redis%s refuses calls: %s", self._where, error)

    def redis_answered(self) -> None:
        """Note that Redis is back, if it was away."""
        if not self.l2_up:
            self.l2_up = True
            self.failures = 0
            log.warning("Redis%s answers again", self._where)
            self._report("redis", "redis", "down", "up", "it answers again")

    def breaker_changed(self, name: str, before: str, after: str, why: str) -> None:
        """The breaker of the server *name* has changed its state."""
        self.breaker_opens += before == "closed"
        log.info("the breaker of %s is %s: %s", self._node or name, after, why)
        self._report("breaker", name, before, after, why)

    def bus_changed(self, *, up: bool, why: str) -> None:
        """The bus has begun or ceased to prove that invalidations arrive."""
        self.bus_up = up
        log.info("the invalidation bus%s is %s", self._where, why)
        self._report("bus", "bus", "down" if up else "up", "up" if up else "down", why)

    def _report(self, of: Literal["redis", "bus", "breaker"], name: str, before: str, after: str, why: str) -> None:
        listener = self.on_state_change if self._above is None else self._above.on_state_change
        if listener is None:
            return
        try:
            listener(StateChange(of=of, name=self._node or name, before=before, after=after, why=why))
        except Exception:
            if self.first("on_state_change"):
                log.exception("on_state_change failed")

    def first(self, about: str) -> bool:
        """Whether *about* comes up for the first time."""
        if about in self._warned or len(self._warned) >= 1000:  # noqa: PLR2004 - a bound on memory, not a meaning
            return False
        self._warned.add(about)
        return True

    def once(self, about: str, message: str, *args: object) -> None:
        """Warn about one thing once."""
        if self.first(about):
            log.warning(message, *args)

    def served(self, age: float, count: int = 1) -> None:
        """Note how old something was when it was served, in seconds."""
        self._ages[bisect_left(AGES, age)] += count

    def snapshot(self, entries: int, size: int, nodes: Sequence[Events] = ()) -> Stats:
        """The counters as they stand, with what the in-process tier holds, and what was counted at each of *nodes*."""
        names = [field.name for field in fields(Stats) if field.name != "age_at_serve"]
        everywhere = nodes or (self,)
        states = {each.breaker for each in everywhere}
        counts: dict[str, Any] = {
            "l2_up": all(each.l2_up for each in everywhere),
            "bus_up": all(each.bus_up for each in everywhere),
            "breaker": next((state for state in ("open", "half-open") if state in states), "closed"),
        }
        counts |= {name: sum(getattr(each, name) for each in (self, *nodes)) for name in names if name not in counts}
        counts |= {"l1_entries": entries, "l1_bytes": size}
        return Stats(**counts, age_at_serve=tuple(zip(AGES, self._ages, strict=True)))
