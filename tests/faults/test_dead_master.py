"""One master of a cluster is gone and nobody takes its place: what lies on the others goes on."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import redis
from redis.crc import key_slot

from cacheguard import CacheGuard, Policy
from tests.conftest import OpenDoor
from tests.support.clusters import RedisCluster
from tests.support.doors import Door
from tests.support.loader import Loader
from tests.support.redis_server import RedisServer, find_binaries

ROOT = "cg:cacheguard:m"
TIMEOUT = 0.2


@pytest.fixture(scope="module")
def bare_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisCluster]:
    """Three masters without replicas; two of them go on without the third."""
    binaries = list(find_binaries().values())
    if not binaries:
        pytest.skip("no redis-server")
    cluster = RedisCluster(binaries[0], tmp_path_factory.mktemp("bare"), cluster_require_full_coverage="no").start()
    yield cluster
    cluster.stop()


@pytest.fixture
def bare_url(bare_cluster: RedisCluster) -> Iterator[str]:
    bare_cluster.reset()
    yield bare_cluster.url
    bare_cluster.reset()


def texts_on(cluster: RedisCluster, node: RedisServer, count: int = 5) -> list[str]:
    """Keys of entries that this node owns."""
    numbers = (f"row:{number}" for number in range(1000))
    return list(islice((text for text in numbers if cluster.owner_of(f"cg:cacheguard:e:{text}") is node), count))


class Split:
    """A guard whose root lies on a master that lives, and another master that can be ended."""

    def __init__(self, cluster: RedisCluster, door: Door) -> None:
        self.door = door
        self.home = cluster.owner_of(ROOT)
        self.victim, self.third = (node for node in cluster.masters() if node is not self.home)
        self.lost = texts_on(cluster, self.victim)
        self.kept = [*texts_on(cluster, self.home), *texts_on(cluster, self.third)]

    async def fill(self) -> None:
        for text in (*self.lost, *self.kept):
            assert await self.door.get_or_set(text, lambda: "old") == "old"


@pytest.fixture
async def split(open_door: OpenDoor, bare_cluster: RedisCluster, bare_url: str) -> Split:
    made = Split(bare_cluster, open_door(CacheGuard(bare_url, policy=Policy(l1=False), operation_timeout=TIMEOUT)))
    await made.fill()
    return made


@pytest.fixture
def elsewhere(bare_url: str) -> Iterator[CacheGuard]:
    """Another process."""
    with CacheGuard(bare_url, policy=Policy(l1=False), operation_timeout=TIMEOUT) as guard:
        yield guard


async def until(holds: Any, seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not await asyncio.to_thread(holds):
        assert time.monotonic() < deadline, "it did not become true"
        await asyncio.sleep(0.02)


@pytest.mark.parametrize("how", ["freeze", pytest.param("kill", marks=pytest.mark.chaos)])
async def test_what_is_owed_to_a_dead_master_does_not_hold_up_the_others(split: Split, how: str) -> None:
    door = split.door
    getattr(split.victim, how)()
    await door.invalidate(split.lost[0])
    loader, times = Loader("loaded"), []
    for _ in range(5):
        for text in split.kept:
            began = time.monotonic()
            assert await door.get_or_set(text, lambda: loader(1)) == "old"
            times.append(time.monotonic() - began)
    assert sorted(times)[len(times) // 2] < TIMEOUT / 2  # not one of them waits for the dead one
    assert door.guard.stats().invalidations_queued == 1


async def test_what_is_owed_is_never_read_and_is_delivered_when_the_master_is_back(
    split: Split, bare_cluster: RedisCluster, elsewhere: CacheGuard
) -> None:
    door = split.door
    split.victim.freeze()
    await door.invalidate(*split.lost, split.kept[0])
    assert door.guard.stats().invalidations_queued == len(split.lost)
    assert await door.get(split.kept[0]) is None
    assert await door.get_or_set(split.lost[0], lambda: "new") == "new"
    split.victim.thaw()
    assert await door.get_or_set(split.lost[1], lambda: "new") == "new"
    await until(lambda: door.guard.stats().invalidations_queued == 0)
    assert await asyncio.to_thread(elsewhere.get_many, [*split.lost[2:], split.kept[0]]) == {}


async def test_a_tag_whose_marker_is_out_of_reach_holds_up_its_own_entries_alone(
    split: Split, bare_cluster: RedisCluster, elsewhere: CacheGuard
) -> None:
    door, kept = split.door, split.kept
    tag = next(f"tag{n}" for n in range(100) if bare_cluster.owner_of(f"{ROOT}:tag{n}") is split.victim)
    await door.set("tagged " + kept[0], "old", tags=[tag])
    text = next(f"t{n}" for n in range(100) if bare_cluster.owner_of(f"cg:cacheguard:e:t{n}") is split.home)
    await door.get_or_set(text, lambda: "old", tags=[tag])
    assert await asyncio.to_thread(elsewhere.get, text) == "old"
    split.victim.freeze()
    await door.invalidate_tags(tag)
    assert await door.get_or_set(text, lambda: "new", tags=[tag]) == "new"
    assert await door.get_or_set(kept[0], lambda: "loaded") == "old"
    split.victim.thaw()
    await until(lambda: door.guard.stats().invalidations_queued == 0)
    assert await asyncio.to_thread(elsewhere.get, text) is None


async def test_the_others_are_told_to_go_past_what_cannot_be_invalidated(split: Split) -> None:
    """Others may still reach the master that this process cannot: they hear of it through one that both reach."""
    text, heard = split.lost[0], set[str]()
    with redis.Redis(port=split.home.port, decode_responses=True) as client, client.pubsub() as bus:
        bus.subscribe("cg:cacheguard:bus")
        split.victim.freeze()
        await split.door.invalidate(text)

        def told() -> bool:
            message: Any = bus.get_message(timeout=0.1)
            heard.add(str(message and message["data"]))
            return f"2 dirty cg:cacheguard:e:{text}" in heard

        await until(told)


@pytest.mark.chaos
async def test_what_is_owed_to_two_masters_is_delivered_to_each_when_it_is_back(split: Split) -> None:
    door = split.door
    split.victim.freeze()
    split.third.freeze()
    await door.invalidate(*split.lost, *split.kept)
    assert await door.get_many(split.kept[:5]) == {}
    split.third.thaw()
    await until(lambda: door.guard.stats().invalidations_queued == len(split.lost))
    split.victim.thaw()
    await until(lambda: door.guard.stats().invalidations_queued == 0)
    assert await door.get_many([*split.lost, *split.kept]) == {}


# What operators do


@pytest.mark.chaos
async def test_a_slot_that_nobody_owns_is_loaded_past_redis_and_comes_back(
    split: Split, bare_cluster: RedisCluster
) -> None:
    door, node = split.door, split.third
    text = next(text for text in split.kept if bare_cluster.owner_of(f"cg:cacheguard:e:{text}") is node)
    slot = key_slot(f"cg:cacheguard:e:{text}".encode())
    for each in bare_cluster.nodes:
        each.command("CLUSTER", "DELSLOTS", slot)
    try:
        await door.invalidate(text)
        assert await door.get_or_set(text, lambda: "loaded") == "loaded"
        assert await door.get_or_set(split.lost[0], lambda: "never") == "old"
        assert door.guard.stats().invalidations_queued == 1
    finally:
        node.command("CLUSTER", "ADDSLOTS", slot)
    await until(lambda: door.guard.stats().invalidations_queued == 0)
    await until(lambda: bare_cluster.owner_of(f"cg:cacheguard:e:{text}") is node)
    assert await door.get_or_set(text, lambda: "new") == "new"


@pytest.mark.chaos
async def test_a_cluster_that_was_restarted_is_used_again(split: Split, bare_cluster: RedisCluster) -> None:
    door = split.door
    for node in bare_cluster.nodes:
        node.kill()
    await door.invalidate(*split.lost)
    assert await door.get_or_set(split.lost[0], lambda: "loaded") == "loaded"
    await asyncio.to_thread(bare_cluster.reset)
    await until(lambda: door.guard.stats().invalidations_queued == 0)
    for text in (*split.lost, *split.kept):
        assert await door.get_or_set(text, lambda: "new") == "new"
    await until(lambda: bool(bare_cluster.masters()[0].entries()))


@pytest.mark.chaos
async def test_a_master_that_joins_and_leaves_again_is_followed(
    split: Split, bare_cluster: RedisCluster, tmp_path: Path
) -> None:
    door, text = split.door, split.kept[0]
    slot = key_slot(f"cg:cacheguard:e:{text}".encode())
    home = bare_cluster.owner_of_slot(slot)
    node = RedisServer(home.binary, tmp_path, cluster_enabled="yes", cluster_config_file="nodes.conf")
    node.config["cluster-allow-replica-migration"] = "no"  # else it becomes a replica when its only slot leaves
    node.start()
    bare_cluster.nodes.append(node)
    try:
        node.command("CLUSTER", "MEET", "127.0.0.1", home.port)
        name = node.command("CLUSTER", "MYID")
        await until(lambda: all(name in str(each.command("CLUSTER", "NODES")) for each in bare_cluster.nodes))
        await until(lambda: "cluster_state:ok" in str(node.command("CLUSTER", "INFO")))
        bare_cluster.move_slot(slot, node)
        assert await door.get_or_set(text, lambda: "never") == "old"
        await door.invalidate(text)
        assert await door.get_or_set(text, lambda: "new") == "new"
        assert node.entries()
        bare_cluster.move_slot(slot, home)
        # Who has no slot left might as well have died: what it had acknowledged is repeated.
        assert await door.get_or_set(text, lambda: "loaded once more") == "loaded once more"
        assert door.guard.stats().replayed == 1
    finally:
        bare_cluster.nodes.remove(node)
        node.stop()
        for each in bare_cluster.nodes:
            each.command("CLUSTER", "FORGET", name)
    await door.invalidate(text)
    assert await door.get_or_set(text, lambda: "newer") == "newer"
    assert door.guard.stats().invalidations_queued == 0
