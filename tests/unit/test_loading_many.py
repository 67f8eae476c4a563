from __future__ import annotations

from typing import Any

import pytest

from cacheguard.errors import CacheGuardError, CodecError, ReentrantLoad
from cacheguard.protocol import calls
from cacheguard.protocol.entry import Stored
from cacheguard.protocol.envelope import Kind
from tests.support.desk import Desk
from tests.support.stepped import Fault

BUS: dict[str, Any] = {"channel": "cg:bus", "echo": "other.1"}


def rows(*names: str) -> dict[str, str]:
    return {name: f"row {name}" for name in names}


def test_missing_keys_are_loaded_in_one_call_and_filled() -> None:
    desk = Desk(options={"l1": False})
    desk.read(desk.loader("cached"), "a")
    asked: list[list[str]] = []

    async def load(names: list[str]) -> dict[str, str]:
        asked.append(names)
        return rows(*names)

    assert desk.run(desk.batch(load, "a", "b", "c")) == {"a": "cached", "b": "row b", "c": "row c"}
    assert desk.run(desk.batch(load, "b", "c")) == rows("b", "c")
    assert asked == [["b", "c"]]
    assert desk.events.fills == 3


def test_what_the_loader_leaves_out_is_an_absence() -> None:
    desk = Desk()
    load = desk.loader(lambda: {"a": 1})
    assert desk.run(desk.batch(load, "a", "b")) == {"a": 1, "b": None}
    assert desk.run(desk.batch(load, "a", "b")) == {"a": 1, "b": None}
    assert load.runs == 1


def test_an_absence_that_is_not_to_be_cached_gives_its_lease_back() -> None:
    desk = Desk(options={"null_ttl": None})
    load = desk.loader(lambda: {"a": 1})
    assert desk.run(desk.batch(load, "a", "b")) == {"a": 1, "b": None}
    assert desk.server.holders == {}
    assert desk.run(desk.batch(load, "a", "b")) == {"a": 1, "b": None}
    assert load.runs == 2


def test_a_value_that_cannot_be_stored_keeps_no_lease(monkeypatch: pytest.MonkeyPatch) -> None:
    desk = Desk()

    def refuse(*_: object) -> None:
        raise CodecError("no bytes for that")

    monkeypatch.setattr(desk.engine.remote, "pack", refuse)
    assert desk.run(desk.batch(desk.loader(lambda: {"a": 1}), "a")) == {"a": 1}
    assert desk.server.holders == {}


def test_batches_that_overlap_join_each_others_flights() -> None:
    desk = Desk(threads=False)
    asked: list[list[str]] = []

    async def load(names: list[str]) -> dict[str, str]:
        asked.append(names)
        await desk.loader(None, seconds=1)()
        return rows(*names)

    first, second = desk.begin(desk.batch(load, "a", "b"), desk.batch(load, "b", "c"))
    desk.go()
    assert desk.result(first) == rows("a", "b")
    assert desk.result(second) == rows("b", "c")
    assert asked == [["a", "b"], ["c"]]


def test_a_batch_that_waits_too_long_for_another_flight_goes_its_own_way() -> None:
    desk = Desk(threads=False, options={"wait_timeout": 1})
    slow = desk.loader(lambda: {"a": "slow"}, seconds=9)
    first, second = desk.begin(desk.batch(slow, "a"), desk.batch(slow, "a"))
    desk.go()
    assert desk.result(first) == {"a": "slow"}
    assert desk.result(second) == {"a": "alone a"}


def test_a_key_that_another_process_loads_is_waited_for_by_itself() -> None:
    desk = Desk()
    desk.server.answer(calls.lease("a", token="other", lease_ms=1_000))
    assert desk.run(desk.batch(desk.loader(lambda: {"b": 2}), "a", "b")) == {"a": "alone a", "b": 2}


def test_a_key_that_turns_up_meanwhile_is_not_loaded() -> None:
    desk = Desk()
    load = desk.loader(dict)
    (name,) = desk.begin(desk.batch(load, "a"))
    for _ in range(2):
        desk.stepper.step(name)
    envelope: object = Stored(Kind.VALUE, 5, 300.0, 0.0, ())
    desk.server.answer(calls.store("a", envelope, fresh=300.0, stale=0.0, **BUS))
    desk.go()
    assert desk.result(name) == {"a": 5}
    assert load.runs == 0


def test_what_cannot_be_read_here_is_replaced_with_the_others() -> None:
    desk = Desk()
    desk.server.answer(calls.store("a", b"garbage", fresh=300.0, stale=0.0, **BUS))
    load = desk.loader(lambda: {"a": 1, "b": 2})
    assert desk.run(desk.batch(load, "a", "b")) == {"a": 1, "b": 2}
    assert desk.run(desk.batch(load, "a", "b")) == {"a": 1, "b": 2}
    assert load.runs == 1


def test_a_loader_that_fails_fails_every_key_once_and_pauses() -> None:
    desk = Desk()
    load = desk.loader(ValueError("broken"))
    for _ in range(2):
        with pytest.raises(ValueError, match="broken"):
            desk.run(desk.batch(load, "a", "b"))
    assert (load.runs, desk.events.load_failures, desk.events.backoffs) == (1, 1, 1)
    assert desk.server.holders == {}


def test_a_loader_that_fails_is_answered_with_old_values() -> None:
    desk = Desk(options={"l1": False})
    desk.run(desk.batch(desk.loader(lambda: rows("a", "b")), "a", "b"))
    desk.pass_by(301)
    load = desk.loader(ValueError("broken"))
    assert desk.run(desk.batch(load, "a", "b")) == rows("a", "b")
    assert desk.run(desk.batch(load, "a", "b")) == rows("a", "b")
    assert load.runs == 1


def test_a_batch_serves_its_own_old_value_when_the_flight_that_it_joined_fails() -> None:
    desk = Desk(threads=False, options={"l1": False})
    desk.run(desk.batch(desk.loader(lambda: rows("a")), "a"))
    desk.pass_by(301)
    broken = desk.loader(ValueError("broken"), seconds=1)
    first, second = desk.begin(desk.engine.read(desk.ask(broken, "a")), desk.batch(broken, "a"))
    desk.go()
    assert desk.result(first) == "row a"
    assert desk.result(second) == {"a": "row a"}
    assert broken.runs == 1


def test_a_load_that_failed_between_two_looks_is_not_tried_again() -> None:
    desk = Desk()
    load = desk.loader(ValueError("broken"))
    made = desk.process.runtime.signal

    def fail_meanwhile() -> object:
        desk.process.runtime.signal = made  # type: ignore[method-assign]
        with pytest.raises(ValueError, match="broken"):
            desk.run(desk.engine.read(desk.ask(load, "a")))
        return made()

    (name,) = desk.begin(desk.batch(load, "a"))
    for _ in range(2):
        desk.stepper.step(name)
    desk.process.runtime.signal = fail_meanwhile  # type: ignore[assignment,method-assign]
    desk.go()
    with pytest.raises(ValueError, match="broken"):
        desk.result(name)
    assert load.runs == 1


def test_a_loader_must_return_a_mapping() -> None:
    desk = Desk()
    with pytest.raises(CacheGuardError, match="must return a mapping, got list"):
        desk.run(desk.batch(desk.loader(lambda: [1]), "a"))


def test_a_loader_that_reads_one_of_its_keys_gets_an_error() -> None:
    desk = Desk()
    inner = desk.batch(desk.loader(dict), "b")
    with pytest.raises(ReentrantLoad, match="the loader of b"):
        desk.run(desk.batch(desk.loader(lambda: inner), "a", "b"))


def test_without_redis_a_batch_loads_and_the_local_tier_keeps_it() -> None:
    desk = Desk()
    desk.faults.update(dict.fromkeys(["MGET TIME", "lease"], Fault.UNHEARD))
    load = desk.loader(lambda: {"a": 1})
    assert desk.run(desk.batch(load, "a", "b")) == {"a": 1, "b": None}
    entry = desk.local.find("a")
    assert entry is not None
    assert entry.value == 1


@pytest.mark.parametrize("fault", [Fault.UNHEARD, Fault.REFUSED])
def test_fills_that_fail_cost_the_caching_not_the_values(fault: Fault) -> None:
    desk = Desk()
    desk.faults["fill"] = fault
    assert desk.run(desk.batch(desk.loader(lambda: rows("a", "b")), "a", "b")) == rows("a", "b")
    assert desk.events.fills_failed == 2
    assert (desk.server.holders == {}) == (fault is Fault.REFUSED)


def test_a_batch_beyond_its_time_gives_its_caller_what_it_waited_for() -> None:
    desk = Desk(options={"hard_timeout": 10})
    assert desk.run(desk.batch(desk.loader(lambda: {"a": 1}, seconds=60), "a")) == {"a": 1}


def test_a_refused_lease_means_a_load_without_one() -> None:
    desk = Desk()
    desk.faults["lease"] = Fault.REFUSED
    assert desk.run(desk.batch(desk.loader(lambda: {"a": 1}), "a")) == {"a": 1}
    assert desk.server.value("a", stale=True) is None


def test_whatever_goes_wrong_nobody_is_left_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    desk = Desk()

    async def explode(*_: object, **__: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(desk.engine.remote, "lease_many", explode)
    with pytest.raises(RuntimeError, match="a bug"):
        desk.run(desk.batch(desk.loader(dict), "a"))
    assert desk.engine.flights == {}


def test_a_batch_whose_load_is_cancelled_goes_key_by_key() -> None:
    desk = Desk(threads=False)
    slow = desk.loader(dict, seconds=5)
    (name,) = desk.begin(desk.batch(slow, "a"))
    desk.cancel(f"{name}.flight1", when=lambda: slow.runs > 0)
    desk.go()
    assert desk.result(name) == {"a": "alone a"}
