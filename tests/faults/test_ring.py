"""Several plain Redis nodes that share the keys among them: `redis+ring://`."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cacheguard import CacheGuard, Policy
from cacheguard.errors import ConfigurationError, Unreachable
from cacheguard.servers.ring import Ring
from tests.conftest import OpenDoor
from tests.support.doors import AsyncDoor, Door
from tests.support.fleet import Process
from tests.support.loader import Loader
from tests.support.redis_server import RedisServer
from tests.support.rings import RingOfServers, name_of

ROWS = [f"row:{number}" for number in range(40)]


@pytest.fixture
def ring_door(open_door: OpenDoor, ring: RingOfServers) -> Door:
    return open_door(CacheGuard(ring.url()))


@pytest.fixture
def elsewhere(ring: RingOfServers) -> Iterator[CacheGuard]:
    """Another process, which names the nodes in another order."""
    with CacheGuard(ring.url(ring.servers[::-1])) as guard:
        yield guard


async def until(holds: Callable[[], Any], seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not await asyncio.to_thread(holds):
        assert time.monotonic() < deadline, "it did not become true"
        await asyncio.sleep(0.02)


async def test_values_are_spread_and_read_by_everybody_whatever_the_order_of_the_nodes(
    ring_door: Door, ring: RingOfServers, elsewhere: CacheGuard
) -> None:
    loader = Loader()
    assert await ring_door.get_or_set("row:1", lambda: loader(1)) == 1
    batches: list[list[str]] = []

    def load(keys: list[str]) -> dict[str, str]:
        batches.append(keys)
        return dict.fromkeys(keys, "many")

    values = await ring_door.get_or_set_many(ROWS, load)
    assert values == dict.fromkeys(ROWS, "many") | {"row:1": 1}
    assert len(batches) == 1
    assert await asyncio.to_thread(elsewhere.get_many, ROWS) == values
    assert await asyncio.to_thread(elsewhere.get_or_set, "row:2", lambda: "again") == "many"
    for server in ring.servers:
        here = ring.texts_of(server, ROWS)
        assert here
        assert server.entries() == sorted(f"cg:cacheguard:e:{text}" for text in here)
    stats = ring_door.guard.stats()
    assert (stats.redis_errors, stats.fills, stats.l2_up) == (0, len(ROWS), True)


async def test_an_invalidation_reaches_every_process_whatever_the_node(ring_door: Door, elsewhere: CacheGuard) -> None:
    await ring_door.set_many(dict.fromkeys(ROWS, "old"))
    await until(lambda: elsewhere.get_many(ROWS) and elsewhere.stats().bus_up)
    assert len(await asyncio.to_thread(elsewhere.get_many, ROWS)) == len(ROWS)
    assert {elsewhere.inspect(row).tier for row in ROWS} == {"l1"}
    await ring_door.invalidate(*ROWS)
    assert await ring_door.get_many(ROWS) == {}
    await until(lambda: elsewhere.stats().bus_messages >= len(ROWS))
    assert await asyncio.to_thread(elsewhere.get_many, ROWS) == {}


async def test_a_tag_voids_entries_of_every_node(ring_door: Door, elsewhere: CacheGuard) -> None:
    for row in ROWS:
        await ring_door.get_or_set(row, lambda: "old", tags=["all"])
    assert len(await asyncio.to_thread(elsewhere.get_many, ROWS)) == len(ROWS)
    await ring_door.invalidate_tags("all", "other")
    assert await ring_door.get_many(ROWS) == {}
    assert await ring_door.get_or_set(ROWS[0], lambda: "new", tags=["all"]) == "new"
    await until(lambda: elsewhere.get_many(ROWS) == {ROWS[0]: "new"})


async def test_a_tag_that_only_the_loader_knows_is_claimed_on_the_node_of_its_entry(ring_door: Door) -> None:
    from cacheguard import current_load

    def load() -> str:
        current_load().add_tags("late")
        return "old"

    for row in ROWS:
        assert await ring_door.get_or_set(row, load) == "old"
    assert ring_door.guard.stats().fills == len(ROWS)
    await ring_door.invalidate_tags("late")
    assert await ring_door.get_many(ROWS) == {}


async def test_a_batch_with_tags_fills_every_node_and_its_tag_voids_them(ring_door: Door, ring: RingOfServers) -> None:
    await ring_door.get_or_set_many(ROWS, lambda keys: dict.fromkeys(keys, "old"), tags=["batch"])
    assert ring_door.guard.stats().fills == len(ROWS)
    assert all(server.entries() for server in ring.servers)
    await ring_door.invalidate_tags("batch")
    assert await ring_door.get_many(ROWS) == {}


async def test_a_namespace_is_cleared_on_every_node(ring_door: Door, elsewhere: CacheGuard) -> None:
    child = ring_door.guard.namespace("child")
    await ring_door.ask(child, "set_many", dict.fromkeys(ROWS, "inner"))
    await ring_door.set_many(dict.fromkeys(ROWS, "outer"))
    await ring_door.ask(child, "clear")
    assert await ring_door.ask(child, "get_many", ROWS) == {}
    assert len(await ring_door.get_many(ROWS)) == len(ROWS)
    await ring_door.clear()
    assert await ring_door.get_many(ROWS) == {}
    await until(lambda: elsewhere.get_many(ROWS) == {})


async def test_a_fence_stands_on_the_node_of_each_key(ring_door: Door, elsewhere: CacheGuard) -> None:
    await ring_door.set_many(dict.fromkeys(ROWS, "old"))
    seen: list[Any] = []

    def write(_: object) -> None:
        seen.append(elsewhere.get_or_set_many(ROWS, lambda keys: dict.fromkeys(keys, "meanwhile")))
        seen.append(elsewhere.get_many(ROWS))

    await ring_door.write(write, *ROWS)
    assert seen == [dict.fromkeys(ROWS, "meanwhile"), {}]  # loaded, and nothing of it is kept
    assert await ring_door.get_or_set_many(ROWS, lambda keys: dict.fromkeys(keys, "new")) == dict.fromkeys(ROWS, "new")


async def test_what_is_put_by_hand_is_one_step_on_its_node(ring_door: Door, elsewhere: CacheGuard) -> None:
    guard = ring_door.guard
    for row in ROWS[:12]:
        assert await ring_door.ask(guard, "add", row, 0)
        assert not await asyncio.to_thread(elsewhere.add, row, 1)
        assert await ring_door.ask(guard, "update", row, lambda value: value + 5) == 5
        assert await ring_door.touch(row, ttl="1h")
    await ring_door.expire(ROWS[0])
    assert (await ring_door.inspect(ROWS[0])).state == "stale"
    assert (await ring_door.inspect(ROWS[1])).ttl_left > 3000
    assert await ring_door.ask(guard, "remove", *ROWS) == 11
    assert await ring_door.get_many(ROWS) == {}


async def test_a_scan_goes_through_all_nodes_and_is_understood_by_all_processes(
    ring_door: Door, elsewhere: CacheGuard
) -> None:
    await ring_door.set_many(dict.fromkeys(ROWS, 1))
    found, cursor, mine = set[str](), "", True
    while True:  # page by page, each from another process than the one before
        page, cursor = await (
            ring_door.ask(ring_door.guard, "scan", "row:*", cursor=cursor, count=5)
            if mine
            else asyncio.to_thread(elsewhere.scan, "row:*", cursor=cursor, count=5)
        )
        found.update(page)
        mine = not mine
        if not cursor:
            break
    assert found == set(ROWS)


async def test_a_bloom_filter_lives_on_one_node(ring_door: Door, ring: RingOfServers, elsewhere: CacheGuard) -> None:
    mine, theirs = (guard.bloom("ids", capacity=1000) for guard in (ring_door.guard, elsewhere))
    await ring_door.ask(mine, "rebuild", range(100))
    assert not await asyncio.to_thread(theirs.absent, 5)
    assert await asyncio.to_thread(theirs.absent, "nobody")
    await ring_door.ask(mine, "add", "somebody")
    assert not await asyncio.to_thread(theirs.absent, "somebody")
    assert sum(any("{b:" in key for key in server.command("KEYS", "*")) for server in ring.servers) == 1


def test_a_client_is_for_the_node_of_a_key(ring: RingOfServers) -> None:
    with CacheGuard(ring.url()) as guard:
        with pytest.raises(ConfigurationError, match="key must say"):
            guard.new_client()
        for row in ROWS[:8]:
            guard.set(row, 1)
            with guard.new_client(key=f"cg:cacheguard:e:{row}") as client:
                assert client.exists(f"cg:cacheguard:e:{row}") == 1


def test_one_load_in_the_fleet_per_key(ring: RingOfServers, elsewhere: CacheGuard) -> None:
    from concurrent.futures import ThreadPoolExecutor

    loader = Loader("loaded", seconds=0.1)
    with CacheGuard(ring.url()) as guard, ThreadPoolExecutor(16) as threads:
        for row in ROWS[:3]:
            asked = [threads.submit(each.get_or_set, row, lambda: loader(1)) for each in (guard, elsewhere) * 8]
            assert {each.result() for each in asked} == {"loaded"}
    assert loader.runs == 3


def test_an_event_loop_asks_its_nodes_side_by_side(ring: RingOfServers) -> None:
    async def read(guard: CacheGuard) -> float:
        await guard.aget_many(ROWS)
        begin = time.monotonic()
        await guard.aget_many(ROWS)
        return time.monotonic() - begin

    with CacheGuard(ring.url(), policy=Policy(l1=False), operation_timeout=5) as guard:
        for server in ring.servers:
            server.command("CLIENT", "PAUSE", 1, "WRITE")
        plain = asyncio.run(read(guard))
        assert plain < 5


# What is below breaks nodes.


async def test_a_dead_node_touches_its_own_keys_only(
    ring_door: Door, open_door: OpenDoor, ring: RingOfServers, elsewhere: CacheGuard
) -> None:
    door = ring_door
    await door.set_many(dict.fromkeys(ROWS, "cached"))
    victim = ring.home_of(ROWS[0])
    lost = ring.texts_of(victim, ROWS)
    await until(lambda: elsewhere.get_many(ROWS[:1]) and elsewhere.stats().bus_up)
    victim.kill()
    loads: list[list[str]] = []

    def load(keys: list[str]) -> dict[str, str]:
        loads.append(sorted(keys))
        return dict.fromkeys(keys, "loaded")

    cold = open_door(CacheGuard(ring.url(), policy=Policy(l1=False)))
    values = await cold.get_or_set_many(ROWS, load)
    assert values == {row: "loaded" if row in lost else "cached" for row in ROWS}
    assert loads == [sorted(lost)]  # one call for all of them
    stats = cold.guard.stats()
    assert stats.redis_errors + stats.l2_skips == 1  # nobody asks for leases where nobody answers
    assert await cold.get_or_set(lost[0], lambda: "alone") == "alone"
    assert await cold.get(ROWS[0]) is None
    assert len(await cold.get_many(ROWS)) == len(ROWS) - len(lost)
    assert not cold.guard.stats().l2_up
    others = [row for row in ROWS if row not in lost]
    begin = time.monotonic()
    for row in others:  # none of them is held up by what is owed to the dead one
        await door.invalidate(row, lost[0])
        assert await door.get_or_set(row, lambda: "new") == "new"
    assert time.monotonic() - begin < 10
    assert door.guard.stats().invalidations_queued == 1
    # The in-process tier goes on: the dead node can tell nobody anything.
    await until(lambda: elsewhere.get(others[0]) == "new" and elsewhere.inspect(others[0]).tier == "l1")


async def test_what_is_owed_to_a_node_is_delivered_before_it_is_read(
    ring_door: Door, ring: RingOfServers, elsewhere: CacheGuard
) -> None:
    door = ring_door
    await door.get_or_set_many(ROWS, lambda keys: dict.fromkeys(keys, "old"), tags=["red"])
    victim = ring.home_of(ROWS[0])
    mine = ring.texts_of(victim, ROWS)
    victim.freeze()
    await door.invalidate(mine[0])
    await door.invalidate_tags("red")
    assert await door.get_or_set(mine[1], lambda: "loaded") == "loaded"
    assert door.guard.stats().invalidations_queued == 2
    victim.thaw()
    assert await door.get_or_set(mine[0], lambda: "new") == "new"
    await until(lambda: door.guard.stats().invalidations_queued == 0)
    async with asyncio.timeout(10):
        while await asyncio.to_thread(elsewhere.get_many, ROWS) != {mine[0]: "new"}:
            # Before the way was found open again, what was loaded stayed with its reader.
            assert await door.get_or_set(mine[0], lambda: "new") == "new"
            await asyncio.sleep(0.02)
    assert elsewhere.stats().l2_up
    others = [row for row in ROWS if row not in mine[:2]]  # the second is in L1, as when the only Redis is away
    assert await door.get_many(others) == {}


async def test_a_node_that_comes_back_empty_is_filled_again(ring_door: Door, ring: RingOfServers) -> None:
    door = ring_door
    await door.set_many(dict.fromkeys(ROWS, "old"))
    victim = ring.home_of(ROWS[0])
    mine = ring.texts_of(victim, ROWS)
    victim.restart()
    assert await door.get_or_set_many(mine, lambda keys: dict.fromkeys(keys, "new")) == dict.fromkeys(mine, "new")
    assert victim.entries() == sorted(f"cg:cacheguard:e:{text}" for text in mine)
    stats = door.guard.stats()
    assert stats.invalidations_queued == 0
    assert stats.l2_up


async def test_l1_hears_of_what_others_invalidate_after_a_node_was_away(
    ring: RingOfServers, elsewhere: CacheGuard
) -> None:
    with CacheGuard(ring.url()) as writer:
        writer.set_many(dict.fromkeys(ROWS, "old"))
        await until(lambda: len(elsewhere.get_many(ROWS)) == len(ROWS) and elsewhere.stats().bus_up)
        victim = ring.home_of(ROWS[0])
        others = [row for row in ROWS if ring.home_of(row) is not victim]
        elsewhere.get_many(ROWS)
        gaps = elsewhere.stats().bus_gaps
        victim.restart()
        await until(lambda: elsewhere.stats().bus_gaps > gaps and elsewhere.stats().bus_up)
        # What came from the other nodes is still there: their buses have missed nothing.
        assert {elsewhere.inspect(row).tier for row in others} == {"l1"}
        assert elsewhere.inspect(ROWS[0]).tier != "l1"
        writer.set_many(dict.fromkeys(ROWS, "new"))
        await until(lambda: elsewhere.get_many(ROWS) == dict.fromkeys(ROWS, "new"))
        writer.invalidate(*ROWS)
        await until(lambda: elsewhere.get_many(ROWS) == {})


@pytest.mark.parametrize("when", ["before the leases", "before the fills"])
def test_a_full_node_fails_its_own_fills_only(ring: RingOfServers, when: str) -> None:
    victim = ring.home_of(ROWS[0])
    mine = ring.texts_of(victim, ROWS)

    def fill_up() -> None:
        victim.command("CONFIG", "SET", "maxmemory", "1")

    def load(keys: list[str]) -> dict[str, int]:
        if when == "before the fills":
            fill_up()
        return dict.fromkeys(keys, 1)

    with CacheGuard(ring.url(), policy=Policy(l1=False)) as guard:
        warm = [f"warm:{number}" for number in range(40)]
        guard.get_or_set_many(warm, lambda keys: dict.fromkeys(keys, 0))
        if when == "before the leases":
            fill_up()
        assert guard.get_or_set_many(ROWS, load) == dict.fromkeys(ROWS, 1)
        victim.command("CONFIG", "SET", "maxmemory", "0")
        assert sorted(guard.get_many(ROWS)) == sorted(set(ROWS) - set(mine))
        assert guard.stats().fills == len(warm) + len(ROWS) - len(mine)
        assert guard.stats().fills_failed == (len(mine) if when == "before the fills" else 0)
        assert guard.get_or_set(mine[0], lambda: 2) == 2  # its lease was given back


def test_a_node_that_dies_between_read_and_lease_costs_no_second_call_of_the_loader(
    ring: RingOfServers, monkeypatch: pytest.MonkeyPatch
) -> None:
    victim, honest = ring.home_of(ROWS[0]), Ring.read_many
    loads: list[int] = []

    async def read_many(self: Ring, *args: Any, **near: Any) -> Any:
        found = await honest(self, *args, **near)
        victim.kill()
        return found

    def load(keys: list[str]) -> dict[str, str]:
        loads.append(len(keys))
        return dict.fromkeys(keys, "loaded")

    with CacheGuard(ring.url()) as guard:
        guard.get("warm")
        monkeypatch.setattr(Ring, "read_many", read_many)
        assert guard.get_or_set_many(ROWS, load) == dict.fromkeys(ROWS, "loaded")
        assert loads == [len(ROWS)]


async def test_what_is_put_where_nobody_answers_leaves_the_rest_stored(
    open_door: OpenDoor, ring: RingOfServers
) -> None:
    door = open_door(CacheGuard(ring.url(), policy=Policy(l1=False), on_unreachable="raise"))
    await door.set_many(dict.fromkeys(ROWS, "old"))
    victim = ring.home_of(ROWS[0])
    lost = ring.texts_of(victim, ROWS)
    victim.freeze()
    with pytest.raises(Unreachable, match="not everything is stored"):
        await door.set_many(dict.fromkeys(ROWS, "new"))
    assert await door.get_many(ROWS) == {row: "new" for row in ROWS if row not in lost}
    victim.thaw()
    await until(lambda: door.guard.stats().invalidations_queued == 0)
    assert await door.get_many(lost) == {}


def test_a_file_keeps_apart_what_is_owed_to_which_node(ring: RingOfServers, tmp_path: Path) -> None:
    file = tmp_path / "outbox.db"
    first, second = ring.servers[0], ring.servers[1]
    ours = {server: ring.texts_of(server, ROWS)[0] for server in (first, second)}
    with CacheGuard(ring.url(), outbox=file) as guard:
        guard.set_many(dict.fromkeys(ours.values(), "old"))
        for server in ours:
            server.freeze()
        guard.invalidate(*ours.values())
        assert guard.stats().invalidations_queued == 2
        guard._hub.closed = True  # noqa: SLF001 - what dies without a word delivers nothing
        for node in guard._hub._nodes._nodes.values():  # type: ignore[union-attr]  # noqa: SLF001
            node.listener._closed = True  # noqa: SLF001
    first.thaw()
    with CacheGuard(ring.url(), outbox=file) as heir:
        assert heir.stats().invalidations_queued == 2
        assert heir.get(ours[first]) is None
        assert heir.stats().invalidations_queued == 1
        second.thaw()
        assert heir.get(ours[second]) is None
        assert heir.stats().invalidations_queued == 0


CHILD = """
import os, sys
from cacheguard import CacheGuard

guard = CacheGuard(sys.argv[1])
rows = [f"row:{number}" for number in range(40)]
guard.set_many(dict.fromkeys(rows, "parent"))
assert guard.get_many(rows) == dict.fromkeys(rows, "parent")
child = os.fork()
if child == 0:
    assert guard.get_many(rows) == dict.fromkeys(rows, "parent")
    guard.invalidate(*rows)
    assert guard.get_or_set_many(rows, lambda keys: dict.fromkeys(keys, "child")) == dict.fromkeys(rows, "child")
    guard.close()
    os._exit(0)
_, status = os.waitpid(child, 0)
assert status == 0, status
import re
import time
deadline = time.monotonic() + 5
while guard.get_many(rows) != dict.fromkeys(rows, "child"):
    assert time.monotonic() < deadline
    time.sleep(0.01)
guard.close()
guard.close()
print("done", flush=True)
"""


def test_a_forked_child_has_ways_of_its_own(ring: RingOfServers) -> None:
    process = Process(CHILD, ring.url())
    try:
        assert process.hear() == "done"
    finally:
        process.kill()


def test_several_event_loops_and_threads_share_one_guard(ring: RingOfServers) -> None:
    import threading

    async def work(guard: CacheGuard, number: int) -> None:
        await guard.aset_many(dict.fromkeys(ROWS, number))
        assert len(await guard.aget_many(ROWS)) == len(ROWS)
        await guard.ainvalidate(*ROWS)

    errors: list[BaseException] = []
    others = {thread for thread in threading.enumerate() if thread.name == "cacheguard-bus"}
    guard = CacheGuard(ring.url())

    def run(number: int) -> None:
        try:
            asyncio.run(work(guard, number))
        except BaseException as error:  # noqa: BLE001 - shown below
            errors.append(error)

    asyncio.run(work(guard, 0))
    guard.get_many(ROWS)
    threads = [threading.Thread(target=run, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    guard.close()
    assert [error for error in errors if not isinstance(error, AssertionError)] == []
    assert {thread for thread in threading.enumerate() if thread.name == "cacheguard-bus"} <= others


# What is below moves the keys of a dead node.


@pytest.fixture
def moving(ring: RingOfServers) -> str:
    return ring.url(query="?on_dead=move")


@pytest.fixture
def moving_door(open_door: OpenDoor, moving: str) -> Door:
    return open_door(CacheGuard(moving, policy=Policy(l1=False)))


def is_away(guard: CacheGuard, server: RedisServer) -> bool:
    members = guard._hub._nodes._members  # type: ignore[union-attr]  # noqa: SLF001 - nothing public says so
    assert members is not None
    return members.is_away(name_of(server))


async def test_the_keys_of_a_dead_node_are_found_in_the_next_one_if_that_is_wanted(
    moving_door: Door, moving: str, ring: RingOfServers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cacheguard.servers.members.GRACE", 0.1)
    door = moving_door
    await door.set_many(dict.fromkeys(ROWS, "cached"))
    victim = ring.home_of(ROWS[0])
    lost = ring.texts_of(victim, ROWS)
    victim.kill()
    await until(lambda: (door.guard.get_or_set(lost[0], lambda: "loaded"), is_away(door.guard, victim))[1])
    loaded = await door.get_or_set_many(ROWS, lambda keys: dict.fromkeys(keys, "loaded"))
    assert loaded == {row: "loaded" if row in lost else "cached" for row in ROWS}
    loads = door.guard.stats().loads
    assert await door.get_or_set_many(ROWS, lambda keys: dict.fromkeys(keys, "again")) == loaded
    assert door.guard.stats().loads == loads
    for row in lost:
        assert f"cg:cacheguard:e:{row}" in ring.order_of(row)[1].entries()
    with CacheGuard(moving, policy=Policy(l1=False)) as other:
        await until(lambda: (other.get(lost[0]), is_away(other, victim))[1])
        assert other.get_many(ROWS) == loaded
        other.invalidate(*ROWS)
        # To the dead one are owed the keys that it is the home of, and those that it stands by for.
        assert other.stats().invalidations_queued == sum(victim in ring.order_of(row)[:2] for row in ROWS)
        assert await door.get_many(ROWS) == {}
        victim.start()
        await until(lambda: other.stats().invalidations_queued == 0 and not is_away(other, victim))
        assert other.get_or_set_many(ROWS, lambda keys: dict.fromkeys(keys, "home")) == dict.fromkeys(ROWS, "home")
        expected = sorted(f"cg:cacheguard:e:{row}" for row in lost)

        def is_home() -> bool:
            """Right after it is back, a fill may still have gone to its neighbour."""
            other.get_or_set_many(ROWS, lambda keys: dict.fromkeys(keys, "home"))
            return sorted(victim.entries()) == expected

        await until(is_home)


async def test_a_node_that_comes_back_with_what_it_had_serves_nothing_older(moving: str, ring: RingOfServers) -> None:
    door = AsyncDoor(CacheGuard(moving, policy=Policy(l1=False)))
    victim = ring.home_of(ROWS[0])
    lost = ring.texts_of(victim, ROWS)[:6]
    await door.set_many(dict.fromkeys(lost, "old"))
    with CacheGuard(moving, policy=Policy(l1=False)) as other:
        assert other.get_many(lost) == dict.fromkeys(lost, "old")
        victim.freeze()
        await until(lambda: (door.guard.get(lost[0]), is_away(door.guard, victim))[1])
        await until(lambda: (other.get(lost[0]), is_away(other, victim))[1])
        # Each way to change a value, made known to the node that has the old one before that is read again.
        await door.set(lost[0], "set")
        await door.invalidate(lost[1])
        await door.ask(door.guard, "add", lost[2], "added")
        assert await door.get_or_set(lost[3], lambda: "first") == "first"
        assert await door.ask(door.guard, "update", lost[3], lambda _: "updated") == "updated"
        assert await door.ask(door.guard, "remove", lost[4], lost[3]) == 1
        await door.write(lambda _: None, lost[5])
        expected = {lost[0]: "set", lost[2]: "added"}
        assert other.get_many(lost) == expected
        victim.thaw()
        seen: list[dict[str, Any]] = []
        while is_away(door.guard, victim) or is_away(other, victim) or len(seen) < 50:
            seen += [other.get_many(lost), await door.get_many(lost)]
        seen += [other.get_many(lost), await door.get_many(lost)]
        assert all(value != "old" for found in seen for value in found.values())
        assert other.get_many(lost) == {}  # home again, where nothing older is left
        assert f"cg:cacheguard:e:{lost[0]}" not in victim.entries()
        await door.close()


async def test_what_was_stored_at_home_again_leaves_nothing_older_for_the_next_time(
    moving: str, ring: RingOfServers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cacheguard.servers.members.GRACE", 0.1)
    row = ROWS[0]
    victim, standby = ring.order_of(row)[:2]
    with CacheGuard(moving, policy=Policy(l1=False)) as guard:
        victim.freeze()
        await until(lambda: (guard.get(row), is_away(guard, victim))[1])
        assert guard.get_or_set(row, lambda: "during") == "during"
        assert guard.get(row) == "during"
        victim.thaw()
        await until(lambda: (guard.get(row), not is_away(guard, victim))[1])
        guard.set(row, "after")
        assert f"cg:cacheguard:e:{row}" not in standby.entries()
        victim.freeze()
        await until(lambda: (guard.get(row), is_away(guard, victim))[1])
        assert guard.get(row) is None


async def test_one_lost_reply_moves_nothing(
    moving_door: Door, ring: RingOfServers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cacheguard.servers.members.DOUBT", 60.0)  # this machine may take its time
    row = ROWS[0]
    victim = ring.home_of(row)
    await moving_door.set(row, "here")
    victim.freeze()
    assert await moving_door.get_or_set(row, lambda: "loaded") == "loaded"
    assert not is_away(moving_door.guard, victim)
    victim.thaw()
    await until(lambda: moving_door.guard.get(row) == "here")


# Another list of nodes


def test_a_new_node_gets_its_share_and_the_others_keep_what_they_have(ring: RingOfServers) -> None:
    rows = [f"row:{number}" for number in range(400)]
    three = ring.servers[:3]
    with CacheGuard(ring.url(three), policy=Policy(l1=False)) as before:
        before.set_many(dict.fromkeys(rows, "kept"))
    with CacheGuard(ring.url(), policy=Policy(l1=False)) as after:
        found = after.get_many(rows)
        assert set(found) == {row for row in rows if ring.home_of(row, three) is ring.home_of(row)}
        assert len(rows) * 0.6 < len(found) < len(rows) * 0.9  # a quarter moves, more or less
        assert after.get_or_set_many(rows, lambda keys: dict.fromkeys(keys, "new")).keys() == set(rows)
        listed, cursor = set[str](), ""
        while True:  # what the old nodes still have of keys that are not theirs any more is not listed there
            page, cursor = after.scan("row:*", cursor=cursor)
            assert not listed & set(page)
            listed.update(page)
            if not cursor:
                break
        assert listed == set(rows)


def test_while_two_lists_are_in_use_each_tells_the_nodes_of_both(ring: RingOfServers) -> None:
    three, nodes = ring.servers[:3], ring.url().removeprefix("redis+ring://").removesuffix("/0")
    few = ring.url(three).removeprefix("redis+ring://").removesuffix("/0")
    steps = [f"redis+ring://{few}?also={nodes}", f"redis+ring://{nodes}?also={few}"]
    moved = [row for row in ROWS if ring.home_of(row, three) is not ring.home_of(row)]
    assert moved
    policy = Policy(l1=False)
    with CacheGuard(steps[0], policy=policy) as one, CacheGuard(steps[1], policy=policy) as two:
        for writer, reader in ((one, two), (two, one)):
            for row in moved:
                assert reader.get_or_set(row, lambda: "old") == "old"
                assert writer.get_or_set(row, lambda: "old") == "old"
            writer.invalidate(*moved[::2])
            writer.set_many(dict.fromkeys(moved[1::2], "set"))
            assert reader.get_many(moved) == {}
            assert writer.get_many(moved) == dict.fromkeys(moved[1::2], "set")
            reader.get_or_set_many(moved, lambda keys: dict.fromkeys(keys, "old"), tags=["red"])
            writer.invalidate_tags("red")
            assert reader.get_many(moved) == {}
            writer.invalidate(*moved)


# The documentation


def test_to_close_a_guard_does_not_take_longer_the_more_nodes_are_frozen(ring: RingOfServers) -> None:
    guard = CacheGuard(ring.url())
    guard.set_many(dict.fromkeys(ROWS, 1))
    guard.get_many(ROWS)
    for server in ring.servers:
        server.freeze()
    begin = time.monotonic()
    guard.close()
    assert time.monotonic() - begin < 2.5  # a second or so for one that is frozen, and the same for four
