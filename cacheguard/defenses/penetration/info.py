"""What is known of a filter at one moment."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

State = Literal["complete", "incomplete", "lost"]


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
