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
    value: Any  # under Kind.ERROR: the `exceptions.Described`
    ttl: float  # seconds it was stored to be fresh for
    load_time: float  # seconds its load took
    tags: tuple[str, ...]
    nonces: tuple[bytes, ...] = ()  # what the markers of its namespaces and its tags said when its load began


@dataclass(slots=True)
class Found:
    """An entry in Redis."""

    stored: Stored | None  # None: nothing that may be used
    fresh_left: float  # seconds; negative: stale since
    unusable: Any = ""  # why nothing may be used: LEASE knows the useless value by this


class Granted:
    """The right to fill, until it is released, voided or runs out.

    Args:
        found: what is stored, and stale.
        marks: what the markers that were asked for say now; None where one has no answer.
        at_ms: the server's time.
        quarantines: by marker, for how many seconds longer what is cached under it is quarantined.
    """

    __slots__ = ("at_ms", "found", "marks", "quarantines")

    at_ms: int
    found: Found | None
    marks: Mapping[str, Any]
    quarantines: Mapping[str, float]

    def __init__(
        self, found: Found | None, marks: Mapping[str, Any], at_ms: int, quarantines: Mapping[str, float]
    ) -> None:
        self.found, self.marks, self.at_ms, self.quarantines = found, marks, at_ms, quarantines

    def quarantined_for(self, markers: Iterable[str], passed: float) -> float | None:
        """The seconds until the quarantine of one of *markers* ends, *passed* after the lease; None without one."""
        left = [self.quarantines[marker] - passed for marker in markers if marker in self.quarantines]
        return max(0.001, min(left)) if left else None

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
    """

    key: str
    token: str
    envelope: Any
    fresh: float
    stale: float
    version: str = ""
    markers: tuple[str, ...] = ()
    nonces: tuple[bytes, ...] = ()


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
    """The load that was waited for raised."""

    stored: Stored | None  # Kind.ERROR; None if its description cannot be read


LeaseOutcome: TypeAlias = Found | Granted | Wait | Bypass | Failed
"""What a call for a lease comes to; `Found` is a fresh value."""


def ms(seconds: float) -> int:
    """Whole milliseconds, at least one."""
    return max(1, round(seconds * 1000))
