"""What a run came to."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from .disasters import Disaster
from .meter import BUCKET


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """One disaster on one side, in numbers."""

    requests: int
    answered: int
    seconds: float
    queries: int
    """At the database, in all."""
    peak: int
    """At the database, most at one moment."""
    p50: float
    """Seconds from the moment a request was due to its answer."""
    p99: float
    stale: int | None
    """Answers older than a change that had been confirmed before; None where nothing changes."""
    outdated: int | None
    """Products still shown at an old price when all was over."""
    memory: int
    """Bytes in Redis when all was over."""
    errors: int
    first_error: str
    timeline: list[int]
    """Queries in each 100 ms."""
    stale_timeline: list[int]

    def cells(self) -> tuple[str, ...]:
        """What stands in a row of the table: requests, queries, peak, p50, p99, stale, memory, errors."""
        share = "" if self.answered == self.requests else f" of {self.requests:,}"
        return (
            f"{self.answered:,}{share}",
            f"{self.queries:,}",
            f"{self.peak:,}",
            milliseconds(self.p50),
            milliseconds(self.p99),
            "–" if self.stale is None else f"{self.stale:,}",
            size(self.memory),
            f"{self.errors:,}",
        )

    def notes(self, disaster: Disaster) -> Iterator[str]:
        """What the table does not say."""
        if self.outdated is not None:
            yield f"{self.outdated} of {disaster.products} products still shown at an old price when all was over."
        if self.answered < self.requests:
            rest = self.requests - self.answered
            yield f"{rest:,} requests had not been sent when the run was ended after {disaster.limit:.0f} s."
        if self.errors:
            yield f"{self.errors:,} requests failed, the first with {self.first_error}."


def percentile(ordered: Sequence[float], share: float) -> float:
    """The smallest value that *share* of them do not exceed; 0 for none."""
    if not ordered:
        return 0.0
    return ordered[min(len(ordered) - 1, max(0, -int(-share * len(ordered) // 1) - 1))]


def buckets(moments: array[float]) -> list[int]:
    """How many of *moments* lie in each 100 ms."""
    counts = [0] * (1 + int(max(moments, default=-BUCKET) / BUCKET))
    for moment in moments:
        counts[int(moment / BUCKET)] += 1
    return counts


def milliseconds(seconds: float) -> str:
    """A latency with three digits, as people say it."""
    if seconds >= 1:
        return f"{seconds:.2f} s"
    if seconds >= 0.0001:  # noqa: PLR2004 - below, microseconds read better
        return f"{seconds * 1000:.{2 - min(2, len(str(int(seconds * 1000))) - 1)}f} ms"
    return f"{seconds * 1_000_000:.0f} µs"


def size(count: int) -> str:
    """A number of bytes, as people say it."""
    amount, unit = float(count), "B"
    for larger in ("kB", "MB", "GB"):
        if amount < 1000:  # noqa: PLR2004 - the size of a step
            break
        amount, unit = amount / 1000, larger
    return f"{amount:.0f} B" if unit == "B" else f"{amount:.1f} {unit}"
