"""How the bits of a filter are laid out: layers of hash functions, cut into chunks. Pure rules.

A filter is a stack of layers, each a `pybloom_live.BloomFilter`; what processes share in Redis is the same bits,
cut into chunks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib import import_module

from ...checks import count, number_of
from ...errors import ConfigurationError

CHUNK_BYTES = 4080  # with the header and Redis' own string header this fills one 4 kB allocation
CHUNK_BITS = CHUNK_BYTES * 8
HEADER_BYTES = 8
FIRST_SHARE = 0.8  # of the error rate, for the first layer

_MOST_ITEMS = 2**32
_LEAST_ERROR = 1e-12
_PROBE_TEXT = "cacheguard"

Hashes = Callable[[str], Iterable[int]]


@dataclass(frozen=True, slots=True)
class Shape:
    """The measures of one layer: `slices` hash functions, each with `slice_bits` bits of its own."""

    capacity: int
    error_rate: float
    slices: int
    slice_bits: int

    @property
    def bits(self) -> int:
        return self.slices * self.slice_bits

    @property
    def chunks(self) -> int:
        return -(-self.bits // CHUNK_BITS)


def checked_plan(capacity: object, error_rate: object) -> Shape:
    """The first layer of a filter for *capacity* items, wrong for at most *error_rate* of what it never saw.

    It takes 0.8 of the error rate; the layers that follow take 0.1, 0.05, 0.025 ... so that the sum keeps the promise
    however far the filter grows. Raises `ConfigurationError` for figures out of range.
    """
    items = count("capacity", capacity, 1, _MOST_ITEMS, allowed=f"a whole number of items from 1 to {_MOST_ITEMS}")
    if not _LEAST_ERROR <= number_of(error_rate) < 1:
        raise ConfigurationError(
            f"error_rate must be a number above 0 (at least {_LEAST_ERROR}) and below 1, got {error_rate!r}; "
            "0.001 lets one absent item in a thousand through"
        )
    return _shape(items, FIRST_SHARE * number_of(error_rate))


def next_shape(shapes: Sequence[Shape]) -> Shape:
    """The layer that follows *shapes*: twice the last one's room and half its errors (an eighth of the first's)."""
    last = shapes[-1]
    return _shape(last.capacity * 2, last.error_rate / (8 if len(shapes) == 1 else 2))


def _shape(capacity: int, error_rate: float) -> Shape:
    # The same arithmetic as pybloom's constructor, so that bits can be placed before any are allocated.
    slices = math.ceil(math.log2(1.0 / error_rate))
    slice_bits = math.ceil((capacity * abs(math.log(error_rate))) / (slices * (math.log(2) ** 2)))
    return Shape(capacity, error_rate, slices, slice_bits)


def describe(shapes: Sequence[Shape]) -> str:
    """*shapes* as the text that is kept in Redis; `parse` reads it."""
    return ",".join(f"{s.capacity}:{s.error_rate!r}:{s.slices}:{s.slice_bits}" for s in shapes)


def parse(text: str) -> tuple[Shape, ...]:
    """The shapes that `describe` wrote. Raises ``ValueError`` for anything that this version would not have written."""
    try:
        shapes = tuple(_parse_one(part) for part in text.split(","))
    except OverflowError as error:
        raise ValueError(f"not a plan of layers: {text!r:.80}") from error
    if describe(shapes) != text:
        raise ValueError(f"not a plan of layers: {text!r:.80}")
    return shapes


def _parse_one(text: str) -> Shape:
    capacity, error_rate, slices, slice_bits = text.split(":")
    given = Shape(int(capacity), float(error_rate), int(slices), int(slice_bits))
    if not (0 < given.error_rate < 1 and given.capacity > 0) or _shape(given.capacity, given.error_rate) != given:
        raise ValueError(f"not a layer: {text!r:.80}")
    return given


def hashes_of(shape: Shape) -> Hashes:
    """The hash functions pybloom uses for a layer, without its bits."""
    functions: tuple[Hashes, object] = import_module("pybloom_live.pybloom").make_hashfuncs(
        shape.slices, shape.slice_bits
    )
    return functions[0]


def positions(shape: Shape, hashes: Hashes, text: str) -> list[int]:
    """The bits that stand for *text* in a layer, one in each slice."""
    return [part * shape.slice_bits + bit for part, bit in enumerate(hashes(text))]


def probe(shape: Shape) -> str:
    """Where a fixed item falls: two processes with equal probes hash alike."""
    return ",".join(map(str, positions(shape, hashes_of(shape), _PROBE_TEXT)))


def chunk_and_bit(position: int) -> tuple[int, int]:
    """The chunk that holds a bit, and the bit's number inside it as Redis counts: past the header, high bit first."""
    chunk, inside = divmod(position, CHUNK_BITS)
    return chunk, HEADER_BYTES * 8 + (inside ^ 7)


def chunks_of(shapes: Sequence[Shape]) -> int:
    """How many chunks there may be."""
    return sum(shape.chunks for shape in shapes)
