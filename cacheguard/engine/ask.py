"""The data of a read: what a caller asks for (`Ask`), one run of a loader (`Job`), and its result (`Loaded`)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..current_load import Load
from ..protocol.entry import Found, Granted, Stored
from ..protocol.envelope import Kind
from ..protocol.exceptions import made_of
from ..protocol.names import Scope
from ..tiers.copies import Master

if TYPE_CHECKING:
    from ..codec import Codec
    from ..policy import Rules
    from ..tiers.held import Entry
    from .flights import Flight

NO_SCOPE = Scope()


@dataclass(slots=True)
class Ask:
    """One request: which key, how to load it, and by which rules."""

    key: str
    rules: Rules
    codec: Codec | None
    load: Callable[[], Any]
    tags: tuple[str, ...] = ()
    scope: Scope = NO_SCOPE
    version: Callable[[Any], Any] | None = None  # of a value that was loaded
    usable: Callable[[Any], bool] | None = None  # a cached value for which this returns False is treated as a miss
    bounded: bool = True  # its load takes a permit of the bulkhead
    template: str = ""  # of the decorated function that is called

    def takes(self, stored: Stored) -> bool:
        """True if the cached value may be served."""
        return self.usable is None or stored.kind is not Kind.VALUE or self.usable(stored.own())

    @property
    def marks(self) -> tuple[str, ...]:
        """The markers of its tags."""
        return tuple(map(self.scope.tag, self.tags)) if self.tags else ()


@dataclass(slots=True)
class Job:
    """One run of a loader: for one key, or for several at once. The dictionaries are by key.

    It is made before Redis is asked for the leases, and updated by the reply: a key without a granted lease loses its
    token, and a key that another process answers leaves the job.
    """

    asks: dict[str, Ask]
    flights: dict[str, Flight]
    rules: Rules
    load: Callable[[], Any]
    tokens: dict[str, str]  # of the leases; a key without one is not filled
    bounded: bool = True
    primary: bool = False  # the answer before was older than the version floor
    keep: bool = False  # L1 takes values without a lease, as Redis is unreachable
    ticket: int = field(init=False)  # of L1, taken before Redis is asked
    asked_at: float = field(init=False)  # when Redis is asked
    leases: dict[str, Granted] = field(default_factory=dict[str, Granted])
    asked: dict[str, tuple[str, ...]] = field(default_factory=dict[str, tuple[str, ...]])  # tags asked for with leases
    turn: int | None = None  # to be given back to the load breaker
    row: Callable[[Any, str], Any] | None = None  # of what a loader of several keys returned, the value of one

    @property
    def failures(self) -> int:
        """How many loads of its keys have failed in a row, in whatever processes."""
        return max((lease.failures for lease in self.leases.values()), default=0)

    def rows(self, loaded: Any) -> dict[str, Any]:
        """What the loader returned, by key."""
        row = self.row
        return {key: loaded if row is None else row(loaded, key) for key in self.flights}

    @property
    def landed(self) -> bool:
        """True if all its flights have landed."""
        return all(flight.landed for flight in self.flights.values())

    def granted(self, key: str, lease: Granted) -> bool:
        """Take the lease of *key* if a value loaded under it can be stored; False if it must be given back."""
        ask = self.asks[key]
        if not lease.covers(ask.scope.markers(self.asked.get(key, ask.tags))):
            return False
        self.leases[key] = lease
        return True

    def fallback(self, key: str) -> Stored | None:
        """The stale value of *key* that is served if the load fails.

        Redis found it together with the lease, so all followers may get it. A value that a reader found before the
        lease may have been invalidated since: only that reader may fall back on it. A refresh never returns a stale
        value: it returns a new one or raises.
        """
        lease = self.leases.get(key)
        found = None if lease is None or self.flights[key].anew else lease.found
        return found.stored if found is not None and servable(found, self.rules) else None

    def unleased(self, *, keep: bool = False) -> Job:
        """The same job without the right to fill."""
        self.tokens, self.keep = {}, keep
        return self

    def leave(self, key: str) -> Flight:
        """Remove *key* from the job; returns its flight."""
        del self.asks[key]
        self.tokens.pop(key, None)
        return self.flights.pop(key)


@dataclass(slots=True)
class Loaded:
    """The value that a loader returned, or the absence that it raised."""

    value: Any
    absence: Exception | None
    seconds: float
    load: Load

    def tags_for(self, ask: Ask) -> tuple[str, ...]:
        """The tags of the loaded value: those of the request, then those that the loader has added."""
        if not self.load.tags:
            return ask.tags
        return tuple(dict.fromkeys((*ask.tags, *self.load.tags)))


def servable(found: Found, rules: Rules) -> bool:
    """True if *found* may be served when the load fails or is slow."""
    stored = found.stored
    return stored is not None and stored.kind is Kind.VALUE and -found.fresh_left < rules.stale


def stored_of(entry: Entry) -> Stored:
    """The entry of the in-process tier, as the engine knows it."""
    value, common = entry.value, entry.common
    if isinstance(value, Master):
        return Stored(Kind(common.kind), None, 0.0, 0.0, common.tags, master=value)
    return Stored(Kind(common.kind), value, 0.0, 0.0, common.tags)


def opened(stored: Stored, rules: Rules) -> Any:  # noqa: ARG001 - every caller has them, and may need them again
    """The value inside, for one of several who may have it; an absence is raised as the loader would raise it."""
    if stored.kind is Kind.ERROR:
        raise made_of(stored.value)
    return stored.value if stored.master is None else stored.master.make()
