"""A question and its answer: what the engine is asked for, the run of a loader for it, and what came of that."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..current_load import Load
from ..protocol.envelope import Kind
from ..protocol.exceptions import absence
from ..protocol.names import Scope
from ..tiers.remote import Found, Stored

if TYPE_CHECKING:
    from ..codec import Codec
    from ..policy import Rules
    from ..tiers.local import Entry
    from .flights import Flight

NO_SCOPE = Scope()


@dataclass(slots=True)
class Ask:
    """One question: which key, how to load it, and by which rules."""

    key: str
    rules: Rules
    codec: Codec | None
    load: Callable[[], Any]
    tags: tuple[str, ...] = ()
    scope: Scope = NO_SCOPE
    version: Callable[[Any], Any] | None = None  # of a value that was loaded
    usable: Callable[[Any], bool] | None = None  # a cached value for which this says no counts as missing
    bounded: bool = True  # its load takes a place in the bulkhead

    def takes(self, stored: Stored) -> bool:
        """Whether what is cached may be the answer."""
        return self.usable is None or stored.kind is not Kind.VALUE or self.usable(stored.value)

    @property
    def marks(self) -> tuple[str, ...]:
        """The markers of its tags."""
        return tuple(map(self.scope.tag, self.tags)) if self.tags else ()


@dataclass(slots=True)
class Job:
    """One run of a loader: for one key, or for several at once."""

    flights: dict[str, Flight]
    rules: Rules
    load: Callable[[], Any]
    tokens: dict[str, str]  # the leases it runs under; empty: it may not fill
    stale: dict[str, Found]  # what may be served instead
    primary: bool = False  # the answer before was older than what is known
    bounded: bool = True
    turn: int | None = None  # to be given back to the breaker of what it loads from

    @property
    def landed(self) -> bool:
        """Whether those who wait have had their answer already."""
        return all(flight.landed for flight in self.flights.values())


@dataclass(slots=True)
class Loaded:
    """What a loader returned, or the absence that it raised."""

    value: Any
    absence: Exception | None
    seconds: float
    load: Load


def tags_of(ask: Ask, loaded: Loaded) -> tuple[str, ...]:
    """The tags of what was loaded: those of the question, then those that the loader has added."""
    if not loaded.load.tags:
        return ask.tags
    return tuple(dict.fromkeys((*ask.tags, *loaded.load.tags)))


def stored_of(entry: Entry) -> Stored:
    """The entry of the in-process tier as the engine knows it."""
    return Stored(Kind(entry.kind), entry.value, 0.0, 0.0, entry.tags)


def opened(stored: Stored, rules: Rules) -> Any:
    """The value inside, or the absence raised as the loader would."""
    if stored.kind is Kind.ERROR:
        raise absence(stored.value, rules.not_found)
    return stored.value
