"""Bytes of an enemy under our keys: nothing of them runs, every one is a miss, and none takes much memory or time."""

from __future__ import annotations

import hashlib
import hmac
import pickle
import random
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import redis

from cacheguard import CacheGuard, Policy
from cacheguard.codec import TAGGED, CustomCodec
from cacheguard.errors import CodecError
from cacheguard.protocol.envelope import Envelope, Kind, Sealer
from cacheguard.protocol.layout import VALUE
from tests.conftest import OpenDoor
from tests.support import layout, malice
from tests.support.doors import Door
from tests.support.layout import HOUR, envelope_at
from tests.support.loader import Loader

SECRET, OLD_SECRET = b"sixteen or more!", b"what it was before"
KEY, OTHER_KEY = "cg:cacheguard:e:k", "cg:cacheguard:e:other"
MOST_MEMORY = 64  # MiB: what is read, what it may be inflated to, and what a codec makes of that
UNCACHED = Policy(l1=False, error_backoff=None)


@dataclass
class Row:
    number: int
    names: list[str]


def test_there_are_enough_of_them(tmp_path: Path) -> None:
    assert len(malice.blobs(tmp_path / "ran")) >= 200


@pytest.fixture
def client(redis_url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(redis_url) as client:
        yield client


def plant(client: redis.Redis, blob: bytes, key: str = KEY, fresh: int = HOUR) -> None:
    """Put an envelope there, under a sound header; with a negative *fresh* it has been stale for so long."""
    layout.plant(client, key, blob, fresh, 2 * HOUR, flags=VALUE)


def peak_memory(*, reset: bool = False) -> float:
    """MiB that this process had at most since the last reset."""
    try:
        if reset:
            Path("/proc/self/clear_refs").write_text("5")
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0.0
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 1024


async def test_no_blob_runs_or_is_served_or_fails(
    open_door: OpenDoor, redis_url: str, client: redis.Redis, tmp_path: Path
) -> None:
    canary = tmp_path / "ran"
    blobs = malice.blobs(canary)
    door = open_door(CacheGuard(redis_url, policy=UNCACHED))

    @door.cached("k")
    def row() -> Row:
        return Row(1, ["one"])

    before = peak_memory(reset=True)
    for name, blob in blobs.items():
        seen = door.guard.stats()
        plant(client, blob)
        assert await door.get("k", "nothing") == "nothing", name
        assert await door.get_or_set("k", Loader("right")) == "right", name
        plant(client, blob, fresh=-HOUR)
        assert await row() == Row(1, ["one"]), name
        plant(client, blob)
        assert (await door.inspect("k")).state == "missing", name
        assert await door.get_or_set_many(["k"], lambda keys: dict.fromkeys(keys, "right")) == {"k": "right"}, name
        now = door.guard.stats()
        assert now.l2_hits == seen.l2_hits, name
        assert now.loads == seen.loads + 3, name
        assert now.fills == seen.fills + 3, name
        assert now.undecodable > seen.undecodable or not blob, name
    grown = peak_memory() - before
    print(f"{len(blobs)} blobs, {sum(map(len, blobs.values())):,} bytes: {grown:.0f} MiB at most")  # noqa: T201
    assert grown < MOST_MEMORY
    stats = door.guard.stats()
    assert (stats.redis_errors, stats.load_failures) == (0, 0)
    assert stats.l2_up
    assert not canary.exists()


async def test_a_serializer_that_runs_its_bytes_is_given_none_that_nobody_signed(
    open_door: OpenDoor, redis_url: str, client: redis.Redis, tmp_path: Path
) -> None:
    canary = tmp_path / "ran"
    door = open_door(CacheGuard(redis_url, policy=UNCACHED, serializer=pickle, secret=SECRET))
    schema = CustomCodec.schema
    pickles = [pickle.dumps(malice.Fuse(canary, "exec"), protocol) for protocol in range(pickle.HIGHEST_PROTOCOL + 1)]
    sealed = Envelope(Kind.VALUE, schema, pickles[-1], 60.0, 0.0)
    forged = [
        *malice.blobs(canary).values(),
        *(malice.envelope(each, schema=schema) for each in pickles),
        *(malice.envelope(each, schema=schema, flags=malice.SIGNED) + bytes(32) for each in pickles),
        Sealer(secret=b"a stranger's secret").seal(sealed, KEY),
        Sealer(secret=SECRET).seal(sealed, OTHER_KEY),
    ]
    for blob in forged:
        plant(client, blob)
        assert await door.get("k", "nothing") == "nothing"
        assert await door.get_or_set("k", Loader("right")) == "right"
    assert not canary.exists()
    # And if it were not for the signature:
    plant(client, Sealer(secret=SECRET).seal(sealed, KEY))
    await door.get("k")
    assert canary.exists()


# ---- signed entries, tampered with


def genuine(client: redis.Redis, value: Any, key: str = "k", **options: Any) -> bytes:
    """What a guard itself writes for *value*."""
    url = f"redis://127.0.0.1:{client.connection_pool.connection_kwargs['port']}/0"
    with CacheGuard(url, secret=SECRET, policy=UNCACHED, **options) as guard:
        guard.set(key, value)
    blob: Any = envelope_at(client, f"cg:cacheguard:e:{key}")
    return bytes(blob)


@pytest.mark.slow
async def test_every_bit_of_a_signed_entry_counts(open_door: OpenDoor, redis_url: str, client: redis.Redis) -> None:
    blob = genuine(client, "signed")
    door = open_door(CacheGuard(redis_url, secret=[b"a new one, seventeen", SECRET], policy=UNCACHED))
    plant(client, blob)
    assert await door.get("k") == "signed"
    bits = [(place, 1 << bit) for place in range(len(blob)) for bit in range(8)]
    for place, bit in bits:
        plant(client, blob[:place] + bytes([blob[place] ^ bit]) + blob[place + 1 :])
        assert await door.get("k") is None, (place, bit)
    assert door.guard.stats().undecodable == len(bits)
    plant(client, blob, KEY)
    assert await door.get("k") == "signed"


def test_every_other_byte_at_every_place_of_a_signed_entry_is_refused() -> None:
    sealer = Sealer(secret=[SECRET, OLD_SECRET], compression="zlib", compress_above=10)
    payload = TAGGED.encode("a value, a value, a value " * 3)
    blob = sealer.seal(Envelope(Kind.VALUE, TAGGED.schema, payload, 60.0, 0.0, ("t",), (b"1", b"2")), KEY)
    refused = 0
    for place in range(len(blob)):
        for byte in range(256):
            if byte != blob[place]:
                with pytest.raises(CodecError):
                    sealer.open(blob[:place] + bytes([byte]) + blob[place + 1 :], KEY)
                refused += 1
    assert refused == 255 * len(blob)
    draw = random.Random(3)
    for _ in range(2_000):  # several at once; cut, longer, and in another order
        spoiled = bytearray(blob)
        for _ in range(draw.randint(1, 8)):
            spoiled[draw.randrange(len(spoiled))] = draw.randrange(256)
        first, second = sorted((draw.randrange(len(blob)), draw.randrange(len(blob))))
        for each in (bytes(spoiled), blob[first:] + blob[:first], blob[:first] + blob[second:], blob + blob[:first]):
            if each != blob:
                with pytest.raises(CodecError):
                    sealer.open(each, KEY)


async def test_signed_entries_belong_to_their_key_and_their_namespace(
    open_door: OpenDoor, redis_url: str, client: redis.Redis
) -> None:
    door = open_door(CacheGuard(redis_url, secret=SECRET, policy=UNCACHED))
    child = door.guard.namespace("child")
    foreign = open_door(CacheGuard(redis_url, secret=SECRET, namespace="other", policy=UNCACHED))
    await door.set("k", "of k")
    await door.set("other", "of other")
    child.set("k", "of the child")
    await foreign.set("k", "of another namespace")
    names = [KEY, OTHER_KEY, "cg:cacheguard/child:e:k", "cg:other:e:k"]
    blobs: list[Any] = [envelope_at(client, name) for name in names]
    for home, name in enumerate(names):
        for place, blob in enumerate(blobs):
            plant(client, blob, name)
            found = [await door.get("k"), await door.get("other"), child.get("k"), await foreign.get("k")]
            assert (found[home] is not None) is (home == place), (name, place)
        plant(client, blobs[home], name)
    assert await door.get("k") == "of k"


async def test_no_other_algorithm_is_taken_for_the_one_that_is_meant(
    open_door: OpenDoor, redis_url: str, client: redis.Redis
) -> None:
    door = open_door(CacheGuard(redis_url, secret=SECRET, policy=UNCACHED))
    blob = genuine(client, "a value " * 1000, compression="zlib")
    body, signature = blob[:-32], blob[-32:]
    flags = body[2]
    assert flags == malice.SIGNED | malice.ZLIB

    def with_flags(flags: int, tail: bytes) -> bytes:
        return body[:2] + bytes([flags]) + body[3:] + tail

    name = len(KEY).to_bytes(4, "big") + KEY.encode()
    swapped = [
        with_flags(flags & ~malice.SIGNED, b""),  # as if it had never been signed
        with_flags(flags & ~malice.SIGNED, signature),
        *(with_flags(malice.SIGNED | other, signature) for other in (0, malice.ZSTD, malice.LZ4, 4, 0x40)),
        body,
        *(body + signature[:length] for length in (0, 1, 16, 20, 28, 31)),
        *(body + hmac.new(SECRET, name + body, each).digest()[:32] for each in ("md5", "sha1", "sha384", "sha3_256")),
        body + hmac.new(SECRET, body, "sha256").digest(),  # without the key
        body + hashlib.sha256(SECRET + name + body).digest(),
        body + hmac.new(b"", name + body, "sha256").digest(),
        body + hmac.new(name, SECRET + body, "sha256").digest(),
    ]
    for each in swapped:
        plant(client, each)
        assert await door.get("k") is None
    plant(client, body + hmac.new(SECRET, name + body, "sha256").digest(), KEY)
    assert await door.get("k") == "a value " * 1000
    assert door.guard.stats().undecodable == len(swapped)


async def test_without_signatures_a_false_compression_is_a_miss(
    open_door: OpenDoor, redis_url: str, client: redis.Redis
) -> None:
    door = open_door(CacheGuard(redis_url, policy=UNCACHED))
    for compression in ("zlib", "zstd", "lz4"):
        with CacheGuard(redis_url, compression=compression) as writer:
            writer.set("k", "a value " * 1000)
        blob: Any = envelope_at(client, KEY)
        for flag in {0, malice.ZLIB, malice.ZSTD, malice.LZ4} - {blob[2]}:
            plant(client, blob[:2] + bytes([flag]) + blob[3:], KEY)
            assert await door.get("k") is None
        plant(client, blob, KEY)
        assert await door.get("k") == "a value " * 1000


# ---- absences: exceptions by name


NAMES = [
    "os:system",
    "subprocess:Popen",
    "builtins:eval",
    "builtins:SystemExit",
    "builtins:KeyboardInterrupt",
    "a:b",
    "",
]


@pytest.mark.parametrize("name", NAMES)
async def test_an_absence_is_made_of_no_class_but_those_that_were_asked_for(
    open_door: OpenDoor, redis_url: str, client: redis.Redis, tmp_path: Path, name: str
) -> None:
    class NoRowError(LookupError):
        pass

    canary = tmp_path / "ran"
    door = open_door(CacheGuard(redis_url, policy=Policy(l1=False, not_found=(NoRowError,))))
    await door.set("k", 1)
    markers: Any = envelope_at(client, KEY)
    nonces = Sealer().open(markers, KEY).nonces
    payload = TAGGED.encode((name, (f"touch {canary}",), {}, {}, None, False))
    plant(client, Sealer().seal(Envelope(Kind.ERROR, TAGGED.schema, payload, 60.0, 0.0, (), nonces), KEY))
    assert await door.get_or_set("k", Loader("right")) == "right"
    assert not canary.exists()


# ---- a gigabyte


MEASURE = """
import sys, time
from pathlib import Path
from cacheguard.protocol.envelope import Envelope, Kind, Sealer
from cacheguard.protocol.layout import VALUE

def status(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1])

sealer = Sealer()
for name, path in zip(sys.argv[1::2], sys.argv[2::2]):
    sealer.open(Sealer(compression=name).seal(Envelope(Kind.VALUE, bytes(8), bytes(9999), 1.0, 0.0), "k"), "k")
    blob, times = Path(path).read_bytes(), []
    Path("/proc/self/clear_refs").write_text("5")
    before = status("VmRSS")
    for _ in range(3):
        begun = time.process_time()  # a busy machine is no fault of the envelope's
        try:
            sealer.open(blob, "k")
        except Exception as error:
            times.append(time.process_time() - begun)
            assert type(error).__name__ == "Oversize", error
    print(name, len(blob), round(min(times) * 1000, 1), round((status("VmHWM") - before) / 1024, 1))
"""


# Other systems give no peak of memory that can be set back.
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="memory is measured by what Linux says of it")
def test_a_megabyte_that_would_be_a_gigabyte_is_refused_at_once(tmp_path: Path) -> None:
    words: list[str] = []
    for name, (flag, data) in malice.gigabytes().items():
        (tmp_path / name).write_bytes(malice.envelope(data, flags=flag))
        words += [name.partition("-")[0], str(tmp_path / name)]
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, *words], capture_output=True, text=True, timeout=50, check=False
    )
    assert done.returncode == 0, done.stderr
    print(done.stdout)  # noqa: T201 - figures, under -s
    lines = [line.split() for line in done.stdout.splitlines()]
    assert len(lines) == len(words) // 2
    for _, _, milliseconds, mebibytes in lines:
        assert float(milliseconds) < 100
        assert float(mebibytes) <= 10


# ---- keys


async def test_whatever_is_given_as_a_key_a_short_and_plain_one_goes_to_redis(
    door: Door, redis_url: str, client: redis.Redis
) -> None:
    keys = ["x" * 1_000_000, "\r\nFLUSHALL\r\n", "\0" * 100, "é" * 1000, "*" * 250, "*" * 251, "a b", "{x}", "#" * 32]
    for place, key in enumerate(keys):
        await door.set(key, place, tags=[key])
    await door.set("\ud800" * 300, "half pairs")
    assert await door.get("\ud800" * 300) == "half pairs"
    assert [await door.get(key) for key in keys] == list(range(len(keys)))
    names: list[Any] = client.keys("*")
    assert len(names) == 2 * len(keys) + 2  # a marker for each tag, one for the namespace
    for name in names:
        assert len(name) <= len("cg:cacheguard:e:") + 250
        assert all(0x21 <= byte <= 0x7E for byte in name)
        assert b"{" not in name
    for key in keys:
        await door.invalidate_tags(key)
        assert await door.get(key) is None
