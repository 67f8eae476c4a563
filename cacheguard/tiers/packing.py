"""Values ↔ what is stored: sealed bytes for Redis, the objects themselves within the process."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha1
from typing import Any, Protocol

from ..codec import TAGGED, Codec, Registry, settled
from ..errors import CodecError
from ..ports import Reply
from ..protocol.entry import Found, Stored
from ..protocol.envelope import Envelope, Kind, Sealer
from ..protocol.exceptions import packed, unpacked
from ..protocol.plain import Around, plain_ones
from .copies import Copier, Master, master_of
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

    def plain_ones(self, raws: Sequence[Reply], beside: Around, codec: Codec | None) -> list[Found | None]:
        """The plain hits among *raws* (`protocol.plain`), each in its place; None where a closer look is needed."""
        ...

    def stamp(self, envelope: Any) -> Any:
        """What LEASE knows this value by."""
        ...


class SealedPacking:
    """Envelopes of bytes. Which codec reads an entry is said by the fingerprint inside it.

    Args:
        copies: what is read has a `Master` that makes copies of it.
    """

    def __init__(self, sealer: Sealer, registry: Registry, *, copies: bool = False) -> None:
        self._sealer, self._registry, self._copies = sealer, registry, copies
        self._most = -1 if copies or sealer.signs else sealer.most  # what is signed or copied is never plain

    def pack(self, key: str, stored: Stored, codec: Codec | None) -> bytes:
        """The sealed bytes; `CodecError` if the value cannot be stored faithfully."""
        schema, payload = TAGGED.schema, b""
        if stored.kind is Kind.ERROR:
            self._registry.raised[stored.value.name] = stored.value.kind
            payload = TAGGED.encode(packed(stored.value))
        elif stored.kind is Kind.VALUE:
            codec = codec or self._registry.for_value(stored.value)
            master = stored.master
            if master is not None and master.codec is settled(codec):
                schema, payload = master.codec.schema, master.source
            else:
                payload = codec.encode(stored.own())
                schema = codec.schema
        return self._sealer.seal(
            Envelope(stored.kind, schema, payload, stored.ttl, stored.load_time, stored.tags, stored.nonces), key
        )

    def unpack(self, key: str, envelope: Any, codec: Codec | None) -> Stored:
        """What the bytes say; `CodecError` if they are not ours, or of another version of the type."""
        opened = self._sealer.open(envelope, key)
        value: Any = None
        master: Master | None = None
        if opened.kind is Kind.ERROR:
            value = unpacked(TAGGED.decode(opened.payload), self._registry.raised.values())
        elif opened.kind is Kind.VALUE:
            reader = codec or self._registry.by_schema(opened.schema)
            if reader is None or not (reader.schema == opened.schema or self._registry.reads(reader, opened.schema)):
                raise CodecError(f"{key} was stored under another schema")
            value = reader.decode(opened.payload)
            if self._copies:
                master = master_of(opened.payload, reader, value)
        return Stored(opened.kind, value, opened.ttl, opened.load_time, opened.tags, opened.nonces, master=master)

    def outline(self, key: str, envelope: Any) -> Stored:
        """What the bytes say beside the value, which may be of a type that only other processes know."""
        opened = self._sealer.open(envelope, key)
        return Stored(opened.kind, None, opened.ttl, opened.load_time, opened.tags, opened.nonces)

    def glance(self, key: str, head: Any) -> Stored:  # noqa: ARG002 - the port's signature
        """What the first bytes say; nobody has verified them."""
        opened = self._sealer.glance(head)
        return Stored(opened.kind, None, opened.ttl, opened.load_time, opened.tags, opened.nonces)

    def plain_ones(self, raws: Sequence[Reply], beside: Around, codec: Codec | None) -> list[Found | None]:
        """The plain hits among *raws*; whatever else there is, is for `unpack`."""
        if self._most < 0:
            return [None] * len(raws)
        return plain_ones(raws, beside, self._most, codec, self._registry.by_schema)

    def stamp(self, envelope: Any) -> str:
        """What LEASE knows these bytes by; no secret."""
        return sha1(envelope, usedforsecurity=False).hexdigest()


def weigh_stored(stored: Any, most: float) -> int:
    """How many bytes what `ObjectPacking` stores takes; no closer look if there are more than *most*."""
    if not isinstance(stored, Stored):
        return OVERHEAD
    if not stored.weight:
        stored.weight = weigh(stored.value, most) if stored.master is None else stored.master.weight(most)
    return OVERHEAD + sum(OVERHEAD_OF_TAG + 2 * len(tag) for tag in stored.tags) + stored.weight


class ObjectPacking:
    """Nothing is packed: within one process a value stays the object that it is.

    Args:
        copier: if given, only what copies are made of is kept.
    """

    def __init__(self, copier: Copier | None = None) -> None:
        self._copier = copier

    def pack(self, key: str, stored: Stored, codec: Codec | None) -> Stored:
        """*stored* itself, or what copies of it are made of; `CodecError` if it cannot be copied."""
        if self._copier is None or stored.kind is not Kind.VALUE:
            return stored
        master = stored.master
        if master is None:
            try:
                master = self._copier.master(stored.value, codec)
            except CodecError as error:
                raise CodecError(f"{key}: l1_copy=True, and {error}") from error
        value = stored.value if master is None else None
        return Stored(stored.kind, value, stored.ttl, stored.load_time, stored.tags, stored.nonces, master=master)

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

    def plain_ones(
        self,
        raws: Sequence[Reply],
        beside: Around,  # noqa: ARG002 - likewise
        codec: Codec | None,  # noqa: ARG002 - likewise
    ) -> list[Found | None]:
        """None of *raws*: there is nothing to decode."""
        return [None] * len(raws)

    def stamp(self, envelope: Any) -> Any:
        """*envelope* itself: it cannot be another one while somebody holds it."""
        return envelope
