"""A private PostgreSQL: nothing that outlives the test session."""

from __future__ import annotations

import atexit
import os
import pwd
import random
import shutil
import signal
import subprocess
import tempfile
import time
from functools import cache
from pathlib import Path
from typing import Any, Self

import psycopg
from psycopg.sql import SQL, Literal

from .redis_server import is_free, own_ports

READY_WITHIN = 20.0  # seconds


@cache
def find_postgres() -> Path | None:
    """A directory with ``postgres`` and ``initdb``: PATH's, else the newest of Debian's."""
    on_path = shutil.which("postgres")
    candidates = [Path(on_path).parent] if on_path else []
    candidates += sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: path.parent.name, reverse=True)
    return next((path for path in candidates if all((path / name).exists() for name in ("postgres", "initdb"))), None)


class PostgresServer:
    """A cluster of our own on loopback, in a directory of its own, gone with this process.

    PostgreSQL refuses to run as root: then it runs as ``postgres`` or ``nobody``.
    """

    def __init__(self, binaries: Path) -> None:
        self.binaries = binaries
        self.port = 0
        self._user = _other_user() if os.getuid() == 0 else None
        # Not under pytest's directory: nobody else may enter that.
        self.directory = Path(tempfile.mkdtemp(prefix="cacheguard-postgres-"))
        self._process: subprocess.Popen[bytes] | None = None
        self._reaper: subprocess.Popen[bytes] | None = None
        self._owner = os.getpid()

    @property
    def conninfo(self) -> str:
        return f"host=127.0.0.1 port={self.port} user=postgres dbname=postgres"

    @property
    def pid(self) -> int:
        if self._process is None:
            raise RuntimeError("the server was not started; call start()")
        return self._process.pid

    def start(self) -> Self:
        """Start, on the same port as the last time, and return when it answers."""
        if not (self.directory / "data").exists():
            self._create()
        for port in [self.port] if self.port else random.sample(own_ports(), 10):
            if is_free(port) and self._start_on(port):
                return self
        raise RuntimeError(f"postgres did not start; its log ends with:\n{self._log_tail()}")

    def kill(self) -> None:
        """End it at once, as a crash would, with its children."""
        if self._process is None or os.getpid() != self._owner:
            return
        self._process.send_signal(signal.SIGQUIT)  # "immediate shutdown"; SIGKILL would leave the children behind
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None
        if self._reaper is not None:
            self._reaper.kill()
            self._reaper.communicate()
            self._reaper = None

    def stop(self) -> None:
        """End it for good."""
        if os.getpid() != self._owner:
            return
        self.kill()
        atexit.unregister(self.stop)
        shutil.rmtree(self.directory, ignore_errors=True)

    def connect(self) -> psycopg.Connection[Any]:
        return psycopg.connect(self.conninfo, autocommit=True)

    def end_sessions(self) -> None:
        """End what is still connected. A test that failed in a transaction holds its locks, and the next would wait."""
        with self.connect() as connection:
            connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
            )
            for (name,) in connection.execute("SELECT gid FROM pg_prepared_xacts").fetchall():
                connection.execute(SQL("ROLLBACK PREPARED {}").format(Literal(name)))

    def _create(self) -> None:
        if self._user is not None:
            account = pwd.getpwnam(self._user)
            os.chown(self.directory, account.pw_uid, account.pw_gid)
        words = ["-D", str(self.directory / "data"), "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C", "-N"]
        made = subprocess.run(
            [str(self.binaries / "initdb"), *words],
            user=self._user,
            env=_environment(),
            cwd=self.directory,
            capture_output=True,
            text=True,
            check=False,
        )
        if made.returncode:
            raise RuntimeError(f"initdb failed:\n{made.stderr}")

    def _start_on(self, port: int) -> bool:
        words = [str(self.binaries / "postgres"), "-D", str(self.directory / "data")]
        settings = {
            "port": port,
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": "",
            "fsync": "off",
            "synchronous_commit": "off",
            "full_page_writes": "off",
            "autovacuum": "off",
            "max_connections": 40,
            "max_prepared_transactions": 4,
            "shared_buffers": "16MB",
        }
        for name, value in settings.items():
            words += ["-c", f"{name}={value}"]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                words,
                user=self._user,
                env=_environment(),
                cwd=self.directory,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        atexit.unregister(self.stop)
        atexit.register(self.stop)
        # Comes even when this process is killed outright, as in redis_server.
        words = ["/bin/sh", "-c", 'read _; kill -QUIT "$0"', str(self.pid)]
        self._reaper = subprocess.Popen(words, stdin=subprocess.PIPE)
        self.port = port
        if self._answers_in_time():
            return True
        self.kill()
        self.port = 0
        return False

    def _answers_in_time(self) -> bool:
        deadline = time.monotonic() + READY_WITHIN
        while self._process is not None and self._process.poll() is None and time.monotonic() < deadline:
            try:
                self.connect().close()
                return True
            except psycopg.Error:
                time.sleep(0.02)
        return False

    @property
    def _log(self) -> Path:
        return self.directory / "postgres.log"

    def _log_tail(self) -> str:
        return "\n".join(self._log.read_text(errors="replace").splitlines()[-10:]) if self._log.exists() else "(no log)"


def _other_user() -> str:
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name).pw_name
        except KeyError:
            continue
    raise RuntimeError("PostgreSQL refuses to run as root, and there is neither a user postgres nor nobody")


def _environment() -> dict[str, str]:
    return {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C"}
