"""`max_absences` counts every key that absent ids make, the markers of their tags included."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
import redis

from cacheguard import CacheGuard, Policy, current_load
from cacheguard.errors import CacheGuardError
from tests.conftest import OpenDoor
from tests.support.doors import Door

LIMIT = 6
IDS = range(60)
SPARE = 3  # the marker of the namespace, and what the id on the way has made


class NoRowError(LookupError):
    pass


def raises(_: int) -> None:
    raise NoRowError


def fails(_: int) -> None:
    raise ConnectionError("the database is away")


def adds_a_tag(number: int) -> None:
    current_load().add_tags(f"user:{number}")


def is_not_cacheable(number: int) -> str:
    current_load().cacheable = False
    return "x" * number


WAYS: dict[str, tuple[Callable[[int], Any], dict[str, Any]]] = {
    "None": (lambda _: None, {"tags": ["user:{number}"]}),
    "two tags": (lambda _: None, {"tags": ["user:{number}", "all"]}),
    "a shared tag only": (lambda _: None, {"tags": ["all"]}),
    "no null_ttl": (lambda _: None, {"tags": ["user:{number}"], "null_ttl": None}),
    "not_found": (raises, {"tags": ["user:{number}"], "not_found": NoRowError}),
    "a tag of the loader": (adds_a_tag, {}),
    "a tag of the loader, no null_ttl": (adds_a_tag, {"null_ttl": None}),
    "not cacheable": (is_not_cacheable, {"tags": ["user:{number}"]}),
    "no ttl": (lambda number: number, {"tags": ["user:{number}"], "ttl": lambda _: "never"}),
    "fails": (fails, {"tags": ["user:{number}"], "error_backoff": None}),
}


def keys_in(redis_url: str) -> list[bytes]:
    """Those that outlive a word about a failed load. SCAN may name a key twice while the server rehashes."""
    with redis.Redis.from_url(redis_url) as client:
        return [key for key in set(client.scan_iter()) if client.pttl(key) > 20_000]


def reader(door: Door, way: str, *, l1: bool = True) -> Any:
    load, options = WAYS[way]

    @door.cached("user:{number}", l1=l1, **options)
    def user(number: int) -> Any:
        return load(number)

    return user


async def tried(work: Any) -> None:
    with suppress(NoRowError, ConnectionError, CacheGuardError):
        await work


@pytest.mark.parametrize("way", WAYS)
async def test_absent_ids_leave_no_more_keys_than_the_bound(open_door: OpenDoor, redis_url: str, way: str) -> None:
    door = open_door(CacheGuard(redis_url, max_absences=LIMIT))
    user = reader(door, way)
    for _ in range(2):
        for number in IDS:
            await tried(user(number))
    assert len(keys_in(redis_url)) <= LIMIT + SPARE


@pytest.mark.parametrize("way", ["None", "no null_ttl", "not_found", "a tag of the loader"])
async def test_many_absent_ids_at_once_leave_no_more(open_door: OpenDoor, redis_url: str, way: str) -> None:
    door = open_door(CacheGuard(redis_url, max_absences=LIMIT, max_loads=4))
    user = reader(door, way)
    for at in range(0, len(IDS), 10):
        await tried(user.many(list(IDS[at : at + 10])))
    async with asyncio.TaskGroup() as group:
        for number in range(1000, 1000 + len(IDS)):
            group.create_task(tried(user(number)))
    # Those that are loaded at the same time have all asked before any of them is counted.
    assert len(keys_in(redis_url)) <= LIMIT + SPARE + 16 + 20


async def test_absent_ids_of_bare_keys_leave_no_more(open_door: OpenDoor, redis_url: str) -> None:
    door = open_door(CacheGuard(redis_url, max_absences=LIMIT))
    for number in IDS:
        assert await door.get_or_set(f"user:{number}", lambda: None, tags=[f"user:{number}"]) is None
        few = await door.get_or_set_many([f"row:{number}"], lambda names: {}, tags=[f"row:{number}"])
        assert few == {f"row:{number}": None}
    assert len(keys_in(redis_url)) <= LIMIT + SPARE + 2


async def test_what_is_put_by_hand_counts_and_is_stored_nevertheless(open_door: OpenDoor, redis_url: str) -> None:
    door = open_door(CacheGuard(redis_url, max_absences=LIMIT))
    user = reader(door, "None")
    for number in range(LIMIT):
        await door.set(f"gone:{number}", None, tags=[f"gone:{number}"])
        assert await door.ask(door.guard, "add", f"added:{number}", None) is True
        await user.put(None, 1000 + number)
    before = len(keys_in(redis_url))
    assert before == LIMIT * 5 + 1
    for number in IDS:
        assert await user(number) is None
    assert len(keys_in(redis_url)) == before


async def test_absent_ids_leave_no_more_in_this_process(open_door: OpenDoor) -> None:
    door = open_door(CacheGuard("memory://", l1_size=8 * LIMIT))
    user = reader(door, "None")
    for number in range(500):
        assert await user(number) is None
    page, _ = await door.ask(door.guard, "scan", "*")
    assert len(page) <= LIMIT


async def over_budget(door: Door) -> None:
    for number in range(2 * LIMIT):
        await door.get_or_set(f"absent:{number}", lambda: None, tags=[f"absent:{number}"])
    assert door.guard.stats().absences_over_budget > 0


@pytest.fixture(params=["redis", "memory"])
async def full(request: pytest.FixtureRequest, open_door: OpenDoor, redis_url: str) -> Door:
    """A guard that has stored as many absences as it may."""
    in_redis: dict[str, Any] = {"url": redis_url, "max_absences": LIMIT}
    where = in_redis if request.param == "redis" else {"url": "memory://", "l1_size": 8 * LIMIT}
    door = open_door(CacheGuard(**where, policy=Policy(jitter=0)))
    await over_budget(door)
    return door


async def test_values_are_cached_when_there_is_no_room_for_absences(full: Door) -> None:
    loads: list[str] = []

    def one() -> str:
        loads.append("k")
        return "v"

    def several(names: list[str]) -> dict[str, int]:
        loads.extend(names)
        return dict.fromkeys(names, 1)

    for _ in range(3):
        for l1 in (True, False):
            assert await full.get_or_set("k", one, tags=["t", "u"], l1=l1) == "v"
            assert await full.get_or_set_many(["m"], several, tags=["m"]) == {"m": 1}
    assert loads == ["k", "m"]
    await full.invalidate_tags("u", "m")
    assert await full.get("k") is None
    assert await full.get("m") is None


@pytest.mark.parametrize("what", ["v", None])
async def test_a_tag_that_is_invalidated_during_the_load_voids_it_without_room_too(full: Door, what: Any) -> None:
    def load() -> Any:
        full.guard.invalidate_tags("t")
        return what

    assert await full.get_or_set("k", load, tags=["t"]) == what
    assert (await full.inspect("k")).state == "missing"


async def test_one_load_answers_many_readers_of_an_absent_id_without_room(full: Door) -> None:
    loads: list[int] = []
    at_work = asyncio.Event()
    loop = asyncio.get_running_loop()

    def load() -> None:
        loads.append(1)
        loop.call_soon_threadsafe(at_work.set)
        until = time.monotonic() + 20
        while full.guard.stats().shared < 20 and time.monotonic() < until:
            time.sleep(0.001)

    first = asyncio.ensure_future(full.get_or_set("k", load, tags=["t"]))
    await at_work.wait()  # the others come after the lease: only a proof lets them share
    others = [full.get_or_set("k", load, tags=["t"]) for _ in range(20)]
    assert await asyncio.gather(first, *others) == [None] * 21
    assert len(loads) == 1
