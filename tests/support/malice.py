"""What somebody who can write to Redis might put under a guard's key: made anew each time, nothing of it is kept.

Every blob is one that must be a miss. What would run leaves a file behind, so that one can see that it did not.
"""

from __future__ import annotations

import gzip
import json
import marshal
import pickle
import random
import struct
import zlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import lz4.block
import lz4.frame
import zstandard

from cacheguard.codec import TAGGED

HEADER = struct.Struct(">BBB8sQIII")
ZLIB, ZSTD, LZ4, SIGNED = 1, 2, 3, 0x80
DEEP = 100_000
LARGE = 2**24  # bytes, more than any guard of these tests takes

_INT, _TUPLE, _SET, _FROZENSET, _DICT, _DECIMAL, _DATETIME, _DATE, _TIME, _TIMEDELTA, _UUID = range(1, 12)


class Fuse:
    """Runs when it is unpickled."""

    def __init__(self, file: Path, way: str) -> None:
        self._file, self._way = file, way

    def __reduce__(self) -> tuple[Any, ...]:
        source = f"open({str(self._file)!r}, 'w').close()"
        if self._way == "exec":
            return exec, (source,)
        if self._way == "system":
            import os

            return os.system, (f"touch {self._file}",)
        return Path(self._file).touch, ()


def envelope(
    payload: bytes,
    *,
    schema: bytes = TAGGED.schema,
    kind: int = 0,
    flags: int = 0,
    version: int = 0xC6,
    ttl: int = 60_000,
    marks: bytes = b"",
    marks_length: int | None = None,
    length: int | None = None,
) -> bytes:
    """An envelope of ours around *payload*, with whatever lies one wants in its header."""
    told = len(payload) if length is None else length
    told_marks = len(marks) if marks_length is None else marks_length
    return HEADER.pack(version, kind, flags, schema, ttl, 0, told_marks, told) + marks + payload


def ext(code: int, data: bytes, length: int | None = None) -> bytes:
    """A MessagePack extension of 32-bit length."""
    return b"\xc9" + struct.pack(">Ib", len(data) if length is None else length, code) + data


@cache
def bombs() -> dict[str, tuple[int, bytes]]:
    """Small things that are large inside, by the flag under which they would be inflated."""
    rows = b"\0" * LARGE
    stream = zstandard.ZstdCompressor().compressobj()
    sizeless = stream.compress(rows) + stream.flush()
    found = {
        "zlib": (ZLIB, zlib.compress(rows, 9)),
        "zlib in two": (ZLIB, zlib.compress(rows[: LARGE // 2]) * 2),
        "zlib in zlib": (ZLIB, zlib.compress(zlib.compress(rows, 9) * 600, 9)),
        "raw deflate": (ZLIB, zlib.compress(rows, 9, -15)),
        "gzip": (ZLIB, gzip.compress(rows)),
        "zstd": (ZSTD, zstandard.ZstdCompressor().compress(rows)),
        "zstd, no size": (ZSTD, sizeless),
        "zstd, false size": (ZSTD, _with_another_size(zstandard.ZstdCompressor().compress(rows), 100)),
        "zstd, skippable first": (ZSTD, b"\x50\x2a\x4d\x18" + struct.pack("<I", 2**31)),
        "zstd, huge window": (ZSTD, bytes.fromhex("28b52ffd 00 f8 010000") + b"x"),
        "lz4": (LZ4, lz4.frame.compress(rows)),
        "lz4, no size": (LZ4, lz4.frame.compress(rows, store_size=False)),
        "lz4 block": (LZ4, lz4.block.compress(rows)),
    }
    makers: list[tuple[str, int, Callable[[bytes], bytes]]] = [
        ("zlib", ZLIB, zlib.compress),
        ("zstd", ZSTD, zstandard.ZstdCompressor().compress),
        ("lz4", LZ4, lz4.frame.compress),
    ]
    for name, flag, small in makers:
        good = small(TAGGED.encode("a value " * 1000))
        found |= {
            f"{name}, cut": (flag, good[:-1]),
            f"{name}, half": (flag, good[: len(good) // 2]),
            f"{name}, going on": (flag, good + b"\0"),
            f"{name}, twice": (flag, good + good),
            f"{name}, under another flag": (flag % 3 + 1, good),
            f"{name}, spoiled": (flag, good[:10] + bytes([good[10] ^ 0xFF]) + good[11:]),
            f"{name}, of nothing": (flag, small(b"")),
        }
    return found


def _with_another_size(frame: bytes, size: int) -> bytes:
    """A zstd frame that says it holds *size* bytes; what it holds is what it was."""
    descriptor = frame[4]
    width = {0: 1 if descriptor & 0x20 else 0, 1: 2, 2: 4, 3: 8}[descriptor >> 6]
    at = 5 + (0 if descriptor & 0x20 else 1)
    told = size - 256 if width == 2 else size
    return frame[:at] + told.to_bytes(width, "little") + frame[at + width :]


@cache
def payloads() -> dict[str, bytes]:
    """What a codec is given to read."""
    found = {
        "nothing": b"",
        "a byte that MessagePack has not": b"\xc1",
        "a half text": b"\xd9\xff",
        "text that is no UTF-8": b"\xa4\xff\xfe\xfd\xfc",
        "text with half a pair": b"\xa3\xed\xa0\x80",
        "something behind the end": TAGGED.encode(1) + b"\xc0",
        "two values": TAGGED.encode("one") * 2,
        "deep lists": b"\x91" * DEEP + b"\xc0",
        "deep lists, open": b"\x91" * DEEP,
        "deep wide lists": b"\xdd\0\0\0\x02" * DEEP,
        "deep maps": b"\x81\xa1k" * DEEP + b"\xc0",
        "deep keys": b"\x81" * DEEP + b"\xc0",
        "a map in a key": b"\x81\x81\xa1k\x01\x01",
        "a time stamp of no length": ext(-1, b"\0" * 13),
        "json": json.dumps({"py/reduce": [{"py/function": "os.system"}, ["true"]]}).encode(),
        "yaml": b"!!python/object/apply:os.system ['true']\n",
        "deep json": b"[" * DEEP,
        "random": random.Random(5).randbytes(4096),
    }
    for code, name in [
        (0xD9, "str8"),
        (0xDA, "str16"),
        (0xDB, "str32"),
        (0xC4, "bin8"),
        (0xC5, "bin16"),
        (0xC6, "bin32"),
    ]:
        found[f"{name} that is not there"] = bytes([code]) + b"\xff" * 4
    for code, name in [(0xDC, "array16"), (0xDD, "array32"), (0xDE, "map16"), (0xDF, "map32"), (0xC9, "ext32")]:
        found[f"{name} that is not there"] = bytes([code]) + b"\xff" * 4
        found[f"{name}, beginning"] = bytes([code]) + b"\xff" * 4 + b"\x01" * 1000
    for code in range(1, 12):
        deep = b"\xc0"
        for _ in range(2_000):
            deep = ext(code, b"\x91" + deep)
        found[f"extension {code}, deep"] = deep
        found[f"extension {code}, of garbage"] = ext(code, b"\xc1\xff garbage")
        found[f"extension {code}, longer than it is"] = ext(code, b"\x90", length=2**32 - 1)
    del found[f"extension {_INT}, deep"], found[f"extension {_INT}, of garbage"]  # any bytes are an integer
    for code in (-128, -2, 0, 12, 99, 127):
        found[f"extension {code}"] = ext(code, b"\x90")
    found |= {
        "a decimal of nothing": ext(_DECIMAL, b""),
        "a decimal that is none": ext(_DECIMAL, b"__import__('os')"),
        "a date before all dates": ext(_DATE, b"\xd3" + b"\x80" + b"\0" * 7),
        "a zone from the file system": ext(_TIME, b"\x96\x01\x01\x01\x01\0" + b"\xd9\x1b../../../../../etc/passwd00"),
        "a zone that is absolute": ext(_TIME, b"\x96\x01\x01\x01\x01\0\xab/etc/passwd"),
        "a zone of a module": ext(_TIME, b"\x96\x01\x01\x01\x01\0\xa7os.path"),
        "a duration beyond all": ext(_TIMEDELTA, b"\x93" + b"\xcf\xff\xff\xff\xff\xff\xff\xff\xff" * 3),
        "a UUID that is too short": ext(_UUID, b"123"),
        "a dict with half a pair": ext(_DICT, b"\x91\x01"),
        "a set of lists": ext(_SET, b"\x91\x90"),
        "a frozenset of sets": ext(_FROZENSET, b"\x91" + ext(_SET, b"\x90")),
        "a tuple that is a map": ext(_TUPLE, b"\xc0"),
        "a moment with ten fields": ext(_DATETIME, b"\x9a" + b"\x01" * 10),
    }
    return found


def blobs(canary: Path) -> dict[str, bytes]:
    """All of it, by what it is; *canary* is a file that exists once something of it has run."""
    found = {
        **_bare(canary),
        **_code(canary),
        **{f"payload: {name}": envelope(payload) for name, payload in payloads().items()},
        **{f"bomb: {name}": envelope(data, flags=flag) for name, (flag, data) in bombs().items()},
        **{f"bomb, bare: {name}": data for name, (_, data) in bombs().items()},
        **_lies(),
        **_marks(),
    }
    for name in ("deep lists", "array32 that is not there", "json", "map32, beginning"):
        found[f"compressed payload: {name}"] = envelope(zlib.compress(payloads()[name]), flags=ZLIB)
    return found


def _bare(canary: Path) -> dict[str, bytes]:
    return {
        "not one byte": b"",
        "one": b"\xc6",
        "text": b"hello",
        "utf-16": "\ufeffhello".encode("utf-16"),
        "lone surrogates": "\ud800\udfff".encode("utf-8", "surrogatepass"),
        "overlong": b"\xc0\x80\xe0\x80\x80",
        "zeros": bytes(1000),
        "ones": b"\xff" * 1000,
        "a header of ours alone": envelope(b""),
        "half a header": envelope(b"")[:15],
        "marshal": marshal.dumps(compile(f"open({str(canary)!r}, 'w')", "x", "exec")),
    }


def _code(canary: Path) -> dict[str, bytes]:
    """What runs if it is unpickled, or read by something that is as trusting."""
    found = {
        "pickle, compressed": envelope(zlib.compress(pickle.dumps(Fuse(canary, "exec"))), flags=ZLIB),
        "marshal, in an envelope": envelope(_bare(canary)["marshal"]),
    }
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        for way in ("exec", "system", "touch"):
            pickled = pickle.dumps(Fuse(canary, way), protocol)
            found |= {f"pickle {protocol} {way}": pickled, f"pickle {protocol} {way}, enveloped": envelope(pickled)}
    return found


def _lies() -> dict[str, bytes]:
    """A sound value under a header that is not."""
    good = TAGGED.encode("a value")
    found = {f"kind {kind}": envelope(good, kind=kind) for kind in (3, 4, 7, 99, 255)}
    found |= {f"flags {flags:#x}": envelope(good, flags=flags) for flags in (4, 5, 8, 0x10, 0x20, 0x40, 0x41, 0x7F)}
    found |= {f"version {each:#x}": envelope(good, version=each) for each in (0, 1, 0x80, 0xC5, 0xC7, 0xFF)}
    schemas = (b"\0" * 8, b"\xff" * 8, TAGGED.schema[::-1], bytes([TAGGED.schema[0] ^ 1]) + TAGGED.schema[1:])
    found |= {f"schema {schema.hex()}": envelope(good, schema=schema) for schema in schemas}
    for difference in (-len(good), -1, 1, 1000, 2**31, 2**32 - 1 - len(good)):
        found[f"length off by {difference}"] = envelope(good, length=len(good) + difference)
    for told in (1, len(good), 1000, 2**31, 2**32 - 1):
        instead = b"\x01" * min(told, 4096)
        found[f"tags of {told} bytes that are not there"] = envelope(good, marks_length=told)
        found[f"tags of {told} bytes instead of the value"] = envelope(instead, marks_length=told, length=0)
    for signature in (b"", b"\0" * 32, b"\0" * 31, b"\0" * 33, b"\xff" * 64):
        name = f"a signature of {signature[:1].hex() or 'nothing'} × {len(signature)}"
        found[name] = envelope(good, flags=SIGNED) + signature
    descriptions = {"no shape": b"\xc0", "a number": b"\x05", "three": b"\x93\x01\x02\x03", "deep": b"\x91" * DEEP}
    return found | {f"an absence: {name}": envelope(each, kind=2) for name, each in descriptions.items()}


def _marks() -> dict[str, bytes]:
    marks = {
        "no pair": b"\x90",
        "of numbers": b"\x92\x91\x01\x90",
        "nonces of text": b"\x92\x90\x91\xa1x",
        "deep": b"\x91" * DEEP,
        "huge": b"\x92\xdd\xff\xff\xff\xff",
        "more than two": b"\x93\x90\x90\x90",
        "going on": b"\x92\x90\x90\xc0",
        "no UTF-8": b"\x92\x91\xa2\xff\xfe\x90",
    }
    return {f"tags: {name}": envelope(TAGGED.encode("a value"), marks=each) for name, each in marks.items()}


def gigabytes() -> dict[str, tuple[int, bytes]]:
    """About a megabyte each that would be a gigabyte, or a quarter of one where a format cannot do more."""
    mebibyte = bytes(2**20)
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15)
    block = deflate.compress(mebibyte) + deflate.flush(zlib.Z_FULL_FLUSH)  # what follows does not refer to it
    stream = zstandard.ZstdCompressor().compressobj()
    sized = zstandard.ZstdCompressor().compressobj(size=2**30)
    noise = random.Random(1).randbytes(2**20)  # zstd makes a gigabyte of nothing out of far less than a megabyte
    nothing = [mebibyte] * 1023
    return {
        "zlib": (ZLIB, b"\x78\xda" + block * 1024 + b"\x03\x00" + struct.pack(">I", 1)),
        "zstd": (ZSTD, b"".join([*map(sized.compress, [noise, *nothing]), sized.flush()])),
        "zstd-nosize": (ZSTD, b"".join([*map(stream.compress, [noise, *nothing]), stream.flush()])),
        "lz4": (LZ4, lz4.frame.compress(bytes(2**28))),
    }
