"""A curve as data: its table, its plot, and where it stops being flat."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from html import escape
from typing import Any

from benchmarks.compare.figures import Unit, pretty

Point = tuple[float, float]

KNEE = 1.5  # times the least before it: from there on a curve is not flat
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 760, 340, 80, 190, 50, 46
COLOURS, TEXT, GRID = ("#2f7ed8", "#d9480f", "#2b8a3e", "#862e9c", "#9aa5b1"), "#6b7280", "#d5d9de"


@dataclass
class Curve:
    """Series over one quantity, such as the number of keys."""

    name: str
    title: str
    over: str
    unit: Unit
    series: dict[str, list[Point]] = field(default_factory=dict)
    absent: str = ""

    def add(self, series: str, x: float, y: float) -> None:
        self.series.setdefault(series, []).append((x, y))

    def as_data(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_data(cls, data: dict[str, Any]) -> Curve:
        series = {name: [(x, y) for x, y in points] for name, points in data["series"].items()}
        return cls(**{**data, "series": series})


def knee(points: Sequence[Point], factor: float = KNEE) -> float | None:
    """The first x whose y is more than *factor* times the least y before it; None where the curve stays flat."""
    least = math.inf
    for x, y in points:
        if y > factor * least:
            return x
        least = min(least, y)
    return None


def exponent(points: Sequence[Point]) -> float:
    """How y grows with x: 0 is flat, 1 is as x does (least squares of the logarithms)."""
    if len(points) < 2:
        raise ValueError("a slope needs two points")
    logs = [(math.log(x), math.log(y)) for x, y in points if x > 0 and y > 0]
    middle_x, middle_y = (sum(each) / len(logs) for each in zip(*logs, strict=True))
    spread = sum((x - middle_x) ** 2 for x, _ in logs)
    return sum((x - middle_x) * (y - middle_y) for x, y in logs) / spread if spread else 0.0


def table(curve: Curve) -> str:
    """One line for each x, one column for each series, and where a series stops being flat."""
    if curve.absent:
        return f"Not measured: {curve.absent}"
    xs = sorted({x for points in curve.series.values() for x, _ in points})
    out = [f"| {curve.over} | {' | '.join(curve.series)} |", f"| --- |{' --- |' * len(curve.series)}"]
    for x in xs:
        cells = [dict(points).get(x) for points in curve.series.values()]
        shown = ["–" if each is None else pretty(curve.unit, each) for each in cells]
        out.append(f"| {x:,.0f} | {' | '.join(shown)} |")
    out.append("")
    for name, points in curve.series.items():
        if len(points) > 1:
            bend = "" if curve.unit == "per second" else f", {_bend(points)}"
            out.append(f"- {name}: grows as {curve.over} to the power of {exponent(points):.2f}{bend}.")
    return "\n".join(out)


def _bend(points: Sequence[Point]) -> str:
    found = knee(points)
    return "flat" if found is None else f"above {KNEE}x from {found:,.0f} on"


def plot(curve: Curve) -> str:
    """The series as SVG on logarithmic axes."""
    points = [(math.log10(max(x, 0.5)), math.log10(y)) for each in curve.series.values() for x, y in each if y > 0]
    (low_x, high_x), (low_y, high_y) = ((min(each), max(each)) for each in zip(*points, strict=True))
    low_y, high_y = math.floor(low_y), max(math.ceil(high_y), math.floor(low_y) + 1)
    wide, high = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM

    def place(x: float, y: float) -> tuple[float, float]:
        across = (math.log10(max(x, 0.5)) - low_x) / ((high_x - low_x) or 1)
        return LEFT + across * wide, TOP + (1 - (math.log10(y) - low_y) / (high_y - low_y)) * high

    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" viewBox="0 0 {WIDTH} {HEIGHT}"',
        f'  font-family="system-ui, sans-serif" font-size="12" fill="{TEXT}" role="img">',
        f"<title>{escape(curve.title)}</title>",
        f'<text x="8" y="20" font-size="15" font-weight="600">{escape(curve.title)}</text>',
        f'<text x="8" y="37" font-size="11">over {escape(curve.over)}; both axes are logarithmic</text>',
    ]
    for power in range(low_y, high_y + 1):
        y = place(1, 10.0**power)[1]
        out += [
            f'<line x1="{LEFT}" y1="{y:.1f}" x2="{WIDTH - RIGHT}" y2="{y:.1f}" stroke="{GRID}"/>',
            f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{escape(pretty(curve.unit, 10.0**power))}</text>',
        ]
    for x in sorted({x for each in curve.series.values() for x, _ in each}):
        at = place(x, 10.0**low_y)[0]
        out.append(f'<text x="{at:.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{x:,.0f}</text>')
    for number, (name, each) in enumerate(curve.series.items()):
        colour = COLOURS[number % len(COLOURS)]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in (place(*point) for point in each if point[1] > 0))
        y = TOP + 14 + 18 * number
        out += [
            f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>',
            f'<rect x="{WIDTH - RIGHT + 16}" y="{y - 9}" width="10" height="10" fill="{colour}"/>',
            f'<text x="{WIDTH - RIGHT + 32}" y="{y}">{escape(name)}</text>',
        ]
    return "\n".join([*out, "</svg>", ""])
