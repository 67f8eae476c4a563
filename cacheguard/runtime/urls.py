"""URLs, read as places to connect to."""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from ..errors import ConfigurationError
from .finders import AsyncFinder, BlockingFinder
from .places import Address, Place

SCHEMES = ("memory", "redis", "rediss", "unix", "redis+sentinel", "redis+cluster")
SENTINEL_PORT, REDIS_PORT = 26379, 6379


def places_of(url: str) -> tuple[Place, Place]:
    """Where *url* leads, for threads and for event loops; `ConfigurationError` if that cannot be read."""
    scheme = url.partition("://")[0].lower()
    if "://" not in url or scheme not in SCHEMES:
        raise ConfigurationError(
            f"url must begin with one of {', '.join(f'{each}://' for each in SCHEMES)}, got {_public(url)!r}"
        )
    if scheme == "redis+sentinel":
        return _sentinel_places(url)
    if scheme == "redis+cluster":
        return _cluster_places(url)
    return _single_places(url, scheme)


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

    shape = "redis+sentinel://[user:pass@]host:port,host:port/service/db"
    addresses, login, path = _parts(url, SENTINEL_PORT, shape)
    service, _, database = path.partition("/")
    if not service or (database and not database.isdecimal()):
        raise ConfigurationError(f"url must look like {shape}, got {_public(url)!r}")
    data = {**login, "db": int(database or 0), "protocol": 2}
    asked = [{"host": host, "port": port, "protocol": 2} for host, port in addresses]
    blocking = BlockingFinder([Place(Connection, each) for each in asked], service)
    running = AsyncFinder([Place(AsyncConnection, each) for each in asked], service)
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
