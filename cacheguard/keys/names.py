"""The alphabet of keys: what is escaped, what a Redis key looks like, what a namespace is called."""

from __future__ import annotations

import re
from collections.abc import Sequence
from hashlib import blake2b

from ..errors import ConfigurationError

# Lone surrogates are here because no encoding would take them, neither Redis nor the terminal of whoever looks.
_RESERVED = r":{}%\x00-\x1f\x7f-\x9f\ud800-\udfff"
TO_ESCAPE = re.compile(f"[{_RESERVED}]")
_TO_QUOTE = re.compile(f"[{_RESERVED}(),=]")
_TO_ESCAPE_IN_NAME = re.compile(f"[{_RESERVED}/]")

# Printable ASCII without the space, and without braces: they would choose the slot in a cluster.
_PLAIN_KEY = re.compile(r"(?!#)[!-z|~]{0,160}")

_LONGEST_NAME = 100
_LAYOUT = 1  # of what is stored under a key; another layout lives under another key


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


def namespace_prefix(namespace: str | Sequence[str]) -> str:
    """What all Redis keys of a namespace begin with; a child namespace is given as the names from the root down."""
    names = (namespace,) if isinstance(namespace, str) else tuple(namespace)
    if not names:
        raise ConfigurationError("namespace must have at least one name, got none")
    path = "/".join(map(_escaped_name, names))
    return f"cg:{path}:{_LAYOUT}:"


def _escaped_name(name: object) -> str:
    if not isinstance(name, str) or not 0 < len(name) <= _LONGEST_NAME:
        raise ConfigurationError(f"namespace must be a text of 1 to {_LONGEST_NAME} characters, got {name!r}")
    return _TO_ESCAPE_IN_NAME.sub(_percent, name)
