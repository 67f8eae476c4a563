"""Measure every row, each in a process and on a server of its own, and write JSON, a page and plots."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.compare import both_tiers, crowds, in_process, machine, memory, shared_tier
from benchmarks.compare.figures import Measured, Row
from benchmarks.compare.plots import plot
from benchmarks.compare.report import lines, markdown, replaced
from benchmarks.compare.rows import CROWD, L1, ROWS, SIZE, chosen
from cacheguard.testing import NoRedisError, RedisServer

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "benchmarks.md"
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
    return (memory if row.section == SIZE else shared_tier).run(row.name, url, share)


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
    with tempfile.TemporaryDirectory() as directory:
        out = Path(directory) / "row.json"
        command = [
            sys.executable,
            "-m",
            "benchmarks.compare",
            "--one",
            row.name,
            "--share",
            str(share),
            "--out",
            str(out),
        ]
        try:
            done = subprocess.run(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, check=False, timeout=A_ROW)
        except subprocess.TimeoutExpired:
            return Measured(row.name, absent={"all": f"not done within {A_ROW} s"})
        if done.returncode:
            print(done.stderr, file=sys.stderr)
            last = (done.stderr.strip().splitlines() or [f"it ended with {done.returncode}"])[-1]
            return Measured(row.name, absent={"all": last})
        return Measured.from_data(json.loads(out.read_text(encoding="utf-8")))


def write(out: Path, page: Path, data: dict[str, Any], rows: list[tuple[Row, Measured]]) -> None:
    """JSON and plots into *out*, the text into *page*."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "results.json").write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    for row, measured in rows:
        if measured.figures:
            (out / f"{row.name}.svg").write_text(plot(row, measured), encoding="utf-8")
    text = markdown(data["machine"], data["options"], rows)
    page.write_text(replaced(PAGE.read_text(encoding="utf-8"), "make bench", text), encoding="utf-8")


def problems(rows: list[tuple[Row, Measured]], *, whole: bool) -> list[str]:
    """Why the run cannot count as a comparison."""
    found = [f"{row.name}: {measured.absent['all']}" for row, measured in rows if "all" in measured.absent]
    peers = set(machine.installed_peers())
    if whole:
        peers = {figure.library for _, measured in rows for figure in measured.figures.values()} - {
            "cacheguard",
            "python",
        }
    if len(peers) < machine.ENOUGH:
        found.append(f"{len(peers)} peers ({', '.join(sorted(peers))}); at least {machine.ENOUGH} make a comparison")
    return found


def main() -> int:
    """The command line: 1 if a row could not be measured, or fewer than ten peers took part."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compare", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a fifth of the rounds; written below build/bench")
    parser.add_argument("--rounds", type=float, help="a share of the rounds, such as 0.5; written below build/bench")
    parser.add_argument("--rows", default="", help="rows by the beginning of their names; written below build/bench")
    parser.add_argument("--list", action="store_true", help="say which rows there are")
    for hidden in ("--one", "--out"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    parser.add_argument("--share", type=float, default=1.0, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.list:
        print("\n".join(f"{row.name:18} {row.title}" for row in ROWS))
        return 0
    if asked.one:
        one(next(row for row in ROWS if row.name == asked.one), asked.share, Path(asked.out))
        return 0
    try:
        wanted = chosen(asked.rows)
        with RedisServer() as server:
            about = machine.describe(machine.server_at(server.url))
    except (ValueError, NoRedisError) as error:
        print(error, file=sys.stderr)
        return 2
    share = asked.rounds or (QUICK if asked.quick else 1.0)
    whole = share == 1.0 and not asked.rows
    began = time.monotonic()
    rows = []
    for row in wanted:
        measured = in_a_child(row, share)
        print("\n".join(lines(row, measured)), flush=True)
        rows.append((row, measured))
    options = {
        "share": share,
        "whole": whole,
        "took": time.monotonic() - began,
        "pinned": hasattr(os, "sched_setaffinity"),
    }
    data = {"machine": about, "options": options, "rows": [measured.as_data() for _, measured in rows]}
    out = ROOT / "docs" / "benchmarks" if whole else ROOT / "build" / "bench"
    page = PAGE if whole else out / "benchmarks.md"
    out.mkdir(parents=True, exist_ok=True)
    write(out, page, data, rows)
    print(f"wrote {page.relative_to(ROOT)} and {out.relative_to(ROOT)}/")
    wrong = problems(rows, whole=whole)
    print("\n".join(f"FAILED: {each}" for each in wrong), file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
