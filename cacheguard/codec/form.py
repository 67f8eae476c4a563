"""The protocol of codecs, the fingerprints that identify them, and refusals that name a place in a value."""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import blake2b
from typing import Any, Protocol

from ..errors import CodecError

UNREADABLE = (CodecError, TypeError, ValueError, OverflowError)
"""What codecs, also those of users, raise for bytes that cannot be read here."""
SHAPE_BYTES, HOME_BYTES = 5, 3
MOST_STEPS = 12  # of a path in a message


class Codec(Protocol):
    """Converts values to payload bytes and back."""

    @property
    def schema(self) -> bytes:
        """Eight bytes that identify the form of the payload; all processes compute the same."""
        ...

    def encode(self, value: Any) -> bytes:
        """Encode *value*; `CodecError` if `decode` would not return the same value."""
        ...

    def decode(self, payload: bytes | memoryview) -> Any:
        """Decode *payload*; `CodecError` if it cannot be decoded."""
        ...


class Refused(CodecError):  # noqa: N818 - it says what happened
    """Some part of a value cannot be stored.

    Args:
        kind: the name of the type of that part.
        reason: why, and what to change: "which …".
    """

    def __init__(self, kind: str, reason: str) -> None:
        super().__init__(f"{kind}: {reason}")
        self.kind: str = kind
        self.reason: str = reason
        self.path: list[str] = []

    def within(self, step: str) -> Refused:
        """The same refusal, seen from one level further up."""
        self.path.append(step)
        return self

    def said(self) -> str:
        """The place, the type and the reason, as one clause."""
        path = self.path[::-1]
        place = "".join(path if len(path) <= MOST_STEPS else [*path[: MOST_STEPS - 1], "…", path[-1]])
        return f"{place or 'it'} is a {self.kind}, {self.reason}"


def fingerprint(form: str, description: str = "", homes: Iterable[str] = ()) -> bytes:
    """Eight bytes for a form of payload and a canonical description of what is in it.

    The last three are for the modules of its classes: another module may be a class that has moved, or another class.
    """
    shape = _digest(f"{form}\0{description}", SHAPE_BYTES)
    return shape + _digest("\0".join(homes), HOME_BYTES)


def _digest(text: str, size: int) -> bytes:
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=size).digest()


def type_name(value: object) -> str:
    """The module and name of the type of *value*, as messages say it."""
    kind = type(value)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
