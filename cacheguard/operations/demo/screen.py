"""The demo on the terminal: what runs now, and the table of what has run."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from .disasters import Disaster
from .meter import Meter
from .sides import Side
from .stage import Result

STYLES: dict[Side, str] = {"plain": "dark_orange", "cacheguard": "green"}
_BARS = " ▁▂▃▄▅▆▇█"
_SPARK = 60  # characters


class Screen:
    """A live picture on a terminal; elsewhere a line for each run."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live = Live(console=console, refresh_per_second=10, transient=True)
        self._done: list[Result] = []
        self._began = time.monotonic()
        self._now: tuple[Disaster, Side] | None = None

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._console.is_terminal:
            self._live.stop()

    def says(self, what: str) -> None:
        """One line about the preparations."""
        self._console.print(f"[dim]{what} …[/]")

    def begins(self, disaster: Disaster, side: Side) -> None:
        """A run begins."""
        self._now = disaster, side
        if not self._console.is_terminal:
            self._console.print(f"{disaster.name}, {side} …", highlight=False)

    def look(self, meter: Meter) -> None:
        """The run goes on."""
        if self._now is not None and self._console.is_terminal:
            self._live.update(Group(summary(self._done, self._console.width), *self._running(*self._now, meter)))

    def ends(self, result: Result) -> None:
        """A run is over."""
        self._done.append(result)

    def _running(self, disaster: Disaster, side: Side, meter: Meter) -> Iterable[Text | Table]:
        yield Text()
        yield Text.assemble((disaster.title, "bold"), "  with ", (_name(side), f"bold {STYLES[side]}"))
        line = Table.grid(padding=(0, 2))
        bar = ProgressBar(total=disaster.requests, completed=meter.done, width=30, complete_style=STYLES[side])
        line.add_row(
            bar,
            f"{meter.done:,} of {disaster.requests:,} requests",
            f"{meter.total:,} queries",
            f"{time.monotonic() - self._began:.0f} s",
        )
        yield line
        yield Text.assemble(("queries per 100 ms  ", "dim"), (sparkline(meter.timeline()), STYLES[side]))


def sparkline(counts: Sequence[int]) -> str:
    """The last of *counts* as bars, the highest of them full."""
    last = counts[-_SPARK:]
    top = max(last, default=0)
    return "".join(_BARS[-(-count * (len(_BARS) - 1) // top)] if top else _BARS[0] for count in last)


def summary(results: Sequence[Result], width: int) -> Table:
    """The table of *results*, both sides of a disaster together; what is the same for both goes first in *width*."""
    wide = width >= WIDE
    table = Table(
        box=SIMPLE_HEAD if wide else None,
        header_style="bold",
        pad_edge=False,
        collapse_padding=True,
        title_style="bold",
    )
    table.add_column("disaster", no_wrap=True)
    table.add_column("with", no_wrap=True)
    shown = range(0 if wide else 1, len(HEADINGS))
    for at in shown:
        table.add_column(HEADINGS[at], justify="right", no_wrap=True)
    for result in results:
        first = result.side == "plain"
        name = result.disaster.short if first else ""
        values = result.outcome.cells()
        table.add_row(
            Text(name, "bold"),
            Text(result.side, STYLES[result.side]),
            *(values[at] for at in shown),
            end_section=not first,
        )
    return table


WIDE = 100  # columns
HEADINGS = ("requests", "queries", "peak", "p50", "p99", "stale", "memory", "errors")


def close(console: Console, results: Sequence[Result], report: Path, seconds: float) -> None:
    """The end: the table, what it means, where the picture is."""
    console.print(summary(results, console.width))
    console.print(
        "[dim]queries: at the database, in all; peak: most of them at one moment; p50, p99: latency of requests;\n"
        "stale: answers older than a change confirmed before; memory: of the keys in Redis at the end[/]"
    )
    for result in results:
        for note in result.outcome.notes(result.disaster):
            console.print(f"{_name(result.side)}: {note}", highlight=False)
    console.print(f"{seconds:.0f} s in all. The picture: {report}", highlight=False, soft_wrap=True)


def _name(side: Side) -> str:
    return "plain cache-aside" if side == "plain" else "cacheguard"
