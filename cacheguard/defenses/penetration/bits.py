"""The bits of a filter in this process."""

from __future__ import annotations

import math
from collections.abc import Sequence
from importlib import import_module
from typing import Any

from .layout import CHUNK_BYTES, Shape, next_shape, positions


class Layers:
    """The bits of one filter in this process.

    Costs ``bits / 8`` bytes. Reads need no lock: bits only ever go from 0 to 1, and growing swaps one tuple. Writers
    must hold a lock.
    """

    __slots__ = ("_views", "count", "filled", "filters", "shapes")

    def __init__(self, shapes: Sequence[Shape]) -> None:
        self.shapes: tuple[Shape, ...] = ()
        self.filters: tuple[Any, ...] = ()  # pybloom has no types; a filter answers ``text in filter``
        self._views: tuple[memoryview, ...] = ()
        self.count: int = 0
        self.filled: int = 0
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
        *older, layer = self.filters
        if any(text in each for each in older):
            return []
        set_bits = positions(self.shapes[-1], layer.make_hashes, text)
        bits = layer.bitarray
        if all(bits[position] for position in set_bits):
            return []
        for position in set_bits:
            bits[position] = 1
        return set_bits

    def add(self, text: str) -> list[int]:
        """`put`, counting; a new layer is opened when the last one is full."""
        if self.filled >= self.shapes[-1].capacity and not self.holds(text):
            self.append(next_shape(self.shapes))
        set_bits = self.put(text)
        if set_bits:
            self.count += 1
            self.filled += 1
        return set_bits

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


class Mirror:
    """The bits in this process, and until when they may be trusted to lack nothing."""

    __slots__ = ("epoch", "layers", "tail", "until")

    epoch: str
    layers: Layers
    tail: tuple[int, bytes]
    """How many added items it knows of, and the signature of the last, if they are signed."""

    def __init__(self, epoch: str, layers: Layers, tail: tuple[int, bytes] = (0, b"")) -> None:
        self.epoch, self.layers, self.tail = epoch, layers, tail
        self.until: float = -math.inf
