"""The two kinds of entries for a URL: a response, or the request fields that select its responses."""

from __future__ import annotations

from typing import TypeAlias

import msgspec

from .fields import Headers


class Page(msgspec.Struct, array_like=True, tag="page", gc=False):
    """A stored response.

    Args:
        status: of the response; 200 even if only a part of the body is stored.
        headers: without those of the connection, and without Age, Content-Length and Content-Range.
        body: the stored bytes.
        born: when it left its origin, in seconds since 1970 (RFC 9111 §4.2.3: now less its age).
        lifetime: seconds for which it is fresh.
        revalidate: seconds after that in which it may be served while it is validated (RFC 5861 §3).
        if_error: seconds after that in which it may be served if the origin fails (RFC 5861 §4).
        validate_always: it is only served after a validation.
        must_validate: once stale, it is only served after a validation, whatever the request allows.
        first: the position of the first stored byte.
        total: the length of the whole body; -1 if all of it is stored.
    """

    status: int
    headers: Headers
    body: bytes
    born: float
    lifetime: float
    revalidate: float
    if_error: float
    validate_always: bool
    must_validate: bool
    first: int = 0
    total: int = -1

    def header(self, name: bytes) -> bytes | None:
        """The first line of a field; None if the field is absent."""
        for each, value in self.headers:
            if each == name:
                return value
        return None

    @property
    def whole(self) -> bool:
        """True if the whole body is stored."""
        return self.total < 0

    @property
    def can_be_validated(self) -> bool:
        """True if it has a validator (ETag or Last-Modified)."""
        return any(name in {b"etag", b"last-modified"} for name, _ in self.headers)


class Variants(msgspec.Struct, array_like=True, tag="variants", gc=False):
    """The record of a URL whose responses differ by request fields. Each response has a key of its own.

    Args:
        names: the fields, in lower case.
        generation: part of those keys: without this record none of them is found.
    """

    names: tuple[bytes, ...]
    generation: str


Stored: TypeAlias = Page | Variants

UNSTORABLE = b""  # the result of a load that has nothing to share with the waiting requests

_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[Stored] = msgspec.msgpack.Decoder(Stored)


def packed(stored: Stored) -> bytes:
    """Encode *stored*."""
    return _encoder.encode(stored)


def unpacked(raw: object) -> Stored | None:
    """Decode the bytes that `packed` made; None for anything else."""
    if type(raw) is not bytes or not raw:
        return None
    try:
        return _decoder.decode(raw)
    except (msgspec.DecodeError, msgspec.ValidationError):
        return None
