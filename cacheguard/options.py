"""What a guard was asked for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from .codec import Codec
from .events import StateChange
from .protocol.envelope import Sealer
from .tiers.local import Eviction


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What a guard was asked for, checked."""

    l1_size: int
    l1_max_bytes: int | None
    l1_eviction: Eviction
    l1_copy: bool
    codec: Codec | None
    sealer: Sealer
    operation_timeout: float
    max_loads: int
    load_wait: float
    load_queue: int
    max_absences: int
    raise_unreachable: bool
    from_replicas: bool
    outbox: str | None
    audit: float
    alone: Callable[[], object]
    on_state_change: Callable[[StateChange], object] | None
