from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest

from cacheguard.errors import Refused
from cacheguard.ports import ScriptCall
from cacheguard.protocol.calls import ALWAYS, EXPIRE, FILL, INVALIDATE, LEASE, RELEASE, RENEW, STORE, TOUCH
from cacheguard.protocol.model import MemoryCommands
from cacheguard.runtime import run_now

KEY = "k"
BUS = ("cg:bus", "drop k")


class Memory:
    """The tier and its clock."""

    def __init__(self, size: int = 10, **options: Any) -> None:
        self.ms = 1_000
        self.commands = MemoryCommands(size, nullcontext(), lambda: self.ms / 1000, **options)

    def __call__(self, call: ScriptCall) -> Any:
        (reply,) = run_now(self.commands.send(call))
        return reply

    def value(self, key: str = KEY) -> Any:
        return run_now(self.commands.send_each(("HMGET", key, "v", "g"), ("PTTL", key)))

    def put(self, value: object, key: str = KEY, fresh: int = 1000, stale: int = 500, version: str = "") -> Any:
        envelope: Any = value
        return self(STORE(key)(envelope, fresh, stale, version, *BUS))

    def lease(self, token: str, floor: int = 0, awaited: str = "") -> list[Any]:
        reply: list[Any] = self(LEASE(KEY)(token, 5_000, 60_000, floor, awaited, ""))
        return reply

    def fill(self, token: str, value: object = "v", version: str = "") -> Any:
        envelope: Any = value
        return self(FILL(KEY)(token, envelope, 1000, 500, version))

    def invalidate(
        self, *, quarantine: int = 0, floor: str = "", floor_ms: int = 0, begin: str = "", end: str = ""
    ) -> Any:
        return self(INVALIDATE(KEY)(*BUS, quarantine, floor, floor_ms, begin, 10_000, end))


def test_a_value_is_there_until_its_end() -> None:
    memory = Memory()
    memory.put("v")
    memory.ms += 1_499
    assert memory.value() == [["v", 500], 1]
    memory.ms += 1
    assert memory.value() == [[None, None], -2]


def test_only_the_holder_of_the_lease_fills() -> None:
    memory = Memory()
    assert memory.lease("one") == [b"GRANTED", 1_000, None, 0, 65_000]
    assert memory.lease("one")[0] == b"GRANTED"  # the reply may have been lost
    assert memory.lease("two") == [b"WAIT", 5_000, "one", None, 0, 65_000]
    assert memory.fill("two") == 0
    assert memory.fill("one") == 1
    assert memory.fill("one") == 0
    assert memory.lease("two") == [b"HIT", "v", 500, 1_500]


def test_a_lease_ends_by_itself_unless_it_is_renewed() -> None:
    memory = Memory()
    memory.lease("one")
    memory.ms += 4_000
    assert memory(RENEW(KEY)("one", 5_000, 60_000)) == 1
    memory.ms += 4_000
    assert memory.lease("two")[0] == b"WAIT"
    memory.ms += 1_000
    assert memory.lease("two")[0] == b"GRANTED"
    assert memory(RENEW(KEY)("one", 5_000, 60_000)) == 0
    assert memory(RENEW(KEY)("two", 1_000, 1_000)) == 1


def test_a_renewed_value_grows_no_younger() -> None:
    memory = Memory()
    memory.put("v")
    memory.ms += 1_200
    assert memory.lease("one")[2:] == ["v", 65_200, 65_000]
    memory.ms += 100
    assert memory(RENEW(KEY)("one", 5_000, 60_000)) == 1
    assert memory.value() == [["v", 65_300], 65_000]


def test_a_value_that_would_do_is_leased_all_the_same_if_the_caller_wants_better() -> None:
    memory = Memory()
    memory.put("v")
    assert memory.lease("one", floor=999)[0] == b"HIT"
    assert memory.lease("one", floor=ALWAYS)[0] == b"GRANTED"


def test_a_failed_load_leaves_a_word_for_those_who_waited_for_it() -> None:
    memory = Memory()
    memory.lease("one")
    assert memory(RELEASE(KEY)("other", b"why", 2_000)) == 0
    assert memory(RELEASE(KEY)("one", b"why", 2_000)) == 1
    assert memory.lease("two", awaited="one") == [b"FAILED", b"why"]
    assert memory.lease("three")[0] == b"GRANTED"
    assert memory.lease("two", awaited="one")[0] == b"WAIT"
    assert memory(RELEASE(KEY)("three", b"", 2_000)) == 1
    assert memory.value() == [[None, None], -2]


def test_the_word_outlives_neither_its_time_nor_the_old_value() -> None:
    memory = Memory()
    memory.lease("one")
    memory(RELEASE(KEY)("one", b"why", 2_000))
    memory.ms += 2_000
    assert memory.value()[1] == -2
    memory.put("v", fresh=5_000)
    memory.lease("two", floor=ALWAYS)
    memory(RELEASE(KEY)("two", b"why", 2_000))
    assert memory.value() == [["v", 60_000], 65_000]


def test_an_invalidation_ends_leases_and_entries() -> None:
    memory = Memory()
    memory.lease("one")
    assert memory.invalidate() == 1
    assert memory.fill("one") == 0
    memory.put("v")
    memory.invalidate()
    assert memory.value() == [[None, None], -2]


def test_during_a_write_nothing_is_leased_or_stored() -> None:
    memory = Memory()
    memory.invalidate(begin="a")
    memory.ms += 1_000
    memory.invalidate(begin="b")
    assert memory.lease("one") == [b"BYPASS", 10_000]
    assert memory.put("v") == 0
    memory.invalidate(end="b")
    assert memory.lease("one") == [b"BYPASS", 9_000]
    memory.ms += 9_000
    assert memory.lease("one")[0] == b"GRANTED"


def test_a_write_that_never_ended_is_over_at_its_deadline() -> None:
    memory = Memory()
    memory.invalidate(begin="a", quarantine=60_000)
    memory.ms += 10_000
    assert memory.lease("one")[0] == b"GRANTED"


def test_what_is_filled_in_quarantine_dies_with_it() -> None:
    memory = Memory()
    memory.invalidate(quarantine=300)
    memory.lease("one")
    memory.fill("one")
    assert memory.value() == [["v", 0], 300]
    memory.invalidate(quarantine=200)
    memory.put("w")
    assert memory.value() == [["w", 0], 300]


def test_versions_only_rise() -> None:
    memory = Memory()
    memory.invalidate(floor="002", floor_ms=60_000, quarantine=300)
    memory.lease("one")
    assert memory.fill("one", version="001") == -1
    assert memory.put("v", version="001") == -1
    memory.lease("two")
    assert memory.fill("two", version="002") == 1  # proven to be new, so the quarantine does not hold for it
    assert memory.value() == [["v", 500], 1_500]
    assert memory.put("w", version="003") == 1
    memory.invalidate(floor="001", floor_ms=60_000)
    assert memory.put("v", version="002") == -1


def test_an_expired_value_is_stale_and_its_lease_void() -> None:
    memory = Memory()
    assert memory(EXPIRE(KEY)(*BUS)) == 0
    memory.put("v")
    memory.lease("one", floor=ALWAYS)
    assert memory(EXPIRE(KEY)(*BUS)) == 1
    assert memory.fill("one") == 0
    assert memory.lease("two")[0] == b"GRANTED"


def test_only_a_fresh_value_can_be_touched() -> None:
    memory = Memory()
    assert memory(TOUCH(KEY)(5_000, 100, *BUS)) == 0
    memory.put("v")
    assert memory(TOUCH(KEY)(5_000, 100, *BUS)) == 1
    assert memory.value() == [["v", 100], 5_100]
    memory.ms += 5_000
    assert memory(TOUCH(KEY)(5_000, 100, *BUS)) == 0


def test_the_least_recently_used_goes_when_there_are_too_many() -> None:
    memory = Memory(size=2)
    memory.put(1, "a")
    memory.put(2, "b")
    assert memory.value("a")[0] == [1, 500]
    memory.put(3, "c")
    assert [memory.value(key)[0][0] for key in "abc"] == [1, None, 3]


def test_the_least_recently_used_go_when_there_are_too_many_bytes() -> None:
    memory = Memory(max_bytes=10, weigh=lambda value: len(value or ""))
    memory.put("12345", "a")
    memory.put("12345", "b")
    memory.put("1", "b")
    memory.put("1234", "c")
    assert [memory.value(key)[0][0] for key in "abc"] == ["12345", "1", "1234"]
    memory.put("123", "d")
    assert [memory.value(key)[0][0] for key in "abcd"] == [None, "1", "1234", "123"]
    memory.put("12345678901", "e")
    assert [memory.value(key)[0][0] for key in "bcde"] == ["1", "1234", "123", None]


def test_an_unknown_command_is_refused() -> None:
    memory = Memory()
    (reply,) = run_now(memory.commands.send_each(("GET", KEY)))
    assert isinstance(reply, Refused)
    with pytest.raises(Refused, match="unknown command 'GET'"):
        run_now(memory.commands.send(("GET", KEY)))


def test_a_forked_child_goes_on_with_a_lock_of_its_own() -> None:
    memory = Memory()
    held: list[int] = []

    class Lock:
        def __enter__(self) -> None:
            held.append(1)

        def __exit__(self, *_: object) -> None: ...

    memory.commands.after_fork(Lock())
    memory.put("v")
    assert held == [1]


@pytest.mark.parametrize("hours", [-1, 1])
def test_a_server_clock_that_jumps_moves_deadlines_and_lets_no_late_fill_through(hours: int) -> None:
    """A lease, an intent or a quarantine may end early or late; who fills still has to hold the lease."""
    jump = hours * 3_600_000
    memory = Memory()
    memory.ms += 7_200_000
    memory.lease("one")
    memory.ms += jump
    memory.invalidate()
    assert memory.fill("one", "old") == 0
    memory.lease("two")
    memory.ms -= jump
    if memory.lease("three")[0] == b"GRANTED":  # the deadline of the other one is over by this clock
        assert memory.fill("two", "old") == 0
        assert memory.fill("three", "new") == 1
    else:
        assert memory.fill("three", "new") == 0
        assert memory.fill("two", "new") == 1
    memory.invalidate(begin="write")
    memory.ms += jump
    lease = memory.lease("four")
    memory.invalidate(end="write")
    if lease[0] == b"GRANTED":  # the intent has ended early: the end of the write refuses what was begun meanwhile
        assert memory.fill("four", "old") == 0
    assert memory.value()[0][0] is None
