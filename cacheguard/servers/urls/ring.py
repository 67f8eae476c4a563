"""The URL of several plain Redis nodes that share the keys among them."""

from __future__ import annotations

import re

from ...client import redispy
from ...client.endpoints import Address, Endpoint, RingPlan
from ...errors import ConfigurationError
from .parts import REDIS_PORT, SHAPES, Url, database_of, decoded, settings_of, wrong

SHAPE = SHAPES["ring"]
OWN = ("on_dead", "also")
HEAVIEST = 100.0
_NODE = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^:\[\]*\s]+)(?::(\d{1,5}))?(?:\*(\d{1,4}(?:\.\d{1,3})?))?")


def ring_endpoints(parts: Url) -> tuple[Endpoint, Endpoint]:
    """Where the connections to the nodes of a URL come from, for threads and for event loops.

    User, password, database and TLS (``rediss+ring://``) are the same on each node. ``*2`` behind a node gives it twice
    the keys; without it, the weight is 1. ``on_dead`` is ``miss`` (the default: the keys of a node that is away are
    loaded) or ``move`` (they are looked for in the next node). ``also`` is the list of nodes that other processes use
    while the list is changed. The other options are those of ``redis://``.

    Raises:
        ConfigurationError: it does not look like that; what came is shown without the password.
    """
    asked = [each for each in parts.query.split("&") if each]
    own = [each.partition("=") for each in asked if each.partition("=")[0] in OWN]
    options = {name: decoded(value) for name, _, value in own}
    if len(options) < len(own):
        raise wrong(parts)
    settings = settings_of(parts, "&".join(each for each in asked if each.partition("=")[0] not in OWN))
    settings.setdefault("db", database_of(parts, decoded(parts.path).strip("/")))
    weights, addresses = _nodes(parts, parts.hosts)
    also, more = _nodes(parts, options["also"]) if "also" in options else ({}, {})
    plan = RingPlan(weights, also, addresses | more, _moves(parts, options.get("on_dead", "miss")))
    kinds = redispy.kinds(tls=parts.tls)
    return Endpoint(kinds[0], settings, ring=plan), Endpoint(kinds[1], dict(settings), ring=plan)


def _nodes(parts: Url, text: str) -> tuple[dict[str, float], dict[str, Address]]:
    """The weights and the addresses of a list of nodes, by their names."""
    addresses: dict[str, Address] = {}
    weights: dict[str, float] = {}
    for each in text.split(","):
        name, address, weight = _node(parts, each)
        if name in addresses:
            raise ConfigurationError(f"url must name each node once, got {name} twice in {parts.shown()!r}")
        addresses[name], weights[name] = address, weight
    return weights, addresses


def _node(parts: Url, text: str) -> tuple[str, Address, float]:
    """The name of a node, its address and its weight."""
    match = _NODE.fullmatch(text)
    if match is None or int(match[2] or REDIS_PORT) not in range(1, 65_536):
        raise wrong(parts)
    host, port, weight = match[1].lower(), int(match[2] or REDIS_PORT), float(match[3] or 1)
    if not 0 < weight <= HEAVIEST:
        raise ConfigurationError(
            f"url must give each node a weight above 0 and up to {HEAVIEST:g}, got *{match[3]} in {parts.shown()!r}"
        )
    return f"{host}:{port}", (host.strip("[]"), port), weight


def _moves(parts: Url, value: str) -> bool:
    if value not in ("miss", "move"):
        came = repr(value) if re.fullmatch("[a-z]{1,10}", value) else "***"  # perhaps the rest of a password
        raise ConfigurationError(f"on_dead must be 'miss' or 'move', got {came} in {parts.shown()!r}")
    return value == "move"
