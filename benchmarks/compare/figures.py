"""What was measured, as plain data, and the arithmetic on it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from statistics import quantiles
from typing import Any, Literal

OURS = "cacheguard"  # our distribution, and the contestant that is held to a target

Unit = Literal["seconds", "bytes", "per second"]
# What the target bounds: the quotient by the baseline (at most), how many times faster than it (at least), the figure
# itself, or the 99th percentile of all reads.
Aim = Literal["ratio", "faster", "seconds", "bytes", "p99"]


def percentile(values: Sequence[float], percent: int) -> float:
    """Inclusive: never beyond what was measured."""
    if not values:
        raise ValueError("a percentile needs at least one value")
    if len(values) == 1:
        return values[0]
    return quantiles(values, n=100, method="inclusive")[percent - 1]


@dataclass(frozen=True)
class Timed:
    """One round: how long it took, and how many operations were executed in that time."""

    seconds: float
    operations: int


@dataclass
class Figure:
    """One contestant of one row.

    Args:
        library: the distribution that is measured.
        how: what of its public API is called.
        unit: what the figures are.
        p10: of the rounds: what the code costs when the machine does not disturb it.
        p50: the median of the rounds.
        p90: of the rounds; with p10 and p50 it says how much the rounds differ.
        rounds: how many rounds there are.
        operations: executed in all rounds together, none of them queued or skipped.
        extra: what only this kind of row has, such as loads per round or commands per operation.
    """

    library: str
    how: str
    unit: Unit
    p10: float
    p50: float
    p90: float
    rounds: int
    operations: int
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def spread(self) -> float:
        """The middle 80 % of the rounds, as a part of the median."""
        return (self.p90 - self.p10) / self.p50 if self.p50 else 0.0


def summary(library: str, how: str, rounds: Sequence[Timed], unit: Unit = "seconds", **extra: Any) -> Figure:
    """Seconds per executed operation, over all rounds."""
    if any(each.operations < 1 for each in rounds):
        raise ValueError(f"{library}: a round executed no operation, so it cannot be divided by")
    each_took = [each.seconds / each.operations for each in rounds]
    marks = [percentile(each_took, percent) for percent in (10, 50, 90)]
    return Figure(library, how, unit, *marks, len(rounds), sum(each.operations for each in rounds), extra)


@dataclass
class Measured:
    """One row: contestants that ran, and why others did not."""

    row: str
    figures: dict[str, Figure] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    took: float = 0.0  # seconds for the whole row

    def as_data(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_data(cls, data: Mapping[str, Any]) -> Measured:
        figures = {name: Figure(**each) for name, each in data["figures"].items()}
        return cls(data["row"], figures, dict(data["absent"]), list(data["notes"]), data["took"])


@dataclass(frozen=True)
class Row:
    """A line of the table of targets.

    Args:
        name: short, for ``ROWS=``.
        title: what is measured.
        section: under which heading it stands.
        aim: how the figure becomes the number that the target bounds.
        target: that bound; None if the row has none.
        baseline: the contestant that the others are divided by.
        loads: so many loads, in each round, are part of the target.
    """

    name: str
    title: str
    section: str
    aim: Aim
    target: float | None
    baseline: str | None
    loads: int | None = None


def number(row: Row, measured: Measured, contestant: str) -> float | None:
    """What the target is compared with; None where the contestant or the baseline is missing."""
    figure = measured.figures.get(contestant)
    if figure is None:
        return None
    if row.aim == "p99":
        return float(figure.extra["p99"])
    if row.aim in {"seconds", "bytes"}:
        return figure.p10
    base = measured.figures.get(row.baseline or "")
    if base is None:
        return None
    # Rounds of a zipf row differ in their hits: medians are fair there, the least is luck.
    return base.p50 / figure.p50 if row.aim == "faster" else figure.p10 / base.p10


def reached(row: Row, measured: Measured) -> bool | None:
    """Whether the target is reached; None where there is none, or nothing to compare."""
    found = number(row, measured, OURS)
    if row.target is None or found is None:
        return None
    if row.loads is not None and set(measured.figures[OURS].extra["loads"]) != {row.loads}:
        return False
    return found >= row.target if row.aim == "faster" else found <= row.target


def pretty_seconds(value: float) -> str:
    """Three digits or so, and a unit."""
    for bound, unit, scale in ((1.0, "s", 1.0), (1e-3, "ms", 1e3), (1e-6, "µs", 1e6), (0.0, "ns", 1e9)):
        if value >= bound:
            amount = value * scale
            return f"{amount:.{0 if amount >= 100 else 1 if amount >= 10 else 2}f} {unit}"
    raise ValueError(f"a duration is not negative, got {value}")


def pretty(unit: Unit, value: float) -> str:
    """A figure with its unit."""
    if unit == "seconds":
        return pretty_seconds(value)
    return f"{value:,.0f} B" if unit == "bytes" else f"{value:,.0f}/s"


def pretty_number(row: Row, value: float | None) -> str:
    """The number that the target bounds."""
    if value is None:
        return "–"
    if row.aim in {"ratio", "faster"}:
        return f"{value:.2f}x"
    return pretty("bytes" if row.aim == "bytes" else "seconds", value)
