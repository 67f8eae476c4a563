"""The ways to Redis of one guard."""

from __future__ import annotations

import time

from ..client.aio import AsyncCommands, redis_connector
from ..client.blocking import BlockingCommands, redis_commands
from ..client.circuits import Circuits
from ..client.identity import Identity
from ..client.places import Place
from ..ports import AnotherServer
from ..runtime import run_now
from .cluster import AsyncNodes, BlockingNodes, Cluster
from .replicas import AsyncReplicas, BlockingReplicas, Following, following_of
from .slots import Map


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
        self.blocking: BlockingCommands | Cluster[BlockingNodes]
        if self._map is not None:
            nodes = BlockingNodes(threads, most, timeout, identity, circuits)
            self.blocking = Cluster(nodes, self._map, timeout, identity)
        else:
            self.blocking = redis_commands(threads, most, timeout, identity, circuits.of(""))
        self._following: Following | None = None
        self.replicas: BlockingReplicas | None = None
        self._connect = None
        if aplace is not None:
            self._connect = redis_connector(aplace.at(aplace.nodes[0]) if aplace.nodes else aplace, timeout)

    def running(self) -> AsyncCommands | Cluster[AsyncNodes]:
        """A way for the event loop that runs here."""
        if self._aplace is None or self._connect is None:
            raise ValueError("there is no place for event loops")
        if self._map is not None:
            nodes = AsyncNodes(self._aplace, self._timeout, self._identity, self.circuits)
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
