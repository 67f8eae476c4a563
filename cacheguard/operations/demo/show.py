"""The demo from curtain to curtain."""

from __future__ import annotations

import time
from pathlib import Path

from rich.console import Console

from .disasters import FULL, shortened
from .report import html
from .screen import Screen, close
from .stage import Result, staged


def run(console: Console, report: Path, *, quick: bool, seed: int) -> list[Result]:
    """Run everything, write *report*, print the table.

    Takes under two minutes on two cores, about ten seconds when *quick*. Raises `NoRedisError` if there is no Redis.
    """
    began = time.monotonic()
    disasters = [shortened(each) for each in FULL] if quick else list(FULL)
    results: list[Result] = []
    with Screen(console) as screen, staged(seed, screen.says) as stage:
        for result in stage.run_all(disasters, screen.begins, screen.look):
            results.append(result)
            screen.ends(result)
        version = stage.redis_version
    seconds = time.monotonic() - began
    report.write_text(html(results, redis_version=version, seed=seed, seconds=seconds), encoding="utf-8")
    close(console, results, report.resolve(), seconds)
    return results
