"""What Redis holds for an entry: a header, the tags and the payload, compressed and signed if asked for."""

from __future__ import annotations

import hmac
import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from hashlib import sha256
from importlib import import_module
from struct import Struct
from typing import Any, NamedTuple

import msgspec

from ..checks import count
from ..errors import CodecError, ConfigurationError

DEFAULT_COMPRESS_ABOVE = 2048
"""Bytes of payload below which compressing saves less than it costs."""
DEFAULT_MAX_VALUE_BYTES = 8 * 1024 * 1024

# version, kind, flags, schema, ttl in ms, load time in µs, length of the tags, length of the stored payload
HEADER = Struct(">BBB8sQIII")
VERSION = 0xC6  # says "an envelope of ours, in its first layout"
_SIGNED = 0x80  # flag; the lower bits number the compression
FOREVER = 2**64 - 1
_LONGEST_LOAD = 2**32 - 1
_MAC_BYTES = 32
_LARGEST_SIZE = 2**32 - 1
_SHORTEST_SECRET = 16
_MOST_MARKS = 1024 * 1024  # bytes of tags and nonces, unless payloads may be larger than that
_AT_ONCE = 1024 * 1024  # bytes that are inflated without being counted before
_PIECE = 16 * 1024
_SEVERAL: tuple[type[Any], ...] = (list, tuple)
_MARKS = msgspec.msgpack.Decoder(tuple[tuple[str, ...], tuple[bytes, ...]])


class Oversize(CodecError):  # noqa: N818 - better English than OversizeError
    """A payload beyond ``max_value_bytes``: too large to store, or claiming to be when inflated."""


class Kind(IntEnum):
    """What an envelope stands for."""

    VALUE = 0
    ABSENT = 1
    """The value ``None``, as an absence."""
    ERROR = 2
    """An exception that means "does not exist"."""


_KINDS: dict[int, Kind] = {each.value: each for each in Kind}


@dataclass(slots=True)  # not frozen: one is made on every hit in Redis, and that would triple its cost
class Envelope:
    """An entry as it travels."""

    kind: Kind
    schema: bytes
    """How to read the payload: the fingerprint of the codec that wrote it."""
    payload: bytes
    ttl: float
    """Seconds for which it was stored to be fresh."""
    load_time: float
    """Seconds the loader took."""
    tags: tuple[str, ...] = ()
    nonces: tuple[bytes, ...] = ()
    """What the markers of its namespaces (from the root down) and of its tags said when its load began."""


class _Compression(NamedTuple):
    flag: int
    deflate: Callable[[bytes], bytes]
    inflate: Callable[[bytes, int], bytes]
    """Bytes and the most that may come out; raises whatever its library raises."""


class Sealer:
    """Puts envelopes into bytes and takes them out again.

    With a *secret*, blobs are signed for the key they are stored under, and only signed ones are opened; of several
    secrets the first signs and all verify, so that a new one can be rolled out. Without one, signed blobs are refused.
    """

    __slots__ = ("_compress_above", "_compression", "_max_value_bytes", "_secrets")

    def __init__(
        self,
        *,
        secret: bytes | Sequence[bytes] | None = None,
        compression: str | None = "auto",
        compress_above: int = DEFAULT_COMPRESS_ABOVE,
        max_value_bytes: int = DEFAULT_MAX_VALUE_BYTES,
    ) -> None:
        self._secrets = _checked_secrets(secret)
        self._compression = _chosen(compression)
        self._compress_above = _checked_size("compress_above", compress_above, 0)
        self._max_value_bytes = _checked_size("max_value_bytes", max_value_bytes, 1)

    def __repr__(self) -> str:
        return f"<Sealer, {'signing' if self._secrets else 'unsigned'}, {self._max_value_bytes} bytes at most>"

    @property
    def signs(self) -> bool:
        """Whether only signed envelopes are opened."""
        return bool(self._secrets)

    @property
    def most(self) -> int:
        """Bytes that a payload may have."""
        return self._max_value_bytes

    def seal(self, envelope: Envelope, key: str) -> bytes:
        """The bytes to store under *key*.

        `Oversize` for a payload beyond the limit, `CodecError` for fields that no header can hold.
        """
        if len(envelope.payload) > self._max_value_bytes:
            raise Oversize(
                f"a value of {len(envelope.payload)} bytes is larger than max_value_bytes={self._max_value_bytes}"
            )
        flags, payload = self._deflated(envelope.payload)
        try:
            marks = (envelope.tags, envelope.nonces)
            tags = msgspec.msgpack.encode(marks) if envelope.tags or envelope.nonces else b""
            if len(tags) > max(self._max_value_bytes, _MOST_MARKS):
                raise Oversize(f"tags of {len(tags)} bytes, where {_MOST_MARKS} are allowed")  # noqa: TRY301 - ours
            header = _packed_header(envelope, flags | (_SIGNED if self._secrets else 0), len(tags), len(payload))
        except CodecError:
            raise
        except Exception as error:
            raise CodecError(f"an envelope cannot hold these fields: {error}") from error
        blob = b"".join((header, tags, payload))
        return blob + _mac(self._secrets[0], key, blob) if self._secrets else blob

    def open(self, blob: bytes, key: str) -> Envelope:
        """The envelope stored under *key*; `CodecError` for bytes that are not exactly what `seal` wrote."""
        try:
            return self._opened(blob, key)
        except CodecError:
            raise
        except Exception as error:
            raise CodecError(f"these bytes are no envelope: {error}") from error

    def _opened(self, blob: bytes, key: str) -> Envelope:
        version, kind, flags, schema, ttl, load_time, tags_length, length = HEADER.unpack_from(blob)
        if version != VERSION:
            raise CodecError(f"these bytes are no envelope: they begin with {version:#x}")
        signed = bool(flags & _SIGNED)
        if signed is not bool(self._secrets):
            raise CodecError("the envelope is signed, but there is no secret" if signed else "the envelope is unsigned")
        limit = self._max_value_bytes
        if length > limit or tags_length > max(limit, _MOST_MARKS):  # before anything is done with so much
            raise Oversize(f"an envelope of {len(blob)} bytes, where max_value_bytes={limit}")
        start = HEADER.size + tags_length
        end = start + length
        if len(blob) != end + (_MAC_BYTES if signed else 0):
            raise CodecError(f"the envelope should be longer or shorter than its {len(blob)} bytes")
        if signed:
            self._verify(blob, key, end)
        return Envelope(
            _KINDS[kind],
            schema,
            self._inflated(flags & ~_SIGNED, blob[start:end]),
            math.inf if ttl == FOREVER else ttl / 1000,
            load_time / 1_000_000,
            *(_MARKS.decode(blob[HEADER.size : start]) if tags_length else ((), ())),
        )

    def glance(self, head: bytes) -> Envelope:
        """What the first bytes of a blob say beside its payload; neither verified nor whole, so for listings only.

        `CodecError` for what is no beginning of a blob of ours, or ends within its tags.
        """
        try:
            return self._glanced(head)
        except CodecError:
            raise
        except Exception as error:
            raise CodecError(f"these bytes are no beginning of an envelope: {error}") from error

    def _glanced(self, head: bytes) -> Envelope:
        version, kind, flags, schema, ttl, load_time, tags_length, _ = HEADER.unpack_from(head)
        marks = head[HEADER.size : HEADER.size + tags_length]
        if version != VERSION or bool(flags & _SIGNED) is not bool(self._secrets) or len(marks) != tags_length:
            raise CodecError("these bytes are no beginning of an envelope, or too few of them")
        tags, nonces = _MARKS.decode(marks) if tags_length else ((), ())
        lasts = math.inf if ttl == FOREVER else ttl / 1000
        return Envelope(_KINDS[kind], schema, b"", lasts, load_time / 1_000_000, tags, nonces)

    def _verify(self, blob: bytes, key: str, end: int) -> None:
        body, given = blob[:end], blob[end:]
        if not any(hmac.compare_digest(_mac(secret, key, body), given) for secret in self._secrets):
            raise CodecError("the envelope's signature does not fit its key and content")

    def _deflated(self, payload: bytes) -> tuple[int, bytes]:
        if self._compression is None or len(payload) <= self._compress_above:
            return 0, payload
        smaller = self._compression.deflate(payload)
        return (self._compression.flag, smaller) if len(smaller) < len(payload) else (0, payload)

    def _inflated(self, flag: int, stored: bytes) -> bytes:
        limit = self._max_value_bytes
        payload = stored if flag == 0 else _compression_by_flag(flag).inflate(stored, limit)
        if len(payload) > limit:
            raise Oversize(f"the payload is larger than max_value_bytes={limit}")
        return payload


def _packed_header(envelope: Envelope, flags: int, tags_length: int, payload_length: int) -> bytes:
    if len(envelope.schema) != 8:  # noqa: PLR2004 - the header's own width, which struct would silently cut to
        raise ValueError(f"a schema has 8 bytes, got {len(envelope.schema)}")
    ttl = FOREVER if envelope.ttl == math.inf else round(envelope.ttl * 1000)
    load_time = round(min(max(envelope.load_time, 0) * 1_000_000, _LONGEST_LOAD))
    return HEADER.pack(VERSION, envelope.kind, flags, envelope.schema, ttl, load_time, tags_length, payload_length)


def _mac(secret: bytes, key: str, body: bytes) -> bytes:
    name = key.encode("utf-8", "surrogatepass")
    mac = hmac.new(secret, len(name).to_bytes(4, "big"), sha256)
    mac.update(name)
    mac.update(body)
    return mac.digest()


def _checked_secrets(secret: Any) -> tuple[bytes, ...]:
    if secret is None:
        return ()
    secrets: tuple[Any, ...] = tuple(secret) if isinstance(secret, _SEVERAL) else (secret,)
    if not secrets:
        raise ConfigurationError("secret must hold at least one secret, got an empty sequence; use None for no signing")
    for each in secrets:
        if not isinstance(each, bytes):
            raise ConfigurationError(f"secret must be bytes or a list of bytes, got {type(each).__qualname__}")
        if len(each) < _SHORTEST_SECRET:
            raise ConfigurationError(f"secret must have at least {_SHORTEST_SECRET} bytes, got {len(each)}")
    return secrets


def _checked_size(name: str, size: object, least: int) -> int:
    allowed = f"a number of bytes, at least {least} and below 4 GiB"
    return count(name, size, least, _LARGEST_SIZE, allowed=allowed)


# Each of the following runs where its library is importable, and raises ImportError where not.


def _zlib() -> _Compression:
    return _Compression(1, _deflate_zlib, _inflate_zlib)


def _deflate_zlib(data: bytes) -> bytes:
    return zlib.compress(data, 1)


def _inflate_zlib(data: bytes, limit: int) -> bytes:
    if limit <= _AT_ONCE:
        return _inflate_stream(zlib.decompressobj(), data, limit)
    stream = zlib.decompressobj()
    payload = stream.decompress(data, _AT_ONCE)
    if stream.eof and not stream.unused_data:
        return payload
    # Nothing says how much there is: it is counted first, and kept only if it is not too much.
    _measure(data, limit)
    return _inflate_stream(zlib.decompressobj(), data, limit)


def _measure(data: bytes, limit: int) -> None:
    """`Oversize` if more than *limit* bytes are in *data*; holds some dozen kilobytes of them at a time."""
    stream, total = zlib.decompressobj(), 0
    for start in range(0, len(data), _PIECE):
        if stream.eof:
            raise CodecError("a compressed payload goes on after its end")
        left = data[start : start + _PIECE]
        while left and not stream.eof:
            total += len(stream.decompress(left, 4 * _PIECE))
            if total > limit:
                raise Oversize(f"a compressed payload of more than the {limit} bytes that are allowed")
            left = stream.unconsumed_tail
    if not stream.eof:
        raise CodecError("a compressed payload is cut short")


def _zstd() -> _Compression:
    for name in ("compression.zstd", "backports.zstd"):
        try:
            module = import_module(name)
        except ImportError:
            continue
        return _zstd_of_stdlib(module)
    return _zstd_of_zstandard(import_module("zstandard"))


def _zstd_of_stdlib(module: Any) -> _Compression:
    def inflate(data: bytes, limit: int) -> bytes:
        size = _declared(module.get_frame_info(data).decompressed_size, limit)
        options = {module.DecompressionParameter.window_log_max: _window_log(limit)}
        return _inflate_stream(module.ZstdDecompressor(options=options), data, size)

    return _Compression(2, module.compress, inflate)


def _zstd_of_zstandard(module: Any) -> _Compression:
    def inflate(data: bytes, limit: int) -> bytes:
        _declared(module.frame_content_size(data), limit)
        reader = module.ZstdDecompressor(max_window_size=1 << _window_log(limit))
        return bytes(reader.decompress(data, allow_extra_data=False))

    def deflate(data: bytes) -> bytes:
        return bytes(module.ZstdCompressor().compress(data))

    return _Compression(2, deflate, inflate)


def _window_log(limit: int) -> int:
    """The largest window, as a power of two, that a payload within *limit* can make use of."""
    return min(max((limit - 1).bit_length(), 10), 27)


def _lz4() -> _Compression:
    module: Any = import_module("lz4.frame")

    def inflate(data: bytes, limit: int) -> bytes:
        size = _declared(module.get_frame_info(data)["content_size"], limit)
        return _inflate_stream(module.LZ4FrameDecompressor(), data, size)

    return _Compression(3, module.compress, inflate)


def _declared(size: int | None, limit: int) -> int:
    """What a frame's header says it holds decides what is allocated, so it has to be there and be small."""
    if size is None or not 0 < size <= limit:
        raise Oversize(f"a compressed payload of {size} bytes, where {limit} are allowed")
    return size


def _inflate_stream(stream: Any, data: bytes, limit: int) -> bytes:
    """All that is in *data*, or one byte more than *limit*: a bomb goes no further than that."""
    payload = bytes(stream.decompress(data, limit + 1))
    if len(payload) > limit:
        raise Oversize(f"a compressed payload of more than the {limit} bytes that are allowed")
    if not stream.eof or stream.unused_data:
        raise CodecError("a compressed payload is cut short, or goes on after its end")
    return payload


_COMPRESSIONS: Mapping[str, Callable[[], _Compression]] = {"zstd": _zstd, "lz4": _lz4, "zlib": _zlib}
_BY_FLAG: Mapping[int, Callable[[], _Compression]] = {1: _zlib, 2: _zstd, 3: _lz4}


def _compression_by_flag(flag: int) -> _Compression:
    open_compression = _BY_FLAG.get(flag)
    if open_compression is None:
        raise CodecError(f"the envelope has flags of a later release: {flag:#x}")
    return open_compression()


def _chosen(name: str | None) -> _Compression | None:
    if name is None:
        return None
    if name == "auto":
        return _best()
    if name not in _COMPRESSIONS:
        raise ConfigurationError(f"compression must be 'auto', 'zstd', 'lz4', 'zlib' or None, got {name!r}")
    try:
        return _COMPRESSIONS[name]()
    except ImportError as error:
        raise ConfigurationError(
            f"compression={name!r} needs a package that is not installed: pip install 'cacheguard[{name}]'"
        ) from error


def _best() -> _Compression:
    for open_compression in (_zstd, _lz4):
        try:
            return open_compression()
        except ImportError:
            continue
    return _zlib()
