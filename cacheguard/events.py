"""Counters, and a log line when a state changes."""

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


MOST_THINGS = 1000  # that are said once
MOST_KEYS = 100  # about which one of them is said


@dataclass(frozen=True, slots=True, kw_only=True)
class StateChange:
    """A change of state; ``on_state_change`` is called with it."""

    of: Literal["redis", "bus", "breaker"]
    """``"redis"``: the last call was answered or not. ``"bus"``: a heartbeat proves that invalidations arrive, or not.
    ``"breaker"``: calls to a server are allowed or not."""
    name: str
    """The name of the server if there are several; otherwise the same as ``of``."""
    before: str
    after: str
    """``"up"`` or ``"down"``; for a breaker ``"closed"``, ``"open"`` or ``"half-open"``."""
    why: str
    """The reason, in words for people."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stats:
    """Counts since the guard was made. Hits are counted without locks and may miss a few under many threads."""

    l1_hits: int
    """Answers from L1."""
    l2_hits: int
    """Answers from Redis (one round trip)."""
    replica_hits: int
    """Of these, answers from a replica (``read_from="replica"``)."""
    misses: int
    """Reads that found no usable entry in either tier."""
    stale_hits: int
    """Answers older than their TTL: reloaded in the background, or served because a load failed or was slow."""
    null_hits: int
    """Answers that were a cached absence, from either tier."""
    shared: int
    """Reads that shared a load which another reader in this process had started."""
    waits: int
    """Times this process waited for a load in another process."""
    loads: int
    """Loaders started."""
    load_failures: int
    """Loaders that raised something other than an absence."""
    load_timeouts: int
    """Loads that took longer than their ``hard_timeout``."""
    refreshes: int
    """Loads started in the background (stale or early)."""
    backoffs: int
    """Reads that got the exception of a load that had just failed, within its back-off."""
    overloads: int
    """Loads refused because no permit came free, the queue was full, or the breaker was open (`breaker_rejects`)."""
    fills: int
    """Loaded values stored in Redis."""
    fills_refused: int
    """Loaded values not stored because an invalidation came during the load."""
    fills_old: int
    """Loaded values not stored because a newer version of their row is known: a database replica lags behind."""
    fills_failed: int
    """Loaded values not stored because Redis did not accept them."""
    invalidations: int
    """Keys, tags and namespaces invalidated or expired here."""
    invalidations_queued: int
    """Pending invalidations: Redis has not acknowledged them (now, not since start)."""
    replayed: int
    """Invalidations repeated after a failover: the server that answers is not the one that acknowledged them."""
    outbox_overflows: int
    """Times the outbox was full, so that the whole namespace was invalidated instead."""
    bus_messages: int
    """Invalidations received from other processes."""
    bus_gaps: int
    """Times the invalidation bus was interrupted."""
    audits: int
    """Hits compared with a new load."""
    audits_different: int
    """Of these, hits where the cache was stale: the values still differed at a second comparison."""
    absences_over_budget: int
    """Absences not cached because ``max_absences`` was reached."""
    bloom_rejects: int
    """Calls answered "absent" by a Bloom filter."""
    bloom_losses: int
    """Times a Bloom filter was found lost, damaged, or without the signature that it should have."""
    validate_rejects: int
    """Calls answered "absent" by ``validate``."""
    undecodable: int
    """Entries in Redis that could not be decoded: garbage, unknown types, other versions of a class."""
    unencodable: int
    """Values that could not be encoded and were not stored in Redis."""
    oversize: int
    """Values larger than ``max_value_bytes``."""
    redis_errors: int
    """Round trips that failed."""
    evictions: int
    """Entries evicted from L1 because it was full."""
    l1_entries: int
    """Entries in L1 (now)."""
    l1_bytes: int
    """Their size in bytes (now); 0 unless ``l1_max_bytes`` is set."""
    l2_skips: int
    """Round trips not made because the breaker of Redis was open."""
    breaker_opens: int
    """Times the breaker of a Redis server opened."""
    breaker_rejects: int
    """Loads refused because the policy's ``breaker`` was open."""
    fallbacks: int
    """Reads answered with the policy's ``fallback``."""
    breaker: str
    """The breaker of Redis, now: ``"closed"``, ``"open"`` or ``"half-open"``; with several servers, the worst."""
    l2_up: bool
    """True if the last round trip to Redis succeeded; with several nodes, to each of them."""
    bus_up: bool
    """True while a heartbeat proves that invalidations from other processes arrive. While False, L1 is off, except
    while Redis itself is unreachable."""
    age_at_serve: tuple[tuple[float, int], ...]
    """The age of served values, in buckets: (upper bound in seconds, count). An L1 hit has the age of its entry when
    its hits are counted, at most a few seconds later."""


class Events:
    """The guard's counters as plain ints; `snapshot` exports them.

    Args:
        node: the name of this Redis node, if there are several and each has its own counters.
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
        self.over: bool = False  # the guard is closed: later failures are not reported
        self.failures: int = 0  # round trips in a row that Redis did not answer
        self.failed_at: float = -math.inf  # monotonic: the last of them
        self._now = NOW.get()
        self._ages = [0] * len(AGES)
        self._warned: dict[int, set[int]] = {}  # hashes, and of each the hashes of keys: no text is kept

    if TYPE_CHECKING:
        # The counters are named once, as the fields of `Stats`; a test checks that every counter is one of them.
        l2_hits: int  # incremented in this class, so type checkers need the declaration
        null_hits: int
        redis_errors: int
        breaker_opens: int

        def __getattr__(self, name: str) -> int: ...
        def __setattr__(self, name: str, value: Any) -> None: ...

    def redis_failed(self, error: BaseException) -> None:
        """Count a failed round trip; the first in a row is logged."""
        self.redis_errors += 1
        if not isinstance(error, Refused):
            self.failures += 1
            self.failed_at = self._now()
        if self.l2_up and not self.over:
            self.l2_up = False
            log.warning("Redis%s is out of reach, going on without it: %s", self._where, error)
            self._report("redis", "redis", "up", "down", str(error))

    def redis_partly_failed(self, error: BaseException) -> None:
        """Count a round trip in which one of several servers was unreachable; the first is logged."""
        self.redis_errors += 1
        self.once("partly", "a server of Redis is out of reach, going on with the others: %s", error)

    def redis_refused(self, error: BaseException) -> None:
        """Count a call that Redis answered with an error; each kind of error is logged once."""
        self.redis_errors += 1
        self.once(f"refused {str(error).partition(' ')[0]}", "Redis%s refuses calls: %s", self._where, error)

    def redis_answered(self) -> None:
        """Record that Redis answers; logged if it was unreachable before."""
        if not self.l2_up:
            self.l2_up = True
            self.failures = 0
            log.warning("Redis%s answers again", self._where)
            self._report("redis", "redis", "down", "up", "it answers again")

    def breaker_changed(self, name: str, before: str, after: str, why: str) -> None:
        """Record that the breaker of the server *name* has changed its state."""
        if before == "closed":  # the probing thread may be here at the same time, and writes nothing
            self.breaker_opens += 1
        log.info("the breaker of %s is %s: %s", self._node or name, after, why)
        self._report("breaker", name, before, after, why)

    def bus_changed(self, *, up: bool, why: str) -> None:
        """Record that heartbeats have begun or ceased to prove that invalidations arrive."""
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

    def first(self, about: str, key: str = "") -> bool:
        """Return True the first time it is called with *about* and *key*.

        After `MOST_KEYS` keys, which may be any number, nothing more is said about this; about other things it is.
        """
        keys = self._warned.get(hash(about))
        if keys is None:
            if len(self._warned) >= MOST_THINGS:
                return False
            keys = self._warned.setdefault(hash(about), set())
        if hash(key) in keys or len(keys) >= MOST_KEYS:
            return False
        keys.add(hash(key))
        return True

    def once(self, about: str, message: str, *args: object, key: str = "") -> None:
        """Log *message* as a warning, but only once for each *about* and *key*."""
        if self.first(about, key):
            log.warning(message, *args)

    def hit(self, age: float, *, absence: bool) -> None:
        """Count a fresh entry of this age, in seconds, that was found in Redis."""
        self.l2_hits += 1
        self.null_hits += absence
        self._ages[bisect_left(AGES, age)] += 1

    def hits(self, ages: Sequence[float]) -> None:
        """Count fresh values of these ages, in seconds, that were found in Redis."""
        self.l2_hits += len(ages)
        counts = self._ages
        for age in ages:
            counts[bisect_left(AGES, age)] += 1

    def served(self, age: float, count: int = 1) -> None:
        """Count *count* served values of this age, in seconds."""
        self._ages[bisect_left(AGES, age)] += count

    def snapshot(self, entries: int, size: int, nodes: Sequence[Events] = ()) -> Stats:
        """Return the current counters, with the entries and bytes of L1 and the counters of each of *nodes*."""
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
