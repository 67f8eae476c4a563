"""Waiting for work of this process: for a flight, a lease or a permit. Nobody waits for himself.

event loop:    a task leads the flight of "k" ......... can never land it: its loop does not turn
same thread:       a blocking call wants "k", waits for the flight

A caller that would wait like this loads for itself, and nothing is filled. The same goes for a thread that waits for an
event loop which has not turned for a second: the loop may be waiting for that very thread.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..ports import STANDS_STILL

if TYPE_CHECKING:
    from ..ports import Home, Runtime, Signal
    from .flights import Flight
    from .shared import Shared

LOOK = 0.25  # seconds between two looks at an event loop that somebody waits for
ADVICE = (
    "a call would have waited for itself: what it waits for is loaded in the same thread, or by an event loop that "
    "does not turn (%s). It loads for itself, and nothing is filled. In coroutines use the async door: an `async def` "
    "under `cached`, or the a… methods"
)


class Waiting:
    """Waits under one runtime.

    Args:
        shared: knows who holds the leases and the permits of this process.
    """

    def __init__(self, runtime: Runtime, shared: Shared) -> None:
        self._runtime, self._shared = runtime, shared

    def is_mine(self, home: Home | None, key: str) -> bool:
        """True if work at *home* cannot go on while this caller waits for *key*; logged once."""
        here = self._runtime.here()
        if here is None or home is None or not (home.held_up_by(here) or _stands_still(home, here)):
            return False
        self.advise(key)
        return True

    def interrupts(self, flight: Flight, key: str) -> bool:
        """True if *flight*, of *key*, cannot land while this caller waits."""
        return not flight.landed and (self.is_mine(flight.home, key) or self.is_mine(flight.after, key))

    def too_long(self, home: Home | None, waited: float, key: str) -> bool:
        """True if a blocking call has stopped its event loop for a second, for work of this process at *home*.

        Nobody can tell if that work needs the loop: a loader in a thread may have handed it a coroutine.
        """
        here = self._runtime.here()
        if here is None or home is None or not here.inside or waited < STANDS_STILL:
            return False
        self.advise(key)
        return True

    def advise(self, key: str) -> None:
        """Log, once, what the caller should do instead."""
        self._shared.events.once("waits for itself", ADVICE, key)

    async def landed(
        self,
        flight: Flight,
        key: str,
        patience: float | None,
        signal: Signal | None = None,
        *,
        since: float | None = None,
    ) -> bool:
        """Wait until *flight* has landed; False after *patience* seconds, or if the caller would wait for itself.

        Args:
            key: that it loads.
            signal: of this caller, if the flight belongs to another runtime.
            since: when the caller began to wait, if this is one of several flights.
        """
        runtime, here, home = self._runtime, self._runtime.here(), flight.home
        signal = flight.signal if signal is None else signal
        if here is None or not (here.inside or (home is not None and home.loop is not here.loop)):
            return not self.interrupts(flight, key) and await signal.wait(patience)
        began = runtime.now()
        while not self.interrupts(flight, key):
            now = runtime.now()
            left = LOOK if patience is None else min(LOOK, patience - (now - began))
            if left <= 0 or self.too_long(home, now - (began if since is None else since), key):
                break
            if await signal.wait(left):
                break
        return flight.landed


def _stands_still(home: Home, here: Home) -> bool:
    return home.loop is not None and home.loop is not here.loop and home.stands_still()
