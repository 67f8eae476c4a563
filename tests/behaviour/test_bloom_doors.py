"""Both doors of a Bloom filter say the same."""

import pytest

from cacheguard import CacheGuard
from cacheguard.errors import ConfigurationError, Unreachable
from tests.faults.test_bus import until
from tests.support.faults import Fault, FaultProxy
from tests.support.redis_server import RedisServer


@pytest.mark.parametrize("memory", [True, False], ids=["memory", "redis"])
def test_the_blocking_door(redis_url: str, memory: bool) -> None:
    with CacheGuard("memory://" if memory else redis_url) as guard:
        users = guard.bloom("users", capacity=1000, error_rate=0.01)
        users.add(1)
        assert not users.absent(2)
        users.mark_complete()
        users.add_many([2, 3])
        assert [users.absent(number) for number in (1, 2, 3, 4)] == [False, False, False, True]
        users.rebuild([5], settle="1ms")
        assert [users.absent(number) for number in (1, 5, 6)] == [False, False, True]  # what was added lately stays
        assert users.info().state == "complete"
        assert "users" in repr(users)
        assert guard.bloom("users", capacity=1000, error_rate=0.01).tier is users.tier


@pytest.mark.parametrize("memory", [True, False], ids=["memory", "redis"])
async def test_the_async_door(redis_url: str, memory: bool) -> None:
    async with CacheGuard("memory://" if memory else redis_url) as guard:
        users = guard.bloom("users", capacity=1000, error_rate=0.01)
        await users.aadd(1)
        assert not await users.aabsent(2)
        await users.amark_complete()
        await users.aadd_many([2, 3])
        assert [await users.aabsent(number) for number in (1, 2, 3, 4)] == [False, False, False, True]
        await users.arebuild([5])
        assert [await users.aabsent(number) for number in (1, 5, 6)] == [
            False,
            False,
            True,
        ]  # what was added lately stays
        assert (await users.ainfo()).state == "complete"


def test_a_filter_needs_a_capacity_and_an_error_rate_that_can_be() -> None:
    with CacheGuard("memory://") as guard:
        for capacity, error_rate in ((0, 0.01), (2**32 + 1, 0.01), (10, 0.0), (10, 1.0)):
            with pytest.raises(ConfigurationError):
                guard.bloom("users", capacity=capacity, error_rate=error_rate)
        with pytest.raises(ConfigurationError, match="settle"):
            guard.bloom("users", capacity=10).rebuild([], settle=-1)


def test_a_dead_redis_that_a_filter_meets_is_counted_as_everywhere(proxy: FaultProxy) -> None:
    with CacheGuard(proxy.url) as guard:
        users = guard.bloom("users", capacity=1000, error_rate=0.01)
        users.add(1)
        proxy.inject(Fault.REFUSE)
        with pytest.raises(Unreachable):
            users.add(2)
        assert not users.absent(3)
        stats = guard.stats()
        assert stats.redis_errors
        assert not stats.l2_up
        proxy.heal()
        until(lambda: not users.absent(4) and guard.stats().l2_up)


def test_an_answer_that_is_an_error_is_counted_too(redis_server: RedisServer, redis_url: str) -> None:
    with CacheGuard(redis_url) as guard:
        users = guard.bloom("users", capacity=1000, error_rate=0.01)
        users.add(1)
        (meta,) = redis_server.command("KEYS", "cg:*:m")
        redis_server.commands(("DEL", meta), ("SET", meta, "no hash"))
        with pytest.raises(Unreachable):
            users.add(2)
        assert guard.stats().redis_errors
        assert guard.stats().l2_up
