"""URLs, read as places to connect to."""

from __future__ import annotations

import re
from typing import Any

from ...client import redispy
from ...client.endpoints import Address, Endpoint
from ...client.finders import AsyncFinder, BlockingFinder, Newest
from ...errors import ConfigurationError
from .parts import REDIS_PORT, SHAPES, Url, database_of, decoded, settings_of, wrong
from .ring import ring_endpoints

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
SENTINEL_PORT = 26379

_URL = re.compile(r"(?s)([A-Za-z][A-Za-z0-9+.-]*)://(?:([^/?#]*)@)?([^@/?#]*)([^?#]*)(?:\?([^#]*))?")
_HOST = r"(\[[0-9A-Fa-f:.%]+\]|[\w.-]+)(?::(\d{0,5}))?"
_WEIGHT = r"(?:\*[0-9.]+)?"  # in a ring
_HOSTS = re.compile(rf"(?:{_HOST}{_WEIGHT}(?:,{_HOST}{_WEIGHT})*)?")
_UNENCODED = re.compile(r"[\x00-\x20\x7f\ud800-\udfff]")


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


def endpoints_of(url: str) -> tuple[Endpoint, Endpoint]:
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
        return ring_endpoints(parts)
    settings = settings_of(parts, parts.query)
    if parts.kind == "sentinel":
        return _sentinel_endpoints(parts, settings)
    if parts.kind == "cluster":
        return _cluster_endpoints(parts, settings)
    return _single_endpoints(parts, settings)


def _single_endpoints(parts: Url, settings: dict[str, Any]) -> tuple[Endpoint, Endpoint]:
    if parts.kind == "unix":
        if parts.hosts or not parts.path:
            raise wrong(parts)
        settings["path"] = decoded(parts.path)
        return _both(redispy.kinds_of_file_sockets(), settings)
    if "," in parts.hosts:
        raise wrong(parts)
    for host, port in _addresses(parts, REDIS_PORT):
        settings |= {"host": host, "port": port}
    settings.setdefault("db", database_of(parts, decoded(parts.path).strip("/")))
    return _both(redispy.kinds(tls=parts.tls), settings)


def _sentinel_endpoints(parts: Url, settings: dict[str, Any]) -> tuple[Endpoint, Endpoint]:
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
    kind, akind = redispy.kinds(tls=parts.tls)
    managed, amanaged = redispy.kinds_that_ask(tls=parts.tls)
    newest = Newest()
    finder = BlockingFinder([Endpoint(kind, one) for one in each], service, newest=newest)
    afinder = AsyncFinder([Endpoint(akind, dict(one)) for one in each], service, newest=newest)
    return (
        Endpoint(managed, {**settings, redispy.FINDER: finder}),
        Endpoint(amanaged, {**settings, redispy.FINDER: afinder}),
    )


def _cluster_endpoints(parts: Url, settings: dict[str, Any]) -> tuple[Endpoint, Endpoint]:
    if parts.path.strip("/") or "db" in settings:
        raise ConfigurationError(
            f"url must look like {SHAPES['cluster']}: a cluster has no numbered databases, got {parts.shown()!r}"
        )
    if not parts.hosts:
        raise wrong(parts)
    nodes = tuple(_addresses(parts, REDIS_PORT))
    return _both(redispy.kinds(tls=parts.tls), settings, nodes)


def _both(
    kinds: tuple[Any, Any], settings: dict[str, Any], nodes: tuple[Address, ...] = ()
) -> tuple[Endpoint, Endpoint]:
    """The same for threads and for event loops."""
    return Endpoint(kinds[0], settings, nodes), Endpoint(kinds[1], dict(settings), nodes)


def _addresses(parts: Url, port: int) -> list[Address]:
    found: list[Address] = []
    for each in filter(None, parts.hosts.split(",")):
        match = re.fullmatch(_HOST, each)
        if match is None or int(match[2] or port) not in range(1, 65_536):
            raise wrong(parts)
        found.append((match[1].strip("[]"), int(match[2] or port)))
    return found
