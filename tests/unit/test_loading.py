from __future__ import annotations

from typing import Any

import pytest

from cacheguard.engine.ask import NO_SCOPE
from cacheguard.engine.looking import look
from cacheguard.errors import CodecError, LoadTimeout, Overloaded, Refused
from cacheguard.ports import Call, Reply
from cacheguard.protocol import calls
from cacheguard.protocol.entry import Stored
from cacheguard.protocol.envelope import Kind, Oversize
from cacheguard.runtime.bulkhead import FairBulkhead
from tests.support.desk import KEY, Desk
from tests.support.stepped import Fault
from tests.support.stepper import Cancelled


def narrow(desk: Desk, places: int = 1, patience: float = 2.0) -> FairBulkhead:
    """Leave room for few loads."""
    bulkhead = desk.process.shared.bulkhead = FairBulkhead(places, patience, 1000)
    return bulkhead


def test_loads_beyond_the_bulkhead_wait_in_line() -> None:
    desk = Desk(threads=False)
    narrow(desk)
    loads = [desk.loader(number, seconds=1) for number in range(2)]
    names = desk.begin(*(desk.engine.read(desk.ask(load, str(key))) for key, load in enumerate(loads)))
    began = desk.now
    desk.go()
    assert [desk.result(name) for name in names] == [0, 1]
    assert desk.now - began == pytest.approx(2)


def test_a_load_for_which_no_place_comes_free_gives_its_lease_back() -> None:
    desk = Desk(threads=False)
    narrow(desk)
    first, second = desk.begin(
        desk.engine.read(desk.ask(desk.loader(1, seconds=9), "a")), desk.engine.read(desk.ask(desk.loader(2), "b"))
    )
    desk.go()
    assert desk.result(first) == 1
    with pytest.raises(Overloaded, match="no permit came free"):
        desk.result(second)
    assert desk.events.overloads == 1
    assert desk.server.holders == {}


def test_a_lease_is_renewed_while_its_load_waits_in_line() -> None:
    desk = Desk(threads=False)
    narrow(desk, patience=60.0)
    desk.begin(desk.engine.read(desk.ask(desk.loader(1, seconds=20), "a")))
    desk.settle()
    (second,) = desk.begin(desk.engine.read(desk.ask(desk.loader(2), "b")))
    desk.go()
    assert desk.result(second) == 2
    assert desk.server.value("b", stale=False) == 2


def test_a_load_that_is_cancelled_in_line_gives_its_lease_back() -> None:
    desk = Desk(threads=False)
    narrow(desk, patience=60.0)
    desk.begin(desk.engine.read(desk.ask(desk.loader(1, seconds=9), "a")))
    desk.settle()
    waiting = desk.loader(2)
    (second,) = desk.begin(desk.engine.read(desk.ask(waiting, "b")))
    desk.settle()
    assert desk.server.grants == 2
    desk.cancel(f"{second}.flight1", when=lambda: True)
    desk.go()
    assert isinstance(desk.stepper.results[f"{second}.flight1"], Cancelled)
    assert desk.result(second) == 2
    assert waiting.runs == 1
    assert desk.server.holders == {}


@pytest.mark.parametrize("places", [1, 2])
def test_loads_inside_a_load_take_turns_with_its_place_or_find_one_of_their_own(places: int) -> None:
    desk = Desk(threads=False)
    bulkhead = narrow(desk, places)
    inner = [desk.loader(number, seconds=1) for number in range(2)]

    async def both() -> list[Any]:
        stepper = desk.stepper
        results = [
            stepper.spawn("inner", desk.engine.read(desk.ask(load, f"inner {number}"))).name
            for number, load in enumerate(inner)
        ]
        await desk.process.pause("gathers", ready=lambda: all(each in stepper.results for each in results))
        return [desk.result(each) for each in results]

    began = desk.now
    assert desk.read(desk.loader(both)) == [0, 1]
    assert desk.now - began == pytest.approx(2 if places == 1 else 1)
    assert bulkhead.try_enter()


def test_a_load_inside_a_load_does_not_wait_for_ever() -> None:
    desk = Desk(threads=False)
    narrow(desk, patience=1.0)
    slow, other = desk.loader(1, seconds=9), desk.loader(2)

    async def both() -> Any:
        stepper = desk.stepper
        stepper.spawn("inner", desk.engine.read(desk.ask(slow, "slow")))
        await desk.process.pause("waits for it", ready=lambda: slow.runs > 0)
        return await desk.engine.read(desk.ask(other, "other"))

    with pytest.raises(Overloaded, match="none came free within 1 s"):
        desk.read(desk.loader(both))
    assert other.runs == 0


def test_a_load_that_is_cancelled_gives_its_lease_back() -> None:
    desk = Desk(threads=False)
    load = desk.loader(1, seconds=9)
    (name,) = desk.begin(desk.engine.read(desk.ask(load)))
    desk.cancel(f"{name}.flight1", when=lambda: load.runs == 1)
    desk.go()
    assert desk.result(name) == 1
    assert load.runs == 2
    assert desk.server.holders == {}


def test_a_load_that_fails_after_its_time_tells_nobody_else() -> None:
    desk = Desk(options={"hard_timeout": 10})
    with pytest.raises(LoadTimeout):
        desk.read(desk.loader(ValueError("late"), seconds=60))
    assert (desk.events.load_timeouts, desk.events.load_failures) == (1, 1)
    assert desk.read(desk.loader(1)) == 1


def test_a_failed_load_is_told_although_its_lease_cannot_be_given_back() -> None:
    desk = Desk()
    desk.faults["release"] = Fault.UNHEARD
    with pytest.raises(ValueError, match="broken"):
        desk.read(desk.loader(ValueError("broken")))
    assert list(desk.server.holders) == [KEY]


def test_a_load_without_a_lease_may_fail_too() -> None:
    desk = Desk()
    desk.faults["lease"] = Fault.UNHEARD
    with pytest.raises(ValueError, match="broken"):
        desk.read(desk.loader(ValueError("broken")))
    assert desk.engine.flights == {}


def test_whatever_goes_wrong_nobody_is_left_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    desk = Desk()

    async def explode(*_: object, **__: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(desk.engine.remote, "lease", explode)
    with pytest.raises(RuntimeError, match="a bug"):
        desk.read(desk.loader(1))
    assert desk.engine.flights == {}


def test_a_value_that_is_too_large_is_returned_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    desk = Desk()

    def refuse(*_: object) -> None:
        raise Oversize("9 MB")

    monkeypatch.setattr(desk.engine.remote, "pack", refuse)
    assert desk.read(desk.loader(7)) == 7
    assert desk.events.oversize == 1


def test_a_failure_that_cannot_be_described_is_found_out_by_each_for_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    desk = Desk()
    packing: Any = desk.engine.remote.of("")._packing  # noqa: SLF001 - the seam has no other name

    def refuse(*_: object) -> None:
        raise CodecError("no bytes for that")

    monkeypatch.setattr(packing, "pack", refuse)
    with pytest.raises(ValueError, match="broken"):
        desk.read(desk.loader(ValueError("broken")))
    assert desk.server.holders == {}


def test_leases_whose_reply_was_lost_are_given_back_and_not_too_many_remembered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("cacheguard.delivery.outbox.MOST_ORPHANS", 2)
    desk = Desk()
    desk.faults["lease"] = Fault.UNANSWERED
    desk.run(desk.batch(desk.loader(dict), "a", "b", "c"))
    assert list(desk.server.holders) == ["a", "b", "c"]
    desk.faults.clear()
    desk.read(desk.loader(1), "d", l1=False)
    assert list(desk.server.holders) == ["a"]


def test_a_time_that_is_refused_is_an_outage(monkeypatch: pytest.MonkeyPatch) -> None:
    desk = Desk()
    stored: Any = Stored(Kind.VALUE, 1, 300.0, 0.0, ())
    desk.server.answer(calls.store(KEY, stored, fresh=300.0, stale=0.0, channel="cg:bus", echo="other.1"))
    honest = desk.server.answer

    def refuse(call: Call) -> Reply:
        return Refused("ERR no") if isinstance(call, tuple) and call[0] == "TIME" else honest(call)

    monkeypatch.setattr(desk.server, "answer", refuse)
    with pytest.raises(Refused, match="ERR no"):
        desk.run(desk.engine.remote.read(KEY, None, NO_SCOPE, ()))


def test_looking_at_something_foreign_says_that_it_cannot_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    desk = Desk()
    honest = desk.server.answer

    def answer(call: Call) -> Reply:  # as one server of several does: each key is asked for by itself
        return [Refused("WRONGTYPE not a string")] if isinstance(call, tuple) and call[0] == "MGET" else honest(call)

    monkeypatch.setattr(desk.server, "answer", answer)
    assert desk.run(look(desk.engine, KEY, NO_SCOPE)).stored is None


def test_a_load_that_is_interrupted_before_it_is_watched_leaves_nothing_behind(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Interrupted(BaseException):
        """What a timeout of the caller's looks like, or a signal."""

    def interrupt(*_: object) -> None:
        raise Interrupted

    desk = Desk()
    bulkhead = narrow(desk)
    with monkeypatch.context() as patch:
        patch.setattr(desk.engine.runtime, "watch", interrupt)
        with pytest.raises(Interrupted):
            desk.read(desk.loader(1))
    assert desk.server.holders == {}
    assert bulkhead.try_enter()
    bulkhead.leave()
    assert desk.read(desk.loader(2)) == 2
