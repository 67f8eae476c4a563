"""What hangs on a guard and on a decorated function does what it says, through both doors."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from typing import Any, cast

import pytest
import redis

from cacheguard import MISSING, CacheGuard, Policy
from tests.conftest import OpenDoor
from tests.support.doors import Cached, Door
from tests.support.faults import Fault, FaultProxy
from tests.support.loader import Loader
from tests.support.redis_server import RedisServer


def of(door: Door, loader: Loader, **policy: Any) -> Cached:
    @door.cached("row:{row_id}", **policy)
    def row(row_id: int) -> Any:
        return loader(row_id)

    return row


async def started(loader: Loader) -> None:
    assert await asyncio.to_thread(loader.started.wait, 10)


@pytest.fixture(params=["redis", "memory"])
def either(request: pytest.FixtureRequest, open_door: OpenDoor, redis_url: str) -> Door:
    """A door of a guard on Redis, and one on nothing but this process."""
    return open_door(CacheGuard(redis_url if request.param == "redis" else "memory://"))


@pytest.fixture
def second(open_door: OpenDoor, redis_url: str) -> Door:
    """Another guard on the same Redis, which keeps nothing in its process."""
    return open_door(CacheGuard(redis_url, policy=Policy(l1=False)))


# On a decorated function


async def test_invalidate_makes_the_next_call_load(either: Door) -> None:
    row = of(either, Loader())
    assert [await row(1), await row(2), await row(1)] == [1, 2, 1]
    await row.invalidate(1)
    assert [await row(1), await row(2)] == [3, 2]


async def test_invalidate_of_nothing_is_fine(either: Door) -> None:
    await of(either, Loader()).invalidate(1)
    await either.invalidate("nothing", "at", "all")
    await either.invalidate()
    await either.expire()


async def test_the_guard_invalidates_by_the_functions_key(either: Door) -> None:
    row = of(either, Loader())
    assert await row(1) == 1
    await either.invalidate(row.key(1))
    assert await row(1) == 2


@pytest.mark.parametrize("tiers", [{"l1": False}, {"l2": False}, {}], ids=["L2 alone", "L1 alone", "both"])
async def test_the_guard_invalidates_whatever_tiers_the_function_uses(either: Door, tiers: dict[str, bool]) -> None:
    row = of(either, Loader(), **tiers)
    assert [await row(1), await row(1)] == [1, 1]
    await either.invalidate(row.key(1))
    assert [await row(1), await row(1)] == [2, 2]
    await row.invalidate(1)
    assert [await row(1), await row(1)] == [3, 3]


async def test_expire_keeps_the_old_value_for_a_load_that_fails(either: Door) -> None:
    loader = Loader()
    row = of(either, loader)
    assert await row(1) == 1
    await row.expire(1)
    assert (await either.inspect(row.key(1))).state == "stale"
    loader.error = ValueError("down")
    assert await row(1) == 1
    loader.error = None
    await row.invalidate(1)
    loader.error = ValueError("down")
    with pytest.raises(ValueError, match="down"):
        await row(1)


async def test_an_expired_absence_never_stands_in_for_a_row(either: Door) -> None:
    loader = Loader()

    @either.cached("row")
    def row() -> int | None:
        return None if loader() == 1 else 7

    assert await row() is None
    await row.expire()
    loader.error = ValueError("down")
    with pytest.raises(ValueError, match="down"):
        await row()


async def test_refresh_loads_anew_and_returns_the_new_value(either: Door) -> None:
    row = of(either, Loader())
    assert await row(1) == 1
    assert await row.refresh(1) == 2
    assert await row(1) == 2
    assert await row.refresh(5) == 3
    assert await row(5) == 3


def only_the_first(value: Any) -> str:
    if value == "old":
        return "1h"
    raise ValueError("none for this one")


@pytest.mark.parametrize(
    ("now", "policy"),
    [
        (None, {"null_ttl": None}),
        ("new", {"ttl": only_the_first}),
        ("new", {"version": lambda value: 1 // (value == "old")}),
        (object(), {}),
    ],
    ids=["absence", "ttl", "version", "cannot be stored"],
)
async def test_what_a_refresh_has_found_to_be_old_is_gone_even_if_its_answer_is_not_cached(
    either: Door, second: Door, now: Any, policy: dict[str, Any]
) -> None:
    rows: list[Any] = ["old"]
    row = of(either, cast("Loader", lambda _: rows[-1]), **policy)
    assert await row(1) == "old"
    rows.append(now)
    assert await row.refresh(1) is now
    assert await row(1) is now
    assert await second.get("row:1", "nothing") == "nothing"


async def test_what_a_refresh_has_found_to_be_old_is_gone_although_redis_is_full(
    open_door: OpenDoor, second: Door, redis_url: str, redis_server: RedisServer
) -> None:
    row = of(open_door(CacheGuard(redis_url)), Loader())
    assert await row(1) == 1
    redis_server.command("CONFIG", "SET", "maxmemory", 1)
    try:
        assert await row.refresh(1) == 2
        assert await second.get("row:1") is None
    finally:
        redis_server.command("CONFIG", "SET", "maxmemory", 0)


async def test_what_a_refresh_has_found_to_be_old_is_gone_when_redis_is_back(
    open_door: OpenDoor, second: Door, proxy: FaultProxy
) -> None:
    loader = Loader()
    row = of(open_door(CacheGuard(proxy.url)), loader)
    assert await row(1) == 1
    proxy.inject(Fault.BLACKHOLE)
    assert await row.refresh(1) == 2
    assert await row(1) == 2
    proxy.heal()
    for _ in range(200):
        if await second.get("row:1") is None:
            break
        await asyncio.sleep(0.05)
    assert await second.get("row:1") is None


async def test_a_refresh_that_fails_raises_and_leaves_the_old_value(either: Door) -> None:
    loader = Loader()
    row = of(either, loader)
    assert await row(1) == 1
    loader.error = ValueError("down")
    with pytest.raises(ValueError, match="down"):
        await row.refresh(1)
    assert await row(1) == 1


async def test_peek_never_loads(either: Door) -> None:
    loader = Loader()
    row = of(either, loader)
    assert await row.peek(1) is MISSING
    assert loader.runs == 0
    assert await row(1) == 1
    assert await row.peek(1) == 1
    await row.invalidate(1)
    assert await row.peek(1) is MISSING


async def test_peek_sees_what_another_guard_filled(door: Door, second: Door) -> None:
    assert await of(second, Loader())(1) == 1
    loader = Loader()
    assert await of(door, loader).peek(1) == 1
    assert loader.runs == 0


async def test_peek_tells_none_from_missing(either: Door) -> None:
    @either.cached("nobody")
    def nobody() -> None:
        return None

    assert await nobody.peek() is MISSING
    assert await nobody() is None
    assert await nobody.peek() is None


async def test_put_is_what_the_next_call_returns(either: Door) -> None:
    loader = Loader()
    row = of(either, loader)
    await row.put(42, 1)
    assert await row(1) == 42
    await row.put(43, 1)
    assert await row(1) == 43
    assert loader.runs == 0


async def test_many_answers_in_order_with_one_round_trip_for_what_is_there(either: Door) -> None:
    loader = Loader()
    row = of(either, loader)
    await row.put("one", 1)
    await row.put("two", 2)
    assert await row.many([2, 1, 2, 3]) == ["two", "one", "two", 1]
    assert await row.many([]) == []
    assert await row.many((number,) for number in (3, 1)) == [1, "one"]
    assert loader.runs == 1


async def test_many_takes_tuples_of_arguments(either: Door) -> None:
    @either.cached("pair:{a}:{b}")
    def pair(a: int, b: int = 5) -> list[int]:
        return [a, b]

    assert await pair.many([(1, 2), (3,), (1, 2)]) == [[1, 2], [3, 5], [1, 2]]


async def test_the_key_is_readable_and_escaped(either: Door) -> None:
    @either.cached("pair:{a}:{b}")
    def pair(a: object, b: object) -> int:
        return 1

    assert pair.key(1, "x") == "pair:1:x"
    assert pair.key(b=2, a=1) == "pair:1:2"
    assert pair.key("b:c", "d") != pair.key("b", "c:d")


# On the guard


async def test_get_answers_what_there_is_and_the_default_for_what_is_not(either: Door) -> None:
    assert await either.get("k") is None
    assert await either.get("k", 7) == 7
    assert await either.get("k", MISSING) is MISSING
    await either.set("k", None)
    assert await either.get("k", 7) is None
    await either.set("k", 0)
    assert await either.get("k", 7) == 0


async def test_get_or_set_loads_once(either: Door) -> None:
    loader = Loader()
    assert [await either.get_or_set("k", loader) for _ in range(3)] == [1, 1, 1]
    assert await either.get("k") == 1


async def test_get_many_gives_what_it_finds(either: Door, second: Door) -> None:
    await either.set_many({"a": 1, "b": None, "c": 3})
    assert await either.get_many(["c", "x", "a", "b", "a"]) == {"c": 3, "a": 1, "b": None}
    assert await either.get_many([]) == {}
    assert await either.get_many(key for key in ("a",)) == {"a": 1}


async def test_get_or_set_many_loads_what_is_missing_in_one_call(either: Door) -> None:
    asked: list[list[str]] = []

    def load(keys: list[str]) -> dict[str, int]:
        asked.append(sorted(keys))
        return {key: ord(key) for key in keys if key != "z"} | {"extra": 1}

    await either.set("a", 1)
    assert await either.get_or_set_many(["a", "b", "c", "z"], load) == {"a": 1, "b": 98, "c": 99, "z": None}
    assert await either.get_or_set_many(["z", "c", "b"], load) == {"z": None, "c": 99, "b": 98}
    assert asked == [["b", "c", "z"]]
    assert await either.get("extra", "none") == "none"
    assert (await either.inspect("z")).state == "null"
    assert await either.get_or_set_many([], load) == {}


async def test_overlapping_batches_join_the_keys_in_flight(either: Door) -> None:
    asked: list[str] = []
    gate = Loader()
    gate.stand_still()

    def load(keys: list[str]) -> dict[str, str]:
        asked.extend(keys)
        gate()
        return {key: key * 2 for key in keys}

    first = asyncio.ensure_future(either.get_or_set_many(["a", "b", "c"], load))
    await started(gate)
    others = [asyncio.ensure_future(either.get_or_set_many(["b", "c", "d"], load)) for _ in range(5)]
    single = asyncio.ensure_future(either.get_or_set("a", Loader("own")))
    await asyncio.sleep(0.1)
    gate.go_on()
    assert await first == {"a": "aa", "b": "bb", "c": "cc"}
    assert await asyncio.gather(*others) == [{"b": "bb", "c": "cc", "d": "dd"}] * 5
    assert await single == "aa"
    assert sorted(asked) == ["a", "b", "c", "d"]


async def test_batches_of_two_guards_load_each_key_once(door: Door, second: Door) -> None:
    asked: list[str] = []

    def load(keys: list[str]) -> dict[str, str]:
        asked.extend(keys)
        time.sleep(0.1)
        return {key: key for key in keys}

    keys = [f"k{number}" for number in range(20)]
    asks = [door.get_or_set_many(keys[:15], load), second.get_or_set_many(keys[5:], load)]
    assert await asyncio.gather(*asks) == [{key: key for key in part} for part in (keys[:15], keys[5:])]
    assert sorted(asked) == sorted(keys)


async def test_a_batch_whose_loader_fails_tells_all_and_fills_nothing(either: Door) -> None:
    def load(keys: list[str]) -> dict[str, str]:
        raise ValueError("down")

    for _ in range(2):
        with pytest.raises(ValueError, match="down"):
            await either.get_or_set_many(["a", "b"], load)
    assert await either.get_many(["a", "b"]) == {}


@pytest.mark.parametrize("answer", [None, ["a"], 7, "a"])
async def test_a_batch_loader_that_returns_no_mapping_is_told_so(either: Door, answer: object) -> None:
    with pytest.raises(Exception, match="mapping"):
        await either.get_or_set_many(["a"], lambda keys: answer)


async def test_a_key_invalidated_during_its_batch_is_not_filled_but_the_others_are(either: Door) -> None:
    gate = Loader()
    gate.stand_still()

    def load(keys: list[str]) -> dict[str, str]:
        gate()
        return dict.fromkeys(keys, "old")

    asked = asyncio.ensure_future(either.get_or_set_many(["a", "b"], load))
    await started(gate)
    await either.invalidate("a")
    gate.go_on()
    assert await asked == {"a": "old", "b": "old"}
    assert await either.get_many(["a", "b"]) == {"b": "old"}


async def test_touch_gives_a_fresh_entry_a_new_ttl(either: Door) -> None:
    await either.set("k", 1, ttl=10, jitter=0.0)
    assert await either.touch("k", ttl=1000, jitter=0.0) is True
    left = (await either.inspect("k")).ttl_left
    assert 990 < left <= 1000
    assert await either.get("k") == 1
    assert await either.touch("nothing") is False
    await either.expire("k")
    assert await either.touch("k") is False


async def test_touch_gives_an_absence_no_more_than_the_ttl_of_absences(either: Door) -> None:
    await either.set("k", None)
    assert await either.touch("k")
    assert (await either.inspect("k")).ttl_left <= 30


async def test_touch_works_beside_a_ttl_that_depends_on_the_value(open_door: OpenDoor, redis_url: str) -> None:
    door = open_door(CacheGuard(redis_url, policy=Policy(ttl=lambda value: value["seconds"])))
    await door.set("k", {"seconds": 60})
    assert await door.touch("k", ttl=100) is True


async def test_inspect_says_where_and_how_old(door: Door, second: Door) -> None:
    await door.set("k", "v", ttl=100, jitter=0.0, tags=["t:1", "t:2"])
    seen = await door.inspect("k")
    assert (seen.state, seen.tier, seen.tags) == ("fresh", "l2", ("t:1", "t:2"))
    assert 0 <= seen.age < 5
    assert 95 < seen.ttl_left <= 100
    assert await door.get("k") == "v"
    seen = await door.inspect("k")
    assert (seen.state, seen.tier, seen.tags) == ("fresh", "l1", ("t:1", "t:2"))
    assert 95 < seen.ttl_left <= 100
    await second.expire("k")
    seen = await second.inspect("k")
    assert (seen.state, seen.tier) == ("stale", "l2")
    assert seen.ttl_left <= 0
    await second.set("k", None)
    assert (await second.inspect("k")).state == "null"
    await second.invalidate("k")
    seen = await second.inspect("k")
    assert (seen.state, seen.tier, seen.age, seen.ttl_left, seen.tags) == ("missing", None, None, None, ())


async def test_inspect_counts_no_hit(either: Door) -> None:
    await either.set("k", 1)
    await either.get("k")
    before = either.guard.stats()
    for _ in range(3):
        await either.inspect("k")
    assert either.guard.stats() == before


async def test_while_disabled_everything_loads_and_nothing_is_cached(either: Door) -> None:
    loader = Loader()
    row = of(either, loader)
    assert await row(1) == 1
    await either.set("k", "cached")
    with either.guard.disabled():
        assert [await row(1), await row(1)] == [2, 3]
        assert sorted(await row.many([1, 1])) == [4, 5]
        assert await row.refresh(1) == 6
        assert await either.get("k") is None
        assert await either.get_many(["k"]) == {}
        assert await either.get_or_set("k", loader) == 7
        assert await either.get_or_set_many(["k"], lambda keys: dict.fromkeys(keys, 8)) == {"k": 8}
        with either.guard.disabled():
            assert await row(1) == 8
        assert await row(1) == 9
    assert await row(1) == 1
    assert await either.get("k") == "cached"


async def test_a_peek_while_disabled_sees_nothing(either: Door) -> None:
    row = of(either, Loader())
    assert await row(1) == 1
    with either.guard.disabled():
        assert await row.peek(1) is MISSING


async def test_an_invalidation_while_disabled_holds_afterwards(either: Door) -> None:
    row = of(either, Loader())
    assert await row(1) == 1
    with either.guard.disabled():
        await row.invalidate(1)
    assert await row(1) == 2


async def test_a_load_that_began_before_disabled_leaves_nothing_in_the_process(either: Door) -> None:
    loader = Loader()
    loader.stand_still()
    asked = asyncio.ensure_future(either.get_or_set("k", loader))
    await started(loader)
    with either.guard.disabled():
        loader.go_on()
        assert await asked == 1
        assert either.guard.stats().l1_entries == 0


async def test_a_namespace_has_keys_and_policy_of_its_own(open_door: OpenDoor, redis_url: str) -> None:
    guard = CacheGuard(redis_url, policy=Policy(ttl=100, jitter=0.0))
    whole, part = open_door(guard), open_door(guard.namespace("v2", policy=Policy(ttl=10)))
    await whole.set("k", "whole")
    await part.set("k", "part")
    assert (await whole.get("k"), await part.get("k")) == ("whole", "part")
    assert 95 < (await whole.inspect("k")).ttl_left <= 100
    assert 5 < (await part.inspect("k")).ttl_left <= 10
    await part.invalidate("k")
    assert (await whole.get("k"), await part.get("k")) == ("whole", None)
    assert whole.guard.stats() == part.guard.stats()


async def test_what_is_unset_is_inherited_from_the_next_one_up(open_door: OpenDoor, redis_url: str) -> None:
    guard = CacheGuard(redis_url, policy=Policy(ttl=100, jitter=0.0)).namespace("n", policy=Policy(null_ttl=7))
    door = open_door(guard)

    @door.cached("none")
    def none() -> None:
        return None

    @door.cached("own", ttl=50)
    def own() -> int:
        return 1

    await none()
    await own()
    await door.get_or_set("call", Loader(), ttl=20)
    await door.get_or_set("guard", Loader())
    for key, ttl in {"none": 7, "own": 50, "call": 20, "guard": 100}.items():
        assert ttl - 3 < (await door.inspect(key)).ttl_left <= ttl


async def test_set_voids_a_load_under_way(either: Door) -> None:
    loader = Loader("old")
    loader.stand_still()
    asked = asyncio.ensure_future(either.get_or_set("k", loader))
    await started(loader)
    await either.set("k", "new")
    loader.go_on()
    assert await asked == "old"
    assert await either.get("k") == "new"


@pytest.mark.parametrize("how", ["invalidate", "set", "expire"])
async def test_a_load_that_began_before_a_write_fills_no_tier(either: Door, how: str) -> None:
    await late_fill(either, either, how)


@pytest.mark.parametrize("how", ["invalidate", "set", "expire"])
async def test_a_load_that_began_before_another_guards_write_fills_no_tier(door: Door, second: Door, how: str) -> None:
    await late_fill(door, second, how)


async def late_fill(either: Door, writer: Door, how: str) -> None:
    loader = Loader("old")
    loader.stand_still()
    asked = asyncio.ensure_future(either.get_or_set("k", loader))
    await started(loader)
    if how == "set":
        await writer.set("k", "new")
    else:
        await getattr(writer, how)("k")
    loader.go_on()
    assert await asked == "old"
    assert await either.get("k", "nothing") == ("new" if how == "set" else "nothing")
    assert (await either.inspect("k")).state == ("fresh" if how == "set" else "missing")
    assert either.guard.stats().fills_refused == 1


async def test_a_reader_after_an_invalidation_joins_no_older_load(either: Door) -> None:
    loader = Loader()
    loader.stand_still()
    old = asyncio.ensure_future(either.get_or_set("k", loader))
    await started(loader)
    await either.invalidate("k")
    new = asyncio.ensure_future(either.get_or_set("k", Loader("new")))
    assert await new == "new"
    loader.go_on()
    assert await old == 1
    assert await either.get("k") == "new"


async def test_every_hit_in_redis_is_counted_with_its_age(open_door: OpenDoor, redis_url: str) -> None:
    door = open_door(CacheGuard(redis_url, policy=Policy(l1=False)))
    row = of(door, Loader())
    names = [f"row:{number}" for number in range(3)]
    await row.many([0, 1, 2])
    assert door.guard.stats().l2_hits == 0

    async def hits(verb: str, *args: Any, **options: Any) -> int:
        before = door.guard.stats()
        await getattr(row if verb in {"many", "__call__"} else door, verb)(*args, **options)
        after = door.guard.stats()
        found = after.l2_hits - before.l2_hits
        assert sum(count for _, count in after.age_at_serve) - sum(count for _, count in before.age_at_serve) == found
        return found

    assert await hits("__call__", 1) == 1
    assert await hits("many", [0, 1, 2]) == 3
    assert await hits("get", names[0]) == 1
    assert await hits("get_many", names) == 3
    assert await hits("get_or_set", names[0], Loader()) == 1
    assert await hits("get_or_set_many", names, dict.fromkeys) == 3
    await door.set("absent", None)
    nulls = door.guard.stats().null_hits
    assert await hits("get_many", ["absent", *names]) == 4
    assert await hits("get_or_set_many", ["absent"], dict.fromkeys) == 1
    assert door.guard.stats().null_hits - nulls == 2


async def test_stats_count_what_happened(door: Door) -> None:
    loader = Loader()
    row = of(door, loader)
    await row(1)
    for _ in range(3):
        await row(1)
    await row.invalidate(1)
    with door.guard.disabled():
        pass
    await row(1)
    stats = door.guard.stats()
    assert (stats.l1_hits, stats.misses, stats.loads, stats.fills, stats.invalidations) == (3, 2, 2, 2, 1)
    assert (stats.l1_entries, stats.l2_up) == (1, True)
    with pytest.raises(AttributeError):
        stats.loads = 0  # type: ignore[misc]


async def test_a_key_that_is_no_text_is_a_mistake_that_is_told(either: Door) -> None:
    wrong: Iterable[Any] = (1, None, b"k", ("k",))
    for key in wrong:
        for ask in (either.get(key), either.invalidate(key), either.get_many([key]), either.set(key, 1)):
            with pytest.raises(TypeError):
                await ask
    with pytest.raises(TypeError):
        await either.get_many("abc")
    with pytest.raises(TypeError):
        await either.ask(either.guard, "get_or_set", "k", "no function")


async def test_clients_of_redis_see_texts_that_always_end(door: Door, redis_url: str) -> None:
    await of(door, Loader())(1)
    await door.set("forever", 1, ttl=None)
    await door.set("stale", 1, rebuild="logical")
    await door.get_or_set("none", lambda: None)
    await door.invalidate("gone")
    with redis.Redis.from_url(redis_url, decode_responses=True) as client:
        keys = set(client.scan_iter())
        assert len(keys) == 5  # one of them is the namespace's marker
        for key in keys:
            assert client.type(key) == "string"
            assert client.pttl(key) > 0
