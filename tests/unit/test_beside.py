"""What a reader need not ask Redis because another caller of its process does: on a fake clock, step by step."""

from __future__ import annotations

from typing import Any

import pytest

from cacheguard import CacheGuard
from cacheguard.delivery.outbox import Invalidation
from cacheguard.engine.beside import Meanwhile
from cacheguard.protocol import calls
from tests.support.desk import KEY, Desk
from tests.support.stepped import Fault

READ = "→ MGET TIME"
CROWD = 25
LOGICAL: dict[str, Any] = {"ttl": 10, "rebuild": "logical"}


def asked(desk: Desk, what: str = READ) -> int:
    """How often Redis was asked."""
    return sum(label == what for _, label in desk.stepper.trace)


def crowd(desk: Desk, load: Any, **options: Any) -> list[Any]:
    """What the readers of one moment get."""
    names = desk.begin(*(desk.engine.read(desk.ask(load, **options)) for _ in range(CROWD)))
    for name in names:
        desk.stepper.step(name)
    desk.go()
    return [desk.result(name) for name in names]


def filled(desk: Desk, answer: Any) -> None:
    """Redis has *answer*, this process has no copy."""
    desk.read(desk.loader(answer))
    desk.local.drop_all()
    desk.stepper.trace.clear()


@pytest.mark.parametrize("threads", [True, False])
def test_of_those_who_find_nothing_one_asks_and_one_loads(threads: bool) -> None:
    desk = Desk(threads=threads)
    load = desk.loader(7, seconds=0.1)
    assert crowd(desk, load) == [7] * CROWD
    assert (asked(desk), asked(desk, "→ lease"), load.runs) == (1, 1, 1)
    assert desk.events.misses == CROWD
    assert desk.events.shared == CROWD - 1
    assert not desk.engine.looks


def test_who_waits_for_a_flight_is_counted_at_once() -> None:
    desk = Desk()
    names = desk.begin(*(desk.engine.read(desk.ask(desk.loader(7, seconds=1))) for _ in range(CROWD)))
    for name in names:
        desk.stepper.step(name)
    desk.settle()
    assert (desk.events.misses, desk.events.shared) == (CROWD, CROWD - 1)
    desk.go()
    assert (desk.events.misses, desk.events.shared) == (CROWD, CROWD - 1)


def test_who_comes_while_a_cold_key_is_loaded_joins_without_a_question() -> None:
    desk = Desk(options={"l1": False})
    load = desk.loader(7, seconds=1)
    first = desk.begin(desk.engine.read(desk.ask(load)))
    desk.settle()
    second = desk.begin(desk.engine.read(desk.ask(load)))
    desk.go()
    assert [desk.result(name) for name in (*first, *second)] == [7, 7]
    assert (asked(desk), load.runs) == (1, 1)


@pytest.mark.parametrize("threads", [True, False])
def test_of_those_whose_value_is_in_redis_one_asks(threads: bool) -> None:
    desk = Desk(threads=threads)
    filled(desk, 7)
    assert crowd(desk, desk.loader(8)) == [7] * CROWD
    assert asked(desk) == 1


def test_without_an_in_process_tier_everybody_asks() -> None:
    desk = Desk(options={"l1": False})
    filled(desk, 7)
    assert crowd(desk, desk.loader(8)) == [7] * CROWD
    assert asked(desk) == CROWD


def test_while_the_in_process_tier_is_not_trusted_everybody_asks() -> None:
    desk = Desk()
    filled(desk, 7)
    desk.local.pause()
    assert crowd(desk, desk.loader(8)) == [7] * CROWD
    assert asked(desk) == CROWD


@pytest.mark.parametrize("threads", [True, False])
def test_a_hot_key_that_expires_costs_one_question_and_one_load(threads: bool) -> None:
    desk = Desk(threads=threads, options=LOGICAL)
    desk.read(desk.loader("old"))
    desk.pass_by(20)
    load = desk.loader("new", seconds=0.05)
    desk.stepper.trace.clear()
    assert crowd(desk, load) == ["old"] * CROWD
    assert (asked(desk), asked(desk, "→ lease"), load.runs) == (1, 1, 1)
    assert desk.events.stale_hits == CROWD
    assert desk.read(load) == "new"
    assert (asked(desk), load.runs) == (1, 1)


def test_while_another_process_reloads_one_question_is_asked_in_a_while() -> None:
    desk = Desk(options=LOGICAL)
    desk.read(desk.loader("old"))
    desk.pass_by(20)
    holder = desk.neighbour("B")
    load = desk.loader("new", seconds=30)
    desk.begin(holder.engine.read(desk.ask(load)), process=holder)
    desk.settle()
    desk.stepper.trace.clear()

    def look() -> tuple[Any, int, int]:
        name = desk.begin(desk.engine.read(desk.ask(load)))[0]
        desk.settle()
        return desk.result(name), asked(desk), asked(desk, "→ lease")

    assert [look(), look(), look()] == [("old", 1, 1)] * 3
    desk.pass_by(0.21)  # the longest that a waiter sleeps
    assert [look(), look()] == [("old", 2, 2)] * 2
    desk.process.shared.wake(KEY)  # it is said that the load has ended
    assert look() == ("old", 3, 3)
    desk.go()


def test_a_stale_copy_goes_with_an_invalidation_and_is_kept_no_longer_than_allowed() -> None:
    desk = Desk(options={"ttl": 10, "stale_while_revalidate": 10})
    desk.read(desk.loader("old"))
    desk.pass_by(19.9)
    answers = crowd(desk, desk.loader("new", seconds=60))
    assert answers == ["old"] * CROWD
    desk.pass_by(0.11)
    assert desk.process.shared.meanwhile.entry(KEY, desk.now) is None

    other = Desk(options=LOGICAL)
    other.read(other.loader("old"))
    other.pass_by(20)
    other.begin(other.engine.read(other.ask(other.loader("new", seconds=60))))
    other.settle()
    assert other.process.shared.meanwhile.entry(KEY, other.now) is not None
    other.process.shared.drop([KEY])
    assert other.process.shared.meanwhile.entry(KEY, other.now) is None
    other.go()


def test_who_waits_for_a_look_that_ends_in_an_outage_asks_no_more() -> None:
    desk = Desk()
    desk.faults["MGET TIME"] = Fault.UNHEARD
    load = desk.loader(7, seconds=1)
    assert crowd(desk, load) == [7] * CROWD
    assert (asked(desk), load.runs) == (1, 1)


def test_who_waits_for_a_look_that_ends_in_an_outage_joins_the_load() -> None:
    desk = Desk(options={"null_ttl": None})
    desk.faults["MGET TIME"] = Fault.UNHEARD
    load = desk.loader(None, seconds=1)
    assert crowd(desk, load) == [None] * CROWD
    assert (asked(desk), load.runs) == (1, 1)


def test_who_waits_for_a_look_is_served_what_is_stale_while_the_load_is_slow() -> None:
    desk = Desk(options={"ttl": 10, "soft_timeout": 0.5})
    desk.read(desk.loader("old"))
    desk.pass_by(20)
    began = desk.now
    names = desk.begin(*(desk.engine.read(desk.ask(desk.loader("new", seconds=60))) for _ in range(CROWD)))
    for name in names:
        desk.stepper.step(name)
    while set(names) - set(desk.stepper.results):
        desk.settle()
        desk.pass_by(0.1)
    assert desk.now < began + 1
    assert {desk.result(name) for name in names} == {"old"}
    desk.go()


def test_a_look_that_is_cancelled_leaves_the_others_to_themselves() -> None:
    desk = Desk(threads=False)
    filled(desk, 7)
    first, second = desk.begin(*(desk.engine.read(desk.ask(desk.loader(8))) for _ in range(2)))
    for name in (first, first, second):
        desk.stepper.step(name)
    assert (asked(desk), list(desk.engine.looks)) == (1, [KEY])
    desk.stepper.cancel(first)
    desk.go()
    assert desk.result(second) == 7
    assert not desk.engine.looks


def test_what_was_invalidated_during_a_look_is_given_to_nobody_who_came_later() -> None:
    desk = Desk()
    filled(desk, "old")
    (first,) = desk.begin(desk.engine.read(desk.ask(desk.loader("new"))))
    desk.stepper.step(first)
    desk.stepper.step(first)  # Redis has answered, this process does not know yet
    desk.server.answer(calls.invalidate(KEY, channel="cg:bus", echo="-"))
    desk.process.shared.drop([KEY])
    (later,) = desk.begin(desk.engine.read(desk.ask(desk.loader("new"))))
    desk.stepper.step(later)
    desk.go()
    assert desk.result(later) == "new"


def test_if_the_load_fails_everybody_gets_what_is_stale() -> None:
    desk = Desk(options={"ttl": 10, "stale_if_error": 60})
    desk.read(desk.loader("old"))
    desk.pass_by(20)
    desk.faults["lease"] = Fault.UNHEARD  # only what they have read themselves is there to fall back on
    assert crowd(desk, desk.loader(ValueError("broken"), seconds=1)) == ["old"] * CROWD


def test_who_is_impatient_loads_for_himself() -> None:
    desk = Desk(options={"wait_timeout": 1})
    slow, own = desk.loader(1, seconds=5), desk.loader(2)
    first, second = desk.begin(desk.engine.read(desk.ask(slow)), desk.engine.read(desk.ask(own)))
    desk.go()
    assert (desk.result(first), desk.result(second)) == (1, 2)
    assert desk.events.misses == 2


def test_a_write_behind_a_look_is_read_by_who_comes_later() -> None:
    desk = Desk()
    filled(desk, "old")
    writer = desk.neighbour("B")
    desk.run(writer.writes.write(writer.engine, [Invalidation(KEY)]), process=writer)
    assert crowd(desk, desk.loader("new")) == ["new"] * CROWD


def test_a_caller_who_interrupts_its_own_look_asks_for_itself(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with CacheGuard(redis_url) as guard:
        guard.set("k", "v")
        engine = guard._hub.blocking()  # noqa: SLF001 - where a signal handler comes in between
        honest, again = engine.remote.read, list[Any]()

        async def interrupted(key: str, *rest: Any, **named: Any) -> Any:
            if not again:
                again.append(None)
                again[0] = guard.get_or_set("k", lambda: "loaded")
            return await honest(key, *rest, **named)

        guard.get_or_set("warm", lambda: 1)
        guard._hub.local.drop_all()  # noqa: SLF001 - the copy that `set` has left
        monkeypatch.setattr(engine.remote, "read", interrupted)
        assert guard.get_or_set("k", lambda: "loaded") == "v"
        assert again == ["v"]


# Where nothing is expected in Redis


def misses(desk: Desk, count: int, **options: Any) -> Any:
    """The rules after so many questions in vain."""
    rules = desk.rules(**options)
    for number in range(count):
        ask = desk.ask(desk.loader(number), f"miss {number}")
        ask.rules = rules
        assert desk.run(desk.engine.read(ask)) == number
    desk.stepper.trace.clear()
    return rules


def read_under(desk: Desk, rules: Any, load: Any) -> Any:
    ask = desk.ask(load)
    ask.rules = rules
    return desk.run(desk.engine.read(ask))


@pytest.mark.parametrize("l1", [True, False])
def test_after_four_questions_in_vain_the_lease_is_asked_for_first(l1: bool) -> None:
    desk = Desk(options={"l1": l1})
    rules = misses(desk, 4)
    assert read_under(desk, rules, desk.loader(7)) == 7
    assert (asked(desk), asked(desk, "→ lease"), asked(desk, "→ fill")) == (0, 1, 1)
    assert (desk.events.misses, desk.events.l2_hits) == (5, 0)
    desk.local.drop_all()
    assert read_under(desk, rules, desk.loader(8)) == 7  # the lease finds what is there
    assert (desk.events.misses, desk.events.l2_hits, desk.events.loads) == (5, 1, 5)
    desk.local.drop_all()
    desk.stepper.trace.clear()
    assert read_under(desk, rules, desk.loader(8)) == 7
    assert (asked(desk), asked(desk, "→ lease")) == (1, 0)


@pytest.mark.parametrize(
    "options", [{"rebuild": "logical"}, {"rebuild": "early"}, {"soft_timeout": 1}, {"stale_while_revalidate": 60}]
)
def test_where_something_stale_may_be_served_at_once_the_value_is_asked_for_first(options: dict[str, Any]) -> None:
    desk = Desk()
    rules = misses(desk, 5, **options)
    assert read_under(desk, rules, desk.loader(7)) == 7
    assert asked(desk) == 1


def test_who_asks_for_the_lease_first_waits_for_its_holder() -> None:
    desk = Desk()
    rules = misses(desk, 4)
    holder = desk.neighbour("B")
    load = desk.loader("theirs", seconds=3)
    desk.begin(holder.engine.read(desk.ask(load)), process=holder)
    desk.settle()
    assert read_under(desk, rules, desk.loader("mine")) == "theirs"
    assert (desk.events.waits, desk.events.l2_hits) == (1, 0)


def test_who_asks_for_the_lease_first_falls_back_on_what_is_stale() -> None:
    desk = Desk(options={"ttl": 10, "stale_if_error": 60})
    rules = misses(desk, 4)
    assert read_under(desk, rules, desk.loader("old")) == "old"
    desk.pass_by(20)
    desk.local.drop_all()
    assert read_under(desk, rules, desk.loader(ValueError("broken"))) == "old"


def test_who_asks_for_the_lease_first_loads_while_redis_is_away() -> None:
    desk = Desk()
    rules = misses(desk, 4)
    desk.faults["lease"] = Fault.UNHEARD
    assert read_under(desk, rules, desk.loader(7)) == 7


@pytest.mark.parametrize("stale_for", [{"rebuild": "logical"}, {"soft_timeout": 0.01}])
def test_rules_that_took_the_place_of_others_are_not_taken_for_them(stale_for: dict[str, Any]) -> None:
    desk = Desk(options={"ttl": 10, "stale_if_error": 60})
    rules = desk.rules(**stale_for)
    assert read_under(desk, rules, desk.loader("old")) == "old"
    desk.local.drop_all()
    desk.pass_by(20)
    desk.engine._first.add(id(rules))  # noqa: SLF001 - of rules that are gone
    ask = desk.ask(desk.loader("new", seconds=5))
    ask.rules = rules
    (name,) = desk.begin(desk.engine.read(ask))
    desk.settle()
    desk.pass_by(0.1)
    desk.settle()
    assert desk.result(name) == "old"
    desk.go()


def elsewhere(desk: Desk, load: Any, *, ended: bool, **options: Any) -> None:
    """Another process loads, to the end or not."""
    process = desk.neighbour("B")
    desk.begin(process.engine.read(desk.ask(load, stale_if_error=None, **options)), process=process)
    if ended:
        desk.go()
    else:
        desk.settle()


def stale_and_cold(**options: Any) -> tuple[Desk, Any]:
    """Something stale in Redis, and rules under which the lease is asked for first."""
    desk = Desk(options={"ttl": 10, "stale_if_error": 60, "error_backoff": (5, 5)} | options)
    rules = misses(desk, 4)
    assert read_under(desk, rules, desk.loader("old")) == "old"
    desk.pass_by(20)
    desk.local.drop_all()
    return desk, rules


@pytest.mark.parametrize("ended", [True, False])
def test_who_asks_for_the_lease_first_falls_back_where_the_load_of_another_process_fails(ended: bool) -> None:
    desk, rules = stale_and_cold()
    elsewhere(desk, desk.loader(ValueError("broken"), seconds=3), ended=ended)
    names: list[str] = []
    for _ in range(5):
        ask = desk.ask(desk.loader("mine"))
        ask.rules = rules
        names += desk.begin(desk.engine.read(ask))
    for name in names:
        desk.stepper.step(name)
    desk.go()
    assert [desk.result(name) for name in names] == ["old"] * 5
    assert desk.events.stale_hits == 5


@pytest.mark.parametrize("patience", [{"hard_timeout": 1}, {"wait_timeout": 1}])
def test_who_asks_for_the_lease_first_falls_back_where_another_process_takes_too_long(patience: dict[str, Any]) -> None:
    desk, rules = stale_and_cold(**patience)
    elsewhere(desk, desk.loader("theirs", seconds=30), ended=False, hard_timeout=100)
    assert read_under(desk, rules, desk.loader(ValueError("broken"))) == "old"
    desk.go()


@pytest.mark.parametrize("l1", [True, False])
def test_who_asks_for_the_lease_first_is_served_what_is_kept_while_redis_is_away(l1: bool) -> None:
    desk = Desk(options={"ttl": 10, "stale_if_error": 60, "l1": l1})
    rules = misses(desk, 4)
    assert read_under(desk, rules, desk.loader("old")) == "old"
    desk.pass_by(20)
    desk.faults["lease"] = desk.faults["MGET TIME"] = Fault.UNHEARD
    before = desk.events.misses
    assert read_under(desk, rules, desk.loader("new")) == ("old" if l1 else "new")
    assert (desk.events.misses - before, desk.events.stale_hits) == ((0, 1) if l1 else (1, 0))


# Functions with different policies on one key


def begun_elsewhere(desk: Desk, rules: Any) -> None:
    """A caller by *rules* begins to load what has been stale for a while."""
    desk.read(desk.loader("old"), rebuild="logical")
    desk.local.drop_all()
    desk.pass_by(20)
    ask = desk.ask(desk.loader("new", seconds=5))
    ask.rules = rules
    desk.begin(desk.engine.read(ask))
    desk.settle()


@pytest.mark.parametrize("first", [True, False])
def test_who_may_be_served_what_is_stale_does_not_wait_for_one_who_may_not(first: bool) -> None:
    desk = Desk(options={"ttl": 10})
    rules = misses(desk, 4 if first else 0, stale_if_error=None)
    begun_elsewhere(desk, rules)
    began = desk.now
    (name,) = desk.begin(desk.engine.read(desk.ask(desk.loader("mine"), rebuild="logical")))
    desk.settle()
    assert (desk.result(name), desk.now) == ("old", began)
    desk.go()


def test_a_stale_copy_is_served_only_by_rules_that_allow_its_age() -> None:
    desk = Desk(options={"ttl": 10})
    begun_elsewhere(desk, desk.rules(rebuild="logical"))
    assert desk.process.shared.meanwhile.entry(KEY, desk.now) is not None
    assert desk.run(desk.engine.read(desk.ask(desk.loader("mine"), stale_while_revalidate=5))) == "new"


def test_which_rules_miss_is_remembered_within_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    from cacheguard.engine import reading

    monkeypatch.setattr(reading, "MOST_COLD", 3)
    desk = Desk()
    kept = [misses(desk, 4) for _ in range(9)]
    assert len(desk.engine._cold) <= 3  # noqa: SLF001
    assert len(desk.engine._first) <= 3 < len(kept)  # noqa: SLF001


def test_what_is_remembered_of_reloads_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    from cacheguard.engine import beside

    monkeypatch.setattr(beside, "MOST_KEPT", 3)
    desk = Desk()
    meanwhile = Meanwhile(desk.local)
    for number in range(10):
        meanwhile.reloaded_elsewhere(f"k{number}", 0.0, 1.0, 0.5)
    assert [number for number in range(10) if meanwhile.leased_elsewhere(f"k{number}", 0.1)] == [7, 8, 9]
    assert not meanwhile.leased_elsewhere("k9", 0.2)
