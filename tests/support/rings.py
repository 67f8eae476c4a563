"""Several plain redis-servers that know nothing of one another."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Self

from cacheguard.servers.hashing import HashRing

from .redis_server import RedisServer


class RingOfServers:
    """Some servers, and which of them a key belongs to."""

    def __init__(self, binary: Path, directory: Path, count: int) -> None:
        self.servers: list[RedisServer] = []
        for number in range(count):
            place = directory / str(number)
            place.mkdir()
            self.servers.append(RedisServer(binary, place))

    def start(self) -> Self:
        for server in self.servers:
            server.start()
        return self

    def stop(self) -> None:
        for server in self.servers:
            server.stop()

    def reset(self) -> None:
        for server in self.servers:
            server.reset()

    def url(self, servers: Sequence[RedisServer] | None = None, query: str = "") -> str:
        nodes = ",".join(map(name_of, self.servers if servers is None else servers))
        return f"redis+ring://{nodes}/0{query}"

    def home_of(self, text: str, servers: Sequence[RedisServer] | None = None) -> RedisServer:
        """The server that the entry of a key text belongs to."""
        return self.order_of(text, servers)[0]

    def order_of(self, text: str, servers: Sequence[RedisServer] | None = None) -> list[RedisServer]:
        """The servers in the order in which they would have that entry."""
        by_name = {name_of(server): server for server in servers or self.servers}
        return [by_name[name] for name in _ring(*by_name).nodes_of(f"cg:cacheguard:e:{text}")]

    def texts_of(self, server: RedisServer, texts: Sequence[str]) -> list[str]:
        """Those of *texts* that belong to *server*."""
        return [text for text in texts if self.home_of(text) is server]


@cache
def _ring(*names: str) -> HashRing:
    return HashRing(dict.fromkeys(names, 1))


def name_of(server: RedisServer) -> str:
    return f"127.0.0.1:{server.port}"
