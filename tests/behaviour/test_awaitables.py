"""Whatever returns something to await: its write is inside of the block, or it is refused."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from functools import partial, wraps
from typing import Any

import pytest
from asgiref.sync import markcoroutinefunction, sync_to_async

from cacheguard import CacheGuard, Policy
from cacheguard.errors import CacheGuardError, ConfigurationError

PAUSE = 0.03  # seconds that a write takes; a reader comes meanwhile


class Table:
    """One row, and every way to write it."""

    def __init__(self) -> None:
        self.row = "old"

    async def save(self, row: str) -> str:
        await asyncio.sleep(PAUSE)
        self.row = row
        return row

    def hands_on(self, row: str) -> Awaitable[str]:
        return self.save(row)

    def lazy(self, row: str) -> Awaitable[str]:
        return Lazy(partial(self.save, row))

    def task(self, row: str) -> Awaitable[str]:
        return asyncio.ensure_future(self.save(row))

    def future(self, row: str) -> Awaitable[str]:
        future = asyncio.get_running_loop().create_future()
        future.set_result(row)
        return future

    async def __call__(self, row: str) -> str:
        return await self.save(row)

    def in_a_thread(self, row: str) -> str:
        self.row = row
        return row

    async def pieces(self, row: str) -> AsyncGenerator[str]:
        yield await self.save(row)

    def hands_on_pieces(self, row: str) -> AsyncGenerator[str]:
        return self.pieces(row)

    def rows(self, row: str) -> Generator[str]:
        self.row = row
        yield row

    def hands_on_rows(self, row: str) -> Generator[str]:
        return self.rows(row)


class Lazy:
    """What an ORM returns: nothing runs before it is awaited."""

    def __init__(self, run: Callable[[], Awaitable[str]]) -> None:
        self._run = run

    def __await__(self) -> Generator[Any, Any, str]:
        return self._run().__await__()


def retried(function: Callable[[str], Awaitable[str]]) -> Callable[[str], Awaitable[str]]:
    """A decorator of somebody else's, which does not say that it returns a coroutine."""

    @wraps(function)
    def again(row: str) -> Awaitable[str]:
        return function(row)

    return again


AWAITED: dict[str, Callable[[Table], Callable[[str], Any]]] = {
    "async def": lambda table: table.save,
    "def that returns a coroutine": lambda table: table.hands_on,
    "a decorator that returns a coroutine": lambda table: retried(table.save),
    "an awaitable of one's own": lambda table: table.lazy,
    "async __call__": lambda table: table,
    "partial of an async def": lambda table: partial(table.save),
    "partial of an object": partial,
    "sync_to_async": lambda table: sync_to_async(table.in_a_thread),
    "marked": lambda table: markcoroutinefunction(lambda row: table.hands_on(row)),  # noqa: PLW0108 - another object
    "lambda": lambda table: lambda row: table.hands_on(row),  # noqa: PLW0108 - the case itself
}
REFUSED: dict[str, Callable[[Table], Callable[[str], Any]]] = {
    "a task": lambda table: table.task,
    "a future": lambda table: table.future,
    "an async generator": lambda table: table.hands_on_pieces,
    "a generator": lambda table: table.hands_on_rows,
}


@pytest.fixture(params=["redis", "memory"])
def guard(request: pytest.FixtureRequest, redis_url: str) -> Generator[CacheGuard]:
    with CacheGuard(redis_url if request.param == "redis" else "memory://", policy=Policy(l1=False)) as guard:
        yield guard


@pytest.mark.parametrize("mode", ["fence", "delete"])
@pytest.mark.parametrize("way", AWAITED)
async def test_what_is_awaited_is_awaited_inside_of_the_block(guard: CacheGuard, way: str, mode: Any) -> None:
    table = Table()

    @guard.cached("row")
    async def read() -> str:
        return table.row

    write = guard.invalidates("row", "copy:{result}", mode=mode)(AWAITED[way](table))
    await guard.aset("copy:new", "old")
    assert await read() == "old"
    writing = asyncio.ensure_future(write("new"))
    await asyncio.sleep(PAUSE / 3)
    await read()  # must not bring the old row back for its whole TTL
    assert await writing == "new"
    assert await read() == "new"
    assert await guard.aget("copy:new") is None
    await guard.aclose()


@pytest.mark.parametrize("way", [way for way in AWAITED if way != "sync_to_async"])
async def test_an_awaited_write_that_fails_invalidates_too(
    guard: CacheGuard, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = Table()

    async def fails(row: str) -> str:
        await asyncio.sleep(0)
        table.row = row
        raise ConnectionError("nobody knows whether it was written")

    monkeypatch.setattr(table, "save", fails)
    await guard.aset("row", "old")
    with pytest.raises(ConnectionError):
        await guard.invalidates("row")(AWAITED[way](table))("new")
    assert await guard.aget("row") is None
    await guard.aclose()


@pytest.mark.parametrize("way", REFUSED)
async def test_what_goes_on_after_its_block_is_refused(guard: CacheGuard, way: str) -> None:
    table = Table()
    await guard.aset("row", "old")
    with pytest.raises(TypeError, match="would go on after the invalidation"):
        guard.invalidates("row")(REFUSED[way](table))("new")
    await asyncio.sleep(2 * PAUSE)
    assert table.row == "old", "nothing was written"
    assert await guard.aget("row") is None, "and it was invalidated nevertheless"
    await guard.aclose()


class Pieces:
    async def __call__(self, row: str) -> AsyncGenerator[str]:
        yield row


@pytest.mark.parametrize("odd", [partial(Table().pieces), Table().rows, Pieces()])
def test_generator_functions_are_refused_when_decorated(guard: CacheGuard, odd: Any) -> None:
    for decorate in (guard.invalidates("row"), guard.cached("row")):
        with pytest.raises(ConfigurationError, match="is a generator"):
            decorate(odd)


@pytest.mark.parametrize("kind", ["of_object", "of_class", "of_none"])
async def test_methods_that_return_a_coroutine(guard: CacheGuard, kind: str) -> None:
    table = Table()

    class Rows:
        @guard.invalidates("row")
        def of_object(self, row: str) -> Awaitable[str]:
            return table.save(row)

        @guard.invalidates("row")
        @classmethod
        def of_class(cls, row: str) -> Awaitable[str]:
            return table.save(row)

        @staticmethod
        @guard.invalidates("row")
        def of_none(row: str) -> Awaitable[str]:
            return table.save(row)

    await guard.aset("row", "old")
    assert await getattr(Rows(), kind)("new") == "new"
    assert await guard.aget("row") is None
    await guard.aclose()


@pytest.mark.parametrize("way", ["async def", "async __call__", "partial of an async def", "partial of an object"])
async def test_a_cached_function_knows_a_coroutine_function_in_every_form(guard: CacheGuard, way: str) -> None:
    table = Table()
    read = guard.cached("row:{row}")(AWAITED[way](table))
    assert asyncio.iscoroutinefunction(read)
    assert [await read("a"), await read("a"), *await read.many(["a", "b"]), await read.refresh("a")] == [*"aaaba"]
    assert guard.stats().loads == 3
    await read.invalidate("a")
    assert await guard.aget("row:a") is None
    await guard.aclose()


@pytest.mark.parametrize("way", ["def that returns a coroutine", "an awaitable of one's own", "lambda"])
async def test_a_cached_def_that_returns_an_awaitable_says_what_to_do(guard: CacheGuard, way: str) -> None:
    read = guard.cached("row:{row}")(AWAITED[way](Table()))
    with pytest.raises(CacheGuardError, match="decorate an `async def`"):
        read("a")
    assert await guard.aget("row:a") is None
    assert await guard.aget_or_set("row:b", partial(AWAITED[way](Table()), "b")) == "b"
    await guard.aclose()


@pytest.mark.parametrize("odd", [Table(), partial(Table().save), markcoroutinefunction(lambda value: None)])
def test_a_question_that_must_be_awaited_is_refused(guard: CacheGuard, odd: Any) -> None:
    for ask in (
        lambda: Policy(ttl=odd),
        lambda: guard.cached("k:{row}", validate=odd)(lambda row: row),
        lambda: CacheGuard("memory://", alone=odd),
    ):
        with pytest.raises(ConfigurationError, match="must be a plain function"):
            ask()
    with pytest.raises(TypeError, match="must be a plain function"):
        guard.update("k", odd)
    with pytest.raises(TypeError, match="must be a plain function"):
        guard.get_or_set("k", lambda: 1, usable=odd)
