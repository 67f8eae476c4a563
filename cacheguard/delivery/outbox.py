"""The outbox: invalidations that Redis has not acknowledged."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, Protocol

from ..events import Events, log
from ..ports import Call
from ..protocol import calls
from ..protocol.names import epoch_of
from .journal import Journal

MOST_PENDING = 100_000
MOST_ORPHANS = 10_000
PARKED_FOR = 3.0  # seconds; who listens tries once a second, others only where nobody does


@dataclass(frozen=True, slots=True)
class Invalidation:
    """One invalidation. Delivering it twice does no harm.

    Args:
        key: the Redis key of an entry, or of the marker of a tag or a namespace.
        lag_ms: length of the quarantine; what is cached under the key within it dies when it ends.
        version: as `version_text` writes it; older fills are refused from then on.
        under: the nonces of the namespaces under which the version counts, as hexadecimal digits; "": under all.
        begins: the id of a write that begins now; until it ends, nothing is cached under the key.
        intent_ms: after this time the fence of the write ends in any case.
        ends: the id of a write that has ended.
    """

    key: str
    lag_ms: int = 0
    version: str = ""
    under: str = ""
    begins: str = ""
    intent_ms: int = 0
    ends: str = ""

    @property
    def leaves_something(self) -> bool:
        """True if something is noted under the key for later: a quarantine, a version floor, a write in progress."""
        return bool(self.lag_ms or self.version or self.begins or self.ends)

    def after(self, before: Invalidation | None) -> Invalidation:
        """This one as it is repeated later: without the write that begins, and with what *before* asked for the key."""
        lag_ms, version, under = self.lag_ms, self.version, self.under
        if before is not None:
            lag_ms = max(lag_ms, before.lag_ms)
            if not (under and before.under) or under == before.under:  # else the namespace is another one by now
                version, under = max(version, before.version), under if before.under else ""
        if (lag_ms, version, under, "") == (self.lag_ms, self.version, self.under, self.begins):
            return self
        # A write that has begun by then has ended when this is repeated, or its end will come by itself.
        return replace(self, lag_ms=lag_ms, version=version, under=under, begins="", intent_ms=0)

    def calls(self, channel: str, echo: str) -> list[Call]:
        """The calls to send; the script itself publishes the message for the other processes."""
        floor_ms = max(calls.FLOOR_MS, self.lag_ms) if self.version else 0
        call = calls.invalidate(
            self.key,
            channel=channel,
            echo=echo,
            quarantine_ms=self.lag_ms,
            floor=self.version,
            under=bytes.fromhex(self.under),
            floor_ms=floor_ms,
            begins=self.begins,
            intent_ms=self.intent_ms,
            ends=self.ends,
        )
        epoch = epoch_of(self.key)
        # Noted at the namespace first: a load that claims the tag at its end compares that with its beginning.
        return [call] if epoch is None else [calls.tagged(epoch, self.lag_ms), call]


class Ledger(Protocol):
    """A place for pending invalidations that outlives the process."""

    def load(self) -> list[Invalidation]: ...

    def add(self, items: Iterable[Invalidation]) -> None: ...

    def strike(self, items: Iterable[Invalidation]) -> None: ...

    def recall(self) -> tuple[list[tuple[float, Invalidation]], float | None]: ...

    def note(
        self, entries: Iterable[tuple[float, Invalidation]], kept_for: float, dropped_ago: float | None
    ) -> None: ...

    def met(self) -> dict[str, list[str]]: ...

    def meet(self, servers: Mapping[str, Sequence[str]]) -> None: ...


class Outbox:
    """The pending invalidations, and those that were acknowledged recently.

    Args:
        root: the marker of the guard's namespace, which is invalidated instead if too many are pending.
        now: monotonic seconds.
        ledger: keeps them when this process ends.
        lock: guards the journal, where there are threads.
    """

    def __init__(
        self,
        root: str,
        events: Events,
        now: Callable[[], float],
        ledger: Ledger | None = None,
        lock: AbstractContextManager[Any] | None = None,
    ) -> None:
        self.lock: AbstractContextManager[Any, bool | None] | nullcontext[None] = lock or nullcontext()
        self.pending: dict[Invalidation, object] = {}
        self.orphans: OrderedDict[str, str] = OrderedDict()  # leases that may have been granted, by key
        self.orphans_aside: OrderedDict[str, str] = OrderedDict()  # those whose server is away
        self.parked: dict[str, dict[Invalidation, object]] = {}  # by key; pending, too, but their server is away
        self.parked_at: float = 0.0  # when they were tried last
        self._aside = 0  # how many of them there are
        self._root, self._events, self._now, self._ledger = root, events, now, ledger
        self._journal: Journal[Invalidation] = Journal(now)
        self.changes: int = 0  # of the server, so far
        if ledger is not None:
            self.pending.update({item: object() for item in ledger.load()})
            self._journal.restore(*ledger.recall())
            self._count()

    @property
    def has_pending(self) -> bool:
        """True if anything must be delivered before all reads, or before the reads of some keys."""
        return bool(self.pending or self.parked or self.orphans or self.orphans_aside)

    def queue(self, items: Sequence[Invalidation], *, aside: bool = False) -> None:
        """Keep *items* until Redis acknowledges them; *aside*, as `park` does."""
        if self.count + len(items) > MOST_PENDING:
            log.error("%d invalidations are pending: the whole namespace is invalidated instead", self.count)
            self._events.outbox_overflows += 1
            items = [Invalidation(self._root)]
            instead = [item for item in (*self.part(len(self.pending)), *self.all_parked()) if item not in items]
            self.pending.update({item: object() for item in items})
            with self.lock:
                self.parked.clear()
                self._aside = 0
            for item in instead:
                self.pending.pop(item, None)
            if self._ledger is not None:  # written before the others are struck: a process may die in between
                self._ledger.add(items)
                self._ledger.strike(instead)
            self._count()
            return
        if aside:
            with self.lock:
                for item in items:
                    self._put_aside(item, object())
                self.parked_at = self._now()
        else:
            self.pending.update({item: object() for item in items})
        if self._ledger is not None:
            self._ledger.add(items)
        self._count()

    def part(self, most: int) -> dict[Invalidation, object]:
        """Some pending invalidations, each with a mark that changes when it is queued once more."""
        while True:
            try:
                return dict(islice(self.pending.items(), most))
            except RuntimeError:  # another thread has queued something in the middle of it
                continue

    @property
    def count(self) -> int:
        """How many are pending."""
        return len(self.pending) + self._aside

    def park(self, items: Iterable[Invalidation]) -> None:
        """Set aside, of the pending invalidations, *items*: their server cannot be asked, others can.

        Only reads of their keys have to wait for them.
        """
        with self.lock:
            for item in items:
                mark = self.pending.get(item)
                if mark is not None:
                    self._put_aside(item, mark)
                    self.pending.pop(item, None)  # last: at no moment is it in neither place
            self.parked_at = self._now()
        self._count()

    def _put_aside(self, item: Invalidation, mark: object) -> None:
        aside = self.parked.setdefault(item.key, {})
        self._aside += item not in aside
        aside[item] = mark

    def parked_part(self, keys: Iterable[str]) -> dict[Invalidation, object]:
        """The parked invalidations of *keys*; all of them if none was tried for a while."""
        now = self._now()
        with self.lock:
            names = keys
            if not self.parked_at <= now < self.parked_at + PARKED_FOR:
                names, self.parked_at = list(self.parked), now  # one thread that tries is enough
            return {item: mark for key in names for item, mark in self.parked.get(key, {}).items()}

    def all_parked(self) -> dict[Invalidation, object]:
        """All parked invalidations."""
        with self.lock:
            return {item: mark for aside in self.parked.values() for item, mark in aside.items()}

    def orphaned(self, tokens: dict[str, str]) -> None:
        """Keep leases, by key, that have to be given back."""
        self.orphans.update(tokens)
        _bound(self.orphans)

    def orphans_away(self, orphans: Iterable[tuple[str, str]]) -> None:
        """Set aside leases, by key, that cannot be given back: their server is away."""
        self.orphans_aside.update(orphans)
        _bound(self.orphans_aside)

    def orphans_back(self, keys: Iterable[str]) -> None:
        """Queue the leases of *keys* again, which are about to be read: they have to be given back now."""
        for key in keys:
            token = self.orphans_aside.pop(key, None)
            if token is not None:
                self.orphans[key] = token

    def some_orphans(self, most: int) -> list[tuple[str, str]]:
        """Some of the leases to be given back."""
        while True:
            try:
                return list(islice(self.orphans.items(), most))
            except RuntimeError:  # another thread has lost one in the middle of it
                continue

    def released(self, orphans: Iterable[tuple[str, str]]) -> None:
        """Remove leases that were given back, unless another one of the same key was lost meanwhile."""
        for key, token in orphans:
            if self.orphans.get(key) == token:
                self.orphans.pop(key, None)

    def delivered(self, part: dict[Invalidation, object]) -> None:
        """Remove acknowledged invalidations, unless another thread has queued them once more meanwhile."""
        with self.lock:
            done = [item for item, mark in part.items() if self._strike(item, mark)]
        if self._ledger is not None:
            self._ledger.strike(done)
        self._count()
        self.acknowledged(part)

    def _strike(self, item: Invalidation, mark: object) -> bool:
        if self.pending.get(item) is mark:
            self.pending.pop(item, None)
            return True
        aside = self.parked.get(item.key, {})
        if aside.get(item) is not mark:
            return False
        self._aside -= 1
        del aside[item]
        if not aside:
            self.parked.pop(item.key, None)
        return item not in self.pending

    def acknowledged(self, items: Iterable[Invalidation]) -> None:
        """Keep *items* in the journal: a failover or a restart may lose them."""
        with self.lock:
            self._journal.add(items)

    @property
    def has_journal(self) -> bool:
        """True if anything would have to be repeated to another server."""
        return len(self._journal) > 0

    def keep_journal(self, servers: Mapping[str, Sequence[str]]) -> None:
        """Write to the file, if there is one, what was acknowledged since the last time, and by which *servers*.

        They are noted only while nothing is pending: a process that finds another server then repeats the journal.
        """
        if self._ledger is None:
            return
        with self.lock:
            entries, kept_for, dropped_ago = self._journal.unwritten()
        if entries:
            self._ledger.note(entries, kept_for, dropped_ago)
        if servers and not self.count:
            self._ledger.meet(servers)

    def saved(self, at: float) -> None:
        """What was acknowledged before *at* is on the server's disk."""
        with self.lock:
            self._journal.saved(at)

    def untold(self) -> None:
        """The server does not say who it is, so a change of its data goes unnoticed."""
        self._events.once(
            "INFO refused",
            "the server refuses INFO, so this process cannot notice that it came back with old data: allow INFO",
        )

    def replay(self, *, of_unknown_age: bool = False) -> None:
        """Queue the whole journal: another server answers now, or the same one may have lost data.

        If the journal may not reach back as far as the data, the whole namespace is invalidated.
        """
        with self.lock:
            items = self._journal.all(of_unknown_age=of_unknown_age)
            lasting = [] if items is not None else self._journal.lasting()
        if items is None:
            log.warning("Redis may have older data than the journal reaches back: the whole namespace is invalidated")
            items = [Invalidation(self._root), *lasting]
        elif items:
            log.warning("another Redis answers, or other data: %d acknowledged invalidations are repeated", len(items))
        if items:
            self.queue(items)
            self._events.replayed += len(items)
        self.changes += 1  # last: who has begun to ask before it was pending does not use the answer

    def _count(self) -> None:
        self._events.invalidations_queued = self.count


def _bound(orphans: OrderedDict[str, str]) -> None:
    while len(orphans) > MOST_ORPHANS:  # the oldest have ended by themselves, or soon will
        with suppress(KeyError):  # another thread may do the same
            orphans.popitem(last=False)
