"""Invalidations that must not be forgotten: those that Redis has not acknowledged, and those it may yet lose."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, Protocol

from ..events import Events, log
from ..keys import epoch_of
from ..lua import load
from ..ports import Call

INVALIDATE = load("invalidate")
TAGGED = load("tagged")

MOST_OWED = 100_000
MOST_ORPHANS = 10_000
MOST_JOURNALED = 100_000
JOURNALED_FOR = 60.0  # seconds; longer than a failover takes
FLOOR_MS = 300_000  # a version floor outlives what a replica usually lags behind


@dataclass(frozen=True, slots=True)
class Invalidation:
    """One thing to be invalidated. Twice is once.

    Args:
        key: the Redis key of an entry, or of the marker of a tag or a namespace.
        settle_ms: for so long, what is cached under it is quarantined: it dies when that time is over.
        version: as `version_text` writes it; older fills are refused from then on.
        begins: the id of a write that begins now; until it ends, nothing is cached under the key.
        intent_ms: after so long, the write has ended in any case.
        ends: the id of a write that is over.
    """

    key: str
    settle_ms: int = 0
    version: str = ""
    begins: str = ""
    intent_ms: int = 0
    ends: str = ""

    def calls(self, channel: str, echo: str) -> list[Call]:
        """What to send; the others are told by the script itself."""
        floor_ms = max(FLOOR_MS, self.settle_ms) if self.version else 0
        call = INVALIDATE(self.key)(
            channel,
            drop_message(echo, self.key),
            self.settle_ms,
            self.version,
            floor_ms,
            self.begins,
            self.intent_ms,
            self.ends,
        )
        epoch = epoch_of(self.key)
        # Noted at the namespace first: a load that claims the tag at its end compares that with its beginning.
        return [call] if epoch is None else [TAGGED(epoch)(), call]


def drop_message(echo: str, key: str) -> str:
    """What a process says when it has changed what is stored under *key*."""
    return f"drop {echo} {key}"


class Ledger(Protocol):
    """A place for what is owed that outlives the process."""

    def load(self) -> list[Invalidation]: ...

    def add(self, items: Iterable[Invalidation]) -> None: ...

    def strike(self, items: Iterable[Invalidation]) -> None: ...


class Outbox:
    """What is owed to Redis, and what was acknowledged lately.

    Args:
        root: the marker of the guard's namespace. If more is owed than can be kept, all of it is invalidated instead.
        now: monotonic seconds.
        ledger: keeps what is owed beyond the life of this process.
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
        self.lock = lock or nullcontext()
        self.owed: dict[Invalidation, object] = {}
        self.orphans: OrderedDict[str, str] = OrderedDict()  # leases that may have been granted, by key
        self._root, self._events, self._now, self._ledger = root, events, now, ledger
        self._journal: deque[tuple[float, Invalidation]] = deque()
        self.changes = 0  # of the server, so far
        self._spilled_until = 0.0  # the journal has let go of something younger than it should
        if ledger is not None:
            self.owed.update({item: object() for item in ledger.load()})
            self._count()

    @property
    def owes(self) -> bool:
        """Whether something has to be said before anything is asked."""
        return bool(self.owed or self.orphans)

    def owe(self, items: Sequence[Invalidation]) -> None:
        """Keep *items* until Redis acknowledges them."""
        if len(self.owed) + len(items) > MOST_OWED:
            log.error("%d invalidations are owed to Redis: the whole namespace is invalidated instead", len(self.owed))
            self._events.outbox_overflows += 1
            items = [Invalidation(self._root)]
            instead = [item for item in self.part(len(self.owed)) if item not in items]
            self.owed.clear()
            self.owed.update({item: object() for item in items})
            if self._ledger is not None:  # written before the others are struck: a process may die in between
                self._ledger.add(items)
                self._ledger.strike(instead)
            self._count()
            return
        self.owed.update({item: object() for item in items})
        if self._ledger is not None:
            self._ledger.add(items)
        self._count()

    def part(self, most: int) -> dict[Invalidation, object]:
        """Some of what is owed, each with a mark that changes when it is owed once more."""
        while True:
            try:
                return dict(islice(self.owed.items(), most))
            except RuntimeError:  # another thread has owed something in the middle of it
                continue

    def orphaned(self, tokens: dict[str, str]) -> None:
        """Keep leases, by key, that have to be given back."""
        self.orphans.update(tokens)
        while len(self.orphans) > MOST_ORPHANS:  # the oldest have ended by themselves, or soon will
            with suppress(KeyError):  # another thread may do the same
                self.orphans.popitem(last=False)

    def some_orphans(self, most: int) -> list[tuple[str, str]]:
        """Some of the leases to be given back."""
        while True:
            try:
                return list(islice(self.orphans.items(), most))
            except RuntimeError:  # another thread has lost one in the middle of it
                continue

    def released(self, orphans: Iterable[tuple[str, str]]) -> None:
        """Strike off leases that were given back, unless another one of the same key was lost meanwhile."""
        for key, token in orphans:
            if self.orphans.get(key) == token:
                self.orphans.pop(key, None)

    def settled(self, part: dict[Invalidation, object]) -> None:
        """Strike off what Redis has acknowledged, unless it is owed once more by another thread meanwhile."""
        done = [item for item, mark in part.items() if self.owed.get(item) is mark]
        for item in done:
            self.owed.pop(item, None)
        if self._ledger is not None:
            self._ledger.strike(done)
        self._count()
        self.acknowledged(part)

    def acknowledged(self, items: Iterable[Invalidation]) -> None:
        """Remember for a while that Redis knows of *items*: a failover may make it forget."""
        now, journal = self._now(), self._journal
        with self.lock:
            for item in items:
                journal.append((now, item))
            while journal and journal[0][0] < now - JOURNALED_FOR:
                journal.popleft()
            while len(journal) > MOST_JOURNALED:
                self._spilled_until = journal.popleft()[0] + JOURNALED_FOR

    def replay(self) -> None:
        """Another server answers now, or the same one has been elsewhere: owe it all that the old one may have kept."""
        self.changes += 1  # first: who has begun to ask before sees that what is owed now was not delivered
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
            self.owe(list(dict.fromkeys(items)))

    def _count(self) -> None:
        self._events.invalidations_queued = len(self.owed)
