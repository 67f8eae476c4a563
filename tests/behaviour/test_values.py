"""Values come back as they went in, or are a miss."""

from __future__ import annotations

import json
import logging
import marshal
import pickle
import threading
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from enum import Enum
from types import SimpleNamespace
from typing import Any, NamedTuple, TypedDict

import attrs
import msgspec
import pydantic
import pytest
import redis

from cacheguard import CacheGuard, Policy
from cacheguard.errors import CodecError
from tests.conftest import OpenDoor
from tests.support.doors import Door
from tests.support.loader import Loader
from tests.support.redis_server import RedisServer


class Colour(Enum):
    RED = "red"


class Point(NamedTuple):
    x: int
    y: float


class Row(TypedDict):
    name: str
    tags: set[str]


@dataclass
class Item:
    price: Decimal
    at: datetime
    colours: dict[str, Colour] = field(default_factory=dict)


@attrs.define
class Attrs:
    name: str
    ids: tuple[uuid.UUID, ...]


class Struct(msgspec.Struct):
    name: str
    data: bytes


class Model(pydantic.BaseModel):
    name: str
    on: date


AT = datetime(2024, 2, 29, 12, 30, 15, 123456, tzinfo=UTC)
ITEM = Item(Decimal("10.50"), AT, {"a": Colour.RED})


def typed_item() -> Item:
    return ITEM


def typed_items() -> list[Item] | None:
    return [ITEM, ITEM]


def typed_row() -> Row:
    return {"name": "x", "tags": {"a", "b"}}


def typed_point() -> tuple[Point, set[int]]:
    return Point(1, 2.5), {1, 2}


def typed_attrs() -> Attrs:
    return Attrs("x", (uuid.UUID(int=7),))


def typed_struct() -> Struct:
    return Struct("x", b"\x00\xff")


def typed_model() -> Model:
    return Model(name="x", on=date(2024, 2, 29))


def untyped():  # type: ignore[no-untyped-def]  # noqa: ANN201 - what comes back without an annotation is the question
    times: dict[Any, Any] = {"at": AT, "for": timedelta(1), 5: None}
    return times | {"d": Decimal("1.10"), "t": (1, 2), "s": {1}, "u": uuid.UUID(int=1), "b": b"\xff"}


FUNCTIONS = [typed_item, typed_items, typed_row, typed_point, typed_attrs, typed_struct, typed_model, untyped]


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda each: each.__name__)
async def test_values_come_back_from_redis_as_annotated(
    door: Door, redis_url: str, function: Callable[[], Any]
) -> None:
    expected = function()
    first = door.cached("value")(function)
    assert await first() == expected
    with CacheGuard(redis_url) as other:
        again = other.cached("value")(function)()
        assert again == expected
        assert type(again) is type(expected)
        assert other.stats().loads == 0
        assert other.get("value") == expected
    assert door.guard.stats().unencodable == 0


async def test_a_value_without_bytes_is_returned_counted_and_warned_about_once(
    door: Door, redis_server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    loader = Loader(threading.Lock())

    @door.cached("lock:{number}")
    def lock(number: int) -> Any:
        return loader()

    with caplog.at_level(logging.WARNING, "cacheguard"):
        assert await lock(1) is loader.value
        assert await lock(2) is loader.value
    assert door.guard.stats().unencodable == 2
    assert len(caplog.records) == 1
    assert redis_server.entries() == []
    assert await lock(1) is loader.value
    assert loader.runs == 2  # the process may keep it


async def test_setting_a_value_without_bytes_is_an_error(door: Door) -> None:
    lock = threading.Lock()
    with pytest.raises(CodecError):
        await door.set("k", lock)
    with pytest.raises(CodecError):
        await door.set_many({"a": 1, "k": lock})
    assert await door.get("a") is None

    @door.cached("typed")
    def typed() -> Item:
        return ITEM

    with pytest.raises(CodecError):
        await typed.put("no item")
    assert await typed() == ITEM


async def test_another_version_of_a_class_is_a_miss(redis_url: str) -> None:
    def version(fields: str) -> Callable[[], Any]:
        scope: dict[str, Any] = {"dataclass": dataclass, "__name__": __name__}
        exec(f"@dataclass\nclass Thing:\n    {fields}\ndef thing() -> Thing: return Thing(1)", scope)
        made: Callable[[], Any] = scope["thing"]
        return made

    old, new = version("a: int"), version("a: int; b: int = 2")
    for function in (old, new, old):
        with CacheGuard(redis_url) as guard:
            value = guard.cached("thing")(function)()
            assert type(value) is type(function())
            assert guard.stats().loads == 1


SECRET = b"sixteen or more!"


async def test_pickle_is_used_only_when_asked_for(open_door: OpenDoor, redis_url: str) -> None:
    plain = open_door(CacheGuard(redis_url))
    pickling = open_door(CacheGuard(redis_url, serializer=pickle, secret=SECRET))
    await pickling.set("k", {"x": range(3)})
    with CacheGuard(redis_url, serializer=pickle, secret=SECRET) as other:
        assert other.get("k") == {"x": range(3)}
    assert await plain.get("k") is None
    assert plain.guard.stats().undecodable == 1


@pytest.mark.parametrize("serializer", [pickle, marshal, SimpleNamespace(dumps=pickle.dumps, loads=pickle.loads)])
def test_what_runs_its_bytes_without_a_signature_is_warned_about(
    redis_url: str, serializer: Any, caplog: pytest.LogCaptureFixture
) -> None:
    CacheGuard(redis_url, serializer=serializer, secret=SECRET).close()
    CacheGuard("memory://", serializer=serializer).close()
    CacheGuard(redis_url, serializer=json).close()
    assert not caplog.records
    CacheGuard(redis_url, serializer=serializer).close()
    assert "give a secret" in caplog.text


async def test_a_serializer_that_fails_costs_the_cache_not_the_value(open_door: OpenDoor, redis_url: str) -> None:
    class Broken:
        def dumps(self, value: object) -> bytes:
            return b"x"

        def loads(self, data: bytes) -> object:
            raise RuntimeError("broken")

    door = open_door(CacheGuard(redis_url, serializer=Broken(), policy=Policy(l1=False)))
    loader = Loader()
    assert await door.get_or_set("k", loader) == 1
    assert await door.get_or_set("k", loader) in (1, 2)
    assert await door.get("k", "none") in ("none", 1)


async def test_a_value_that_is_too_large_is_returned_and_kept_out_of_redis(
    open_door: OpenDoor, redis_server: RedisServer, redis_url: str
) -> None:
    door = open_door(CacheGuard(redis_url, max_value_bytes=1000, compression=None))
    assert await door.get_or_set("k", lambda: "x" * 2000) == "x" * 2000
    assert door.guard.stats().oversize == 1
    with pytest.raises(CodecError):
        await door.set("k", "x" * 2000)
    assert redis_server.entries() == []


@pytest.mark.parametrize("compression", ["auto", "zlib", "zstd", "lz4", None])
async def test_every_compression_is_read_by_every_guard(
    open_door: OpenDoor, redis_url: str, compression: str | None
) -> None:
    value = ["some text", 1] * 5000
    await open_door(CacheGuard(redis_url, compression=compression)).set("k", value)
    with redis.Redis.from_url(redis_url) as client:
        size = client.memory_usage("cg:cacheguard:e:k")
    assert (size < 20_000) is (compression is not None)
    assert await open_door(CacheGuard(redis_url, compression=None)).get("k") == value


async def test_with_l1_copy_every_caller_has_a_value_of_its_own(open_door: OpenDoor, redis_url: str) -> None:
    door = open_door(CacheGuard(redis_url, l1_copy=True))

    @door.cached("rows:{number}")
    def rows(number: int) -> list[list[int]]:
        return [[number]]

    async def spoil() -> None:
        for value in (
            await rows(1),
            await rows(1),
            await rows.peek(1),
            await rows.refresh(1),
            *await rows.many([1, 1]),
            await door.get("rows:1"),
            *(await door.get_many(["rows:1"])).values(),
            await door.get_or_set("rows:1", lambda: [[0]]),
            *(await door.get_or_set_many(["rows:1"], lambda keys: {})).values(),
        ):
            assert value == [[1]]
            value[0].append(2)

    await spoil()
    await spoil()


async def test_with_l1_copy_what_was_set_may_be_changed_afterwards(open_door: OpenDoor) -> None:
    door = open_door(CacheGuard("memory://", l1_copy=True))
    mine = [1]
    await door.set("k", mine)
    mine.append(2)
    assert await door.get("k") == [1]
