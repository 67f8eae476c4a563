"""Which of the responses of a URL a request gets (RFC 9111 §4.1)."""

from __future__ import annotations

import re
from collections.abc import Mapping

from .page import Variants

LONGEST_SELECTION = 4096  # bytes of normalized field values; a request with more goes to the application

_PREFERENCE = re.compile(rb"^\s*([^\s;]+)\s*(?:;\s*q\s*=\s*([0-9.]+)\s*)?$", re.IGNORECASE)
_COMMA = re.compile(rb"[ \t]*,[ \t]*")
# Values of these are lists of preferences, in which case means nothing, and order only where weights are equal.
_PREFERENCES = frozenset({b"accept-language", b"accept-encoding", b"accept-charset", b"accept"})
# These are no lists, and say who asks: two values that are not the same may be two visitors.
_EXACT = frozenset({b"cookie", b"authorization"})


def variant_key(key: str, variants: Variants, headers: Mapping[bytes, bytes]) -> str | None:
    """The key of the response that *headers* select; None if they are too long to be told apart."""
    parts = [normalized(name, headers.get(name)) for name in variants.names]
    if sum(map(len, parts)) > LONGEST_SELECTION:
        return None
    told = b"".join(b"%d:%s," % (len(part), part) for part in parts)
    return f"{key} {variants.generation} {told.decode('latin-1')}"


def normalized(name: bytes, value: bytes | None) -> bytes:
    """The value of a selecting field so that values that mean the same are the same; ``b"-"`` where there is none."""
    if value is None:
        return b"-"
    if name in _PREFERENCES:
        preferences = _preferences(value)
        if preferences is not None:
            return b"=" + preferences
    if name in _EXACT or b'"' in value:
        return b"=" + value.strip()
    return b"=" + _COMMA.sub(b",", value.strip())  # only blanks around commas mean nothing in every list


def _preferences(value: bytes) -> bytes | None:
    """A list of preferences by weight; None for what has parameters of its own.

    Those of equal weight stay in their order: servers take the first one that they have.
    """
    weighed: list[tuple[float, bytes]] = []
    for each in value.split(b","):
        if not each.strip():
            continue
        match = _PREFERENCE.match(each)
        if match is None:
            return None
        try:
            weight = min(1.0, float(match[2])) if match[2] is not None else 1.0
        except ValueError:
            return None
        weighed.append((weight, match[1].lower()))
    weighed.sort(key=lambda one: -one[0])
    return b",".join(name if weight >= 1.0 else b"%s;%g" % (name, weight) for weight, name in weighed)
