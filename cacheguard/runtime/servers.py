"""Where connections come from: a URL, or a client that lends its settings; and how a server is told from another."""

from __future__ import annotations

import inspect
import os
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from ..errors import ConfigurationError, Unreachable
from ..ports import AnotherServer, Call, Commands, Reply

SCHEMES = ("memory", "redis", "rediss", "unix", "redis+sentinel", "redis+cluster")
SENTINEL_PORT, REDIS_PORT = 26379, 6379
CHANGES = 3  # servers in a row that turn out to be others

# What a connection of either kind understands alike.
_SHARED = frozenset({
    "host", "port", "path", "db", "username", "password", "client_name", "credential_provider", "protocol",
    "socket_keepalive", "socket_keepalive_options", "socket_type", "encoding", "encoding_errors",
})  # fmt: skip
_QUESTION = b"*2\r\n$4\r\nINFO\r\n$6\r\nserver\r\n*2\r\n$4\r\nINFO\r\n$11\r\nreplication\r\n"

Address = tuple[str, int]
Facts = tuple[str, str, str]  # run id, replication id, role


class Identity:
    """Which servers the connections of one guard have reached; shared by its threads and its event loops.

    Args:
        on_change: called once for each change, before anything is sent to the other server.
    """

    QUESTION = _QUESTION  # to be sent over every new connection
    ANSWERS = 2

    def __init__(self, on_change: Callable[[], None]) -> None:
        self._on_change = on_change
        self._known: dict[str, Facts] = {}
        self.generation = 0  # connections and decisions of an older one count no more
        self._lock = threading.RLock()

    def tell(self, name: str, facts: Facts | None) -> int:
        """What a new connection to *name* has found; the generation to which that connection belongs."""
        if facts is None:
            return self.generation
        with self._lock:
            before = self._known.get(name)
            self._known[name] = facts
            if before is not None and before != facts:
                self.changed()
            return self.generation

    def changed(self) -> None:
        """Another server answers for something from now on."""
        with self._lock:
            self._on_change()
            self.generation += 1

    def after_fork(self) -> None:
        """A thread of the parent may have held the lock."""
        self._lock = threading.RLock()


def facts_of(server: Reply, replication: Reply) -> Facts | None:
    """What the two answers to `Identity.QUESTION` say; None if the server does not tell."""
    found = [
        re.search(pattern, text) if isinstance(text, bytes) else None
        for pattern, text in (
            (rb"run_id:(\w+)", server),
            (rb"master_replid:(\w+)", replication),
            (rb"role:(\w+)", replication),
        )
    ]
    run, history, role = (each[1].decode() if each else "" for each in found)
    return (run, history, role) if run and history else None


def is_wrong(connection: Any, facts: Facts | None) -> bool:
    """Whether Sentinel has led to a server that is no master, not any more or not yet."""
    return facts is not None and facts[2] == "slave" and hasattr(connection, "connection_pool")


class Steady:
    """Commands for those who tell one server from another by themselves: they need not hear of a change."""

    def __init__(self, commands: Commands) -> None:
        self._commands = commands

    async def send(self, *calls: Call) -> list[Reply]:
        for _ in range(CHANGES):
            try:
                return await self._commands.send(*calls)
            except AnotherServer:
                continue
        raise Unreachable(f"the server was another one {CHANGES} times in a row")

    async def send_each(self, *calls: Call) -> list[Reply]:
        for _ in range(CHANGES):
            try:
                return await self._commands.send_each(*calls)
            except AnotherServer:
                continue
        raise Unreachable(f"the server was another one {CHANGES} times in a row")

    async def masters(self) -> list[Commands]:
        return [Steady(each) for each in await self._commands.masters()]


@dataclass(frozen=True)
class Place:
    """Where connections of one kind go: what a pool would know, and nothing that is connected.

    Args:
        nodes: in a cluster, those that may know the others.
        remap: where a node that the cluster names is to be found from here.
    """

    connection_class: Any
    connection_kwargs: dict[str, Any]
    nodes: tuple[Address, ...] = ()
    remap: Callable[[Address], Address] | None = None

    def at(self, address: Address) -> Place:
        """One node of a cluster."""
        return Place(self.connection_class, {**self.connection_kwargs, "host": address[0], "port": address[1]})

    @property
    def has_replicas(self) -> bool:
        """Whether it can be found out which replicas there are."""
        return bool(self.nodes) or "connection_pool" in self.connection_kwargs

    def of_replicas(self) -> Place:
        """What connections to a replica are made with, where this one asks sentinels for the master."""
        kinds = [each for each in self.connection_class.__mro__ if each.__module__.endswith("redis.connection")]
        kinds += [each for each in self.connection_class.__mro__ if each.__module__.endswith("asyncio.connection")]
        settings = {name: value for name, value in self.connection_kwargs.items() if name != "connection_pool"}
        return Place(kinds[0], settings)

    def twin(self) -> Place:
        """The same for threads, if this is for event loops."""
        kind, settings = _blocking(self.connection_class, self.connection_kwargs)
        return replace(self, connection_class=kind, connection_kwargs=settings)


def pools(url: str | None, client: Any, aclient: Any) -> tuple[Place | None, Place | None, bool]:
    """Where connections come from, for threads and for event loops, and whether there are none: ``memory://``."""
    if client is not None or aclient is not None:
        if url is not None:
            raise ConfigurationError("give a URL or clients, not both")
        lent = _place_of(client, "client"), _place_of(aclient, "aclient")
        if lent[0] is not None and lent[1] is not None and bool(lent[0].nodes) != bool(lent[1].nodes):
            raise ConfigurationError(
                "client and aclient must reach the same servers, got a cluster client "
                f"as {'client' if lent[0].nodes else 'aclient'} only"
            )
        return *lent, False
    address: Any = url or os.environ.get("CACHEGUARD_URL") or "memory://"
    if not isinstance(address, str):
        raise ConfigurationError(f"url must be a text like 'redis://localhost:6379/0', got {address!r}")
    scheme = address.partition("://")[0].lower()
    if scheme == "memory":
        return None, None, True
    if "://" not in address or scheme not in SCHEMES:
        raise ConfigurationError(
            f"url must begin with one of {', '.join(f'{each}://' for each in SCHEMES)}, got {_public(address)!r}"
        )
    if scheme == "redis+sentinel":
        return *_sentinel_places(address), False
    if scheme == "redis+cluster":
        return *_cluster_places(address), False
    return *_single_places(address, scheme), False


def client_of(place: Place, *, is_async: bool) -> Any:
    """A client of redis-py's own for the servers of *place*; who asks for it closes it."""
    import redis
    import redis.asyncio
    import redis.asyncio.cluster
    import redis.cluster

    settings = {"protocol": 2, **place.connection_kwargs}
    if place.nodes:
        kind: Any = redis.asyncio.RedisCluster if is_async else redis.RedisCluster
        node: Any = redis.asyncio.cluster.ClusterNode if is_async else redis.cluster.ClusterNode
        return kind(startup_nodes=[node(host, port) for host, port in place.nodes], **settings)
    pool: Any = redis.asyncio.ConnectionPool if is_async else redis.ConnectionPool
    client: Any = redis.asyncio.Redis if is_async else redis.Redis
    return client.from_pool(pool(connection_class=place.connection_class, **settings))


def _single_places(url: str, scheme: str) -> tuple[Place, Place]:
    import redis
    import redis.asyncio

    if scheme != "unix" and ("#" in url or "@" in re.sub(r"^[^/]*//[^/?#]*", "", url)):
        raise ConfigurationError(
            "url must have '#', '@', '/' and '?' in the user's name and password percent-encoded, "
            f"got one that has not: {scheme}://***"
        )
    path = "" if scheme == "unix" else re.sub(r"^[^/]*//[^/?#]*|[?#].*", "", url).strip("/")
    if path and not path.isdecimal():
        raise ConfigurationError(f"url must end with the number of a database or nothing, got {_public(url)!r}")
    try:
        blocking: Any = redis.ConnectionPool
        running: Any = redis.asyncio.ConnectionPool
        made = blocking.from_url(url, protocol=2), running.from_url(url, protocol=2)
    except (ValueError, TypeError) as error:
        # What the client says of it may quote a part of the password.
        said = type(error).__name__ if "@" in url else error
        raise ConfigurationError(f"url {_public(url)!r} does not work: {said}") from None
    return Place(made[0].connection_class, made[0].connection_kwargs), Place(
        made[1].connection_class, made[1].connection_kwargs
    )


def _sentinel_places(url: str) -> tuple[Place, Place]:
    from redis.asyncio.connection import Connection as AsyncConnection
    from redis.asyncio.sentinel import SentinelManagedConnection as AsyncManaged
    from redis.connection import Connection
    from redis.sentinel import SentinelManagedConnection

    from .sentinel import AsyncFinder, BlockingFinder, Newest

    shape = "redis+sentinel://[user:pass@]host:port,host:port/service/db"
    addresses, login, path = _parts(url, SENTINEL_PORT, shape)
    service, _, database = path.partition("/")
    if not service or (database and not database.isdecimal()):
        raise ConfigurationError(f"url must look like {shape}, got {_public(url)!r}")
    data = {**login, "db": int(database or 0), "protocol": 2}
    asked = [{"host": host, "port": port, "protocol": 2} for host, port in addresses]
    newest = Newest()
    blocking = BlockingFinder([Place(Connection, each) for each in asked], service, newest=newest)
    running = AsyncFinder([Place(AsyncConnection, each) for each in asked], service, newest=newest)
    return (
        Place(SentinelManagedConnection, {**data, "connection_pool": blocking}),
        Place(AsyncManaged, {**data, "connection_pool": running}),
    )


def _cluster_places(url: str) -> tuple[Place, Place]:
    from redis.asyncio.connection import Connection as AsyncConnection
    from redis.connection import Connection

    shape = "redis+cluster://[user:pass@]host:port,host:port"
    addresses, login, path = _parts(url, REDIS_PORT, shape)
    if path:
        raise ConfigurationError(
            f"url must look like {shape}: a cluster has no numbered databases, got {_public(url)!r}"
        )
    settings = {**login, "protocol": 2}
    return Place(Connection, settings, tuple(addresses)), Place(AsyncConnection, settings, tuple(addresses))


def _parts(url: str, port: int, shape: str) -> tuple[list[Address], dict[str, str], str]:
    """The addresses, who one is there, and the path."""
    wrong = ConfigurationError(f"url must look like {shape}, got {_public(url)!r}")
    parts = urlsplit(url)
    login, _, hosts = parts.netloc.rpartition("@")
    if parse_qsl(parts.query, keep_blank_values=True) or parts.fragment:
        raise wrong
    addresses: list[Address] = []
    for each in hosts.split(","):
        match = re.fullmatch(r"(\[[0-9A-Fa-f:.]+\]|[^:\[\]]+)(?::(\d{1,5}))?", each)
        if match is None or int(match[2] or port) not in range(1, 65_536):
            raise wrong
        addresses.append((match[1].strip("[]"), int(match[2] or port)))
    user, _, password = login.partition(":")
    known = {"username": unquote(user), "password": unquote(password)}
    return addresses, {name: value for name, value in known.items() if value}, parts.path.strip("/")


def _place_of(client: Any, name: str) -> Place | None:
    if client is None:
        return None
    nodes: Any = getattr(client, "nodes_manager", None)
    pool: Any = getattr(client, "connection_pool", None)
    if nodes is None and (pool is None or not hasattr(pool, "connection_class")):
        raise ConfigurationError(
            f"{name} must be a Redis or a RedisCluster client{' of redis.asyncio' if name == 'aclient' else ''}, "
            f"got {type(client).__name__}"
        )
    kinds = (*type(client).__mro__, *type(pool).__mro__)
    is_async = any(kind.__module__.startswith("redis.asyncio") for kind in kinds)
    if is_async != (name == "aclient"):
        raise ConfigurationError(
            f"{name} got a {'asyncio' if is_async else 'blocking'} client, {type(client).__name__}"
        )
    if nodes is not None:
        return _cluster_of(nodes, is_async=is_async)
    manager = getattr(pool, "sentinel_manager", None) or getattr(getattr(pool, "proxy", None), "sentinel_manager", None)
    if manager is None:
        return Place(pool.connection_class, pool.connection_kwargs)
    if not pool.is_master:
        raise ConfigurationError(f"{name} must reach the master (master_for), got a client of its replicas")
    from .sentinel import AsyncFinder, BlockingFinder

    finder = (AsyncFinder if is_async else BlockingFinder)(
        [
            Place(each.connection_pool.connection_class, each.connection_pool.connection_kwargs)
            for each in manager.sentinels
        ],
        pool.service_name,
        getattr(manager, "_force_master_ip", None),
    )
    return Place(pool.connection_class, {**pool.connection_kwargs, "connection_pool": finder})


def _cluster_of(manager: Any, *, is_async: bool) -> Place:
    known = [*manager.startup_nodes.values(), *manager.nodes_cache.values()]
    addresses = tuple(dict.fromkeys((str(node.host), int(node.port)) for node in known))
    if is_async:
        kind, settings = known[0].connection_class, known[0].connection_kwargs
    else:
        ready = [node.redis_connection for node in known if node.redis_connection is not None]
        pool = ready[0].connection_pool
        kind, settings = pool.connection_class, pool.connection_kwargs
    mine = {
        name: value
        for name, value in settings.items()
        # What a cluster client does on each connection is about reading from replicas.
        if name not in ("redis_connect_func", "himport_registry", "response_callbacks")
        and not name.startswith(("maint_", "oss_", "orig_"))
    }
    return Place(kind, mine, addresses, getattr(manager, "address_remap", None))


def _blocking(kind: Any, settings: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """A connection class of redis.asyncio, and what it is made with, in their blocking form."""
    import redis.asyncio.connection as running
    import redis.asyncio.sentinel as running_sentinel
    import redis.connection as blocking
    import redis.sentinel as blocking_sentinel

    from .sentinel import Finder

    twins: list[tuple[Any, Any]] = [
        (running_sentinel.SentinelManagedSSLConnection, blocking_sentinel.SentinelManagedSSLConnection),
        (running_sentinel.SentinelManagedConnection, blocking_sentinel.SentinelManagedConnection),
        (running.UnixDomainSocketConnection, blocking.UnixDomainSocketConnection),
        (running.SSLConnection, blocking.SSLConnection),
        (running.Connection, blocking.Connection),
    ]
    twin = next((there for here, there in twins if issubclass(kind, here)), blocking.Connection)
    taken = {name for each in twin.__mro__ for name in inspect.signature(vars(each).get("__init__", object)).parameters}
    mine = {
        name: value
        for name, value in settings.items()
        if name in _SHARED or (name.startswith("ssl_") and name in taken)
    }
    finder = settings.get("connection_pool")
    if isinstance(finder, Finder):
        mine["connection_pool"] = finder.twin()
    return twin, mine


def _public(url: str) -> str:
    """*url* without its password."""
    scheme, mark, rest = url.partition("://")
    if not mark:
        return f"***@{url.rpartition('@')[2]}" if "@" in url else url
    authority = re.split(r"[/?#]", rest, maxsplit=1)[0] if "@" not in rest else rest[: rest.rindex("@") + 1]
    if "@" in authority and ":" in authority:
        rest = f"***@{rest[rest.rindex('@') + 1 :]}"
    rest = re.sub(r"(?i)(password=)[^&#]*", r"\1***", rest)
    return f"{scheme}{mark}{rest}"
