"""What is stored for a URL: a response, or which request fields its responses differ by."""

from __future__ import annotations

from typing import TypeAlias

import msgspec

from .fields import Headers


class Page(msgspec.Struct, array_like=True, tag="page", gc=False):
    """A stored response.

    Args:
        status: of the response; 200 also where only a part of the body is here.
        headers: without those of the connection, and without Age, Content-Length and Content-Range.
        body: the bytes that are here.
        born: when it left its origin, in seconds since 1970 (RFC 9111 §4.2.3: now less its age).
        lifetime: seconds for which it is fresh.
        revalidate: seconds after that for which it may be served while it is validated (RFC 5861 §3).
        if_error: seconds after that for which it may be served if the origin fails (RFC 5861 §4).
        validate_always: it is served after a validation only.
        must_validate: once stale, it is served to nobody without one, whatever the request allows.
        first: the place of the first byte that is here.
        total: the length of the whole body; -1 if the whole of it is here.
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
        """The first line of a field; None if there is none."""
        for each, value in self.headers:
            if each == name:
                return value
        return None

    @property
    def whole(self) -> bool:
        """Whether all of its bytes are here."""
        return self.total < 0

    @property
    def can_be_validated(self) -> bool:
        """Whether it has something to ask its origin about."""
        return any(name in {b"etag", b"last-modified"} for name, _ in self.headers)


class Variants(msgspec.Struct, array_like=True, tag="variants", gc=False):
    """A URL whose responses differ by request fields; each is stored under a key of its own.

    Args:
        names: the fields, in lower case.
        generation: part of those keys, so that with this record all of them go.
    """

    names: tuple[bytes, ...]
    generation: str


Stored: TypeAlias = Page | Variants

UNSTORABLE = b""  # what a load gives to those who waited for it: there was nothing to share

_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[Stored] = msgspec.msgpack.Decoder(Stored)


def packed(stored: Stored) -> bytes:
    """*stored* as bytes."""
    return _encoder.encode(stored)


def unpacked(raw: object) -> Stored | None:
    """What `packed` has made these bytes of; None for anything else."""
    if type(raw) is not bytes or not raw:
        return None
    try:
        return _decoder.decode(raw)
    except (msgspec.DecodeError, msgspec.ValidationError):
        return None
