"""A master, its replicas, and the sentinels that watch over them; a failover takes a second or two."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import redis

from tests.support.redis_server import RedisServer

SERVICE = "mymaster"
READY_WITHIN = 40.0  # seconds
DOWN_AFTER_MS = 400
CALM_MS = 1200  # where the machine is busy and a failover more would be one too many


class SentinelServer(RedisServer):
    """One sentinel. It writes into its file of settings, so that it remembers over restarts."""

    def __init__(self, binary: Path, directory: Path, master: RedisServer, quorum: int, down_after_ms: int) -> None:
        super().__init__(binary, directory)
        self._master, self._quorum, self._down_after_ms = master, quorum, down_after_ms

    def address(self) -> tuple[str, int]:
        """Where it says the master is."""
        host, port = self.command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", SERVICE)
        return host, int(port)

    def _command_line(self, port: int) -> list[str]:
        settings = self.directory / "sentinel.conf"
        if not settings.exists():
            lines = [
                f"port {port}",
                "bind 127.0.0.1",
                f"dir {self.directory}",
                f"sentinel monitor {SERVICE} 127.0.0.1 {self._master.port} {self._quorum}",
                f"sentinel down-after-milliseconds {SERVICE} {self._down_after_ms}",
                f"sentinel failover-timeout {SERVICE} 3000",
            ]
            settings.write_text("\n".join(lines) + "\n")
        return [str(self.binary), str(settings), "--sentinel"]

    def _note_settings(self) -> None:
        """There are none to be noted."""


class Sentinels:
    """One master, two replicas, three sentinels, two of which have to agree."""

    def __init__(
        self, binary: Path, directory: Path, replicas: int = 2, sentinels: int = 3, down_after_ms: int = DOWN_AFTER_MS
    ) -> None:
        def home(name: str) -> Path:
            path = directory / name
            path.mkdir()
            return path

        self.servers = [
            RedisServer(binary, home(f"server{number}"), repl_diskless_sync_delay=0) for number in range(1 + replicas)
        ]
        self.sentinels = [
            SentinelServer(binary, home(f"sentinel{number}"), self.servers[0], sentinels // 2 + 1, down_after_ms)
            for number in range(sentinels)
        ]

    @property
    def url(self) -> str:
        return f"redis+sentinel://{','.join(f'127.0.0.1:{each.port}' for each in self.sentinels)}/{SERVICE}/0"

    @property
    def master(self) -> RedisServer:
        """The one that the sentinels name."""
        _, port = next(each for each in self.sentinels if each.running).address()
        return next(each for each in self.servers if each.port == port)

    def start(self) -> Self:
        for server in self.servers:
            server.start()
        for replica in self.servers[1:]:
            replica.command("REPLICAOF", "127.0.0.1", self.servers[0].port)
        for sentinel in self.sentinels:
            sentinel.start()
        _until("the sentinels see everybody", self._is_whole)
        return self

    def stop(self) -> None:
        for each in (*self.sentinels, *self.servers):
            each.stop()

    def cut_off(self) -> list[RedisServer]:
        """Let the replicas answer, and follow nobody: they cannot log in to their master any more. Those replicas."""
        master = self.master
        replicas = [server for server in self.servers if server is not master]
        for server in replicas:
            server.commands(("CONFIG", "SET", "masteruser", "nobody"), ("CONFIG", "SET", "masterauth", "x"))
        master.command("CLIENT", "KILL", "TYPE", "replica")
        return replicas

    def reset(self) -> None:
        """Undo what a test did: everybody is alive and in their place, no keys."""
        for each in (*self.sentinels, *self.servers):
            each.start()
            each.thaw()
        for server in self.servers:
            server.commands(("CONFIG", "SET", "masteruser", ""), ("CONFIG", "SET", "masterauth", ""))
        _until("everybody is in their place", self._put_in_place)

    def wait_for_another(self, old: RedisServer) -> RedisServer:
        """Wait until another server than *old* is named as the master, and is one."""
        _until(
            "there is another master",
            lambda: (
                all(each.address()[1] != old.port for each in self.sentinels if each.running)
                and _role(self.master)[0] == "master"
            ),
        )
        return self.master

    def is_settled(self) -> bool:
        """Whether the sentinels are of one mind, and everybody is in their place, by themselves."""
        with contextlib.suppress(redis.RedisError, StopIteration):
            return self._is_whole()
        return False

    def _put_in_place(self) -> bool:
        master = self.master
        for server in self.servers:
            if server is not master and _role(server)[1:3] != ["127.0.0.1", master.port]:
                server.command("REPLICAOF", "127.0.0.1", master.port)
        if not self._is_whole():
            return False
        master.commands(("FLUSHALL",), ("SCRIPT", "FLUSH"))
        return True

    def _is_whole(self) -> bool:
        """Whether the sentinels are of one mind, and everybody is in their place."""
        master = self.master
        for sentinel in self.sentinels:
            found = sentinel.command("SENTINEL", "MASTER", SERVICE)
            seen = found["flags"], found["num-other-sentinels"], found["num-slaves"], found["port"]
            if seen != ("master", str(len(self.sentinels) - 1), str(len(self.servers) - 1), str(master.port)):
                return False
        return _role(master)[0] == "master" and len(_role(master)[2]) == len(self.servers) - 1


def _role(server: RedisServer) -> Any:
    return server.command("ROLE")


def _until(what: str, holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + READY_WITHIN
    while time.monotonic() < deadline:
        with contextlib.suppress(redis.RedisError):
            if holds():
                return
        time.sleep(0.05)
    raise RuntimeError(f"in {READY_WITHIN:g} s it did not become true that {what}")
