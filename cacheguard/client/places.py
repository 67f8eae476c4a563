"""Where connections go: what a pool would know, and nothing that is connected."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

# What a connection of either kind understands alike.
_SHARED = frozenset({
    "host", "port", "path", "db", "username", "password", "client_name", "credential_provider", "protocol",
    "socket_keepalive", "socket_keepalive_options", "socket_type", "encoding", "encoding_errors",
})  # fmt: skip
Address = tuple[str, int]


@dataclass(frozen=True)
class RingPlan:
    """Several nodes that share the keys among them.

    Args:
        weights: by the names of the nodes, ``host:port``.
        also: likewise, of the ring by which other processes place the keys while the nodes are changed; empty: none.
        addresses: by the names of all of them.
        moves: whether the keys of a node that is away are looked for in the next one.
    """

    weights: dict[str, float]
    also: dict[str, float]
    addresses: dict[str, Address]
    moves: bool


@dataclass(frozen=True, repr=False)  # its settings hold passwords
class Place:
    """Where connections of one kind go: what a pool would know, and nothing that is connected.

    Args:
        nodes: in a cluster, those that may know the others.
        remap: where a node that the cluster names is to be found from here.
        ring: the nodes, where there are several that know nothing of one another.
    """

    connection_class: Any
    connection_kwargs: dict[str, Any]
    nodes: tuple[Address, ...] = ()
    remap: Callable[[Address], Address] | None = None
    ring: RingPlan | None = None

    def __repr__(self) -> str:
        """Where that is, like a URL; the settings hold a password."""
        scheme = "rediss" if self.tls else "redis"
        settings = self.connection_kwargs
        finder: Any = settings.get("connection_pool")
        if "path" in settings:
            return f"unix://{settings['path']}"
        if self.nodes:
            return f"{scheme}+cluster://{','.join(_joined(*node) for node in self.nodes)}"
        database = f"/{settings.get('db') or 0}"
        if self.ring is not None:
            return f"{scheme}+ring://{','.join(self.ring.weights)}{database}"
        if hasattr(finder, "places"):
            asked = [each.connection_kwargs for each in finder.places]
            hosts = ",".join(_joined(each.get("host"), each.get("port")) for each in asked)
            return f"{scheme}+sentinel://{hosts}/{finder.service}{database}"
        return f"{scheme}://{_joined(settings.get('host'), settings.get('port'))}{database}"

    @property
    def tls(self) -> bool:
        """Whether what is sent is encrypted."""
        return any(kind.__name__ == "SSLConnection" for kind in self.connection_class.__mro__)

    def of(self, name: str) -> Place:
        """One node of a ring."""
        if self.ring is None:
            raise ValueError("this place is no ring")
        return self.at(self.ring.addresses[name])

    def at(self, address: Address) -> Place:
        """One node of a cluster."""
        return Place(self.connection_class, {**self.connection_kwargs, "host": address[0], "port": address[1]})

    @property
    def has_replicas(self) -> bool:
        """Whether it can be found out which replicas there are."""
        return bool(self.nodes) or "connection_pool" in self.connection_kwargs

    def of_replicas(self) -> Place:
        """What connections to a replica are made with, where this one asks sentinels for the master."""
        kinds = ("redis.connection", "redis.asyncio.connection")
        plain = next(each for each in self.connection_class.__mro__ if each.__module__ in kinds)
        settings = {name: value for name, value in self.connection_kwargs.items() if name != "connection_pool"}
        return Place(plain, settings)

    def twin(self) -> Place:
        """The same for threads, if this is for event loops."""
        kind, settings = _blocking(self.connection_class, self.connection_kwargs)
        return replace(self, connection_class=kind, connection_kwargs=settings)


def _joined(host: object, port: object) -> str:
    name = str(host or "localhost")
    return f"[{name}]:{port or 6379}" if ":" in name else f"{name}:{port or 6379}"


def parameters_of(kind: Any) -> set[str]:
    """What a connection class takes, by itself and by those it is made of."""
    makers: list[Any] = [each.__dict__.get("__init__", object) for each in kind.__mro__]
    return {name for each in makers for name in inspect.signature(each).parameters}


def _blocking(kind: Any, settings: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """A connection class of redis.asyncio, and what it is made with, in their blocking form."""
    import redis.asyncio.connection as running
    import redis.asyncio.sentinel as running_sentinel
    import redis.connection as blocking
    import redis.sentinel as blocking_sentinel

    twins: list[tuple[Any, Any]] = [
        (running_sentinel.SentinelManagedSSLConnection, blocking_sentinel.SentinelManagedSSLConnection),
        (running_sentinel.SentinelManagedConnection, blocking_sentinel.SentinelManagedConnection),
        (running.UnixDomainSocketConnection, blocking.UnixDomainSocketConnection),
        (running.SSLConnection, blocking.SSLConnection),
        (running.Connection, blocking.Connection),
    ]
    twin = next((there for here, there in twins if issubclass(kind, here)), blocking.Connection)
    taken = parameters_of(twin)
    mine = {
        name: value
        for name, value in settings.items()
        if name in _SHARED or (name.startswith("ssl_") and name in taken)
    }
    finder: Any = settings.get("connection_pool")
    if hasattr(finder, "twin"):
        mine["connection_pool"] = finder.twin()
    return twin, mine
