"""`make bench`: the arithmetic, the page and the plots."""

from __future__ import annotations

import json
from typing import Any
from xml.etree import ElementTree as ET

import pytest

from benchmarks.compare.figures import (
    Figure,
    Measured,
    Row,
    Timed,
    number,
    percentile,
    pretty_seconds,
    reached,
    summary,
)
from benchmarks.compare.machine import BUSY, busy
from benchmarks.compare.plots import plot
from benchmarks.compare.racing import Contestant, calls, race
from benchmarks.compare.report import lines, markdown, problems, replaced
from benchmarks.compare.rows import ROWS, chosen

HIT = Row("l2", "L2 hit", "Redis", "ratio", 0.75, "redis-py")
ZIPF = Row("zipf", "zipf", "Both", "faster", 4.5, "redis-py")
COLD = Row("cold", "cold key", "Many", "p99", 0.12, None, loads=1)
MACHINE: dict[str, Any] = {
    "date": "2026-11-30", "python": "CPython 3.11", "server": "redis-server 7.0", "system": "Linux", "processor": "one",
    "cores": 2, "load": 0.1, "versions": {"redis": "8.1", "theine": None}, "not_installed": {"theine>=2": "no wheel"},
}  # fmt: skip
OPTIONS: dict[str, Any] = {"whole": True, "pinned": True, "took": 600.0}


def figure(library: str, p10: float, p50: float | None = None, **extra: Any) -> Figure:
    p50 = p10 if p50 is None else p50
    return Figure(library, "a call", "seconds", p10, p50, 2 * p50, 5, 500, extra)


def measured(ours: float, base: float = 1e-4, **extra: Any) -> Measured:
    figures = {"redis-py": figure("redis", base, **extra), "cacheguard": figure("cacheguard", ours, **extra)}
    return Measured("l2", figures | {"dear": figure("peer", 5e-4, **extra)}, {"theine": "ImportError: no"})


def test_a_percentile_is_never_beyond_what_was_measured() -> None:
    assert percentile([3.0], 99) == 3.0
    assert percentile([1.0, 2.0, 3.0], 50) == 2.0
    assert percentile([float(each) for each in range(101)], 99) == 99.0
    with pytest.raises(ValueError, match="at least one value"):
        percentile([], 50)


def test_seconds_are_divided_by_what_was_executed() -> None:
    found = summary("redis", "GET", [Timed(1.0, 100), Timed(1.0, 50)])
    assert found.p10 == pytest.approx(0.011)
    assert found.p90 == pytest.approx(0.019)
    assert found.operations == 150
    assert found.rounds == 2
    with pytest.raises(ValueError, match="no operation"):
        summary("redis", "GET", [Timed(1.0, 0)])


def test_the_ratio_is_of_p10_and_the_speed_of_medians() -> None:
    row = Measured("x", {"redis-py": figure("redis", 2.0, 8.0), "cacheguard": figure("cacheguard", 1.0, 2.0)})
    assert number(HIT, row, "cacheguard") == 0.5
    assert number(ZIPF, row, "cacheguard") == 4.0
    assert number(HIT, row, "nobody") is None
    del row.figures["redis-py"]
    assert number(HIT, row, "cacheguard") is None


def test_a_target_is_reached_missed_or_not_measured() -> None:
    assert reached(HIT, measured(0.7e-4)) is True
    assert reached(HIT, measured(0.8e-4)) is False
    assert reached(HIT, Measured("l2")) is None
    assert reached(ZIPF, measured(1e-4 / 5)) is True
    assert reached(ZIPF, measured(1e-4 / 4)) is False


@pytest.mark.parametrize(("loads", "ok"), [([1, 1], True), ([1, 2], False), ([0, 1], False)])
def test_one_load_in_each_round_is_part_of_the_target(loads: list[int], ok: bool) -> None:
    row = measured(0.1, p99=0.11, loads=loads)
    assert reached(COLD, row) is ok
    assert reached(COLD, measured(0.1, p99=0.13, loads=[1])) is False


def test_what_was_measured_comes_back_from_json() -> None:
    before = measured(1e-4, loads=[1])
    assert Measured.from_data(json.loads(json.dumps(before.as_data()))) == before


def test_contestants_take_turns_and_the_first_round_does_not_count() -> None:
    ran: list[str] = []

    def contestant(name: str) -> Contestant:
        return Contestant(name, "a call", calls(lambda _: ran.append(name), [1]))

    found = race("x", {name: contestant(name) for name in "ab"}, 2)
    assert "".join(ran) == "abbaab"
    assert {name: each.rounds for name, each in found.figures.items()} == {"a": 2, "b": 2}


@pytest.mark.parametrize(
    ("value", "text"), [(38e-9, "38.0 ns"), (1.2e-6, "1.20 µs"), (0.12, "120 ms"), (2, "2.00 s"), (0.0, "0.00 ns")]
)
def test_a_duration_has_three_digits_and_a_unit(value: float, text: str) -> None:
    assert pretty_seconds(value) == text


def test_only_what_stands_between_the_comments_is_replaced() -> None:
    page = "mine\n<!-- x: begin -->old<!-- x: end -->\nmine, too\n"
    assert replaced(page, "x", "new") == "mine\n<!-- x: begin -->\n\nnew\n\n<!-- x: end -->\nmine, too\n"
    assert replaced(replaced(page, "x", "new"), "x", "new") == replaced(page, "x", "new")
    with pytest.raises(ValueError, match="once each"):
        replaced("nothing", "x", "new")


def test_the_page_says_what_is_missing_and_whether_the_machine_was_busy() -> None:
    page = markdown(MACHINE, OPTIONS, [(HIT, measured(0.8e-4))])
    assert "| L2 hit | ≤ 0.75x | 0.80x | **no** | dear 5.00x |" in page
    assert "| theine | absent: ImportError: no" in page
    assert "- theine>=2: no wheel" in page
    assert "busy machine" not in page
    assert "busy machine" in markdown({**MACHINE, "load": 2 * BUSY + 0.1}, OPTIONS, [])
    assert "a part of a run" in markdown(MACHINE, {**OPTIONS, "whole": False}, [])
    assert not busy(MACHINE)


def test_a_row_without_ours_or_without_its_baseline_is_a_problem() -> None:
    assert problems([(HIT, measured(1e-4))], every_row=False) == []
    assert problems([(HIT, Measured("l2", absent={"all": "broken"}))], every_row=False) == ["l2, cacheguard: broken"]
    row = measured(1e-4)
    del row.figures["cacheguard"]
    row.absent["cacheguard"] = "ImportError: planted"
    assert problems([(HIT, row)], every_row=False) == ["l2, cacheguard: ImportError: planted"]
    row = measured(1e-4)
    del row.figures["redis-py"]
    assert problems([(HIT, row)], every_row=False) == ["l2, redis-py: not measured"]


def test_all_rows_with_few_peers_are_no_comparison() -> None:
    assert problems([(HIT, measured(1e-4))], every_row=True) == ["2 peers (peer, redis); at least 10 make a comparison"]


def test_every_table_of_the_page_has_as_many_cells_in_each_line() -> None:
    page = markdown(MACHINE, OPTIONS, [(HIT, measured(0.8e-4)), (COLD, crowd())])
    for block in page.split("\n\n"):
        counts = {line.count("|") for line in block.splitlines() if line.startswith("|")}
        assert len(counts) <= 1, block


def crowd() -> Measured:
    return measured(0.1, p99=0.11, loads=[1], most_loads=1, p50_read=0.1, p99_scheduled=0.12)


def test_the_terminal_says_whether_a_target_is_reached() -> None:
    assert lines(HIT, measured(0.8e-4))[-2:] == ["  target ≤ 0.75x: 0.80x, MISSED", ""]
    assert lines(HIT, Measured("l2", absent={"all": "broken"}))[-2] == "  target ≤ 0.75x: –, not measured"


@pytest.mark.parametrize("row", [HIT, ZIPF, COLD], ids=lambda row: row.name)
def test_a_plot_is_xml_with_a_bar_for_each_contestant(row: Row) -> None:
    root = ET.fromstring(plot(row, crowd()))
    rects = [each for each in root.iter() if each.tag.endswith("rect")]
    assert len(rects) == 3
    assert all(0 < float(each.attrib["width"]) < 600 for each in rects)


def test_rows_are_chosen_by_the_beginning_of_their_names() -> None:
    assert [row.name for row in chosen("l1-int bloom")] == ["l1-int", "bloom"]
    assert [row.name for row in chosen("miss")] == ["miss", "miss-async"]
    assert chosen("") == list(ROWS)
    assert len({row.name for row in ROWS}) == len(ROWS)
    with pytest.raises(ValueError, match="no row begins with 'nothing'"):
        chosen("nothing")
