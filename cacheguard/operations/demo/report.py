"""The picture: one HTML file that needs nothing but a browser."""

from __future__ import annotations

import os
import platform
import sqlite3
import time
from collections.abc import Callable, Iterable, Sequence
from html import escape
from importlib import metadata

from .chart import Line, chart
from .disasters import PROCESSES, SLOTS, Disaster
from .outcome import Outcome, milliseconds, size
from .shop import PRODUCTS
from .sides import LOADS_PER_PROCESS
from .stage import Result

HEADINGS = (
    "requests",
    "queries in all",
    "queries at the peak",
    "latency p50",
    "latency p99",
    "stale answers",
    "Redis memory",
    "errors",
)

STYLE = """
:root { --ink: #1d2430; --dim: #667085; --paper: #fff; --card: #f6f7f9; --rule: #e3e6eb;
        --plain: #d9622b; --cacheguard: #12866a; color-scheme: light dark; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e8eaee; --dim: #98a2b3; --paper: #14171c; --card: #1c2027; --rule: #2c323c;
          --plain: #f08a55; --cacheguard: #3cc79f; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 960px; padding: 40px 24px 64px; background: var(--paper); color: var(--ink);
       font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
h1 { font-size: 30px; line-height: 1.2; margin: 0 0 8px; letter-spacing: -.01em; }
h2 { font-size: 21px; margin: 56px 0 8px; padding-top: 28px; border-top: 1px solid var(--rule); }
p { margin: 8px 0; } .dim { color: var(--dim); font-size: 14px; }
b.plain { color: var(--plain); } b.cacheguard { color: var(--cacheguard); }
.cards { display: grid; grid-template-columns: repeat(4, 1fr); gap: 12px; margin: 20px 0; }
@media (max-width: 640px) { .cards { grid-template-columns: repeat(2, 1fr); } }
.card { background: var(--card); border-radius: 10px; padding: 12px 14px; white-space: nowrap; }
.card span { display: block; color: var(--dim); font-size: 13px; }
.card b { font-size: 17px; font-variant-numeric: tabular-nums; white-space: nowrap; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: 14px; font-variant-numeric: tabular-nums;
        margin: 24px 0 8px; }
th, td { padding: 6px 8px; text-align: right; white-space: nowrap; }
thead th { color: var(--dim); font-weight: 500; vertical-align: bottom; white-space: normal; }
tbody th, th:first-child, td.side { text-align: left; }
tbody tr.plain > * { border-top: 1px solid var(--rule); }
tr.plain td.side { color: var(--plain); } tr.cacheguard td.side { color: var(--cacheguard); font-weight: 600; }
figure { margin: 20px 0 0; } figcaption { color: var(--dim); font-size: 13px; margin-bottom: 4px; }
svg { width: 100%; height: auto; display: block; }
.grid { stroke: var(--rule); fill: none; } .tick { fill: var(--dim); font-size: 12px; }
.area { opacity: .16; } .line { fill: none; stroke-width: 1.6; }
.area.plain, .end.plain { fill: var(--plain); } .line.plain { stroke: var(--plain); }
.area.cacheguard, .end.cacheguard { fill: var(--cacheguard); } .line.cacheguard { stroke: var(--cacheguard); }
.legend i { display: inline-block; width: 12px; height: 12px; border-radius: 3px; margin: 0 6px 0 14px;
            vertical-align: -1px; } .legend i:first-child { margin-left: 0; }
i.plain { background: var(--plain); } i.cacheguard { background: var(--cacheguard); }
code { font-size: .92em; background: var(--card); padding: 1px 5px; border-radius: 4px; }
"""


def html(results: Sequence[Result], *, redis_version: str, seed: int, seconds: float) -> str:
    """The whole report."""
    pairs = list(zip(results[::2], results[1::2], strict=True))
    sections = "".join(_section(plain.disaster, plain.outcome, guarded.outcome) for plain, guarded in pairs)
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>cacheguard: four disasters, with and without</title>
<style>{STYLE}</style>
</head>
<body>
<h1>Four disasters, with and without</h1>
<p>A shop of {PRODUCTS:,} products, read by {PROCESSES} processes through Redis: once with <b class="plain">plain
cache-aside</b> as it is usually written, once with <b class="cacheguard">cacheguard</b>.</p>
{_table(results)}
<p class="dim">{_method()}</p>
<p class="dim">{escape(_where(redis_version, seed, seconds))}</p>
{sections}
</body>
</html>
"""


def _method() -> str:
    return (
        "Both applications get the same requests over the same number of threads, with the same time limits towards "
        "Redis, one after the other, plain first. The database is SQLite behind a simulated way there and back; it "
        f"works on {SLOTS} queries at a time and more wait in line. Queries are counted in memory that all processes "
        "share, from the start of the traffic; the peak is of those at work or in line. Latency counts from the moment "
        "a request was due, so waiting for a free thread is in it. Plain is GET, then SELECT and SETEX; after an "
        f"UPDATE, DEL. The guarded application also bounds its loads to {LOADS_PER_PROCESS} in each process and keeps "
        "values in the process, except prices. Memory is what Redis reports for all keys at the end of a run; what "
        "cacheguard keeps beyond fresh values (old values, the Bloom filter) is in it. The figures of the traffic are "
        "chosen so that the database is the bottleneck; a faster one makes another picture. In trials of the avalanche "
        "with 3,000 products, 3,000 requests a second, a TTL of 2 s, jitter=0.5, queries of 10 to 20 ms and 8 loads in "
        "each process, cacheguard made 15 to 23 % more queries than plain, and its p99 was worse in two of three runs."
    )


def _where(redis_version: str, seed: int, seconds: float) -> str:
    return (
        f"cacheguard {metadata.version('cacheguard')}, Python {platform.python_version()}, Redis {redis_version}, "
        f"SQLite {sqlite3.sqlite_version}, {os.cpu_count()} cores, {platform.system()} {platform.machine()}; "
        f"seed {seed}; {seconds:.0f} s in all; {time.strftime('%Y-%m-%d %H:%M')}"
    )


def _table(results: Sequence[Result]) -> str:
    head = "".join(f"<th>{each}</th>" for each in ("disaster", "", *HEADINGS))
    rows = "".join(map(_row, results))
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'


def _row(result: Result) -> str:
    name = f'<th rowspan="2">{escape(result.disaster.short)}</th>' if result.side == "plain" else ""
    values = "".join(f"<td>{each}</td>" for each in result.outcome.cells())
    return f'<tr class="{result.side}">{name}<td class="side">{result.side}</td>{values}</tr>'


def _section(disaster: Disaster, plain: Outcome, guarded: Outcome) -> str:
    both = (plain, guarded)
    cards = [
        ("database queries in all", *(f"{each.queries:,}" for each in both)),
        ("at the peak", *(f"{each.peak:,}" for each in both)),
        ("latency p99", *(milliseconds(each.p99) for each in both)),
        ("Redis memory", *(size(each.memory) for each in both))
        if plain.stale is None
        else ("stale answers", *(f"{each.stale:,}" for each in both)),
    ]
    charts = chart("Database queries per 100 ms", _lines(plain, guarded, lambda each: each.timeline))
    if plain.stale is not None:
        charts = chart("Stale answers per 100 ms", _lines(plain, guarded, lambda each: each.stale_timeline)) + charts
    return f"""<h2>{escape(disaster.title)}</h2>
<p>{escape(disaster.happens)}</p>
<p>{escape(disaster.defence)}</p>
<div class="cards">{"".join(_card(*card) for card in cards)}</div>
<p class="dim legend"><i class="plain"></i>plain cache-aside <i class="cacheguard"></i>cacheguard</p>
{charts}
{_notes("plain cache-aside", plain.notes(disaster))}{_notes("cacheguard", guarded.notes(disaster))}
"""


def _card(name: str, plain: str, guarded: str) -> str:
    return (
        f'<div class="card"><span>{name}</span><b class="plain">{plain}</b> → <b class="cacheguard">{guarded}</b></div>'
    )


def _lines(plain: Outcome, guarded: Outcome, counts: Callable[[Outcome], Sequence[int]]) -> list[Line]:
    return [Line("plain", counts(plain), plain.seconds), Line("cacheguard", counts(guarded), guarded.seconds)]


def _notes(name: str, notes: Iterable[str]) -> str:
    return "".join(f'<p class="dim">With {name}: {escape(note)}</p>' for note in notes)
