"""Where connections go: what a pool would know, and nothing that is connected."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from . import redispy

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
class Endpoint:
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
        finder = self.finder
        if "path" in settings:
            return f"unix://{settings['path']}"
        if self.nodes:
            return f"{scheme}+cluster://{','.join(_joined(*node) for node in self.nodes)}"
        database = f"/{settings.get('db') or 0}"
        if self.ring is not None:
            return f"{scheme}+ring://{','.join(self.ring.weights)}{database}"
        if finder is not None:
            asked = [each.connection_kwargs for each in finder.endpoints]
            hosts = ",".join(_joined(each.get("host"), each.get("port")) for each in asked)
            return f"{scheme}+sentinel://{hosts}/{finder.service}{database}"
        return f"{scheme}://{_joined(settings.get('host'), settings.get('port'))}{database}"

    @property
    def tls(self) -> bool:
        """Whether what is sent is encrypted."""
        return redispy.is_tls(self.connection_class)

    @property
    def finder(self) -> Any:
        """Who asks sentinels for the master; None if nobody does."""
        return self.connection_kwargs.get(redispy.FINDER)

    def of(self, name: str) -> Endpoint:
        """One node of a ring."""
        if self.ring is None:
            raise ValueError("this endpoint is no ring")
        return self.at(self.ring.addresses[name])

    def at(self, address: Address) -> Endpoint:
        """One node of a cluster."""
        return Endpoint(self.connection_class, {**self.connection_kwargs, "host": address[0], "port": address[1]})

    @property
    def has_replicas(self) -> bool:
        """Whether it can be found out which replicas there are."""
        return bool(self.nodes) or self.finder is not None

    def of_replicas(self) -> Endpoint:
        """What connections to a replica are made with, where this one asks sentinels for the master."""
        settings = {name: value for name, value in self.connection_kwargs.items() if name != redispy.FINDER}
        return Endpoint(redispy.plain(self.connection_class), settings)

    def twin(self) -> Endpoint:
        """The same for threads, if this is for event loops."""
        kind, settings = redispy.blocking_form(self.connection_class, self.connection_kwargs)
        if self.finder is not None:
            settings[redispy.FINDER] = self.finder.twin()
        return replace(self, connection_class=kind, connection_kwargs=settings)


def _joined(host: object, port: object) -> str:
    name = str(host or "localhost")
    return f"[{name}]:{port or 6379}" if ":" in name else f"{name}:{port or 6379}"
