"""Measure the curves, each in a process of its own, and write JSON, plots and their part of the page."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.compare import machine
from benchmarks.compare.report import replaced
from benchmarks.scale.curves import Curve, plot, table
from benchmarks.scale.measuring import CURVES, measure
from cacheguard.testing import NoRedisError, RedisServer

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "benchmarks.md"
LARGEST = 1_000_000  # keys, unless --largest says otherwise: ten million take 3 GB and a quarter of an hour
A_CURVE = 1_800  # seconds that one curve may take


def in_a_child(name: str, *, quick: bool, largest: int) -> Curve:
    """Measure *name* in a process of its own; a curve that breaks says so and stops no other."""
    title, over, unit, *_ = CURVES[name]
    with tempfile.TemporaryDirectory() as directory:
        out = Path(directory) / "curve.json"
        command = [
            sys.executable,
            "-m",
            "benchmarks.scale",
            "--one",
            name,
            "--out",
            str(out),
            "--largest",
            str(largest),
        ]
        command += ["--quick"] if quick else []
        try:
            done = subprocess.run(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, check=False, timeout=A_CURVE)
        except subprocess.TimeoutExpired:
            return Curve(name, title, over, unit, absent=f"not done within {A_CURVE} s")
        if done.returncode:
            print(done.stderr, file=sys.stderr)
            return Curve(name, title, over, unit, absent=(done.stderr.strip().splitlines() or ["no word"])[-1])
        return Curve.from_data(json.loads(out.read_text(encoding="utf-8")))


def markdown(about: dict[str, Any], curves: list[Curve]) -> str:
    """The block of the page."""
    parts = []
    if machine.busy(about):
        parts.append(
            f"> **These curves are from a busy machine**: its load was {about['load']} on {about['cores']} cores "
            "before the run began. Look at the bytes, not at the times."
        )
    parts.append(f"Measured on {about['date']}: {about['python']}, {about['server']}, {about['processor']}.")
    for curve in curves:
        parts.append(f"### {curve.title}, over {curve.over}")
        if not curve.absent:
            parts.append(f"![{curve.title}](benchmarks/scale-{curve.name}.svg)")
        parts.append(table(curve))
    return "\n\n".join(parts)


def main() -> int:
    """The command line: 1 if a curve could not be measured."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="the small sizes only; written below build/bench")
    parser.add_argument("--rows", default="", help="curves by the beginning of their names; written below build/bench")
    parser.add_argument("--largest", type=int, default=LARGEST, help="most keys in a tier, such as 10000000")
    for hidden in ("--one", "--out"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.one:
        data = measure(asked.one, quick=asked.quick, largest=asked.largest).as_data()
        Path(asked.out).write_text(json.dumps(data), encoding="utf-8")
        return 0
    words = asked.rows.split()
    names = [name for name in CURVES if not words or any(name.startswith(word) for word in words)]
    if not names:
        print(f"no curve begins with {asked.rows!r}; there are {', '.join(CURVES)}", file=sys.stderr)
        return 2
    try:
        with RedisServer() as server:
            about = machine.describe(machine.server_at(server.url))
    except NoRedisError as error:
        print(error, file=sys.stderr)
        return 2
    curves = []
    for name in names:
        curves.append(in_a_child(name, quick=asked.quick, largest=asked.largest))
        print(f"{curves[-1].title}\n{table(curves[-1])}\n", flush=True)
    whole = not asked.quick and not words
    out = ROOT / "docs" / "benchmarks" if whole else ROOT / "build" / "bench"
    page = PAGE if whole else out / "scale.md"
    out.mkdir(parents=True, exist_ok=True)
    data = {"machine": about, "curves": [curve.as_data() for curve in curves]}
    (out / "scale.json").write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    for curve in curves:
        if not curve.absent:
            (out / f"scale-{curve.name}.svg").write_text(plot(curve), encoding="utf-8")
    text = replaced(PAGE.read_text(encoding="utf-8"), "make bench-scale", markdown(about, curves))
    page.write_text(text, encoding="utf-8")
    return 1 if any(curve.absent for curve in curves) else 0


if __name__ == "__main__":
    sys.exit(main())
