"""How long a loaded value is kept, and how long the markers that it depends on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..durations import DAY, FOREVER
from ..protocol.entry import Stored, ms
from ..protocol.envelope import Kind

if TYPE_CHECKING:
    from ..events import Events
    from ..policy import Rules

WEEK = 7 * 86_400.0  # assumed of a TTL that is a function: the marker of a tag must outlive its entries


def ttl_of(rules: Rules, value: object, events: Events) -> float:
    """The TTL of *value* in seconds, before jitter. If a function asks for more than possible, that is logged once."""
    ttl = rules.ttl_of(value)
    if ttl > FOREVER:
        events.once("long ttl", "ttl(value) asked for %.0f days: an entry is cached for 365 days at most", ttl / DAY)
        return FOREVER
    return ttl


def marker_ms(rules: Rules) -> int:
    """The time, in ms, that the markers of an entry must live if it is being loaded now."""
    ttl = WEEK if callable(rules.ttl) else rules.ttl
    return ms(ttl + rules.stale + 2 * (rules.hard_timeout or 60.0))


def stale_window(stored: Stored, rules: Rules) -> float:
    """The seconds that *stored* is kept after its TTL. 0 for an absence: it never replaces a row."""
    return rules.stale if stored.kind is Kind.VALUE else 0.0
