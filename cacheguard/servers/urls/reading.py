"""URLs, read as places to connect to."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from ...client.finders import AsyncFinder, BlockingFinder, Newest
from ...client.places import Address, Place
from ...errors import ConfigurationError
from ...events import log
from .options import options_of, unquoted

SCHEMES = (
    "memory",
    "redis",
    "rediss",
    "unix",
    "redis+sentinel",
    "rediss+sentinel",
    "redis+cluster",
    "rediss+cluster",
    "redis+ring",
    "rediss+ring",
)
SENTINEL_PORT, REDIS_PORT = 26379, 6379
SHAPES = {
    "": "redis://[user:pass@]host:port/db[?option=value]",
    "unix": "unix://[user:pass@]/path/of.sock[?db=0]",
    "sentinel": "redis+sentinel://[user:pass@]host:port,host:port/service/db[?option=value]",
    "ring": "redis+ring://[user:pass@]host:port,host:port*2[/db][?on_dead=move][&also=host:port,host:port]",
    "cluster": "redis+cluster://[user:pass@]host:port,host:port[?option=value]",
}

_URL = re.compile(r"(?s)([A-Za-z][A-Za-z0-9+.-]*)://(?:([^/?#]*)@)?([^@/?#]*)([^?#]*)(?:\?([^#]*))?")
_HOST = r"(\[[0-9A-Fa-f:.%]+\]|[\w.-]+)(?::(\d{0,5}))?"
_WEIGHT = r"(?:\*[0-9.]+)?"  # in a ring
_HOSTS = re.compile(rf"(?:{_HOST}{_WEIGHT}(?:,{_HOST}{_WEIGHT})*)?")
_UNENCODED = re.compile(r"[\x00-\x20\x7f\ud800-\udfff]")


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


def public(url: str) -> str:
    """*url* without anything that may be secret; all that is in doubt is left out."""
    parts = _split(url)
    if parts is not None:
        return parts.shown()
    if re.fullmatch(rf"{_HOST}(?:/\d*)?", url):
        return url
    scheme = re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", url)
    return "***" if scheme is None else f"{scheme[0].lower()}***"


def _split(url: str) -> Url | None:
    """The parts of *url*; None if it is not certain which are which."""
    match = _URL.fullmatch(url)
    if match is None or _UNENCODED.search(url):
        return None
    parts = Url(match[1].lower(), match[2], match[3], match[4], match[5] or "")
    # A '/' or a '?' of a password that is not percent-encoded has its '@' behind it. Paths of sockets may have one.
    behind = parts.query if parts.scheme == "unix" and not parts.hosts else parts.path + parts.query
    return None if "@" in behind or not _HOSTS.fullmatch(parts.hosts) else parts


def places_of(url: str) -> tuple[Place, Place]:
    """Where *url* leads, for threads and for event loops; `ConfigurationError` if that cannot be read."""
    scheme = url.partition("://")[0].lower()
    if "://" not in url or scheme not in SCHEMES:
        raise ConfigurationError(
            f"url must begin with one of {', '.join(f'{each}://' for each in SCHEMES)}, got {public(url)!r}"
        )
    parts = _split(url)
    if parts is None:
        kind = "unix" if scheme == "unix" else scheme.partition("+")[2]
        raise ConfigurationError(
            f"url must look like {SHAPES[kind]}, with whatever is special in a name or a password percent-encoded "
            f"('@' %40, ':' %3A, '/' %2F, '?' %3F, '#' %23, '%' %25, space %20), got {scheme}://***"
        )
    if parts.kind == "ring":
        from .ring import ring_places

        return ring_places(parts)
    settings = settings_of(parts, parts.query)
    if parts.kind == "sentinel":
        return _sentinel_places(parts, settings)
    if parts.kind == "cluster":
        return _cluster_places(parts, settings)
    return _single_places(parts, settings)


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


def _single_places(parts: Url, settings: dict[str, Any]) -> tuple[Place, Place]:
    import redis.asyncio.connection as running
    import redis.connection as blocking

    if parts.kind == "unix":
        if parts.hosts or not parts.path:
            raise wrong(parts)
        settings["path"] = decoded(parts.path)
        return (
            Place(blocking.UnixDomainSocketConnection, settings),
            Place(running.UnixDomainSocketConnection, dict(settings)),
        )
    if "," in parts.hosts:
        raise wrong(parts)
    for host, port in _addresses(parts, REDIS_PORT):
        settings |= {"host": host, "port": port}
    settings.setdefault("db", database_of(parts, decoded(parts.path).strip("/")))
    if parts.tls:
        return Place(blocking.SSLConnection, settings), Place(running.SSLConnection, dict(settings))
    return Place(blocking.Connection, settings), Place(running.Connection, dict(settings))


def _sentinel_places(parts: Url, settings: dict[str, Any]) -> tuple[Place, Place]:
    import redis.asyncio.connection as running
    import redis.asyncio.sentinel as running_sentinel
    import redis.connection as blocking
    import redis.sentinel as blocking_sentinel

    service, _, database = decoded(parts.path).strip("/").partition("/")
    if not service or not parts.hosts:
        raise wrong(parts)
    settings.setdefault("db", database_of(parts, database))
    own = {"username": settings.pop("sentinel_username", None), "password": settings.pop("sentinel_password", None)}
    # Who one is there is a matter of its own; how they are reached is the same.
    asked: dict[str, Any] = {
        name: value
        for name, value in settings.items()
        if name not in ("username", "password", "db", "max_connections", "decode_responses")
    }
    asked |= {name: value for name, value in own.items() if value is not None}
    each = [{**asked, "host": host, "port": port} for host, port in _addresses(parts, SENTINEL_PORT)]
    kind: Any = blocking.SSLConnection if parts.tls else blocking.Connection
    akind: Any = running.SSLConnection if parts.tls else running.Connection
    managed: Any = blocking_sentinel.SentinelManagedSSLConnection
    amanaged: Any = running_sentinel.SentinelManagedSSLConnection
    if not parts.tls:
        managed, amanaged = blocking_sentinel.SentinelManagedConnection, running_sentinel.SentinelManagedConnection
    newest = Newest()
    finder = BlockingFinder([Place(kind, one) for one in each], service, newest=newest)
    afinder = AsyncFinder([Place(akind, dict(one)) for one in each], service, newest=newest)
    return (
        Place(managed, {**settings, "connection_pool": finder}),
        Place(amanaged, {**settings, "connection_pool": afinder}),
    )


def _cluster_places(parts: Url, settings: dict[str, Any]) -> tuple[Place, Place]:
    import redis.asyncio.connection as running
    import redis.connection as blocking

    if parts.path.strip("/") or "db" in settings:
        raise ConfigurationError(
            f"url must look like {SHAPES['cluster']}: a cluster has no numbered databases, got {parts.shown()!r}"
        )
    if not parts.hosts:
        raise wrong(parts)
    nodes = tuple(_addresses(parts, REDIS_PORT))
    if parts.tls:
        return Place(blocking.SSLConnection, settings, nodes), Place(running.SSLConnection, dict(settings), nodes)
    return Place(blocking.Connection, settings, nodes), Place(running.Connection, dict(settings), nodes)


def wrong(parts: Url) -> ConfigurationError:
    """What is raised where the parts are clear, but do not fit together."""
    return ConfigurationError(f"url must look like {SHAPES[parts.kind]}, got {parts.shown()!r}")


def _addresses(parts: Url, port: int) -> list[Address]:
    found: list[Address] = []
    for each in filter(None, parts.hosts.split(",")):
        match = re.fullmatch(_HOST, each)
        if match is None or int(match[2] or port) not in range(1, 65_536):
            raise wrong(parts)
        found.append((match[1].strip("[]"), int(match[2] or port)))
    return found


def database_of(parts: Url, text: str) -> int:
    """The number of a database; 0 for nothing."""
    if text and not (text.isascii() and text.isdecimal()):
        raise ConfigurationError(
            f"url must look like {SHAPES[parts.kind]}, with the number of a database or nothing at the end, "
            f"got {parts.shown()!r}"
        )
    return int(text or 0)


def _login(parts: Url) -> dict[str, str]:
    user, _, password = (parts.login or "").partition(":")
    known = {"username": decoded(user), "password": decoded(password)}
    return {name: value for name, value in known.items() if value}


def decoded(text: str) -> str:
    """*text* without its percent-encoding; `ConfigurationError` if that is no UTF-8."""
    found = unquoted(text)
    if found is None:
        raise ConfigurationError("url must have names, passwords and paths that are UTF-8, percent-encoded")
    return found
