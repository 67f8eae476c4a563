"""What random HTTP programs are made of, and how they are drawn."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

from hypothesis import strategies as st

from tests.support.http_model import KINDS, LONGEST


class Brief:
    """Shows itself without what is as usual."""

    __slots__ = ()

    def __repr__(self) -> str:
        said = []
        for each in dataclasses.fields(self):  # type: ignore[arg-type]  # a subclass is a dataclass
            value = getattr(self, each.name)
            if each.default is dataclasses.MISSING:
                said.append(repr(value))
            elif value != each.default:
                said.append(f"{each.name}={value!r}")
        return f"{type(self).__name__}({', '.join(said)})"


@dataclass(frozen=True, slots=True, repr=False)
class Ask(Brief):
    """A GET or HEAD.

    Args:
        who: None, or the user and how the request names it: ``ann by cookie``.
        condition: None, or the field and by how many versions the client is behind.
        part: None, or Range, and None or by how many versions the client is behind that says If-Range.
        via: ``direct``, ``proxy`` (which is trusted) or ``stranger`` (who claims another host).
        leave: None, or how the client leaves, and after how many messages.
        reader: ``quick``, ``slow`` or ``stuck``, until all others are done.
        delay: turns of the loop before the request.
        work: turns of the loop that the application takes here and there.
    """

    resource: int
    worker: int = 0
    method: str = "GET"
    language: str | None = None
    who: str | None = None
    condition: tuple[str, int] | None = None
    part: tuple[str, int | None] | None = None
    control: str | None = None
    via: str = "direct"
    leave: tuple[str, int] | None = None
    reader: str = "quick"
    delay: int = 0
    work: int = 0


@dataclass(frozen=True, slots=True, repr=False)
class Post(Brief):
    """A change through the application. *other*: a second resource that it changes, too, and names in Location."""

    resource: int
    worker: int = 0
    other: int | None = None
    absolute: bool = False
    status: int = 200
    via: str = "direct"
    delay: int = 0
    work: int = 0


@dataclass(frozen=True, slots=True, repr=False)
class Purge(Brief):
    """A change beside the application, and the call that tells the cache. *by*: ``url`` or ``tag``."""

    resource: int
    worker: int = 0
    by: str = "url"
    delay: int = 0


@dataclass(frozen=True, slots=True, repr=False)
class Silent(Brief):
    """A change that nobody tells the cache."""

    resource: int


@dataclass(frozen=True, slots=True, repr=False)
class Break(Brief):
    """From now on the application fails for the resource: ``raises``, ``says`` (503), ``midway``, or not: ``""``."""

    resource: int
    how: str


Action = Ask | Post | Purge | Silent | Break


@dataclass(frozen=True, slots=True, repr=False)
class Page(Brief):
    """A resource. *listens*: the application ends early if its client has left. *reads*: it reads its request.

    *rewrites*: what it makes of the tag in a 304: ``weak``, ``other``, or nothing.
    """

    kind: str
    length: bool = False
    listens: bool = False
    reads: bool = False
    rewrites: str = ""


@dataclass(frozen=True, slots=True)
class Program:
    """Groups of actions, one group after the other; what is in one group happens at the same time."""

    pages: tuple[Page, ...]
    groups: tuple[tuple[Action, ...], ...]


def often(usual: Any, *others: Any) -> st.SearchStrategy[Any]:
    """*usual* more often than not, and first when hypothesis shrinks."""
    return st.sampled_from([usual] * (2 + len(others)) + list(others))


SMALL = st.integers(0, 3)
RESOURCES = often(0, 1)
WORKERS = st.integers(0, 1)
# One draw of many ready ones is quicker than a draw for each field.
PLAIN = st.sampled_from([
    Ask(resource, worker=worker, delay=delay, work=work)
    for resource, worker, delay, work in product((0, 0, 0, 1), (0, 1), range(4), range(4))
])  # fmt: skip
# What is odd of a request; most have one oddity or none.
ODDITIES: dict[str, tuple[Any, ...]] = {
    "method": ("HEAD",),
    "language": ("en", "de", "EN", "de, en", "en, de", "de;q=0.5, en", "fr;q=0.1, de"),
    "who": ("ann by cookie", "bob by cookie", "ann by authorization", "bob by authorization"),
    "condition": (("tag", 0), ("tag", 1), ("tags", 0), ("star", 0), ("date", 0), ("date", 1)),
    "part": (
        *(("bytes=0-9", None), ("bytes=10-", None), ("bytes=-7", None), ("bytes=20-39", None)),
        *((f"bytes={LONGEST}-", None), ("bytes=0-9", 0), ("bytes=0-9", 1), ("bytes=-7", 1)),
    ),
    "control": ("no-cache", "max-age=0", "only-if-cached", "no-store", "max-stale"),
    "via": ("proxy", "stranger"),
    "leave": tuple((how, after) for how in ("quietly", "raising", "cancelled") for after in (0, 1, 2, 3)),
    "reader": ("slow", "stuck"),
}
EVERY = [{name: value} for name, values in ODDITIES.items() for value in values]
ODD: st.SearchStrategy[dict[str, Any]] = st.sampled_from([{}] * len(EVERY) + EVERY)
ASKS = st.builds(lambda plain, one, other: replace(plain, **(one | other)), PLAIN, ODD, ODD)
CHANGES = st.one_of(
    st.builds(
        Post, resource=RESOURCES, worker=WORKERS, other=often(None, 0, 1), absolute=st.booleans(),
        status=often(200, 303, 500), via=often("direct", "proxy"), delay=SMALL, work=SMALL,
    ),
    st.builds(Purge, resource=RESOURCES, worker=WORKERS, by=st.sampled_from(["url", "tag"]), delay=SMALL),
    st.builds(Silent, resource=RESOURCES),
    st.builds(Break, resource=RESOURCES, how=often("", "raises", "says", "midway")),
)  # fmt: skip
CROWDS = st.builds(
    lambda ask, count: tuple(replace(ask, worker=number % 2, delay=number % 3) for number in range(count)),
    ASKS,
    st.integers(2, 6),
)
GROUPS = st.one_of(
    CROWDS,
    st.tuples(ASKS),
    st.tuples(ASKS),
    st.tuples(CHANGES),
    st.lists(ASKS, min_size=2, max_size=5).map(tuple),
    st.lists(st.one_of(PLAIN, ASKS, CHANGES), min_size=2, max_size=4).map(tuple),
)
PAGES = st.sampled_from([
    Page(kind, length, listens, reads, rewrites)
    for length, listens, reads in product((False, True), repeat=3)
    for rewrites in ("", "", "weak", "other")
    for kind in sorted(KINDS)
])  # fmt: skip
PROGRAMS = st.builds(
    Program, pages=st.tuples(PAGES, PAGES), groups=st.lists(GROUPS, min_size=2, max_size=10).map(tuple)
)
