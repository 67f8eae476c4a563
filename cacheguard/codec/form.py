"""What a codec is, and how one is told from another."""

from __future__ import annotations

from hashlib import blake2b
from typing import Any, Protocol


class Codec(Protocol):
    """A way from a value to payload bytes and back."""

    @property
    def schema(self) -> bytes:
        """Eight bytes that say how a payload must be read; other processes compute the same."""
        ...

    def encode(self, value: Any) -> bytes:
        """The payload of *value*; `CodecError` if what `decode` would give is not the same value."""
        ...

    def decode(self, payload: bytes | memoryview) -> Any:
        """The value in *payload*; `CodecError` for whatever may be wrong with it."""
        ...


def fingerprint(form: str, description: str = "") -> bytes:
    """Eight bytes for a form of payload and a canonical description of what is in it."""
    return blake2b(f"{form}\0{description}".encode("utf-8", "surrogatepass"), digest_size=8).digest()
