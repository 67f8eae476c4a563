"""How a filter is signed: what is in Redis says whether somebody who knows the secret wrote it, for this very place.

A signed filter is a *base* and a log. The base is its bits, written once, in chunks that never change; each chunk's
signature is bound to the filter, the epoch, the base's measures and the chunk's place. An added item is an entry of the
log. An entry's signature is bound to the one before it, so no entry can be taken out, replaced or moved; only the last
ones can be taken away. The *seal* says that the filter is complete on a server from a certain entry on.

Pure rules; blake2b with keys that HMAC-SHA256 derives from the secrets.
"""

from __future__ import annotations

import hmac
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Self

from .layout import CHUNK_BYTES, HEADER_BYTES, Shape, describe, parse

SIGNATURE_BYTES = 16
SPAN = 4  # plain chunks in a signed one: with header and signature they fill one 16 kB allocation
SIGNED_CHUNK_BYTES = HEADER_BYTES + SPAN * CHUNK_BYTES + SIGNATURE_BYTES

_PREFIX = "signed1"  # "signed" tells it from the layers of a filter without a secret, in the scripts as well
_LONGEST_LINEAGE = 64


@dataclass(frozen=True, slots=True)
class Base:
    """The measures of a signed filter's bits.

    Args:
        lineage: stays the same when entries of the log are moved into the bits.
        held: entries at the beginning of the log that are in the bits already.
        stored: True if there are chunks; False while all items are in the log.
        count: items in the bits.
        filled: items in the last layer.
    """

    shapes: tuple[Shape, ...]
    lineage: str
    held: int = 0
    stored: bool = False
    count: int = 0
    filled: int = 0

    @property
    def text(self) -> str:
        """The text that is kept in Redis in the place of the layers; `parse` reads it."""
        measures = f"{self.lineage};{self.held};{int(self.stored)};{self.count};{self.filled}"
        return f"{_PREFIX};{measures};{describe(self.shapes)}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """The base that `text` describes. Raises ``ValueError`` for anything that `text` would not have made."""
        parts = text.split(";")
        if len(parts) != 7 or parts[0] != _PREFIX or not 0 < len(parts[1]) <= _LONGEST_LINEAGE:  # noqa: PLR2004 - as in `text`
            raise ValueError(f"not a signed plan of layers: {text!r:.80}")
        held, stored, count, filled = (int(part) for part in parts[2:6])
        base = cls(parse(parts[6]), parts[1], held, bool(stored), count, filled)
        if base.text != text or min(held, count, filled) < 0:
            raise ValueError(f"not a signed plan of layers: {text!r:.80}")
        return base

    @property
    def chunks(self) -> list[tuple[int, int]]:
        """Layer and number of each chunk."""
        if not self.stored:
            return []
        return [
            (layer, number) for layer, shape in enumerate(self.shapes) for number in range(-(-shape.chunks // SPAN))
        ]


def is_signed(layers: str) -> bool:
    """True if *layers*, as they stand in Redis, are those of a signed filter."""
    return layers.startswith("signed")


class Signatures:
    """The signatures of one filter at one epoch.

    Args:
        secrets: the first signs, all verify.
        name: the filter's key in Redis.
        layers: what stands there in the place of the layers.
    """

    __slots__ = ("_keys",)

    def __init__(self, secrets: Sequence[bytes], name: str, epoch: str, layers: str) -> None:
        about = f"cacheguard Bloom filter 1\0{name}\0{epoch}\0{layers}".encode("utf-8", "surrogatepass")
        self._keys = tuple(hmac.digest(secret, about, "sha256") for secret in secrets)

    def chunk(self, layer: int, number: int, bits: bytes) -> bytes:
        """The signature of one chunk."""
        return _signature(self._keys[0], _place(layer, number), bits)

    def is_chunk(self, layer: int, number: int, bits: bytes, signature: bytes) -> bool:
        """True if the chunk was signed for this place."""
        return self._is_signed(signature, _place(layer, number), bits)

    def entry(self, before: bytes, text: str) -> bytes:
        """An entry of the log, which begins with its signature. *before* is the signature of the one before it."""
        item = text.encode()
        return _signature(self._keys[0], b"entry", before, item) + item

    def opened(self, before: bytes, entry: bytes) -> str | None:
        """The item of an entry, or None if it was not signed for the place after *before*."""
        signature, item = entry[:SIGNATURE_BYTES], entry[SIGNATURE_BYTES:]
        if not self._is_signed(signature, b"entry", before, item):
            return None
        return item.decode("utf-8", "replace")

    def seal(self, server: str, entries: int, last: bytes) -> str:
        """The declaration that the filter is complete on *server*, with this number of entries and the last of them."""
        said = f"{entries}:{last.hex()}"
        return f"{said}:{_signature(self._keys[0], b'seal', server.encode(), said.encode()).hex()}"

    def sealed(self, server: str, seal: str) -> tuple[int, bytes] | None:
        """The entries and the last signature that *seal* is about; None if it is none, or not for *server*."""
        said, _, signature = seal.rpartition(":")
        try:
            entries, last = said.split(":")
            given = int(entries), bytes.fromhex(last), bytes.fromhex(signature)
        except ValueError:
            return None
        return given[:2] if self._is_signed(given[2], b"seal", server.encode(), said.encode()) else None

    def _is_signed(self, signature: bytes, *parts: bytes) -> bool:
        return any(hmac.compare_digest(_signature(key, *parts), signature) for key in self._keys)


def signature_of(entry: bytes) -> bytes:
    """What an entry of the log begins with."""
    return entry[:SIGNATURE_BYTES]


def texts_of(entry: bytes) -> list[str]:
    """What may have been added by *entry*, whether it is signed or not: one text too many only makes a "maybe"."""
    return [entry.decode("utf-8", "replace"), entry[SIGNATURE_BYTES:].decode("utf-8", "replace")]


def _place(layer: int, number: int) -> bytes:
    return b"chunk %d %d" % (layer, number)


def _signature(key: bytes, *parts: bytes) -> bytes:
    digest = blake2b(key=key, digest_size=SIGNATURE_BYTES)
    for part in parts:
        digest.update(len(part).to_bytes(4, "big"))
        digest.update(part)
    return digest.digest()
