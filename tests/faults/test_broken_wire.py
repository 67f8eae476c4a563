"""Replies that get lost, come in halves, come late or are no replies: readers go on, nothing stale is left behind."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Iterator
from typing import Any

import pytest

from cacheguard import CacheGuard, Policy
from cacheguard.errors import Unreachable
from cacheguard.protocol.calls import FILL, INVALIDATE, LEASE
from tests.conftest import OpenDoor
from tests.support.doors import Cached, Door, well_again
from tests.support.faults import Fault, FaultProxy
from tests.support.loader import Loader

SHAS = {
    "LEASE": LEASE("k")().script.sha.encode(),
    "FILL": FILL("k")().script.sha.encode(),
    "INVALIDATE": INVALIDATE("k")().script.sha.encode(),
    "READ": b"MGET",
}
STEPS = ["READ", "LEASE", "FILL"]
LIES = [Fault.LOSE_REPLY, Fault.HALF_REPLY, Fault.GARBAGE]


def of(door: Door, loader: Loader, **policy: Any) -> Cached:
    @door.cached("row:{row_id}", **policy)
    def row(row_id: int) -> Any:
        return loader(row_id)

    return row


@pytest.fixture
def door(open_door: OpenDoor, proxy: FaultProxy) -> Door:
    """A guard behind the wire, warm: connected, its scripts known."""
    return open_door(CacheGuard(proxy.url))


async def warm_up(door: Door) -> None:
    await of(door, Loader())(0)
    await of(door, Loader()).invalidate(0)


@pytest.fixture
def elsewhere(redis_url: str) -> Iterator[CacheGuard]:
    """Another process' eyes, past the broken wire."""
    with CacheGuard(redis_url, policy=Policy(l1=False)) as guard:
        yield guard


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("fault", LIES)
async def test_one_broken_reply_of_a_read_changes_nothing(
    door: Door, proxy: FaultProxy, elsewhere: CacheGuard, fault: Fault, step: str
) -> None:
    await warm_up(door)
    loader = Loader()
    row = of(door, loader)
    proxy.inject(fault, times=1, only=SHAS[step])
    assert await row(1) == 1
    assert proxy.struck == 1
    assert await row(1) == 1
    assert loader.runs == 1
    if fault is Fault.LOSE_REPLY:
        assert elsewhere.get("row:1") == 1


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("fault", LIES)
async def test_a_step_whose_replies_all_break_costs_no_answer(
    door: Door, proxy: FaultProxy, fault: Fault, step: str
) -> None:
    await warm_up(door)
    loader = Loader()
    row = of(door, loader)
    proxy.inject(fault, only=SHAS[step])
    assert await row(1) == 1
    assert proxy.struck >= 1
    proxy.heal()
    assert await row(2) == 2


async def test_a_lease_whose_reply_comes_too_late_keeps_nobody_waiting(
    door: Door, proxy: FaultProxy, elsewhere: CacheGuard
) -> None:
    await warm_up(door)
    proxy.inject(Fault.DELAY, only=SHAS["LEASE"], seconds=0.5)
    assert await door.get_or_set("k", Loader("value"), l1=False) == "value"
    assert await door.get_or_set_many(["a", "b"], lambda keys: dict.fromkeys(keys, 1), l1=False) == {"a": 1, "b": 1}
    proxy.heal()
    begin = time.monotonic()
    assert await door.get("other") is None
    for key in ("k", "a", "b"):
        assert await asyncio.to_thread(elsewhere.get_or_set, key, lambda: "theirs") == "theirs"
    assert time.monotonic() - begin < 1


async def test_a_fill_whose_reply_comes_too_late_has_happened(
    door: Door, proxy: FaultProxy, elsewhere: CacheGuard
) -> None:
    await warm_up(door)
    proxy.inject(Fault.DELAY, only=SHAS["FILL"], seconds=0.5)
    assert await door.get_or_set("k", Loader("value")) == "value"
    proxy.heal()
    assert elsewhere.get("k") == "value"


@pytest.mark.parametrize("fault", LIES)
async def test_a_broken_reply_to_an_invalidation_is_made_good(
    door: Door, proxy: FaultProxy, elsewhere: CacheGuard, fault: Fault
) -> None:
    loader = Loader()
    row = of(door, loader)
    assert await row(1) == 1
    await row.invalidate(2)
    proxy.inject(fault, only=SHAS["INVALIDATE"])
    await row.invalidate(1)
    proxy.heal()
    assert await row(1) == 2
    assert elsewhere.get("row:1") == 2
    assert door.guard.stats().invalidations_queued == 0


@pytest.mark.parametrize("fault", [Fault.REFUSE, Fault.BLACKHOLE])
async def test_an_invalidation_without_redis_is_delivered_before_anything_is_read_again(
    door: Door, proxy: FaultProxy, elsewhere: CacheGuard, fault: Fault
) -> None:
    loader = Loader()
    row = of(door, loader)
    assert sorted(await asyncio.gather(row(1), row(2))) == [1, 2]
    proxy.inject(fault)
    await row.invalidate(1)
    await door.invalidate("row:2")
    assert door.guard.stats().invalidations_queued == 2
    assert not door.guard.stats().l2_up
    assert await row(1) == 3
    proxy.heal()
    await well_again(door.guard)
    assert await row(2) == 4
    assert door.guard.stats().invalidations_queued == 0
    assert elsewhere.get("row:1") is None
    assert elsewhere.get("row:2") == 4


async def test_what_is_owed_to_redis_is_not_paid_to_the_process(
    door: Door, proxy: FaultProxy, elsewhere: CacheGuard
) -> None:
    loader = Loader()
    row = of(door, loader)
    assert await row(1) == 1
    proxy.inject(Fault.REFUSE)
    await row.invalidate(1)

    @door.cached("here:{number}", l2=False)
    def here(number: int) -> int:
        return number

    assert await here(1) == 1
    proxy.heal()
    assert await row(1) == 2
    assert elsewhere.get("row:1") == 2


@pytest.mark.parametrize("how", ["set", "put", "expire", "touch", "set_many"])
async def test_a_write_without_redis_leaves_no_older_value(
    door: Door, proxy: FaultProxy, elsewhere: CacheGuard, how: str
) -> None:
    loader = Loader()
    row = of(door, loader)
    assert await row(1) == 1
    proxy.inject(Fault.REFUSE)
    match how:
        case "set":
            await door.set("row:1", 7)
        case "put":
            await row.put(7, 1)
        case "expire":
            await row.expire(1)
        case "set_many":
            await door.set_many({"row:1": 7, "x": 8})
        case _:
            assert await door.touch("row:1") is False
    proxy.heal()
    assert await row(1) == (1 if how == "touch" else 2)
    assert elsewhere.get("row:1") == (1 if how == "touch" else 2)


async def test_on_unreachable_raise_says_so_and_queues_all_the_same(
    open_door: OpenDoor, proxy: FaultProxy, elsewhere: CacheGuard
) -> None:
    door = open_door(CacheGuard(proxy.url, on_unreachable="raise"))
    row = of(door, Loader())
    assert await row(1) == 1
    proxy.inject(Fault.REFUSE)
    with pytest.raises(Unreachable):
        await row.invalidate(1)
    with pytest.raises(Unreachable):
        await door.invalidate("row:2")
    with pytest.raises(Unreachable):
        await door.set("row:3", 3)
    assert await row(4) == 2  # reads never raise
    proxy.heal()
    await well_again(door.guard)
    assert await row(1) == 3
    assert elsewhere.get("row:1") == 3


@pytest.mark.parametrize("fault", [Fault.REFUSE, Fault.BLACKHOLE])
async def test_without_redis_readers_of_one_key_share_one_load(door: Door, proxy: FaultProxy, fault: Fault) -> None:
    loader = Loader(seconds=0.1)
    row = of(door, loader)
    proxy.inject(fault)
    assert await asyncio.gather(*(row(1) for _ in range(30))) == [1] * 30
    assert loader.runs == 1
    assert await row(1) == 1
    assert loader.runs == 1


async def test_without_redis_an_entry_of_the_process_outlives_its_time_by_stale_if_error(
    door: Door, proxy: FaultProxy
) -> None:
    loader = Loader()
    row = of(door, loader, ttl=0.2, jitter=0.0, stale_if_error=60)
    assert await row(1) == 1
    proxy.inject(Fault.REFUSE)
    await asyncio.sleep(0.25)
    assert await row(1) == 1
    assert door.guard.stats().stale_hits == 1
    await row.invalidate(1)
    assert await row(1) == 2


async def test_a_cut_connection_is_not_noticed(door: Door, proxy: FaultProxy) -> None:
    loader = Loader()
    row = of(door, loader, l1=False)
    assert await row(1) == 1
    for _ in range(5):
        proxy.cut()
        assert await row(1) == 1
    assert loader.runs == 1
    assert door.guard.stats().redis_errors == 0


async def test_overlapping_reads_of_many_keys_survive_a_broken_wire(door: Door, proxy: FaultProxy) -> None:
    await warm_up(door)
    for fault in (*LIES, Fault.REFUSE):
        proxy.inject(fault)
        found = await door.get_or_set_many(["a", "b"], lambda keys: {key: key for key in keys})
        assert found == {"a": "a", "b": "b"}
        await door.invalidate("a", "b")
        proxy.heal()


async def cancelled_reads(guard: CacheGuard, number: int, rounds: random.Random) -> int:
    """Read keys of which each has one right answer, cancelling at random; the wrong answers."""
    wrong = cancelled = 0

    async def read(key: int) -> bool:
        if key % 3 == 0:
            names = [f"{key}", f"{key + 1}"]
            found = await guard.aget_or_set_many(names, lambda keys: {each: each for each in keys}, l1=False)
            return found == dict(zip(names, names, strict=True))
        value: str = await guard.aget_or_set(f"{key}", lambda: f"{key}", l1=False)
        return value == f"{key}"

    for _ in range(number // 5):
        tasks = [asyncio.ensure_future(read(rounds.randrange(30))) for _ in range(20)]
        await asyncio.sleep(rounds.random() * 0.02)
        for task in tasks[::2]:
            task.cancel()
        for outcome in await asyncio.gather(*tasks, return_exceptions=True):
            if isinstance(outcome, asyncio.CancelledError):
                cancelled += 1
            else:
                wrong += outcome is not True
        if rounds.random() < 0.3:
            await guard.ainvalidate(f"{rounds.randrange(30)}")
    assert cancelled >= number // 5
    return wrong


async def test_cancelled_readers_never_mix_up_replies(proxy: FaultProxy) -> None:
    async with CacheGuard(proxy.url, operation_timeout=5) as guard:
        proxy.inject(Fault.DELAY, seconds=0.004)
        assert await cancelled_reads(guard, 500, random.Random(7)) == 0
        assert proxy.connections <= 4  # readings, all else, the bus, and its heartbeats


@pytest.mark.chaos
async def test_ten_thousand_cancelled_readers_never_mix_up_replies(proxy: FaultProxy) -> None:
    async with CacheGuard(proxy.url, operation_timeout=5) as guard:
        proxy.inject(Fault.DELAY, seconds=0.002)
        assert await cancelled_reads(guard, 10_000, random.Random(11)) == 0
        assert proxy.connections <= 4  # readings, all else, the bus, and its heartbeats


async def test_an_old_value_that_arrives_after_an_invalidation_stays_out_of_the_process(proxy: FaultProxy) -> None:
    with CacheGuard(proxy.url, operation_timeout=5) as guard:
        guard.set("k", "old")
        guard.invalidate("warm")  # from here on the script travels by its name, which does not say MGET
        proxy.inject(Fault.DELAY, only=b"MGET", seconds=0.3)
        late = asyncio.ensure_future(asyncio.to_thread(guard.get, "k"))
        await asyncio.sleep(0.1)
        await asyncio.to_thread(guard.invalidate, "k")
        assert await late == "old"  # it asked before the invalidation
        proxy.heal()
        assert guard.get("k") is None
