"""Loads inside loads, as deep as they go."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from cacheguard import CacheGuard
from cacheguard.errors import ReentrantLoad

DEEP = 200


@pytest.fixture(params=["redis", "memory", "away"])
def guard(request: pytest.FixtureRequest, redis_url: str) -> Iterator[CacheGuard]:
    url = {"redis": redis_url, "memory": "memory://", "away": "redis://127.0.0.1:1/0"}[request.param]
    with CacheGuard(url, operation_timeout=5) as guard:
        yield guard


def by_key(guard: CacheGuard, depth: int) -> Any:
    def load() -> int:
        inner: int = by_key(guard, depth - 1) if depth else 0
        return inner + 1

    return guard.get_or_set(f"{depth}", load, error_backoff=None)


def by_function(guard: CacheGuard, depth: int) -> Any:
    @guard.cached("{depth}", error_backoff=None)
    def get(depth: int) -> int:
        return get(depth - 1) + 1 if depth else 1

    return get(depth)


def by_many(guard: CacheGuard, depth: int) -> Any:
    @guard.cached("{depth}", error_backoff=None)
    def get(depth: int) -> int:
        return sum(get.many([depth - 1])) + 1 if depth else 1

    return get.many([depth])[0]


def by_refresh(guard: CacheGuard, depth: int) -> Any:
    @guard.cached("{depth}", error_backoff=None)
    def get(depth: int) -> int:
        return get.refresh(depth - 1) + 1 if depth else 1

    return get.refresh(depth)


def by_batch(guard: CacheGuard, depth: int) -> Any:
    def load(keys: list[str]) -> dict[str, int]:
        inner: int = by_batch(guard, depth - 1) if depth else 0
        return dict.fromkeys(keys, inner + 1)

    return guard.get_or_set_many([f"{depth}"], load, error_backoff=None)[f"{depth}"]


@pytest.mark.parametrize(
    "read",
    [by_key, by_function, by_batch, *(pytest.param(read, marks=pytest.mark.slow) for read in (by_many, by_refresh))],
)
def test_blocking_loads_are_nested_as_deep_as_the_stack_allows_or_refused_before_its_end(
    guard: CacheGuard, read: Callable[[CacheGuard, int], Any]
) -> None:
    assert read(guard, 25) == 26
    guard.clear()
    with pytest.raises(ReentrantLoad, match=r"nested.*recursion limit \(\d+\).*async door"):
        read(guard, DEEP)
    assert read(guard, 25) == 26  # no lease, no flight and no permit has been left
    assert guard.stats().load_timeouts == guard.stats().overloads == 0
    guard.clear()
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(limit + 25 * DEEP)
    try:
        assert read(guard, DEEP) == DEEP + 1
    finally:
        sys.setrecursionlimit(limit)


def test_a_read_that_is_not_nested_is_never_refused(guard: CacheGuard) -> None:
    def deep(left: int) -> Any:
        return deep(left - 1) if left else guard.get_or_set("k", lambda: 1)

    frame, depth = sys._getframe(), 0  # noqa: SLF001 - how deep this test is
    while frame.f_back is not None:
        frame, depth = frame.f_back, depth + 1
    assert deep(sys.getrecursionlimit() - depth - 90) == 1


async def aby_key(guard: CacheGuard, depth: int) -> Any:
    async def load() -> int:
        return (await aby_key(guard, depth - 1) if depth else 0) + 1

    return await guard.aget_or_set(f"{depth}", load)


async def aby_many(guard: CacheGuard, depth: int) -> Any:
    @guard.cached("{depth}")
    async def get(depth: int) -> int:
        return sum(await get.many([depth - 1])) + 1 if depth else 1

    return (await get.many([depth]))[0]


async def aby_batch(guard: CacheGuard, depth: int) -> Any:
    async def load(keys: list[str]) -> dict[str, int]:
        inner: int = await aby_batch(guard, depth - 1) if depth else 0
        return dict.fromkeys(keys, inner + 1)

    return (await guard.aget_or_set_many([f"{depth}"], load))[f"{depth}"]


@pytest.mark.parametrize("read", [aby_key, aby_many, aby_batch])
def test_loads_that_are_awaited_are_nested_as_deep_as_one_likes(
    guard: CacheGuard, read: Callable[[CacheGuard, int], Any]
) -> None:
    assert asyncio.run(read(guard, DEEP)) == DEEP + 1


def test_a_failure_comes_up_from_any_depth(guard: CacheGuard) -> None:
    async def fail(depth: int) -> Any:
        async def load() -> Any:
            if not depth:
                raise ValueError("at the bottom")
            return await fail(depth - 1)

        return await guard.aget_or_set(f"{depth}", load)

    with pytest.raises(ValueError, match="at the bottom"):
        asyncio.run(fail(DEEP))
