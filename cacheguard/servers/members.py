"""Which of several nodes holds what, and which of them are away."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from itertools import islice
from typing import TYPE_CHECKING

from .hashing import HashRing

if TYPE_CHECKING:
    from ..delivery.bus import Bus
    from ..events import Events

FAILURES = 3  # round trips in a row that were not answered: a node that loses one reply is not away
DOUBT = 0.3  # seconds for which a breaker may be open after a failure: it is closed at once if that was nothing
GRACE = 2.5  # seconds for which a node that is back is left alone: pending invalidations of others arrive first
RETRY_AFTER = 5.0  # seconds after which a node that was away is asked although its bus has proven nothing


class Members:
    """Which node holds what, and which of them are away; shared by all engines of a guard.

    Args:
        ring: by the names of the nodes.
        buses: of each node.
        events: of each node.
        now: monotonic seconds.
        moves: whether the keys of a node that is away are looked for in their standby.
        also: another ring, by which other processes place keys: what is invalidated here is invalidated there, too.
    """

    buses: Mapping[str, Bus]
    names: tuple[str, ...]

    def __init__(
        self,
        ring: HashRing,
        buses: Mapping[str, Bus],
        events: Mapping[str, Events],
        now: Callable[[], float],
        *,
        moves: bool,
        also: HashRing | None = None,
    ) -> None:
        self.names, self.buses = tuple(sorted(buses)), buses
        self._ring, self._events, self._now, self._also = ring, events, now, also
        self._moves = moves and len(ring.names) > 1
        self._left: dict[str, float] = {}  # nodes that were away, and when that was seen to be over

    def home_of(self, key: str) -> str:
        """The node that *key* belongs to; what keys have in braces keeps them together, as in a cluster."""
        return self._ring.node_of(_together(key))

    def candidates(self, key: str) -> tuple[str, ...]:
        """Every node in which an entry may be: its home, its standby where keys move, and where others have it."""
        here = self._holders(self._ring, key)
        return here if self._also is None else tuple(dict.fromkeys((*here, *self._holders(self._also, key))))

    def _holders(self, ring: HashRing, key: str) -> tuple[str, ...]:
        """The home, and where keys move its standby."""
        if not self._moves:
            return (ring.node_of(_together(key)),)
        return tuple(islice(ring.nodes_of(_together(key)), 2))

    def current(self, key: str) -> str:
        """The node that is asked for *key* now."""
        if not self._moves:
            return self._ring.node_of(_together(key))
        home, standby = self._holders(self._ring, key)
        return standby if self.is_away(home) and not self.is_away(standby) else home

    def instead_of(self, name: str, key: str) -> str | None:
        """The node to ask for *key* now that *name* has not answered; None if there is none."""
        if not self._moves or not self.is_away(name):
            return None
        holders = self._holders(self._ring, key)
        return next((other for other in holders if other != name and not self.is_away(other)), None)

    def is_away(self, name: str) -> bool:
        """Whether the node does not answer, or it has not been long that it does again."""
        events, left = self._events[name], self._left.get(name)
        # The usual case, and every call passes here: nothing has failed of late, and the node was not away.
        if left is None and events.failures == 0 and events.breaker == "closed":
            return False
        now, failed_at = self._now(), events.failed_at
        # Its breaker leaves it alone, so nobody asks it. A breaker may open by mistake and is closed by the next probe,
        # so it counts only if that has not happened within a moment: to move keys costs each of them a load.
        alone = events.breaker != "closed" and now >= failed_at + DOUBT
        # Its breaker is still closed, but round trips fail one after the other. A heartbeat that came back since shows
        # that the node is there. If the bus cannot show that, somebody has to ask again after a while.
        unproven = failed_at > self.buses[name].proven_at and now < failed_at + RETRY_AFTER
        if alone or (events.failures >= FAILURES and unproven):
            self._left[name] = math.inf  # it is not over
            return True
        if left is None:
            return False  # it has failed, but not often enough
        # It answers again. Others may have invalidations pending from the time when it was away:
        #
        # P1:  an invalidation of k pends ...... sees that the node is back, delivers it
        # P2:                    sees it first: would read the old k
        #
        # So this process leaves it alone from the first call that sees it back, until the others, who try once a
        # second, have delivered.
        over_since = self._left[name] = min(left, now)
        if now < over_since + GRACE:
            return True
        self._left.pop(name, None)
        return False

    def concerns(self, name: str, key: str) -> bool:
        """Whether an entry of *key* may be in that node."""
        return name in self.candidates(key)


def _together(key: str) -> str:
    """The part of *key* that places it: what is in braces, if anything is; no entry has any."""
    begin = key.find("{")
    if begin < 0:
        return key
    end = key.find("}", begin)
    return key[begin + 1 : end] if end > begin + 1 else key
