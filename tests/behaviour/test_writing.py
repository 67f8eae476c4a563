"""Writes that leave nothing old behind, through both doors, on a real Redis."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import pytest

from cacheguard import CacheGuard, Change, Policy, current_load
from cacheguard.errors import ConfigurationError, KeyTemplateError
from tests.conftest import OpenDoor
from tests.support.doors import Door
from tests.support.faults import Fault, FaultProxy
from tests.support.loader import Loader
from tests.support.redis_server import RedisServer

WAYS = ["key", "tag", "late tag", "clear", "fence", "delete", "double", "expire", "change", "set"]


@pytest.fixture
def elsewhere(redis_url: str) -> Iterator[CacheGuard]:
    """Another process, as far as Redis and the bus can tell."""
    with CacheGuard(redis_url) as guard:
        yield guard


async def eventually(holds: Callable[[], bool]) -> None:
    """Wait for news to travel to another process."""
    end = time.monotonic() + 5
    while not await asyncio.to_thread(holds):
        assert time.monotonic() < end
        await asyncio.sleep(0.001)


async def tell(guard: CacheGuard, way: str) -> None:
    """Say that ``row`` has changed, in one of the ways there are."""

    def in_thread() -> None:
        match way:
            case "key":
                guard.invalidate("row")
            case "tag":
                guard.invalidate_tags("red")
            case "late tag":
                guard.invalidate_tags("late")
            case "clear":
                guard.clear()
            case "expire":
                guard.expire("row")
            case "change":
                guard.apply([Change("row"), ("other", 5)])
            case "set":
                guard.set("row", "set")
            case mode:
                with guard.writing("row", mode=mode):  # type: ignore[arg-type]
                    pass

    await asyncio.to_thread(in_thread)


@pytest.mark.parametrize("where", ["here", "elsewhere"])
@pytest.mark.parametrize("way", WAYS)
async def test_a_load_that_began_before_fills_no_tier_afterwards(
    door: Door, elsewhere: CacheGuard, way: str, where: str
) -> None:
    loader = Loader()

    @door.cached("row", tags=["red"], stale_if_error=None)
    def row() -> Any:
        current_load().add_tags("late")
        return loader()

    elsewhere.get_or_set("warm", lambda: 1)  # its bus is up
    loader.stand_still()
    late = asyncio.ensure_future(row())
    assert await asyncio.to_thread(loader.started.wait, 10)
    await tell(door.guard if where == "here" else elsewhere, way)
    loader.go_on()
    assert await late == 1  # who asked before gets what was loaded before
    for guard in (door.guard, elsewhere):
        state = await asyncio.to_thread(guard.inspect, "row")
        assert state.state == ("fresh" if way == "set" else "missing")
    assert await row() == ("set" if way == "set" else 2)
    assert loader.runs == (1 if way == "set" else 2)


async def test_while_a_fence_stands_everybody_loads_and_nobody_caches(door: Door, elsewhere: CacheGuard) -> None:
    loader = Loader()

    def body(_: Any) -> None:
        assert elsewhere.get_or_set("row", loader) == 1
        assert elsewhere.get_or_set("row", loader) == 2
        assert elsewhere.inspect("row").state == "missing"

    await door.write(body, "row")
    assert elsewhere.get_or_set("row", loader) == 3
    assert elsewhere.get_or_set("row", loader) == 3


@pytest.mark.parametrize("mode", ["fence", "delete", "double"])
async def test_what_was_cached_is_gone_after_a_write_and_nothing_is_left_of_the_write(
    door: Door, elsewhere: CacheGuard, redis_server: RedisServer, mode: str
) -> None:
    elsewhere.set("row", "old")
    elsewhere.set("tagged", "old", tags=["red"])
    assert await door.get("row") == "old"
    await door.write(lambda _: None, "row", tags=["red"], mode=mode, delay="50ms")
    for guard in (elsewhere, door.guard):
        assert await asyncio.to_thread(guard.get_many, ["row", "tagged"]) == {}
    await asyncio.sleep(0.06)
    assert "cg:cacheguard:e:row" not in redis_server.entries()


async def test_a_write_that_fails_is_invalidated_too(door: Door) -> None:
    await door.set("row", "old")

    def body(_: Any) -> None:
        raise ValueError("the commit's outcome is unknown")

    with pytest.raises(ValueError, match="outcome"):
        await door.write(body, "row")
    assert await door.get("row") is None


async def test_a_cancelled_write_is_invalidated_too(redis_url: str) -> None:
    async with CacheGuard(redis_url) as guard:
        await guard.aset("row", "old")
        committed = asyncio.Event()

        async def write() -> None:
            async with guard.writing("row"):
                committed.set()
                await asyncio.sleep(60)

        task = asyncio.create_task(write())
        await committed.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await guard.aget("row") is None
        assert await guard.aget_or_set("row", lambda: "new") == "new"
        assert await guard.aget("row") == "new"


@pytest.mark.parametrize("step", ["begin", "end"])
async def test_a_writer_that_is_cancelled_while_it_tells_redis_goes_on_telling(proxy: FaultProxy, step: str) -> None:
    async with CacheGuard(proxy.url, operation_timeout=5) as guard:
        await guard.aset("row", "old")
        await guard.ainvalidate("warm")  # the script is known: its name says nothing of EVAL
        inside = asyncio.Event()

        async def write() -> None:
            async with guard.writing("row", mode="fence" if step == "begin" else "delete"):
                inside.set()

        proxy.inject(Fault.DELAY, only=b"EVALSHA", seconds=0.2)
        task = asyncio.create_task(write())
        if step == "end":
            await inside.wait()
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        proxy.heal()
        assert await guard.aget("row") is None
        assert await guard.aget_or_set("row", lambda: "new") == "new"
        assert await guard.aget("row") == "new"  # no intent is left


async def test_writes_may_be_nested_and_one_may_be_entered_again(door: Door) -> None:
    await door.set_many({"a": 1, "b": 1})
    guard = door.guard

    def blocking() -> None:
        outer = guard.writing("a", "b")
        with outer, outer, guard.writing("a"):
            assert guard.get_or_set("a", lambda: 2) == 2
        assert guard.get("a") is None
        with outer:
            pass

    async def waiting() -> None:
        outer = guard.writing("a", "b")
        async with outer, outer, guard.writing("a"):
            assert await guard.aget_or_set("a", lambda: 2) == 2
        assert await guard.aget("a") is None
        async with outer:
            pass

    await asyncio.to_thread(blocking)
    await waiting()
    assert await door.get_or_set("a", lambda: 3) == 3
    assert await door.get("a") == 3


async def test_one_object_may_guard_writes_of_many_at_a_time(redis_url: str) -> None:
    async with CacheGuard(redis_url) as guard:
        writing = guard.writing("row")
        inside = 0

        async def write(seconds: float) -> None:
            nonlocal inside
            async with writing:
                inside += 1
                await asyncio.sleep(seconds)
                assert await guard.aget_or_set("row", lambda: "within") == "within"
                assert (await guard.ainspect("row")).state == "missing"  # as long as one of them is inside
                inside -= 1

        await asyncio.gather(*(write(0.01 * number) for number in range(10)))
        assert inside == 0
        assert await guard.aget_or_set("row", lambda: "after") == "after"
        assert (await guard.ainspect("row")).state == "fresh"


async def test_a_fence_is_renewed_for_as_long_as_its_writer_lives(redis_url: str, elsewhere: CacheGuard) -> None:
    with CacheGuard(redis_url) as guard:
        with guard.writing("row", intent="300ms"):
            await asyncio.sleep(0.6)
            assert elsewhere.get_or_set("row", lambda: 1) == 1
            assert elsewhere.inspect("row").state == "missing"
        assert elsewhere.get_or_set("row", lambda: 2) == 2
        assert elsewhere.inspect("row").state == "fresh"


async def test_keys_and_tags_come_from_the_arguments_and_from_the_result(door: Door) -> None:
    guard = door.guard

    class Row:
        def __init__(self, number: int) -> None:
            self.id, self.org = number, number + 10

    @guard.invalidates(
        "user:{user_id}",
        "copy:{result.id}",
        lambda row: [f"more:{row.id}", "most"],
        tags=["org:{org}", "o:{result.org}"],
    )
    def copied(user_id: int, *, org: int = 7) -> Row:
        """Copy a user."""
        return Row(user_id + 1)

    @guard.invalidates("user:{user_id}", "copy:{result.id}", tags=[lambda row: f"o:{row.org}"])
    async def acopied(user_id: int) -> Row:
        return Row(user_id + 1)

    names = ["user:1", "copy:2", "more:2", "most"]
    await door.set_many(dict.fromkeys([*names, "user:2"], "old"))
    await door.set("of 7", 1, tags=["org:7"])
    await door.set("of 12", 1, tags=["o:12"])
    assert (await asyncio.to_thread(copied, 1)).id == 2
    assert await door.get_many([*names, "user:2", "of 7", "of 12"]) == {"user:2": "old"}
    assert (copied.__name__, copied.__doc__) == ("copied", "Copy a user.")
    await door.set_many(dict.fromkeys(names, "old"))
    await door.set("of 12", 1, tags=["o:12"])
    assert (await acopied(1)).id == 2
    assert set(await door.get_many([*names, "of 12"])) == {"more:2", "most"}


async def test_a_writing_function_that_fails_invalidates_what_its_arguments_say(door: Door) -> None:
    @door.guard.invalidates("user:{user_id}", "copy:{result.id}")
    def fail(user_id: int) -> Any:
        raise ValueError(user_id)

    await door.set_many({"user:1": 1, "copy:1": 1})
    with pytest.raises(ValueError, match="1"):
        await asyncio.to_thread(fail, 1)
    assert await door.get_many(["user:1", "copy:1"]) == {"copy:1": 1}


async def test_methods_can_invalidate(door: Door) -> None:
    guard = door.guard

    class Shop:
        @guard.invalidates("price:{product}")
        def set_price(self, product: int) -> str:
            return f"method {product}"

        @classmethod
        @guard.invalidates("price:{product}")
        def of_class(cls, product: int) -> str:
            return f"{cls.__name__} {product}"

        @guard.invalidates("price:{product}")
        @staticmethod
        def of_nobody(product: int) -> str:
            return f"static {product}"

    for call, said in ((Shop().set_price, "method 1"), (Shop.of_class, "Shop 1"), (Shop.of_nobody, "static 1")):
        await door.set("price:1", "old")
        assert await asyncio.to_thread(call, 1) == said
        assert await door.get("price:1") is None


async def test_more_may_be_named_while_the_write_goes_on(door: Door) -> None:
    await door.set_many({"a": 1, "b": 1})
    await door.set("c", 1, tags=["red"])
    await door.write(lambda write: write.also("b", tags=["red"]), "a")
    assert await door.get_many(["a", "b", "c"]) == {}


# Replicas and versions


async def test_what_is_cached_while_a_replica_may_lag_dies_when_that_is_over(door: Door) -> None:
    loader = Loader()
    ways: dict[str, Callable[[], Any]] = {
        "row": lambda: door.invalidate("row", settle="150ms"),
        "tagged": lambda: door.invalidate_tags("red", settle="150ms"),
        "written": lambda: door.write(lambda _: None, "written", settle="150ms"),
        "double": lambda: door.write(lambda _: None, "double", mode="double", delay="150ms"),
    }
    for number, (name, told) in enumerate(ways.items(), 1):
        await told()
        begin = time.monotonic()
        tags = ["red"] if name == "tagged" else []
        assert await door.get_or_set(name, loader, tags=tags) == 2 * number - 1
        if time.monotonic() - begin < 0.1:
            assert await door.get(name) == 2 * number - 1
        await asyncio.sleep(0.2)
        assert await door.get(name) is None
        assert await door.get_or_set(name, loader, tags=tags) == 2 * number
        assert (await door.inspect(name)).ttl_left > 100


async def test_what_is_older_than_a_known_version_is_answered_and_not_cached(door: Door) -> None:
    rows = {"name": "old", "version": 1}

    @door.cached("row", version=lambda row: row["version"])
    def row() -> dict[str, Any]:
        return dict(rows)

    await door.invalidate("row", version=2)
    assert (await row())["name"] == "old"
    assert (await door.inspect("row")).state == "missing"
    assert door.guard.stats().fills_old == 1
    rows |= {"name": "new", "version": 2}
    assert (await row())["name"] == "new"
    assert (await door.inspect("row")).state == "fresh"


async def test_a_loader_that_can_reads_the_primary_when_the_replica_was_behind(door: Door) -> None:
    asked: list[bool] = []

    @door.cached("row", version=lambda version: version)
    def row() -> int:
        asked.append(current_load().primary)
        return 2 if asked[-1] else 1

    await door.invalidate("row", version=2)
    assert await row() == 2
    assert asked == [False, True]
    assert await row() == 2
    assert asked == [False, True]


async def test_the_newest_of_several_values_set_by_hand_stays(door: Door, elsewhere: CacheGuard) -> None:
    await door.set("row", "three", version=3)
    elsewhere.set("row", "two", version=2)
    assert await door.get("row") == elsewhere.get("row") == "three"
    elsewhere.set("row", "four", version=4)
    await eventually(lambda: door.guard.get("row") == "four")


async def test_changes_may_be_repeated_and_out_of_order(door: Door, elsewhere: CacheGuard) -> None:
    await door.get_or_set("row", lambda: "five", version=lambda _: 5)
    assert elsewhere.get("row") == "five"
    assert await door.apply([("row", 3), Change("row", version=5), ("row", 4), Change(tag="red")]) == 2
    assert elsewhere.get("row") == "five"  # no news
    assert await door.get("row") == "five"
    assert await door.apply([("row", 6), ("row", 5)]) == 1
    await eventually(lambda: elsewhere.get("row") is None)
    assert await door.get_or_set("row", lambda: "late five", version=lambda _: 5) == "late five"
    assert await door.get("row") is None
    assert await door.get_or_set("row", lambda: "six", version=lambda _: 6) == "six"
    assert await door.get("row") == "six"


async def test_a_version_function_that_fails_costs_the_cache_not_the_value(door: Door) -> None:
    assert await door.get_or_set("row", lambda: "text", version=lambda row: row["version"]) == "text"
    assert await door.get("row") is None
    assert await door.get_or_set("none", lambda: None, version=lambda row: row["version"]) is None
    assert (await door.inspect("none")).state == "null"


# What it costs


async def test_round_trips_of_writes(open_door: OpenDoor, proxy: FaultProxy) -> None:
    door = open_door(CacheGuard(proxy.url))
    keys = [f"row:{number}" for number in range(50)]
    await door.get_or_set_many(keys, dict.fromkeys, tags=["red", "green"])
    await door.write(lambda _: None, *keys, tags=["red"])
    await door.get("nothing")  # in an event loop, readings have a connection of their own

    async def trips(work: Any) -> int:
        with proxy.watching() as seen:
            await work
        return seen.round_trips

    assert await trips(door.invalidate(*keys)) == 1
    assert await trips(door.invalidate_tags("red", "green")) == 1
    assert await trips(door.clear()) == 1
    # A version counts under the namespace as it is now: after `clear`, one round trip more tells what it is called.
    assert await trips(door.apply([(key, 1) for key in keys])) == 2
    # The news of the `clear` may come in between, and cost one more, once.
    assert 1 in [await trips(door.apply([(key, version) for key in keys])) for version in (2, 3)]
    assert await trips(door.invalidate("one", version=1)) == 1
    assert await trips(door.write(lambda _: None, *keys, tags=["red"])) == 2
    assert await trips(door.write(lambda _: None, *keys, mode="delete")) == 1
    assert await trips(door.write(lambda _: None, *keys, mode="double")) == 2
    await door.set("row", 1, tags=["red"])
    assert await trips(door.set("row", 1, tags=["red"])) == 1
    assert await trips(door.get_or_set("other", lambda: 1, tags=["red"])) == 3


# What cannot work


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda guard: guard.writing("k", mode="fenced"), "mode must be"),
        (lambda guard: guard.writing("k", settle=-1), "settle"),
        (lambda guard: guard.writing("k", settle="2d"), "settle must be at most a day"),
        (lambda guard: guard.writing("k", intent=0), "intent"),
        (lambda guard: guard.writing(1), "a key must be text"),
        (lambda guard: guard.writing("k", tags="red"), "must be several texts"),
        (lambda guard: guard.writing("k", tags=[""]), "must not be empty"),
        (lambda guard: guard.writing("k", version=1.5), "version must be"),
        (lambda guard: guard.invalidate("k", version=datetime(2026, 1, 1)), "time zone"),  # noqa: DTZ001 - that is the point
        (lambda guard: guard.invalidate_tags(1), "a tag must be text"),
        (lambda guard: guard.apply([("k",)]), "a change is"),
        (lambda guard: guard.apply([(1, 2)]), "a key must be text"),
        (lambda guard: Change(), "a key or a tag"),
        (lambda guard: Change("k", "t"), "a key or a tag"),
        (lambda guard: Change("k", version="x"), "version must be"),
        (lambda guard: guard.invalidates(), "needs keys or tags"),
        (lambda guard: guard.invalidates("k", tags="red")(len), "must be a list"),
        (lambda guard: guard.invalidates("user:{nobody}")(lambda user_id: None), "is no parameter"),
        (lambda guard: guard.invalidates(5)(lambda user_id: None), "templates or functions"),
        (lambda guard: guard.invalidates("k", version=5)(lambda: None), "version must be a function"),
        (lambda guard: guard.invalidates("k")(_generator), "is a generator"),
        (lambda guard: guard.invalidates("k")(5), "only functions"),
        (lambda guard: guard.cached("k", version=5), "version must be a function"),
        (lambda guard: guard.get_or_set("k", int, tags="red"), "must be several texts"),
        (lambda guard: current_load().add_tags(5), "a tag must be text"),  # type: ignore[arg-type]
        (lambda guard: CacheGuard(audit=2), "audit must be a share"),
        (lambda guard: CacheGuard(outbox=5), "outbox must be the path"),  # type: ignore[arg-type]
        (lambda guard: CacheGuard("redis://localhost", outbox="/no/such/directory/x.db"), "outbox='/no/such"),
    ],
)
def test_what_cannot_work_is_said_by_its_name(wrong: Any, message: str) -> None:
    with (
        CacheGuard("memory://") as guard,
        pytest.raises((ConfigurationError, KeyTemplateError, TypeError, ValueError), match=message),
    ):
        wrong(guard)


def _generator() -> Iterator[int]:
    yield 1


async def test_the_memory_guard_keeps_the_same_promises() -> None:
    now = datetime.now(UTC)
    async with CacheGuard("memory://", policy=Policy(l1_ttl="1ms")) as guard:
        guard.get_or_set("row", lambda: 1, tags=["red"])
        guard.invalidate_tags("red")
        assert guard.get("row") is None
        with guard.writing("row", version=now):
            assert guard.get_or_set("row", lambda: 2) == 2
        assert guard.get("row") is None
        child = guard.namespace("child")
        child.set("row", 3)
        guard.set("row", 3)
        child.clear()
        assert (child.get("row"), guard.get("row")) == (None, 3)
        child.set("row", 4)
        guard.clear()
        await asyncio.sleep(0.01)
        assert (child.get("row"), guard.get("row")) == (None, None)
