"""The alphabet of keys: what is escaped, what a Redis key looks like, what a namespace is called."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b

from ..errors import ConfigurationError

# Lone surrogates are here because no encoding would take them, neither Redis nor the terminal of whoever looks.
_RESERVED = r":{}%\x00-\x1f\x7f-\x9f\ud800-\udfff"
TO_ESCAPE = re.compile(f"[{_RESERVED}]")
_TO_QUOTE = re.compile(f"[{_RESERVED}(),=]")
_TO_ESCAPE_IN_NAME = re.compile(f"[{_RESERVED}/]")

# Printable ASCII without the space, and without braces: they would choose the slot in a cluster.
LONGEST_PLAIN = 250
_PLAIN_KEY = re.compile(rf"(?!#)[!-z|~]{{0,{LONGEST_PLAIN}}}")

_GLOBBED = re.compile(r"[*?\[\]\\]")  # what means something in a pattern

_LONGEST_NAME = 100
_ENTRY = "e"  # in the keys of entries
_MARKER = "m"  # in those of markers
_EPOCH_PARTS = 3  # cg, path, m; a tag's marker has its text as the fourth


def _percent(match: re.Match[str]) -> str:
    return "".join(f"%{byte:02X}" for byte in match[0].encode("utf-8", "surrogatepass"))


def escape(text: str) -> str:
    """*text* with ``:``, braces, ``%``, control characters and lone surrogates percent-encoded."""
    return TO_ESCAPE.sub(_percent, text)


def quote(text: str) -> str:
    """*text* without anything that has a meaning in the text of a call either: parentheses, ``,`` and ``=``."""
    return _TO_QUOTE.sub(_percent, text)


def redis_key(prefix: str, text: str) -> str:
    """The Redis key for a key text: the text itself if it is short and plain, else ``#`` and a 128-bit digest of it."""
    if _PLAIN_KEY.fullmatch(text):
        return prefix + text
    return f"{prefix}#{blake2b(text.encode('utf-8', 'surrogatepass'), digest_size=16).hexdigest()}"


@dataclass(frozen=True, slots=True)
class Scope:
    """What the Redis keys of one namespace have in common.

    Args:
        prefix: what the keys of its entries begin with.
        epochs: the markers of the namespaces around it and of itself, from the root down; an entry is as old as each.
    """

    prefix: str = ""
    epochs: tuple[str, ...] = ()

    def key(self, text: str) -> str:
        """The Redis key of an entry."""
        return redis_key(self.prefix, text)

    def text(self, name: str) -> str | None:
        """The key text of the entry with this Redis key; None where only a digest of it is left."""
        text = name.removeprefix(self.prefix)
        return None if text.startswith("#") else text

    def pattern(self, match: str) -> str:
        """What Redis matches the keys of entries with, whose texts match *match*."""
        return _GLOBBED.sub(r"\\\g<0>", self.prefix) + match

    def tag(self, text: str) -> str:
        """The Redis key of a tag's marker; a tag belongs to the namespace in which it was given."""
        return redis_key(f"{self.epochs[-1]}:" if self.epochs else f"cg::{_MARKER}:", text)

    def is_tag(self, name: str) -> bool:
        """Whether *name* is the marker of a tag, or of the namespace."""
        return not name.startswith(self.prefix) if self.prefix else is_marker(name)

    def markers(self, tags: Sequence[str]) -> tuple[str, ...]:
        """The markers that an entry with *tags* depends on."""
        return (*self.epochs, *map(self.tag, tags)) if tags else self.epochs


def namespace_scope(namespace: str | Sequence[str]) -> Scope:
    """The keys of a namespace; a child namespace is given as the names from the root down."""
    names = (namespace,) if isinstance(namespace, str) else tuple(namespace)
    if not names:
        raise ConfigurationError("namespace must have at least one name, got none")
    escaped = [_escaped_name(name) for name in names]
    paths = ["/".join(escaped[:depth]) for depth in range(1, len(escaped) + 1)]
    return Scope(f"cg:{paths[-1]}:{_ENTRY}:", tuple(f"cg:{path}:{_MARKER}" for path in paths))


def bus_channel(namespace: str) -> str:
    """The channel on which the processes of a guard tell one another what to drop."""
    return f"cg:{_escaped_name(namespace)}:bus"


def is_marker(key: str) -> bool:
    """Whether *key* is the marker of a namespace or a tag, not an entry."""
    return key.split(":", 3)[2:3] == [_MARKER]


def epoch_of(key: str) -> str | None:
    """The marker of its namespace, if *key* is the marker of a tag."""
    parts = key.split(":", 3)
    return ":".join(parts[:3]) if len(parts) > _EPOCH_PARTS and parts[2] == _MARKER else None


def epochs_of(key: str) -> tuple[str, ...]:
    """The markers of the namespaces around the entry or the tag with this Redis key, from the root down."""
    path = key.split(":", 2)[1].split("/")
    return tuple(f"cg:{'/'.join(path[:depth])}:{_MARKER}" for depth in range(1, len(path) + 1))


def beneath(key: str) -> tuple[str, str] | None:
    """What the keys of the namespace begin with that *key* is the marker of, and those of its children."""
    parts = key.split(":", 3)
    if len(parts) != _EPOCH_PARTS or parts[2] != _MARKER:
        return None
    return f"cg:{parts[1]}:", f"cg:{parts[1]}/"


def _escaped_name(name: object) -> str:
    if not isinstance(name, str) or not 0 < len(name) <= _LONGEST_NAME:
        raise ConfigurationError(f"namespace must be a text of 1 to {_LONGEST_NAME} characters, got {name!r}")
    return _TO_ESCAPE_IN_NAME.sub(_percent, name)
