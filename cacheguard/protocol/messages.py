"""What is published on the bus of a guard. Each message begins with the number of its format.

=========================================================  =============================================================
message                                                    meaning
=========================================================  =============================================================
``2 drop <echo> <quarantine> <write> <floor> <key>``       what is under *key* has changed; *echo* says who did it, in
                                                           which round trip. For *quarantine* ms, what is cached of it
                                                           dies when they are over; for *write* ms at most, a write is
                                                           under way; *floor* is the version floor, or ``-``
``2 dirty <key>``                                          it was invalidated, but Redis refused to remove it
``2 filled <key>``                                         the load that others wait for has ended
=========================================================  =============================================================

A process that meets another number may have missed an invalidation: for it, that is a gap.
"""

from __future__ import annotations

from dataclasses import dataclass

FORMAT = "2"
DROP, DIRTY, FILLED = "drop", "dirty", "filled"
_NO_FLOOR = "-"
_WORDS_OF_DROP = 6


@dataclass(frozen=True, slots=True)
class Drop:
    """What is stored under a key has changed.

    Args:
        key: an entry, or a marker.
        echo: who did it, in which round trip.
        quarantine_ms: for so long, what is cached of it dies when that time is over.
        write_ms: for so long at most, a write is under way.
        floor: the version floor, or "".
    """

    key: str
    echo: str
    quarantine_ms: int = 0
    write_ms: int = 0
    floor: str = ""

    def text(self) -> str:
        return f"{FORMAT} {DROP} {self.echo} {self.quarantine_ms} {self.write_ms} {self.floor or _NO_FLOOR} {self.key}"


@dataclass(frozen=True, slots=True)
class Dirty:
    """What is stored under *key* was invalidated, but Redis refused to remove it."""

    key: str


@dataclass(frozen=True, slots=True)
class Woken:
    """The load of *key* that others wait for has ended: its value is there, or its lease is free."""

    key: str


class UnknownFormat(ValueError):  # noqa: N818 - an event, not a fault
    """A message of a release that writes another format: what it says may be an invalidation."""


def dirty(key: str) -> str:
    """The text of `Dirty`."""
    return f"{FORMAT} {DIRTY} {key}"


def filled(key: str) -> str:
    """The text of `Woken`."""
    return f"{FORMAT} {FILLED} {key}"


def heard(message: str) -> Drop | Dirty | Woken:
    """A message taken apart; `UnknownFormat` if that is not possible."""
    number, _, rest = message.partition(" ")
    what, _, rest = rest.partition(" ")
    if number == FORMAT:
        if what == DROP:
            try:
                echo, quarantine, write, floor, key = rest.split(" ", _WORDS_OF_DROP - 2)
                return Drop(key, echo, int(quarantine), int(write), "" if floor == _NO_FLOOR else floor)
            except ValueError:
                pass
        elif what == DIRTY:
            return Dirty(rest)
        elif what == FILLED:
            return Woken(rest)
    raise UnknownFormat(message)
