"""What is under one key, in the process: fields and claims of layout 2, by the rules of ``lua/prelude.lua``."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from .calls import FLOOR_MS
from .layout import LONGEST_LEASE_MS, LONGEST_MS, Record

REPEATED_MS, REPEATED, FLOORS = 10_000, 8, 4

T = TypeVar("T")

Claim = list[Any]  # its end, its longest life, and what it says: see lua/prelude.lua


@dataclass(slots=True)
class State:
    """What is under one key: `lua/prelude.lua` says what the claims mean."""

    fresh: int = 0
    span: int = 0
    dead: int = 0
    born: int = 0
    value: Any = None
    latest: int | None = None  # when the value ends at the latest
    lease: Claim | None = None
    quarantine: Claim | None = None
    floor: Claim | None = None
    floors: dict[bytes, Claim] = field(default_factory=dict[bytes, Claim])  # by the names of those under others
    failure: Claim | None = None
    writes: dict[str, Claim] = field(default_factory=dict[str, Claim])
    repeated: dict[str, Claim] = field(default_factory=dict[str, Claim])
    version: tuple[str, bytes] | None = None
    beneath: Claim | None = None  # of a namespace: some tag of it is quarantined

    def claims(self) -> Iterable[Claim]:
        """All claims, whatever their kind."""
        for claim in (self.lease, self.quarantine, self.floor, self.failure, self.beneath):
            if claim is not None:
                yield claim
        yield from self.floors.values()
        yield from self.writes.values()
        yield from self.repeated.values()

    def end(self) -> int:
        """When the last of all that is here ends."""
        last = max((claim[0] for claim in self.claims()), default=0)
        return last if self.value is None else max(last, self.dead)

    def open(self, now: int) -> None:
        """Let go of what is over, and cut what another clock has written."""
        self.lease, self.quarantine = _alive(self.lease, now, LONGEST_LEASE_MS), _alive(self.quarantine, now)
        self.floor, self.failure = _alive(self.floor, now), _alive(self.failure, now)
        self.beneath = _alive(self.beneath, now)
        for named in (self.writes, self.repeated, self.floors):
            _open_each(named, now)
        if not self.holds(now):
            self.let_go(now)
            self.latest = None

    def holds(self, now: int) -> bool:
        """Whether there is a value that is not over, nor written by a clock that is far ahead."""
        return self.value is not None and self.dead > now and self.fresh - now <= min(self.span, LONGEST_MS)

    def raw(self) -> Record | None:
        """What READ gets."""
        return None if self.value is None else Record(self.fresh, self.span, self.dead, self.born, self.value)

    def is_fresh(self, now: int) -> bool:
        return self.value is not None and self.fresh > now

    def is_old(self, version: str, under: bytes) -> bool:
        """Whether *version* is older than the floor, or than that of the value."""
        if not version:
            return False
        known = [(floor[2], floor[3]) for floor in (self.floor, *self.floors.values()) if floor is not None]
        if self.version is not None:
            known.append(self.version)
        return any(same_names(names, under) and version < newest for newest, names in known)

    def quarantined(self, version: str, under: bytes) -> int | None:
        """Until when a value with this version may live; None if no quarantine concerns it."""
        held = self.quarantine
        if held is None or proves(version, under, *held[2:]):
            return None
        end: int = held[0]
        return end

    def raise_floor(self, now: int, version: str, under: bytes, ms: int) -> None:
        ends, life = now + ms, ms
        floor = self.floor
        if floor is not None and not same_names(floor[3], under):
            # A writer that has not heard of a `clear()` yet raises a floor under the names before.
            _make_room(self.floors, FLOORS)
            self.floors[floor[3]] = floor
            floor = self.floors.pop(under, None)
        if floor is not None and same_names(floor[3], under):
            if floor[0] > ends:
                ends, life = floor[0], floor[1]
            version = max(version, floor[2])
            under = under if floor[3] else b""
        self.floor = [ends, life, version, under]

    def let_go(self, now: int) -> None:
        """The value goes, or another takes its place: from now on its version is the floor."""
        if self.version is not None:
            self.raise_floor(now, *self.version, FLOOR_MS)
        self.version = self.value = self.latest = None

    def strip(self) -> None:
        """The value has to go. As where Redis evicts, its version goes with it; claims stay until their own ends."""
        self.value = self.version = self.latest = None

    def void(self) -> None:
        """No load that is under way may fill."""
        self.lease = self.failure = None

    def end_by(self, end: int) -> None:
        """The value ends then, whatever its life was to be, and nothing makes that longer."""
        self.latest = end if self.latest is None else min(self.latest, end)
        self.fresh, self.dead = min(self.fresh, self.latest), min(self.dead, self.latest)

    def replace(
        self, now: int, value: Any, fresh: int, stale: int, version: str, under: bytes, *, latest: int = 0
    ) -> bool:
        """A new value and its life; whether it ends with a quarantine, or with *latest* unless that is 0."""
        self.let_go(now)
        end = self.quarantined(version, under)
        self.fresh, self.span, self.dead, self.born = now + fresh, fresh, now + fresh + stale, now
        if end is not None:
            self.end_by(end)
        if latest:
            self.end_by(latest)
        brief = self.latest is not None
        if brief:
            self.dead, self.span = self.fresh, self.fresh - now
        if version:
            self.version = version, under
        self.value = value
        return brief

    def outlives(self, now: int, ms: int) -> None:
        """Let the value be there for another *ms*, in case that the load fails."""
        if self.value is not None:
            dead = now + ms
            self.dead = max(self.dead, dead if self.latest is None else min(dead, self.latest))

    def remember(self, now: int, token: str) -> None:
        _make_room(self.repeated, REPEATED)
        self.repeated[token] = [now + REPEATED_MS, REPEATED_MS]

    def written_until(self) -> int:
        """When the last of the writes under way ends; 0 without one."""
        return max((claim[0] for claim in self.writes.values()), default=0)


def _open_each(claims: dict[Any, Claim], now: int) -> None:
    for name, claim in list(claims.items()):
        if _alive(claim, now) is None:
            del claims[name]


def _make_room(claims: dict[T, Claim], most: int) -> None:
    """Room for one more: if there are as many as may be, the one that ends first goes."""
    if len(claims) >= most:
        del claims[min(claims, key=lambda name: claims[name][0])]


def _alive(claim: Claim | None, now: int, longest: int = LONGEST_MS) -> Claim | None:
    if claim is None or claim[0] <= now:
        return None
    claim[0] = min(claim[0], now + min(claim[1], longest))
    return claim


def proves(version: str, under: bytes, written: str, under_which: bytes) -> bool:
    """Whether a value with this version is no older than the write for which a quarantine began."""
    return bool(version and written) and same_names(under_which, under) and version >= written


def same_names(one: bytes, other: bytes) -> bool:
    """Whether two versions can be compared: they count under the same namespaces, or one of them under all."""
    return not one or not other or one == other
