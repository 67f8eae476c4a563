"""What is remembered of a load that failed: its exception, none of its variables, and not for longer than needed."""

from __future__ import annotations

import asyncio
import gc
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import suppress
from contextvars import ContextVar
from typing import Any

import pytest

from cacheguard import CacheGuard, Policy, current_load


class Body(bytearray):
    """A large variable of a loader."""


class BadBodyError(ValueError):
    """It has the body itself."""

    def __init__(self, body: Body) -> None:
        super().__init__("bad body")
        self.body = body


class Bodies:
    """The variables of loaders that failed."""

    def __init__(self) -> None:
        self._known: list[weakref.ref[Body]] = []

    def one(self) -> Body:
        body = Body(1000)
        self._known.append(weakref.ref(body))
        return body

    def fail(self, *_: object, own: bool = False) -> Any:
        body = self.one()
        if own:
            raise BadBodyError(body)
        raise ValueError("bad body")

    async def afail(self, *_: object) -> Any:
        self.fail()

    @property
    def held(self) -> int:
        assert self._known, "no loader has run"
        return sum(each() is not None for each in self._known)


@pytest.fixture(params=["redis", "memory", "away"])
def guard(request: pytest.FixtureRequest, redis_url: str) -> Iterator[CacheGuard]:
    url = {"redis": redis_url, "memory": "memory://", "away": "redis://127.0.0.1:1/0"}[request.param]
    with CacheGuard(url, operation_timeout=2, policy=Policy(error_backoff=("30s", "30s"))) as guard:
        yield guard


@pytest.fixture
def bodies() -> Iterator[Bodies]:
    """Nothing is collected meanwhile: what is free is free because nobody holds it, not even in a circle."""
    gc.collect()
    gc.disable()
    yield Bodies()
    gc.enable()


def by_key(guard: CacheGuard, number: int, bodies: Bodies) -> None:
    guard.get_or_set(f"{number}", bodies.fail)


def by_batch(guard: CacheGuard, number: int, bodies: Bodies) -> None:
    guard.get_or_set_many([f"{number}", "other"], bodies.fail)


def by_refresh(guard: CacheGuard, number: int, bodies: Bodies) -> None:
    @guard.cached(f"{number}")
    def get() -> Any:
        return bodies.fail()

    get.refresh()


def by_absence(guard: CacheGuard, number: int, bodies: Bodies) -> None:
    guard.get_or_set(f"{number}", bodies.fail, not_found=ValueError)


@pytest.mark.parametrize("read", [by_key, by_batch, by_refresh, by_absence])
def test_the_variables_of_a_loader_that_failed_are_free_at_once(
    guard: CacheGuard, bodies: Bodies, read: Callable[[CacheGuard, int, Bodies], None]
) -> None:
    for _ in range(2):  # the second time, within the back-off
        for number in range(5):
            with suppress(ValueError):
                read(guard, number, bodies)
    assert bodies.held == 0


def test_those_of_tasks_too(guard: CacheGuard, bodies: Bodies) -> None:
    async def read(key: str) -> None:
        with suppress(ValueError):
            await guard.aget_or_set(key, bodies.afail)

    async def read_many(key: str) -> None:
        with suppress(ValueError):
            await guard.aget_or_set_many([key], bodies.afail)

    async def all_of_them() -> None:
        for number in range(5):
            await read(f"{number}")
            await read_many(f"many {number}")
        await asyncio.gather(*(read("shared") for _ in range(5)))
        await asyncio.sleep(0)
        assert bodies.held == 0

    asyncio.run(all_of_them())


@pytest.mark.parametrize("fails", [False, True])
def test_nothing_of_a_load_that_is_not_cached_is_kept_nor_of_the_context_of_its_caller(
    bodies: Bodies, *, fails: bool
) -> None:
    around: ContextVar[Body] = ContextVar("around")

    async def read(guard: CacheGuard) -> None:
        around.set(bodies.one())

        async def load() -> Any:
            current_load().cacheable = False
            return bodies.fail() if fails else bodies.one()

        with suppress(ValueError):
            await guard.aget_or_set("k", load)

    async def read_and_look(guard: CacheGuard) -> None:
        await asyncio.create_task(read(guard))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert bodies.held == 0

    with CacheGuard() as guard:
        asyncio.run(read_and_look(guard))


def test_a_task_that_a_loader_leaves_behind_keeps_no_other_value_of_its_load(redis_url: str, bodies: Bodies) -> None:
    async def load_and_look(guard: CacheGuard) -> None:
        left: list[asyncio.Task[None]] = []

        async def load() -> Body:
            left.append(asyncio.create_task(asyncio.sleep(60)))
            current_load().cacheable = False
            return bodies.one()

        await guard.aget_or_set("k", load)
        await asyncio.sleep(0)
        assert bodies.held == 0
        left[0].cancel()

    with CacheGuard(redis_url, operation_timeout=2) as guard:
        asyncio.run(load_and_look(guard))


def test_within_the_back_off_each_caller_gets_an_exception_of_its_own(guard: CacheGuard, bodies: Bodies) -> None:
    caught: list[ValueError] = []
    for _ in range(3):
        with pytest.raises(ValueError, match="bad body") as each:
            guard.get_or_set("k", bodies.fail)
        caught.append(each.value)
    assert len(set(map(id, caught))) == 3
    assert guard.stats().loads == 1


@pytest.mark.parametrize("is_async", [False, True])
def test_what_an_exception_has_itself_is_let_go_after_its_back_off_without_another_load(
    guard: CacheGuard, bodies: Bodies, *, is_async: bool
) -> None:
    async def load() -> Any:
        return bodies.fail(own=True)

    async def all_of_it() -> None:
        with suppress(ValueError):
            await guard.aget_or_set("k", load, error_backoff=("50ms", "50ms"))
        assert bodies.held == 1
        async with asyncio.timeout(10):
            while bodies.held:
                await asyncio.sleep(0.01)

    if is_async:
        asyncio.run(all_of_it())
        return
    with suppress(ValueError):
        guard.get_or_set("k", lambda: bodies.fail(own=True), error_backoff=("50ms", "50ms"))
    assert bodies.held == 1
    until = time.monotonic() + 10
    while bodies.held:
        assert time.monotonic() < until
        time.sleep(0.01)
