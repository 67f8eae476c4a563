from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest

from cacheguard.errors import Refused
from cacheguard.ports import Call
from cacheguard.protocol import calls, model
from cacheguard.protocol.calls import ALWAYS, Leased, leased
from cacheguard.protocol.entry import Fill, Filled
from cacheguard.protocol.model import MemoryCommands
from cacheguard.runtime import run_now

KEY = "k"
BUS: dict[str, Any] = {"channel": "cg:bus", "echo": "me.1"}


class Memory:
    """The tier and its clock."""

    def __init__(self, size: int = 10, **options: Any) -> None:
        self.ms = 1_000
        self.commands = MemoryCommands(size, nullcontext(), lambda: self.ms / 1000, **options)
        self.said: list[tuple[str, str]] = []
        self.commands.publish = lambda channel, message: self.said.append((channel, message))  # type: ignore[method-assign]

    def __call__(self, call: Call) -> Any:
        (reply,) = run_now(self.commands.send(call))
        return reply

    def value(self, key: str = KEY) -> tuple[Any, int, int] | None:
        """The value, for how many ms it is fresh, and after how many it is dead."""
        raws, time = run_now(self.commands.send(*calls.read(key, ())))
        assert calls.clock(time, key) == self.ms
        (raw,) = raws
        return None if raw is None else (raw.value, raw.fresh - self.ms, raw.dead - self.ms)

    def put(self, value: object, key: str = KEY, fresh: int = 1000, stale: int = 500, version: str = "") -> Any:
        return self(calls.store(key, value, fresh=fresh / 1000, stale=stale / 1000, version=version, **BUS))

    def lease(self, token: str, floor: int = 0, awaited: str = "") -> Leased:
        return leased(self(calls.lease(KEY, token=token, floor_ms=floor, awaited=awaited)))

    def word(self, token: str, floor: int = 0, awaited: str = "") -> bytes:
        return self.lease(token, floor, awaited).word

    def fill(self, token: str, value: object = "v", version: str = "", until: int = 0) -> Filled:
        fill = Fill(KEY, token, value, 1.0, 0.5, version, until_ms=until)
        return calls.filled(self(calls.fill(fill, channel="cg:bus")))

    def release(self, token: str, died_of: bytes = b"", **terms: int) -> Any:
        return self(calls.release(KEY, token=token, died_of=died_of, channel="cg:bus", **terms))

    def expire(self) -> Any:
        return self(calls.expire(KEY, **BUS))

    def touch(self, fresh: int = 5_000, stale: int = 100) -> Any:
        return self(calls.touch(KEY, fresh=fresh / 1000, stale=stale / 1000, **BUS))

    def invalidate(
        self, *, quarantine: int = 0, floor: str = "", floor_ms: int = 0, begin: str = "", end: str = ""
    ) -> Any:
        terms: dict[str, Any] = {"quarantine_ms": quarantine, "floor": floor, "floor_ms": floor_ms}
        return self(calls.invalidate(KEY, begins=begin, intent_ms=10_000, ends=end, **terms, **BUS))


def test_a_value_is_there_until_its_end() -> None:
    memory = Memory()
    memory.put("v")
    memory.ms += 1_499
    assert memory.value() == ("v", -499, 1)
    memory.ms += 1
    assert memory.value() is None


def test_only_the_holder_of_the_lease_fills() -> None:
    memory = Memory()
    assert memory.lease("one") == Leased(b"GRANTED", 1_000)
    assert memory.word("one") == b"GRANTED"  # the reply may have been lost
    assert memory.lease("two") == Leased(b"WAIT", 1_000, holder="one")
    assert memory.fill("two") is Filled.REFUSED
    assert memory.fill("one") is Filled.STORED
    assert memory.fill("one") is Filled.REFUSED
    assert memory.lease("two") == Leased(b"HIT", 1_000, calls.Held("v", 1.0, 0.0, 1.5))
    assert memory.value() == ("v", 1_000, 1_500)


def test_who_waits_is_woken_by_the_fill_and_nobody_else_is() -> None:
    memory = Memory()
    memory.lease("one")
    memory.fill("one")
    assert memory.said == []
    memory.invalidate()
    memory.lease("one")
    memory.lease("two")
    memory.fill("one")
    assert memory.said[1:] == [("cg:bus", "2 filled k")]


def test_a_lease_ends_by_itself_unless_it_is_renewed() -> None:
    memory = Memory()
    memory.lease("one")
    memory.ms += 4_000
    assert memory(calls.renew(KEY, token="one")) == 1
    memory.ms += 4_000
    assert memory.word("two") == b"WAIT"
    memory.ms += 1_000
    assert memory.word("two") == b"GRANTED"
    assert memory(calls.renew(KEY, token="one")) == 0
    assert memory(calls.renew(KEY, token="two")) == 1


def test_a_renewed_value_grows_no_younger() -> None:
    memory = Memory()
    memory.put("v")
    memory.ms += 1_200
    assert memory.lease("one").held == calls.Held("v", -0.2, 1.2, 65.0)
    assert memory.value() == ("v", -200, 65_000)
    memory.ms += 100
    assert memory(calls.renew(KEY, token="one")) == 1
    assert memory.value() == ("v", -300, 65_000)


def test_a_value_that_would_do_is_leased_all_the_same_if_the_caller_wants_better() -> None:
    memory = Memory()
    memory.put("v")
    assert memory.word("one", floor=999) == b"HIT"
    assert memory.word("one", floor=ALWAYS) == b"GRANTED"


def test_a_failed_load_leaves_a_word_for_those_who_waited_for_it() -> None:
    memory = Memory()
    memory.lease("one")
    assert memory.release("other", b"why") == 0
    assert memory.release("one", b"why") == 1
    assert memory.lease("two", awaited="one") == Leased(b"FAILED", 1_000, died_of=b"why")
    assert memory.word("three") == b"GRANTED"
    assert memory.word("two", awaited="one") == b"WAIT"
    assert memory.release("three") == 1
    assert memory.value() is None


def test_while_a_failure_pauses_loads_nobody_loads_but_who_wants_it_anew() -> None:
    memory = Memory()
    memory.lease("one")
    memory.release("one", b"why", failures=3, pause_ms=500)
    memory.ms += 100
    assert memory.lease("two") == Leased(b"FAILED", 1_100, died_of=b"why", failures=3, pause_ms=400)
    memory.ms += 400
    assert memory.lease("two") == Leased(b"GRANTED", 1_500, failures=3, pause_ms=500)
    memory.release("two", b"why", failures=4, pause_ms=1_000)
    assert memory.word("three") == b"FAILED"
    assert memory.lease("three", floor=ALWAYS) == Leased(b"GRANTED", 1_500)


def test_the_word_outlives_neither_its_time_nor_the_old_value() -> None:
    memory = Memory()
    memory.lease("one")
    memory.release("one", b"why")
    memory.ms += 2_000
    assert memory.word("two", awaited="one") == b"GRANTED"
    memory.release("two")
    assert memory.commands.empty
    memory.put("v", fresh=5_000)
    memory.lease("two", floor=ALWAYS)
    memory.release("two", b"why")
    assert memory.value() == ("v", 5_000, 65_000)


def test_an_invalidation_ends_leases_and_entries() -> None:
    memory = Memory()
    memory.lease("one")
    assert memory.invalidate() == 1
    assert memory.fill("one") is Filled.REFUSED
    memory.put("v")
    memory.invalidate()
    assert memory.value() is None
    assert memory.commands.empty


def test_during_a_write_nothing_is_leased_or_stored() -> None:
    memory = Memory()
    memory.invalidate(begin="a")
    memory.ms += 1_000
    memory.invalidate(begin="b")
    assert memory.word("one") == b"BYPASS"
    assert memory.put("v") == 0
    memory.invalidate(end="b")
    memory.ms += 8_999
    assert memory.word("one") == b"BYPASS"
    memory.ms += 1
    assert memory.word("one") == b"GRANTED"


def test_a_write_that_never_ended_is_over_at_its_deadline() -> None:
    memory = Memory()
    memory.invalidate(begin="a", quarantine=60_000)
    memory.ms += 10_000
    assert memory.word("one") == b"GRANTED"


def test_what_is_filled_in_quarantine_dies_with_it() -> None:
    memory = Memory()
    memory.invalidate(quarantine=300)
    memory.lease("one")
    assert memory.fill("one") is Filled.BRIEFLY
    assert memory.value() == ("v", 300, 300)
    memory.invalidate(quarantine=200)
    memory.put("w")
    assert memory.value() == ("w", 300, 300)


def test_no_lease_renewal_or_touch_carries_a_value_beyond_its_quarantine() -> None:
    memory = Memory()
    memory.invalidate(quarantine=300)
    memory.put("v", fresh=200)
    memory.lease("one", floor=ALWAYS)
    memory(calls.renew(KEY, token="one"))
    assert memory.value() == ("v", 200, 300)
    assert memory.touch() == 1
    assert memory.value() == ("v", 300, 300)


def test_a_quarantine_ends_at_its_own_time_whatever_is_stored() -> None:
    memory = Memory()
    memory.invalidate(quarantine=60_000)
    memory.lease("one")
    memory.fill("one")
    memory.invalidate()
    memory.put(None, fresh=10)
    memory.ms += 10_000
    memory.put("v", fresh=300_000)
    assert memory.value() == ("v", 50_000, 50_000)


def test_what_a_marker_says_may_end_a_value_sooner() -> None:
    memory = Memory()
    memory.lease("one")
    assert memory.fill("one", until=memory.ms + 400) is Filled.BRIEFLY
    assert memory.value() == ("v", 400, 400)
    memory.invalidate()
    memory.lease("two")
    assert memory.fill("two", until=memory.ms) is Filled.REFUSED


def test_versions_only_rise() -> None:
    memory = Memory()
    memory.invalidate(floor="002", floor_ms=60_000, quarantine=300)
    memory.lease("one")
    assert memory.fill("one", version="001") is Filled.OLD
    assert memory.put("v", version="001") == -1
    memory.lease("two")
    assert memory.fill("two", version="002") is Filled.STORED  # shown to be new: the quarantine does not hold for it
    assert memory.value() == ("v", 1_000, 1_500)
    assert memory.put("w", version="003") == 1
    memory.invalidate(floor="001", floor_ms=60_000)
    assert memory.put("v", version="002") == -1


def test_an_expired_value_is_stale_and_its_lease_void() -> None:
    memory = Memory()
    assert memory.expire() == 0
    memory.put("v")
    memory.lease("one", floor=ALWAYS)
    assert memory.expire() == 1
    assert memory.fill("one") is Filled.REFUSED
    assert memory.word("two") == b"GRANTED"


def test_only_a_fresh_value_can_be_touched() -> None:
    memory = Memory()
    assert memory.touch() == 0
    memory.put("v")
    assert memory.touch() == 1
    assert memory.value() == ("v", 5_000, 5_100)
    memory.ms += 5_000
    assert memory.touch() == 0


def test_the_least_recently_used_goes_when_there_are_too_many() -> None:
    memory = Memory(size=2)
    memory.put(1, "a")
    memory.put(2, "b")
    assert memory.value("a") == (1, 1_000, 1_500)
    memory.put(3, "c")
    assert [_what(memory, key) for key in "abc"] == [1, None, 3]


def test_the_least_recently_used_go_when_there_are_too_many_bytes() -> None:
    memory = Memory(max_bytes=10, weigh=lambda value: len(value or ""))
    memory.put("12345", "a")
    memory.put("12345", "b")
    memory.put("1", "b")
    memory.put("1234", "c")
    assert [_what(memory, key) for key in "abc"] == ["12345", "1", "1234"]
    memory.put("123", "d")
    assert [_what(memory, key) for key in "abcd"] == [None, "1", "1234", "123"]
    memory.put("12345678901", "e")
    assert [_what(memory, key) for key in "bcde"] == ["1", "1234", "123", None]


@pytest.mark.parametrize("what", ["too large", "too many bytes", "too many keys"])
def test_what_protects_a_key_stays_when_its_value_has_to_go(what: str) -> None:
    memory = Memory(size=2, max_bytes=10, weigh=lambda value: len(value or ""))
    memory.invalidate(quarantine=60_000, floor="002", floor_ms=300_000)
    memory.put("12345678901" if what == "too large" else "12345", version="003")
    if what == "too many bytes":
        memory.put("123456789", "a")
    elif what == "too many keys":
        memory.put("1", "a")
        memory.put("1", "b")
    assert memory.value() is None
    assert memory.put("v", version="001") == -1
    assert memory.put("v", fresh=300_000) == 1
    assert memory.value() == ("v", 60_000, 60_000)


def test_a_write_under_way_stays_whatever_has_to_go() -> None:
    memory = Memory(size=2)
    memory.invalidate(begin="a")
    memory.put("1", "a")
    memory.put("1", "b")
    assert memory.word("one") == b"BYPASS"
    memory.invalidate(end="a")
    assert memory.word("one") == b"GRANTED"


def test_a_load_for_which_there_is_room_again_fills() -> None:
    memory = Memory(size=1)
    memory.lease("one")
    memory.put("1", "a")
    assert memory.fill("one") is Filled.STORED
    memory.lease("two", floor=ALWAYS)
    memory.put("1", "a")
    _, names = calls.scanned(memory(calls.scan("0", "*", 10)))
    assert sorted(names) == ["a", KEY]  # who forgets all names must find it
    memory.invalidate()
    assert memory.fill("two") is Filled.REFUSED


def test_the_claims_of_few_keys_stay_and_none_for_longer_than_it_lives(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model, "MOST_CLAIMED", 2)
    memory = Memory(size=1)
    memory.invalidate(quarantine=60_000)
    for number in range(9):
        memory(calls.invalidate(str(number), quarantine_ms=60_000, **BUS))
    memory.put("v", fresh=300_000)
    assert memory.value() == ("v", 300_000, 300_500)  # of too many, those that are longest unused go
    memory.put("v", "8", fresh=300_000)
    assert memory.value("8") == ("v", 60_000, 60_000)
    memory.ms += 400_000
    for number in range(9):
        assert memory.value(str(number)) is None
    assert memory.value() is None
    assert memory.commands.empty


def _what(memory: Memory, key: str) -> Any:
    found = memory.value(key)
    return None if found is None else found[0]


def test_an_unknown_command_is_refused() -> None:
    memory = Memory()
    (reply,) = run_now(memory.commands.send_each(("HGET", KEY)))
    assert isinstance(reply, Refused)
    with pytest.raises(Refused, match="unknown command 'HGET'"):
        run_now(memory.commands.send(("HGET", KEY)))


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


def test_a_forked_child_knows_no_lease_and_keeps_what_else_there_is() -> None:
    memory = Memory()
    memory.lease("parent's")
    memory.commands.after_fork(nullcontext())
    assert memory.commands.empty
    memory.invalidate(quarantine=300)
    memory.lease("parent's")
    memory.commands.after_fork(nullcontext())
    assert memory.fill("parent's") is Filled.REFUSED
    memory.put("v")
    assert memory.value() == ("v", 300, 300)


@pytest.mark.parametrize("hours", [-1, 1])
def test_a_server_clock_that_jumps_moves_deadlines_and_lets_no_late_fill_through(hours: int) -> None:
    """A lease, an intent or a quarantine may end early or late; who fills still has to hold the lease."""
    jump = hours * 3_600_000
    memory = Memory()
    memory.ms += 7_200_000
    memory.lease("one")
    memory.ms += jump
    memory.invalidate()
    assert memory.fill("one", "old") is Filled.REFUSED
    memory.lease("two")
    memory.ms -= jump
    if memory.word("three") == b"GRANTED":  # the deadline of the other one is over by this clock
        assert memory.fill("two", "old") is Filled.REFUSED
        assert memory.fill("three", "new") is Filled.STORED
    else:
        assert memory.fill("three", "new") is Filled.REFUSED
        assert memory.fill("two", "new") is Filled.STORED
    memory.invalidate(begin="write")
    memory.ms += jump
    word = memory.word("four")
    memory.invalidate(end="write")
    if word == b"GRANTED":  # the intent has ended early: the end of the write refuses what was begun meanwhile
        assert memory.fill("four", "old") is Filled.REFUSED
    assert memory.value() is None


def test_no_claim_lasts_longer_than_its_kind_after_the_clock_stepped_back() -> None:
    memory = Memory()
    memory.ms += 7_200_000
    memory.lease("dead")
    memory.put("v", "other")
    memory.ms -= 3_600_000
    assert memory.value("other") is None  # fresh for longer than it may be
    assert memory.word("one") == b"WAIT"
    memory.ms += 5_000
    assert memory.word("one") == b"GRANTED"
