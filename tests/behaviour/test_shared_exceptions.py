"""Callers that share the exception of a load: each has an object of its own, as it was raised."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from cacheguard import CacheGuard, Policy

CALLERS = 4


class Denied(Exception):  # noqa: N818 - as users name them
    def __init__(self, *, user: int) -> None:
        super().__init__(f"user {user} may not")
        self.user = user
        self.seen_by: list[str] = []


@pytest.fixture(params=["memory", "redis"])
def guards(request: pytest.FixtureRequest, redis_url: str) -> Iterator[list[CacheGuard]]:
    """Two, which stand for two processes."""
    url = "memory://" if request.param == "memory" else redis_url
    made = [CacheGuard(url, policy=Policy(error_backoff=None)) for _ in range(2)]
    yield made
    for guard in made:
        guard.close()


def check(raised: list[Denied]) -> None:
    assert len(set(map(id, raised))) == len(raised)
    for error in raised:
        assert (type(error), error.args, str(error), error.user) == (Denied, ("user 7 may not",), "user 7 may not", 7)
        assert repr(error.__cause__) == "KeyError('why')"
        (caller,) = error.seen_by  # nobody else's
        assert error.__context__ is None or repr(error.__context__) in {"KeyError('why')", f"KeyError('{caller}')"}


def deny() -> None:
    raise Denied(user=7) from KeyError("why")


def after_a_key_error(caller: str, call: Callable[[], object]) -> None:
    try:
        dict[str, int]()[caller]
    except KeyError:
        call()


def test_threads_and_processes_that_share_a_failing_load(guards: list[CacheGuard]) -> None:
    entered, go = threading.Event(), threading.Event()
    loads: list[int] = []

    def load() -> None:
        loads.append(1)
        entered.set()
        go.wait(10)
        deny()

    raised: list[Denied] = []

    def ask(guard: CacheGuard, caller: str) -> None:
        with pytest.raises(Denied) as caught:
            after_a_key_error(caller, lambda: guard.get_or_set("k", load))
        caught.value.seen_by.append(caller)
        raised.append(caught.value)

    threads = [threading.Thread(target=ask, args=(guards[0], f"caller {number}")) for number in range(CALLERS)]
    threads.append(threading.Thread(target=ask, args=(guards[1], "caller elsewhere")))
    threads[0].start()
    entered.wait(10)
    for thread in threads[1:]:
        thread.start()
    deadline = time.monotonic() + 10
    while guards[0].stats().misses < CALLERS and time.monotonic() < deadline:
        time.sleep(0.001)
    time.sleep(0.05)  # the other process asks for the lease
    go.set()
    for thread in threads:
        thread.join(20)
    check(raised)
    assert len(raised) == CALLERS + 1


async def test_tasks_that_share_a_failing_load(guards: list[CacheGuard]) -> None:
    go = asyncio.Event()

    async def load() -> None:
        await go.wait()
        deny()

    async def ask(caller: str) -> Denied:
        with pytest.raises(Denied) as caught:
            await guards[0].aget_or_set("k", load)
        caught.value.seen_by.append(caller)
        return caught.value

    tasks = [asyncio.create_task(ask(f"caller {number}")) for number in range(CALLERS)]
    while guards[0].stats().misses < CALLERS:
        await asyncio.sleep(0.001)
    go.set()
    raised: list[Any] = await asyncio.gather(*tasks)
    check(raised)
    for guard in guards:
        await guard.aclose()


async def test_tasks_that_share_an_absence(guards: list[CacheGuard]) -> None:
    go = asyncio.Event()

    async def load() -> None:
        await go.wait()
        deny()

    cached = guards[0].cached("absent", not_found=Denied)(load)
    elsewhere = guards[1].cached("absent", not_found=Denied)(load)

    async def ask(caller: str, call: Callable[[], Any]) -> Denied:
        with pytest.raises(Denied) as caught:
            await call()
        caught.value.seen_by.append(caller)
        return caught.value

    tasks = [asyncio.create_task(ask(f"caller {number}", cached)) for number in range(CALLERS)]
    while guards[0].stats().misses < CALLERS:
        await asyncio.sleep(0.001)
    go.set()
    raised = [*await asyncio.gather(*tasks), await ask("later", cached), await ask("elsewhere", elsewhere)]
    check(raised)
    for guard in guards:
        await guard.aclose()


async def test_an_absence_that_cannot_be_made_anew_is_not_cached(
    guards: list[CacheGuard], caplog: pytest.LogCaptureFixture
) -> None:
    class Moody(Exception):  # noqa: N818 - as users name them
        def __str__(self) -> str:
            return str(id(self))

    loads: list[int] = []

    async def load() -> None:
        loads.append(1)
        raise Moody

    cached = guards[0].cached("moody", not_found=Moody)(load)
    for _ in range(3):
        with pytest.raises(Moody):
            await cached()
    assert len(loads) == 3
    assert guards[0].stats().unencodable == 3
    assert len([record for record in caplog.records if "cannot be made anew" in record.getMessage()]) == 1
    for guard in guards:
        await guard.aclose()
