"""Penetration: keys that exist nowhere. The rules of the Bloom filter, and a bound on stored absences.

Nothing here waits, and nothing here knows Redis. A filter is a stack of layers, each a `pybloom_live.BloomFilter`;
what is shared with other processes is the same bits, cut into chunks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from hashlib import blake2b
from importlib import import_module
from typing import Any

from ...checks import count, number_of
from ...errors import ConfigurationError

CHUNK_BYTES = 4080  # with the header and Redis' own string header this fills one 4 kB allocation
CHUNK_BITS = CHUNK_BYTES * 8
HEADER_BYTES = 8
LONGEST_TEXT = 64

_MOST_ITEMS = 2**32
_LEAST_ERROR = 1e-12
_PROBE_TEXT = "cacheguard"

Hashes = Callable[[str], Iterable[int]]


def item_text(item: object) -> str:
    """The text that stands for *item* in a filter: at most 64 characters, always encodable as UTF-8.

    All forms of one text are one item: ``42``, ``"42"``, ``b"42"``, ``42.0``, ``Decimal(42)``, an `IntEnum` of 42.
    Taking two forms for one item can only make the answer "maybe"; telling them apart could hide a row that was added
    as a number and is asked for as text. Text longer than 64 characters is replaced by its digest.

    Raises `ConfigurationError` for what has no text of its own: ``None``, bools, NaN, containers, plain objects.
    """
    if isinstance(item, str):
        text = str.__str__(item)
    elif isinstance(item, bool) or item is None:
        raise _unfit(item)
    elif isinstance(item, int):
        text = int.__repr__(item) if item.bit_length() <= LONGEST_TEXT * 3 else hex(item)
    elif isinstance(item, float | Decimal):
        text = _number_text(item)
    elif isinstance(item, bytes | bytearray):
        text = item.decode("utf-8", "surrogateescape")
    elif type(item).__str__ is object.__str__:
        raise _unfit(item)
    else:
        text = str(item)
    return text if text.isascii() and len(text) <= LONGEST_TEXT else _bounded(text)


def _number_text(item: float | Decimal) -> str:
    if not (item.is_finite() if isinstance(item, Decimal) else math.isfinite(item)):
        raise _unfit(item)
    # The size is looked at first: int(Decimal("1e999999999")) would fill the memory.
    small = -(10**LONGEST_TEXT) < item < 10**LONGEST_TEXT
    return str(int(item)) if small and item == int(item) else str(item)


def _bounded(text: str) -> str:
    encoded = text.encode("utf-8", "surrogatepass")
    if len(text) <= LONGEST_TEXT and not _has_surrogates(text):
        return text
    return "#" + blake2b(encoded, digest_size=16).hexdigest()


def _has_surrogates(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False


def _unfit(item: object) -> ConfigurationError:
    return ConfigurationError(
        f"a Bloom filter item must be a str, int, bytes, finite float, UUID or another object whose class defines "
        f"__str__, got {type(item).__name__} {item!r:.80}; pass the row's key as text"
    )


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
    return _shape(items, 0.8 * number_of(error_rate))


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


def place(position: int) -> tuple[int, int]:
    """The chunk that holds a bit, and the bit's number inside it as Redis counts: past the header, high bit first."""
    chunk, inside = divmod(position, CHUNK_BITS)
    return chunk, HEADER_BYTES * 8 + (inside ^ 7)


class Layers:
    """The bits of one filter in this process.

    Costs ``bits / 8`` bytes. Asking needs no lock: bits only ever go from 0 to 1, and growing swaps one tuple. Those
    who change it take turns.
    """

    __slots__ = ("_views", "count", "filled", "filters", "shapes")

    def __init__(self, shapes: Sequence[Shape]) -> None:
        self.shapes: tuple[Shape, ...] = ()
        self.filters: tuple[Any, ...] = ()  # pybloom has no types; a filter answers ``text in filter``
        self._views: tuple[memoryview, ...] = ()
        self.count = 0
        self.filled = 0
        for shape in shapes:
            self.append(shape)

    def append(self, shape: Shape) -> None:
        """Add an empty layer; what is added from now on goes there."""
        layer = import_module("pybloom_live").BloomFilter(shape.capacity, shape.error_rate)
        if (layer.num_slices, layer.bits_per_slice) != (shape.slices, shape.slice_bits):
            raise ValueError("this pybloom_live measures its filters differently")
        self._views += (memoryview(layer.bitarray),)
        self.shapes += (shape,)
        self.filters += (layer,)
        self.filled = 0

    def holds(self, text: str) -> bool:
        """False only if *text* was never put here."""
        return any(text in layer for layer in self.filters)

    def put(self, text: str) -> list[int]:
        """Make `holds` true for *text*; return the bits of the last layer that say so (none if it was true already)."""
        if self.holds(text):
            return []
        layer = self.filters[-1]
        places = positions(self.shapes[-1], layer.make_hashes, text)
        bits = layer.bitarray
        for position in places:
            bits[position] = 1
        return places

    def add(self, text: str) -> list[int]:
        """`put`, counting; a new layer is opened when the last one is full."""
        if self.filled >= self.shapes[-1].capacity and not self.holds(text):
            self.append(next_shape(self.shapes))
        places = self.put(text)
        if places:
            self.count += 1
            self.filled += 1
        return places

    def chunk(self, layer: int, number: int) -> bytes:
        """One chunk of a layer's bits, filled up with zeros."""
        start = number * CHUNK_BYTES
        return bytes(self._views[layer][start : start + CHUNK_BYTES]).ljust(CHUNK_BYTES, b"\0")

    def load(self, layer: int, number: int, payload: bytes) -> None:
        """Take one chunk's bits as they are."""
        view = self._views[layer]
        start = number * CHUNK_BYTES
        end = min(start + CHUNK_BYTES, len(view))
        view[start:end] = payload[: end - start]


_SLOTS = 16
_SHORTEST, _LONGEST = -10, 40  # powers of two, in seconds: a millisecond to thousands of years


class AbsenceBudget:
    """How many absences this process may have stored at one time.

    Random ids by the million must not fill Redis with null entries; beyond *limit* an absence is answered, but not
    stored. Memory and time are constant: absences of similar lifetime share slots, and a slot is given back as a
    whole when its last absence has expired, at most an eighth of a lifetime late, never early.
    Not locked: those who share one take turns.
    """

    __slots__ = ("_outstanding", "_rings", "limit")

    def __init__(self, limit: int) -> None:
        self.limit = count("the limit of stored absences", limit, 0)
        self._outstanding = 0
        self._rings: dict[int, _Ring] = {}

    def take(self, now: float, ttl: float) -> bool:
        """Whether another absence may be stored until *now* + *ttl* (monotonic seconds); if so, it is counted."""
        for ring in self._rings.values():
            self._outstanding -= ring.expire(now)
        if self._outstanding >= self.limit:
            return False
        size = _LONGEST if ttl >= 2.0**_LONGEST else math.ceil(math.log2(max(ttl, 2.0**_SHORTEST)))
        ring = self._rings.setdefault(size, _Ring(2.0**size / _SLOTS, now))
        ring.count(now + min(ttl, 2.0**size))
        self._outstanding += 1
        return True


class _Ring:
    """Counts by the slot of time in which they end."""

    __slots__ = ("_at", "_slots", "_width")

    def __init__(self, width: float, now: float) -> None:
        self._width = width
        self._at = math.floor(now / width)
        self._slots = [0] * (_SLOTS + 3)

    def expire(self, now: float) -> int:
        """Empty the slots that lie behind *now*; return how many were in them."""
        slots = self._slots
        present = math.floor(now / self._width)
        passed = range(self._at + 1, min(present, self._at + len(slots)) + 1)
        freed = 0
        for slot in passed:
            freed += slots[slot % len(slots)]
            slots[slot % len(slots)] = 0
        self._at = max(self._at, present)
        return freed

    def count(self, end: float) -> None:
        slot = max(math.ceil(end / self._width), self._at + 1)
        self._slots[slot % len(self._slots)] += 1
