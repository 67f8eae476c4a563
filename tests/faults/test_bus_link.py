"""The link between two nodes of a cluster, over which one passes on what is published at the other, falls silent."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial

import pytest

from cacheguard import CacheGuard
from tests.faults.test_bus import until
from tests.support.clusters import RedisCluster
from tests.support.faults import Fault, FaultProxy
from tests.support.redis_server import RedisServer, find_binaries

HORIZON = 3.0


@pytest.fixture
def patient_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisCluster]:
    """Three masters that take half a minute to miss one another."""
    binary = next(iter(find_binaries().values()))
    cluster = RedisCluster(binary, tmp_path_factory.mktemp("patient"), cluster_node_timeout=30_000).start()
    yield cluster
    cluster.stop()


@pytest.mark.chaos
def test_the_in_process_tier_is_off_within_the_horizon(patient_cluster: RedisCluster) -> None:
    deaf, speaker, _ = patient_cluster.nodes
    text = next(
        f"row:{number}"
        for number in range(1000)
        if patient_cluster.owner_of(f"cg:cacheguard:e:row:{number}") is speaker
    )
    with FaultProxy(deaf.port + 10_000) as link, ExitStack() as guards:
        deaf.command("CONFIG", "SET", "cluster-announce-bus-port", link.port)
        until(lambda: link.connections >= 2, 20)  # the two others now speak to it over the proxy
        listening: list[CacheGuard] = []
        while not listening:  # until one of ours has subscribed there
            guard = guards.enter_context(CacheGuard(patient_cluster.url))
            guard.get("begins to listen")
            until(partial(is_up, guard))
            if is_subscribed_at(deaf):
                listening.append(guard)
        (guard,) = listening
        elsewhere = guards.enter_context(CacheGuard(patient_cluster.url))
        elsewhere.set(text, "old")
        until(lambda: guard.get(text) == "old" and guard.inspect(text).tier == "l1")
        link.inject(Fault.BLACKHOLE)
        elsewhere.invalidate(text)
        began = time.monotonic()
        assert guard.get(text) == "old", "it heard of it over a link that is dead"
        until(lambda: guard.get(text) is None)
        took = time.monotonic() - began
        print(f"L1 was off {took:.2f} s after the invalidation")  # noqa: T201
        assert took <= HORIZON + 0.3
        link.heal()
        until(lambda: guard.stats().bus_up, 40)


def is_up(guard: CacheGuard) -> bool:
    return guard.stats().bus_up


def is_subscribed_at(node: RedisServer) -> bool:
    return bool(node.command("CLIENT", "LIST", "TYPE", "PUBSUB"))
