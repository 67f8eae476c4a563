"""Larger worlds, drawn schedules: whatever happens, nobody is told less than what was acknowledged, and all end."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.schedules import (
    Pick,
    choosing,
    drawing,
    failing_world,
    owing_world,
    peaceful_world,
    searched,
    troubled_world,
)
from tests.support.world import World

WIDE = settings(
    max_examples=max(50, settings.default.max_examples if settings.default else 0),
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


@given(st.data())
@WIDE
def test_readers_and_writers_meet_in_any_order(data: st.DataObject) -> None:
    pick = drawing(data)
    peaceful_world(pick).run(choosing(pick))


@given(st.data())
@WIDE
def test_round_trips_fail_processes_crash_and_callers_give_up(data: st.DataObject) -> None:
    pick = drawing(data)
    troubled_world(pick).run(choosing(pick))


@pytest.mark.parametrize("build", [peaceful_world, troubled_world, owing_world, failing_world])
def test_many_schedules_at_random(build: Callable[[Pick], World]) -> None:
    assert searched(build, runs=80, seconds=20) > 60


@pytest.mark.slow
@pytest.mark.parametrize("build", [peaceful_world, troubled_world, owing_world, failing_world])
def test_many_more_schedules_at_random(build: Callable[[Pick], World]) -> None:
    assert searched(build, runs=3000, seconds=12, seed=2) > 200


@pytest.mark.chaos
@pytest.mark.parametrize("build", [peaceful_world, troubled_world, owing_world, failing_world])
def test_a_million_schedules_at_random(build: Callable[[Pick], World]) -> None:
    assert searched(build, runs=1_000_000, seconds=1500, seed=1) > 1000
