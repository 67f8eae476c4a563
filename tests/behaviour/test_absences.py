"""What does not exist is asked for once, and cannot fill the cache."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import redis

from cacheguard import MISSING, CacheGuard, Policy
from tests.conftest import OpenDoor
from tests.support.doors import Door
from tests.support.loader import Loader
from tests.support.redis_server import RedisServer


class NoSuchUserError(LookupError):
    pass


class NoSuchRowError(Exception):
    def __init__(self, table: str, row_id: int) -> None:
        super().__init__(f"{table} has no row {row_id}")
        self.table, self.row_id = table, row_id


@pytest.fixture(params=["redis", "memory"])
def either(request: pytest.FixtureRequest, open_door: OpenDoor, redis_url: str) -> Door:
    return open_door(CacheGuard(redis_url if request.param == "redis" else "memory://"))


async def test_none_is_cached_for_its_own_ttl(either: Door) -> None:
    loads = Loader()

    @either.cached("none", null_ttl="200ms", jitter=0.0)
    def none() -> None:
        loads()

    assert [await none() for _ in range(3)] == [None] * 3
    assert loads.runs == 1
    assert (await either.inspect("none")).state == "null"
    assert either.guard.stats().null_hits == 2
    await asyncio.sleep(0.22)
    assert await none() is None
    assert loads.runs == 2


async def test_without_null_ttl_absences_are_loaded_each_time(either: Door) -> None:
    loads = Loader()

    @either.cached("none", null_ttl=None)
    def none() -> None:
        loads()

    for _ in range(3):
        assert await none() is None
    assert loads.runs == 3
    assert (await either.inspect("none")).state == "missing"


async def test_an_exception_that_means_not_found_is_cached_and_raised_again(either: Door, redis_url: str) -> None:
    loads = Loader(error=NoSuchUserError("user", 7))

    @either.cached("user:{user_id}", not_found=NoSuchUserError)
    def user(user_id: int) -> str:
        return str(loads())

    raised = []
    for _ in range(3):
        with pytest.raises(NoSuchUserError) as caught:
            await user(7)
        raised.append(caught.value)
    assert loads.runs == 1
    assert {each.args for each in raised} == {("user", 7)}
    assert len({id(each) for each in raised[1:]}) == 2
    assert await user.peek(7) is MISSING
    assert await either.get("user:7", "default") == "default"
    assert either.guard.stats().load_failures == 0


async def test_a_cached_exception_is_raised_from_redis_too(open_door: OpenDoor, redis_url: str) -> None:
    loads = Loader(error=NoSuchUserError("user", 7))
    for _ in range(2):
        door = open_door(CacheGuard(redis_url))

        @door.cached("user", not_found=(KeyError, NoSuchUserError))
        def user() -> str:
            return str(loads())

        with pytest.raises(NoSuchUserError) as caught:
            await user()
        assert caught.value.args == ("user", 7)
    assert loads.runs == 1


async def test_an_exception_with_a_constructor_of_its_own_comes_back_as_itself(
    open_door: OpenDoor, redis_url: str
) -> None:
    loads = Loader(error=NoSuchRowError("users", 7))
    for _ in range(2):
        door = open_door(CacheGuard(redis_url))

        @door.cached("row", not_found=NoSuchRowError)
        def row() -> str:
            return str(loads())

        with pytest.raises(NoSuchRowError, match="users has no row 7"):
            await row()
    assert loads.runs == 1


async def test_a_subclass_of_not_found_is_an_absence_too(either: Door) -> None:
    loads = Loader(error=KeyError("x"))

    @either.cached("k", not_found=LookupError)
    def lookup() -> str:
        return str(loads())

    for _ in range(2):
        with pytest.raises(LookupError):
            await lookup()
    assert loads.runs == 1


async def test_other_exceptions_are_no_absences(either: Door) -> None:
    loads = Loader(error=ValueError("down"))

    @either.cached("k", not_found=NoSuchUserError, error_backoff=None)
    def lookup() -> str:
        return str(loads())

    for _ in range(2):
        with pytest.raises(ValueError, match="down"):
            await lookup()
    assert loads.runs == 2


async def test_an_absence_is_no_stand_in_for_a_row_when_a_load_fails(either: Door) -> None:
    loads = Loader()

    @either.cached("k", null_ttl="100ms", jitter=0.0)
    def lookup() -> None:
        loads()

    assert await lookup() is None
    await asyncio.sleep(0.12)
    loads.error = ValueError("down")
    with pytest.raises(ValueError, match="down"):
        await lookup()


async def test_a_row_that_appears_is_seen_after_its_invalidation(either: Door) -> None:
    rows: dict[int, str] = {}

    @either.cached("row:{row_id}")
    def row(row_id: int) -> str | None:
        return rows.get(row_id)

    assert await row(1) is None
    rows[1] = "one"
    await row.invalidate(1)
    assert await row(1) == "one"


async def test_random_ids_cannot_fill_redis_or_the_process(
    open_door: OpenDoor, redis_server: RedisServer, redis_url: str
) -> None:
    door = open_door(CacheGuard(redis_url, max_absences=50, l1_size=80))

    @door.cached("row:{row_id}")
    def row(row_id: int) -> str | None:
        return "value" if row_id < 10 else None

    assert [await row(number) for number in range(10)] == ["value"] * 10
    await asyncio.gather(*(row(number) for number in range(10, 310)))
    stats = door.guard.stats()
    assert stats.absences_over_budget == 250
    assert stats.l1_entries <= 10 + 10
    assert len(redis_server.entries()) == 60
    hits = door.guard.stats().l1_hits
    assert [await row(number) for number in range(10)] == ["value"] * 10  # none was pushed out
    assert door.guard.stats().l1_hits == hits + 10


@pytest.mark.parametrize("ids", [500, pytest.param(20_000, marks=pytest.mark.slow)])
async def test_absent_ids_load_nothing_the_second_time(redis_url: str, ids: int) -> None:
    loads = 0
    async with CacheGuard(redis_url, operation_timeout="5s") as guard:

        @guard.cached("row:{row_id}")
        async def row(row_id: int) -> None:
            nonlocal loads
            loads += 1

        for _ in range(2):
            for start in range(0, ids, 500):
                await asyncio.gather(*(row(number) for number in range(start, start + 500)))
    assert loads == ids


async def test_what_validate_refuses_reaches_neither_loader_nor_redis(door: Door, redis_server: RedisServer) -> None:
    loads = Loader()

    @door.cached("user:{user_id}", validate=lambda user_id, org_id=0: user_id > 0)
    def user(user_id: int, org_id: int = 0) -> Any:
        return loads(user_id)

    assert await user(-1) is None
    assert await user.many([(-1,), (1,)]) == [None, 1]
    assert await user(1, 5) == 1
    assert redis_server.entries() == ["cg:cacheguard:e:user:1"]
    assert loads.runs == 1
    assert door.guard.stats().validate_rejects == 2


async def test_what_validate_refuses_raises_the_first_not_found(either: Door) -> None:
    @either.cached("user:{user_id}", validate=lambda user_id: user_id > 0, not_found=(NoSuchUserError, KeyError))
    def user(user_id: int) -> int:
        return user_id

    with pytest.raises(NoSuchUserError):
        await user(-1)
    assert await user(1) == 1


async def test_an_exception_of_validate_reaches_the_caller(either: Door) -> None:
    @either.cached("user:{user_id}", validate=lambda user_id: 1 / user_id)
    def user(user_id: int) -> int:
        return user_id

    with pytest.raises(ZeroDivisionError):
        await user(0)


async def test_a_bloom_filter_answers_for_absent_ids(door: Door, redis_url: str) -> None:
    users = door.guard.bloom("users", capacity=1000, error_rate=1e-6)
    await door.ask(users, "rebuild", range(100))
    loads = Loader()

    @door.cached("user:{user_id}", bloom=users)
    def user(user_id: int) -> Any:
        return loads(user_id)

    @door.cached("lone:{user_id}:{lang}", bloom=users, bloom_item="{user_id}", not_found=NoSuchUserError)
    def localized(user_id: int, lang: str) -> Any:
        return loads(user_id)

    with redis.Redis.from_url(redis_url) as client:
        before = set(client.keys("*"))
        assert await user(500) is None
        assert await user.many([500, 501]) == [None, None]
        with pytest.raises(NoSuchUserError):
            await localized(500, "de")
        assert set(client.keys("*")) == before
    assert loads.runs == 0
    assert await user(5) == 1
    assert await localized(5, "de") == 2
    await door.ask(users, "add", 500)
    assert await user(500) == 3
    assert door.guard.stats().bloom_rejects == 4


async def test_after_flushall_no_row_is_hidden(door: Door, redis_url: str) -> None:
    users = door.guard.bloom("users", capacity=1000)
    await door.ask(users, "rebuild", range(100))

    @door.cached("user:{user_id}", bloom=users)
    def user(user_id: int) -> int:
        return user_id

    with redis.Redis.from_url(redis_url) as client:
        client.flushall()
    assert [await user(number) for number in range(300)] == list(range(300))


async def test_absences_of_a_policy_go_through_set_too(open_door: OpenDoor, redis_url: str) -> None:
    door = open_door(CacheGuard(redis_url, policy=Policy(null_ttl=10, jitter=0.0, ttl=100)))
    await door.set("k", None)
    assert 5 < (await door.inspect("k")).ttl_left <= 10
