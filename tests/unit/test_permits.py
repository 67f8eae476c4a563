from __future__ import annotations

from contextlib import nullcontext

import pytest

from cacheguard.engine.permits import Chain, Permit
from cacheguard.runtime import run_now
from tests.support.turn import Turn


def test_a_permit_is_lent_to_one_at_a_time_and_given_back_in_the_end() -> None:
    left: list[bool] = []
    permit = Permit(lambda: left.append(True), nullcontext())
    assert permit.borrow()
    assert not permit.borrow()
    permit.end()
    assert left == []
    permit.give_back()
    assert left == [True]
    assert not permit.borrow()


def test_a_permit_that_nobody_uses_is_given_back_at_once() -> None:
    left: list[bool] = []
    Permit(lambda: left.append(True), nullcontext()).end()
    assert left == [True]


def test_who_waits_for_a_permit_gets_it_in_turn() -> None:
    permit = Permit(lambda: None, nullcontext())
    assert permit.borrow()
    turn = Turn()

    class Passing(Turn):
        async def wait(self, timeout: float | None) -> bool:
            permit.give_back()
            return self.up

    assert run_now(permit.wait(Passing(), 1.0))
    assert not permit.borrow()
    assert not run_now(permit.wait(turn, 1.0))  # nobody gave it back in time
    permit.give_back()
    assert permit.borrow()


def test_a_turn_that_came_while_its_owner_gave_up_is_passed_on_or_used() -> None:
    permit = Permit(lambda: None, nullcontext())
    assert permit.borrow()

    class Late(Turn):
        async def wait(self, timeout: float | None) -> bool:
            permit.give_back()
            return False

    assert run_now(permit.wait(Late(), 1.0))

    class Cancelled(Turn):
        async def wait(self, timeout: float | None) -> bool:
            permit.give_back()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_now(permit.wait(Cancelled(), 1.0))
    assert permit.borrow()
    with pytest.raises(KeyboardInterrupt):
        run_now(permit.wait(Turn(KeyboardInterrupt()), 1.0))
    permit.give_back()
    assert permit.borrow()


def test_a_permit_that_is_free_by_now_is_not_waited_for() -> None:
    permit = Permit(lambda: None, nullcontext())
    assert run_now(permit.wait(Turn(KeyboardInterrupt()), 1.0))
    assert not permit.borrow()


def test_a_chain_leaves_out_loads_that_are_over() -> None:
    ended = Chain(("a",), None, None)
    ended.over = True
    assert Chain(("b",), None, ended).around is None


def test_a_chain_knows_the_keys_that_are_loaded_around_it() -> None:
    outer = Chain(("a",), None, None)
    inner = Chain(("b",), None, outer)
    assert inner.waits_for("a")
    assert inner.waits_for("b")
    assert not inner.waits_for("c")
    outer.over = True
    assert not inner.waits_for("a")
