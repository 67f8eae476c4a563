"""Redis Cluster: each call goes to the node that owns its slot."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections.abc import Sequence
from typing import Any

from ..client import resp
from ..client.aio import AsyncCommands, redis_connector
from ..client.blocking import BlockingCommands, redis_commands
from ..client.circuits import Circuits
from ..client.identity import Identity
from ..client.places import Address, Place
from ..errors import Refused, Unreachable
from ..ports import AnotherServer, Call, Commands, Reply
from ..runtime import run_now
from ..runtime.together import together
from .slots import Map, Routing

MOST_TRIES = 5  # of a call that is sent from one node to the next while slots move
REFRESH_EVERY = 10.0  # seconds; a change that nobody runs into is noticed nevertheless
PATIENCE = 2  # timeouts, in which several nodes are asked who owns what
SLOTS = ("CLUSTER", "SLOTS")


class BlockingCluster:
    """A cluster, from threads.

    Args:
        place: what connections are made with, and some nodes.
        owners: who owns what.
        most: connections at once, to each node.
        timeout: seconds for connecting and for each reply.
    """

    def __init__(
        self, place: Place, owners: Map, most: int, timeout: float, identity: Identity, circuits: Circuits
    ) -> None:
        self._place, self._map, self._most, self._timeout, self._identity = place, owners, most, timeout, identity
        self._circuits = circuits
        self._nodes: dict[Address, BlockingCommands] = {}
        self._closed = False
        self._lock = threading.RLock()
        self._node(place.nodes[0])

    def _node(self, address: Address) -> BlockingCommands:
        node = self._nodes.get(address)
        if node is not None:
            return node
        with self._lock:
            node = self._nodes.get(address)
            if node is None:
                node = redis_commands(
                    self._place.at(address),
                    self._most,
                    self._timeout,
                    self._identity,
                    self._circuits.of(_name(address)),
                )
                if self._closed:
                    node.close()
                self._nodes[address] = node
            return node

    async def send(self, *calls: Call) -> list[Reply]:
        return resp.first_error(await self.send_each(*calls))

    async def send_each(self, *calls: Call) -> list[Reply]:
        since = self._identity.generation
        if not self._map.masters:
            await self._refresh(0)
            _check(self._identity, since)
        routing = Routing(calls, self._map)
        for stage in routing.stages():
            routing.again = stage
            for _ in range(MOST_TRIES):
                version, routes = self._map.version, routing.next_routes()
                if not routes:
                    break
                await self._try(routing, routes, since)
                if routing.again and self._map.worth_asking(routing):
                    await self._refresh(version, routing)
                    _check(self._identity, since)
            routing.give_up()
        return routing.result()

    async def _try(self, routing: Routing, routes: dict[Address, list[int]], since: int) -> None:
        for address, mine in routes.items():
            _check(self._identity, since)
            try:
                routing.answered(address, mine, await self._node(address).send_each(*routing.of(mine)))
            except Refused:
                raise
            except Unreachable as error:
                routing.failed(address, mine, error)
        for address, index in routing.detours():
            try:
                _, reply = await self._node(address).send_each(*routing.asking(index))
                routing.answered(address, [index], [reply])
            except Unreachable as error:
                routing.failed(address, [index], error)
        routing.no_more_detours()

    async def _refresh(self, version: int, routing: Routing | None = None) -> None:
        """Ask who owns what, unless somebody else has done so since *version*."""
        with self._lock:
            if self._map.version != version:
                return
            until, failure = time.monotonic() + PATIENCE * self._timeout, Unreachable("no node of the cluster answers")
            for address in self._map.candidates(routing):
                try:
                    self._map.learn(address, (await self._ask_slots(address))[0])
                except Unreachable as error:
                    failure = error
                else:
                    self._forget_nodes()
                    return
                if time.monotonic() > until:
                    break
            raise failure

    async def _ask_slots(self, address: Address) -> list[Reply]:
        try:
            return await self._node(address).send(SLOTS)
        except AnotherServer:  # known by now
            return await self._node(address).send(SLOTS)

    def _forget_nodes(self) -> None:
        for address in set(self._nodes) - {*self._map.masters, *self._place.nodes}:
            self._nodes.pop(address).close()
            self._circuits.drop(_name(address))

    async def masters(self) -> list[Commands]:
        if time.monotonic() >= self._map.heard_at + REFRESH_EVERY:
            await self._refresh(self._map.version)
        return [_Master(self, self._node(address)) for address in self._map.masters]

    async def lost(self) -> None:
        """A node did not answer: look whether another one is in its place."""
        try:
            await self._refresh(self._map.version)
        except Unreachable:
            return

    def every_master(self) -> list[tuple[str, Commands]]:
        """The nodes that take writes."""
        if time.monotonic() >= self._map.heard_at + REFRESH_EVERY:
            run_now(self._refresh(self._map.version))
        return [(_name(address), _Master(self, self._node(address))) for address in self._map.masters]

    def server(self, name: str) -> Commands:
        """The node of that name; `Unreachable` if there is none any more."""
        for address, node in list(self._nodes.items()):
            if _name(address) == name:
                return _Master(self, node)
        raise Unreachable(f"{name} has left the cluster")

    @property
    def away(self) -> bool:
        nodes = [self._nodes.get(address) for address in self._map.masters]
        return bool(nodes) and all(node is not None and node.away for node in nodes)

    def subscriber(self) -> Any:
        """A new connection to one of them: what is published anywhere is heard everywhere."""
        if not self._map.masters:
            run_now(self._refresh(0))
        return self._node(random.choice(self._map.masters)).subscriber()

    def close(self) -> None:
        """Close every connection; one that is in use, when it is given back."""
        with self._lock:
            self._closed = True
            for node in self._nodes.values():
                node.close()

    def after_fork(self) -> None:
        """Forget the parent's connections without touching their sockets."""
        self._lock = threading.RLock()
        self._identity.after_fork()
        self._map.after_fork()
        for node in self._nodes.values():
            node.after_fork()


class _Master:
    """One node, asked directly."""

    def __init__(self, cluster: BlockingCluster, node: BlockingCommands) -> None:
        self._cluster, self._node = cluster, node

    async def send(self, *calls: Call) -> list[Reply]:
        return resp.first_error(await self.send_each(*calls))

    async def send_each(self, *calls: Call) -> list[Reply]:
        try:
            return await self._node.send_each(*calls)
        except Unreachable:
            await self._cluster.lost()
            raise

    async def masters(self) -> list[Commands]:
        return [self]

    @property
    def away(self) -> bool:
        return self._node.away


class AsyncCluster:
    """A cluster, from one event loop; nodes are asked at the same time.

    Args:
        place: what connections are made with, and some nodes.
        owners: who owns what.
        timeout: seconds for a batch to be answered by one node.
    """

    def __init__(self, place: Place, owners: Map, timeout: float, identity: Identity, circuits: Circuits) -> None:
        self._place, self._map, self._timeout, self._identity = place, owners, timeout, identity
        self._circuits = circuits
        self._nodes: dict[Address, AsyncCommands] = {}
        self._leaving: set[asyncio.Task[None]] = set()
        self.beside: list[Any] = []  # what else belongs to this event loop, and ends with it
        self._refreshing = asyncio.Lock()
        self._closed = False

    def _node(self, address: Address) -> AsyncCommands:
        if self._closed:
            raise Unreachable("the guard is closed")
        node = self._nodes.get(address)
        if node is None:
            connect = redis_connector(self._place.at(address), self._timeout)
            circuit = self._circuits.of(_name(address))
            node = self._nodes[address] = AsyncCommands(connect, self._timeout, self._identity, circuit)
        return node

    async def send(self, *calls: Call) -> list[Reply]:
        return resp.first_error(await self.send_each(*calls))

    async def send_each(self, *calls: Call) -> list[Reply]:
        since = self._identity.generation
        if not self._map.masters:
            await self._refresh(0)
            _check(self._identity, since)
        routing = Routing(calls, self._map)
        for stage in routing.stages():
            routing.again = stage
            for _ in range(MOST_TRIES):
                version, routes = self._map.version, routing.next_routes()
                if not routes:
                    break
                _check(self._identity, since)
                await self._try(routing, routes)
                if routing.again and self._map.worth_asking(routing):
                    await self._refresh(version, routing)
                    _check(self._identity, since)
            routing.give_up()
        return routing.result()

    async def masters(self) -> list[Commands]:
        if time.monotonic() >= self._map.heard_at + REFRESH_EVERY:
            await self._refresh(self._map.version)
        return [self._node(address) for address in self._map.masters]

    @property
    def away(self) -> bool:
        nodes = [self._nodes.get(address) for address in self._map.masters]
        return bool(nodes) and all(node is not None and node.away for node in nodes)

    async def _try(self, routing: Routing, routes: dict[Address, list[int]]) -> None:
        if len(routes) == 1:
            for address, mine in routes.items():
                await self._ask(routing, address, mine)
        else:
            every = [self._ask(routing, address, mine) for address, mine in routes.items()]
            for outcome in await together(every):
                if isinstance(outcome, BaseException):
                    raise outcome
        for address, index in routing.detours():
            try:
                _, reply = await self._node(address).send_each(*routing.asking(index))
                routing.answered(address, [index], [reply])
            except Unreachable as error:
                routing.failed(address, [index], error)
        routing.no_more_detours()

    async def _ask(self, routing: Routing, address: Address, indices: Sequence[int]) -> None:
        try:
            routing.answered(address, indices, await self._node(address).send_each(*routing.of(indices)))
        except Unreachable as error:
            routing.failed(address, indices, error)

    async def _refresh(self, version: int, routing: Routing | None = None) -> None:
        """Ask who owns what, unless somebody else has done so since *version*."""
        async with self._refreshing:
            if self._map.version != version:
                return
            until, failure = time.monotonic() + PATIENCE * self._timeout, Unreachable("no node of the cluster answers")
            for address in self._map.candidates(routing):
                try:
                    self._map.learn(address, (await self._ask_slots(address))[0])
                except Unreachable as error:
                    failure = error
                else:
                    self._forget_nodes()
                    return
                if time.monotonic() > until:
                    break
            raise failure

    async def _ask_slots(self, address: Address) -> list[Reply]:
        try:
            return await self._node(address).send(SLOTS)
        except AnotherServer:  # known by now
            return await self._node(address).send(SLOTS)

    def _forget_nodes(self) -> None:
        for address in set(self._nodes) - {*self._map.masters, *self._place.nodes}:
            task = asyncio.get_running_loop().create_task(self._nodes.pop(address).aclose())
            self._leaving.add(task)
            task.add_done_callback(self._leaving.discard)

    async def aclose(self) -> None:
        """End the tasks and the connections."""
        self._closed = True
        await asyncio.gather(*(node.aclose() for node in self._nodes.values()), *self._leaving)
        for each in self.beside:
            await each.aclose()

    def abandon(self) -> None:
        """Let go of connections whose event loop is gone."""
        for node in (*self._nodes.values(), *self.beside):
            node.abandon()


def _name(address: Address) -> str:
    return f"{address[0]}:{address[1]}"


def _check(identity: Identity, since: int) -> None:
    if identity.generation != since:
        raise AnotherServer
