"""What is published on the bus of a guard: which key has changed, and which could not be invalidated."""

from __future__ import annotations

DROP, DIRTY = "drop", "dirty"


def drop(echo: str, key: str) -> str:
    """What is stored under *key* has changed; *echo* says who did it, in which round trip."""
    return f"{DROP} {echo} {key}"


def dirty(key: str) -> str:
    """What is stored under *key* was invalidated, but Redis refused to remove it."""
    return f"{DIRTY} {key}"


def heard(message: str) -> tuple[str, str, str]:
    """A message taken apart: `DROP` or `DIRTY`, echo, key; anything else is none of ours."""
    what, _, rest = message.partition(" ")
    if what == DROP:
        echo, _, key = rest.partition(" ")
        return what, echo, key
    return what, "", rest
