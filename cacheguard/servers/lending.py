"""Where connections come from: a URL, or a client that lends its settings."""

from __future__ import annotations

import os
from typing import Any

from ..client import redispy
from ..client.endpoints import Endpoint
from ..client.finders import AsyncFinder, BlockingFinder, Finder
from ..errors import ConfigurationError
from .urls.reading import endpoints_of

LONGEST_ASK = 1.0  # seconds in which a sentinel tells a client that is made for its user


def pools(url: str | None, client: Any, aclient: Any) -> tuple[Endpoint | None, Endpoint | None, bool]:
    """Where connections come from, for threads and for event loops, and whether there are none: ``memory://``."""
    if client is not None or aclient is not None:
        if url is not None:
            raise ConfigurationError("give a URL or clients, not both")
        lent = _endpoint_of(client, "client"), _endpoint_of(aclient, "aclient")
        if lent[0] is not None and lent[1] is not None and bool(lent[0].nodes) != bool(lent[1].nodes):
            raise ConfigurationError(
                "client and aclient must reach the same servers, got a cluster client "
                f"as {'client' if lent[0].nodes else 'aclient'} only"
            )
        return *lent, False
    address: Any = url or os.environ.get("CACHEGUARD_URL") or "memory://"
    if not isinstance(address, str):
        raise ConfigurationError(f"url must be a text like 'redis://localhost:6379/0', got {type(address).__name__}")
    if address.partition("://")[0].lower() == "memory":
        return None, None, True
    return *endpoints_of(address), False


def client_of(endpoint: Endpoint, *, is_async: bool) -> Any:
    """A client of redis-py's own for the servers of *endpoint*; who asks for it closes it."""
    import redis
    import redis.asyncio
    import redis.asyncio.cluster
    import redis.cluster

    settings = {"protocol": 2, **endpoint.connection_kwargs}
    if isinstance(endpoint.finder, Finder):
        settings[redispy.FINDER] = endpoint.finder.within(2 * LONGEST_ASK)
    if endpoint.nodes:
        kind: Any = redis.asyncio.RedisCluster if is_async else redis.RedisCluster
        node: Any = redis.asyncio.cluster.ClusterNode if is_async else redis.cluster.ClusterNode
        if endpoint.tls:
            settings["ssl"] = True
        lost = redispy.dropped_by_a_cluster_client(settings, asynchronous=is_async)
        if lost:
            raise ConfigurationError(f"a {kind.__module__}.RedisCluster cannot be made with {', '.join(lost)}")
        return kind(startup_nodes=[node(host, port) for host, port in endpoint.nodes], **settings)
    pool: Any = redis.asyncio.ConnectionPool if is_async else redis.ConnectionPool
    client: Any = redis.asyncio.Redis if is_async else redis.Redis
    return client.from_pool(pool(connection_class=endpoint.connection_class, **settings))


def _endpoint_of(client: Any, name: str) -> Endpoint | None:
    if client is None:
        return None
    is_async = redispy.is_async(client)
    if is_async is None:
        raise ConfigurationError(
            f"{name} must be a Redis or a RedisCluster client{' of redis.asyncio' if name == 'aclient' else ''}, "
            f"got {type(client).__name__}"
        )
    if is_async != (name == "aclient"):
        raise ConfigurationError(
            f"{name} got a {'asyncio' if is_async else 'blocking'} client, {type(client).__name__}"
        )
    lent = redispy.lent_by(client)
    if lent.sentinels is None:
        return Endpoint(lent.kind, lent.settings, lent.nodes, lent.remap)
    if not lent.is_master:
        raise ConfigurationError(f"{name} must reach the master (master_for), got a client of its replicas")
    finder = (AsyncFinder if is_async else BlockingFinder)(
        [Endpoint(kind, settings) for kind, settings in lent.sentinels], lent.service, lent.forced_host
    )
    return Endpoint(lent.kind, {**lent.settings, redispy.FINDER: finder})
