"""A URL in its parts: what every kind of URL has, and how it is refused."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ...errors import ConfigurationError
from ...events import log
from .options import options_of, unquoted

REDIS_PORT = 6379
SHAPES = {
    "": "redis://[user:pass@]host:port/db[?option=value]",
    "unix": "unix://[user:pass@]/path/of.sock[?db=0]",
    "sentinel": "redis+sentinel://[user:pass@]host:port,host:port/service/db[?option=value]",
    "ring": "redis+ring://[user:pass@]host:port,host:port*2[/db][?on_dead=move][&also=host:port,host:port]",
    "cluster": "redis+cluster://[user:pass@]host:port,host:port[?option=value]",
}


@dataclass(frozen=True, repr=False)
class Url:
    """A URL in its parts, none of them decoded yet."""

    scheme: str
    login: str | None
    hosts: str
    path: str
    query: str

    @property
    def tls(self) -> bool:
        return self.scheme.startswith("rediss")

    @property
    def kind(self) -> str:
        """What stands behind the plus; "unix"."""
        return "unix" if self.scheme == "unix" else self.scheme.partition("+")[2]

    def shown(self) -> str:
        """What may be said of it: neither user nor password, and no option."""
        login = "" if self.login is None else "***@"
        return f"{self.scheme}://{login}{self.hosts}{self.path}{'?…' if self.query else ''}"


def settings_of(parts: Url, query: str) -> dict[str, Any]:
    """What every connection of a URL is made with, by its options and by who one is there."""
    options = options_of(query, tls=parts.tls, sentinel=parts.kind == "sentinel")
    settings = {"protocol": 2, **options, **_login(parts)}
    off = [
        name
        for name, weak in (("ssl_cert_reqs", "none"), ("ssl_check_hostname", False))
        if settings.get(name, ...) == weak
    ]
    if off:
        log.warning(
            "TLS to %s does not check who answers (%s): whoever is on the way can read and change what is cached",
            parts.shown(),
            ", ".join(off),
        )
    return settings


def wrong(parts: Url) -> ConfigurationError:
    """What is raised where the parts are clear, but do not fit together."""
    return ConfigurationError(f"url must look like {SHAPES[parts.kind]}, got {parts.shown()!r}")


def database_of(parts: Url, text: str) -> int:
    """The number of a database; 0 for nothing."""
    if text and not (text.isascii() and text.isdecimal()):
        raise ConfigurationError(
            f"url must look like {SHAPES[parts.kind]}, with the number of a database or nothing at the end, "
            f"got {parts.shown()!r}"
        )
    return int(text or 0)


def decoded(text: str) -> str:
    """*text* without its percent-encoding; `ConfigurationError` if that is no UTF-8."""
    found = unquoted(text)
    if found is None:
        raise ConfigurationError("url must have names, passwords and paths that are UTF-8, percent-encoded")
    return found


def _login(parts: Url) -> dict[str, str]:
    user, _, password = (parts.login or "").partition(":")
    known = {"username": decoded(user), "password": decoded(password)}
    return {name: value for name, value in known.items() if value}
