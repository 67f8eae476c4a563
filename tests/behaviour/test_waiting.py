"""Nobody waits for himself: in an event loop, under a greenlet, in a nested loop, or for a loop that stands still."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Self

import pytest

from cacheguard import CacheGuard, Policy
from cacheguard.errors import LoadTimeout

AWAY = "redis://127.0.0.1:1/0"  # nobody listens there
HANGS = pytest.mark.timeout(20, method="thread")  # where a fault would hang, the loop that pytest-timeout needs, too


@pytest.fixture(params=["redis", "memory", "away"])
def url(request: pytest.FixtureRequest, redis_url: str) -> str:
    """A server, none, and one that is away."""
    return {"redis": redis_url, "memory": "memory://", "away": AWAY}[request.param]


@pytest.fixture
def guard(url: str) -> Iterator[CacheGuard]:
    with CacheGuard(url, operation_timeout=2) as guard:
        yield guard


class Leading:
    """A task of this loop that loads "k", and ends when it is told to."""

    def __init__(self, guard: CacheGuard, **policy: Any) -> None:
        self._guard, self._policy = guard, policy
        self.loading, self.go_on = asyncio.Event(), asyncio.Event()

    async def __aenter__(self) -> Self:
        self.task = asyncio.create_task(self._guard.aget_or_set("k", self._load, **self._policy))
        await self.loading.wait()
        return self

    async def __aexit__(self, *_: object) -> None:
        self.go_on.set()
        assert await self.task == "theirs"

    async def _load(self) -> str:
        self.loading.set()
        await self.go_on.wait()
        return "theirs"


def mine() -> str:
    return "mine"


def by_function(guard: CacheGuard) -> Any:
    return guard.cached("k")(mine)()


def by_many(guard: CacheGuard) -> Any:
    @guard.cached("{key}")
    def get(key: str) -> str:
        return "mine"

    return get.many(["k"])[0]


def by_refresh(guard: CacheGuard) -> Any:
    return guard.cached("k")(mine).refresh()


def by_batch(guard: CacheGuard) -> Any:
    return guard.get_or_set_many(["k"], lambda keys: dict.fromkeys(keys, "mine"))["k"]


def by_key(guard: CacheGuard) -> Any:
    return guard.get_or_set("k", mine)


READS = [by_key, by_function, by_many, by_refresh, by_batch]
Read = Callable[[CacheGuard], Any]


@HANGS
@pytest.mark.parametrize("read", READS)
def test_a_blocking_call_in_a_loop_loads_for_itself_while_a_task_of_the_loop_loads(
    guard: CacheGuard, read: Read, caplog: pytest.LogCaptureFixture
) -> None:
    async def handler() -> None:
        async with Leading(guard):
            assert read(guard) == "mine"
            assert read(guard) == "mine"  # it has filled nothing
        assert await guard.aget("k") == "theirs"

    asyncio.run(handler())
    told = [record.message for record in caplog.records if "async door" in record.message]
    if not (guard.stats().redis_errors and read is by_batch):  # without Redis, a batch asks nobody
        assert len(told) == 1


@HANGS
@pytest.mark.parametrize("read", READS)
def test_nor_does_one_under_a_greenlet_of_sqlalchemy(guard: CacheGuard, read: Read) -> None:
    from sqlalchemy.util import await_only, greenlet_spawn

    def beneath() -> None:
        assert read(guard) == "mine"
        await_only(asyncio.sleep(0))
        assert read(guard) == "mine"

    async def handler() -> None:
        async with Leading(guard):
            await greenlet_spawn(beneath)

    asyncio.run(handler())


@HANGS
@pytest.mark.parametrize("stale", [False, True])
def test_a_blocking_load_that_has_switched_to_its_loop_is_not_waited_for_there(
    guard: CacheGuard, *, stale: bool
) -> None:
    from sqlalchemy.util import await_only, greenlet_spawn

    if stale:
        guard.set("k", "old")
        guard.expire("k")

    async def handler() -> None:
        loading, go_on = asyncio.Event(), asyncio.Event()

        def load() -> str:
            loading.set()
            await_only(go_on.wait())
            return "theirs"

        task = asyncio.create_task(greenlet_spawn(guard.get_or_set, "k", load))
        await loading.wait()
        for read in READS:
            assert read(guard) == "mine"
        go_on.set()
        assert await task == "theirs"

    asyncio.run(handler())


set_running_loop: Callable[[asyncio.AbstractEventLoop | None], None] = asyncio._set_running_loop  # noqa: SLF001


def nested(work: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
    """Run *work* in a loop of its own inside the loop that runs here, as nest_asyncio and notebooks do."""
    outer, loop = asyncio.get_running_loop(), asyncio.new_event_loop()
    set_running_loop(None)
    try:
        return contextvars.Context().run(loop.run_until_complete, work())
    finally:
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()
        set_running_loop(outer)


async def afunction(guard: CacheGuard) -> Any:
    return await guard.aget_or_set("k", amine)


async def abatch(guard: CacheGuard) -> Any:
    async def load(keys: list[str]) -> dict[str, str]:
        return dict.fromkeys(keys, "mine")

    return (await guard.aget_or_set_many(["k"], load))["k"]


async def amine() -> str:
    return "mine"


@HANGS
@pytest.mark.parametrize("read", [afunction, abatch])
def test_a_task_of_a_nested_loop_does_not_wait_for_the_outer_one(
    guard: CacheGuard, read: Callable[[CacheGuard], Coroutine[Any, Any, Any]]
) -> None:
    async def handler() -> None:
        async with Leading(guard):
            assert nested(functools.partial(read, guard)) == "mine"

    asyncio.run(handler())


@HANGS
@pytest.mark.parametrize("read", [by_key, by_batch])
def test_a_thread_does_not_wait_for_a_loop_that_waits_for_the_thread(guard: CacheGuard, read: Read) -> None:
    async def handler() -> None:
        async with Leading(guard):
            with ThreadPoolExecutor(1) as threads:
                assert threads.submit(read, guard).result() == "mine"  # the loop stands still

    asyncio.run(handler())


@HANGS
def test_nor_does_a_loop_for_another_one_that_waits_for_it(guard: CacheGuard) -> None:
    async def handler() -> None:
        async with Leading(guard):
            with ThreadPoolExecutor(1) as threads:
                assert threads.submit(asyncio.run, afunction(guard)).result() == "mine"

    asyncio.run(handler())


@HANGS
def test_a_thread_waits_for_a_loop_that_turns_however_long_it_loads(guard: CacheGuard) -> None:
    async def handler() -> None:
        async with Leading(guard) as leading:
            reading = asyncio.create_task(asyncio.to_thread(by_key, guard))
            await asyncio.sleep(1.5)
            assert not reading.done()
            leading.go_on.set()
            assert await reading == "theirs"

    asyncio.run(handler())


@HANGS
def test_who_comes_after_a_loop_was_found_to_stand_still_shares_a_load_again() -> None:
    loads: list[int] = []

    def load() -> str:
        loads.append(1)
        return "mine"

    async def handler(guard: CacheGuard) -> None:
        async with Leading(guard):
            with ThreadPoolExecutor(1) as threads:
                for _ in range(4):
                    assert threads.submit(guard.get_or_set, "k", load).result() == "mine"

    with CacheGuard(AWAY) as guard:
        asyncio.run(handler(guard))
    assert len(loads) == 2


@HANGS
def test_a_blocking_call_in_a_loop_does_not_wait_for_a_thread_whose_loader_needs_the_loop(guard: CacheGuard) -> None:
    async def handler() -> None:
        loop, loading = asyncio.get_running_loop(), asyncio.Event()

        def load() -> str:
            loop.call_soon_threadsafe(loading.set)
            time.sleep(0.1)
            return asyncio.run_coroutine_threadsafe(answer(), loop).result()

        async def answer() -> str:
            return "theirs"

        task = asyncio.create_task(asyncio.to_thread(guard.get_or_set, "k", load))
        await loading.wait()
        assert by_key(guard) == "mine"
        assert await task == "theirs"

    asyncio.run(handler())


@HANGS
def test_nor_for_a_thread_that_waits_for_a_task_of_the_loop(guard: CacheGuard) -> None:
    async def handler() -> None:
        async with Leading(guard):
            reading = asyncio.create_task(asyncio.to_thread(by_key, guard))
            await asyncio.sleep(0.1)
            assert by_key(guard) == "mine"
        assert await reading in {"mine", "theirs"}

    asyncio.run(handler())


@HANGS
@pytest.mark.parametrize("read", READS)
def test_two_guards_of_one_process_do_not_wait_for_each_other(redis_url: str, read: Read) -> None:
    async def handler(one: CacheGuard, other: CacheGuard) -> None:
        async with Leading(one):
            assert read(other) == "mine"

    hasty = Policy(hard_timeout="2s")  # sooner than the lease of a loop that stands still
    with CacheGuard(redis_url, operation_timeout=2) as one, CacheGuard(redis_url, policy=hasty) as other:
        asyncio.run(handler(one, other))


@HANGS
@pytest.mark.parametrize("queued", [False, True])
def test_a_blocking_call_in_a_loop_does_not_wait_for_a_permit_of_its_loop(url: str, *, queued: bool) -> None:
    async def handler(guard: CacheGuard) -> None:
        go_on = threading.Event()
        held = None
        if queued:  # the permit is a thread's, but a task of the loop is to get it before
            held = asyncio.create_task(asyncio.to_thread(guard.get_or_set, "held", go_on.wait))
            await until(lambda: guard.stats().loads == 1)
            first = asyncio.create_task(guard.aget_or_set("first", amine))
            await asyncio.sleep(0.1)
        else:
            first = asyncio.create_task(guard.aget_or_set("first", lambda: asyncio.sleep(0.1, "mine")))
            await until(lambda: guard.stats().loads == 1)
        assert guard.get_or_set("other", mine) == "mine"
        go_on.set()
        assert await first == "mine"
        if held is not None:
            await held
        assert await asyncio.gather(*(guard.aget_or_set(str(key), amine) for key in range(3))) == ["mine"] * 3

    with CacheGuard(url, operation_timeout=2, max_loads=1, load_wait="5s") as guard:
        asyncio.run(handler(guard))
        assert guard.stats().overloads == 0


@HANGS
def test_nor_for_the_permit_of_the_load_around_it(url: str) -> None:
    async def handler(guard: CacheGuard) -> None:
        async def outer() -> str:
            inner = asyncio.create_task(guard.aget_or_set("inner", functools.partial(asyncio.sleep, 0.1, "inner")))
            await until(lambda: guard.stats().loads == 2)
            answer: str = guard.get_or_set("other", mine)
            await inner
            return answer

        assert await guard.aget_or_set("outer", outer) == "mine"

    with CacheGuard(url, operation_timeout=2, max_loads=1, load_wait="5s") as guard:
        asyncio.run(handler(guard))
        assert guard.stats().overloads == 0


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not true():
            await asyncio.sleep(0.002)


@HANGS
def test_without_redis_a_waiter_gives_up_after_its_own_timeouts() -> None:
    async def handler(guard: CacheGuard) -> None:
        async with Leading(guard, hard_timeout=None):
            with pytest.raises(LoadTimeout, match="waited"):
                await asyncio.to_thread(guard.get_or_set, "k", mine, hard_timeout="50ms")
            reading = asyncio.to_thread(guard.get_or_set, "k", mine, hard_timeout=None, wait_timeout="50ms")
            assert await reading == "mine"
        assert await guard.aget("k") == "theirs"

    with CacheGuard(AWAY) as guard:
        asyncio.run(handler(guard))


@HANGS
def test_a_stale_value_is_no_reason_to_wait_or_to_serve_it(redis_url: str) -> None:
    async def handler(guard: CacheGuard) -> None:
        guard.set("k", "old")
        guard.expire("k")
        async with Leading(guard):
            assert by_key(guard) == "mine"
            assert by_batch(guard) == "mine"

    with CacheGuard(redis_url, operation_timeout=2) as guard:
        asyncio.run(handler(guard))
