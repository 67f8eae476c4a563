"""The minimal permissions of a Redis user for a guard."""

from __future__ import annotations

import re
from collections.abc import Iterable
from importlib.resources import files

from ..defenses.penetration.stored import filter_prefix
from ..protocol.names import bus_channel, namespace_scope

# What is sent beside the scripts; what the scripts do is read from them.
ENTRIES = frozenset({"evalsha", "eval", "mget", "getrange", "time", "info", "ping", "scan", "publish", "subscribe"})
BLOOM = frozenset({"get", "set", "setbit", "persist", "unlink", "hdel", "lrange"})
CLUSTER = frozenset({"asking", "cluster|slots", "get"})  # each key of an MGET is asked for by itself
SENTINEL = frozenset({"sentinel|get-master-addr-by-name", "sentinel|master"})
# Beside these, where replicas are read from.
REPLICAS = frozenset({"get", "set"})
REPLICAS_OF_A_CLUSTER = frozenset({"readonly"})
REPLICAS_BEHIND_SENTINELS = frozenset({"sentinel|replicas"})

_CALL = re.compile(r"redis\.p?call\(\s*'([A-Za-z]+)'")
_PATTERN = re.compile(r"[*?\[\]\\]")


def commands_of(
    *,
    bloom: bool,
    cluster: bool = False,
    database: bool = False,
    client_name: bool = False,
    replicas: bool = False,
) -> list[str]:
    """The commands that a guard uses, in lower case, subcommands after ``|``.

    Args:
        bloom: True: it has Bloom filters.
        cluster: True: it is on a cluster.
        database: True: it is on another database than number 0.
        client_name: True: its connections have a name.
        replicas: True: it reads from replicas (``read_from="replica"``).
    """
    found = ENTRIES | _scripted("protocol")
    if bloom:
        found |= BLOOM | _scripted("defenses/penetration")
    if cluster:
        found = found - {"mget"} | CLUSTER
    if database:
        found |= {"select"}
    if client_name:
        found |= {"client|setname"}
    if replicas:
        found |= REPLICAS | (REPLICAS_OF_A_CLUSTER if cluster else frozenset[str]())
    return sorted(found)


def keys_of(namespace: str, filters: Iterable[str] = ()) -> list[str]:
    """Patterns of the keys of a guard and of its namespaces, as rules; with those of Bloom filters, ``*``: of any.

    `ConfigurationError` for a namespace that no guard can have.
    """
    prefix = namespace_scope(namespace).epochs[0].removesuffix("m")
    children = f"{prefix.removesuffix(':')}/"
    bits = [_globbed("cg:{b:") if name == "*" else _globbed(filter_prefix(namespace, name)) for name in filters]
    return [f"~{_globbed(each)}*" for each in (prefix, children)] + [f"~{each}*" for each in dict.fromkeys(bits)]


def channels_of(namespace: str) -> list[str]:
    """Patterns of the channels of a guard, as rules: one for all processes, one for each of them."""
    return [f"&{_globbed(bus_channel(namespace))}*"]


def user_rules(
    user: str, password: str, keys: Iterable[str], channels: Iterable[str], commands: Iterable[str]
) -> list[str]:
    """The words of a command that makes *user*, or makes it anew; Redis 6.2 and later take them."""
    return [
        *("ACL", "SETUSER", user, "reset", "on", f">{password}"),
        *("resetkeys", *keys, "resetchannels", *channels),
        *("-@all", *(f"+{command}" for command in commands)),
    ]


def line_of(words: Iterable[str]) -> str:
    """*words* as redis-cli reads them."""
    return " ".join(word if re.fullmatch(r"[^\s\"'\\]+", word) else _quoted(word) for word in words)


def _quoted(word: str) -> str:
    return '"' + word.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _scripted(room: str) -> frozenset[str]:
    """The commands that the scripts in a folder of the package call."""
    found: set[str] = set()
    for script in files("cacheguard").joinpath(room, "lua").iterdir():
        if script.name.endswith(".lua"):
            found.update(word.lower() for word in _CALL.findall(script.read_text(encoding="utf-8")))
    return frozenset(found)


def _globbed(text: str) -> str:
    """*text* as a pattern that matches it; a rule cannot hold a space, so any character may stand there."""
    return _PATTERN.sub(r"\\\g<0>", text).replace(" ", "?")
