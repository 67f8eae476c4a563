"""The URL of several plain Redis nodes that share the keys among them."""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit

from ..errors import ConfigurationError
from .places import Address, Place, RingPlan
from .url_options import options_of

REDIS_PORT = 6379
SHAPE = "redis+ring://[user:pass@]host:port,host:port*2[/db][?on_dead=move][&also=host:port,host:port]"
OWN = ("on_dead", "also")
HEAVIEST = 100.0
_NODE = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^:\[\]*\s]+)(?::(\d{1,5}))?(?:\*(\d{1,4}(?:\.\d{1,3})?))?")


def ring_places(url: str) -> tuple[Place, Place]:
    """Where the connections to the nodes of *url* come from, for threads and for event loops.

    User, password, database and TLS (``rediss+ring://``) are the same on each node. ``*2`` behind a node gives it twice
    the keys; without it, the weight is 1. ``on_dead`` is ``miss`` (the default: the keys of a node that is away are
    loaded) or ``move`` (they are looked for in the next node). ``also`` is the list of nodes that other processes use
    while the list is changed. The other options are those of ``redis://``.

    Raises:
        ConfigurationError: it does not look like that; what came is shown without the password.
    """
    import redis.asyncio.connection as running
    import redis.connection as blocking

    parts = urlsplit(url)
    login, _, hosts = parts.netloc.rpartition("@")
    database = parts.path.strip("/")
    asked = parse_qsl(parts.query, keep_blank_values=True)
    own = [(name, value) for name, value in asked if name in OWN]
    options = dict(own)
    if parts.fragment or (database and not re.fullmatch(r"[0-9]{1,9}", database)) or len(options) < len(own):
        raise _wrong(url)
    tls = parts.scheme.startswith("rediss")
    settings: dict[str, Any] = {"protocol": 2}
    settings |= options_of(urlencode([pair for pair in asked if pair[0] not in OWN]), tls=tls, sentinel=False)
    settings.setdefault("db", int(database or 0))
    weights, addresses = _nodes(url, hosts)
    also, more = _nodes(url, options["also"]) if "also" in options else ({}, {})
    plan = RingPlan(weights, also, addresses | more, _moves(url, options.get("on_dead", "miss")))
    user, _, password = login.partition(":")
    known = {"username": unquote(user), "password": unquote(password)}
    settings |= {name: value for name, value in known.items() if value}
    kinds: tuple[Any, Any] = blocking.Connection, running.Connection
    if tls:
        kinds = blocking.SSLConnection, running.SSLConnection
    return Place(kinds[0], settings, ring=plan), Place(kinds[1], dict(settings), ring=plan)


def _nodes(url: str, text: str) -> tuple[dict[str, float], dict[str, Address]]:
    """The weights and the addresses of a list of nodes, by their names."""
    addresses: dict[str, Address] = {}
    weights: dict[str, float] = {}
    for each in text.split(","):
        name, address, weight = _node(url, each)
        if name in addresses:
            raise ConfigurationError(f"url must name each node once, got {name} twice in {public(url)!r}")
        addresses[name], weights[name] = address, weight
    return weights, addresses


def _node(url: str, text: str) -> tuple[str, Address, float]:
    """The name of a node, its address and its weight."""
    match = _NODE.fullmatch(text)
    if match is None or int(match[2] or REDIS_PORT) not in range(1, 65_536):
        raise _wrong(url)
    host, port, weight = match[1].lower(), int(match[2] or REDIS_PORT), float(match[3] or 1)
    if not 0 < weight <= HEAVIEST:
        raise ConfigurationError(
            f"url must give each node a weight above 0 and up to {HEAVIEST:g}, got *{match[3]} in {public(url)!r}"
        )
    return f"{host}:{port}", (host.strip("[]"), port), weight


def _moves(url: str, value: str) -> bool:
    if value not in ("miss", "move"):
        raise ConfigurationError(f"on_dead must be 'miss' or 'move', got {value!r} in {public(url)!r}")
    return value == "move"


def _wrong(url: str) -> ConfigurationError:
    return ConfigurationError(f"url must look like {SHAPE}, got {public(url)!r}")


def public(url: str) -> str:
    """*url* without anything that may be secret."""
    scheme, _, rest = url.partition("://")
    return f"{scheme}://***" if "@" in rest or "?" in rest else url
