"""How many keys go in one round trip; what is more goes in parts, each sent when the one before has been answered."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import TypeVar

T = TypeVar("T")

MOST_AT_ONCE = 1000  # keys or changes in one round trip
MOST_IN_A_LOOP = 250  # the same in an event loop, which stands still while they are packed


def parts(what: Iterable[T], most: int = MOST_AT_ONCE) -> Iterator[list[T]]:
    """*what* in lists of *most*, each made when it is asked for."""
    left = iter(what)
    while part := list(islice(left, most)):
        yield part
