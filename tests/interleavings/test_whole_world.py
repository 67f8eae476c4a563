"""Every verb, tier and deadline in drawn schedules: against the protocol without Redis, and against a real server."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import pytest

from tests.support.redis_server import NoRedisError, RedisServer
from tests.support.schedules import (
    Pick,
    beside_world,
    cleared_world,
    deadline_world,
    explored,
    searched,
    whole_world,
)
from tests.support.stepped_redis import RealRedis, RealServer
from tests.support.world import LAG, REDIS_ONLY, World

slow, chaos = pytest.mark.slow, pytest.mark.chaos
WORLDS = [whole_world, deadline_world, cleared_world, beside_world]
NIGHT = 8 * 3600.0


@pytest.fixture(scope="module")
def redis() -> Iterator[RealRedis]:
    try:
        server = RedisServer()
    except NoRedisError as error:
        pytest.skip(str(error))
    with server:
        connections = RealRedis(server.port)
        yield connections
        connections.close()


@pytest.mark.parametrize("build", WORLDS)
def test_nothing_ends_before_its_time_and_nobody_is_told_less_than_was_acknowledged(
    build: Callable[[Pick], World],
) -> None:
    assert searched(build, runs=60, seconds=30) > 50


@slow
@pytest.mark.parametrize("build", WORLDS)
def test_the_same_in_some_thousand_orders(build: Callable[[Pick], World]) -> None:
    assert searched(build, runs=5000, seconds=20, seed=1) > 300


@chaos
@pytest.mark.timeout(NIGHT)
def test_a_million_schedules_with_every_action() -> None:
    assert searched(whole_world, runs=1_000_000, seconds=NIGHT, seed=2) == 1_000_000


@pytest.mark.parametrize("build", WORLDS)
def test_the_scripts_do_the_same_on_a_real_server(build: Callable[..., World], redis: RealRedis) -> None:
    server = partial(RealServer, redis=redis)
    assert searched(lambda pick: build(pick, server), runs=25, seconds=30) > 20


@slow
@pytest.mark.parametrize("build", WORLDS)
def test_the_scripts_do_the_same_in_some_thousand_orders(build: Callable[..., World], redis: RealRedis) -> None:
    server = partial(RealServer, redis=redis)
    assert searched(lambda pick: build(pick, server), runs=2000, seconds=20, seed=1) > 100


@chaos
@pytest.mark.timeout(NIGHT)
@pytest.mark.parametrize("build", WORLDS)
def test_the_scripts_do_the_same_for_half_an_hour(build: Callable[..., World], redis: RealRedis) -> None:
    server = partial(RealServer, redis=redis)
    assert searched(lambda pick: build(pick, server), runs=10**9, seconds=1800, seed=2) > 10_000


def lagging(*, touches: bool = False, waits: bool = False) -> World:
    """A reader of a replica that lags behind, and a writer who says so."""
    world = World(REDIS_ONLY, lagging=True)
    here = world.process("A", threads=True)
    world.reader("reader", here)
    world.writer("writer", world.process("B", threads=True), lag=LAG)
    if touches:
        world.toucher("toucher", here)
    if waits:
        world.delay(LAG + 0.1)
    return world


def test_no_load_is_so_slow_that_what_it_brings_outlives_the_quarantine_that_it_began_in() -> None:
    # reader:  leases, asks the replica: "old" ....................... fills: refused
    # writer:                                  ... the quarantine ends
    assert explored(lambda: lagging(waits=True)) > 50


@slow
def test_no_touch_gives_a_value_more_than_its_quarantine() -> None:
    assert explored(lambda: lagging(touches=True)) > 50
