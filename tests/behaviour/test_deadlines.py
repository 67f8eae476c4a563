"""Quarantine, floor and value end at their own times, whatever happens to the others, in either tier."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import anyio
import pytest

from cacheguard import CacheGuard, Policy
from tests.conftest import OpenDoor
from tests.support.doors import Door
from tests.support.faults import Fault, FaultProxy

LAG = 0.6  # seconds
SHORT = {"ttl": 0.1, "null_ttl": 0.1, "jitter": 0, "stale_if_error": None}
LONG = {"ttl": 600, "jitter": 0, "stale_if_error": 600}
WHERES = ["redis", "memory", "l2 off"]

Act = Callable[[Door, str], Awaitable[Any]]


@pytest.fixture(params=WHERES)
async def place(request: pytest.FixtureRequest, open_door: OpenDoor, redis_url: str) -> Door:
    """Either door; values are in Redis, in a process without Redis, or in this process beside Redis."""
    policy = Policy(jitter=0, l2=request.param != "l2 off", l1=request.param != "redis")
    door = open_door(CacheGuard("memory://" if request.param == "memory" else redis_url, policy=policy))
    if request.param == "l2 off":  # what it keeps before it hears of changes is dropped when it begins to
        await door.get("k")
        with anyio.fail_after(10):
            while not door.guard.stats().bus_up:
                await anyio.sleep(0.005)
    return door


async def fills(door: Door, key: str) -> None:
    await door.get_or_set(key, lambda: "lagging", **SHORT)


async def finds_nothing(door: Door, key: str) -> None:
    await door.get_or_set(key, lambda: None, **SHORT)


async def sets(door: Door, key: str) -> None:
    await door.ask(door.guard, "set", key, "lagging", ttl=0.1)


async def adds(door: Door, key: str) -> None:
    await door.ask(door.guard, "add", key, "lagging", ttl=0.1)


async def fills_and_touches(door: Door, key: str) -> None:
    await door.get_or_set(key, lambda: "lagging", **SHORT)
    await door.ask(door.guard, "touch", key, ttl=0.1)


async def fills_and_expires(door: Door, key: str) -> None:
    await door.get_or_set(key, lambda: "lagging", **SHORT)
    await door.ask(door.guard, "expire", key)


async def invalidates_again(door: Door, key: str) -> None:
    await door.ask(door.guard, "invalidate", key)
    await door.ask(door.guard, "invalidate", key, settle=0.05)


async def writes(door: Door, key: str) -> None:
    await door.write(lambda *_: None, key, settle=None)


async def fails(door: Door, key: str) -> None:
    def load() -> Any:
        raise OSError("the database is down")

    with pytest.raises(OSError, match="down"):
        await door.get_or_set(key, load, **SHORT, error_backoff=None)


ACTS: list[Act] = [fills, finds_nothing, sets, adds, fills_and_touches, fills_and_expires, invalidates_again, fails]


async def together(run: Callable[[Any, str], Coroutine[Any, Any, None]], *cases: Any) -> None:
    """Run all *cases* at once, each on a key of its own: they wait at the same time. A failure names its key."""
    async with anyio.create_task_group() as group:
        for case in cases:
            group.start_soon(run, case, f"k:{case if isinstance(case, str) else case.__name__}")


async def is_over(until: float) -> None:
    """Wait until the moment *until* has passed."""
    await anyio.sleep(max(0.0, until - time.monotonic()) + 0.05)


async def test_a_quarantine_lasts_whatever_is_stored_meanwhile(place: Door) -> None:
    async def lasts(act: Act, key: str) -> None:
        await place.ask(place.guard, "invalidate", key, settle=LAG)
        until = time.monotonic() + LAG
        await act(place, key)
        with anyio.fail_after(LAG):
            while await place.get_or_set(key, lambda: "lagging again", **LONG) != "lagging again":
                await anyio.sleep(0.02)
        await is_over(until)
        assert (key, await place.get_or_set(key, lambda: "new", **LONG)) == (key, "new")
        assert (key, await place.get_or_set(key, lambda: "newer", **LONG)) == (key, "new")

    await together(lasts, *ACTS, writes)


async def test_nothing_carries_a_value_beyond_a_quarantine(place: Door) -> None:
    async def carries_nothing(act: str, key: str) -> None:
        await place.ask(place.guard, "invalidate", key, settle=LAG)
        until = time.monotonic() + LAG
        if act != "add":
            await place.get_or_set(key, lambda: "lagging", **LONG)
        if act == "update":
            await place.ask(place.guard, "update", key, lambda value: f"{value}, changed")
        else:
            value = () if act == "touch" else ("lagging",)
            assert await place.ask(place.guard, act, key, *value, ttl=600) is not False, act
        await is_over(until)
        assert (key, await place.get_or_set(key, lambda: "new", **LONG)) == (key, "new")

    await together(carries_nothing, "touch", "set", "add", "update")


async def test_a_load_that_fails_after_a_quarantine_serves_nothing_of_it(place: Door) -> None:
    async def serves_nothing(way: str, key: str) -> None:
        answer: list[Any] = ["lagging"]

        def load() -> Any:
            if isinstance(answer[0], Exception):
                raise answer[0]
            return answer[0]

        options: dict[str, Any] = {"ttl": 600, "jitter": 0, "stale_if_error": 600, "error_backoff": None}
        function = place.guard.cached(key, **options)(place.lift(load))
        await place.ask(place.guard, "invalidate", key, settle=LAG)
        until = time.monotonic() + LAG
        assert await place.call(function) == "lagging"
        answer[0] = OSError("the database is down")
        if way == "refresh":
            with pytest.raises(OSError, match="down"):
                await place.call(function.refresh)
        await is_over(until)
        with pytest.raises(OSError, match="down"):
            await place.call(function)

    await together(serves_nothing, "refresh", "expired")


async def test_a_version_floor_lasts_whatever_is_stored_meanwhile(place: Door) -> None:
    async def lasts(act: Act, key: str) -> None:
        await place.ask(place.guard, "invalidate", key, version=10)
        await act(place, key)
        await anyio.sleep(0.15)
        row = [9]
        options: dict[str, Any] = {**LONG, "version": lambda value: value}
        for version, expected in ((9, 9), (10, 10), (9, 10)):
            row[0] = version
            assert (key, await place.get_or_set(key, lambda: row[0], **options)) == (key, expected)

    await together(lasts, *ACTS)


async def test_the_version_of_a_value_that_goes_is_the_floor(place: Door) -> None:
    async def leaves_a_floor(ends: str, key: str) -> None:
        options: dict[str, Any] = {**LONG, "version": lambda value: value}
        await place.get_or_set(key, lambda: 7, **options)
        if ends == "invalidate":
            await place.ask(place.guard, "invalidate", key)
        elif ends == "set":
            await place.ask(place.guard, "set", key, "by hand", ttl=0.05)
            await anyio.sleep(0.1)
        else:
            await place.ask(place.guard, "expire", key)
        older = await place.get_or_set(key, lambda: 6, **options | {"stale_while_revalidate": None})
        assert (key, older) == (key, 6)
        assert (key, await place.get_or_set(key, lambda: 8, **options)) == (key, 8)

    await together(leaves_a_floor, "invalidate", "set", "expires")


async def test_after_clear_an_older_version_may_fill_again(place: Door) -> None:
    options: dict[str, Any] = {**LONG, "version": lambda value: value}
    await place.ask(place.guard, "invalidate", "k", version=10)
    await place.get_or_set("k", lambda: 10, **options)
    await place.ask(place.guard, "clear")
    assert await place.get_or_set("k", lambda: 3, **options) == 3
    assert await place.get_or_set("k", lambda: 4, **options) == 3


async def test_a_quarantine_without_a_version_cannot_be_left_by_an_old_one(place: Door) -> None:
    """The version of the value that went is no proof: the write that began the quarantine is younger."""
    options: dict[str, Any] = {**LONG, "version": lambda value: value}
    await place.get_or_set("k", lambda: 6, **options)
    await place.ask(place.guard, "invalidate", "k", settle=LAG)  # the row is at 7
    until = time.monotonic() + LAG
    assert await place.get_or_set("k", lambda: 6, **options) == 6  # a replica that lags
    await is_over(until)
    assert await place.get_or_set("k", lambda: 7, **options) == 7


async def test_a_version_that_is_new_enough_leaves_the_quarantine(place: Door) -> None:
    options: dict[str, Any] = {**LONG, "version": lambda value: value}
    await place.ask(place.guard, "invalidate", "k", settle=LAG, version=7)
    until = time.monotonic() + LAG
    assert await place.get_or_set("k", lambda: 7, **options) == 7
    await is_over(until)
    assert await place.get_or_set("k", lambda: 8, **options) == 7


async def test_a_version_proves_nothing_about_a_write_that_had_none(place: Door) -> None:
    async def proves_nothing(later: str, key: str) -> None:
        options: dict[str, Any] = {**LONG, "version": lambda value: value}
        await place.ask(place.guard, "invalidate", key, settle=LAG)
        until = time.monotonic() + LAG
        settle = {"settle": 0.05} if later == "settle" else {}
        await place.ask(place.guard, "invalidate", key, version=5, **settle)
        assert (key, await place.get_or_set(key, lambda: 5, **options)) == (key, 5)
        await is_over(until)
        assert (key, await place.get_or_set(key, lambda: 6, **options)) == (key, 6)

    await together(proves_nothing, "no settle", "settle")


async def test_the_age_is_that_of_the_value(place: Door) -> None:
    await place.ask(place.guard, "invalidate", "k", settle=30)
    await place.get_or_set("k", lambda: "v", **LONG)
    await anyio.sleep(0.12)
    assert 0.1 <= (await place.ask(place.guard, "inspect", "k")).age < 5
    assert await place.ask(place.guard, "touch", "k", ttl=3600)
    assert 0.1 <= (await place.ask(place.guard, "inspect", "k")).age < 5


# What a process without values in Redis hears


async def heard(door: Door, expected: Any, load: Callable[[], Any], **options: Any) -> None:
    """Read until the bus has brought the news."""
    with anyio.fail_after(10):
        while await door.get_or_set("k", load, **options) != expected:
            await anyio.sleep(0.01)


@pytest.fixture
async def pair(open_door: OpenDoor, redis_url: str) -> tuple[Door, Door]:
    """A process that writes, and one that keeps its values for itself."""
    writer = open_door(CacheGuard(redis_url, policy=Policy(jitter=0)))
    reader = open_door(CacheGuard(redis_url, policy=Policy(jitter=0, l2=False)))
    with anyio.fail_after(10):
        while not (reader.guard.stats().bus_up and writer.guard.stats().bus_up):
            await reader.get("k")
            await writer.get("k")
            await anyio.sleep(0.005)
    return writer, reader


async def test_an_invalidation_without_a_version_reaches_a_newer_value(pair: tuple[Door, Door]) -> None:
    writer, reader = pair
    options: dict[str, Any] = {**LONG, "version": lambda _: 5}
    await writer.ask(writer.guard, "invalidate", "k", version=3)
    await anyio.sleep(0.1)
    await heard(reader, "loaded", lambda: "loaded", **options)
    await writer.ask(writer.guard, "invalidate", "k")
    await heard(reader, "again", lambda: "again", **options)


async def test_what_is_kept_in_a_process_heeds_the_quarantine_that_it_hears_of(pair: tuple[Door, Door]) -> None:
    writer, reader = pair
    await reader.get_or_set("k", lambda: "old", **LONG)
    await writer.ask(writer.guard, "invalidate", "k", settle=LAG)
    until = time.monotonic() + LAG
    await heard(reader, "lagging", lambda: "lagging", **LONG)
    await anyio.sleep(max(0.0, until - time.monotonic()) + 0.2)
    assert await reader.get_or_set("k", lambda: "new", **LONG) == "new"


async def test_what_is_kept_in_a_process_heeds_the_floor_that_it_hears_of(pair: tuple[Door, Door]) -> None:
    writer, reader = pair
    await reader.get_or_set("k", lambda: 1, **LONG)
    await writer.ask(writer.guard, "invalidate", "k", version=10)
    await heard(reader, 9, lambda: 9, **LONG, version=lambda value: value)
    assert await reader.get_or_set("k", lambda: 10, **LONG, version=lambda value: value) == 10
    assert await reader.get_or_set("k", lambda: 11, **LONG, version=lambda value: value) == 10


async def test_what_is_set_in_a_process_leaves_its_version_in_redis(pair: tuple[Door, Door]) -> None:
    writer, reader = pair
    await reader.ask(reader.guard, "set", "k", "ten", version=10)
    await writer.ask(writer.guard, "set", "k", "nine", version=9)
    assert await writer.get_or_set("k", lambda: "loaded", **LONG) == "loaded"


async def test_a_load_that_began_in_the_quarantine_of_a_tag_is_not_kept_under_it(place: Door) -> None:
    """The loader adds the tag at its end, when the quarantine is over; what it has read is from within."""
    from cacheguard import current_load

    await place.ask(place.guard, "invalidate_tags", "red", settle=0.2)

    def load() -> str:
        time.sleep(0.4)
        current_load().add_tags("red")
        return "lagging"

    assert await place.get_or_set("k", load, **LONG) == "lagging"
    assert await place.get_or_set("k", lambda: "new", **LONG) == "new"


# With Redis away, L1 is all there is


@pytest.fixture
def cut_off(open_door: OpenDoor, proxy: FaultProxy) -> Door:
    """A guard whose Redis can be taken away with `proxy`."""
    return open_door(CacheGuard(proxy.url, policy=Policy(jitter=0, stale_if_error=600), operation_timeout=0.1))


async def until_away(door: Door) -> None:
    with anyio.fail_after(10):
        while door.guard.stats().l2_up:
            await door.get("whatever")
            await anyio.sleep(0.01)


async def test_l1_serves_no_value_beyond_its_quarantine(cut_off: Door, proxy: FaultProxy) -> None:
    await cut_off.ask(cut_off.guard, "invalidate", "k", settle=LAG)
    until = time.monotonic() + LAG
    await cut_off.get_or_set("k", lambda: "lagging")
    await cut_off.get_or_set("k", lambda: "lagging")  # from Redis, into L1
    proxy.inject(Fault.REFUSE)
    proxy.cut()
    await until_away(cut_off)
    await is_over(until)
    assert await cut_off.get_or_set("k", lambda: "new") == "new"


@pytest.mark.parametrize("terms", [{"settle": LAG}, {"settle": LAG, "version": 3}], ids=["plain", "version"])
async def test_what_is_loaded_without_redis_dies_with_the_quarantine(
    cut_off: Door, proxy: FaultProxy, terms: dict[str, Any]
) -> None:
    await cut_off.get("k")
    proxy.inject(Fault.REFUSE)
    proxy.cut()
    await until_away(cut_off)
    await cut_off.ask(cut_off.guard, "invalidate", "k", **terms)
    until = time.monotonic() + LAG
    await cut_off.get_or_set("k", lambda: 2)
    assert await cut_off.get_or_set("k", lambda: 3) == 2
    await is_over(until)
    assert await cut_off.get_or_set("k", lambda: 3) == 3
