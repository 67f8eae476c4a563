"""A load that races an invalidation must not leave its value behind."""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import TypeAlias

STRIPES = 4096

Version: TypeAlias = int | str | datetime
LARGEST_VERSION = 10**20 - 1
_LSN = re.compile(r"([0-9A-Fa-f]{1,8})/([0-9A-Fa-f]{1,8})")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Tickets:
    """Proof that no invalidation of a name (a key, a tag's marker) has arrived since the ticket was taken.

    A reader takes a ticket before it reads from Redis, and shows it when it puts the reply into L1:

        reader:  ticket 7, asks Redis, gets "old" ........................ put refused: the stripe says 9
        writer:                              invalidates: stripe becomes 9

    A ticket is the number of the last invalidation of any name, so the reader need not know beforehand which tags the
    reply will have. Names share stripes: a needless refusal costs one round trip, and a missed one would leave a stale
    entry. `revoke` and `revoke_all` need the lock of the tier.
    """

    __slots__ = ("_all", "_last", "_stripes")

    def __init__(self) -> None:
        self._stripes = [0] * STRIPES
        self._last = 0
        self._all = 0

    def take(self) -> int:
        """A ticket as of now."""
        return self._last

    def holds(self, ticket: int, key: str, others: Iterable[str] = ()) -> bool:
        """True if no invalidation of *key* or the *others* has arrived since *ticket* was taken."""
        if ticket < self._all or self._stripes[hash(key) % STRIPES] > ticket:
            return False
        return all(self._stripes[hash(other) % STRIPES] <= ticket for other in others)

    def revoke(self, name: str) -> None:
        """Make every ticket taken so far void for *name*."""
        # The stripe first: a reader that takes a ticket in between gets the old number, which is refused.
        number = self._last + 1
        self._stripes[hash(name) % STRIPES] = number
        self._last = number

    def revoke_all(self) -> None:
        """Make every ticket taken so far void."""
        self._all = self._last + 1
        self._last = self._all


def may_share(*, joined_before_lease: bool, proven: bool) -> bool:
    """May a follower use the answer of the flight that it joined?

    Yes if it joined before the lease was asked for: the load began after it. Yes if the fill was accepted: no
    invalidation came between lease and fill, and flights take no followers after the fill was sent. Otherwise an
    invalidation acknowledged before the follower came may be younger than the answer.
    """
    return joined_before_lease or proven


def version_text(version: object) -> str:
    """A source version as text of fixed width, so that bytes compare as the versions do; ``""`` for None.

    Lua counts in doubles, which cannot tell apart whole numbers beyond 2**53.

    Args:
        version: a whole number from 0 to 10**20 - 1 (a row version, a transaction id), an aware `datetime` (to the
            microsecond), digits as text, or a PostgreSQL log position such as ``"16/B374D848"``.

    Raises:
        TypeError: something else.
        ValueError: a number out of range, a text that is neither, a `datetime` without a time zone.
    """
    if version is None:
        return ""
    if isinstance(version, bool) or not isinstance(version, int | str | datetime):
        raise TypeError(f"version must be a whole number, an aware datetime or a log position, got {version!r}")
    number = _version_number(version)
    if not 0 <= number <= LARGEST_VERSION:
        raise ValueError(f"version must be from 0 to 10**20 - 1, got {version!r}")
    return f"{number:020d}"


def _version_number(version: Version) -> int:
    if isinstance(version, int):
        return version
    if isinstance(version, datetime):
        if version.utcoffset() is None:
            raise ValueError(f"version must be a datetime with a time zone, got {version!r}")
        since = version - _EPOCH
        return (since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds
    position = _LSN.fullmatch(version)
    if position is not None:
        return (int(position[1], 16) << 32) + int(position[2], 16)
    if version.isascii() and version.isdecimal():
        return int(version)
    raise ValueError(f"version must be digits or a log position like '16/B374D848', got {version!r}")
