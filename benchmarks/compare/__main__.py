"""Measure every row, each in a process and on a server of its own, and write JSON, a page and plots."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.compare import both_tiers, crowds, in_process, machine, memory, shared_tier
from benchmarks.compare.apart import ROOT, BrokenError, measured_apart
from benchmarks.compare.figures import Measured, Row
from benchmarks.compare.plots import plot
from benchmarks.compare.report import lines, markdown, places, problems, write_page
from benchmarks.compare.rows import CROWD, L1, ROWS, SIZE, chosen
from cacheguard.testing import NoRedisError, RedisServer

QUICK = 0.2  # share of the rounds
A_ROW = 600  # seconds that one row may take


def measure(row: Row, url: str, share: float) -> Measured:
    """Run *row* in this process."""
    if row.section == CROWD:
        return crowds.run(row.name, url, share)
    if row.name.startswith("zipf"):
        return both_tiers.run(row.name, url, share)
    if row.section == L1 or row.name == "bloom":
        return in_process.run(row.name, url, share)
    return memory.run(row.name, url, share) if row.section == SIZE else shared_tier.run(row.name, url, share)


def pin(row: Row) -> None:
    """Put this process and the server that it will start onto one core, where the system can."""
    if row.section != CROWD and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})


def one(row: Row, share: float, out: Path) -> None:
    """In the child: measure one row and leave it in *out*."""
    pin(row)
    began = time.monotonic()
    with RedisServer() as server:
        measured = measure(row, server.url, share)
    measured.took = time.monotonic() - began
    out.write_text(json.dumps(measured.as_data()), encoding="utf-8")


def in_a_child(row: Row, share: float) -> Measured:
    """Measure *row* in a process of its own; a row that breaks says so and stops no other."""
    try:
        words = ["--one", row.name, "--rounds", str(share)]
        return Measured.from_data(measured_apart("benchmarks.compare", words, A_ROW))
    except BrokenError as error:
        return Measured(row.name, absent={"all": str(error)})


def write(out: Path, page: Path, data: dict[str, Any], rows: list[tuple[Row, Measured]]) -> None:
    """JSON and plots into *out*, the text into *page*."""
    (out / "results.json").write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    for row, measured in rows:
        if measured.figures:
            (out / f"{row.name}.svg").write_text(plot(row, measured), encoding="utf-8")
    write_page(page, "make bench", markdown(data["machine"], data["options"], rows))


def share_of_rounds(text: str) -> float:
    """The value of ``--rounds``."""
    share = float(text)
    if not 0 < share <= 100:
        raise argparse.ArgumentTypeError(f"a share of the rounds is above 0 and at most 100, got {text}")
    return share


def main() -> int:
    """The command line: 1 if a row could not be measured, or fewer than ten peers took part in all rows."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compare", description=__doc__)
    parser.add_argument(
        "--rounds", type=share_of_rounds, default=1.0, help="a share of the rounds, such as 0.5; below build/bench"
    )
    parser.add_argument("--quick", action="store_const", dest="rounds", const=QUICK, help=f"--rounds {QUICK}")
    parser.add_argument("--rows", default="", help="rows by the beginning of their names; written below build/bench")
    parser.add_argument("--list", action="store_true", help="say which rows there are")
    for hidden in ("--one", "--out"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.list:
        print("\n".join(f"{row.name:18} {row.title}" for row in ROWS))
        return 0
    if asked.one:
        one(next(row for row in ROWS if row.name == asked.one), asked.rounds, Path(asked.out))
        return 0
    try:
        wanted = chosen(asked.rows)
        with RedisServer() as server:
            about = machine.describe(machine.server_at(server.url))
    except (ValueError, NoRedisError) as error:
        print(error, file=sys.stderr)
        return 2
    every_row = len(wanted) == len(ROWS)
    whole = every_row and asked.rounds == 1.0
    began = time.monotonic()
    rows = []
    for row in wanted:
        measured = in_a_child(row, asked.rounds)
        print("\n".join(lines(row, measured)), flush=True)
        rows.append((row, measured))
    options = {
        "share": asked.rounds,
        "whole": whole,
        "took": time.monotonic() - began,
        "pinned": hasattr(os, "sched_setaffinity"),
    }
    data = {"machine": about, "options": options, "rows": [measured.as_data() for _, measured in rows]}
    out, page = places("benchmarks.md", whole=whole)
    write(out, page, data, rows)
    print(f"wrote {page.relative_to(ROOT)} and {out.relative_to(ROOT)}/")
    wrong = problems(rows, every_row=every_row)
    for each in wrong:
        print(f"FAILED: {each}", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
