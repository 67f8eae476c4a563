"""The gate on steps: what is counted, and what is said of it."""

from __future__ import annotations

import asyncio
import sys
from types import FrameType

import pytest

from benchmarks.gate.comparing import Figures, compare, merged
from benchmarks.gate.counting import Calls, Instructions, of_cacheguard
from cacheguard import CacheGuard
from cacheguard.durations import seconds

COMMITTED: Figures = {"hit": {"calls": 10, "instructions": 200}, "miss": {"calls": 40, "instructions": 900}}


def found(**calls: int) -> Figures:
    return {row: {"calls": count, "instructions": COMMITTED[row]["instructions"]} for row, count in calls.items()}


def inner() -> int:
    return 1


def outer() -> int:
    return inner() + inner()


async def waits() -> None:
    await asyncio.sleep(0)


def test_calls_are_counted_by_name_and_len_is_no_call_of_python() -> None:
    with Calls() as calls:
        outer()
        len(())
    assert calls.names() == ["outer", "inner", "inner"]
    inner()
    assert calls.count == 3


def test_a_coroutine_that_goes_on_is_one_more_call() -> None:
    def here(frame: FrameType) -> bool:
        return frame.f_code is waits.__code__

    with Calls(here) as calls:
        asyncio.run(waits())
    assert calls.count == 2


def test_instructions_do_not_depend_on_how_warm_the_code_is() -> None:
    def counted() -> int:
        with Instructions() as instructions:
            outer()
        return instructions.count

    assert len({counted() for _ in range(100)}) == 1
    with Instructions() as twice:
        outer()
        outer()
    assert twice.count == 2 * counted() > 0


def test_the_tracer_of_before_comes_back() -> None:
    before = sys.gettrace()
    with pytest.raises(ValueError, match="planted"), Instructions():
        raise ValueError("planted")
    assert sys.gettrace() is before


def test_only_the_library_is_counted_and_what_it_generates() -> None:
    with CacheGuard("memory://") as guard:
        cached = guard.cached("k:{number}")(lambda number: number + 1)
        cached(1)
        with Calls(of_cacheguard) as calls:
            outer()
            seconds("5m", "ttl")
            cached(1)
        assert "seconds" in calls.names()
        assert "wrapper" in calls.names()
        assert "outer" not in calls.names()


def test_equal_counts_pass() -> None:
    verdict = compare(found(hit=10, miss=40), COMMITTED, "3.11")
    assert verdict.ok
    assert verdict.lines[-1] == "all counts are as committed for Python 3.11"


def test_a_higher_count_fails_and_says_by_how_much_and_where() -> None:
    verdict = compare(found(hit=13, miss=40), COMMITTED, "3.11")
    assert not verdict.ok
    assert "HIGHER  hit: 13 calls, 3 more than the 10 committed (+30.0%)" in verdict.lines
    assert not any("miss: " in line for line in verdict.lines)


def test_a_lower_count_passes_and_says_how_to_commit_it() -> None:
    verdict = compare(found(hit=10, miss=39), COMMITTED, "3.11")
    assert verdict.ok
    assert verdict.lines[-2:] == [
        "lower   miss: 39 calls, 1 fewer than the 40 committed (-2.5%)",
        "commit the lower figures: make bench-gate UPDATE=1",
    ]


def test_one_lower_count_does_not_pay_for_a_higher_one() -> None:
    assert not compare(found(hit=11, miss=1), COMMITTED, "3.11").ok


def test_a_row_that_one_side_lacks_fails() -> None:
    assert not compare(found(hit=10), COMMITTED, "3.11").ok
    assert not compare({**COMMITTED, "new": {"calls": 1, "instructions": 1}}, COMMITTED, "3.11").ok


def test_a_version_without_figures_says_so_and_passes() -> None:
    verdict = compare(found(hit=10), None, "3.14")
    assert verdict.ok
    assert verdict.lines[-1].startswith("no figures for Python 3.14 yet")


def test_an_update_replaces_one_version_and_sorts_them_as_numbers() -> None:
    book = merged({"3.9": {}, "3.12": COMMITTED}, "3.11", found(hit=1))
    assert list(book) == ["3.9", "3.11", "3.12"]
    assert book["3.12"] is COMMITTED
    assert merged(book, "3.12", found(hit=2))["3.12"] == found(hit=2)
