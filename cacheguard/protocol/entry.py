"""What an entry says, and what the calls of the protocol answer about it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any, TypeAlias

from .envelope import Kind

Usable: TypeAlias = Callable[[Any], bool]


@dataclass(slots=True)  # not frozen, here and below: one is made on every hit in Redis, and that would triple its cost
class Stored:
    """What an entry says, once its bytes are read."""

    kind: Kind
    value: Any  # under Kind.ERROR: the `exceptions.Described`; None if there is only a `master`
    ttl: float  # seconds it was stored to be fresh for
    load_time: float  # seconds its load took
    tags: tuple[str, ...]
    nonces: tuple[bytes, ...] = ()  # what the markers of its namespaces and its tags said when its load began
    weight: int = 0  # bytes of the value in this process; 0: nobody has weighed it
    master: Any = None  # with ``l1_copy``, the `Master` that makes a copy for each caller

    def own(self) -> Any:
        """The value, for who alone has this object: the one that was read, or a copy."""
        return self.value if self.master is None or self.value is not None else self.master.make()

    def copy(self) -> Any:
        """The value, for one of several who have this object: a copy with ``l1_copy``."""
        return self.value if self.master is None else self.master.make()


@dataclass(slots=True)
class Found:
    """An entry in Redis."""

    stored: Stored | None  # None: nothing that may be used
    fresh_left: float  # seconds; negative: stale since
    unusable: Any = ""  # why nothing may be used: LEASE knows the useless value by this
    age: float = 0.0  # seconds since it was stored
    dead_left: float = 0.0  # seconds for which it may be served as stale, if need be


@dataclass(slots=True)
class Granted:
    """The right to fill, until it is released, voided or runs out.

    Args:
        found: what is stored, and stale.
        marks: what the markers that were asked for say now; None where one has no answer.
        at_ms: the server's time.
        last: the nonce of the last invalidation of a tag of the namespace, by the marker of the namespace.
        quarantines: by marker, until when (the server's ms) what is cached under it is quarantined.
        failures: how many loads have failed in a row.
        pause_ms: for how long nobody loaded after the last of them.
    """

    found: Found | None
    marks: Mapping[str, Any]
    at_ms: int
    quarantines: Mapping[str, int]
    last: Mapping[str, bytes]
    failures: int = 0
    pause_ms: int = 0

    def quarantined_until(self, markers: Iterable[str]) -> int:
        """When the first quarantine of one of *markers* ends, in the server's ms; 0 without one."""
        if not self.quarantines:
            return 0
        return min((self.quarantines[marker] for marker in markers if marker in self.quarantines), default=0)

    def covers(self, markers: Sequence[str]) -> bool:
        """Whether all of *markers* have said something: without that, what is loaded cannot be stored."""
        return all(self.marks.get(marker) is not None for marker in markers)


@dataclass(slots=True)
class Fill:
    """What was loaded, to be stored.

    Args:
        markers: the markers that its envelope depends on; its nonces are in the same order.
        fresh: seconds.
        stale: seconds after that.
        version: as `version_text` writes it.
        under: the nonces of the namespaces when the load began.
        until_ms: the server's time at which it ends at the latest; 0: none.
    """

    key: str
    token: str
    envelope: Any
    fresh: float
    stale: float
    version: str = ""
    markers: tuple[str, ...] = ()
    nonces: tuple[bytes, ...] = ()
    under: bytes = b""
    until_ms: int = 0


class Filled(Enum):
    """What became of a fill."""

    STORED = auto()
    BRIEFLY = auto()  # stored, but not for as long as asked: a replica may lag behind
    REFUSED = auto()  # its lease is gone, or a tag or a namespace was invalidated since
    OLD = auto()  # a newer version is known
    FAILED = auto()  # where it belongs could not be asked, or took nothing; only among several of `fill_many`


@dataclass(frozen=True, slots=True)
class Wait:
    """Somebody else is loading."""

    holder: str
    found: Found | None


@dataclass(frozen=True, slots=True)
class Bypass:
    """A write is under way: load, but do not fill."""


class CutOff:
    """Where the entry belongs cannot be asked, while others among several could be."""

    stored = None


CUT_OFF = CutOff()


@dataclass(frozen=True, slots=True)
class Failed:
    """A load of another process raised: the one that was waited for, or the last one, and its back-off still runs."""

    stored: Stored | None  # Kind.ERROR; None if its description cannot be read
    failures: int = 1  # in a row
    left: float = 0.0  # seconds until the back-off ends
    found: Found | None = None  # what is stale, if anything is


LeaseOutcome: TypeAlias = Found | Granted | Wait | Bypass | Failed
"""What a call for a lease comes to; `Found` is a fresh value."""


def ms(seconds: float) -> int:
    """Whole milliseconds, at least one."""
    return max(1, round(seconds * 1000))
