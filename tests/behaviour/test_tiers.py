"""What a read costs in round trips, what the process holds, and whose connections are used."""

from __future__ import annotations

import asyncio
import math
import pickle
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest
import redis
import redis.asyncio

from cacheguard import CacheGuard, Policy
from cacheguard.delivery.gate import Gate
from cacheguard.delivery.parts import MOST_AT_ONCE, MOST_IN_A_LOOP
from cacheguard.errors import CacheGuardError, ConfigurationError
from cacheguard.ports import Call, Reply
from tests.conftest import OpenDoor
from tests.support.doors import BlockingDoor, Cached, Door
from tests.support.faults import FaultProxy
from tests.support.loader import Loader


def of(door: Door, loader: Loader, **policy: Any) -> Cached:
    @door.cached("row:{row_id}", **policy)
    def row(row_id: int) -> Any:
        return loader(row_id)

    return row


@pytest.fixture
def watched(open_door: OpenDoor, proxy: FaultProxy) -> Door:
    return open_door(CacheGuard(proxy.url))


async def test_round_trips(watched: Door, proxy: FaultProxy) -> None:
    row = of(watched, Loader())
    await row(0)
    await row.invalidate(0)
    await watched.set("warm", 1)
    await row.refresh(0)
    await watched.touch("warm")
    await watched.expire("warm")

    async def trips(name: str, *args: Any) -> int:
        with proxy.watching() as seen:
            await getattr(row if hasattr(row, name) and name != "set" else watched, name)(*args)
        return seen.round_trips

    assert await trips("__call__", 1) == 3
    assert await trips("__call__", 1) == 0
    assert await trips("peek", 1) == 0
    assert await trips("invalidate", 1) == 1
    assert await trips("put", 5, 2) == 1
    assert await trips("__call__", 2) == 1
    assert await trips("__call__", 2) == 0
    assert await trips("expire", 2) == 1
    assert await trips("refresh", 2) == 3  # the last one for the news
    assert await trips("many", [2, 2]) == 0
    assert await trips("set_many", {f"row:{number}": number for number in range(10, 60)}) == 1
    assert await trips("many", list(range(10, 60))) == 1
    assert await trips("many", list(range(10, 60))) == 0
    assert await trips("get_many", [f"row:{number}" for number in range(10, 60)]) == 0
    assert await trips("get", "row:nothing") == 1
    assert await trips("get_many", [f"none:{number}" for number in range(50)]) == 1
    assert await trips("get_or_set_many", [f"new:{number}" for number in range(50)], dict.fromkeys) == 3
    assert await trips("touch", "row:10") == 3
    assert await trips("inspect", "row:11") == 0
    assert await trips("inspect", "row:10") == 1


async def test_what_is_too_much_for_one_round_trip_goes_in_parts(
    open_door: OpenDoor, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    door = open_door(CacheGuard(redis_url, operation_timeout=10))
    names = [f"row:{number}" for number in range(2 * MOST_AT_ONCE + 1)]
    wanted = {name: f"value of {name}" for name in names}
    asked: list[list[str]] = []
    trips = 0
    send = Gate.send

    async def counted(gate: Gate, *calls: Call, reading: bool = True) -> list[Reply]:
        nonlocal trips
        trips += 1
        return await send(gate, *calls, reading=reading)

    async def took(verb: str, *args: Any) -> tuple[int, Any]:
        before = trips
        answer = await getattr(door, verb)(*args, l1=False)
        return trips - before, answer

    def load(some: list[str]) -> dict[str, str]:
        asked.append(some)
        return {name: wanted[name] for name in some}

    monkeypatch.setattr(Gate, "send", counted)
    assert await took("get_or_set_many", names, load) == (9, wanted)  # read, lease, fill
    assert asked == [names], "one loader call has all of them"
    assert await took("get_or_set_many", names, load) == (3, wanted)
    most = MOST_AT_ONCE if isinstance(door, BlockingDoor) else MOST_IN_A_LOOP
    assert await took("set_many", dict.fromkeys(names, 1)) == (math.ceil(len(names) / most), None)
    assert await took("get_or_set_many", names, load) == (3, dict.fromkeys(names, 1))


THOUSAND = [f"row:{number}" for number in range(1_000)]
OF_THE_BUS = {"publish", "subscribe", "ping", "info", "client", "config", "auth", "hello", "select"}


def commands_run(client: redis.Redis) -> dict[str, int]:
    """How often each command was run since the statistics were set back, beside those that keep the bus going."""
    told: dict[str, Any] = client.info("commandstats")
    runs = {name.removeprefix("cmdstat_").partition("|")[0]: each["calls"] for name, each in told.items()}
    return {name: count for name, count in runs.items() if name not in OF_THE_BUS}


async def test_a_thousand_entries_are_a_thousand_keys_that_end_and_a_hit_is_two_commands(
    open_door: OpenDoor, redis_url: str
) -> None:
    door = open_door(CacheGuard(redis_url, policy=Policy(l1=False)))
    value = "v" * 100
    for at in range(0, 1_000, 100):
        keys = THOUSAND[at : at + 100]
        await door.get_or_set_many(keys, lambda names: dict.fromkeys(names, value), tags=["all"])
    with redis.Redis.from_url(redis_url) as client:
        names = set(client.scan_iter(count=1_000))
        assert len(names) == 1_000 + 2  # the markers of the tag and of the namespace
        assert all(client.pttl(name) > 0 for name in names)
        # As it lies there once its lease is gone, against the same without anything that keeps it right.
        await door.set("row:0", value)
        client.set("cg:cacheguard:e:plain", pickle.dumps(value), px=300_000)
        taken, plain = (client.memory_usage(f"cg:cacheguard:e:{key}") for key in ("row:0", "plain"))
        assert taken is not None
        assert plain is not None
        assert taken <= 1.4 * plain
        client.config_resetstat()
        assert await door.get("row:1") == value
        first = commands_run(client)  # it asks for the markers of tags that it has not known
        client.config_resetstat()
        assert await door.get("row:1") == value
        assert sum(commands_run(client).values()) <= 2 < sum(first.values())
        client.config_resetstat()
        assert len(await door.get_many(THOUSAND[1:101])) == 100
        assert sum(commands_run(client).values()) <= 3


async def test_fills_publish_nothing_and_writes_publish_once(door: Door, redis_url: str) -> None:
    def heard(listener: Any) -> list[Any]:
        messages = []
        while (message := listener.get_message(timeout=0.1)) is not None:
            if b":bus:" not in message["channel"]:  # heartbeats, which a process sends to itself
                messages.append(message["data"])
        return messages

    with redis.Redis.from_url(redis_url) as client, client.pubsub() as listener:
        listener.psubscribe("*")
        assert heard(listener) == [1]
        row = of(door, Loader())
        await row(1)
        await row(1)
        await row.many([1, 2, 3])
        await door.get_or_set_many(["a", "b"], dict.fromkeys)
        assert heard(listener) == []
        await row.invalidate(1)
        await row.refresh(1)
        await door.set("k", 1)
        assert len(heard(listener)) == 3


@pytest.mark.parametrize("eviction", ["lru", "lfu", "fifo", "random"])
async def test_the_process_holds_no_more_entries_than_it_may(
    open_door: OpenDoor, redis_url: str, eviction: Any
) -> None:
    door = open_door(CacheGuard(redis_url, l1_size=20, l1_eviction=eviction))
    row = of(door, Loader())
    for number in range(60):
        await row(number)
        assert door.guard.stats().l1_entries <= 20
    assert door.guard.stats().evictions == 40
    assert await row.many(range(60)) == list(range(1, 61))
    assert door.guard.stats().l1_entries == 20
    assert door.guard.stats().loads == 60


async def test_a_used_entry_outlives_unused_ones(open_door: OpenDoor, redis_url: str) -> None:
    for eviction, survives in (("lru", True), ("lfu", True), ("fifo", False)):
        door = open_door(CacheGuard(redis_url, l1_size=5, l1_eviction=eviction, namespace=eviction))  # type: ignore[arg-type]
        row = of(door, Loader())
        await row(0)
        for number in range(1, 20):
            await row(0)
            await row(number)
        before = door.guard.stats().l1_hits
        await row(0)
        if survives:
            assert door.guard.stats().l1_hits == before + 1
            assert door.guard.stats().l2_hits == 0
        else:
            assert door.guard.stats().l2_hits > 0


@pytest.mark.parametrize("eviction", ["lru", "lfu", "fifo", "random"])
async def test_the_process_holds_no_more_bytes_than_it_may(open_door: OpenDoor, redis_url: str, eviction: Any) -> None:
    door = open_door(CacheGuard(redis_url, l1_max_bytes=50_000, l1_eviction=eviction))
    row = of(door, Loader("x" * 5000))
    for number in range(30):
        await row(number)
        assert 0 < door.guard.stats().l1_bytes <= 50_000
    assert 5 < door.guard.stats().l1_entries <= 10
    huge = of(door, Loader("x" * 60_000))
    assert len(await huge(100)) == 60_000
    assert door.guard.stats().l1_bytes <= 50_000


async def test_memory_holds_no_more_bytes_than_it_may(open_door: OpenDoor) -> None:
    door = open_door(CacheGuard("memory://", l1_max_bytes=50_000))
    row = of(door, Loader("x" * 5000))
    for number in range(30):
        await row(number)
    assert sum([await row.peek(number) == "x" * 5000 for number in range(30)]) <= 10


async def test_without_l1_every_hit_is_one_round_trip(open_door: OpenDoor, proxy: FaultProxy) -> None:
    door = open_door(CacheGuard(proxy.url, policy=Policy(l1=False)))
    row = of(door, Loader())
    await row(1)
    with proxy.watching() as seen:
        assert [await row(1) for _ in range(5)] == [1] * 5
    assert seen.round_trips == 5
    assert door.guard.stats().l1_entries == 0


async def test_without_l2_values_stay_out_of_redis_and_only_news_goes_there(watched: Door, proxy: FaultProxy) -> None:
    row = of(watched, Loader(), l2=False)
    await row(0)  # from here on the process listens
    await row.invalidate(0)  # and the server knows the scripts
    await row.expire(0)

    async def trips(name: str, *args: Any) -> int:
        with proxy.watching() as seen:
            await getattr(row, name)(*args)
        return seen.round_trips

    assert [await trips("__call__", 1) for _ in range(3)] == [0] * 3
    assert await trips("invalidate", 1) == 1
    assert await trips("refresh", 1) == 1  # the news
    assert await trips("put", 7, 1) == 1
    assert await row(1) == 7
    assert await trips("expire", 1) == 1
    with redis.Redis.from_url(proxy.url) as client:
        assert client.keys("*row*") == []


CLIENTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "decoding": {"decode_responses": True},
    "resp3": {"protocol": 3},
    "resp3 decoding": {"protocol": 3, "decode_responses": True},
    "named": {"client_name": "mine"},
}


@pytest.mark.parametrize("settings", CLIENTS.values(), ids=CLIENTS)
async def test_the_users_clients_are_used_and_never_closed(redis_url: str, settings: dict[str, Any]) -> None:
    with redis.Redis.from_url(redis_url, **settings) as client:
        async with redis.asyncio.Redis.from_url(redis_url, **settings) as aclient:
            guard = CacheGuard(client=client, aclient=aclient, policy=Policy(l1=False))
            guard.set("k", {"a": b"\xff"})
            assert guard.get("k") == {"a": b"\xff"}
            assert await guard.aget("k") == {"a": b"\xff"}
            assert guard.get_or_set("sync", lambda: 1) == 1
            assert await guard.aget_or_set("async", lambda: 2) == 2
            assert await guard.aget_many(["k", "sync", "async"]) == {"k": {"a": b"\xff"}, "sync": 1, "async": 2}
            guard.invalidate("k")
            await guard.ainvalidate("sync")
            assert guard.get_many(["k", "sync", "async"]) == {"async": 2}
            assert guard.stats().redis_errors == 0
            await guard.aclose()
            assert client.ping()
            assert await aclient.ping()
            names = {each["name"] for each in client.client_list()}
            assert names == {settings.get("client_name", "")}


async def test_a_guard_of_one_client_says_what_the_other_door_lacks(redis_url: str) -> None:
    with redis.Redis.from_url(redis_url) as client:
        async with CacheGuard(client=client) as guard:
            assert guard.get_or_set("k", lambda: 1) == 1
            with pytest.raises(ConfigurationError, match="aclient"):
                await guard.aget("k2")
    async with redis.asyncio.Redis.from_url(redis_url) as aclient, CacheGuard(aclient=aclient) as guard:
        assert await guard.aget_or_set("k", lambda: 1) == 1
        with pytest.raises(ConfigurationError, match="client"):
            guard.get("k2")


def test_the_address_comes_from_the_environment(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CACHEGUARD_URL", redis_url)
    with CacheGuard() as guard:
        guard.set("k", 1)
    with CacheGuard(redis_url) as guard:
        assert guard.get("k") == 1
    monkeypatch.setenv("CACHEGUARD_URL", "nonsense://x")
    with pytest.raises(ConfigurationError, match="nonsense"):
        CacheGuard()
    monkeypatch.delenv("CACHEGUARD_URL")
    with CacheGuard() as guard:
        guard.set("k", 2)
        assert guard.get("k") == 2
    with CacheGuard() as guard:
        assert guard.get("k") is None


@pytest.fixture
def unwatched() -> Iterator[CacheGuard]:
    with CacheGuard("memory://") as guard:
        yield guard


def test_importing_the_library_takes_no_framework_and_no_client_along() -> None:
    code = (
        "import sys, cacheguard; print(*({'redis', 'django', 'flask', 'starlette', 'sqlalchemy'} & set(sys.modules)))"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.split() == []


async def test_warming_fills_at_a_rate_and_tells_its_progress(door: Door) -> None:
    loader = Loader()
    row = of(door, loader)
    told: list[tuple[int, int | None]] = []
    begin = time.monotonic()
    done = await door.warm(row, [(number,) for number in range(21)], rate=50, progress=lambda *at: told.append(at))
    assert 0.35 < time.monotonic() - begin < 2
    assert (done.done, done.failed) == (21, 0)
    assert told == [(number, 21) for number in range(1, 22)]
    assert loader.runs == 21
    assert await row(20) in range(1, 22)
    assert loader.runs == 21


async def test_warming_counts_failures_and_bounds_its_concurrency(door: Door) -> None:
    loader = Loader(seconds=0.01)

    @door.cached("row:{number}")
    def row(number: int) -> int:
        loader(number)
        if number % 10 == 0:
            raise ValueError(number)
        return number

    done = await door.warm(row, iter(range(40)), concurrency=3)
    assert (done.done, done.failed) == (40, 4)
    assert loader.peak <= 3


async def test_warming_reads_a_generator_and_tells_its_progress_one_at_a_time(door: Door) -> None:
    inside = [0, 0]

    def numbers() -> Iterator[int]:
        for number in range(40):
            time.sleep(0.001)
            yield number

    def progress(done: int, total: int | None) -> None:
        inside[0] += 1
        time.sleep(0.001)
        inside[1] = max(inside)
        inside[0] -= 1
        assert total is None

    done = await door.warm(of(door, Loader()), numbers(), progress=progress)
    assert (done.done, done.failed) == (40, 0)
    assert inside == [0, 1]


async def test_warming_takes_only_what_it_can_warm(door: Door) -> None:
    row = of(door, Loader())
    for options in ({"rate": 0}, {"rate": -1}, {"concurrency": 0}):
        with pytest.raises(ConfigurationError, match=next(iter(options))):
            await door.warm(row, [1], **options)
    with pytest.raises(ConfigurationError, match="decorated"):
        await door.ask(door.guard, "warm", len, [1])


def test_warming_a_coroutine_function_needs_the_other_door(unwatched: CacheGuard) -> None:
    @unwatched.cached("row:{number}")
    async def row(number: int) -> int:
        return number

    with pytest.raises(ConfigurationError, match="awarm"):
        unwatched.warm(row, [1])


async def test_a_closed_guard_says_so(door: Door) -> None:
    row = of(door, Loader())
    assert await row(1) == 1
    await door.close()
    await door.close()
    for ask in (row(1), door.get("k"), door.set("k", 1), door.invalidate("k"), door.get_or_set("k", Loader())):
        with pytest.raises(CacheGuardError, match="closed"):
            await ask


async def test_a_load_under_way_when_the_guard_closes_ends(open_door: OpenDoor, redis_url: str) -> None:
    door = open_door(CacheGuard(redis_url))
    loader = Loader(seconds=0.2)
    asked = asyncio.ensure_future(door.get_or_set("k", loader))
    assert await asyncio.to_thread(loader.started.wait, 5)
    await door.close()
    async with asyncio.timeout(5):
        outcome = (await asyncio.gather(asked, return_exceptions=True))[0]
    assert outcome in (1, 2) or isinstance(outcome, CacheGuardError)
