"""Values ↔ what is stored: sealed bytes for Redis, the objects themselves within the process."""

from __future__ import annotations

from copy import deepcopy
from hashlib import sha1
from typing import Any, Protocol

from ..codec import TAGGED, Codec, Registry
from ..errors import CodecError
from ..protocol.entry import Stored
from ..protocol.envelope import Envelope, Kind, Sealer
from ..protocol.exceptions import packed, unpacked
from .local import OVERHEAD, OVERHEAD_OF_TAG
from .weighing import weigh


class Packing(Protocol):
    """How values become what is stored."""

    def pack(self, key: str, stored: Stored, codec: Codec | None) -> Any:
        """What to store; `CodecError` if the value cannot be stored faithfully."""
        ...

    def unpack(self, key: str, envelope: Any, codec: Codec | None) -> Stored:
        """What was stored; `CodecError` if it cannot be read here."""
        ...

    def outline(self, key: str, envelope: Any) -> Stored:
        """What was stored, without its value; `CodecError` if it is nothing of ours."""
        ...

    def glance(self, key: str, head: Any) -> Stored:
        """What the beginning of something stored says, unverified; `CodecError` if it says too little."""
        ...

    def stamp(self, envelope: Any) -> Any:
        """What LEASE knows this value by."""
        ...


class SealedPacking:
    """Envelopes of bytes. Which codec reads an entry is said by the fingerprint inside it."""

    def __init__(self, sealer: Sealer, registry: Registry) -> None:
        self._sealer, self._registry = sealer, registry

    def pack(self, key: str, stored: Stored, codec: Codec | None) -> bytes:
        """The sealed bytes; `CodecError` if the value cannot be stored faithfully."""
        schema, payload = TAGGED.schema, b""
        if stored.kind is Kind.ERROR:
            self._registry.raised[stored.value.name] = stored.value.kind
            payload = TAGGED.encode(packed(stored.value))
        elif stored.kind is Kind.VALUE:
            codec = codec or self._registry.for_value(stored.value)
            schema, payload = codec.schema, codec.encode(stored.value)
        return self._sealer.seal(
            Envelope(stored.kind, schema, payload, stored.ttl, stored.load_time, stored.tags, stored.nonces), key
        )

    def unpack(self, key: str, envelope: Any, codec: Codec | None) -> Stored:
        """What the bytes say; `CodecError` if they are not ours, or of another version of the type."""
        opened = self._sealer.open(envelope, key)
        value: Any = None
        if opened.kind is Kind.ERROR:
            value = unpacked(TAGGED.decode(opened.payload), self._registry.raised.values())
        elif opened.kind is Kind.VALUE:
            reader = codec or self._registry.by_schema(opened.schema)
            if reader is None or not (reader.schema == opened.schema or self._registry.reads(reader, opened.schema)):
                raise CodecError(f"{key} was stored under another schema")
            value = reader.decode(opened.payload)
        return Stored(opened.kind, value, opened.ttl, opened.load_time, opened.tags, opened.nonces)

    def outline(self, key: str, envelope: Any) -> Stored:
        """What the bytes say beside the value, which may be of a type that only other processes know."""
        opened = self._sealer.open(envelope, key)
        return Stored(opened.kind, None, opened.ttl, opened.load_time, opened.tags, opened.nonces)

    def glance(self, key: str, head: Any) -> Stored:  # noqa: ARG002 - the port's signature
        """What the first bytes say; nobody has verified them."""
        opened = self._sealer.glance(head)
        return Stored(opened.kind, None, opened.ttl, opened.load_time, opened.tags, opened.nonces)

    def stamp(self, envelope: Any) -> str:
        """What LEASE knows these bytes by; no secret."""
        return sha1(envelope, usedforsecurity=False).hexdigest()


_SCALARS = (int, str, bytes, bool, float, type(None))


def copied(value: Any) -> Any:
    """A copy that its receiver may change."""
    return value if type(value) in _SCALARS else deepcopy(value)


def weigh_stored(stored: Any, most: float) -> int:
    """How many bytes what `ObjectPacking` stores takes; no closer look if there are more than *most*."""
    if not isinstance(stored, Stored):
        return OVERHEAD
    if not stored.weight:
        stored.weight = weigh(stored.value, most)
    return OVERHEAD + OVERHEAD_OF_TAG * len(stored.tags) + stored.weight


class ObjectPacking:
    """Nothing is packed: within one process a value stays the object that it is, or a copy of it if *copies*."""

    def __init__(self, *, copies: bool = False) -> None:
        self._copies = copies

    def pack(self, key: str, stored: Stored, codec: Codec | None) -> Stored:  # noqa: ARG002 - the port's signature
        """*stored* itself."""
        if not self._copies:
            return stored
        return Stored(stored.kind, copied(stored.value), stored.ttl, stored.load_time, stored.tags, stored.nonces)

    def unpack(self, key: str, envelope: Any, codec: Codec | None) -> Stored:  # noqa: ARG002 - the port's signature
        """*envelope* itself."""
        return self.outline(key, envelope)

    def outline(self, key: str, envelope: Any) -> Stored:
        """*envelope* itself."""
        if not isinstance(envelope, Stored):
            raise CodecError(f"{key} holds no entry")
        return envelope

    def glance(self, key: str, head: Any) -> Stored:
        """*head* itself: an object has no beginning."""
        return self.outline(key, head)

    def stamp(self, envelope: Any) -> Any:
        """*envelope* itself: it cannot be another one while somebody holds it."""
        return envelope
