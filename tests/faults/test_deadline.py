"""One timeout for one answer, however slowly it trickles in."""

from __future__ import annotations

import time
from typing import Any

import pytest
import redis

from cacheguard import CacheGuard
from cacheguard.testing import CountingLoader, Fault, FaultProxy, RedisServer
from tests.conftest import OpenDoor

TIMEOUT = 0.2
TRICKLES: list[tuple[Fault, dict[str, Any]]] = [(Fault.DRIBBLE, {"seconds": 0.05}), (Fault.THROTTLE, {"rate": 20})]


@pytest.mark.parametrize(("fault", "terms"), TRICKLES)
async def test_a_reader_loses_one_timeout_to_an_answer_that_trickles_in(
    open_door: OpenDoor, proxy: FaultProxy, fault: Fault, terms: dict[str, Any]
) -> None:
    loader = CountingLoader("value")
    door = open_door(CacheGuard(proxy.url, operation_timeout=TIMEOUT))
    await door.get("warm")
    proxy.inject(fault, only=b"MGET", **terms)
    begin = time.monotonic()
    assert await door.get_or_set("k", loader) == "value"
    assert time.monotonic() - begin < 4 * TIMEOUT
    assert proxy.struck == 1


def test_a_greeting_that_trickles_in_has_one_timeout_too(proxy: FaultProxy) -> None:
    proxy.inject(Fault.DRIBBLE, seconds=0.05)
    begin = time.monotonic()
    with CacheGuard(proxy.url, operation_timeout=TIMEOUT) as guard:
        assert guard.get_or_set("k", CountingLoader("value")) == "value"
    assert time.monotonic() - begin < 6 * TIMEOUT


def test_a_large_value_that_comes_in_time_is_read_whole(redis_server: RedisServer, proxy: FaultProxy) -> None:
    value = "x" * 3_000_000
    with CacheGuard(proxy.url, operation_timeout=5) as guard:
        guard.set("k", value, l1=False)
        for _ in range(3):
            assert guard.get_or_set("k", CountingLoader(), l1=False) == value


def test_the_bus_may_be_silent_for_longer_than_a_timeout(redis_url: str) -> None:
    with CacheGuard(redis_url, operation_timeout=0.1) as guard:
        guard.set("k", 1, ttl="1h")
        guard.get("k")
        deadline = time.monotonic() + 10
        while not guard.stats().bus_up:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        time.sleep(1.5)  # heartbeats come once a second
        assert guard.stats().bus_up
        assert guard.stats().bus_gaps == 0


def test_a_users_own_class_of_connections_works_as_ever(redis_server: RedisServer, redis_url: str) -> None:
    class Own(redis.Connection):
        pass

    pool = redis.ConnectionPool(connection_class=Own, host="127.0.0.1", port=redis_server.port)
    client = redis.Redis(connection_pool=pool)
    with CacheGuard(client=client) as guard:
        guard.set("k", 1, l1=False)
        assert guard.get("k") == 1
    client.close()
