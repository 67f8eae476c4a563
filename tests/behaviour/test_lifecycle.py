"""What a guard starts ends with it; it works in any thread and any event loop."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from cacheguard import CacheGuard
from tests.support.loader import Loader


def sockets() -> int:
    count = 0
    for each in Path("/proc/self/fd").iterdir():
        try:
            count += str(each.readlink()).startswith("socket:")
        except FileNotFoundError:
            continue
    return count


def threads() -> set[str]:
    return {each.name for each in threading.enumerate() if each.name.startswith("cacheguard")}


@pytest.fixture(params=["redis", "memory"])
def url(request: pytest.FixtureRequest, redis_url: str) -> str:
    return redis_url if request.param == "redis" else "memory://"


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    gc.collect()
    deadline = time.monotonic() + 10
    while threads() and time.monotonic() < deadline:  # what other tests have left behind ends by itself
        time.sleep(0.05)
    before = sockets()
    yield
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        gc.collect()
    assert threads() == set()
    assert sockets() <= before


def use(guard: CacheGuard) -> None:
    assert guard.get_or_set("k", lambda: 1) == 1
    assert guard.get_or_set("old", lambda: 1, rebuild="logical", ttl=0.01, jitter=0.0, l1=False) == 1
    time.sleep(0.02)
    assert guard.get_or_set("old", lambda: 1, rebuild="logical", ttl=0.01, jitter=0.0, l1=False) == 1


async def ause(guard: CacheGuard) -> None:
    async def load() -> int:
        await asyncio.sleep(0.001)
        return 1

    assert await guard.aget_or_set("k", load) == 1
    assert await guard.aget_or_set("aold", load, rebuild="logical", ttl=0.01, jitter=0.0, l1=False) == 1
    await asyncio.sleep(0.02)
    assert await guard.aget_or_set("aold", load, rebuild="logical", ttl=0.01, jitter=0.0, l1=False) == 1


def test_close_ends_threads_and_connections(url: str) -> None:
    with CacheGuard(url) as guard:
        use(guard)
        many = [threading.Thread(target=use, args=(guard,)) for _ in range(10)]
        for thread in many:
            thread.start()
        for thread in many:
            thread.join()


def test_aclose_ends_tasks_and_connections(url: str) -> None:
    async def main() -> None:
        async with CacheGuard(url) as guard:
            await asyncio.gather(*(ause(guard) for _ in range(10)))
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(main(), debug=True)


def test_one_guard_serves_both_doors_and_ends_both(url: str) -> None:
    async def main() -> None:
        async with CacheGuard(url) as guard:
            await asyncio.to_thread(use, guard)
            await ause(guard)
            assert guard.get("k") == 1

    asyncio.run(main())


def test_one_guard_serves_several_event_loops_in_a_row(url: str) -> None:
    loads = 0

    async def main(guard: CacheGuard) -> None:
        await ause(guard)

        async def load() -> int:
            nonlocal loads
            loads += 1
            return loads

        assert await guard.aget_or_set("once", load) == 1
        await guard.ainvalidate("k")

    with CacheGuard(url) as guard:
        for _ in range(5):
            asyncio.run(main(guard))
    assert loads == 1


def test_one_guard_serves_several_event_loops_at_once(url: str) -> None:
    loader = Loader(seconds=0.1)
    answers: list[int] = []

    async def ask(guard: CacheGuard) -> None:
        await ause(guard)
        answers.extend(
            await asyncio.gather(*(guard.aget_or_set("hot", lambda: asyncio.to_thread(loader)) for _ in range(5)))
        )

    with CacheGuard(url) as guard:
        many = [threading.Thread(target=lambda: asyncio.run(ask(guard))) for _ in range(4)]
        for thread in many:
            thread.start()
        for thread in many:
            thread.join(20)
        answers.append(guard.get_or_set("hot", loader))
    assert answers == [1] * 21
    assert loader.runs == 1


def test_a_loop_that_ends_in_the_middle_of_a_load_leaves_the_key_to_others(redis_url: str) -> None:
    async def begin(guard: CacheGuard) -> None:
        task = asyncio.ensure_future(guard.aget_or_set("k", lambda: asyncio.sleep(60)))
        await asyncio.sleep(0.1)
        task.cancel()

    with CacheGuard(redis_url) as guard:
        asyncio.run(begin(guard))
        began = time.monotonic()
        assert guard.get_or_set("k", lambda: 1) == 1
        assert time.monotonic() - began < 5.5


def test_a_guard_that_is_closed_from_a_thread_ends_what_a_loop_uses(redis_url: str) -> None:
    async def main() -> None:
        guard = CacheGuard(redis_url)
        await ause(guard)
        await asyncio.to_thread(guard.close)
        await asyncio.sleep(0.05)
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(main())


def test_closing_a_guard_that_was_never_used_or_twice_is_fine(url: str) -> None:
    guard = CacheGuard(url)
    guard.close()
    guard.close()
    asyncio.run(CacheGuard(url).aclose())


def test_a_detached_load_is_waited_for_a_moment(redis_url: str) -> None:
    loader = Loader()
    with CacheGuard(redis_url) as guard:

        def read() -> object:
            return guard.get_or_set("k", loader, rebuild="logical", ttl=0.02, jitter=0.0, l1=False)

        assert read() == 1
        time.sleep(0.03)
        loader.seconds = 0.3
        assert read() == 1
    assert threads() == set()
    assert loader.active == 0


def test_connections_are_reused(redis_url: str) -> None:
    with CacheGuard(redis_url) as guard, redis.Redis.from_url(redis_url) as client:
        before = client.info("stats")["total_connections_received"]
        for number in range(100):
            guard.get_or_set(f"{number}", lambda: 1)
        # The bus has a subscription of its own, and may need a second connection for its heartbeat.
        assert client.info("stats")["total_connections_received"] - before <= 3


def test_many_threads_use_no_more_connections_than_allowed(redis_url: str) -> None:
    with CacheGuard(redis_url, operation_timeout=5) as guard:

        def ask(number: int) -> None:
            for each in range(20):
                guard.get(f"{number}:{each}")

        many = [threading.Thread(target=ask, args=(number,)) for number in range(120)]
        for thread in many:
            thread.start()
        for thread in many:
            thread.join(30)
        assert guard.stats().redis_errors == 0
