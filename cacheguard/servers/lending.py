"""Where connections come from: a URL, or a client that lends its settings."""

from __future__ import annotations

import inspect
import os
from typing import Any

from ..client.finders import AsyncFinder, BlockingFinder, Finder
from ..client.places import Place
from ..errors import ConfigurationError
from .urls.reading import places_of

LONGEST_ASK = 1.0  # seconds in which a sentinel tells a client that is made for its user


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
        raise ConfigurationError(f"url must be a text like 'redis://localhost:6379/0', got {type(address).__name__}")
    if address.partition("://")[0].lower() == "memory":
        return None, None, True
    return *places_of(address), False


def client_of(place: Place, *, is_async: bool) -> Any:
    """A client of redis-py's own for the servers of *place*; who asks for it closes it."""
    import redis
    import redis.asyncio
    import redis.asyncio.cluster
    import redis.cluster

    settings = {"protocol": 2, **place.connection_kwargs}
    if isinstance(finder := settings.get("connection_pool"), Finder):
        settings["connection_pool"] = finder.within(2 * LONGEST_ASK)
    if place.nodes:
        kind: Any = redis.asyncio.RedisCluster if is_async else redis.RedisCluster
        node: Any = redis.asyncio.cluster.ClusterNode if is_async else redis.cluster.ClusterNode
        if place.tls:
            settings["ssl"] = True
        # Some are taken by the connections of such a client, but not by itself: it drops them without a word.
        taken = {*inspect.signature(kind).parameters, *(() if is_async else redis.cluster.REDIS_ALLOWED_KEYS)}
        lost = [name for name, value in settings.items() if name.startswith("ssl_") and value and name not in taken]
        if lost:
            raise ConfigurationError(f"a {kind.__module__}.RedisCluster cannot be made with {', '.join(sorted(lost))}")
        return kind(startup_nodes=[node(host, port) for host, port in place.nodes], **settings)
    pool: Any = redis.asyncio.ConnectionPool if is_async else redis.ConnectionPool
    client: Any = redis.asyncio.Redis if is_async else redis.Redis
    return client.from_pool(pool(connection_class=place.connection_class, **settings))


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
