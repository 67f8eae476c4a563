"""What a reader need not ask Redis because another caller of this process asks it, or has just been told.

A hot key expires, and twenty-five threads of a process come at one moment:

    first:    begins a look, asks Redis ... "stale, reload": keeps a copy ........ its reload is under way
    others:       wait for the look ........................ get the copy ....... get the copy, at once

    first:    begins a look, asks Redis ... "nothing": opens a flight ........ lands it
    others:       wait for the look ............................................ are woken once, by the landing

A look is no hit: when it is over, who waited begins with L1 again. What it finds there obeys the rules of L1, as if it
had come a moment later. So there are looks only for what L1 may keep.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, TypeVar

from ..defenses.breakdown import poll_delay
from ..protocol.envelope import Kind

if TYPE_CHECKING:
    from ..ports import Home, Signal
    from ..tiers.held import Entry
    from ..tiers.local import Local
    from .flights import Flight

MOST_KEPT = 10_000

T = TypeVar("T")


class Look:
    """One caller's question to Redis about a key, for which others wait.

    Args:
        home: where it is asked.
    """

    __slots__ = ("cut_off", "flight", "home", "joined_at", "stale", "waiting")

    def __init__(self, home: Home | None) -> None:
        self.home: Home | None = home
        self.waiting: list[Signal] | None = None
        self.flight: Flight | None = None  # to which those who wait have been passed on
        self.joined_at: int = 0  # leases that it had asked for by then
        self.stale: bool = False  # whoever asked has something stale to serve if that flight fails
        self.cut_off: bool = False  # Redis could not be asked


class Looks(dict[str, Look]):
    """The looks of one engine that are under way, by key.

    Args:
        local: its lock guards who waits for which of them.
    """

    def __init__(self, local: Local) -> None:
        super().__init__()
        self._local = local

    def wait(self, key: str, look: Look, signal: Signal) -> bool:
        """Have *signal* set when *look* is over, or the flight has landed that it led to; False if it is over."""
        with self._local.lock:
            if self.get(key) is not look:
                return False
            if look.waiting is None:
                look.waiting = [signal]
            else:
                look.waiting.append(signal)
        return True

    def leave(self, look: Look, signal: Signal) -> None:
        """Wait no more, with *signal*; a seat in the flight that it led to stays."""
        with self._local.lock:
            if look.waiting is not None and signal in look.waiting:
                look.waiting.remove(signal)

    def end(self, key: str, look: Look, flight: Flight | None = None) -> int:
        """End *look*; those who wait for it go on, or with *flight* wait for that one, each with a seat in it.

        Returns how many they are.
        """
        with self._local.lock:
            if self.get(key) is not look:
                return 0
            self.pop(key, None)
            waiting, look.waiting = look.waiting, None
            if waiting and flight is not None:
                look.flight, look.joined_at = flight, flight.leases
                flight.seats += len(waiting)
        for signal in waiting or ():
            if flight is None:
                signal.set()
            else:
                flight.also(signal)
        return len(waiting or ())


class Meanwhile:
    """Stale copies that are served while their reload is under way, in this process or in another one.

    A copy lies in L1, past its time, so that an invalidation finds it there. It is served until Redis is to be asked
    again: for as long as a waiter would sleep, or until the reload has ended.

    Args:
        local: the in-process tier.
    """

    def __init__(self, local: Local) -> None:
        self._local = local
        self._copies: dict[str, tuple[Entry, float]] = {}  # and until when they are served
        self._elsewhere: dict[str, float] = {}  # until when nobody here need ask for the lease

    def entry(self, key: str, now: float) -> Entry | None:
        """The stale copy of *key* that may be served without a question."""
        copy = self._copies.get(key)
        if copy is None:
            return None
        entry, until = copy
        if now >= until or self._local.find(key) is not entry:
            self._copies.pop(key, None)
            return None
        return entry if now < self._local.trusted_until else None

    def keep(self, key: str, entry: Entry, now: float, most: float, draw: float) -> None:
        """Serve *entry*, which L1 has taken, for a moment, and for *most* seconds beyond its TTL."""
        common = entry.common
        until = min(now + poll_delay(now - common.fresh_until, draw), common.fresh_until + most, common.dead_from)
        if common.kind == Kind.VALUE:
            with self._local.lock:
                _put(self._copies, key, (entry, until))

    def reloaded_elsewhere(self, key: str, now: float, stale_for: float, draw: float) -> None:
        """Another process holds the lease of *key*, whose value has been stale for *stale_for* seconds."""
        with self._local.lock:
            _put(self._elsewhere, key, now + poll_delay(stale_for, draw))

    def leased_elsewhere(self, key: str, now: float) -> bool:
        """True if another process held the lease of *key* a moment ago."""
        return now < self._elsewhere.get(key, -math.inf)

    def over(self, key: str) -> None:
        """The reload of *key* has ended: whoever comes asks Redis."""
        self._copies.pop(key, None)
        self._elsewhere.pop(key, None)

    def clear(self) -> None:
        """Forget everything."""
        self._copies.clear()
        self._elsewhere.clear()


def _put(kept: dict[str, T], key: str, what: T) -> None:
    kept.pop(key, None)
    while len(kept) >= MOST_KEPT:
        kept.pop(next(iter(kept)), None)
    kept[key] = what
