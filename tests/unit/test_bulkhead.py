from __future__ import annotations

from typing import Any

import pytest

from cacheguard.errors import Overloaded
from cacheguard.runtime import run_now
from cacheguard.runtime.bulkhead import FairBulkhead


class Turn:
    """A signal; while somebody waits for it, *meanwhile* happens."""

    def __init__(self, meanwhile: Any) -> None:
        self.up = False
        self._meanwhile = meanwhile

    def set(self) -> None:
        self.up = True

    async def wait(self, timeout: float | None) -> bool:
        self._meanwhile()
        return self.up


class Late(Turn):
    """Its time is over just as it comes up."""

    async def wait(self, timeout: float | None) -> bool:
        await super().wait(timeout)
        return False


def runtime(turn: Turn | None = None) -> Any:
    class Runtime:
        def signal(self) -> Turn:
            assert turn is not None
            return turn

    return Runtime()


def interrupted() -> None:
    raise KeyboardInterrupt


def test_as_many_enter_as_there_are_places() -> None:
    bulkhead = FairBulkhead(2, 1.0, 1000)
    run_now(bulkhead.enter(runtime()))
    assert bulkhead.try_enter()
    assert not bulkhead.try_enter()
    bulkhead.leave()
    assert bulkhead.try_enter()


def test_who_waits_in_line_gets_the_place_that_comes_free() -> None:
    bulkhead = FairBulkhead(1, 1.0, 1000)
    run_now(bulkhead.enter(runtime()))
    run_now(bulkhead.enter(runtime(Turn(bulkhead.leave))))
    assert not bulkhead.try_enter()
    bulkhead.leave()
    assert bulkhead.try_enter()


def test_who_waits_too_long_is_told_so() -> None:
    bulkhead = FairBulkhead(1, 0.5, 1000)
    run_now(bulkhead.enter(runtime()))
    with pytest.raises(Overloaded, match=r"1 loads are running and no permit came free within 0\.5 s"):
        run_now(bulkhead.enter(runtime(Turn(lambda: None))))
    bulkhead.leave()
    assert bulkhead.try_enter()


def test_a_place_that_came_free_in_the_last_moment_is_kept() -> None:
    bulkhead = FairBulkhead(1, 0.5, 1000)
    run_now(bulkhead.enter(runtime()))
    run_now(bulkhead.enter(runtime(Late(bulkhead.leave))))
    assert not bulkhead.try_enter()


def test_a_place_given_to_one_who_has_gone_is_passed_on() -> None:
    bulkhead = FairBulkhead(1, 0.5, 1000)
    run_now(bulkhead.enter(runtime()))

    def leave_and_go() -> None:
        bulkhead.leave()
        interrupted()

    with pytest.raises(KeyboardInterrupt):
        run_now(bulkhead.enter(runtime(Turn(leave_and_go))))
    assert bulkhead.try_enter()
    with pytest.raises(KeyboardInterrupt):
        run_now(bulkhead.enter(runtime(Turn(interrupted))))
    bulkhead.leave()
    assert bulkhead.try_enter()


def test_a_forked_child_starts_with_all_places() -> None:
    bulkhead = FairBulkhead(1, 0.5, 1000)
    run_now(bulkhead.enter(runtime()))
    bulkhead.reset()
    assert bulkhead.try_enter()
