"""What L1 keeps of one value, in few bytes: what its entry alone has, and what many entries have in common."""

from __future__ import annotations

import math
from math import frexp, ldexp
from typing import Any, TypeAlias
from weakref import ReferenceType, ref

import msgspec

DEAD = float("-inf")
STRIPES = 4096
FINE = 8  # an entry's ends are cut to 1 / 2**FINE of the time that is left: never later, so nothing lives longer
MOST_OLDER = 0.5  # seconds by which, at most, an entry is said to be older
SEEN = 0.5  # hits that were handed in leave this: the entry counts as used


class Shelf:
    """The entries of one function by its arguments: a generated wrapper reads the index."""

    __slots__ = ("__weakref__", "index", "ref", "template")

    def __init__(self, template: str = "") -> None:
        self.index: Index = {}
        self.template: str = template
        self.ref: ReferenceType[Shelf] = ref(self)


class Common(msgspec.Struct, gc=False, eq=False):
    """What an entry shares with others of nearly the same times. It is never changed.

    Args:
        kept_until: monotonic: what `until` may be renewed to, as long as the bus is proven.
        fresh_until: the end of its TTL, may lie beyond `kept_until`.
        dead_from: from here on it is not even served as stale.
        born: when it was stored.
        kind: of the value.
        shared: in Redis, too: other processes may change it.
        tags: of the value.
        marks: the markers of its tags.
        shelf: whose index leads to the entry. A strong reference would be a cycle that the collector does not see.
        bound: the same, with the shelf that was asked for last.
    """

    kept_until: float
    fresh_until: float
    dead_from: float = math.inf
    born: float = 0.0
    kind: int = 0
    shared: bool = True
    tags: tuple[str, ...] = ()
    marks: tuple[str, ...] = ()
    shelf: Any = None
    bound: Any = None

    def on(self, shelf: Shelf) -> Common:
        """The same for an entry to which *shelf* leads; `bound` from now on."""
        self.bound = bound = Common(
            self.kept_until, self.fresh_until, self.dead_from, self.born, self.kind, self.shared, self.tags,
            self.marks, shelf.ref,
        )  # fmt: skip
        return bound

    def gone(self) -> Common:
        """The same for an entry that was dropped: who has it in hand still reads what its value is."""
        return Common(DEAD, DEAD, DEAD, self.born, self.kind, self.shared, self.tags)


class Holder:
    """One value in this process.

    The entry is shared by every index that leads to it. To kill it is to set `until`: whoever still holds it sees that
    it is over, and a reader that took the value a moment earlier read it before the invalidation returned.
    """

    __slots__ = ("arguments", "common", "hits", "type", "until", "value")

    def __init__(
        self,
        value: Any,
        until: float,
        common: Common,
        hits: float = 0.0,
        kind: type | None = None,
        arguments: Any = None,
    ) -> None:
        self.value: Any = value
        self.until: float = until  # monotonic: a hit before this needs no question
        self.common: Common = common
        self.hits: float = hits  # those that are not handed in yet; above 0 it was used since it last came up
        self.type: type | None = kind  # of the single argument that leads here: 1, 1.0 and True are one dict key
        self.arguments: Any = arguments  # that lead here in the index of the shelf; or `Several`


class Keyed(Holder):
    """An entry that knows its key, where each use is told to the eviction policy (LFU)."""

    __slots__ = ("key",)

    key: str


class Leaf(msgspec.Struct, gc=False, eq=False):
    """`Holder` for a value that refers to nothing: no cycle leads through it, so the collector need not know it.

    That saves 16 bytes of each entry, and the collector a look at it.
    """

    value: Any
    until: float
    common: Common
    hits: float = 0.0
    type: Any = None
    arguments: Any = None


# msgspec's own is there for the collector alone, and CPython stores into a slot faster where it is the ordinary one.
Leaf.__setattr__ = object.__setattr__  # type: ignore[method-assign]
Leaf.__delattr__ = object.__delattr__  # type: ignore[method-assign]

Entry: TypeAlias = Holder | Leaf
Index: TypeAlias = dict[Any, Entry]
LEAVES: frozenset[type[Any]] = frozenset({type(None), bool, int, float, str, bytes})


class Several(tuple[tuple[Any, Any], ...]):
    """The shelves that lead to one entry, by reference, with the arguments for each."""

    __slots__ = ()


def leads(entry: Entry) -> tuple[tuple[Any, Any], ...]:
    """The references of shelves, with arguments, that lead to *entry*."""
    arguments, shelf = entry.arguments, entry.common.shelf
    if shelf is None:
        return ()
    return arguments if type(arguments) is Several else ((shelf, arguments),)


class Shelving:
    """Makes the entries of one tier: times that are nearly the same become the same, so that entries share them.

    Args:
        keyed: the entries know their keys.
    """

    def __init__(self, *, keyed: bool = False) -> None:
        self._keyed = keyed
        self._commons: list[Common | None] = [None] * STRIPES
        self._kind: type[Holder | Leaf] = Leaf

    def entry(
        self,
        value: Any,
        *,
        now: float,
        kept_until: float,
        fresh_until: float,
        born: float,
        dead_from: float = math.inf,
        kind: int = 0,
        shared: bool = True,
        tags: tuple[str, ...] = (),
        marks: tuple[str, ...] = (),
    ) -> Entry:
        """An entry of *value*.

        Its ends are earlier than those given by at most a 256th of what is left, *born* by at most a 256th of its TTL,
        and never by more than `MOST_OLDER`.
        """
        make: type[Holder | Leaf] = self._kind
        if self._keyed:
            make = Keyed
        elif value is not None:  # an absence has the class of the values around it: a wrapper knows one class at a time
            make = self._kind = Leaf if type(value) in LEAVES else Holder
        left = fresh_until - now
        if 0.0 < left < math.inf:
            # Powers of two, so that multiples of them are exact.
            step = ldexp(1.0, frexp(left)[1] - FINE - 1)
            of_age = min(MOST_OLDER, ldexp(1.0, frexp(fresh_until - born)[1] - FINE - 1))
            end, born = fresh_until // step * step, born // of_age * of_age
            if dead_from < math.inf:  # the stale window is that of the function: after the cut, too
                dead_from = end + (dead_from - fresh_until) // step * step
            kept = kept_until - now
            if kept_until >= fresh_until:
                kept_until = end
            elif kept > 0.0:
                step = ldexp(1.0, frexp(kept)[1] - FINE - 1)
                kept_until = min(end, kept_until // step * step)
            fresh_until = end
        place = hash((kept_until, fresh_until, dead_from, born, kind, shared, tags)) % STRIPES
        common = self._commons[place]
        if (
            common is None
            or common.fresh_until != fresh_until
            or common.kept_until != kept_until
            or common.born != born
            or common.dead_from != dead_from
            or common.marks != marks
            or common.tags != tags
            or common.kind != kind
            or common.shared is not shared
        ):
            if kept_until == fresh_until:
                kept_until = fresh_until
            if dead_from == fresh_until:
                dead_from = fresh_until
            common = Common(kept_until, fresh_until, dead_from, born, int(kind), shared, tags, marks)
            self._commons[place] = common
        return make(value, common.kept_until, common)
