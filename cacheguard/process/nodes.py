"""One Redis as a guard in this process knows it: the ways to it, what is pending to it, and what is heard from it."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from ..client.endpoints import Endpoint
from ..client.identity import Identity, Steady, look_of
from ..delivery.bus import Bus, Kept
from ..delivery.counted import Counted
from ..delivery.gate import Gate
from ..delivery.outbox import Outbox
from ..errors import Unreachable
from ..events import Events
from ..options import Options
from ..ports import Commands, Replicas, Reply
from ..protocol.messages import Drop, Woken
from ..runtime import run_now
from ..servers.buses import Buses, Trust
from ..servers.hashing import HashRing
from ..servers.members import Members
from ..servers.ring import Ring
from ..servers.ring_commands import RingCommands
from ..tiers.entries import Entries
from ..tiers.packing import Packing
from ..tiers.remote import Remote

if TYPE_CHECKING:
    from ..client.aio import AsyncCommands
    from ..client.listener import Listener
    from ..delivery.ledger import FileLedger
    from ..ports import Runtime
    from ..servers.cluster import AsyncNodes, Cluster
    from ..servers.wires import Wires
    from ..tiers.local import Local

MOST_CONNECTIONS = 64
PATIENCE_AT_FORK = 0.5  # seconds
NOWHERE = Endpoint(None, {})

Way = TypeVar("Way")
Ways: TypeAlias = Mapping[str, Way]  # by the names of the nodes
AsyncWay: TypeAlias = "AsyncCommands | Cluster[AsyncNodes]"


class Node:
    """One server, or the servers behind one Sentinel service, or one cluster.

    Args:
        endpoint: for threads; None if only event loops use the guard.
        aendpoint: for event loops.
        channel: of the guard's bus.
        root: the marker of the guard's namespace.
        local: the in-process tier, as this node's bus may treat it.
        forget: as `Bus` has it.
        missed: drops what this process keeps beside the in-process tier, when something may have gone unheard.
        events: where it is counted.
        now: monotonic seconds.
        name: what it is called among several; ``""`` for the only one.
    """

    events: Events
    name: str
    options: Options

    def __init__(
        self,
        endpoint: Endpoint | None,
        aendpoint: Endpoint | None,
        options: Options,
        *,
        channel: str,
        root: str,
        local: Kept,
        forget: Callable[[Drop | Woken], None],
        missed: Callable[[], None],
        events: Events,
        now: Callable[[], float],
        name: str = "",
    ) -> None:
        from ..client.circuits import Circuits
        from ..client.listener import Listener
        from ..servers.wires import Wires

        self._ledger: FileLedger | None = None
        self._at_the_file = threading.RLock()
        if options.outbox is not None:
            from ..delivery.ledger import FileLedger

            self._ledger = FileLedger(options.outbox, root, self._at_the_file, name)
        self.name, self.events, self.options = name, events, options
        self.outbox: Outbox = Outbox(root, events, now, self._ledger, threading.RLock())
        self.bus: Bus = Bus(channel, os.urandom(8).hex(), forget, _Heard(local, missed), events, now=now)
        self.circuits: Circuits = Circuits(options.operation_timeout, events)
        self._identity = identity = Identity(partial(_replay, self.outbox))
        if self._ledger is not None:
            identity.remember(self._ledger.met())
        self.wires: Wires = Wires(
            endpoint, aendpoint, MOST_CONNECTIONS, options.operation_timeout, identity, self.circuits
        )
        gate, outbox = self.gate(self.wires.blocking), self.outbox
        self.circuits.probe_with(partial(_found_out, self.wires, gate))
        on_beat = None
        if options.from_replicas:
            self.bus.keep_notes(threading.RLock())
            on_beat = self.wires.follow(f"{channel}:beat:", MOST_CONNECTIONS).beat
        self.listener: Listener = Listener(
            self.bus,
            self.wires.blocking,
            gate,
            events,
            lambda: outbox.has_pending,
            on_beat=on_beat,
            on_look=partial(_look, identity, outbox),
        )
        self.bus.start = _starting(weakref.ref(self.listener))

    def gate(self, commands: Commands, replicas: Replicas | None = None) -> Gate:
        """The way to it through *commands*, on which nothing is asked before pending invalidations are delivered."""
        if self.outbox.pending or self.outbox.has_journal:  # an earlier process has left it
            self.bus.listen()
        return Gate(commands, self.events, self.outbox, self.bus, replicas)

    def replicas(self, way: Any) -> Replicas | None:
        """Its replicas, for who goes this *way* to the masters; None if they are not to be read from."""
        return self.wires.replicas if way is self.wires.blocking else self.wires.replicas_beside(way)

    def keep_journal(self) -> None:
        """Write to the outbox file, if there is one, what an heir may have to repeat."""
        self.outbox.keep_journal(self._identity.known)

    def before_fork(self) -> Callable[[], None] | None:
        """Let no other thread be at the outbox file, whose library has locks that a child could not open.

        What to call in the parent afterwards; None if there is nothing, or a thread is at it for too long.
        """
        if self._ledger is None or not self._at_the_file.acquire(timeout=PATIENCE_AT_FORK):
            return None
        return self._at_the_file.release

    def after_fork(self) -> None:
        """Leave the parent's threads and connections to the parent."""
        self.events.bus_up = False
        self.bus.rename(os.urandom(8).hex())
        self.outbox.lock = threading.RLock()
        self._at_the_file = threading.RLock()
        if self._ledger is not None:
            self._ledger.after_fork(self._at_the_file)
        self.listener.after_fork()
        self.circuits.after_fork()
        if self.options.from_replicas:
            self.bus.keep_notes(threading.RLock())
        self.wires.after_fork()


class _Heard:
    """The in-process tier and what is kept beside it, as a bus may treat them."""

    def __init__(self, local: Kept, missed: Callable[[], None]) -> None:
        self._local, self._missed = local, missed

    def pause(self) -> None:
        self._local.pause()

    def drop_shared(self) -> None:
        self._local.drop_shared()
        self._missed()

    def trust(self, until: float) -> None:
        self._local.trust(until)


def _replay(outbox: Outbox, of_unknown_age: bool) -> None:  # noqa: FBT001 - a callback's only argument
    outbox.replay(of_unknown_age=of_unknown_age)


def _look(
    identity: Identity,
    outbox: Outbox,
    at: float,
    said: Mapping[str, Sequence[Reply]],
    whole: bool,  # noqa: FBT001 - a callback's arguments
) -> None:
    """Take in what the servers have said with a heartbeat that was sent *at*; *whole*: all of them."""
    saved: list[float] = []
    for name, replies in said.items():
        look = look_of(replies)
        if look is None:
            whole = False
            outbox.untold()
            continue
        saved_at = identity.look(name, look, at)
        if saved_at is not None:
            saved.append(saved_at)
    if whole and saved and len(saved) == len(said):
        outbox.saved(min(saved))
    outbox.keep_journal(identity.known)


def _found_out(wires: Wires, gate: Gate, name: str) -> float:
    """Ask a server whether it is well; pending invalidations are delivered before anybody reads there again."""
    took = wires.ask(name)
    with suppress(Unreachable):  # refused, or pending for another server: whoever reads will meet it
        run_now(gate.deliver_pending())
    return took


def _starting(listener: weakref.ref[Listener]) -> Callable[[], None]:
    def start() -> None:
        found = listener()
        if found is not None:
            found.start()

    return start


class Nodes:
    """All the Redis of a guard: one node, or the several of a ring.

    Args:
        make: makes a node of an endpoint for threads and one for event loops.
        now: monotonic seconds.
    """

    def __init__(
        self,
        endpoint: Endpoint | None,
        aendpoint: Endpoint | None,
        local: Local,
        events: Events,
        make: Callable[..., Node],
        now: Callable[[], float],
    ) -> None:
        plan = (endpoint or aendpoint or NOWHERE).ring
        self._members: Members | None = None
        self._trust: Trust | None = None
        self.bus: Bus | Buses
        if plan is None:
            self._nodes = {"": make(endpoint, aendpoint, local=local, events=events)}
            self.bus = self._nodes[""].bus
            return
        self._trust = Trust(local, plan.addresses)
        self._nodes = {
            name: make(
                endpoint and endpoint.of(name),
                aendpoint and aendpoint.of(name),
                local=self._trust.of(name),
                events=Events(name, events),
                name=name,
            )
            for name in plan.addresses
        }
        buses = {name: node.bus for name, node in self._nodes.items()}
        seen = {name: node.events for name, node in self._nodes.items()}
        also = HashRing(plan.also) if plan.also else None
        self._members = Members(HashRing(plan.weights), buses, seen, now, moves=plan.moves, also=also)
        self._trust.concerns = self._members.concerns
        self.bus = Buses(buses.values())

    @property
    def events(self) -> list[Events]:
        """The counters of each of several nodes."""
        return [] if self._members is None else [node.events for node in self._nodes.values()]

    @property
    def busy(self) -> bool:
        """Whether `close` would have to wait."""
        return any(node.listener.busy for node in self._nodes.values())

    def home_of(self, key: str) -> str:
        """The node that *key* belongs to, ``""`` where there is only one."""
        return "" if self._members is None else self._members.home_of(key)

    def blocking(self) -> Ways[Commands]:
        """The ways of threads."""
        return {name: node.wires.blocking for name, node in self._nodes.items()}

    def running(self) -> Ways[AsyncWay]:
        """Ways for the event loop that runs here."""
        return {name: node.wires.running() for name, node in self._nodes.items()}

    def commands(self, ways: Ways[Any]) -> Commands:
        """*ways* as one, for what is no entry."""
        counted = {name: Counted(Steady(way), self._nodes[name].events) for name, way in ways.items()}
        return counted[""] if self._members is None else RingCommands(counted, self._members)

    def remote(self, ways: Ways[Any], runtime: Runtime, packing: Packing, *, abreast: bool) -> Entries:
        """*ways* as one, for entries.

        Args:
            abreast: whether several nodes can be asked at the same time.
        """
        remotes = {
            name: Remote(
                self._nodes[name].gate(way, self._nodes[name].replicas(way)),
                packing,
                self._nodes[name].events,
            )
            for name, way in ways.items()
        }
        if self._members is None:
            return remotes[""]
        return Ring(runtime, remotes, self._members, len(remotes) if abreast else 1)

    def close(self, until: float) -> None:
        """End the threads; *until* (monotonic seconds) is how long to wait for them."""
        for node in self._nodes.values():  # all at once
            node.circuits.stop()
            node.listener.stop()
        for node in self._nodes.values():
            node.listener.close(until)
            node.circuits.close(until)
            node.keep_journal()

    def disconnect(self) -> None:
        """Close the connections that threads use."""
        for node in self._nodes.values():
            node.wires.close()

    def before_fork(self) -> list[Callable[[], None]]:
        """Get ready for a fork; what to call in the parent afterwards."""
        return [release for node in self._nodes.values() if (release := node.before_fork()) is not None]

    def after_fork(self) -> None:
        """Leave the parent's threads and connections to the parent."""
        if self._trust is not None:
            self._trust.reset()
        for node in self._nodes.values():
            node.after_fork()


class Bundle:
    """The connections of one event loop to several nodes, ended together."""

    def __init__(self, ways: Iterable[AsyncWay]) -> None:
        self._ways = list(ways)

    async def aclose(self) -> None:
        for way in self._ways:
            await way.aclose()

    def abandon(self) -> None:
        for way in self._ways:
            way.abandon()
