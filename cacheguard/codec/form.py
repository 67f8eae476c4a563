"""The protocol of codecs, and the fingerprints that identify them."""

from __future__ import annotations

from hashlib import blake2b
from typing import Any, Protocol


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


def fingerprint(form: str, description: str = "") -> bytes:
    """Eight bytes for a form of payload and a canonical description of what is in it."""
    return blake2b(f"{form}\0{description}".encode("utf-8", "surrogatepass"), digest_size=8).digest()
