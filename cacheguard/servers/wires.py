"""The ways to Redis of one guard."""

from __future__ import annotations

import time

from ..client.aio import AsyncCommands, redis_connector
from ..client.blocking import BlockingCommands, redis_commands
from ..client.circuits import Circuits
from ..client.endpoints import Endpoint
from ..client.identity import Identity
from ..ports import AnotherServer
from ..runtime import run_now
from .cluster import AsyncNodes, BlockingNodes, Cluster
from .replicas import AsyncReplicas, BlockingReplicas, Following, following_of
from .slots import Map


class Wires:
    """The ways to Redis of one guard.

    Args:
        endpoint: for threads; None if only event loops use the guard. The bus has a thread in any case.
        aendpoint: for event loops.
        most: connections at once, of all threads.
        timeout: seconds for each round trip.
    """

    circuits: Circuits

    def __init__(
        self,
        endpoint: Endpoint | None,
        aendpoint: Endpoint | None,
        most: int,
        timeout: float,
        identity: Identity,
        circuits: Circuits,
    ) -> None:
        self._aendpoint, self._timeout, self._identity, self.circuits = aendpoint, timeout, identity, circuits
        threads = endpoint
        if threads is None and aendpoint is not None:
            threads = aendpoint.twin()
        if threads is None:
            raise ValueError("neither a place for threads nor one for event loops")
        self._threads = threads
        self._map = Map(threads, identity) if threads.nodes else None
        self.blocking: BlockingCommands | Cluster[BlockingNodes]
        if self._map is not None:
            nodes = BlockingNodes(threads, most, timeout, identity, circuits)
            self.blocking = Cluster(nodes, self._map, timeout, identity)
        else:
            self.blocking = redis_commands(threads, most, timeout, identity, circuits.of(""))
        self._following: Following | None = None
        self.replicas: BlockingReplicas | None = None
        self._connect = None
        if aendpoint is not None:
            self._connect = redis_connector(aendpoint.at(aendpoint.nodes[0]) if aendpoint.nodes else aendpoint, timeout)

    def running(self) -> AsyncCommands | Cluster[AsyncNodes]:
        """A way for the event loop that runs here."""
        if self._aendpoint is None or self._connect is None:
            raise ValueError("there is no place for event loops")
        if self._map is not None:
            nodes = AsyncNodes(self._aendpoint, self._timeout, self._identity, self.circuits)
            return Cluster(nodes, self._map, self._timeout, self._identity)
        return AsyncCommands(self._connect, self._timeout, self._identity, self.circuits.of(""))

    def ask(self, name: str) -> float:
        """Ask one server whether it is well; the seconds that its answer took."""
        server, began = self.blocking.server(name), time.monotonic()
        for _ in range(2):  # one that is another one each time has said who it is, so it answers
            try:
                run_now(server.send(("PING",)))
                break
            except AnotherServer:
                continue
        return time.monotonic() - began

    def follow(self, prefix: str, most: int) -> Following:
        """Read from replicas, too; who listens keeps watch over them, by keys that begin with *prefix*."""
        self._following = following_of(self._threads, self._map, prefix, most, self._timeout, self.circuits)
        self.replicas = BlockingReplicas(self._following)
        return self._following

    def replicas_beside(self, way: AsyncCommands | Cluster[AsyncNodes]) -> AsyncReplicas | None:
        """Replicas for the event loop that goes this *way*, ended with it; None if they are not to be read from."""
        if self._following is None or self._aendpoint is None:
            return None
        endpoint = self._aendpoint if self._aendpoint.nodes else self._aendpoint.of_replicas()
        found = AsyncReplicas(self._following, endpoint, self._timeout)
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
