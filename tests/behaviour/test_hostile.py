"""Whatever stands in Redis under our keys: readers get right values, never an exception, never somebody else's."""

from __future__ import annotations

import pickle
import struct
import time
import zlib
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
import redis

from cacheguard import CacheGuard, Policy
from cacheguard.protocol.layout import HEADER_BYTES, LONGEST_LEASE_MS, LONGEST_MS
from tests.conftest import OpenDoor
from tests.support import layout
from tests.support.doors import Door
from tests.support.layout import NEXT_LAYOUT, envelope_at, planted, with_claims
from tests.support.loader import PATIENCE, Loader
from tests.support.redis_server import RedisServer

KEY = "cg:cacheguard:e:k"
MARKER = "cg:cacheguard:m"


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
        return envelope_at(client, "cg:cacheguard:e:model")


def schema_of(url: str, value: object) -> bytes:
    return genuine(url, value)[3:11]


DEEP = b"\x91" * 200_000 + b"\xc0"
HUGE_LIST = b"\xdd\xff\xff\xff\xff"
HUGE_MAP = b"\xdf\xff\xff\xff\xff"

BYTES = {
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


def plant(url: str, blob: bytes, *, ttl: int | None = layout.HOUR, **header: Any) -> None:
    with redis.Redis.from_url(url) as client:
        layout.plant(client, KEY, blob, ttl_ms=ttl, **header)


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
        plant(redis_url, envelope_at(client, "cg:cacheguard:e:other"))
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
        blob = envelope_at(client, KEY)
    for place in (0, 1, 2, 5, 15, 30, len(blob) - 40, len(blob) - 1):
        plant(redis_url, blob[:place] + bytes([blob[place] ^ 1]) + blob[place + 1 :])
        assert await door.get("k") is None, place
    plant(redis_url, blob)
    assert await door.get("k") == "signed"


async def test_a_guard_without_a_secret_refuses_signed_entries(door: Door, redis_url: str) -> None:
    with CacheGuard(redis_url, secret=b"s" * 16) as signing:
        signing.set("k", 1)
    assert await door.get("k") is None


STRANGE: dict[str, Callable[[bytes], bytes]] = {
    "nothing": lambda _: b"",
    "text": lambda _: b"hello",
    "long text": lambda _: b"hello" * 100,
    "zeros": lambda _: bytes(100),
    "ones": lambda _: b"\xff" * 100,
    "a pickle": lambda _: pickle.dumps(Bomb()),
    "half a header": lambda old: planted(old)[: HEADER_BYTES // 2],
    "a header but for its last byte": lambda old: planted(old)[: HEADER_BYTES - 1],
    "a header, and nothing of its value": lambda old: planted(old)[:HEADER_BYTES],
    "half a value": lambda old: planted(old)[: HEADER_BYTES + len(old) // 2],
    "a value that ends too early by its header": lambda old: planted(old, size=len(old) - 1),
    "a value of no length by its header": lambda old: planted(old, size=0),
    "a value that is all there could be by its header": lambda old: planted(old, size=2**32 - 1)[: HEADER_BYTES + 9],
    "an envelope without a header": lambda old: b"\x01" + old,
    "fresh for longer than it may be": lambda old: planted(old, span_ms=layout.HOUR - 60_000),
    "fresh for ever, as it says": lambda old: planted(old, 2**47, span_ms=layout.HOUR),
    "stored by a clock that was ahead": lambda old: planted(old, 2 * layout.HOUR, span_ms=layout.HOUR),
    "garbage for a layout": lambda old: planted(old, layout=0x00),
}
NO_VALUE = {"a header, and nothing of its value", "a value of no length by its header"}  # as under a lease alone


@pytest.mark.parametrize("name", STRANGE)
async def test_what_no_guard_has_written_is_a_counted_miss_and_replaced(door: Door, redis_url: str, name: str) -> None:
    with redis.Redis.from_url(redis_url) as client:
        client.set(KEY, STRANGE[name](genuine(redis_url, "old")))
        counts = name not in NO_VALUE
        assert await door.get("k", "nothing") == "nothing"
        assert door.guard.stats().undecodable == counts
        assert await door.get_many(["k", "other"]) == {}
        assert door.guard.stats().undecodable == 2 * counts
        assert (await door.inspect("k")).state == "missing"
        assert await door.get_or_set("k", Loader("right")) == "right"
        assert 0 < client.pttl(KEY) <= 10 * 60_000
    with CacheGuard(redis_url) as other:
        assert other.get("k") == "right"
    stats = door.guard.stats()
    assert (stats.fills, stats.redis_errors, stats.l2_up) == (1, 0, True)


@pytest.mark.parametrize("name", STRANGE)
async def test_what_no_guard_has_written_is_in_nobodys_way(door: Door, redis_url: str, name: str) -> None:
    strange = STRANGE[name](genuine(redis_url, "old"))
    with redis.Redis.from_url(redis_url) as client:

        async def after(what: str, *args: Any, **terms: Any) -> Any:
            client.set(KEY, strange)
            return await door.ask(door.guard, what, "k", *args, **terms)

        await after("invalidate")
        assert not client.exists(KEY)
        await after("expire")
        assert await door.get("k") is None
        assert not await after("touch", ttl="1h")
        await after("remove")
        assert not client.exists(KEY)
        assert await after("add", "added")
        assert await door.get("k") == "added"
        await after("set", "set")
        assert await door.get("k") == "set"
        await after("invalidate", version=7, settle="10s")
        assert await door.get_or_set("k", Loader("right")) == "right"
        client.set(KEY, strange)
        assert await door.get_or_set_many(["k", "other"], lambda keys: dict.fromkeys(keys, "right")) == {
            "k": "right",
            "other": "right",
        }
    stats = door.guard.stats()
    assert (stats.redis_errors, stats.invalidations_queued) == (0, 0)


# ---- another release beside ours


@pytest.mark.parametrize("number", [NEXT_LAYOUT, 0xC1, 0xCF])
async def test_what_another_release_has_written_is_a_counted_miss_and_stays(
    door: Door, redis_url: str, number: int
) -> None:
    theirs = planted(genuine(redis_url, "old"), layout=number)
    with redis.Redis.from_url(redis_url) as client:
        client.set(KEY, theirs, px=layout.HOUR)
        assert await door.get("k", "nothing") == "nothing"
        assert door.guard.stats().undecodable == 1
        loader = Loader()
        assert [await door.get_or_set("k", loader), await door.get_or_set("k", loader)] == [1, 2]
        assert await door.get_or_set_many(["k", "other"], lambda keys: dict.fromkeys(keys, 3)) == {"k": 3, "other": 3}
        assert not await door.touch("k", ttl="1h")
        assert not await door.ask(door.guard, "add", "k", 4)
        assert client.get(KEY) == theirs
        stats = door.guard.stats()
        assert (stats.redis_errors, stats.l2_up) == (0, True)


@pytest.mark.parametrize("number", [NEXT_LAYOUT, 0xC1])
@pytest.mark.parametrize("verb", ["invalidate", "expire", "remove", "set"])
async def test_what_another_release_has_written_goes_with_what_it_may_not_outlive(
    door: Door, redis_url: str, number: int, verb: str
) -> None:
    theirs = planted(genuine(redis_url, "old"), layout=number)
    with redis.Redis.from_url(redis_url) as client:
        client.set(KEY, theirs, px=layout.HOUR)
        await door.ask(door.guard, verb, "k", *(["new"] if verb == "set" else []))
        assert client.get(KEY) != theirs
        assert await door.get_or_set("k", Loader("right")) in ("right", "new")
        client.set(KEY, theirs, px=layout.HOUR)
        await door.write(lambda _: None, "k")
        assert await door.get_or_set("k", Loader("newer")) == "newer"
        assert door.guard.stats().fills > 0


async def test_a_marker_of_another_release_costs_misses_until_it_is_invalidated(
    open_door: OpenDoor, redis_url: str
) -> None:
    door = open_door(CacheGuard(redis_url, policy=Policy(l1=False)))
    with redis.Redis.from_url(redis_url) as client:
        await door.set("k", "old", tags=["t"])
        for marker, verb in [(f"{MARKER}:t", ("invalidate_tags", "t")), (MARKER, ("clear",))]:
            raw: Any = client.get(marker)
            client.set(marker, bytes([NEXT_LAYOUT]) + raw[1:], px=layout.HOUR)
            assert await door.get("k") is None
            assert await door.get_or_set("k", Loader("loaded"), tags=["t"]) == "loaded"
            await door.ask(door.guard, *verb)
            assert await door.get_or_set("k", Loader("right"), tags=["t"]) == "right"
            assert await door.get("k") == "right"
            assert door.guard.stats().invalidations_queued == 0


GARBAGE = [name for name in STRANGE if not name.startswith(("fresh", "stored", "half a value", "a value that ends"))]


@pytest.mark.parametrize("name", GARBAGE)
async def test_a_marker_that_no_guard_has_written_is_replaced(open_door: OpenDoor, redis_url: str, name: str) -> None:
    door = open_door(CacheGuard(redis_url, policy=Policy(l1=False)))
    with redis.Redis.from_url(redis_url) as client:
        await door.set("k", "old", tags=["t"])
        for marker in (f"{MARKER}:t", MARKER):
            client.set(marker, STRANGE[name](client.get(marker) or b""))
            assert await door.get("k") is None
            assert await door.get_or_set("k", Loader("right"), tags=["t"]) == "right"
            assert await door.get("k") == "right"
            assert client.pttl(marker) > 0
        for verb in (("invalidate_tags", "t"), ("clear",)):
            client.set(MARKER, STRANGE[name](b""))
            await door.ask(door.guard, *verb)
            assert await door.get("k") is None
    stats = door.guard.stats()
    assert (stats.redis_errors, stats.invalidations_queued) == (0, 0)


# ---- other types

MAKE: dict[str, Callable[[Any, str], object]] = {
    "hash": lambda client, key: client.hset(key, mapping={"v": "x", "g": "0"}),
    "list": lambda client, key: client.rpush(key, "x"),
    "set": lambda client, key: client.sadd(key, "x"),
    "zset": lambda client, key: client.zadd(key, {"x": 1}),
    "stream": lambda client, key: client.xadd(key, {"x": "1"}),
}


@pytest.mark.parametrize("kind", MAKE)
async def test_a_foreign_type_under_our_key_is_left_alone(door: Door, redis_url: str, kind: str) -> None:
    with redis.Redis.from_url(redis_url, decode_responses=True) as client:
        MAKE[kind](client, KEY)
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


@pytest.mark.parametrize("kind", MAKE)
async def test_a_foreign_type_under_the_name_of_a_marker_costs_misses(door: Door, redis_url: str, kind: str) -> None:
    with redis.Redis.from_url(redis_url, decode_responses=True) as client:
        await door.set("k", "old", tags=["t"])
        for marker in (f"{MARKER}:t", MARKER):
            client.delete(marker)
            MAKE[kind](client, marker)
            assert await door.get("k") is None
            assert await door.get_or_set("k", Loader("right"), tags=["t"]) == "right"
            await door.invalidate_tags("t")
            await door.clear()
            assert await door.get("k") is None
            assert client.type(marker) == kind
            client.delete(marker)
        assert await door.get_or_set("k", Loader("right"), tags=["t"]) == "right"
        assert await door.get("k") == "right"
        assert door.guard.stats().invalidations_queued == 0


# ---- garbage among the claims

FAR, LIFE = 2**47, 60_000
CLAIM: dict[str, list[Any]] = {  # what follows the end and the longest life of each
    "l": ["token"],
    "q": ["001", ""],
    "f": ["001", ""],
    "x": ["token", 1, "died of", 500],
}
ODD: list[Any] = ["garbage", "", -1, 0, True, None, float("nan"), float("inf"), 2**63, 1.5, [], {}, [[]], ["x", "y"]]
ODD += [[FAR], [FAR, FAR], [FAR, "x"], ["x", FAR], [float("nan")] * 2, [float("inf")] * 2, [FAR, float("nan")]]
ODD += [[FAR, -LIFE, "", ""], [FAR, 1e300, "", "", "", ""], [FAR + 0.5, LIFE + 0.5, "", "", 1, 1], [-FAR, FAR, "", ""]]
ODD += [[FAR, LIFE, "token", number, "died of", number] for number in (-1, 1.5, 2**62, 1e300, float("nan"))]
ODD += [[FAR, LIFE, [], {}, [], {}], [FAR, LIFE, 1, 2, 3, 4], [FAR, LIFE, None, None], [FAR, LIFE, "", "", "", ""]]


@pytest.mark.parametrize("quarter", [0, *(pytest.param(number, marks=pytest.mark.slow) for number in (1, 2, 3))])
@pytest.mark.parametrize("with_value", [True, False], ids=["beside a value", "alone"])
@pytest.mark.parametrize("claim", ["l", "q", "f", "x", "n", "w", "r", "unheard of"])
def test_garbage_in_any_claim_costs_a_miss_and_no_more(
    redis_url: str, claim: str, quarter: int, *, with_value: bool
) -> None:
    """What the scripts and the parsers of their replies do, which is the same behind either door."""
    old = genuine(redis_url, "old") if with_value else b""
    policy = Policy(l1=False, hard_timeout="1s", error_backoff=None)
    with CacheGuard(redis_url, policy=policy) as guard, redis.Redis.from_url(redis_url) as client:
        for odd in ODD[(quarter + 2 * with_value) % 4 :: 4]:
            for content in [odd, {"someone": odd}, {"someone": odd, 7: 8}] if claim in ("w", "r") else [odd]:
                garbage = with_claims({claim: content})
                layout.plant(client, KEY, old, claims=garbage)
                assert guard.get("k") in (None, "old"), content
                guard.invalidate("k", settle="1s", version=3)
                guard.touch("k", ttl="1h")
                guard.set("k", "set", version=4)
                assert guard.get("k") in (None, "set"), content
                guard.expire("k")
                layout.plant(client, KEY, old, claims=garbage)
                guard.add("k", "added")
                guard.update("k", str.upper)
                with guard.writing("k"):
                    pass
                assert guard.get_or_set("k", lambda: "new") == "new", content
        stats = guard.stats()
        assert (stats.redis_errors, stats.invalidations_queued, stats.l2_up) == (0, 0, True)


@pytest.mark.parametrize(
    "claims", [b"\xc1", b"\xff" * 9, b"\xdf\xff\xff\xff\xff", b"\x81" * 9_000, b"\xc0\xc0", b"\x01"]
)
async def test_claims_that_are_none_are_as_good_as_none(door: Door, redis_url: str, claims: bytes) -> None:
    plant(redis_url, genuine(redis_url, "old"), claims=claims)
    assert await door.get("k") == "old"
    assert await door.touch("k", ttl="1h")
    await door.invalidate("k")
    assert await door.get_or_set("k", Loader("new")) == "new"
    assert door.guard.stats().redis_errors == 0


@pytest.mark.parametrize("claim", CLAIM)
async def test_no_claim_lasts_longer_than_its_kind_may(open_door: OpenDoor, redis_url: str, claim: str) -> None:
    """Another clock wrote it, which was years ahead: it ends when it would have ended, had it been written now."""
    door = open_door(CacheGuard(redis_url, policy=Policy(l1=False, error_backoff=None)))
    plant(redis_url, b"", fresh_ms=0, claims=with_claims({claim: [FAR, 300, *CLAIM[claim]]}), ttl=None)
    begun = time.monotonic()
    while await door.get_or_set("k", Loader("new")) != "new" or await door.get("k") != "new":
        assert time.monotonic() < begun + PATIENCE
    with redis.Redis.from_url(redis_url) as client:
        assert 0 < client.pttl(KEY) <= 10 * 60_000


@pytest.mark.parametrize("claim", CLAIM)
async def test_no_claim_says_itself_how_long_its_kind_may_last(door: Door, redis_url: str, claim: str) -> None:
    plant(redis_url, b"", fresh_ms=0, claims=with_claims({claim: [2**50, 2**50, *CLAIM[claim]]}), ttl=None)
    with suppress(Exception):  # what it says of the key is true, for as long as its kind may last
        await door.get_or_set("k", Loader("new"), wait_timeout=0.05, hard_timeout=0.2)
    with redis.Redis.from_url(redis_url) as client:
        assert 0 < client.pttl(KEY) <= (LONGEST_LEASE_MS + 60_000 if claim == "l" else LONGEST_MS)


@pytest.mark.parametrize("fresh", [2**46, LONGEST_MS + 60_000])
async def test_no_value_says_itself_that_it_is_fresh_for_ever(door: Door, redis_url: str, fresh: int) -> None:
    plant(redis_url, genuine(redis_url, "old"), fresh_ms=fresh, ttl=None)
    assert await door.get("k") is None
    assert await door.get_many(["k"]) == {}
    assert await door.get_or_set("k", Loader("new")) == "new"
    assert await door.get("k") == "new"


async def test_an_entry_without_a_ttl_is_not_served_beyond_its_header(door: Door, redis_url: str) -> None:
    plant(redis_url, genuine(redis_url, "old"), fresh_ms=-1, stale_ms=0, ttl=None)
    assert await door.get("k") is None
    assert await door.get_or_set("k", Loader("new")) == "new"
    with redis.Redis.from_url(redis_url) as client:
        assert 0 < client.pttl(KEY) <= 10 * 60_000


async def test_what_is_fresh_by_its_header_ends_with_it_whatever_the_key_says(door: Door, redis_url: str) -> None:
    plant(redis_url, genuine(redis_url, "old"), fresh_ms=150, ttl=None)
    assert await door.get("k") == "old"
    begun = time.monotonic()
    while await door.get("k") is not None:
        assert time.monotonic() < begun + PATIENCE
    assert await door.get_or_set("k", Loader("new")) == "new"


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
