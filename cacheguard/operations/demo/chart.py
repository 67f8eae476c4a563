"""Counts per 100 ms as an inline SVG: both applications over one time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from html import escape
from math import ceil, floor, log10

from .meter import BUCKET
from .sides import Side

WIDTH, HEIGHT = 880, 230
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 12, 34


@dataclass(frozen=True, slots=True)
class Line:
    """One application's counts, and when it had answered everything."""

    side: Side
    counts: Sequence[int]
    ended: float


def chart(label: str, lines: Sequence[Line]) -> str:
    """An SVG of *lines*; *label* says what is counted."""
    seconds = max([1.0, *(line.ended for line in lines), *(len(line.counts) * BUCKET for line in lines)])
    top = _ceiling(max([1, *(max(line.counts, default=0) for line in lines)]))
    scale = _Scale(seconds, top)
    parts = [
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(label)}">',
        *_grid(scale),
        *(part for line in lines for part in _line(line, scale)),
        "</svg>",
    ]
    return f"<figure><figcaption>{escape(label)}</figcaption>{''.join(parts)}</figure>"


@dataclass(frozen=True, slots=True)
class _Scale:
    seconds: float
    top: float

    def x(self, moment: float) -> float:
        return round(LEFT + (WIDTH - LEFT - RIGHT) * moment / self.seconds, 1)

    def y(self, count: float) -> float:
        return round(HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * count / self.top, 1)


def _grid(scale: _Scale) -> Iterator[str]:
    for count in _ticks(scale.top, 4):
        y = scale.y(count)
        yield f'<path class="grid" d="M{LEFT} {y}H{WIDTH - RIGHT}"/>'
        yield f'<text class="tick" x="{LEFT - 8}" y="{y + 4}" text-anchor="end">{count:,.0f}</text>'
    y = HEIGHT - BOTTOM + 20
    for second in _ticks(scale.seconds, 8):
        yield f'<text class="tick" x="{scale.x(second)}" y="{y}" text-anchor="middle">{second:g} s</text>'


def _line(line: Line, scale: _Scale) -> Iterator[str]:
    base = scale.y(0)
    steps = list(_steps(line, scale))
    outline = "L".join(f"{x} {y}" for x, y in steps)
    end = steps[-1][0]
    yield f'<path class="area {line.side}" d="M{LEFT} {base}L{outline}L{end} {base}Z"/>'
    yield f'<path class="line {line.side}" d="M{outline}"/>'
    yield f'<circle class="end {line.side}" cx="{end}" cy="{steps[-1][1]}" r="3.5"/>'


def _steps(line: Line, scale: _Scale) -> Iterable[tuple[float, float]]:
    counts = [*line.counts, *[0] * (ceil(line.ended / BUCKET) - len(line.counts))] or [0]
    for at, count in enumerate(counts):
        yield scale.x(at * BUCKET), scale.y(count)
        yield scale.x(min((at + 1) * BUCKET, scale.seconds)), scale.y(count)


def _ticks(top: float, wanted: int) -> list[float]:
    """Round numbers from 0 to *top*, about *wanted* steps of them."""
    step = _ceiling(top / wanted)
    return [step * at for at in range(floor(top / step + 1e-9) + 1)]


def _ceiling(number: float) -> float:
    """The next of 1, 2, 2.5, 5 times a power of ten that is not below *number*."""
    unit = 10.0 ** floor(log10(number))
    return next(unit * each for each in (1, 2, 2.5, 5, 10) if unit * each >= number * (1 - 1e-9))
