"""What can be read only once is never cached nor shared: every door says so to every caller."""

from __future__ import annotations

import asyncio
import io
import pickle
import threading
from collections import UserDict
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import FileResponse, Response, StreamingResponse
from starlette.routing import Route

from cacheguard import CacheGuard, Policy
from cacheguard.errors import CodecError
from tests.conftest import OpenDoor
from tests.support.doors import Door

AWAY = "redis://127.0.0.1:1/0"  # nobody listens there
WHERES: dict[str, dict[str, Any]] = {
    "redis": {},
    "memory": {"url": "memory://"},
    "away": {"url": AWAY},
    "l1 off": {"policy": Policy(l1=False)},
    "l2 off": {"policy": Policy(l2=False)},
    "copies": {"l1_copy": True},
    "pickle": {"serializer": pickle, "secret": b"0123456789abcdef"},
}

said = pytest.raises(CodecError, match="read only once")


def generator() -> Iterator[int]:
    yield from [1, 2]


@pytest.fixture(params=WHERES)
def door(request: pytest.FixtureRequest, open_door: OpenDoor, redis_url: str) -> Door:
    options = dict(WHERES[request.param])
    return open_door(CacheGuard(options.pop("url", redis_url), **options))


async def test_every_read_that_loads_says_so(door: Door) -> None:
    @door.cached("k:{number}")
    def load(number: int) -> Any:
        return iter([number])

    async def one(number: int) -> None:
        await load(number)

    async def refreshed(number: int) -> None:
        await load.refresh(number)

    async def many(number: int) -> None:
        await load.many([number, number + 1000])

    async def by_key(number: int) -> None:
        await door.get_or_set(f"k:{number}", generator)

    async def by_keys(number: int) -> None:
        await door.get_or_set_many([f"k:{number}"], lambda keys: {key: [generator()] for key in keys})

    for way in (one, refreshed, many, by_key, by_keys):
        number = id(way)
        for _ in range(2):
            with said:
                await way(number)
        assert await door.get(f"k:{number}") is None
    assert door.guard.stats().l1_entries == 0


async def test_every_write_by_hand_says_so(door: Door) -> None:
    @door.cached("k:{number}", version=lambda value: value["version"])
    def load(number: int) -> Any:
        return {"version": number}

    for value in (generator(), {"rows": [map(int, "12")]}, io.StringIO("a")):
        with said:
            await door.set("k", value)
        with said:
            await door.ask(door.guard, "set_many", {"a": 1, "k": value})
        with said:
            await door.ask(door.guard, "add", "k", value)
        with said:
            await load.put(value, 1)
    assert await door.get_many(["a", "k", "k:1"]) == {}


@pytest.mark.parametrize("where", ["redis", "memory"])
async def test_a_change_to_it_says_so_and_changes_nothing(open_door: OpenDoor, redis_url: str, where: str) -> None:
    door = open_door(CacheGuard("memory://" if where == "memory" else redis_url))
    await door.set("k", [1, 2])
    with said:
        await door.ask(door.guard, "update", "k", iter)
    assert await door.get("k") == [1, 2]


async def test_followers_of_one_load_are_told_like_their_leader(door: Door) -> None:
    guard = door.guard
    told: list[str] = []
    begun = threading.Barrier(4)

    def load() -> Iterator[int]:
        threading.Event().wait(0.05)
        return generator()

    def read() -> None:
        begun.wait()
        try:
            told.append(repr(list(guard.get_or_set("k", load))))
        except CodecError as error:
            told.append(type(error).__name__)

    threads = [threading.Thread(target=read) for _ in range(4)]
    for each in threads:
        each.start()
    for each in threads:
        await asyncio.to_thread(each.join)
    assert told == ["CodecError"] * 4


async def test_tasks_that_share_a_load_are_told_like_their_leader(redis_url: str) -> None:
    async def load() -> AsyncIterator[int]:
        await asyncio.sleep(0.01)
        return pieces()

    async def pieces() -> AsyncIterator[int]:
        yield 1

    async with CacheGuard(redis_url) as guard:
        told = await asyncio.gather(*(guard.aget_or_set("k", load) for _ in range(4)), return_exceptions=True)
    assert [type(each) for each in told] == [CodecError] * 4


async def test_a_reload_in_the_background_keeps_what_there_was(open_door: OpenDoor, redis_url: str) -> None:
    policy = Policy(ttl="20ms", jitter=None, stale_while_revalidate="1h", l1=False)
    door = open_door(CacheGuard(redis_url, policy=policy))
    answers: list[Callable[[], Any]] = [lambda: [1, 2], generator]

    @door.cached("k")
    def load() -> Any:
        return answers.pop(0)()

    assert await load() == [1, 2]
    await asyncio.sleep(0.03)
    assert await load() == [1, 2]
    async with asyncio.timeout(5):
        while not door.guard.stats().load_failures:
            await asyncio.sleep(0.005)
    assert await load() == [1, 2]


async def test_disabled_only_calls_the_function(open_door: OpenDoor, redis_url: str) -> None:
    door = open_door(CacheGuard(redis_url))

    @door.cached("k")
    def load() -> Any:
        return generator()

    with door.guard.disabled():
        assert [list(await load()), list(await load())] == [[1, 2], [1, 2]]
        assert list(await door.get_or_set("k", generator)) == [1, 2]
    with said:
        await load()


async def test_a_warm_up_counts_it_as_failed(redis_url: str) -> None:
    with CacheGuard(redis_url) as guard:

        @guard.cached("k:{number}")
        def load(number: int) -> Any:
            return generator() if number else [1]

        warmed = guard.warm(load, [0, 1, 2])
    assert (warmed.done, warmed.failed) == (3, 2)


async def test_rows_of_a_mapping_of_ones_own_are_looked_into(open_door: OpenDoor, redis_url: str) -> None:
    door = open_door(CacheGuard(redis_url))
    with said:
        await door.get_or_set_many(["a", "b"], lambda keys: UserDict({key: generator() for key in keys}))


async def test_a_streaming_response_is_an_error_for_every_request() -> None:
    async def parts() -> AsyncIterator[str]:
        yield "a"

    with CacheGuard("memory://") as guard:

        @guard.cached("page:{path}")
        async def page(path: str) -> Any:
            return {"/s": StreamingResponse(parts()), "/f": FileResponse(__file__)}.get(path, Response("plain"))

        @guard.cached("parts")
        async def data() -> list[str]:
            return [each async for each in parts()]

        async def endpoint(request: Request) -> Any:
            return await page(request.url.path)

        async def outside(_: Request) -> StreamingResponse:
            return StreamingResponse(iter(await data()))

        routes = [Route(path, endpoint) for path in ("/s", "/f", "/p")]
        app = httpx.ASGITransport(Starlette(routes=[*routes, Route("/o", outside)]), raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=app, base_url="http://shop.example") as client:
            answers = {path: [await client.get(path) for _ in range(3)] for path in ("/s", "/f", "/p", "/o")}
    assert [each.status_code for each in answers["/s"]] == [500] * 3
    assert [each.text for each in answers["/p"]] == ["plain"] * 3
    assert [each.text for each in answers["/o"]] == ["a"] * 3
    assert [each.text for each in answers["/f"]] == [Path(__file__).read_text("utf-8")] * 3
