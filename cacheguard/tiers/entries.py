"""Where entries live: in one place (`Remote`), or in several that share the keys among them (`Ring`)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

from ..codec import Codec
from ..delivery.outbox import Invalidation
from ..protocol.entry import CutOff, Fill, Filled, Found, LeaseOutcome, Stored, Usable
from ..protocol.names import Scope
from .remote import Remote


class Entries(Protocol):
    """The calls of the cache protocol, as the engine makes them. Each is one round trip, unless it says otherwise.

    Where Redis cannot be asked, a call raises `Unreachable`; what cannot be read is a miss and counted.

    Several places
        With a `Ring` each key lives in one of several places that know nothing of one another. These parts of the
        protocol are there for that alone; in one place they cost nothing and mean nothing:

        - `of` is the place of a key. Nonces of markers differ from place to place, so whoever needs several calls that
          build on each other asks one place for all of them.
        - `groups` puts keys together that live in the same place, for calls that want that: `release` with marks, and
          manual writes of many keys. `abreast` is how many places can be asked at the same time.
        - `CutOff` stands in the answer to a call for many keys where the place of one of them cannot be asked while
          others can, as `Filled.FAILED` does in that of `fill_many`. In a call for one key that is `Unreachable`.
        - `elsewhere` tells the other places that may hold something older of a key that was changed in one of them.

    Replicas
        *near* says that the answer may be as old as a copy in the process may be. It is then read from a replica, if
        there are any; what these do not have costs one round trip more.
    """

    abreast: int
    """How many groups of keys can be asked for at the same time."""

    def of(self, key: str, /) -> Remote:
        """The place that is asked for *key* now."""
        ...

    def groups(self, keys: Iterable[str]) -> list[list[str]]:
        """*keys*, put together by their places."""
        ...

    async def elsewhere(self, items: Sequence[Invalidation], stored_in: Remote, /) -> None:
        """Invalidate *items* in every other place that may hold something older. No round trip, unless keys move."""
        ...

    # Reading

    async def read(
        self,
        key: str,
        codec: Codec | None,
        scope: Scope,
        tags: tuple[str, ...],
        usable: Usable | None = None,
        *,
        near: bool = False,
    ) -> Found | None:
        """The entry of *key*; one round trip more if it has tags that could not be known.

        A value for which *usable* returns False is unusable, as if it had been invalidated.
        """
        ...

    async def read_many(
        self,
        keys: Sequence[str],
        codec: Codec | None,
        scope: Scope,
        tags: Sequence[tuple[str, ...]],
        *,
        near: bool = False,
    ) -> Sequence[Found | CutOff | None]:
        """The entries of *keys*, in their order; *tags* are those of each, or nothing."""
        ...

    async def look(self, key: str, scope: Scope) -> Found | None:
        """What is stored under *key*, without its value."""
        ...

    async def scan(
        self, scope: Scope, at: int, cursor: str, pattern: str, count: int
    ) -> tuple[list[str], tuple[int, str] | None]:
        """One page of the Redis keys of fresh entries, and where the next one begins. Two round trips or three.

        Args:
            at: which of the servers, from 0 on.
            cursor: where the page begins in it.
            count: about how many names to look at.
        """
        ...

    # Filling

    async def lease(
        self,
        key: str,
        codec: Codec | None,
        scope: Scope,
        tags: tuple[str, ...],
        *,
        usable: Usable | None = None,
        token: str,
        floor_ms: int,
        awaited: str,
        unusable: Any,
        keep_ms: int,
    ) -> LeaseOutcome:
        """The right to fill *key*, or the reason why not.

        Args:
            floor_ms: a value that is fresh for no longer than this does not count.
            awaited: the token of a lease that this caller has waited for.
            unusable: what the useless value is known by that was found.
            keep_ms: for so long, the markers must be kept.
        """
        ...

    async def lease_many(
        self,
        tokens: dict[str, str],
        codec: Codec | None,
        scope: Scope,
        tags: Mapping[str, tuple[str, ...]],
        *,
        unusable: Mapping[str, Any],
        keep_ms: int,
    ) -> Mapping[str, LeaseOutcome | CutOff]:
        """Leases for several keys."""
        ...

    def pack(self, key: str, stored: Stored, codec: Codec | None) -> Any:
        """The bytes of an entry; `CodecError` if there are none. No round trip."""
        ...

    def learn(self, key: str, tags: tuple[str, ...]) -> None:
        """Remember which tags the loader of *key* gives it, so that the next read asks for them. No round trip."""
        ...

    async def fill_many(self, fills: Sequence[Fill]) -> list[Filled]:
        """Several fills, answered in their order."""
        ...

    async def renew(self, tokens: dict[str, str]) -> None:
        """Keep leases, by key, for another while; those that are gone stay gone."""
        ...

    async def release(
        self,
        tokens: dict[str, str],
        failure: Stored | None = None,
        marks: Mapping[str, bytes] | None = None,
        *,
        failures: int = 0,
        kept_ms: int = 0,
    ) -> bool:
        """Give leases back, by key, with a word on what the load died of.

        Those who wait are told in any case; with *kept_ms*, so is everybody who asks for a lease in that time, and that
        it was so many *failures* in a row.

        True if all of them were still held, and *marks* still say what they said: nothing was invalidated meanwhile.
        With *marks*, all keys must live in the same place.
        """
        ...

    # Invalidating

    async def invalidate(self, items: Sequence[Invalidation]) -> bool:
        """Invalidate entries, tags, namespaces, wherever something of them may be.

        False if that was not acknowledged; it is pending then, and delivered before anything else is asked.
        """
        ...

    async def remove(self, keys: Sequence[str], scope: Scope) -> tuple[bool, int]:
        """Invalidate entries; whether that was acknowledged, and how many of them were there and fresh."""
        ...

    async def expire(self, keys: Sequence[str]) -> bool:
        """Make entries stale; false if that was not acknowledged, and they will be invalidated instead."""
        ...
