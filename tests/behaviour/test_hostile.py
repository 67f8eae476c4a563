"""Whatever stands in Redis under our keys: readers get right values, never an exception, never somebody else's."""

from __future__ import annotations

import pickle
import struct
import zlib
from typing import Any

import pytest
import redis

from cacheguard import CacheGuard, Policy
from tests.conftest import OpenDoor
from tests.support.doors import Door
from tests.support.loader import Loader
from tests.support.redis_server import RedisServer

KEY = "cg:cacheguard:e:k"
HOUR = 3_600_000


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return (pytest.fail, ("bytes from Redis were executed",))


def envelope(
    payload: bytes, *, schema: bytes = b"\0" * 8, kind: int = 0, flags: int = 0, length: int | None = None
) -> bytes:
    size = len(payload) if length is None else length
    return struct.pack(">BBB8sQIII", 0xC6, kind, flags, schema, 60_000, 0, 0, size) + payload


def genuine(url: str, value: object) -> bytes:
    """What the library itself writes for *value*, under another key."""
    with CacheGuard(url, compression=None) as guard:
        guard.set("model", value)
    with redis.Redis.from_url(url) as client:
        blob: bytes = client.hget("cg:cacheguard:e:model", "v")
    return blob


def schema_of(url: str, value: object) -> bytes:
    return genuine(url, value)[3:11]


DEEP = b"\x91" * 200_000 + b"\xc0"
HUGE_LIST = b"\xdd\xff\xff\xff\xff"
HUGE_MAP = b"\xdf\xff\xff\xff\xff"

BYTES = {
    "nothing": b"",
    "garbage": b"\x00\xff\xfe garbage",
    "text": b"hello",
    "a pickle": pickle.dumps(Bomb()),
    "a header alone": envelope(b""),
    "a header that promises more": envelope(b"\x01", length=2**32 - 1),
    "an unknown kind": envelope(b"\x01", kind=99),
    "an unknown compression": envelope(b"\x01", flags=0x7F),
    "a zlib bomb": envelope(zlib.compress(b"\0" * 50_000_000), flags=1),
    "no zlib": envelope(b"\x01", flags=1),
    "no zstd": envelope(b"\x01", flags=2),
    "no lz4": envelope(b"\x01", flags=3),
    "a false signature": envelope(b"\x01", flags=0x80) + b"\0" * 32,
    "half an envelope": envelope(b"\x01")[:10],
    "an error of an unheard-of class": envelope(b"\x93\x01\x02\x03", kind=2),
}

PAYLOADS = {
    "deep nesting": DEEP,
    "a huge list": HUGE_LIST,
    "a huge map": HUGE_MAP,
    "nothing": b"",
    "half a text": b"\xd9\xff",
}


def plant(url: str, blob: bytes, *, stale: object = 0, ttl: int | None = HOUR) -> None:
    with redis.Redis.from_url(url) as client:
        client.hset(KEY, mapping={"v": blob, "g": str(stale)})
        if ttl is not None:
            client.pexpire(KEY, ttl)


@pytest.mark.parametrize("name", BYTES)
async def test_bytes_that_are_no_entry_are_a_counted_miss_and_replaced(door: Door, redis_url: str, name: str) -> None:
    plant(redis_url, BYTES[name])
    assert await door.get("k", "nothing") == "nothing"
    assert door.guard.stats().undecodable == 1
    loader = Loader("right")
    assert await door.get_or_set("k", loader) == "right"
    assert door.guard.stats().l2_up
    assert door.guard.stats().fills == 1
    with CacheGuard(redis_url) as other:
        assert other.get("k") == "right"


@pytest.mark.parametrize("name", PAYLOADS)
@pytest.mark.parametrize("model", [{"a": [1]}, [1, 2], 1], ids=["dict", "list", "int"])
async def test_a_sound_envelope_with_a_hostile_payload_is_a_miss(
    door: Door, redis_url: str, name: str, model: object
) -> None:
    plant(redis_url, envelope(PAYLOADS[name], schema=schema_of(redis_url, model)))
    assert await door.get("k", "nothing") in ("nothing", b"", None) or name == "nothing"

    @door.cached("k")
    def rows() -> dict[str, list[int]]:
        return {"b": [2]}

    assert await rows() == {"b": [2]}


async def test_an_entry_of_another_key_is_a_miss_when_signed(open_door: OpenDoor, redis_url: str) -> None:
    secret = b"s" * 16
    door = open_door(CacheGuard(redis_url, secret=secret))
    await door.set("other", "somebody else's")
    with redis.Redis.from_url(redis_url) as client:
        plant(redis_url, client.hget("cg:cacheguard:e:other", "v"))
    assert await door.get("k") is None
    assert door.guard.stats().undecodable == 1


async def test_unsigned_and_tampered_entries_are_misses(open_door: OpenDoor, redis_url: str) -> None:
    door = open_door(CacheGuard(redis_url, secret=[b"new secret of ours", b"old secret of ours"]))
    plant(redis_url, genuine(redis_url, "unsigned"))
    assert await door.get("k") is None
    with CacheGuard(redis_url, secret=b"a stranger's secret") as stranger:
        stranger.set("k", "forged")
    assert await door.get("k") is None
    with CacheGuard(redis_url, secret=b"old secret of ours") as before:
        before.set("k", "signed")
    with redis.Redis.from_url(redis_url) as client:
        blob: bytes = client.hget(KEY, "v")
    for place in (0, 1, 2, 5, 15, 30, len(blob) - 40, len(blob) - 1):
        plant(redis_url, blob[:place] + bytes([blob[place] ^ 1]) + blob[place + 1 :])
        assert await door.get("k") is None, place
    plant(redis_url, blob)
    assert await door.get("k") == "signed"


async def test_a_guard_without_a_secret_refuses_signed_entries(door: Door, redis_url: str) -> None:
    with CacheGuard(redis_url, secret=b"s" * 16) as signing:
        signing.set("k", 1)
    assert await door.get("k") is None


@pytest.mark.parametrize("kind", ["string", "list", "set", "zset", "stream"])
async def test_a_foreign_type_under_our_key_is_left_alone(door: Door, redis_url: str, kind: str) -> None:
    with redis.Redis.from_url(redis_url, decode_responses=True) as client:
        {
            "string": lambda: client.set(KEY, "x"),
            "list": lambda: client.rpush(KEY, "x"),
            "set": lambda: client.sadd(KEY, "x"),
            "zset": lambda: client.zadd(KEY, {"x": 1}),
            "stream": lambda: client.xadd(KEY, {"x": "1"}),
        }[kind]()
        loader = Loader("right")
        assert await door.get("k", "nothing") == "nothing"
        assert await door.get_or_set("k", loader) == "right"
        assert await door.get_or_set_many(["k", "other"], lambda keys: dict.fromkeys(keys, "right")) == {
            "k": "right",
            "other": "right",
        }
        assert (await door.inspect("k")).state == "missing"
        await door.invalidate("k")
        await door.expire("k")
        stats = door.guard.stats()
        assert stats.undecodable > 0
        assert stats.l2_up
        assert stats.invalidations_queued == 0
        assert client.type(KEY) == kind


FIELDS = ["g", "t", "u", "q", "f", "x", "w:someone"]


@pytest.mark.parametrize("field", FIELDS)
@pytest.mark.parametrize("with_value", [True, False], ids=["beside a value", "alone"])
@pytest.mark.parametrize("content", ["garbage", "", "-1", "1e999", "nan", "9" * 400])
async def test_garbage_in_any_field_costs_a_miss_and_no_more(
    open_door: OpenDoor, redis_url: str, field: str, *, with_value: bool, content: str
) -> None:
    door = open_door(CacheGuard(redis_url, policy=Policy(l1=False, hard_timeout="1s", error_backoff=None)))
    if with_value:
        plant(redis_url, genuine(redis_url, "old"))
    with redis.Redis.from_url(redis_url) as client:
        client.hset(KEY, field, content)
    assert await door.get("k") in (None, "old")
    if not (field == "u" or (field == "w:someone" and content in ("1e999", "9" * 400))):
        assert await door.get_or_set("k", Loader("new")) in ("old", "new")
    await door.invalidate("k")
    await door.set("elsewhere", 1)
    assert await door.get("elsewhere") == 1
    stats = door.guard.stats()
    assert stats.invalidations_queued == 0
    assert stats.l2_up


async def test_an_entry_without_a_ttl_is_not_served_for_ever(door: Door, redis_url: str) -> None:
    plant(redis_url, genuine(redis_url, "old"), ttl=None)
    assert await door.get_or_set("k", Loader("new")) == "new"
    with redis.Redis.from_url(redis_url) as client:
        assert 0 < client.pttl(KEY) <= 6 * 60_000


HOSTILE_KEYS = [
    "",
    " ",
    "x" * 10_000,
    "\0\r\n",
    "*3\r\n$3\r\nSET",
    "{a}{b}",
    "a:b:c",
    "%s%d%%",
    "\u202e\ud800",
    "\U0001f600" * 50,
    "#0123456789abcdef0123456789abcdef",
    "../../etc",
    "'; FLUSHALL; --",
]


async def test_hostile_key_texts_neither_fail_nor_collide(door: Door) -> None:
    for place, key in enumerate(HOSTILE_KEYS):
        await door.set(key, place)
    assert await door.get_many(HOSTILE_KEYS) == {key: place for place, key in enumerate(HOSTILE_KEYS)}
    for place, key in enumerate(HOSTILE_KEYS):
        assert await door.get(key) == place
        assert (await door.inspect(key)).state == "fresh"
        await door.invalidate(key)
        assert await door.get(key) is None


async def test_hostile_arguments_neither_fail_nor_collide(door: Door) -> None:
    loader = Loader()

    @door.cached("pair:{a}:{b}")
    def pair(a: str, b: str) -> int:
        run: int = loader(a, b)
        return run

    pairs = [(a, b) for a in HOSTILE_KEYS for b in HOSTILE_KEYS[:6]]
    first = [await pair(a, b) for a, b in pairs]
    assert len(set(first)) == len(pairs)
    assert [await pair(a, b) for a, b in pairs] == first


async def test_a_key_that_looks_like_the_digest_of_another_does_not_share_its_entry(
    door: Door, redis_server: RedisServer
) -> None:
    await door.set("x" * 10_000, "long")
    (name,) = redis_server.entries()
    assert await door.get(name.rpartition(":")[2]) is None


async def test_namespaces_that_look_alike_share_nothing(redis_url: str) -> None:
    names = [("a",), ("a", "b"), ("a/b",), ("a:1",), ("a", "b", "c"), ("a/b", "c"), ("a", "b/c")]
    with CacheGuard(redis_url) as whole:
        for path in names:
            guard = whole
            for name in path:
                guard = guard.namespace(name)
            guard.set("k", path)
        for path in names:
            guard = whole
            for name in path:
                guard = guard.namespace(name)
            assert guard.get("k") == path
