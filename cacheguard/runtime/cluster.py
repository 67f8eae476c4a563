"""Redis Cluster: each call goes to the node that owns its slot; and the ways to Redis of one guard."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections.abc import Sequence
from typing import Any

import redis.exceptions
from redis.crc import REDIS_CLUSTER_HASH_SLOTS, key_slot

from ..errors import Refused, Unreachable
from ..faults import Fault
from ..ports import AnotherServer, Call, Commands, PartlyUnreachable, Reply, ScriptCall
from . import resp, run_now
from .aio_redis import AsyncCommands, redis_connector
from .blocking_redis import BlockingCommands, redis_commands
from .circuits import Circuits
from .places import Address, Place
from .replicas import AsyncReplicas, BlockingReplicas, Following, following_of
from .servers import Identity

MOST_TRIES = 5  # of a call that is sent from one node to the next while slots move
AGAIN_AFTER = 0.1  # seconds, before the nodes are asked once more who is in the place of one that is silent
REFRESH_EVERY = 10.0  # seconds; a change that nobody runs into is noticed nevertheless
PATIENCE = 2  # timeouts, in which several nodes are asked who owns what
# What a script meets that has removed a key whose slot is being moved away: begun again, it is sent on.
NOT_HERE = "non local key"
FIRST = "tagged"  # the script that makes a note of what follows
WORDS_OF_A_NODE = 2  # host and port; its id and more may follow
SLOTS = ("CLUSTER", "SLOTS")


class Map:
    """Who owns which slot, as it was heard last; shared by the threads and the event loops of one guard.

    Args:
        place: its nodes are asked while no others are known.
        identity: is told when a slot has another owner.
    """

    def __init__(self, place: Place, identity: Identity) -> None:
        self._place, self._identity = place, identity
        self.owners: list[Address | None] = [None] * REDIS_CLUSTER_HASH_SLOTS
        self.masters: tuple[Address, ...] = ()
        self.replicas: dict[Address, tuple[Address, ...]] = {}
        self.version = 0
        self.heard_at = float("-inf")
        self._ids: dict[Address, bytes] = {}
        self._lock = threading.RLock()

    def after_fork(self) -> None:
        self._lock = threading.RLock()

    def candidates(self, batch: _Batch | None) -> list[Address]:
        """Those that may know, the likeliest first; at the end those that did not answer just now."""
        known = [*random.sample(self.masters, len(self.masters)), *self._place.nodes]
        if batch is not None:
            known.sort(key=lambda address: address in batch.silent)
            if batch.hint is not None:
                known.insert(0, batch.hint)
        return list(dict.fromkeys(known))

    def worth_asking(self, batch: _Batch) -> bool:
        """Whether the nodes may say something else now than they did a moment ago."""
        return batch.hint is not None or time.monotonic() >= self.heard_at + AGAIN_AFTER

    def learn(self, asked: Address, reply: Reply) -> None:
        """Take in what *asked* has answered to CLUSTER SLOTS."""
        owners: list[Address | None] = [None] * REDIS_CLUSTER_HASH_SLOTS
        ids: dict[Address, bytes] = {}
        replicas: dict[Address, tuple[Address, ...]] = {}
        for begin, end, master, *others in reply:
            address = self.address(master[0], master[1], asked)
            ids[address] = bytes(master[2]) if len(master) > WORDS_OF_A_NODE else str(address).encode()
            replicas[address] = tuple(self.address(each[0], each[1], asked) for each in others)
            owners[begin : end + 1] = [address] * (end + 1 - begin)
        if not ids:
            raise Refused(f"{asked[0]}:{asked[1]} knows of no slots: the cluster is not set up")
        with self._lock:
            # By the ids of the nodes: one that has only moved house is the same.
            before, self._ids = self._ids, ids
            pairs = {(old, new) for old, new in zip(self.owners, owners, strict=True) if old and new and old != new}
            moves = {(before.get(old), ids.get(new)) for old, new in pairs}
            # A master that hands a slot to another one hands over what is in it: nothing that it has acknowledged is
            # lost. Where one has gone, or one is new, it may have been a failover.
            stay = set(before.values()) & set(ids.values())
            moved = any(old != new and not (old in stay and new in stay) for old, new in moves)
            self.owners = [new or old for old, new in zip(self.owners, owners, strict=True)]
            self.masters = tuple(dict.fromkeys(owner for owner in self.owners if owner is not None))
            self._ids = {address: ids.get(address) or before.get(address, b"") for address in self.masters}
            self.replicas = replicas
            self.version += 1
            self.heard_at = time.monotonic()
            if moved:
                self._identity.changed()

    def address(self, host: Any, port: Any, asked: Address) -> Address:
        """Where a node is that *asked* has named; without a host, it is where *asked* is."""
        name = host.decode() if isinstance(host, bytes) else host
        found = (name if name and name != "?" else asked[0], int(port))
        return self._place.remap(found) if self._place.remap is not None else found


class _Batch:
    """Calls on their way, and what became of them.

    A node gets its calls in their order. Between nodes there is none, except where the protocol rests on it: notes
    come before the rest, and questions that stand behind scripts are asked when these are through.
    """

    def __init__(self, calls: Sequence[Call], owners: Map) -> None:
        self.calls, self._map = calls, owners
        self.replies: list[Reply] = [None] * len(calls)
        self._anywhere: Address | None = None
        self.again: list[int] = []  # calls that have to be repeated
        self.silent: dict[Address, Unreachable] = {}  # nodes that did not answer
        self.hint: Address | None = None  # a node that may know more
        self.asked: list[tuple[Address, int]] = []  # calls that another node has to be asked for, this once
        self._named: dict[int, Address] = {}  # calls for which a node has named another
        self._repeated: set[int] = set()  # calls that were refused by the cluster once
        self._lost: dict[int, Unreachable] = {}  # calls for which nobody could be asked

    def stages(self) -> list[list[int]]:
        """The indices of the calls, stage after stage."""
        stages: tuple[list[int], list[int], list[int]] = ([], [], [])
        scripts = False
        for index, call in enumerate(self.calls):
            if isinstance(call, ScriptCall):
                scripts = True
                stages[call.script.name != FIRST].append(index)
            else:
                stages[2 if scripts else 1].append(index)
        used = [stage for stage in stages if stage]
        if len(used) > 1 and len(self.routes(range(len(self.calls)))) == 1:
            return [list(range(len(self.calls)))]
        return used

    def routes(self, indices: Sequence[int]) -> dict[Address, list[int]]:
        """Which node gets which calls; those that no node takes are given up."""
        routes: dict[Address, list[int]] = {}
        for index in indices:
            owner = self._named.get(index) or self._owner(self.calls[index])
            if owner is None:
                self._lost[index] = Unreachable("no node of the cluster owns this slot")
            elif owner in self.silent:
                self._lost[index] = self.silent[owner]
            else:
                routes.setdefault(owner, []).append(index)
        return routes

    def _owner(self, call: Call) -> Address | None:
        if isinstance(call, ScriptCall):
            key: Any = call.keys[0]
        elif call[0] == "PUBLISH":
            if self._anywhere is None:
                able = [address for address in self._map.masters if address not in self.silent]
                self._anywhere = random.choice(able or self._map.masters)
            return self._anywhere
        else:
            key = call[1]
        return self._map.owners[key_slot(key.encode() if isinstance(key, str) else bytes(key))]

    def of(self, indices: Sequence[int]) -> list[Call]:
        return [self.calls[index] for index in indices]

    def next_routes(self) -> dict[Address, list[int]]:
        """Which node gets which of the calls that are to be made now; a node that was silent once gets no more."""
        again, self.again = sorted(self.again), []
        return self.routes(again)

    def failed(self, node: Address, indices: Sequence[int], error: Unreachable) -> None:
        """A node did not answer."""
        self.again += indices
        self.silent[node] = error
        for index in indices:
            self._named.pop(index, None)
        if self._anywhere == node:
            self._anywhere = None

    def give_up(self) -> None:
        """Nothing more is tried for what is still to be repeated; what else there is goes on."""
        for index in self.again:
            self._lost[index] = Unreachable(f"the nodes of the cluster send us on and on: {self.replies[index]}")
        self.again = []

    def result(self) -> list[Reply]:
        """The answers; `PartlyUnreachable` if there is not one for each call."""
        if self._lost:
            replies = [self._lost.get(index, reply) for index, reply in enumerate(self.replies)]
            raise PartlyUnreachable(replies, next(iter(self._lost.values())))
        return self.replies

    def answered(self, node: Address, indices: Sequence[int], replies: Sequence[Reply]) -> None:
        """A node has answered, perhaps with the name of another."""
        for index, reply in zip(indices, replies, strict=True):
            self.replies[index] = reply
            if not isinstance(reply, Refused):
                continue
            cause = reply.__cause__
            if isinstance(cause, redis.exceptions.MovedError):
                self.hint = self._named[index] = self._map.address(*_target(cause), node)
                self.again.append(index)
            elif isinstance(cause, redis.exceptions.AskError):
                self.asked.append((self._map.address(*_target(cause), node), index))
            elif NOT_HERE in str(reply):
                self.again.append(index)
            elif reply.fault in (Fault.CLUSTER_DOWN, Fault.READONLY):
                self._named.pop(index, None)
                if index in self._repeated:
                    self._lost[index] = Unreachable(str(reply))
                else:
                    self._repeated.add(index)
                    self.again.append(index)

    def detours(self) -> list[tuple[Address, int]]:
        """The calls that a node has sent on to the one which is about to take over."""
        asked, self.asked = self.asked, []
        return asked

    def no_more_detours(self) -> None:
        """Whoever was sent on once more begins at the beginning."""
        self.again += [index for _, index in self.detours()]

    def asking(self, index: int) -> list[Call]:
        """A call to a node that is about to take over its slot."""
        call = self.calls[index]
        if isinstance(call, ScriptCall):  # with its text: a second try would have to ask once more
            call = ("EVAL", call.script.source, len(call.keys), *call.keys, *call.args)
        return [("ASKING",), call]


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
        batch = _Batch(calls, self._map)
        for stage in batch.stages():
            batch.again = stage
            for _ in range(MOST_TRIES):
                version, routes = self._map.version, batch.next_routes()
                if not routes:
                    break
                await self._try(batch, routes, since)
                if batch.again and self._map.worth_asking(batch):
                    await self._refresh(version, batch)
                    _check(self._identity, since)
            batch.give_up()
        return batch.result()

    async def _try(self, batch: _Batch, routes: dict[Address, list[int]], since: int) -> None:
        for address, mine in routes.items():
            _check(self._identity, since)
            try:
                batch.answered(address, mine, await self._node(address).send_each(*batch.of(mine)))
            except Refused:
                raise
            except Unreachable as error:
                batch.failed(address, mine, error)
        for address, index in batch.detours():
            try:
                _, reply = await self._node(address).send_each(*batch.asking(index))
                batch.answered(address, [index], [reply])
            except Unreachable as error:
                batch.failed(address, [index], error)
        batch.no_more_detours()

    async def _refresh(self, version: int, batch: _Batch | None = None) -> None:
        """Ask who owns what, unless somebody else has done so since *version*."""
        with self._lock:
            if self._map.version != version:
                return
            until, failure = time.monotonic() + PATIENCE * self._timeout, Unreachable("no node of the cluster answers")
            for address in self._map.candidates(batch):
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
        batch = _Batch(calls, self._map)
        for stage in batch.stages():
            batch.again = stage
            for _ in range(MOST_TRIES):
                version, routes = self._map.version, batch.next_routes()
                if not routes:
                    break
                _check(self._identity, since)
                await self._try(batch, routes)
                if batch.again and self._map.worth_asking(batch):
                    await self._refresh(version, batch)
                    _check(self._identity, since)
            batch.give_up()
        return batch.result()

    async def masters(self) -> list[Commands]:
        if time.monotonic() >= self._map.heard_at + REFRESH_EVERY:
            await self._refresh(self._map.version)
        return [self._node(address) for address in self._map.masters]

    @property
    def away(self) -> bool:
        nodes = [self._nodes.get(address) for address in self._map.masters]
        return bool(nodes) and all(node is not None and node.away for node in nodes)

    async def _try(self, batch: _Batch, routes: dict[Address, list[int]]) -> None:
        if len(routes) == 1:
            for address, mine in routes.items():
                await self._ask(batch, address, mine)
        else:
            every = [self._ask(batch, address, mine) for address, mine in routes.items()]
            for outcome in await asyncio.gather(*every, return_exceptions=True):
                if isinstance(outcome, BaseException):
                    raise outcome
        for address, index in batch.detours():
            try:
                _, reply = await self._node(address).send_each(*batch.asking(index))
                batch.answered(address, [index], [reply])
            except Unreachable as error:
                batch.failed(address, [index], error)
        batch.no_more_detours()

    async def _ask(self, batch: _Batch, address: Address, indices: Sequence[int]) -> None:
        try:
            batch.answered(address, indices, await self._node(address).send_each(*batch.of(indices)))
        except Unreachable as error:
            batch.failed(address, indices, error)

    async def _refresh(self, version: int, batch: _Batch | None = None) -> None:
        """Ask who owns what, unless somebody else has done so since *version*."""
        async with self._refreshing:
            if self._map.version != version:
                return
            until, failure = time.monotonic() + PATIENCE * self._timeout, Unreachable("no node of the cluster answers")
            for address in self._map.candidates(batch):
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


class Wires:
    """The ways to Redis of one guard.

    Args:
        place: for threads; None if only event loops use the guard. The bus has a thread in any case.
        aplace: for event loops.
        most: connections at once, of all threads.
        timeout: seconds for each round trip.
    """

    def __init__(
        self,
        place: Place | None,
        aplace: Place | None,
        most: int,
        timeout: float,
        identity: Identity,
        circuits: Circuits,
    ) -> None:
        self._aplace, self._timeout, self._identity, self.circuits = aplace, timeout, identity, circuits
        threads = place
        if threads is None and aplace is not None:
            threads = aplace.twin()
        if threads is None:
            raise ValueError("neither a place for threads nor one for event loops")
        self._threads = threads
        self._map = Map(threads, identity) if threads.nodes else None
        self.blocking: BlockingCommands | BlockingCluster
        if self._map is not None:
            self.blocking = BlockingCluster(threads, self._map, most, timeout, identity, circuits)
        else:
            self.blocking = redis_commands(threads, most, timeout, identity, circuits.of(""))
        self._following: Following | None = None
        self.replicas: BlockingReplicas | None = None
        self._connect = None
        if aplace is not None:
            self._connect = redis_connector(aplace.at(aplace.nodes[0]) if aplace.nodes else aplace, timeout)

    def running(self) -> AsyncCommands | AsyncCluster:
        """A way for the event loop that runs here."""
        if self._aplace is None or self._connect is None:
            raise ValueError("there is no place for event loops")
        if self._map is not None:
            return AsyncCluster(self._aplace, self._map, self._timeout, self._identity, self.circuits)
        return AsyncCommands(self._connect, self._timeout, self._identity, self.circuits.of(""))

    def ask(self, name: str) -> float:
        """Ask one server whether it is well; the seconds that its answer took."""
        server, began = self.blocking.server(name), time.monotonic()
        try:
            run_now(server.send(("PING",)))
        except AnotherServer:
            run_now(server.send(("PING",)))
        return time.monotonic() - began

    def follow(self, prefix: str, most: int) -> Following:
        """Read from replicas, too; who listens keeps watch over them, by keys that begin with *prefix*."""
        self._following = following_of(self._threads, self._map, prefix, most, self._timeout, self.circuits)
        self.replicas = BlockingReplicas(self._following)
        return self._following

    def replicas_beside(self, way: AsyncCommands | AsyncCluster) -> AsyncReplicas | None:
        """Replicas for the event loop that goes this *way*, ended with it; None if they are not to be read from."""
        if self._following is None or self._aplace is None:
            return None
        place = self._aplace if self._aplace.nodes else self._aplace.of_replicas()
        found = AsyncReplicas(self._following, place, self._timeout)
        way.beside.append(found)
        return found

    def close(self) -> None:
        """Close every connection of the threads."""
        self.blocking.close()
        if self._following is not None:
            self._following.close()

    def after_fork(self) -> None:
        """Forget the parent's connections without touching their sockets."""
        self.blocking.after_fork()
        if self._following is not None:
            self._following.after_fork()


def _target(redirection: Any) -> tuple[str, int]:
    return redirection.host, redirection.port


def _name(address: Address) -> str:
    return f"{address[0]}:{address[1]}"


def _check(identity: Identity, since: int) -> None:
    if identity.generation != since:
        raise AnotherServer
