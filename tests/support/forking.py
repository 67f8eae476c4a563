"""A process that forks while everything in it runs, and what its children must be able to do at once."""

from __future__ import annotations

import asyncio
import gc
import json
import multiprocessing
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from types import BuiltinMethodType, FunctionType, MethodType, ModuleType
from typing import Any
from weakref import ReferenceType

from cacheguard import CacheGuard, Policy

PROMISE = 1.0  # seconds, within which a child has to have answered everything
KEYS = 20  # of each thread and of each task
CONTAINERS = (dict, list, tuple, set, frozenset, partial, MethodType, BuiltinMethodType, FunctionType, ReferenceType)


class Parent:
    """Threads and an event loop that read, load and invalidate, and compare each answer with its question."""

    def __init__(self, guard: CacheGuard, *, threads: int = 3, tasks: int = 5) -> None:
        self.guard = guard
        self.filter = guard.bloom("rows", capacity=1000, error_rate=0.01)
        self.filter.rebuild(range(100))
        self.problems: list[str] = []
        self.reads = 0
        self._over = threading.Event()
        self._tasks = tasks
        self._threads = [
            *(threading.Thread(target=self._caring, args=(self._block, number)) for number in range(threads)),
            threading.Thread(target=self._caring, args=(self._loop, 0)),
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()
        while self.reads < KEYS:
            time.sleep(0.001)

    def stop(self) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(10)
            if thread.is_alive():
                self.problems.append(f"{thread.name} hangs")

    def _caring(self, work: Callable[[int], None], number: int) -> None:
        try:
            work(number)
        except BaseException:  # noqa: BLE001 - it is reported
            self.problems.append(traceback.format_exc())

    def _check(self, key: str, value: object) -> None:
        self.reads += 1
        if value != f"value of {key}":
            self.problems.append(f"{key} got {value!r}")

    def _block(self, number: int) -> None:
        turn = 0
        while not self._over.is_set():
            turn += 1
            key = f"parent:{number}:{turn % KEYS}"
            self._check(key, self.guard.get_or_set(key, partial(slow, key), l1=turn % 2 == 0))
            if turn % 5 == 0:
                self.guard.invalidate(key)
            if turn % 7 == 0:
                with self.guard.writing(key):
                    pass
            if turn % 11 == 0:
                self.filter.add(turn)
            time.sleep(0.0005)

    def _loop(self, _: int) -> None:
        asyncio.run(self._all_tasks())

    async def _all_tasks(self) -> None:
        await asyncio.gather(*(self._task(number) for number in range(self._tasks)))

    async def _task(self, number: int) -> None:
        turn = 0
        while not self._over.is_set():
            turn += 1
            key = f"parent:task:{number}:{turn % KEYS}"
            self._check(key, await self.guard.aget_or_set(key, partial(aslow, key), l1=turn % 2 == 0))
            if turn % 5 == 0:
                await self.guard.ainvalidate(key)
            await asyncio.sleep(0.001)


def slow(key: str) -> str:
    time.sleep(0.002)
    return f"value of {key}"


async def aslow(key: str) -> str:
    await asyncio.sleep(0.002)
    return f"value of {key}"


def use(guard: CacheGuard, url: str, name: str) -> float:
    """Read, load, invalidate, hear; through both doors. How many seconds that took."""
    began = time.monotonic()
    asked = partial(ask, guard)
    assert guard.get("common") == "value of common"
    assert asked(f"{name}:1") == f"value of {name}:1"
    guard.invalidate(f"{name}:1")
    assert guard.get(f"{name}:1") is None
    with guard.writing(f"{name}:1"):
        pass
    assert guard.bloom("rows", capacity=1000, error_rate=0.01).absent(7) is False
    asyncio.run(_ause(guard, name))
    with CacheGuard(url, policy=Policy(l1=False)) as elsewhere:
        if url.startswith("redis"):
            _hear(guard, elsewhere, f"{name}:heard")
    return time.monotonic() - began


def ask(guard: CacheGuard, key: str) -> Any:
    return guard.get_or_set(key, partial(slow, key))


async def _ause(guard: CacheGuard, name: str) -> None:
    keys = [f"{name}:a{number}" for number in range(10)]
    found = await asyncio.gather(*(guard.aget_or_set(key, partial(aslow, key)) for key in keys))
    assert found == [f"value of {key}" for key in keys]
    await guard.ainvalidate(*keys)
    assert await guard.aget_many(keys) == {}


def _hear(guard: CacheGuard, elsewhere: CacheGuard, key: str) -> None:
    until = time.monotonic() + 5
    while guard.inspect(key).tier != "l1":
        assert time.monotonic() < until, "the in-process tier stays off"
        ask(guard, key)
        time.sleep(0.001)
    elsewhere.invalidate(key)
    while guard.inspect(key).tier == "l1":
        assert time.monotonic() < until, "the invalidation was not heard"
        time.sleep(0.001)


def forked(work: Callable[[], Any]) -> tuple[int, int]:
    """Run *work* in a fork; its process id, and where its outcome can be read."""
    read_end, write_end = os.pipe()
    child = os.fork()
    if child:
        os.close(write_end)
        return child, read_end
    try:
        outcome = {"outcome": work()}
    except BaseException:  # noqa: BLE001 - it is reported
        outcome = {"problem": traceback.format_exc()}
    try:
        os.write(write_end, json.dumps(outcome).encode())
    finally:
        os._exit(0)


def outcome_of(child: int, read_end: int, patience: float = 20.0) -> Any:
    """What a fork has made of its work; AssertionError if it failed or hangs."""
    import select
    import signal

    try:
        ready, _, _ = select.select([read_end], [], [], patience)
        if not ready:
            os.kill(child, signal.SIGKILL)
            raise AssertionError(f"the forked child hangs for {patience:g} s")
        outcome = json.loads(os.read(read_end, 1 << 16) or b'{"problem": "it died"}')
    finally:
        os.close(read_end)
        os.waitpid(child, 0)
    if "problem" in outcome:
        raise AssertionError(outcome["problem"])
    return outcome["outcome"]


def with_a_child_of_its_own(guard: CacheGuard, url: str, name: str) -> float:
    """Use the guard, fork, and let that child use it, too; the longest of both times."""
    mine = use(guard, url, name)
    theirs: float = outcome_of(*forked(lambda: use(guard, url, f"{name}:grandchild")))
    return max(mine, theirs)


def _process(url: str, name: str, answers: Any, guard: CacheGuard | None = None) -> None:
    try:
        if guard is None:
            with CacheGuard(url) as own:
                answers.put(use(own, url, name))
        else:
            answers.put(use(guard, url, name))
    except BaseException:  # noqa: BLE001 - it is reported
        answers.put(traceback.format_exc())


def processes(method: str, url: str, guard: CacheGuard, count: int) -> list[Any]:
    """So many children, by `multiprocessing`; their times, or what went wrong."""
    context: Any = multiprocessing.get_context(method)
    outcomes: list[Any] = []
    for number in range(count):
        answers = context.SimpleQueue()
        inherits = guard if method == "fork" else None
        child = context.Process(target=_process, args=(url, f"{method}:{number}", answers, inherits))
        child.start()
        outcomes.append(answers.get())
        child.join(10)
        if child.exitcode != 0:
            outcomes.append(f"a child ended with {child.exitcode}")
    return outcomes


def locks_of(root: object) -> Iterator[Any]:
    """Every lock that hangs on *root* and is the library's: in its objects and in what they hold."""
    kinds = type(threading.Lock()), type(threading.RLock())
    seen: set[int] = set()
    left: list[Any] = [root]
    while left:
        each = left.pop()
        if id(each) in seen or isinstance(each, threading.Thread | ModuleType | type):
            continue
        seen.add(id(each))
        if isinstance(each, kinds):
            yield each
        elif isinstance(each, ReferenceType):
            left.append(each())
        elif isinstance(each, threading.Condition | threading.Event):
            left += list(vars(each).values())
        elif isinstance(each, FunctionType):
            left += [cell.cell_contents for cell in each.__closure__ or () if cell != type(cell)()]
        elif type(each).__module__.startswith("cacheguard") or isinstance(each, CONTAINERS):
            left += gc.get_referents(each)


def main() -> None:
    """``url outbox children``: fork so many times, in the middle of everything; print what came of it."""
    url, outbox, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
    guard = CacheGuard(url, outbox=outbox)
    guard.set("common", "value of common")
    parent = Parent(guard)
    parent.start()
    print("running", flush=True)  # noqa: T201
    sys.stdin.readline()
    times: list[float] = []
    for number in range(count):
        if number % 10 == 9:
            times.append(outcome_of(*forked(partial(with_a_child_of_its_own, guard, url, f"child:{number}"))))
        else:
            times.append(outcome_of(*forked(partial(use, guard, url, f"child:{number}"))))
    other = {method: processes(method, url, guard, max(1, count // 20)) for method in ("fork", "forkserver", "spawn")}
    before = parent.reads
    time.sleep(0.2)
    parent.stop()
    stats = guard.stats()
    guard.close()
    said = {
        "times": times,
        "processes": other,
        "problems": parent.problems[:5],
        "reads": parent.reads,
        "reads_after": parent.reads - before,
        "redis_errors": stats.redis_errors,
        "bus_gaps": stats.bus_gaps,
    }
    print(json.dumps(said), flush=True)  # noqa: T201
