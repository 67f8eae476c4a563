"""Guards that are closed while they are used, closed twice, used after that, or simply dropped."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
import warnings
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from typing import Any

import psutil
import pytest

from cacheguard import CacheGuard
from cacheguard.errors import CacheGuardError
from tests.behaviour.test_lifecycle import nothing_is_left, sockets, threads, url
from tests.faults.test_bus import until
from tests.support.loader import Loader

__all__ = ["nothing_is_left", "url"]  # fixtures

LOOPS = [
    "asyncio",
    # There is none for Windows, nor for the newest Python on its first day; where the group `dev` has it, it is tested.
    pytest.param("uvloop", marks=pytest.mark.skipif(find_spec("uvloop") is None, reason="uvloop is not installed")),
]

PROMISE = 3.0  # seconds in which a reader hears that its guard is closed


def slow(key: str) -> str:
    time.sleep(0.002)
    return key


async def aslow(key: str) -> str:
    await asyncio.sleep(0.002)
    return key


def test_who_reads_while_the_guard_is_closed_gets_an_answer_or_is_told(url: str) -> None:
    for _ in range(10):
        close_under_readers(CacheGuard(url))


def close_under_readers(guard: CacheGuard) -> None:
    told: list[str] = []
    problems: list[object] = []
    answers = 0

    def read(number: int) -> None:
        nonlocal answers
        turn = 0
        while True:
            turn += 1
            key = f"{number}:{turn % 30}"
            try:
                got = guard.get_or_set(key, partial(slow, key), l1=turn % 2 == 0)
                if got != key:
                    problems.append((key, got))
                guard.invalidate(key)
                answers += 1
            except CacheGuardError as error:
                told.append(str(error))
                return
            except BaseException as error:  # noqa: BLE001 - it is reported
                problems.append(error)
                return

    readers = [threading.Thread(target=read, args=(number,)) for number in range(6)]
    for each in readers:
        each.start()
    until(lambda: answers > 20)
    began = time.monotonic()
    guard.close()
    for each in readers:
        each.join(10)
    assert problems == []
    assert told == ["this guard is closed"] * 6
    assert time.monotonic() - began <= PROMISE


def test_tasks_that_read_while_the_guard_is_closed_get_an_answer_or_are_told(url: str) -> None:
    async def main() -> list[object]:
        guard = CacheGuard(url)
        running = True

        async def read(number: int) -> object:
            turn = 0
            while running:
                turn += 1
                key = f"{number}:{turn % 30}"
                try:
                    got = await guard.aget_or_set(key, partial(aslow, key), l1=turn % 2 == 0)
                    assert got == key
                    await guard.ainvalidate(key)
                except CacheGuardError as error:
                    return str(error)
            return "never told"

        readers = [asyncio.ensure_future(read(number)) for number in range(20)]
        await asyncio.sleep(0.1)
        began = time.monotonic()
        await guard.aclose()
        await asyncio.wait(readers, timeout=PROMISE)
        running = False
        outcomes = await asyncio.gather(*readers, return_exceptions=True)
        assert time.monotonic() - began <= PROMISE
        assert asyncio.all_tasks() == {asyncio.current_task()}
        return list(outcomes)

    for _ in range(10):
        assert asyncio.run(main(), debug=True) == ["this guard is closed"] * 20


def test_a_load_that_is_under_way_is_answered_to_all_who_wait_for_it(url: str) -> None:
    loader = Loader("loaded")
    loader.stand_still()
    guard = CacheGuard(url)
    answers: list[object] = []
    readers = [threading.Thread(target=lambda: answers.append(guard.get_or_set("k", loader))) for _ in range(5)]
    for each in readers:
        each.start()
    loader.started.wait(10)
    time.sleep(0.05)
    guard.close()
    loader.go_on()
    for each in readers:
        each.join(10)
    assert answers == ["loaded"] * 5
    assert loader.runs == 1


def test_who_waits_in_an_event_loop_for_a_load_that_is_cancelled_is_told(url: str) -> None:
    async def main() -> None:
        guard = CacheGuard(url)
        readers = [asyncio.ensure_future(guard.aget_or_set("k", lambda: asyncio.sleep(60))) for _ in range(5)]
        await asyncio.sleep(0.1)
        await guard.aclose()
        for outcome in await asyncio.wait_for(asyncio.gather(*readers, return_exceptions=True), PROMISE):
            assert isinstance(outcome, CacheGuardError), outcome

    asyncio.run(main(), debug=True)


USES: dict[str, Callable[[CacheGuard], Any]] = {
    "get": lambda guard: guard.get("k"),
    "get_or_set": lambda guard: guard.get_or_set("k", lambda: 1),
    "get_many": lambda guard: guard.get_many(["k"]),
    "get_or_set_many": lambda guard: guard.get_or_set_many(["k"], dict.fromkeys),
    "set": lambda guard: guard.set("k", 1),
    "invalidate": lambda guard: guard.invalidate("k"),
    "invalidate_tags": lambda guard: guard.invalidate_tags("k"),
    "clear": lambda guard: guard.clear(),
    "writing": lambda guard: guard.writing("k").__enter__(),
    "call": lambda guard: guard.cached("f")(lambda: 1)(),
}
AUSES: dict[str, Callable[[CacheGuard], Any]] = {
    "get": lambda guard: guard.aget("k"),
    "get_or_set": lambda guard: guard.aget_or_set("k", lambda: 1),
    "get_many": lambda guard: guard.aget_many(["k"]),
    "set": lambda guard: guard.aset("k", 1),
    "invalidate": lambda guard: guard.ainvalidate("k"),
    "writing": lambda guard: guard.writing("k").__aenter__(),
}


@pytest.mark.parametrize("use", USES)
def test_a_closed_guard_says_so(url: str, use: str) -> None:
    guard = CacheGuard(url)
    guard.set("k", 0)
    guard.close()
    guard.close()
    with pytest.raises(CacheGuardError, match="this guard is closed"):
        USES[use](guard)
    assert "closed" not in repr(guard) or guard.closed
    guard.stats()


@pytest.mark.parametrize("use", AUSES)
def test_a_closed_guard_says_so_in_an_event_loop(url: str, use: str) -> None:
    async def main() -> None:
        guard = CacheGuard(url)
        await guard.aset("k", 0)
        await guard.aclose()
        await guard.aclose()
        guard.close()
        with pytest.raises(CacheGuardError, match="this guard is closed"):
            await AUSES[use](guard)

    asyncio.run(main(), debug=True)


def test_a_guard_may_be_closed_from_another_event_loop(url: str) -> None:
    guard = CacheGuard(url)
    used, closed = threading.Event(), threading.Event()
    left: list[object] = []

    async def use() -> None:
        assert await guard.aget_or_set("k", partial(aslow, "k")) == "k"
        used.set()
        await asyncio.to_thread(closed.wait, 10)
        await asyncio.sleep(0.05)
        left.extend(asyncio.all_tasks() - {asyncio.current_task()})
        with pytest.raises(CacheGuardError, match="closed"):
            await guard.aget("k")

    user = threading.Thread(target=lambda: asyncio.run(use()))
    user.start()
    used.wait(10)
    asyncio.run(guard.aclose())
    closed.set()
    user.join(10)
    assert left == []


def resident() -> int:
    gc.collect()
    return int(psutil.Process().memory_info().rss)


def make_and_drop(url: str, *, loops: bool) -> None:
    guard = CacheGuard(url, l1_size=1000)
    for number in range(20):
        assert guard.get_or_set(f"{number}", lambda: 1) == 1
    if loops:
        asyncio.run(aread(guard))


async def aread(guard: CacheGuard) -> None:
    assert await guard.aget_or_set("1", partial(aslow, "1")) in {1, "1"}


# Who drops a guard without closing it is told so by the sockets, if he wants to hear it.
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("number", [20, pytest.param(100, marks=pytest.mark.chaos)])
@pytest.mark.parametrize("loops", [False, True])
def test_guards_that_are_dropped_leave_nothing(
    url: str, monkeypatch: pytest.MonkeyPatch, number: int, *, loops: bool
) -> None:
    monkeypatch.setattr("cacheguard.runtime.blocking._Keeper.IDLE", 0.05)
    for _ in range(5):
        make_and_drop(url, loops=loops)
    gc.collect()
    until(lambda: threads() == set())
    before, open_before = resident(), sockets()
    for _ in range(number):
        make_and_drop(url, loops=loops)
    gc.collect()
    until(lambda: threads() == set())
    gc.collect()
    assert sockets() <= open_before
    assert resident() - before < 8_000_000


def test_a_guard_that_is_dropped_in_the_middle_of_a_load_ends_with_it(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cacheguard.runtime.blocking._Keeper.IDLE", 0.05)
    loader = Loader("loaded")
    loader.stand_still()
    answers: list[object] = []

    def read() -> None:
        guard = CacheGuard(url)
        answers.append(guard.get_or_set("k", loader))

    reader = threading.Thread(target=read)
    reader.start()
    loader.started.wait(10)
    for _ in range(5):
        gc.collect()
    loader.go_on()
    reader.join(10)
    assert answers == ["loaded"]
    until(lambda: gc.collect() >= 0 and threads() == set())


def test_a_thousand_threads_that_come_and_go_leave_nothing(url: str) -> None:
    with CacheGuard(url) as guard:
        problems: list[object] = []

        def read(number: int) -> None:
            key = f"{number % 50}"
            try:
                if guard.get_or_set(key, partial(slow, key), l1=False) != key:
                    problems.append(key)
            except BaseException as error:  # noqa: BLE001 - it is reported
                problems.append(error)

        def run(numbers: range) -> None:
            for at in range(numbers.start, numbers.stop, 20):
                some = [threading.Thread(target=read, args=(number,)) for number in range(at, at + 20)]
                for each in some:
                    each.start()
                for each in some:
                    each.join()

        run(range(300))
        before = resident()
        run(range(1000))
        assert problems == []
        assert sockets() <= 30  # twenty at a time, the bus and the test's own
        assert resident() - before < 8_000_000
        assert threads() <= {"cacheguard-bus", "cacheguard-keeper"}


def in_a_loop(kind: str, work: Callable[[], Any]) -> Any:
    if kind == "uvloop":
        uvloop = pytest.importorskip("uvloop")
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(work())
    return asyncio.run(work())


async def use_everything(guard: CacheGuard, name: str) -> None:
    keys = [f"{name}:{number}" for number in range(20)]
    assert await asyncio.gather(*(guard.aget_or_set(key, partial(aslow, key)) for key in keys)) == keys
    async with guard.writing(*keys[:5]):
        await asyncio.sleep(0)
    await guard.ainvalidate(*keys)
    assert await guard.aget_many(keys) == {}


@pytest.mark.parametrize("kind", LOOPS)
def test_five_event_loops_in_a_row_and_four_at_once_work_without_an_error(url: str, kind: str) -> None:
    problems: list[BaseException] = []
    with CacheGuard(url) as guard:

        def run(name: str) -> None:
            try:
                in_a_loop(kind, partial(use_everything, guard, name))
            except BaseException as error:  # noqa: BLE001 - it is reported
                problems.append(error)

        for number in range(5):
            run(f"row:{number}")
        four = [threading.Thread(target=run, args=(f"once:{number}",)) for number in range(4)]
        for each in four:
            each.start()
        for each in four:
            each.join(20)
        assert problems == []
        assert guard.stats().redis_errors == 0


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("kind", LOOPS)
def test_loops_that_are_closed_without_a_word_leave_nothing(url: str, kind: str) -> None:
    def run(guard: CacheGuard) -> None:
        new = asyncio.new_event_loop if kind == "asyncio" else pytest.importorskip("uvloop").new_event_loop
        loop = new()
        loop.run_until_complete(use_everything(guard, "row"))
        loop.close()

    with CacheGuard(url) as guard, warnings.catch_warnings():
        # uvloop says that a loop was closed with something open in it; asyncio's loops leave that to what is open.
        warnings.simplefilter("ignore" if kind == "uvloop" else "error")
        for _ in range(3):
            run(guard)
        gc.collect()
        before = sockets()
        for _ in range(30):
            run(guard)
        gc.collect()
        assert sockets() <= before


def test_a_socket_is_not_left_to_the_end_of_the_process(redis_url: str) -> None:
    before = sockets()
    guard = CacheGuard(redis_url)
    loop = asyncio.new_event_loop()
    loop.run_until_complete(use_everything(guard, "row"))
    loop.close()
    guard.close()
    assert sockets() <= before
