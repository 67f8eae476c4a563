"""A Redis Cluster of our own, set up with plain commands, so that 6.2 can be one, too."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import Any, Self

import redis
from redis.crc import REDIS_CLUSTER_HASH_SLOTS, key_slot

from tests.support.redis_server import RedisServer

READY_WITHIN = 30.0  # seconds
NODE_TIMEOUT_MS = 1000


class RedisCluster:
    """Masters that share the slots evenly, and as many replicas as wanted, each of the master in its place."""

    def __init__(
        self, binary: Path, directory: Path, masters: int = 3, replicas: int = 0, **settings: str | int
    ) -> None:
        self._masters, self._replicas = masters, replicas
        self.nodes: list[RedisServer] = []
        for number in range(masters + replicas):
            home = directory / f"node{number}"
            home.mkdir()
            self.nodes.append(
                RedisServer(
                    binary,
                    home,
                    cluster_enabled="yes",
                    cluster_config_file="nodes.conf",
                    **{"cluster_node_timeout": NODE_TIMEOUT_MS, "repl_diskless_sync_delay": 0, **settings},
                )
            )

    @property
    def url(self) -> str:
        return f"redis+cluster://{','.join(f'127.0.0.1:{node.port}' for node in self.nodes)}"

    def start(self) -> Self:
        """Start and connect all of them; returns when every node knows of every slot."""
        for node in self.nodes:
            node.start()
        first, *others = self.nodes
        for number, node in enumerate(self.nodes[: self._masters]):
            begin, end = (REDIS_CLUSTER_HASH_SLOTS * at // self._masters for at in (number, number + 1))
            node.command("CLUSTER", "ADDSLOTS", *range(begin, end))
            # An epoch of its own for each: nobody has to find out who was first.
            node.command("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
        for node in others:
            node.command("CLUSTER", "MEET", "127.0.0.1", first.port)
        _until("all nodes know each other", lambda: all(self._known_by(node) == len(self.nodes) for node in self.nodes))
        for number, node in enumerate(self.nodes[self._masters :]):
            master_id = self.nodes[number % self._masters].command("CLUSTER", "MYID")
            _until("a replica is one", lambda n=node, i=master_id: n.command("CLUSTER", "REPLICATE", i))
        self._until_whole()
        return self

    def stop(self) -> None:
        for node in self.nodes:
            node.stop()

    def reset(self) -> None:
        """Undo what a test did: everybody is alive, every slot is served, no keys."""
        for node in self.nodes:
            node.start()
            node.thaw()
        self._until_whole()
        for node in self.masters():
            node.commands(("FLUSHALL",), ("SCRIPT", "FLUSH"))

    def masters(self) -> list[RedisServer]:
        """Those that own slots now."""
        by_port = {node.port: node for node in self.nodes}
        return [by_port[port] for port in {slots[2][1] for slots in self._slots()}]

    def owner_of(self, key: str) -> RedisServer:
        """The node that takes writes for *key*."""
        return self.owner_of_slot(key_slot(key.encode()))

    def move(self, key: str, target: RedisServer, *, finish: bool = True) -> None:
        """Give the slot of *key* to another master, with what is in it; unfinished, both answer with redirections."""
        self.move_slot(key_slot(key.encode()), target, finish=finish)

    def owner_of_slot(self, slot: int) -> RedisServer:
        """The node that takes writes for what lies in *slot*."""
        port = next(each[2][1] for each in self._slots() if each[0] <= slot <= each[1])
        return next(node for node in self.nodes if node.port == port)

    def move_slot(self, slot: int, target: RedisServer, *, finish: bool = True, linger: float = 0.0) -> None:
        """`move`, by number; *linger* seconds before each key goes, so that both sides are asked meanwhile."""
        source = self.owner_of_slot(slot)
        source_id, target_id = source.command("CLUSTER", "MYID"), target.command("CLUSTER", "MYID")
        target.command("CLUSTER", "SETSLOT", slot, "IMPORTING", source_id)
        source.command("CLUSTER", "SETSLOT", slot, "MIGRATING", target_id)
        while True:
            keys = source.command("CLUSTER", "GETKEYSINSLOT", slot, 100)
            for each in keys:
                time.sleep(linger)
                source.command("MIGRATE", "127.0.0.1", target.port, each, 0, 1000)
            if not keys or not finish:
                break
        if finish:
            for node in (target, source, *(each for each in self.masters() if each not in {source, target})):
                node.command("CLUSTER", "SETSLOT", slot, "NODE", target_id)

    def replica_of(self, master: RedisServer) -> RedisServer:
        """A replica of *master*."""
        for each in self._slots():
            if each[2][1] == master.port and len(each) > 3:
                return next(node for node in self.nodes if node.port == each[3][1])
        raise RuntimeError("it has no replica")

    def is_whole(self) -> bool:
        """Whether every slot is served, and every master has its replicas."""
        with contextlib.suppress(redis.RedisError, RuntimeError):
            return self._whole()
        return False

    def _slots(self) -> Any:
        for node in self.nodes:
            with contextlib.suppress(redis.RedisError):
                return node.command("CLUSTER", "SLOTS")
        raise RuntimeError("no node of the cluster answers")

    def _known_by(self, node: RedisServer) -> int:
        return sum("handshake" not in line for line in node.command("CLUSTER", "NODES").splitlines())

    def _until_whole(self) -> None:
        _until("the cluster is whole", self._whole)

    def _whole(self) -> bool:
        masters = self.masters()
        return all(
            "cluster_state:ok" in node.command("CLUSTER", "INFO")
            and sum(each[1] - each[0] + 1 for each in node.command("CLUSTER", "SLOTS")) == REDIS_CLUSTER_HASH_SLOTS
            and sum(len(each) - 3 for each in _by_master(node)) == self._replicas
            and (node in masters or node.command("ROLE")[3] == "connected")
            for node in self.nodes
        )


def _by_master(node: RedisServer) -> list[Any]:
    """One piece of CLUSTER SLOTS for each master: after a move, some own several."""
    return list({each[2][1]: each for each in node.command("CLUSTER", "SLOTS")}.values())


def _until(what: str, holds: Any) -> None:
    deadline = time.monotonic() + READY_WITHIN
    while time.monotonic() < deadline:
        with contextlib.suppress(redis.RedisError):
            if holds():
                return
        time.sleep(0.05)
    raise RuntimeError(f"in {READY_WITHIN:g} s it did not become true that {what}")
