"""Signal handlers and finalizers that use a guard in the middle of what their own thread does with it."""

from __future__ import annotations

import gc
import itertools
import random
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest

from cacheguard import CacheGuard
from cacheguard.errors import ReentrantLoad
from tests.support.forking import locks_of


class Interruptions:
    """Uses of a guard, a few of its keys all the time; each answer names its key."""

    def __init__(self, guard: CacheGuard) -> None:
        self.guard = guard
        self.done = 0
        self.wrong: list[object] = []
        self._inside = 0
        self._draws = random.Random(5)

        @guard.cached("row:{number}", ttl="30ms")
        def row(number: int) -> str:
            return f"row {number}"

        @guard.cached("old:{number}", ttl="5ms", rebuild="logical")
        def old(number: int) -> str:
            return f"old {number}"

        self.row, self.old = row, old

    def use(self) -> None:
        """One thing, at random."""
        number = self._draws.randrange(4)
        kind = self._draws.randrange(7)
        try:
            if kind == 0:
                self.guard.invalidate(f"row:{number}")
            elif kind == 1:
                with self.guard.writing(f"row:{number}"):
                    pass
            elif kind == 2:
                self._compare(self.old(number), f"old {number}")
            elif kind == 3:
                self._compare(self.row.many([number, number + 1]), [f"row {number}", f"row {number + 1}"])
            elif kind == 4:
                self.guard.invalidate_tags("red")
            else:
                self._compare(self.row(number), f"row {number}")
        except ReentrantLoad:
            pass  # it has interrupted the loader of that very key
        self.done += 1

    def _compare(self, got: object, expected: object) -> None:
        if got != expected:
            self.wrong.append((got, expected))

    def interrupt(self, *, use: Callable[[], None]) -> None:
        """What a handler does; not inside another one, or there would be no end."""
        if self._inside:
            return
        self._inside += 1
        try:
            use()
        finally:
            self._inside -= 1

    def finalize(self) -> None:
        """What a finalizer does: anything, but before 3.12 no load.

        There, garbage is collected while a context variable is set, and to set another one then ends the interpreter.
        """
        if sys.version_info >= (3, 12):
            self.use()
            return
        number = self._draws.randrange(4)
        if self._draws.random() < 0.5:
            assert self.guard.get(f"row:{number}") in {None, f"row {number}"}
        else:
            self.guard.invalidate(f"row:{number}")
        self.done += 1


@pytest.fixture(params=["redis", "memory"])
def interruptions(request: pytest.FixtureRequest, redis_url: str) -> Iterator[Interruptions]:
    with CacheGuard(redis_url if request.param == "redis" else "memory://", operation_timeout=2) as guard:
        yield Interruptions(guard)


@pytest.fixture
def alarm() -> Iterator[Callable[[Callable[..., Any]], None]]:
    def ring(handler: Callable[..., Any]) -> None:
        signal.signal(signal.SIGALRM, handler)
        signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0007)

    before = signal.getsignal(signal.SIGALRM)
    yield ring
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


def run_interrupted(interruptions: Interruptions, ring: Callable[[Callable[..., Any]], None], number: int) -> float:
    """Use the guard until it has been interrupted so many times; the longest use."""
    handled = longest = 0

    def handle(*_: object) -> None:
        nonlocal handled
        handled += 1
        interruptions.interrupt(use=interruptions.use)

    ring(handle)
    until = time.monotonic() + 50
    while handled < number:
        began = time.monotonic()
        assert began < until, f"it was interrupted {handled} times only"
        interruptions.use()
        longest = max(longest, time.monotonic() - began)  # type: ignore[assignment]
    signal.setitimer(signal.ITIMER_REAL, 0)
    assert interruptions.wrong == []
    assert interruptions.guard.stats().redis_errors == 0
    print(f"{handled} interruptions, {interruptions.done} uses, the longest {longest * 1000:.0f} ms")  # noqa: T201
    return longest


@pytest.mark.timeout(60, method="thread")  # the alarm is ours
def test_a_signal_handler_may_use_the_guard_in_the_middle_of_anything(
    interruptions: Interruptions, alarm: Callable[[Callable[..., Any]], None]
) -> None:
    run_interrupted(interruptions, alarm, 1000)


@pytest.mark.chaos
@pytest.mark.timeout(300, method="thread")
def test_ten_thousand_signals_in_the_middle_of_anything(
    interruptions: Interruptions, alarm: Callable[[Callable[..., Any]], None]
) -> None:
    run_interrupted(interruptions, alarm, 10_000)


class Cyclic:
    """Garbage that uses a guard when it is collected."""

    def __init__(self, use: Callable[[], None]) -> None:
        self.me, self.use = self, use

    def __del__(self) -> None:
        self.use()


def test_a_finalizer_may_use_the_guard_in_the_middle_of_anything(interruptions: Interruptions) -> None:
    before = gc.get_threshold()
    gc.set_threshold(25, 2, 2)  # collect in the middle of everything
    try:
        for number in itertools.count():
            Cyclic(partial(interruptions.interrupt, use=interruptions.finalize))
            interruptions.use()
            if number > 400:
                break
    finally:
        gc.set_threshold(*before)
    gc.collect()
    assert interruptions.wrong == []
    assert interruptions.done >= 800
    assert interruptions.guard.stats().redis_errors == 0


def test_threads_that_write_at_the_same_time_do_not_stumble_over_each_other(redis_url: str) -> None:
    """Each write leaves a mark, and from the 4,097th on the oldest goes: in one step."""
    problems: list[BaseException] = []
    interval = sys.getswitchinterval()
    with CacheGuard(redis_url) as guard:
        bus: Any = guard._hub.bus  # noqa: SLF001 - to write so often takes too long

        def write() -> None:
            try:
                for _ in range(20_000):
                    bus.begin()
            except BaseException as error:  # noqa: BLE001 - it is reported
                problems.append(error)

        sys.setswitchinterval(1e-6)
        try:
            writers = [threading.Thread(target=write) for _ in range(4)]
            for each in writers:
                each.start()
            for each in writers:
                each.join()
        finally:
            sys.setswitchinterval(interval)
    assert problems == []


def test_whoever_holds_every_lock_there_is_may_go_on_in_the_same_thread(interruptions: Interruptions) -> None:
    """A handler comes in while its thread holds any of them."""
    for _ in range(50):
        interruptions.use()
    done = threading.Event()

    def hold_and_use() -> None:
        held = [lock for lock in locks_of((interruptions.guard, interruptions.row)) if lock.acquire(timeout=0.05)]
        assert len(held) >= 5
        for _ in range(50):
            interruptions.use()
        for lock in held:
            lock.release()
        done.set()

    threading.Thread(target=hold_and_use, daemon=True).start()
    assert done.wait(10), "it waits for itself"
    assert interruptions.wrong == []
