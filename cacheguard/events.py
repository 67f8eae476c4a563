"""What happened: counters, and a word in the log when a state changes."""

from __future__ import annotations

import logging
import math
from bisect import bisect_left
from dataclasses import dataclass, fields
from typing import Any

log = logging.getLogger("cacheguard")

AGES = (0.01, 0.1, 1.0, 10.0, 60.0, 600.0, 3600.0, 86_400.0, math.inf)
"""Upper bounds, in seconds, of the buckets in `Stats.age_at_serve`."""


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
    """Times more was owed to Redis than can be kept, so that the whole namespace was invalidated instead."""
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
    l2_up: bool
    """Whether the last round trip to Redis succeeded."""
    bus_up: bool
    """Whether it is proven that other processes' invalidations arrive; while not, L1 is off unless Redis is away."""
    age_at_serve: tuple[tuple[float, int], ...]
    """How old what was served was: (upper bound in seconds, count), a bucket each. An L1 hit counts as old as its entry
    was when its hits were counted, a few seconds later at most."""


class Events:
    """The guard's counters; plain ints, exported when asked."""

    __slots__ = (*(field.name for field in fields(Stats) if field.name != "age_at_serve"), "_ages", "_said")

    def __init__(self) -> None:
        for name in self.__slots__:
            setattr(self, name, 0)
        self.l2_up: bool = True
        self.bus_up: bool = False
        self._ages = [0] * len(AGES)
        self._said: set[str] = set()

    l1_hits: int
    l2_hits: int
    replica_hits: int
    misses: int
    stale_hits: int
    null_hits: int
    shared: int
    waits: int
    loads: int
    load_failures: int
    load_timeouts: int
    refreshes: int
    backoffs: int
    overloads: int
    fills: int
    fills_refused: int
    fills_old: int
    fills_failed: int
    invalidations: int
    invalidations_queued: int
    replayed: int
    outbox_overflows: int
    bus_messages: int
    bus_gaps: int
    audits: int
    audits_different: int
    absences_over_budget: int
    bloom_rejects: int
    bloom_losses: int
    validate_rejects: int
    undecodable: int
    unencodable: int
    oversize: int
    redis_errors: int
    evictions: int
    l1_entries: int
    l1_bytes: int

    def redis_failed(self, error: BaseException) -> None:
        """Count a failed round trip; the first of a row is logged."""
        self.redis_errors += 1
        if self.l2_up:
            self.l2_up = False
            log.warning("Redis is out of reach, going on without it: %s", error)

    def redis_partly_failed(self, error: BaseException) -> None:
        """Count a round trip in which one of several servers could not be asked; the first is logged."""
        self.redis_errors += 1
        self.once("partly", "a server of Redis is out of reach, going on with the others: %s", error)

    def redis_refused(self, error: BaseException) -> None:
        """Count a call that Redis answered with an error; each kind of error is logged once."""
        self.redis_errors += 1
        self.once(f"refused {str(error).partition(' ')[0]}", "Redis refuses calls: %s", error)

    def redis_answered(self) -> None:
        """Note that Redis is back, if it was away."""
        if not self.l2_up:
            self.l2_up = True
            log.warning("Redis answers again")

    def once(self, about: str, message: str, *args: object) -> None:
        """Warn about one thing once."""
        if about not in self._said and len(self._said) < 1000:  # noqa: PLR2004 - a bound on memory, not a meaning
            self._said.add(about)
            log.warning(message, *args)

    def served(self, age: float, count: int = 1) -> None:
        """Note how old something was when it was served, in seconds."""
        self._ages[bisect_left(AGES, age)] += count

    def snapshot(self, entries: int, size: int) -> Stats:
        """The counters as they stand, with what the in-process tier holds."""
        names = [field.name for field in fields(Stats) if field.name != "age_at_serve"]
        counts: dict[str, Any] = {name: getattr(self, name) for name in names}
        counts |= {"l1_entries": entries, "l1_bytes": size}
        return Stats(**counts, age_at_serve=tuple(zip(AGES, self._ages, strict=True)))
