"""Both doors of a Bloom filter say the same."""

import asyncio
from decimal import Decimal
from uuid import UUID

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


KNOWN = UUID("0a1b2c3d-0000-4000-8000-00000000002a")
ADDED = [Decimal("1.50"), KNOWN, 7, "Straße", f"{KNOWN}:7", "a:Ada"]
FORMS = [Decimal("1.5"), 1.5, "1.500", KNOWN.hex, str(KNOWN).upper(), KNOWN.bytes, 7.0, "07", Decimal(7), "STRASSE"]
ODD = [True, None, float("nan"), 2.0**60, object(), (), b"sixteen letters!"]


@pytest.mark.parametrize("memory", [True, False], ids=["memory", "redis"])
async def test_no_row_is_hidden_because_it_is_asked_for_in_another_form(redis_url: str, memory: bool) -> None:
    async with CacheGuard("memory://" if memory else redis_url) as guard:
        rows = guard.bloom("rows", capacity=1000)
        await rows.arebuild(ADDED)

        @guard.cached(bloom=rows)
        def one(item: object) -> str:
            return "row"

        @guard.cached(bloom=rows, bloom_item="{item}")
        async def same(item: object) -> str:
            return "row"

        @guard.cached(bloom=rows, bloom_item="{who}:{number}")
        def both(who: object, number: object) -> str:
            return "row"

        for form in (*ADDED, *FORMS):
            assert await asyncio.to_thread(one, form) == await same(form) == "row"
            assert not await rows.aabsent(form)
        for who, number in (
            (KNOWN, 7),
            (KNOWN.hex, 7.0),
            (str(KNOWN).upper(), "07"),
            (KNOWN, Decimal("7.0")),
            ("A", "ADA"),
        ):
            assert await asyncio.to_thread(both, who, number) == "row"
        assert await same(8) is None
        assert await asyncio.to_thread(one, "nobody") is None
        assert await asyncio.to_thread(both, KNOWN, 8) is None


@pytest.mark.parametrize("memory", [True, False], ids=["memory", "redis"])
def test_an_argument_that_cannot_be_an_item_is_answered_with_maybe(redis_url: str, memory: bool) -> None:
    with CacheGuard("memory://" if memory else redis_url) as guard:
        rows = guard.bloom("rows", capacity=1000)
        rows.rebuild(["a"])

        @guard.cached("one:{item!r:.20}", bloom=rows, bloom_item="{item}")
        def one(item: object) -> str:
            return "row"

        @guard.cached("both:{item!r:.20}", bloom=rows, bloom_item="{item}:{item}")
        def both(item: object) -> str:
            return "row"

        @guard.cached("path:{item!r:.20}", bloom=rows, bloom_item="{item.name}")
        def path(item: object) -> str:
            return "row"

        for item in ODD:
            assert not rows.absent(item)
            assert not rows.known(item)
            if type(item) is not object:  # which has no text for a key
                assert one(item) == both(item) == path(item) == "row"
        for item in ODD[:-1]:
            with pytest.raises(ConfigurationError, match="must be a str, int"):
                rows.add(item)


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
