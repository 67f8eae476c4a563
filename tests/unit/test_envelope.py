"""What is sealed can be opened, and nothing else can."""

from __future__ import annotations

import math
import random
import struct
import sys
import tracemalloc
from dataclasses import replace
from importlib import import_module
from typing import Any

import pytest

from cacheguard.errors import CodecError, ConfigurationError
from cacheguard.protocol.envelope import Envelope, Kind, Oversize, Sealer

KEY = "cg:shop:e:user:42"
SECRET = b"0123456789abcdef"
OTHER = b"fedcba9876543210"
ENVELOPE = Envelope(Kind.VALUE, b"12345678", b"payload", 1.5, 0.25)
LARGE = replace(ENVELOPE, payload=b"the same again " * 1000)
NOISE = random.Random(7).randbytes(5000)

HEADER = struct.Struct(">BBB8sQIII")

ZSTD = ("compression.zstd", "backports.zstd", "zstandard")


@pytest.mark.parametrize("secret", [None, SECRET, [OTHER, SECRET]])
@pytest.mark.parametrize("compression", ["auto", "zlib", "zstd", "lz4", None])
@pytest.mark.parametrize("envelope", [ENVELOPE, LARGE, replace(LARGE, payload=NOISE), replace(ENVELOPE, payload=b"")])
def test_what_is_sealed_can_be_opened(secret: Any, compression: str | None, envelope: Envelope) -> None:
    sealer = Sealer(secret=secret, compression=compression)
    assert sealer.open(sealer.seal(envelope, KEY), KEY) == envelope


@pytest.mark.parametrize(
    "envelope",
    [
        replace(ENVELOPE, kind=Kind.ABSENT, payload=b""),
        replace(ENVELOPE, kind=Kind.ERROR),
        replace(ENVELOPE, ttl=math.inf),
        replace(ENVELOPE, ttl=0.001, load_time=0.0),
        replace(ENVELOPE, tags=("org:1", "ü", "")),
    ],
)
def test_every_field_is_kept(envelope: Envelope) -> None:
    sealer = Sealer()
    assert sealer.open(sealer.seal(envelope, KEY), KEY) == envelope


def test_a_load_of_more_than_an_hour_counts_as_the_longest_there_is() -> None:
    sealer = Sealer()
    assert sealer.open(sealer.seal(replace(ENVELOPE, load_time=1e9), KEY), KEY).load_time == pytest.approx(4294.967295)
    assert sealer.open(sealer.seal(replace(ENVELOPE, load_time=-1), KEY), KEY).load_time == 0


@pytest.mark.parametrize(
    "envelope",
    [
        replace(ENVELOPE, ttl=-1),
        replace(ENVELOPE, ttl=math.nan),
        replace(ENVELOPE, ttl=1e30),
        replace(ENVELOPE, load_time=math.nan),
        replace(ENVELOPE, schema=b"short"),
        replace(ENVELOPE, tags=("\ud800",)),
    ],
)
def test_fields_that_no_header_can_hold_are_refused(envelope: Envelope) -> None:
    with pytest.raises(CodecError):
        Sealer().seal(envelope, KEY)


def test_only_payloads_that_shrink_are_compressed() -> None:
    sealer = Sealer(compression="zlib", compress_above=10)
    plain = Sealer(compression=None)
    assert len(sealer.seal(LARGE, KEY)) < 500
    for kept in (ENVELOPE, replace(ENVELOPE, payload=NOISE)):
        assert sealer.seal(kept, KEY) == plain.seal(kept, KEY)


def test_compressed_envelopes_are_opened_whatever_compression_is_configured() -> None:
    for writer in ("zlib", "zstd", "lz4"):
        for reader in ("auto", "zlib", None):
            blob = Sealer(compression=writer).seal(LARGE, KEY)
            assert Sealer(compression=reader).open(blob, KEY) == LARGE


# ---- sizes


def test_a_value_beyond_the_limit_is_too_large_to_seal() -> None:
    sealer = Sealer(max_value_bytes=100)
    exact = replace(ENVELOPE, payload=b"x" * 100)
    assert sealer.open(sealer.seal(exact, KEY), KEY) == exact
    with pytest.raises(Oversize, match="max_value_bytes=100"):
        sealer.seal(replace(ENVELOPE, payload=b"x" * 101), KEY)


def test_a_value_beyond_the_limit_is_not_opened() -> None:
    blob = Sealer(compression=None).seal(LARGE, KEY)
    with pytest.raises(Oversize):
        Sealer(max_value_bytes=100).open(blob, KEY)


def assert_bomb_does_not_unfold(compression: str) -> None:
    limit = 1024 * 1024
    bomb = Sealer(compression=compression, max_value_bytes=2**31).seal(
        replace(ENVELOPE, payload=bytes(50 * limit)), KEY
    )
    sealer = Sealer(max_value_bytes=limit)
    sealer.open(Sealer(compression=compression).seal(LARGE, KEY), KEY)  # imports what it needs
    tracemalloc.start()
    try:
        with pytest.raises(CodecError):
            sealer.open(bomb, KEY)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 3 * limit + len(bomb)


@pytest.mark.parametrize("compression", ["zlib", "zstd", "lz4"])
def test_a_bomb_is_refused_before_it_unfolds(compression: str) -> None:
    assert_bomb_does_not_unfold(compression)


@pytest.mark.parametrize("compression", ["zlib", "zstd", "lz4"])
@pytest.mark.parametrize(
    "spoil",
    [
        lambda data: data[:-1],
        lambda data: data[: len(data) // 2],
        lambda data: data + b"x",
        lambda data: data * 2,
        bytes,
    ],
)
def test_compressed_payloads_that_are_cut_short_or_go_on_are_refused(compression: str, spoil: Any) -> None:
    blob = Sealer(compression=compression).seal(LARGE, KEY)
    version, kind, flags, schema, ttl, load_time, tags, _ = HEADER.unpack_from(blob)
    payload = spoil(blob[HEADER.size :]) if spoil is not bytes else b""
    forged = HEADER.pack(version, kind, flags, schema, ttl, load_time, tags, len(payload)) + payload
    with pytest.raises(CodecError):
        Sealer().open(forged, KEY)


# ---- signatures


def test_an_envelope_is_signed_for_its_key_and_content() -> None:
    sealer = Sealer(secret=SECRET)
    blob = sealer.seal(replace(ENVELOPE, tags=("a",)), KEY)
    with pytest.raises(CodecError, match="signature"):
        sealer.open(blob, KEY[:-1] + "3")
    with pytest.raises(CodecError, match="signature"):
        sealer.open(blob, KEY + "2")
    for place in range(len(blob)):
        spoiled = bytearray(blob)
        spoiled[place] ^= 1
        with pytest.raises(CodecError):
            sealer.open(bytes(spoiled), KEY)


def test_signatures_are_not_negotiable() -> None:
    signed, unsigned = Sealer(secret=SECRET), Sealer()
    with pytest.raises(CodecError, match="no secret"):
        unsigned.open(signed.seal(ENVELOPE, KEY), KEY)
    with pytest.raises(CodecError, match="unsigned"):
        signed.open(unsigned.seal(ENVELOPE, KEY), KEY)
    with pytest.raises(CodecError, match="signature"):
        Sealer(secret=OTHER).open(signed.seal(ENVELOPE, KEY), KEY)


def test_a_secret_is_rolled_over_without_losing_entries() -> None:
    old, new = Sealer(secret=SECRET), Sealer(secret=OTHER)
    both = Sealer(secret=(OTHER, SECRET))
    assert both.open(old.seal(ENVELOPE, KEY), KEY) == ENVELOPE
    assert new.open(both.seal(ENVELOPE, KEY), KEY) == ENVELOPE
    with pytest.raises(CodecError):
        old.open(both.seal(ENVELOPE, KEY), KEY)


def test_a_key_that_is_no_text_for_any_encoding_can_be_signed() -> None:
    sealer = Sealer(secret=SECRET)
    assert sealer.open(sealer.seal(ENVELOPE, "\ud800"), "\ud800") == ENVELOPE


def test_secrets_are_never_shown() -> None:
    assert "0123456789" not in repr(Sealer(secret=SECRET))
    assert "signing" in repr(Sealer(secret=SECRET))
    assert "unsigned" in repr(Sealer())
    with pytest.raises(ConfigurationError) as caught:
        Sealer(secret=b"hush hush")
    assert "hush" not in str(caught.value)


@pytest.mark.parametrize("secret", ["0123456789abcdef", b"short", [], (), [SECRET, b"short"], [SECRET, "text" * 9], 5])
def test_a_secret_that_cannot_work_is_a_mistake_of_configuration(secret: Any) -> None:
    with pytest.raises(ConfigurationError, match="secret must"):
        Sealer(secret=secret)


# ---- foreign bytes


@pytest.mark.parametrize("sealer", [Sealer(), Sealer(secret=SECRET)])
@pytest.mark.parametrize(
    "blob",
    [
        b"",
        b"x",
        b"\xc6",
        b"\xc6" * 31,
        b"\x80\x04K\x01." * 20,
        HEADER.pack(0xC6, 3, 0, b"12345678", 1, 1, 0, 0),
        HEADER.pack(0xC6, 0, 4, b"12345678", 1, 1, 0, 0),
        HEADER.pack(0xC6, 0, 0x40, b"12345678", 1, 1, 0, 0),
        HEADER.pack(0xC6, 0, 1, b"12345678", 1, 1, 0, 0),
        HEADER.pack(0xC7, 0, 0, b"12345678", 1, 1, 0, 0),
        HEADER.pack(0xC6, 0, 0, b"12345678", 1, 1, 2**32 - 1, 2**32 - 1),
        HEADER.pack(0xC6, 0, 0, b"12345678", 1, 1, 1, 0) + b"\xc1",
        HEADER.pack(0xC6, 0, 0, b"12345678", 1, 1, 2, 0) + b"\x91\x05",
        HEADER.pack(0xC6, 0, 0x80, b"12345678", 1, 1, 0, 0),
        HEADER.pack(0xC6, 0, 0, b"12345678", 1, 1, 0, 0) + b"more",
        "text",
        None,
        5,
    ],
)
def test_foreign_bytes_are_an_error_of_ours(sealer: Sealer, blob: Any) -> None:
    with pytest.raises(CodecError):
        sealer.open(blob, KEY)


def test_every_cut_of_an_envelope_is_refused() -> None:
    sealer = Sealer()
    blob = sealer.seal(replace(ENVELOPE, tags=("a", "b")), KEY)
    for length in range(len(blob)):
        with pytest.raises(CodecError):
            sealer.open(blob[:length], KEY)


def test_the_first_layout_can_be_read_for_ever() -> None:
    blob = bytes.fromhex(
        "c600003132333435363738 00000000000005dc 0003d090 0000000b 00000007 92 91a161 92 c40131 c40132 7061796c6f6164"
    )
    marked = replace(ENVELOPE, tags=("a",), nonces=(b"1", b"2"))
    assert Sealer().open(blob, KEY) == marked
    assert Sealer().seal(marked, KEY) == blob


# ---- configuration


@pytest.mark.parametrize("compression", ["gzip", "", "ZSTD"])
def test_an_unknown_compression_is_a_mistake_of_configuration(compression: str) -> None:
    with pytest.raises(ConfigurationError, match="'auto', 'zstd', 'lz4', 'zlib' or None"):
        Sealer(compression=compression)


@pytest.mark.parametrize("size", [-1, 1.5, True, "8 MiB", 2**32, None])
def test_a_size_that_is_none_is_a_mistake_of_configuration(size: Any) -> None:
    with pytest.raises(ConfigurationError, match="max_value_bytes"):
        Sealer(max_value_bytes=size)
    with pytest.raises(ConfigurationError, match="compress_above"):
        Sealer(compress_above=size)


def _without(monkeypatch: pytest.MonkeyPatch, *modules: str) -> None:
    for module in modules:
        monkeypatch.setitem(sys.modules, module, None)


def test_the_best_compression_is_whatever_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    def flag() -> int:
        return Sealer().seal(LARGE, KEY)[2]

    assert flag() == 2
    _without(monkeypatch, *ZSTD)
    assert flag() == 3
    _without(monkeypatch, "lz4.frame")
    assert flag() == 1


@pytest.mark.parametrize(("compression", "modules"), [("zstd", ZSTD), ("lz4", ("lz4.frame",))])
def test_a_compression_that_is_not_installed_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, compression: str, modules: tuple[str, ...]
) -> None:
    blob = Sealer(compression=compression).seal(LARGE, KEY)
    _without(monkeypatch, *modules)
    with pytest.raises(ConfigurationError, match="pip install"):
        Sealer(compression=compression)
    with pytest.raises(CodecError):
        Sealer(compression=None).open(blob, KEY)


@pytest.fixture(params=ZSTD)
def only(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """One of the packages that know zstd, with the others gone."""
    name: str = request.param
    pytest.importorskip(name)
    _without(monkeypatch, *[module for module in ZSTD if module != name])
    return name


def test_every_package_that_knows_zstd_reads_what_the_others_wrote(only: str, monkeypatch: pytest.MonkeyPatch) -> None:
    blob = Sealer(compression="zstd").seal(LARGE, KEY)
    assert Sealer().open(blob, KEY) == LARGE
    monkeypatch.undo()
    assert Sealer().open(blob, KEY) == LARGE


def test_every_package_that_knows_zstd_refuses_bombs_and_spoiled_frames(only: str) -> None:
    assert_bomb_does_not_unfold("zstd")
    blob = Sealer(compression="zstd").seal(LARGE, KEY)
    with pytest.raises(Oversize):
        Sealer(max_value_bytes=len(LARGE.payload) - 1).open(blob, KEY)
    for payload in (blob[HEADER.size : -1], blob[HEADER.size :] + b"x", blob[HEADER.size :] * 2, b"", NOISE):
        forged = HEADER.pack(0xC6, 0, 2, b"12345678", 1, 1, 0, len(payload)) + payload
        with pytest.raises(CodecError):
            Sealer().open(forged, KEY)


def test_a_zstd_frame_that_does_not_tell_its_size_is_bounded_too(only: str) -> None:
    zstandard = pytest.importorskip("zstandard") if only == "zstandard" else import_module(only)
    stream = zstandard.ZstdCompressor().compressobj() if only == "zstandard" else zstandard.ZstdCompressor()
    payload = stream.compress(bytes(100_000)) + stream.flush()
    forged = HEADER.pack(0xC6, 0, 2, b"12345678", 1, 1, 0, len(payload)) + payload
    with pytest.raises(CodecError):
        Sealer(max_value_bytes=1000).open(forged, KEY)
