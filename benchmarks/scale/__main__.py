"""Measure the curves, each in a process of its own, and write JSON, plots and their part of the page."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from benchmarks.compare import machine
from benchmarks.compare.apart import BrokenError, measured_apart
from benchmarks.compare.report import places, write_page
from benchmarks.scale.curves import Curve, plot, table
from benchmarks.scale.measuring import CURVES, measure
from cacheguard.testing import NoRedisError, RedisServer

LARGEST = 1_000_000  # keys, unless --largest says otherwise: ten million take 3 GB and a quarter of an hour
A_CURVE = 1_800  # seconds that one curve may take


def in_a_child(name: str, *, quick: bool, largest: int) -> Curve:
    """Measure *name* in a process of its own; a curve that breaks says so and stops no other."""
    title, over, unit, *_ = CURVES[name]
    words = ["--one", name, "--largest", str(largest), *(["--quick"] if quick else [])]
    try:
        return Curve.from_data(measured_apart("benchmarks.scale", words, A_CURVE))
    except BrokenError as error:
        return Curve(name, title, over, unit, absent=str(error))


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
    out, page = places("scale.md", whole=whole)
    data = {"machine": about, "curves": [curve.as_data() for curve in curves]}
    (out / "scale.json").write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    for curve in curves:
        if not curve.absent:
            (out / f"scale-{curve.name}.svg").write_text(plot(curve), encoding="utf-8")
    write_page(page, "make bench-scale", markdown(about, curves))
    return 1 if any(curve.absent for curve in curves) else 0


if __name__ == "__main__":
    sys.exit(main())
