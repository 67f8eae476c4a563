"""A loader, or a caller, has a say in what becomes of an answer."""

from __future__ import annotations

import asyncio
import itertools
from dataclasses import dataclass
from typing import Any

import pytest

from cacheguard import CacheGuard, Load, current_load
from cacheguard.errors import ConfigurationError
from tests.conftest import OpenDoor
from tests.support.doors import Door
from tests.support.loader import Loader


async def test_an_answer_that_is_not_cacheable_is_shared_and_kept_nowhere(door: Door) -> None:
    loader = Loader(1, seconds=0.2)

    def load() -> int:
        current_load().cacheable = False
        result: int = loader(1)
        return result

    assert await asyncio.gather(*(door.get_or_set("k", load) for _ in range(20))) == [1] * 20
    assert loader.runs == 1
    assert await door.get("k") is None
    assert door.guard.at_hand("k") is None
    assert door.guard.stats().fills == 0
    await door.get_or_set("k", load)
    assert loader.runs == 2


async def test_a_load_says_whether_its_value_was_stored(door: Door) -> None:
    loads: list[Load] = []

    def load() -> int:
        loads.append(current_load())
        return 1

    async def stored(key: str, **policy: Any) -> bool:
        await door.get_or_set(key, load, **policy)
        return loads[-1].stored

    def refused() -> int:
        door.guard.invalidate("late")
        return load()

    assert await stored("k")
    assert await stored("in this process", l2=False)
    await door.get_or_set("late", refused)
    assert not loads[-1].stored
    with door.guard.disabled():
        assert not await stored("disabled")


async def test_a_load_says_when_it_is_over(door: Door) -> None:
    loads: list[Load] = []

    def load() -> int:
        loads.append(current_load())
        assert not loads[-1].over
        return 1

    def fails() -> int:
        load()
        raise ValueError("no row")

    await door.get_or_set("k", load)
    with pytest.raises(ValueError, match="no row"):
        await door.get_or_set("other", fails)
    assert [each.over for each in loads] == [True, True]


async def test_a_private_answer_reaches_no_other_caller(door: Door) -> None:
    runs: list[int] = []
    slow = Loader(seconds=0.1)

    def load() -> int:
        current_load().private = True
        runs.append(len(runs))
        mine = runs[-1]
        slow(1)
        return mine

    answers = await asyncio.gather(*(door.get_or_set("k", load) for _ in range(10)))
    assert sorted(answers) == list(range(10))
    assert await door.get("k") is None


async def test_private_answers_of_a_batch_reach_no_other_caller(door: Door) -> None:
    runs: list[int] = []
    slow = Loader(seconds=0.1)

    def load(names: list[str] | None = None) -> Any:
        current_load().private = True
        runs.append(len(runs))
        mine = runs[-1]
        slow(1)
        return mine if names is None else dict.fromkeys(names, mine)

    both = await asyncio.gather(*(door.get_or_set_many(["a", "b"], load) for _ in range(3)))
    assert len({answer for each in both for answer in each.values()}) >= 3
    assert await door.get_many(["a", "b"]) == {}


async def test_who_loads_alone_is_joined_by_nobody_and_fills_nothing(open_door: OpenDoor, redis_url: str) -> None:
    alone = True
    door = open_door(CacheGuard(redis_url, alone=lambda: alone))
    loader = Loader(1, seconds=0.1)
    assert await asyncio.gather(*(door.get_or_set("k", lambda: loader(1)) for _ in range(5))) == [1] * 5
    assert loader.runs == 5
    assert await door.get_or_set_many(["k", "l"], lambda names: dict.fromkeys(names, 7)) == {"k": 7, "l": 7}
    assert await door.get_many(["k", "l"]) == {}
    alone = False
    assert await door.get_or_set("k", lambda: loader(1)) == 1
    assert await door.get("k") == 1
    alone = True
    assert await door.get_or_set("k", lambda: loader(2)) == 1, "a hit is served as ever"


async def test_a_question_asked_later_counts_until_it_is_taken_back(open_door: OpenDoor, redis_url: str) -> None:
    guard = CacheGuard(redis_url)
    door = open_door(guard)
    loads = itertools.count(1)
    end = guard.namespace("inside").load_alone_when(lambda: True)
    assert await door.get_or_set("user:42", lambda: next(loads)) == 1
    assert await door.get_or_set("user:42", lambda: next(loads)) == 2
    end()
    assert await door.get_or_set("user:42", lambda: next(loads)) == 3
    assert await door.get_or_set("user:42", lambda: next(loads)) == 3
    with pytest.raises(ConfigurationError, match="alone"):
        guard.load_alone_when(True)  # type: ignore[arg-type]


async def test_a_function_that_loads_alone_fills_nothing(open_door: OpenDoor, redis_url: str) -> None:
    door = open_door(CacheGuard(redis_url, alone=lambda: True))
    loader = Loader(1)

    @door.cached("row:{row_id}")
    def row(row_id: int) -> int:
        result: int = loader(row_id)
        return result

    assert [*await asyncio.gather(row(1), row(1), row.refresh(1))] == [1, 1, 1]
    assert await row.many([1, 2]) == [1, 1]
    assert loader.runs == 5
    assert door.guard.stats().fills == 0


@pytest.mark.parametrize("l1", [True, False])
async def test_a_value_that_is_not_usable_is_loaded_anew_by_one(open_door: OpenDoor, redis_url: str, l1: bool) -> None:
    doors = [open_door(CacheGuard(redis_url)) for _ in range(2)]
    await doors[0].set("k", 1)
    assert [await door.get("k") for door in doors] == [1, 1]
    loader = Loader(2, seconds=0.2)

    def ask(door: Door, least: int) -> Any:
        return door.get_or_set("k", lambda: loader(least), usable=lambda value: value >= least, l1=l1)

    assert await asyncio.gather(*(ask(door, 1) for door in doors)) == [1, 1]
    assert loader.runs == 0
    assert await asyncio.gather(*(ask(door, 2) for door in doors for _ in range(10))) == [2] * 20
    assert loader.runs == 1
    assert await asyncio.gather(*(ask(door, 2) for door in doors)) == [2, 2]
    assert loader.runs == 1


async def test_a_value_that_is_not_usable_does_not_stand_in_for_a_failing_load(door: Door) -> None:
    await door.set("k", 1, ttl=0.05, stale_if_error=60)
    await asyncio.sleep(0.1)

    def fail() -> int:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        await door.get_or_set("k", fail, usable=lambda value: value > 1, l1=False, error_backoff=None)
    assert await door.get_or_set("k", fail, usable=lambda value: value > 0, l1=False, error_backoff=None) == 1


async def test_usable_is_asked_of_values_only(door: Door) -> None:
    loader = Loader()
    await door.set("k", None)
    assert await door.get_or_set("k", lambda: loader(1), usable=lambda value: value.missing) is None
    assert loader.runs == 0


async def test_a_load_that_is_not_bounded_takes_no_place(open_door: OpenDoor, redis_url: str) -> None:
    door = open_door(CacheGuard(redis_url, max_loads=1, load_wait=0.05))
    slow, quick = Loader(1, seconds=0.5), Loader(2)

    async def occupy() -> Any:
        return await door.get_or_set("a", lambda: slow(1), bounded=False)

    async def inside() -> Any:
        while not slow.runs:
            await asyncio.sleep(0.005)
        return await door.get_or_set("b", lambda: quick(2))

    assert [*await asyncio.gather(occupy(), inside())] == [1, 2]


def test_what_is_at_hand_asks_nobody(redis_url: str) -> None:
    with CacheGuard(redis_url) as one, CacheGuard(redis_url) as two:
        one.get_or_set("k", lambda: 1)
        assert one.at_hand("k") == 1
        assert two.at_hand("k", "nothing") == "nothing"
        two.get("k")
        assert two.at_hand("k") == 1
        with two.disabled():
            assert two.at_hand("k") is None


@pytest.mark.parametrize("alone", [True, "yes", asyncio.sleep])
def test_alone_must_be_a_plain_function(alone: Any) -> None:
    with pytest.raises(ConfigurationError, match="alone must be a plain function without parameters, got"):
        CacheGuard(alone=alone)


@pytest.mark.parametrize("usable", [True, asyncio.sleep])
def test_usable_must_be_a_plain_function(usable: Any) -> None:
    with CacheGuard() as guard, pytest.raises(TypeError, match="usable must be a plain function"):
        guard.get_or_set("k", int, usable=usable)


@dataclass(frozen=True)
class Row:
    number: int


def row_seven() -> Row:
    return Row(7)


@pytest.mark.parametrize("returns", [Row, row_seven], ids=["a type", "a function"])
async def test_a_loader_may_be_given_the_type_that_its_value_comes_back_as(
    open_door: OpenDoor, redis_url: str, returns: Any
) -> None:
    door, other = open_door(CacheGuard(redis_url)), open_door(CacheGuard(redis_url))
    assert await door.get_or_set("k", lambda: Row(7), returns=returns) == Row(7)
    assert await other.get_or_set("k", lambda: Row(8), returns=returns) == Row(7)
    assert other.guard.stats().l2_hits == 1
    assert await other.get_or_set("rows", lambda: [Row(1)], returns=list[Row]) == [Row(1)]
    assert await door.get_or_set("rows", list, returns=list[Row]) == [Row(1)]


async def test_what_was_stored_as_another_type_is_loaded_anew(open_door: OpenDoor, redis_url: str) -> None:
    door, other = open_door(CacheGuard(redis_url)), open_door(CacheGuard(redis_url))
    assert await door.get_or_set("k", lambda: {"number": 7}) == {"number": 7}
    assert await other.get_or_set("k", lambda: Row(8), returns=Row) == Row(8)


async def test_nobody_is_asked_about_a_value_that_was_invalidated(door: Door) -> None:
    asked: list[int] = []

    def usable(value: int) -> bool:
        asked.append(value)
        return False

    await door.set("k", 1, tags=["t"])
    await door.invalidate_tags("t")
    assert await door.get_or_set("k", lambda: 2, tags=["t"], usable=usable) == 2
    assert asked == []
    assert await door.get_or_set("k", lambda: 3, tags=["t"], usable=usable, l1=False) == 3
    assert asked == [2]


async def test_a_ttl_function_that_asks_for_more_than_is_possible_is_heard_of_once(
    door: Door, caplog: pytest.LogCaptureFixture
) -> None:
    def forever(value: int) -> str:
        return f"{value}000d"

    await door.set("k0", 1, ttl=forever, jitter=None)
    await door.get_or_set("k1", lambda: 1, ttl=forever, jitter=None)
    await door.ask(door.guard, "add", "k2", 1, ttl=forever, jitter=None)
    for number in range(3):
        left = (await door.inspect(f"k{number}")).ttl_left
        assert left is not None
        assert 364 < left / 86_400 <= 365
    await door.set("k", 1)
    assert await door.ask(door.guard, "touch", "k", ttl=forever)
    said = [record.message for record in caplog.records]
    assert said == ["ttl(value) asked for 1000 days: an entry is cached for 365 days at most"]
