"""Values put there, changed, removed and listed by hand: each in one step, among all processes."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import anyio
import pytest

from cacheguard import MISSING, CacheGuard, Policy
from cacheguard.errors import Unreachable
from tests.conftest import OpenDoor
from tests.support.doors import Door
from tests.support.faults import Fault, FaultProxy

SIGNED = {"secret": b"0123456789abcdef"}


@pytest.fixture(params=["redis", "memory", "signed"])
def hand(request: pytest.FixtureRequest, open_door: OpenDoor, redis_url: str) -> Door:
    """Either door of a guard on Redis, on Redis with signed entries, or in the process."""
    options: dict[str, Any] = SIGNED if request.param == "signed" else {}
    url = "memory://" if request.param == "memory" else redis_url
    return open_door(CacheGuard(url, policy=Policy(jitter=0), **options))


async def all_texts(door: Door, match: str = "*", count: int = 1000) -> list[str]:
    found: list[str] = []
    cursor = ""
    while True:
        page, cursor = await door.ask(door.guard, "scan", match, cursor=cursor, count=count)
        found += page
        if not cursor:
            return sorted(set(found))


async def test_what_is_there_is_not_added_to(hand: Door) -> None:
    assert await hand.ask(hand.guard, "add", "k", 1) is True
    assert await hand.ask(hand.guard, "add", "k", 2) is False
    assert await hand.get("k") == 1
    await hand.invalidate("k")
    assert await hand.ask(hand.guard, "add", "k", 3) is True
    assert await hand.get("k") == 3


async def test_an_entry_that_was_invalidated_with_its_tag_or_namespace_is_nothing_to_add(hand: Door) -> None:
    await hand.set("k", 1, tags=["t"])
    await hand.invalidate_tags("t")
    assert await hand.ask(hand.guard, "add", "k", 2) is True
    assert await hand.get("k") == 2
    await hand.clear()
    assert await hand.ask(hand.guard, "add", "k", 3, tags=["t"]) is True
    assert await hand.get("k") == 3
    await hand.invalidate_tags("t")
    assert await hand.get("k") is None


async def test_what_was_added_after_another_process_cleared_is_there(hand: Door, redis_url: str) -> None:
    await hand.ask(hand.guard, "add", "before", 1)  # from here on this process believes to know the namespace
    with CacheGuard(redis_url) as other:
        other.clear()
    assert await hand.ask(hand.guard, "add", "k", 1) is True
    assert await hand.get("k") == 1


async def test_of_many_who_add_one_is_told_so(hand: Door) -> None:
    told: list[bool] = []

    async def one(number: int) -> None:
        told.append(await hand.ask(hand.guard, "add", "k", number))

    async with anyio.create_task_group() as group:
        for number in range(20):
            group.start_soon(one, number)
    assert sorted(told) == [False] * 19 + [True]


async def test_a_load_under_way_does_not_overwrite_what_was_added(hand: Door) -> None:
    loading, go_on = threading.Event(), threading.Event()

    def load() -> str:
        loading.set()
        assert go_on.wait(10)
        return "loaded"

    async with anyio.create_task_group() as group:
        group.start_soon(hand.get_or_set, "k", load)
        await anyio.to_thread.run_sync(loading.wait, 10)
        assert await hand.ask(hand.guard, "add", "k", "added") is True
        go_on.set()
    assert await hand.get("k") == "added"


async def test_a_value_is_changed_in_one_step_and_keeps_its_time_and_tags(hand: Door) -> None:
    await hand.set("k", 41, ttl=100, tags=["t"])
    assert await hand.ask(hand.guard, "update", "k", lambda value: value + 1) == 42
    assert await hand.get("k") == 42
    assert 90 < (await hand.inspect("k")).ttl_left <= 100
    await hand.invalidate_tags("t")
    assert await hand.ask(hand.guard, "update", "k", lambda value: value + 1) is MISSING


async def test_nothing_is_changed_where_nothing_is(hand: Door) -> None:
    assert await hand.ask(hand.guard, "update", "k", lambda value: value + 1) is MISSING
    assert await hand.get("k", MISSING) is MISSING


async def test_what_the_change_raises_is_raised_and_changes_nothing(hand: Door) -> None:
    await hand.set("k", None, null_ttl=None)
    with pytest.raises(TypeError):
        await hand.ask(hand.guard, "update", "k", lambda value: value + 1)
    assert await hand.get("k", MISSING) is None


async def test_no_step_of_many_counters_is_lost(hand: Door) -> None:
    await hand.set("k", 0)

    async def some() -> None:
        for _ in range(10):
            await hand.ask(hand.guard, "update", "k", lambda value: value + 1)

    async with anyio.create_task_group() as group:
        for _ in range(10):
            group.start_soon(some)
    assert await hand.get("k") == 100


def test_no_step_of_counters_in_several_processes_is_lost(redis_url: str) -> None:
    guards = [CacheGuard(redis_url) for _ in range(3)]
    guards[0].set("k", 0)

    def some(guard: CacheGuard) -> None:
        for _ in range(50):
            guard.update("k", lambda value: value + 1)

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(some, guards * 2))
    assert guards[0].get("k") == 300
    for guard in guards:
        guard.close()


async def test_a_lost_reply_counts_once(open_door: OpenDoor, proxy: FaultProxy) -> None:
    door = open_door(CacheGuard(proxy.url, operation_timeout="5s"))
    await door.set("warm", 1)
    await door.get("nothing")  # in an event loop, readings have a connection of their own
    proxy.inject(Fault.LOSE_REPLY, times=1)
    assert await door.ask(door.guard, "add", "k", 1) is True
    proxy.inject(Fault.LOSE_REPLY, times=1)
    await door.ask(door.guard, "update", "k", lambda value: value + 1)
    assert await door.get("k") == 2


async def test_removing_says_how_many_there_were(hand: Door) -> None:
    await hand.set_many({"a": 1, "b": 2})
    assert await hand.ask(hand.guard, "remove", "a", "b", "c") == 2
    assert await hand.ask(hand.guard, "remove", "a") == 0
    await hand.set("a", 1)
    await hand.clear()
    assert await hand.ask(hand.guard, "remove", "a") == 0
    assert await hand.get_many(["a", "b"]) == {}


async def test_of_many_who_remove_one_counts_it(hand: Door) -> None:
    await hand.set("k", 1)
    counts: list[int] = []

    async def one() -> None:
        counts.append(await hand.ask(hand.guard, "remove", "k"))

    async with anyio.create_task_group() as group:
        for _ in range(20):
            group.start_soon(one)
    assert sum(counts) == 1


async def test_the_keys_of_a_namespace_are_listed_page_by_page(hand: Door) -> None:
    await hand.set_many({f"user:{number}": number for number in range(50)})
    await hand.set("other[1]", 1)
    await hand.set("not plain", 1)
    await hand.ask(hand.guard.namespace("child"), "set", "user:99", 1)
    assert await all_texts(hand, "user:*", count=10) == sorted(f"user:{number}" for number in range(50))
    assert await all_texts(hand, r"other\[1\]") == ["other[1]"]
    await hand.invalidate("user:7")
    assert len(await all_texts(hand)) == 50
    await hand.clear()
    assert await all_texts(hand) == []


async def test_a_cursor_that_came_with_no_page_is_refused(hand: Door) -> None:
    with pytest.raises(ValueError, match="cursor must be one that came with a page"):
        await hand.ask(hand.guard, "scan", cursor="nonsense")


async def test_other_processes_drop_their_copies(open_door: OpenDoor, redis_url: str) -> None:
    door = open_door(CacheGuard(redis_url))
    with CacheGuard(redis_url) as other:
        other.set("k", 1)
        while other.get("k") != 1 or other.stats().l1_hits == 0:
            await anyio.sleep(0.01)
        await door.ask(door.guard, "update", "k", lambda value: value + 1)
        while other.get("k") != 2:
            await anyio.sleep(0.01)
        await door.ask(door.guard, "remove", "k")
        while other.get("k") is not None:
            await anyio.sleep(0.01)


@pytest.mark.parametrize("policy", ["queue", "raise"])
async def test_without_redis_nothing_is_there(open_door: OpenDoor, policy: Any) -> None:
    door = open_door(CacheGuard("redis://127.0.0.1:1/0", on_unreachable=policy))
    calls: list[tuple[str, tuple[Any, ...], Any]] = [
        ("add", ("k", 1), False),
        ("update", ("k", lambda value: value), MISSING),
        ("remove", ("k",), 0),
    ]
    for name, arguments, answer in calls:
        if policy == "raise":
            with pytest.raises(Unreachable):
                await door.ask(door.guard, name, *arguments)
        else:
            assert await door.ask(door.guard, name, *arguments) == answer
    with pytest.raises(Unreachable):
        await door.ask(door.guard, "scan")


async def test_while_caching_is_off_nothing_is_kept(hand: Door) -> None:
    with hand.guard.disabled():
        assert await hand.ask(hand.guard, "add", "k", 1) is True
        assert await hand.ask(hand.guard, "update", "k", lambda value: value) is MISSING
    assert await hand.get("k") is None


async def test_all_of_it_works_in_a_cluster(open_door: OpenDoor, cluster_url: str) -> None:
    door = open_door(CacheGuard(cluster_url, operation_timeout="5s"))
    names = [f"k{number}" for number in range(30)]
    assert all([await door.ask(door.guard, "add", name, 1) for name in names])
    assert [await door.ask(door.guard, "update", name, lambda value: value + 1) for name in names] == [2] * 30
    assert await all_texts(door, "k*", count=5) == sorted(names)
    assert await door.ask(door.guard, "remove", *names) == 30
    assert await all_texts(door) == []


async def test_removing_counts_also_where_the_server_has_forgotten_its_scripts(hand: Door) -> None:
    await hand.set("a", 1)
    await hand.clear()  # some scripts are known, others are not
    await hand.set("a", 1)
    assert await hand.ask(hand.guard, "remove", "a") == 1


@dataclass
class Row:
    number: int


async def test_a_function_reads_its_entry_after_a_touch(hand: Door) -> None:
    loads: list[int] = []

    @hand.cached("row:{number}", tags=["t"])
    def row(number: int) -> list[Row]:
        loads.append(number)
        return [Row(number)]

    assert await row(1) == [Row(1)]
    assert await hand.touch(row.key(1), ttl="2h") is True
    assert await row(1) == [Row(1)]
    assert loads == [1]
    await hand.invalidate_tags("t")
    await row(1)
    assert loads == [1, 1]
