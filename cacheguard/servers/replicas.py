"""Reads from replicas, and the proof of how far each of them follows its master.

Once a second, whoever listens writes a beat through every master. A replica that shows a beat has done everything that
its master had done before: so what a replica answers is no older than the moment when the beat was sent that it shows
in the same round trip. Neither the offset of the replica nor the word of its master is needed for that, and it holds
for a replica that is cut off, frozen, restored, or follows a master that is none any more: it shows no beat of late.
"""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable, Sequence
from itertools import count
from typing import Any, Protocol

from ..client.aio import AsyncCommands, redis_connector
from ..client.blocking import BlockingCommands, redis_commands
from ..client.circuits import Circuit, Circuits
from ..client.endpoints import Address, Endpoint
from ..client.identity import Identity
from ..defenses.outage import BreakerTerms
from ..errors import Refused, Unreachable
from ..faults import Fault
from ..ports import AnotherServer, Call, Commands, Reply
from ..runtime import run_now
from .slots import slot_of

BEAT_KEPT_MS = 10_000
MOST_BEATS = 64  # of one master; older ones prove nothing that would still be of use
LOOK_EVERY = 5  # beats, after which it is asked which replicas there are


class Topology(Protocol):
    """Which master has what, and who follows it."""

    first: tuple[Call, ...]
    """What a connection to a replica has to say before it may read."""

    def look(self) -> dict[str, Sequence[Address]]:
        """The replicas, by the names of their masters."""
        ...

    def master_of(self, key: str) -> str | None:
        """The name of the master that has *key*."""
        ...

    def key_at(self, master: str) -> str:
        """What a key must contain to lie on that master."""
        ...


class _Unbroken(Circuit):
    """No breaker: who listens finds out which replicas can be asked, and they say nothing of the masters."""

    @property
    def away(self) -> bool:
        return False

    def ask(self) -> int:
        return -1

    def admit(self) -> None:
        pass

    def connected(self, error: Unreachable | None) -> None:
        pass

    def failed(self, turn: int, fault: Fault) -> None:
        pass


class Following:
    """Which replicas may be read from; shared by the threads and the event loops of one guard.

    Args:
        prefix: what the keys of beats begin with.
        topology: who follows whom.
        endpoint: what connections to a replica are made with, for threads.
        most: connections to each replica at once, of all threads.
        timeout: seconds for connecting and for each reply.
        circuits: the breakers, of replicas too.
    """

    def __init__(
        self, prefix: str, topology: Topology, endpoint: Endpoint, most: int, timeout: float, circuits: Circuits
    ) -> None:
        self._circuits = circuits
        self._prefix, self._topology = prefix, topology
        self._endpoint, self._most, self._timeout = endpoint, most, timeout
        self.first: tuple[Call, ...] = topology.first
        self._reset()

    def _reset(self) -> None:
        self._me = os.urandom(8).hex()
        self._numbers = count(1)
        self._lock = threading.RLock()
        self._sent: dict[str, dict[bytes, float]] = {}  # by master, the beats that were sent of late, and when
        self._able: dict[str, tuple[Address, ...]] = {}  # by master, the replicas that showed one when asked last
        self._known: dict[str, Sequence[Address]] = {}
        self._nodes: dict[Address, BlockingCommands] = {}
        self._closed = False

    # In the thread that listens

    def beat(self, masters: Sequence[tuple[str, Commands]]) -> None:
        """Write a beat through each of *masters*, and find out which replicas show one."""
        number = next(self._numbers)
        names = [name for name, _ in masters]
        if number % LOOK_EVERY == 1 or set(names) != set(self._able) or not all(self._able.values()):
            self._known = self._topology.look()
        for name, commands in masters:
            value, at = f"{self._me}.{number}", time.monotonic()
            try:
                run_now(commands.send(("SET", self.key_of(name), value, "PX", BEAT_KEPT_MS)))
            except (Unreachable, AnotherServer):
                continue
            sent = self._sent.get(name, {})
            self._sent[name] = dict([*sent.items(), (value.encode(), at)][-MOST_BEATS:])
        self._able = {name: tuple(filter(self._shows(name), self._known.get(name, ()))) for name in names}
        self._sent = {name: sent for name, sent in self._sent.items() if name in names}

    def _shows(self, master: str) -> Callable[[Address], bool]:
        def shows(address: Address) -> bool:
            try:
                *_, value = run_now(self.node(address).send(*self.first, ("GET", self.key_of(master))))
            except (Unreachable, AnotherServer):
                return False
            return self.sent_at(master, value) is not None

        return shows

    # For those who read

    def key_of(self, master: str) -> str:
        """Where the beats of *master* are."""
        return f"{self._prefix}{self._topology.key_at(master)}{self._me}"

    def sent_at(self, master: str, value: Reply) -> float | None:
        """When the beat was sent that a replica shows; None if it is none of ours, or an old one."""
        return self._sent.get(master, {}).get(value) if isinstance(value, bytes) else None

    def routes(self, calls: Sequence[Call]) -> list[tuple[str, Address, list[int]]] | None:
        """Whom to ask for what: a replica for each master that has one of the keys; None if one has no able replica."""
        by_master: dict[str, list[int]] = {}
        for index, call in enumerate(calls):
            master = self._topology.master_of(str(call[1]))  # type: ignore[index]  # no script is among them
            if master is None or not self._able.get(master):
                return None
            by_master.setdefault(master, []).append(index)
        return [(master, random.choice(self._able[master]), mine) for master, mine in by_master.items()]

    def failed(self, address: Address) -> None:
        """A replica did not answer: it is left alone until it shows a beat again."""
        self._able = {name: tuple(one for one in able if one != address) for name, able in self._able.items()}

    def node(self, address: Address) -> BlockingCommands:
        """A replica, from threads."""
        node = self._nodes.get(address)
        if node is None:
            with self._lock:
                node = self._nodes.get(address)
                if node is None:
                    at = self._endpoint.at(address)
                    node = redis_commands(at, self._most, self._timeout, Identity(_nothing), self.circuit(address))
                    if self._closed:
                        node.close()
                    self._nodes[address] = node
        return node

    def circuit(self, address: Address) -> Circuit:
        """What stands in the place of a replica's breaker."""
        return _Unbroken(self._circuits, f"replica {address[0]}:{address[1]}", BreakerTerms())

    def close(self) -> None:
        with self._lock:
            self._closed = True
            for node in self._nodes.values():
                node.close()

    def after_fork(self) -> None:
        """Forget the parent's connections without touching their sockets."""
        nodes = self._nodes
        self._reset()
        for node in nodes.values():
            node.after_fork()
        self._nodes = nodes


class BlockingReplicas:
    """Replicas, from threads."""

    def __init__(self, following: Following) -> None:
        self._following = following

    def _node(self, address: Address) -> Commands:
        return self._following.node(address)

    async def ask(self, *calls: Call) -> tuple[list[Reply], Reply, float] | None:
        """What replicas answer, their times by key, and since when (monotonic seconds) it may be old.

        None if they cannot be asked.
        """
        following = self._following
        routes = following.routes(calls)
        if routes is None:
            return None
        replies: list[Reply] = [None] * len(calls)
        times: dict[str, Reply] = {}
        since = float("inf")
        for master, address, mine in routes:
            # The beat comes first: what is asked behind it is at least as new as it.
            asked = (*following.first, ("GET", following.key_of(master)), *(calls[index] for index in mine), ("TIME",))
            try:
                answers = (await self._node(address).send_each(*asked))[len(following.first) :]
            except (Unreachable, AnotherServer):
                following.failed(address)
                return None
            sent_at = following.sent_at(master, answers[0])
            if sent_at is None or any(isinstance(answer, Refused) for answer in answers):
                return None
            since = min(since, sent_at)
            for index, answer in zip(mine, answers[1:-1], strict=True):
                replies[index], times[str(calls[index][1])] = answer, answers[-1]  # type: ignore[index]  # no script
        return replies, times, since


class AsyncReplicas(BlockingReplicas):
    """Replicas, from one event loop."""

    def __init__(self, following: Following, endpoint: Endpoint, timeout: float) -> None:
        super().__init__(following)
        self._endpoint, self._timeout = endpoint, timeout
        self._mine: dict[Address, AsyncCommands] = {}

    def _node(self, address: Address) -> Commands:
        node = self._mine.get(address)
        if node is None:
            connect = redis_connector(self._endpoint.at(address), self._timeout)
            node = self._mine[address] = AsyncCommands(
                connect, self._timeout, Identity(_nothing), self._following.circuit(address)
            )
        return node

    async def aclose(self) -> None:
        """End the tasks and the connections."""
        for node in self._mine.values():
            await node.aclose()

    def abandon(self) -> None:
        """Let go of connections whose event loop is gone."""
        for node in self._mine.values():
            node.abandon()


class Group:
    """A master with its replicas, as sentinels know them."""

    first: tuple[Call, ...] = ()

    def __init__(self, finder: Any) -> None:
        self._finder = finder

    def look(self) -> dict[str, Sequence[Address]]:
        return {"": self._finder.replicas()}

    def master_of(self, key: str) -> str | None:  # noqa: ARG002 - there is one
        return ""

    def key_at(self, master: str) -> str:  # noqa: ARG002 - there is one
        return ""


class Shards:
    """The masters of a cluster with their replicas."""

    first: tuple[Call, ...] = (("READONLY",),)

    def __init__(self, owners: Any) -> None:
        self._map = owners
        self._tags: dict[str, str] = {}

    def look(self) -> dict[str, Sequence[Address]]:
        return {f"{host}:{port}": replicas for (host, port), replicas in self._map.replicas.items()}

    def master_of(self, key: str) -> str | None:
        owner = self._map.owners[slot_of(key.encode())]
        return None if owner is None else f"{owner[0]}:{owner[1]}"

    def key_at(self, master: str) -> str:
        tag = self._tags.get(master)
        if tag is None or self.master_of(f"{{{tag}}}") != master:
            tags = (tag for tag in map(str, range(100_000)) if self.master_of(f"{{{tag}}}") == master)
            tag = self._tags[master] = next(tags, "")
        return f"{{{tag}}}"


def following_of(
    endpoint: Endpoint, owners: Any, prefix: str, most: int, timeout: float, circuits: Circuits
) -> Following:
    """The replicas of a Sentinel group or a cluster."""
    if owners is not None:
        return Following(prefix, Shards(owners), endpoint, most, timeout, circuits)
    finder = endpoint.finder.within(timeout)
    return Following(prefix, Group(finder), endpoint.of_replicas(), most, timeout, circuits)


def _nothing(_of_unknown_age: bool) -> None:  # noqa: FBT001 - a callback's only argument
    """Another server answers at the address of a replica: its beat tells all there is to know."""
