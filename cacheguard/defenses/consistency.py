"""A load that races an invalidation must not leave its value behind."""

from __future__ import annotations

from itertools import count

STRIPES = 4096


class Tickets:
    """Proof that no invalidation of a key was heard of between two moments.

    A reader takes a ticket before it asks Redis and shows it when it wants to put the answer into the in-process tier:

        reader:  ticket 7, asks Redis, gets "old" ........................ put refused: the stripe says 9
        writer:                              invalidates: stripe becomes 9

    Keys share stripes; a needless refusal costs one round trip, a missed one would cost the truth.
    """

    __slots__ = ("_numbers", "_stripes")

    def __init__(self) -> None:
        self._stripes = [0] * STRIPES
        # Unique numbers, not `+= 1`: two threads that add one at a time could hide each other's change.
        self._numbers = count(1)

    def take(self, key: str) -> int:
        """The ticket of *key* as of now."""
        return self._stripes[hash(key) % STRIPES]

    def void(self, key: str) -> None:
        """Make every ticket of *key* taken so far invalid."""
        self._stripes[hash(key) % STRIPES] = next(self._numbers)

    def void_all(self) -> None:
        """Make every ticket taken so far invalid."""
        number = next(self._numbers)
        self._stripes[:] = [number] * STRIPES


def may_share(*, joined_before_lease: bool, proven: bool) -> bool:
    """May a follower use the answer of the flight that it joined?

    Yes if it joined before the lease was asked for: the load began after it. Yes if the fill was accepted: no
    invalidation came between lease and fill, and flights take no followers after the fill was sent. Otherwise an
    invalidation acknowledged before the follower came may be younger than the answer.
    """
    return joined_before_lease or proven
