"""Staleness is measured: hits are compared with the loader's answer, and the age of what is served is counted."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Any

import pytest

from cacheguard import CacheGuard, Policy
from tests.conftest import OpenDoor
from tests.support.doors import Door


@pytest.fixture(params=["redis", "memory"])
def audited(request: pytest.FixtureRequest, open_door: OpenDoor, redis_url: str) -> Door:
    return open_door(CacheGuard(redis_url if request.param == "redis" else "memory://", audit=1.0))


async def eventually(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + 10
    while not holds():
        assert time.monotonic() < end
        await asyncio.sleep(0.005)


async def test_hits_that_are_true_are_counted_and_no_more(audited: Door) -> None:
    rows = {1: ["a"], 2: ["b"]}

    @audited.cached("row:{number}")
    def row(number: int) -> list[str]:
        return list(rows[number])

    stats = audited.guard.stats
    assert [await row(1), await row(1)] == [["a"], ["a"]]
    await eventually(lambda: stats().audits == 1)
    assert await audited.get_or_set("k", lambda: 5) == 5
    assert await audited.get_or_set("k", lambda: 5) == 5
    await eventually(lambda: stats().audits == 2)
    assert stats().audits_different == 0
    assert stats().l1_hits == 2  # an audit is no read


async def test_a_row_that_changed_behind_the_caches_back_is_found(
    audited: Door, caplog: pytest.LogCaptureFixture
) -> None:
    rows = {1: "old"}

    @audited.cached("row:{number}")
    def row(number: int) -> str:
        return rows[number]

    await row(1)
    rows[1] = "new"  # and nobody is told
    with caplog.at_level(logging.WARNING, "cacheguard"):
        assert await row(1) == "old"
        await eventually(lambda: audited.guard.stats().audits_different == 1)
        await eventually(lambda: "row:1 stale" in caplog.text)  # it is counted first


async def test_a_change_whose_news_is_on_its_way_is_no_difference(audited: Door) -> None:
    rows = {1: "old"}

    @audited.cached("row:{number}")
    def row(number: int) -> str:
        return rows[number]

    await row(1)
    rows[1] = "new"
    assert await row(1) == "old"
    await audited.invalidate("row:1")
    await asyncio.sleep(1.3)
    assert audited.guard.stats().audits == 1
    assert audited.guard.stats().audits_different == 0


async def test_an_audit_that_fails_costs_nobody_anything(audited: Door) -> None:
    answers: list[Any] = ["row"]

    def load() -> Any:
        return answers.pop()

    assert await audited.get_or_set("k", load) == "row"
    assert await audited.get_or_set("k", load) == "row"
    await asyncio.sleep(0.1)
    assert audited.guard.stats().audits == 0


@pytest.mark.parametrize("l1", [True, False])
async def test_what_is_served_is_counted_by_its_age(open_door: OpenDoor, redis_url: str, l1: bool) -> None:
    door = open_door(CacheGuard(redis_url, policy=Policy(l1=l1)))

    def counts() -> dict[float, int]:
        return {bound: count for bound, count in door.guard.stats().age_at_serve if count}

    assert await door.get_or_set("k", lambda: 1) == 1
    assert counts() == {}  # a load is no age
    await asyncio.sleep(0.15)
    for _ in range(3):
        assert await door.get_or_set("k", lambda: 2) == 1
    assert counts() == {1.0: 3}
