"""A process that forks in the middle of everything: the child starts clean, the parent notices nothing."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import redis

from cacheguard import Breaker, CacheGuard
from tests.support.fleet import Process
from tests.support.forking import PROMISE, ask, forked, locks_of, outcome_of, slow, use
from tests.support.loader import Loader
from tests.support.redis_server import RedisServer

FORKING = "from tests.support.forking import main; main()"
FAMILY = re.compile(r"parent|(?:child|fork|forkserver|spawn):\d+(?::grandchild)?")  # whose key it is


class Wiretap(threading.Thread):
    """Who sends what, as the server sees it."""

    def __init__(self, port: int) -> None:
        super().__init__(daemon=True)
        self.senders: dict[str, set[str]] = {}  # by the kind of a key: the connections that named one
        self._greeted: Counter[str] = Counter()  # by address, for a system gives a port to one process after another
        self._client = redis.Redis(port=port)
        self._monitor: Any = self._client.monitor()  # type: ignore[no-untyped-call]
        self._monitor.__enter__()

    def run(self) -> None:
        try:
            while True:
                command: Any = self._monitor.next_command()
                address = f"{command['client_address']}:{command['client_port']}"
                if command["client_type"] == "lua":
                    continue
                if command["command"].upper().startswith("INFO SERVER"):  # the first word on every new connection
                    self._greeted[address] += 1
                for name in FAMILY.findall(command["command"]):
                    self.senders.setdefault(name, set()).add(f"{address} #{self._greeted[address]}")
        except (redis.RedisError, OSError, ValueError):
            return

    def stop(self) -> None:
        self._monitor.connection.disconnect()
        self.join(10)
        self._client.close()


@pytest.fixture
def guard(redis_url: str, tmp_path: Path) -> Iterator[CacheGuard]:
    with CacheGuard(redis_url, outbox=tmp_path / "outbox.db") as guard:
        guard.set("common", "value of common")
        guard.bloom("rows", capacity=1000, error_rate=0.01).rebuild(range(100))
        assert ask(guard, "warm") == "value of warm"
        yield guard


def fork_often(redis_server: RedisServer, redis_url: str, tmp_path: Path, count: int) -> None:
    tap = Wiretap(redis_server.port)
    parent = Process(FORKING, redis_url, tmp_path / "outbox.db", count)
    assert parent.hear() == "running"
    tap.start()
    parent.tell()
    said = parent.outcome(timeout=300)
    tap.stop()
    print(  # noqa: T201
        f"{count} forks: slowest child {max(said['times']):.3f} s, median {sorted(said['times'])[count // 2]:.3f} s; "
        f"processes {said['processes']}; the parent read {said['reads']} times, problems {said['problems']}, "
        f"errors {said['redis_errors']}, gaps {said['bus_gaps']}"
    )
    assert said["problems"] == []
    assert (said["redis_errors"], said["bus_gaps"]) == (0, 0)
    assert said["reads_after"] > 0
    assert max(said["times"]) <= PROMISE
    for outcomes in said["processes"].values():
        assert [outcome for outcome in outcomes if not isinstance(outcome, float) or outcome > PROMISE] == []
    families = list(tap.senders.items())
    assert len(families) > count
    for at, (name, senders) in enumerate(families):
        for other, theirs in families[at + 1 :]:
            assert not senders & theirs, f"{name} and {other} have used one connection"


@pytest.mark.slow
def test_children_forked_in_the_middle_of_everything_start_clean_and_the_parent_goes_on(
    redis_server: RedisServer, redis_url: str, tmp_path: Path
) -> None:
    fork_often(redis_server, redis_url, tmp_path, 2)


@pytest.mark.chaos
def test_a_hundred_forks_in_a_row(redis_server: RedisServer, redis_url: str, tmp_path: Path) -> None:
    fork_often(redis_server, redis_url, tmp_path, 100)


@pytest.mark.parametrize("kind", ["redis", "memory"])
def test_a_child_is_held_up_by_no_lock_that_a_thread_of_its_parent_held(
    redis_url: str, kind: str, tmp_path: Path
) -> None:
    url = redis_url if kind == "redis" else "memory://"
    with CacheGuard(url, outbox=tmp_path / "outbox.db") as guard:
        guard.set("common", "value of common")
        users = guard.bloom("rows", capacity=1000, error_rate=0.01)
        users.rebuild(range(100))
        row = guard.cached("row:{number}", bloom=users, breaker=Breaker("database"))(
            lambda number: slow(f"row:{number}")
        )
        writing = guard.writing("written")
        with writing:
            pass
        assert row(1) == "value of row:1"
        use(guard, url, "before")
        held: list[Any] = []
        ready, over = threading.Event(), threading.Event()

        def hold() -> None:
            held.extend(lock for lock in locks_of((guard, row, writing)) if lock.acquire(timeout=0.05))
            ready.set()
            over.wait(20)
            for lock in held:
                lock.release()

        holder = threading.Thread(target=hold)
        holder.start()
        ready.wait(20)

        def child() -> float:
            began = time.monotonic()
            with writing:
                pass
            assert row(2) == "value of row:2"
            used = use(guard, url, "child")
            guard.close()
            return max(used, time.monotonic() - began)

        try:
            seconds = outcome_of(*forked(child), patience=5)
        finally:
            over.set()
            holder.join(10)
        assert len(held) >= (12 if kind == "redis" else 5)
        assert seconds <= PROMISE


@pytest.mark.parametrize("kind", ["redis", "memory"])
def test_a_child_does_not_wait_for_a_flight_of_its_parent(redis_url: str, kind: str) -> None:
    loader = Loader("loaded")
    loader.stand_still()
    with CacheGuard(redis_url if kind == "redis" else "memory://") as guard:
        ask(guard, "warm")
        leader = threading.Thread(target=guard.get_or_set, args=("row", loader))
        leader.start()
        loader.started.wait(10)

        def child() -> list[Any]:
            began = time.monotonic()
            # What stands in Redis is the parent's lease: any process waits for that.
            patience: Any = {"wait_timeout": "100ms"} if kind == "redis" else {}
            value = guard.get_or_set("row", lambda: "the child's own", **patience)
            return [value, time.monotonic() - began]

        try:
            value, seconds = outcome_of(*forked(child), patience=10)
        finally:
            loader.go_on()
            leader.join(10)
        assert value == "the child's own"
        assert seconds <= PROMISE
        assert guard.get("row") == "loaded"


def test_a_child_does_not_wait_for_a_look_of_its_parent(redis_server: RedisServer, redis_url: str) -> None:
    with CacheGuard(redis_url, operation_timeout=5) as guard:
        ask(guard, "warm")
        looks = guard._hub.blocking().looks  # noqa: SLF001 - who has asked Redis, and not been answered yet
        with CacheGuard(redis_url) as other:
            other.set("row", "stored")
        redis_server.freeze()
        reader = threading.Thread(target=guard.get_or_set, args=("row", lambda: "loaded"))
        reader.start()
        until = time.monotonic() + 4
        while not looks and time.monotonic() < until:
            time.sleep(0.001)
        child = forked(lambda: [list(looks), guard.get_or_set("row", lambda: "loaded")])
        redis_server.thaw()
        reader.join(10)
        assert outcome_of(*child, patience=10) == [[], "stored"]


def test_a_child_forked_in_the_middle_of_a_load_gets_what_the_parent_loads(redis_url: str) -> None:
    loader = Loader("loaded")
    loader.stand_still()
    with CacheGuard(redis_url) as guard:
        leader = threading.Thread(target=guard.get_or_set, args=("row", loader))
        leader.start()
        loader.started.wait(10)
        child = forked(lambda: guard.get_or_set("row", lambda: "the child's own"))
        time.sleep(0.1)
        loader.go_on()
        leader.join(10)
        assert outcome_of(*child) == "loaded"


def test_a_loader_may_fork_and_the_child_may_load(redis_url: str) -> None:
    with CacheGuard(redis_url, max_loads=1, load_wait="500ms") as guard:
        ask(guard, "warm")
        over = threading.Event()

        def hold() -> None:
            with guard._hub.local.lock:  # noqa: SLF001 - it guards who uses the place of the load around
                over.wait(10)

        def load() -> Any:
            holder = threading.Thread(target=hold)
            holder.start()
            child = forked(lambda: ask(guard, "inner"))
            over.set()
            holder.join(10)
            return outcome_of(*child)

        assert guard.get_or_set("outer", load) == "value of inner"
        assert guard.get_or_set("another", lambda: 1) == 1


def test_a_child_that_leaves_a_block_of_its_parent_ends_no_fence(redis_url: str) -> None:
    with CacheGuard(redis_url) as guard:
        block = guard.writing("row")
        block.__enter__()

        def leave() -> None:
            block.__exit__(None, None, None)

        outcome_of(*forked(leave))
        assert guard.get_or_set("row", lambda: "old") == "old"
        assert guard.inspect("row").state == "missing"
        block.__exit__(None, None, None)
        assert guard.get_or_set("row", lambda: "new") == "new"
        assert guard.inspect("row").state == "fresh"


def test_a_fork_in_a_running_event_loop_leaves_both_alone(guard: CacheGuard, redis_url: str) -> None:
    async def main() -> list[float]:
        loads = [guard.aget_or_set(f"slow:{number}", partial(asyncio.sleep, 0.3, number)) for number in range(9)]
        others = [asyncio.ensure_future(load) for load in loads]
        await asyncio.sleep(0.05)
        children = [forked(partial(use, guard, redis_url, f"child:{number}")) for number in range(3)]
        assert await asyncio.gather(*others) == list(range(9))
        return [await asyncio.to_thread(outcome_of, *child) for child in children]

    assert max(asyncio.run(main())) <= PROMISE + 0.5  # three of them at once


def test_a_child_that_ends_like_any_program_is_silent(redis_url: str) -> None:
    script = """
import asyncio, os, sys, threading
from cacheguard import Breaker, CacheGuard

guard = CacheGuard(sys.argv[1])

async def main():
    assert await guard.aget_or_set("k", lambda: 1) == 1
    child = os.fork()
    if child == 0:
        assert guard.get_or_set("k", lambda: 2) == 1
        sys.exit(3)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))

asyncio.run(main())
guard.close()
"""
    command = [sys.executable, "-W", "error", "-c", script, redis_url]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=30)
    assert done.stderr == ""
    assert done.stdout.split()[-1] == "3"


def test_every_child_draws_its_own_lots(guard: CacheGuard) -> None:
    def draws() -> list[float]:
        runtime = guard._hub.blocking().runtime  # noqa: SLF001 - jitter shows nothing but this
        return [runtime.random() for _ in range(3)]

    children = [outcome_of(*forked(draws)) for _ in range(3)]
    assert len({tuple(each) for each in [*children, draws()]}) == 4


def test_what_a_parent_owes_is_delivered_by_the_parent_and_by_nobody_else(
    redis_server: RedisServer, guard: CacheGuard
) -> None:
    guard.set("row", "old")
    redis_server.freeze()
    guard.invalidate("row")
    assert guard.stats().invalidations_queued == 1
    child = forked(lambda: guard.stats().invalidations_queued)
    queued = outcome_of(*child)
    redis_server.thaw()
    assert queued in {0, 1}
    assert guard.get("row") is None
    deadline = time.monotonic() + 5  # where the breaker has opened, the prober delivers it
    while guard.stats().invalidations_queued and time.monotonic() < deadline:
        time.sleep(0.01)
    assert guard.stats().invalidations_queued == 0


def test_writes_to_the_outbox_file_go_on_in_parent_and_child(redis_server: RedisServer, guard: CacheGuard) -> None:
    redis_server.freeze()
    over = threading.Event()

    def owe(name: str, number: int) -> None:
        for each in range(number):
            guard.invalidate(f"{name}:{each}")
            if over.is_set():
                return

    writers = [threading.Thread(target=owe, args=(f"thread:{n}", 1000)) for n in range(4)]
    for each in writers:
        each.start()
    try:
        for number in range(5):

            def child(number: int = number) -> float:
                began = time.monotonic()
                owe(f"child:{number}", 1)
                return time.monotonic() - began

            assert outcome_of(*forked(child), patience=10) <= PROMISE + 1
    finally:
        over.set()
        for each in writers:
            each.join(10)
        redis_server.thaw()
