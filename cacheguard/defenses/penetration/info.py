"""What is known of a filter at one moment."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from .layout import FIRST_SHARE, Shape

State = Literal["complete", "incomplete", "lost"]
Ensured = Literal["complete", "incomplete", "unreachable"]


@dataclass(frozen=True, slots=True)
class BloomInfo:
    """What is known of a filter at one moment.

    Args:
        state: ``"complete"``: it can answer "absent"; ``"incomplete"``: not yet, or not on this server;
            ``"lost"``: it is gone or lacks bits, and needs a rebuild.
        count: items added that were not there before.
        capacity: items that fit into its current layers; it grows.
        memory: size of its bits in bytes, in Redis and again in each process that uses it.
    """

    name: str
    state: State
    epoch: str
    count: int
    capacity: int
    error_rate: float
    layers: int
    bits: int
    memory: int


def info_of(
    name: str, state: State, first: Shape, epoch: str = "", count: int = 0, shapes: Sequence[Shape] = ()
) -> BloomInfo:
    """What is known of a filter of these *shapes*; *first* is the layer it was declared with."""
    bits = sum(shape.bits for shape in shapes)
    return BloomInfo(
        name=name,
        state=state,
        epoch=epoch,
        count=count,
        capacity=sum(shape.capacity for shape in shapes),
        error_rate=(shapes[0] if shapes else first).error_rate / FIRST_SHARE,
        layers=len(shapes),
        bits=bits,
        memory=-(-bits // 8),
    )
