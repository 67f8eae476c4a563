"""The outbox (invalidations that Redis has not acknowledged) and the journal (those that it may still lose)."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, Protocol

from ..events import Events, log
from ..ports import Call
from ..protocol import calls
from ..protocol.names import epoch_of

MOST_PENDING = 100_000
MOST_ORPHANS = 10_000
MOST_JOURNALED = 100_000
PARKED_FOR = 3.0  # seconds; who listens tries once a second, others only where nobody does
JOURNALED_FOR = 60.0  # seconds; longer than a failover takes


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
        return [call] if epoch is None else [calls.tagged(epoch), call]


class Ledger(Protocol):
    """A place for pending invalidations that outlives the process."""

    def load(self) -> list[Invalidation]: ...

    def add(self, items: Iterable[Invalidation]) -> None: ...

    def strike(self, items: Iterable[Invalidation]) -> None: ...


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
        self._journal: deque[tuple[float, Invalidation]] = deque()
        self.changes: int = 0  # of the server, so far
        self._spilled_until = 0.0  # the journal has let go of something younger than it should
        if ledger is not None:
            self.pending.update({item: object() for item in ledger.load()})
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
        aside = self.parked.get(item.key, {})
        self._aside += item not in aside
        self.parked[item.key] = {**aside, item: mark}

    def parked_part(self, keys: Iterable[str]) -> dict[Invalidation, object]:
        """The parked invalidations of *keys*; all of them if none was tried for a while."""
        now = self._now()
        with self.lock:
            names = keys
            if now >= self.parked_at + PARKED_FOR:
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
        left = {other: its for other, its in aside.items() if other != item}
        if left:
            self.parked[item.key] = left
        else:
            self.parked.pop(item.key, None)
        return item not in self.pending

    def acknowledged(self, items: Iterable[Invalidation]) -> None:
        """Keep *items* in the journal for a while: a failover may lose them."""
        now, journal = self._now(), self._journal
        with self.lock:
            for item in items:
                journal.append((now, item))
            while journal and journal[0][0] < now - JOURNALED_FOR:
                journal.popleft()
            while len(journal) > MOST_JOURNALED:
                self._spilled_until = journal.popleft()[0] + JOURNALED_FOR

    def replay(self) -> None:
        """Queue the whole journal: another server answers now, or the same one may have lost data."""
        self.changes += 1  # first: who has begun to ask before sees that what is pending now was not delivered
        now, journal = self._now(), self._journal
        with self.lock:
            lately = [item for at, item in journal if at >= now - JOURNALED_FOR]
            journal.clear()
        # A write that had begun then has ended, or its end will come by itself.
        items = [replace(item, begins="", intent_ms=0) for item in lately]
        if now < self._spilled_until:
            items = [Invalidation(self._root)]
        if items:
            self._events.replayed += len(items)
            log.warning("another Redis answers: %d invalidations of the last minute are repeated", len(items))
            self.queue(list(dict.fromkeys(items)))

    def _count(self) -> None:
        self._events.invalidations_queued = self.count


def _bound(orphans: OrderedDict[str, str]) -> None:
    while len(orphans) > MOST_ORPHANS:  # the oldest have ended by themselves, or soon will
        with suppress(KeyError):  # another thread may do the same
            orphans.popitem(last=False)
