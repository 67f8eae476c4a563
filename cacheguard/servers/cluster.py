"""Redis Cluster: each call goes to the node that owns its slot."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from functools import partial
from typing import Any, Generic, Protocol, TypeVar

from ..client import resp
from ..client.aio import AsyncCommands, redis_connector
from ..client.blocking import BlockingCommands, redis_commands
from ..client.circuits import Circuits
from ..client.endpoints import Address, Endpoint
from ..client.identity import Identity
from ..errors import Unreachable
from ..ports import AnotherServer, Call, Commands, Reply
from ..runtime import run_now
from ..runtime.together import together
from .slots import Map, Routing

MOST_TRIES = 5  # of a call that is sent from one node to the next while slots move
REFRESH_EVERY = 10.0  # seconds; a change that nobody runs into is noticed nevertheless
PATIENCE = 2  # timeouts, in which several nodes are asked who owns what
SLOTS = ("CLUSTER", "SLOTS")


class Nodes(Protocol):
    """The nodes of one cluster, and how one waits for them: with threads, or in one event loop."""

    @property
    def open(self) -> Mapping[Address, Commands]:
        """The nodes that have been asked so far."""
        ...

    def of(self, address: Address) -> Commands:
        """The node at *address*."""
        ...

    def turn(self) -> AbstractAsyncContextManager[Any]:
        """Held by whoever asks the nodes who owns what; one at a time."""
        ...

    async def each(self, works: Sequence[Callable[[], Coroutine[Any, Any, None]]]) -> None:
        """Run *works*, side by side if that is possible; raise the first exception when all have ended."""
        ...

    def forget(self, addresses: Iterable[Address]) -> None:
        """Those nodes have left: close the connections to them."""
        ...


class BlockingNodes:
    """Nodes that threads ask; one after the other, since a thread waits for one thing at a time.

    Args:
        endpoint: what connections are made with, and some nodes.
        most: connections at once, to each node.
        timeout: seconds for connecting and for each reply.
    """

    def __init__(self, endpoint: Endpoint, most: int, timeout: float, identity: Identity, circuits: Circuits) -> None:
        self._endpoint, self._most, self._timeout = endpoint, most, timeout
        self._identity, self._circuits = identity, circuits
        self.open: dict[Address, BlockingCommands] = {}
        self._closed = False
        self._lock = threading.RLock()
        self.of(endpoint.nodes[0])  # settings that make no connection are refused now

    def of(self, address: Address) -> BlockingCommands:
        node = self.open.get(address)
        if node is not None:
            return node
        with self._lock:
            node = self.open.get(address)
            if node is None:
                circuit = self._circuits.of(_name(address))
                node = redis_commands(self._endpoint.at(address), self._most, self._timeout, self._identity, circuit)
                if self._closed:
                    node.close()
                self.open[address] = node
            return node

    def turn(self) -> AbstractAsyncContextManager[Any]:
        return _Turn(self._lock)

    async def each(self, works: Sequence[Callable[[], Coroutine[Any, Any, None]]]) -> None:
        for work in works:
            await work()

    def forget(self, addresses: Iterable[Address]) -> None:
        with self._lock:
            for address in addresses:
                self.open.pop(address).close()
                self._circuits.drop(_name(address))

    def close(self) -> None:
        with self._lock:
            self._closed = True
            for node in self.open.values():
                node.close()

    def after_fork(self) -> None:
        self._lock = threading.RLock()
        for node in self.open.values():
            node.after_fork()


class _Turn(AbstractAsyncContextManager[None]):
    """A lock of threads as one that is awaited; no generator, of which a loop that runs in this thread would hear."""

    def __init__(self, lock: Any) -> None:
        self._lock = lock

    async def __aenter__(self) -> None:
        self._lock.acquire()

    async def __aexit__(self, *_: object) -> None:
        self._lock.release()


class AsyncNodes:
    """Nodes that one event loop asks, several at the same time.

    Args:
        endpoint: what connections are made with.
        timeout: seconds for a batch to be answered by one node.
    """

    def __init__(self, endpoint: Endpoint, timeout: float, identity: Identity, circuits: Circuits) -> None:
        self._endpoint, self._timeout, self._identity, self._circuits = endpoint, timeout, identity, circuits
        self.open: dict[Address, AsyncCommands] = {}
        self.beside: list[Any] = []  # what else belongs to this event loop, and ends with it
        self._leaving: set[asyncio.Task[None]] = set()
        self._refreshing = asyncio.Lock()
        self._closed = False

    def of(self, address: Address) -> AsyncCommands:
        if self._closed:
            raise Unreachable("the guard is closed")
        node = self.open.get(address)
        if node is None:
            connect = redis_connector(self._endpoint.at(address), self._timeout)
            circuit = self._circuits.of(_name(address))
            node = self.open[address] = AsyncCommands(connect, self._timeout, self._identity, circuit)
        return node

    def turn(self) -> AbstractAsyncContextManager[Any]:
        return self._refreshing

    async def each(self, works: Sequence[Callable[[], Coroutine[Any, Any, None]]]) -> None:
        for outcome in await together(work() for work in works):
            if isinstance(outcome, BaseException):
                raise outcome

    def forget(self, addresses: Iterable[Address]) -> None:
        # The breaker stays: the thread that listens asks for the nodes, too, and it is the one to drop it.
        for address in addresses:
            task = asyncio.get_running_loop().create_task(self.open.pop(address).aclose())
            self._leaving.add(task)
            task.add_done_callback(self._leaving.discard)

    async def aclose(self) -> None:
        self._closed = True
        await asyncio.gather(*(node.aclose() for node in self.open.values()), *self._leaving)
        for each in self.beside:
            await each.aclose()

    def abandon(self) -> None:
        for node in (*self.open.values(), *self.beside):
            node.abandon()


N = TypeVar("N", bound=Nodes)


class Cluster(Generic[N]):
    """A cluster, from threads or from one event loop: it is `nodes` that know which.

    Args:
        nodes: `BlockingNodes` or `AsyncNodes`.
        owners: who owns what.
        timeout: seconds for a batch to be answered by one node.
    """

    def __init__(self, nodes: N, owners: Map, timeout: float, identity: Identity) -> None:
        self._nodes, self._map, self._timeout, self._identity = nodes, owners, timeout, identity

    async def send(self, *calls: Call) -> list[Reply]:
        return resp.first_error(await self.send_each(*calls))

    async def send_each(self, *calls: Call) -> list[Reply]:
        since = self._identity.generation
        if not self._map.masters:
            await self._refresh(0)
            self._check(since)
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
                    self._check(since)
            routing.give_up()
        return routing.result()

    async def _try(self, routing: Routing, routes: dict[Address, list[int]], since: int) -> None:
        """Ask each node once, and where one is about to hand over a slot, the one that takes it."""
        if len(routes) == 1:
            for address, mine in routes.items():
                await self._ask(routing, address, mine, since)
        else:
            await self._nodes.each(
                [partial(self._ask, routing, address, mine, since) for address, mine in routes.items()]
            )
        if not routing.asked:
            return
        for address, index in routing.detours():
            try:
                _, *replies = await self._nodes.of(address).send_each(*routing.asking(index))
                routing.answered(address, [index], replies)
            except Unreachable as error:
                routing.failed(address, [index], error)
        routing.no_more_detours()

    async def _ask(self, routing: Routing, address: Address, indices: Sequence[int], since: int) -> None:
        # A node takes the generation of now for its own beginning: who found another server meanwhile is not heard.
        self._check(since)
        try:
            routing.answered(address, indices, await self._nodes.of(address).send_each(*routing.of(indices)))
        except Unreachable as error:
            routing.failed(address, indices, error)

    def _check(self, since: int) -> None:
        if self._identity.generation != since:
            raise AnotherServer

    # Who owns what

    async def _refresh(self, version: int, routing: Routing | None = None) -> None:
        """Ask who owns what, unless somebody else has done so since *version*."""
        async with self._nodes.turn():
            if self._map.version != version:
                return
            until, failure = time.monotonic() + PATIENCE * self._timeout, Unreachable("no node of the cluster answers")
            for address in self._map.candidates(routing):
                try:
                    self._map.learn(address, (await self._ask_slots(address))[0])
                except Unreachable as error:
                    failure = error
                else:
                    self._nodes.forget(set(self._nodes.open) - self._map.known())
                    return
                if time.monotonic() > until:
                    break
            raise failure

    async def _ask_slots(self, address: Address) -> list[Reply]:
        try:
            return await self._nodes.of(address).send(SLOTS)
        except AnotherServer:  # known by now
            return await self._nodes.of(address).send(SLOTS)

    # The nodes, asked directly

    @property
    def away(self) -> bool:
        nodes = [self._nodes.open.get(address) for address in self._map.masters]
        return bool(nodes) and all(node is not None and node.away for node in nodes)

    async def masters(self) -> list[Commands]:
        return [master for _, master in await self._named_masters()]

    async def _named_masters(self) -> list[tuple[str, Commands]]:
        if time.monotonic() >= self._map.heard_at + REFRESH_EVERY:
            await self._refresh(self._map.version)
        return [(_name(address), _Node(self, self._nodes.of(address))) for address in self._map.masters]

    async def lost(self) -> None:
        """A node did not answer: look whether another one is in its place."""
        try:
            await self._refresh(self._map.version)
        except Unreachable:
            return

    # What only threads do: `self` says that it is their cluster

    def every_master(self: Cluster[BlockingNodes]) -> list[tuple[str, Commands]]:
        """The nodes that take writes."""
        return run_now(self._named_masters())

    def server(self: Cluster[BlockingNodes], name: str) -> Commands:
        """The node of that name; `Unreachable` if there is none any more."""
        for address, node in list(self._nodes.open.items()):
            if _name(address) == name:
                return _Node(self, node)
        raise Unreachable(f"{name} has left the cluster")

    def subscriber(self: Cluster[BlockingNodes]) -> Any:
        """A new connection to one of them: what is published anywhere is heard everywhere."""
        if not self._map.masters:
            run_now(self._refresh(0))
        return self._nodes.of(random.choice(self._map.masters)).subscriber()

    def close(self: Cluster[BlockingNodes]) -> None:
        """Close every connection; one that is in use, when it is given back."""
        self._nodes.close()

    def after_fork(self: Cluster[BlockingNodes]) -> None:
        """Forget the parent's connections without touching their sockets."""
        self._identity.after_fork()
        self._map.after_fork()
        self._nodes.after_fork()

    # What only an event loop does

    @property
    def beside(self: Cluster[AsyncNodes]) -> list[Any]:
        """What else belongs to this event loop, and ends with it."""
        return self._nodes.beside

    async def aclose(self: Cluster[AsyncNodes]) -> None:
        """End the tasks and the connections."""
        await self._nodes.aclose()

    def abandon(self: Cluster[AsyncNodes]) -> None:
        """Let go of connections whose event loop is gone."""
        self._nodes.abandon()


class _Node:
    """One node, asked directly."""

    def __init__(self, cluster: Cluster[Any], node: Commands) -> None:
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


def _name(address: Address) -> str:
    return f"{address[0]}:{address[1]}"
