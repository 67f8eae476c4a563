from __future__ import annotations

from collections.abc import Coroutine
from typing import Any

import pytest

from cacheguard.delivery.outbox import Invalidation
from cacheguard.durations import FOREVER
from cacheguard.engine.ask import NO_SCOPE
from cacheguard.engine.flights import Flight
from cacheguard.engine.looking import look, peek
from cacheguard.errors import CodecError, LoadFailed, LoadTimeout, Overloaded, ReentrantLoad, Refused, Unreachable
from cacheguard.ports import Call, Reply, ScriptCall
from cacheguard.protocol import calls
from cacheguard.protocol.entry import Failed, Fill, Stored
from cacheguard.protocol.envelope import Kind
from cacheguard.protocol.exceptions import told
from cacheguard.tiers.remote import Remote
from tests.support.desk import KEY, Desk
from tests.support.stepped import Fault

BUS: dict[str, Any] = {"channel": "cg:bus", "echo": "other.1"}


class Missing(Exception):  # noqa: N818 - as users name them
    """A row that does not exist."""


class Odd(Exception):  # noqa: N818 - as users name them
    """One that has no form to be told in."""

    def __init__(self, code: int) -> None:
        super().__init__(f"code {code}")
        self.code = object()


def put(desk: Desk, envelope: object, fresh: int = 300_000, stale: int = 60_000) -> None:
    """Leave something in Redis, whoever wrote it."""
    desk.server.answer(calls.store(KEY, envelope, fresh=fresh / 1000, stale=stale / 1000, **BUS))


def hold(desk: Desk, token: str = "other") -> None:
    """Let another process hold the lease, and never finish."""
    assert desk.server.answer(calls.lease(KEY, token=token))[0] == b"GRANTED"


def cut(desk: Desk, fault: Fault = Fault.UNHEARD) -> None:
    """Nothing gets through to Redis."""
    for label in ("MGET TIME", "lease", "fill", "release", "renew", "invalidate", "expire", "store", "touch"):
        desk.faults[label] = fault


# Reading


def test_a_miss_loads_and_fills_both_tiers() -> None:
    desk = Desk()
    load = desk.loader(7)
    assert [desk.read(load), desk.read(load)] == [7, 7]
    desk.local.drop(KEY)
    assert desk.read(load) == 7
    assert load.runs == 1
    assert (desk.events.misses, desk.events.l2_hits, desk.events.fills) == (1, 1, 1)


def test_a_hit_in_redis_goes_to_the_local_tier_unless_the_policy_has_none() -> None:
    desk = Desk(options={"l1": False})
    desk.read(desk.loader(7))
    desk.read(desk.loader(8))
    assert desk.local.find(KEY) is None
    assert desk.read(desk.loader(8), l1=True) == 7
    assert desk.local.find(KEY) is not None


def test_the_local_tier_holds_nothing_longer_than_redis_nor_longer_than_asked() -> None:
    desk = Desk()
    desk.read(desk.loader(7), ttl=10, l1_ttl=60)
    entry = desk.local.find(KEY)
    assert entry is not None
    assert entry.until == entry.common.fresh_until == desk.now + 10
    desk.local.drop(KEY)
    desk.pass_by(4)
    desk.read(desk.loader(8), ttl=10, l1_ttl=2)
    entry = desk.local.find(KEY)
    assert entry is not None
    assert entry.until == desk.now + 2
    assert entry.common.fresh_until == pytest.approx(desk.now + 6)
    assert entry.common.born == pytest.approx(desk.now - 4)


def test_a_hit_that_is_fresh_in_redis_is_counted_as_absence_if_it_is_one() -> None:
    desk = Desk(options={"l1": False})
    load = desk.loader(None)
    assert desk.read(load) is None
    assert desk.read(load) is None
    assert (load.runs, desk.events.null_hits) == (1, 1)
    desk.pass_by(31)
    desk.read(load)
    assert load.runs == 2


def test_an_absence_is_not_cached_if_the_policy_does_not_want_it() -> None:
    desk = Desk(options={"null_ttl": None})
    load = desk.loader(None)
    desk.read(load)
    desk.read(load)
    assert load.runs == 2
    assert desk.server.holders == {}


def test_absences_beyond_the_budget_are_answered_and_not_stored() -> None:
    desk = Desk()
    desk.process.shared.budget.limit = 1
    loads = [desk.loader(None), desk.loader(None)]
    for load, key in zip(loads, "ab", strict=True):
        desk.read(load, key)
        desk.read(load, key)
    assert [load.runs for load in loads] == [1, 2]
    assert desk.events.absences_over_budget == 2


def test_an_exception_that_means_absence_is_cached_and_raised_anew() -> None:
    desk = Desk(options={"not_found": Missing})
    load = desk.loader(Missing("row 5"))
    for _ in range(3):
        with pytest.raises(Missing, match="row 5"):
            desk.read(load)
    assert load.runs == 1


def test_bytes_that_cannot_be_read_are_replaced() -> None:
    desk = Desk()
    put(desk, b"garbage")
    assert desk.read(desk.loader(7)) == 7
    assert desk.events.undecodable > 0
    assert desk.server.value(KEY, stale=False) == 7


def test_bytes_that_turn_up_unreadable_at_the_lease_are_replaced() -> None:
    desk = Desk()
    (name,) = desk.begin(desk.engine.read(desk.ask(desk.loader(7))))
    for _ in range(2):
        desk.stepper.step(name)
    put(desk, b"garbage")
    assert desk.run(look(desk.engine, KEY, NO_SCOPE)) is not None
    assert desk.result(name) == 7


def test_an_expired_value_is_not_served_while_a_load_may_succeed() -> None:
    desk = Desk()
    desk.read(desk.loader(1))
    desk.pass_by(301)
    assert desk.read(desk.loader(2)) == 2


def test_an_expired_value_is_served_at_once_and_reloaded_behind() -> None:
    desk = Desk(options={"stale_while_revalidate": 60})
    desk.read(desk.loader(1))
    desk.pass_by(301)
    assert desk.read(desk.loader(2)) == 1
    assert desk.read(desk.loader(3)) == 2
    assert (desk.events.refreshes, desk.events.stale_hits) == (1, 1)


def test_one_reload_behind_is_enough() -> None:
    desk = Desk(options={"stale_while_revalidate": 60, "l1": False})
    desk.read(desk.loader(1))
    desk.pass_by(301)
    load = desk.loader(2, seconds=1)
    reads = [desk.engine.read(desk.ask(load)) for _ in range(3)]
    names = desk.begin(*reads)
    desk.go()
    assert [desk.result(name) for name in names] == [1, 1, 1]
    assert load.runs == 1


def test_a_reload_behind_that_finds_no_room_leaves_no_flight() -> None:
    desk = Desk(options={"stale_while_revalidate": 60})
    desk.read(desk.loader(1))
    desk.pass_by(301)
    desk.refuse_detached()
    assert desk.read(desk.loader(2)) == 1
    assert desk.engine.flights == {}
    assert desk.events.refreshes == 0


def test_another_reader_may_be_quicker_to_start_the_reload_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    desk = Desk(options={"stale_while_revalidate": 60})
    desk.read(desk.loader(1))
    desk.pass_by(301)
    made = desk.process.runtime.signal

    def overtaken() -> object:
        desk.engine.flights[KEY] = Flight(made())
        return made()

    monkeypatch.setattr(desk.process.runtime, "signal", overtaken)
    assert desk.read(desk.loader(2)) == 1
    assert desk.events.refreshes == 0


def test_a_failed_load_is_not_tried_again_behind_at_once() -> None:
    desk = Desk(options={"stale_while_revalidate": 60, "l1": False})
    desk.read(desk.loader(1))
    desk.pass_by(301)
    load = desk.loader(ValueError("no"))
    assert [desk.read(load), desk.read(load)] == [1, 1]
    assert load.runs == 1
    desk.pass_by(0.2)
    assert desk.read(load) == 1
    assert load.runs == 2


def test_early_rebuild_reloads_ahead_of_time_and_serves_what_is_there() -> None:
    desk = Desk(options={"rebuild": "early", "l1": False})
    desk.read(desk.loader(1, seconds=10))
    desk.pass_by(280)
    assert desk.read(desk.loader(2)) == 1
    desk.pass_by(14)
    assert desk.read(desk.loader(2)) == 1
    assert desk.read(desk.loader(3)) == 2


def test_under_early_rebuild_the_local_tier_lets_go_before_a_draw_could_win() -> None:
    desk = Desk(options={"rebuild": "early", "l1_ttl": None})
    desk.read(desk.loader(1, seconds=10))
    entry = desk.local.find(KEY)
    assert entry is not None
    assert entry.until < entry.common.fresh_until - 10


# Loading


def test_a_failing_load_raises_its_own_exception_once_and_pauses() -> None:
    desk = Desk()
    error = ValueError("broken")
    load = desk.loader(error)
    with pytest.raises(ValueError, match="broken") as caught:
        desk.read(load)
    assert caught.value is error
    with pytest.raises(ValueError, match="broken") as again:
        desk.read(load)
    assert again.value is not error  # that one is the first caller's, with all its frames
    assert (load.runs, desk.events.backoffs) == (1, 1)
    desk.pass_by(0.11)
    with pytest.raises(ValueError, match="broken"):
        desk.read(load)
    desk.pass_by(0.11)
    with pytest.raises(ValueError, match="broken"):
        desk.read(load)
    assert load.runs == 2


def told_by_redis(monkeypatch: pytest.MonkeyPatch, desk: Desk, *, what: object) -> list[dict[str, Any]]:
    """Let every request for a lease be answered with a failure of another process; what is left at each release."""
    word = None if what is None else Stored(Kind.ERROR, what, 0.0, 0.0, ())
    outcome, left = Failed(word, failures=3, left=1.0), list[dict[str, Any]]()
    honest = desk.engine.remote.lease

    async def lease(*args: Any, **options: Any) -> Any:
        return outcome if desk.now < began + 1.0 else await honest(*args, **options)

    async def lease_many(tokens: dict[str, str], *_: Any, **__: Any) -> Any:
        return dict.fromkeys(tokens, outcome)

    async def release(*_: Any, **options: Any) -> bool:
        left.append(options)
        return True

    began = desk.now
    for each in (lease, lease_many, release):
        monkeypatch.setattr(desk.engine.remote, each.__name__, each)
    return left


def test_a_load_that_failed_elsewhere_a_moment_ago_is_not_run_here(monkeypatch: pytest.MonkeyPatch) -> None:
    desk = Desk(options={"error_backoff": ("100ms", "10s")})
    left = told_by_redis(monkeypatch, desk, what=told(ValueError("down")))
    load = desk.loader(ValueError("still down"))
    for _ in range(2):
        with pytest.raises(ValueError, match=r"^down"):
            desk.read(load)
    with pytest.raises(ValueError, match=r"^down"):
        desk.run(desk.batch(desk.loader({}), "many"))
    assert (load.runs, desk.events.backoffs) == (0, 3)
    desk.pass_by(1.1)
    with pytest.raises(ValueError, match="still down"):
        desk.read(load)
    assert left == [{"failures": 4, "kept_ms": 800}]  # the fourth in a row, of the fleet


def test_an_exception_of_elsewhere_that_cannot_be_rebuilt_costs_one_load_here(monkeypatch: pytest.MonkeyPatch) -> None:
    desk = Desk(options={"error_backoff": ("10s", "10s")})
    told_by_redis(monkeypatch, desk, what=told(Odd(5)))
    load = desk.loader(ValueError("down here, too"))
    for _ in range(2):
        with pytest.raises(ValueError, match="down here"):
            desk.read(load)
    assert load.runs == 1


def test_a_back_off_of_elsewhere_holds_for_no_refresh_and_not_where_none_is_wanted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    desk = Desk()
    told_by_redis(monkeypatch, desk, what=told(ValueError("down")))
    assert desk.run(desk.engine.refresh(desk.ask(desk.loader(7)))) == 7
    assert desk.read(desk.loader(8), error_backoff=None) == 8


def test_without_backoff_each_reader_tries_anew() -> None:
    desk = Desk(options={"error_backoff": None})
    load = desk.loader(ValueError("broken"))
    for _ in range(2):
        with pytest.raises(ValueError, match="broken"):
            desk.read(load)
    assert load.runs == 2


def test_a_failing_load_is_answered_with_the_old_value() -> None:
    desk = Desk(options={"l1": False})
    desk.read(desk.loader(1))
    desk.pass_by(301)
    load = desk.loader(ValueError("broken"))
    assert [desk.read(load), desk.read(load)] == [1, 1]
    assert (load.runs, desk.events.stale_hits) == (1, 2)


def test_an_absence_never_stands_in_for_a_row() -> None:
    desk = Desk(options={"l1": False})
    desk.read(desk.loader(None))
    with pytest.raises(ValueError, match="broken"):
        desk.run(desk.engine.refresh(desk.ask(desk.loader(ValueError("broken")))))
    desk.pass_by(31)
    with pytest.raises(ValueError, match="broken"):
        desk.read(desk.loader(ValueError("broken")), error_backoff=None)


def test_a_loader_that_reads_its_own_key_gets_an_error() -> None:
    desk = Desk()
    with pytest.raises(ReentrantLoad, match="reads the key that it is loading"):
        desk.read(desk.loader(lambda: desk.engine.read(desk.ask(desk.loader(1)))))


def test_a_loader_may_read_another_key() -> None:
    desk = Desk()
    assert desk.read(desk.loader(lambda: desk.engine.read(desk.ask(desk.loader(5), "inner")))) == 5
    assert desk.process.bulkhead.inside == 0


def test_a_slow_load_is_renewed() -> None:
    desk = Desk()
    names = desk.begin(desk.engine.read(desk.ask(desk.loader(1, seconds=20))))
    neighbour = desk.neighbour("B")
    names += desk.begin(neighbour.engine.read(desk.ask(desk.loader(2))), process=neighbour)
    desk.go()
    assert [desk.stepper.results[name] for name in names] == [1, 1]
    assert desk.server.grants == 1


def test_a_renewal_that_fails_does_no_harm() -> None:
    desk = Desk()
    desk.faults["renew"] = Fault.UNHEARD
    assert desk.read(desk.loader(1, seconds=20)) == 1
    assert desk.events.redis_errors > 0


@pytest.mark.parametrize("threads", [True, False], ids=["threads", "tasks"])
def test_a_load_beyond_its_time_is_given_up(threads: bool) -> None:
    desk = Desk(threads=threads, options={"hard_timeout": 10})
    load = desk.loader(1, seconds=60)
    first, second = desk.begin(desk.engine.read(desk.ask(load)), desk.engine.read(desk.ask(load)))
    desk.go()
    with pytest.raises(LoadTimeout, match="the load of k took longer than 10 s"):
        desk.result(second)
    # A thread cannot be stopped: its own caller gets what it waited for.
    if threads:
        assert desk.result(first) == 1
    else:
        with pytest.raises(LoadTimeout):
            desk.result(first)
    assert desk.server.value(KEY, stale=True) is None


def test_a_load_beyond_its_time_is_answered_with_the_old_value() -> None:
    desk = Desk(threads=False, options={"hard_timeout": 10, "l1": False})
    desk.read(desk.loader(1))
    desk.pass_by(301)
    assert desk.read(desk.loader(2, seconds=60)) == 1
    assert desk.events.load_timeouts == 1


def test_a_slow_load_is_answered_with_the_old_value_and_goes_on_behind() -> None:
    desk = Desk(options={"soft_timeout": 1, "l1": False})
    desk.read(desk.loader(1))
    desk.pass_by(301)
    assert desk.read(desk.loader(2, seconds=5)) == 1
    assert desk.read(desk.loader(3)) == 2


def test_without_room_behind_a_slow_load_is_not_started() -> None:
    desk = Desk(options={"soft_timeout": 1, "l1": False})
    desk.read(desk.loader(1))
    desk.pass_by(301)
    desk.refuse_detached()
    load = desk.loader(2)
    assert desk.read(load) == 1
    assert load.runs == 0
    assert desk.engine.flights == {}


def test_too_many_loads_are_refused() -> None:
    desk = Desk()

    class Full:
        patience = 1.0

        def try_enter(self) -> bool:
            return False

        async def enter(self, runtime: object) -> None:
            raise Overloaded("full")

        def leave(self) -> None: ...

    desk.process.shared.bulkhead = Full()
    with pytest.raises(Overloaded, match="full"):
        desk.read(desk.loader(1))
    assert desk.events.overloads == 1
    assert desk.server.holders == {}


def test_a_value_that_cannot_be_stored_is_returned_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    desk = Desk()

    def refuse(*_: object) -> None:
        raise CodecError("no bytes for that")

    monkeypatch.setattr(desk.engine.remote, "pack", refuse)
    assert desk.read(desk.loader(7)) == 7
    assert desk.events.unencodable == 1
    assert desk.server.holders == {}


def test_a_ttl_function_that_fails_costs_the_caching_not_the_value() -> None:
    desk = Desk(options={"ttl": lambda value: 1 / 0})
    assert desk.read(desk.loader(7)) == 7
    assert desk.server.value(KEY, stale=True) is None


def test_a_ttl_may_depend_on_the_value() -> None:
    desk = Desk(options={"ttl": lambda value: value, "l1": False})
    desk.read(desk.loader(20))
    desk.pass_by(19)
    assert desk.read(desk.loader(30)) == 20
    desk.pass_by(2)
    assert desk.read(desk.loader(30)) == 30


@pytest.mark.parametrize("stale", [False, True], ids=["a load", "a reload behind"])
def test_a_load_that_cannot_even_start_leaves_no_flight(stale: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    desk = Desk(options={"stale_while_revalidate": 60})
    if stale:
        desk.read(desk.loader(1))
        desk.pass_by(301)

    async def start(work: Coroutine[Any, Any, None], *, detached: bool) -> bool:
        work.close()
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(desk.process.runtime, "start", start)
    with pytest.raises(RuntimeError, match="new thread"):
        desk.read(desk.loader(2))
    with pytest.raises(RuntimeError, match="new thread"):
        desk.run(desk.batch(desk.loader(dict), "other"))
    assert desk.engine.flights == {}


def test_a_load_that_failed_between_two_looks_is_not_tried_again() -> None:
    desk = Desk()
    load = desk.loader(ValueError("broken"))
    runtime: Any = desk.process.runtime
    made = runtime.signal

    def fail_meanwhile() -> Any:
        runtime.signal = made
        with pytest.raises(ValueError, match="broken"):
            desk.read(load)
        return made()

    runtime.signal = fail_meanwhile
    with pytest.raises(ValueError, match="broken"):
        desk.read(load)
    assert load.runs == 1


# Several processes


def test_a_waiter_in_another_process_gets_what_the_holder_loads() -> None:
    desk = Desk()
    load = desk.loader(1, seconds=3)
    neighbour = desk.neighbour("B")
    desk.begin(neighbour.engine.read(desk.ask(load)), process=neighbour)
    desk.settle()
    assert desk.read(desk.loader(2)) == 1
    assert desk.events.waits == 1


def test_a_waiter_may_give_up_and_load_for_itself() -> None:
    desk = Desk(options={"wait_timeout": 1})
    hold(desk)
    assert desk.read(desk.loader(2)) == 2
    assert desk.server.value(KEY, stale=True) is None


def test_a_waiter_in_this_process_may_give_up_and_load_for_itself() -> None:
    desk = Desk(options={"wait_timeout": 1}, threads=False)
    slow, own = desk.loader(1, seconds=5), desk.loader(2)
    first, second = desk.begin(desk.engine.read(desk.ask(slow)), desk.engine.read(desk.ask(own)))
    desk.go()
    assert (desk.result(first), desk.result(second)) == (1, 2)


def test_a_load_alone_that_is_cancelled_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    desk = Desk(options={"wait_timeout": 1, "hard_timeout": None}, threads=False)
    slow = desk.loader(1, seconds=5)
    doomed = desk.loader(2, seconds=9)
    first, second = desk.begin(desk.engine.read(desk.ask(slow)), desk.engine.read(desk.ask(doomed)))
    desk.cancel(f"{second}.flight1", when=lambda: doomed.runs > 0)
    desk.go()
    assert desk.result(first) == 1
    with pytest.raises(LoadFailed, match="cancelled"):
        desk.result(second)


def test_a_waiter_is_served_the_old_value_if_the_policy_allows_it() -> None:
    desk = Desk(options={"stale_while_revalidate": 60, "l1": False})
    put(desk, Stored(Kind.VALUE, 1, 300.0, 0.0, ()))
    (name,) = desk.begin(desk.engine.read(desk.ask(desk.loader(2))))
    desk.server.evict(KEY)
    for _ in range(3):
        desk.stepper.step(name)
    put(desk, Stored(Kind.VALUE, 1, 300.0, 0.0, ()), fresh=1, stale=60_000)
    desk.pass_by(1)
    hold(desk)
    desk.go()
    assert desk.result(name) == 1
    assert desk.events.stale_hits == 1


def test_a_waiter_does_not_wait_longer_than_a_load_may_take() -> None:
    desk = Desk(options={"hard_timeout": 3})
    hold(desk)
    with pytest.raises(LoadTimeout, match="for another process to load k"):
        desk.read(desk.loader(2))
    assert desk.events.load_timeouts == 1


def test_a_dead_holder_is_replaced_when_its_lease_is_over() -> None:
    desk = Desk()
    hold(desk)
    began = desk.now
    assert desk.read(desk.loader(2)) == 2
    assert 5.0 <= desk.now - began <= 5.5


@pytest.mark.parametrize(("error", "own"), [(ValueError("far away"), False), (Odd(5), True)])
def test_a_load_that_fails_elsewhere_is_told_in_its_own_words_or_tried_here(error: Exception, own: bool) -> None:
    desk = Desk()
    load, here = desk.loader(error, seconds=1), desk.loader(2)
    neighbour = desk.neighbour("B")
    desk.begin(neighbour.engine.read(desk.ask(load)), process=neighbour)
    desk.settle()
    if own:
        assert desk.read(here) == 2
    else:
        with pytest.raises(ValueError, match="far away") as caught:
            desk.read(here)
        assert "in another process" in caught.value.__notes__[0]
    assert here.runs == own


def test_a_load_that_fails_elsewhere_is_answered_with_the_old_value() -> None:
    desk = Desk(options={"l1": False})
    desk.read(desk.loader(1))
    desk.pass_by(301)
    neighbour = desk.neighbour("B")
    desk.begin(neighbour.engine.read(desk.ask(desk.loader(Odd(5), seconds=1))), process=neighbour)
    desk.settle()
    here = desk.loader(2)
    assert desk.read(here) == 1
    assert here.runs == 0


def test_during_a_write_values_are_loaded_and_not_kept() -> None:
    desk = Desk()
    desk.server.answer(calls.invalidate(KEY, begins="writer", intent_ms=10_000, **BUS))
    assert desk.read(desk.loader(1)) == 1
    assert desk.read(desk.loader(2)) == 2
    assert desk.local.find(KEY) is None


def test_a_follower_that_no_flight_serves_loads_for_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    desk = Desk(threads=False)
    monkeypatch.setattr(Flight, "serves", lambda *_, **__: False)
    desk.faults["fill"] = Fault.UNHEARD
    desk.faults["lease"] = Fault.UNHEARD
    loads = [desk.loader(number, seconds=1) for number in range(5)]
    names = desk.begin(*(desk.engine.read(desk.ask(load, l1=False)) for load in loads))
    desk.go()
    assert [desk.result(name) in range(5) for name in names] == [True] * 5


def test_a_follower_that_joined_late_reads_again() -> None:
    desk = Desk(threads=False, options={"l1": False})
    slow = desk.loader(1, seconds=2)
    (first,) = desk.begin(desk.engine.read(desk.ask(slow)))
    desk.settle()
    desk.faults["fill"] = Fault.UNANSWERED
    again = desk.loader(2)
    assert desk.run(desk.engine.read(desk.ask(again))) == 1
    assert desk.result(first) == 1
    assert again.runs == 0


def test_a_follower_that_cannot_read_again_leads_a_flight_of_its_own() -> None:
    desk = Desk(threads=False, options={"l1": False})
    (first,) = desk.begin(desk.engine.read(desk.ask(desk.loader(1, seconds=2))))
    desk.settle()
    (second,) = desk.begin(desk.engine.read(desk.ask(desk.loader(2))))
    desk.settle()
    cut(desk)
    desk.go()
    assert (desk.result(first), desk.result(second)) == (1, 2)


# Without Redis


def test_without_redis_the_loader_answers_and_the_local_tier_keeps_it() -> None:
    desk = Desk()
    cut(desk)
    load = desk.loader(1)
    assert [desk.read(load), desk.read(load)] == [1, 1]
    assert load.runs == 1
    assert desk.events.redis_errors == 1


def test_without_redis_what_the_local_tier_held_is_served_for_a_while() -> None:
    desk = Desk(options={"ttl": 10, "stale_if_error": 60})
    desk.read(desk.loader(1))
    cut(desk)
    desk.pass_by(11)
    load = desk.loader(2)
    assert desk.read(load) == 1
    assert (load.runs, desk.events.stale_hits) == (0, 1)
    desk.pass_by(60)
    assert desk.read(load) == 2


def test_a_lease_that_cannot_be_asked_for_means_a_load_kept_in_this_process() -> None:
    desk = Desk()
    desk.faults["lease"] = Fault.UNHEARD
    load = desk.loader(1)
    assert [desk.read(load), desk.read(load)] == [1, 1]
    assert load.runs == 1
    assert desk.server.value(KEY, stale=True) is None


@pytest.mark.parametrize("fault", [Fault.UNHEARD, Fault.UNANSWERED, Fault.REFUSED])
def test_a_fill_that_fails_costs_the_caching_not_the_value(fault: Fault) -> None:
    desk = Desk()
    desk.faults["fill"] = fault
    assert desk.read(desk.loader(1)) == 1
    assert desk.events.fills_failed == 1
    assert desk.local.find(KEY) is None
    # A full server answers: nobody shall wait for a lease that nothing comes of.
    assert (KEY in desk.server.holders) == (fault is Fault.UNHEARD)


def test_a_server_that_refuses_everything_is_as_good_as_none() -> None:
    desk = Desk()
    cut(desk, Fault.REFUSED)
    assert desk.read(desk.loader(1)) == 1
    with pytest.raises(Refused):
        desk.run(desk.engine.remote.fill_many([Fill(KEY, "token", b"v", 1.0, 0.0)]))
    assert isinstance(desk.engine.remote, Remote)
    with pytest.raises(Refused):
        desk.run(desk.engine.remote.of(KEY).by_hand.store({KEY: (b"v", 1.0, 0.0)}, "", b"", (), 0))


# Peeking and looking


def test_peeking_never_loads() -> None:
    desk = Desk(options={"stale_while_revalidate": 60, "l1": False})

    def peeked() -> tuple[dict[str, object], int]:
        found = desk.run(peek(desk.engine, [KEY, "other"], None, desk.rules(), NO_SCOPE))
        return {key: stored.value for key, stored in found.items()}, desk.events.stale_hits

    assert peeked() == ({}, 0)
    desk.read(desk.loader(1))
    assert peeked() == ({KEY: 1}, 0)
    desk.pass_by(301)
    assert peeked() == ({KEY: 1}, 1)
    desk.pass_by(60)
    assert peeked() == ({}, 1)
    put(desk, b"garbage")
    assert peeked() == ({}, 1)


def test_peeking_at_what_is_too_old_or_out_of_reach_finds_nothing() -> None:
    desk = Desk()
    desk.read(desk.loader(1))
    desk.pass_by(301)
    assert desk.run(peek(desk.engine, [KEY], None, desk.rules(), NO_SCOPE)) == {}
    cut(desk)
    assert desk.run(peek(desk.engine, [KEY], None, desk.rules(), NO_SCOPE)) == {}
    assert desk.run(look(desk.engine, KEY, NO_SCOPE)) is None


def test_looking_counts_nothing() -> None:
    desk = Desk()
    desk.read(desk.loader(1))
    found = desk.run(look(desk.engine, KEY, NO_SCOPE))
    assert found.stored.value == 1
    assert found.fresh_left == pytest.approx(300)
    assert desk.events.l2_hits == 0


# Writing


def test_a_refresh_loads_whatever_is_cached() -> None:
    desk = Desk()
    desk.read(desk.loader(1))
    assert desk.run(desk.engine.refresh(desk.ask(desk.loader(2)))) == 2
    assert desk.read(desk.loader(3)) == 2


def test_refreshes_side_by_side_share_a_load() -> None:
    desk = Desk(threads=False)
    load = desk.loader(2, seconds=1)
    names = desk.begin(*(desk.engine.refresh(desk.ask(load)) for _ in range(3)))
    desk.go()
    assert [desk.result(name) for name in names] == [2, 2, 2]
    assert load.runs == 1


def test_a_refresh_during_a_load_waits_for_a_load_of_its_own() -> None:
    desk = Desk(threads=False)
    desk.begin(desk.engine.read(desk.ask(desk.loader(1, seconds=1))))
    desk.settle()
    assert desk.run(desk.engine.refresh(desk.ask(desk.loader(2)))) == 2


def test_a_refresh_that_fails_raises_although_an_old_value_is_there() -> None:
    desk = Desk()
    desk.read(desk.loader(1))
    with pytest.raises(ValueError, match="broken"):
        desk.run(desk.engine.refresh(desk.ask(desk.loader(ValueError("broken")))))


def test_a_value_put_by_hand_is_there_for_all() -> None:
    desk = Desk()
    desk.read(desk.loader(1))
    assert desk.run(desk.engine.changes.store({KEY: 5}, desk.rules(), {KEY: None}, ("tag",), NO_SCOPE))  # type: ignore[dict-item]
    assert desk.read(desk.loader(2)) == 5
    assert desk.run(desk.engine.changes.store({KEY: None}, desk.rules(), {KEY: None}, (), NO_SCOPE))  # type: ignore[dict-item]
    assert desk.read(desk.loader(2)) is None
    assert desk.events.null_hits == 1


def test_a_value_without_end_is_kept_for_a_year() -> None:
    desk = Desk(options={"ttl": None, "l1_ttl": None})
    desk.run(desk.engine.changes.store({KEY: 5}, desk.rules(), {KEY: None}, (), NO_SCOPE))  # type: ignore[dict-item]
    desk.pass_by(FOREVER - 1)
    assert desk.read(desk.loader(2)) == 5


def test_touching_gives_a_fresh_entry_its_time_anew() -> None:
    desk = Desk(options={"l1": False})
    assert not desk.run(desk.engine.changes.touch(KEY, desk.rules(), NO_SCOPE))
    desk.read(desk.loader(1))
    desk.pass_by(299)
    assert desk.run(desk.engine.changes.touch(KEY, desk.rules(), NO_SCOPE))
    desk.pass_by(299)
    assert desk.read(desk.loader(2)) == 1
    cut(desk)
    with pytest.raises(Unreachable):
        desk.run(desk.engine.changes.touch(KEY, desk.rules(), NO_SCOPE))


def test_an_absence_that_is_not_to_be_cached_is_not_kept_longer_either() -> None:
    desk = Desk()
    desk.read(desk.loader(None))
    assert desk.run(desk.engine.changes.touch(KEY, desk.rules(), NO_SCOPE))
    assert not desk.run(desk.engine.changes.touch(KEY, desk.rules(null_ttl=None), NO_SCOPE))


def test_an_expired_key_is_loaded_again() -> None:
    desk = Desk()
    desk.read(desk.loader(1))
    assert desk.run(desk.engine.changes.expire([KEY]))
    assert desk.read(desk.loader(2)) == 2
    assert desk.events.invalidations == 1


def test_an_invalidated_key_is_gone_from_both_tiers_and_its_failures_are_forgotten() -> None:
    desk = Desk()
    with pytest.raises(ValueError, match="broken"):
        desk.read(desk.loader(ValueError("broken")))
    assert desk.run(desk.engine.changes.invalidate([Invalidation(KEY)]))
    assert desk.read(desk.loader(1)) == 1
    assert desk.run(desk.engine.changes.invalidate([Invalidation(KEY)]))
    assert desk.local.find(KEY) is None
    assert desk.server.value(KEY, stale=True) is None


@pytest.mark.parametrize("name", ["invalidate", "expire"])
@pytest.mark.parametrize("fault", [Fault.UNHEARD, Fault.UNANSWERED, Fault.REFUSED])
def test_an_invalidation_that_is_not_acknowledged_is_delivered_before_anything_is_read(name: str, fault: Fault) -> None:
    desk = Desk()
    desk.read(desk.loader(1))
    desk.faults[name] = fault
    changes = desk.engine.changes
    assert not desk.run(changes.expire([KEY]) if name == "expire" else changes.invalidate([Invalidation(KEY)]))
    assert desk.events.invalidations_queued == 1
    if name == "invalidate":
        assert desk.read(desk.loader(2)) == 2
        assert [item.key for item in desk.process.outbox.pending] == [KEY]
    desk.faults.clear()
    assert desk.read(desk.loader(3), l1=False) == 3
    assert desk.events.invalidations_queued == 0


def test_more_invalidations_than_can_be_owed_become_one_of_the_whole_namespace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cacheguard.delivery.outbox.MOST_PENDING", 1)
    desk = Desk()
    cut(desk)
    assert not desk.run(desk.engine.changes.invalidate([Invalidation("a")]))
    assert not desk.run(desk.engine.changes.invalidate([Invalidation("b")]))
    assert [item.key for item in desk.process.outbox.pending] == ["cg:world:m"]
    assert desk.events.outbox_overflows == 1


WRONG_TYPE = Refused("WRONGTYPE Operation against a key holding the wrong kind of value")


@pytest.mark.parametrize("told", [None, WRONG_TYPE], ids=["to MGET it is nothing", "to GET it is foreign"])
def test_something_foreign_under_a_key_is_left_alone(monkeypatch: pytest.MonkeyPatch, told: Reply) -> None:
    desk = Desk()
    honest = desk.server.answer

    def foreign(call: Call) -> Reply:
        reply = honest(call)
        if isinstance(call, ScriptCall):
            return WRONG_TYPE
        return [told] if call[0] == "MGET" else reply

    monkeypatch.setattr(desk.server, "answer", foreign)
    load = desk.loader(1)
    assert desk.read(load, l1=False) == 1
    assert desk.run(desk.engine.changes.invalidate([Invalidation(KEY)]))
    assert desk.events.undecodable == (1 if told is None else 2)  # by LEASE, and by READ where it is told


def test_a_reply_that_makes_no_sense_is_an_outage(monkeypatch: pytest.MonkeyPatch) -> None:
    desk = Desk()
    monkeypatch.setattr(desk.server, "answer", lambda call: b"what?")
    with pytest.raises(Refused, match="unexpected reply bytes"):
        desk.run(desk.engine.remote.read(KEY, None, NO_SCOPE, ()))
    assert desk.events.redis_errors == 1
    assert desk.read(desk.loader(1)) == 1


@pytest.mark.parametrize("word", ["MGET", "TIME"])
def test_a_question_that_is_refused_is_counted_and_no_reader_is_harmed(
    monkeypatch: pytest.MonkeyPatch, word: str
) -> None:
    desk = Desk(options={"l1": False})
    put(desk, Stored(Kind.VALUE, "cached", 300.0, 0.0, ()))
    honest = desk.server.answer

    def refuse(call: Call) -> Reply:
        return Refused("NOPERM no") if not isinstance(call, ScriptCall) and call[0] == word else honest(call)

    monkeypatch.setattr(desk.server, "answer", refuse)
    assert desk.read(desk.loader("loaded")) in ("cached", "loaded")
    assert desk.events.redis_errors == 1
    assert desk.run(desk.batch(desk.loader(lambda: {KEY: "loaded"}), KEY)) in ({KEY: "cached"}, {KEY: "loaded"})
    assert desk.events.redis_errors == 2


def test_a_late_fill_is_refused_after_an_invalidation() -> None:
    desk = Desk()
    (name,) = desk.begin(desk.engine.read(desk.ask(desk.loader(1, seconds=1))))
    desk.settle()
    desk.server.answer(calls.invalidate(KEY, **BUS))
    late = Fill(KEY, "A-1", b"late", 1.0, 0.0)
    assert desk.server.answer(calls.fill(late, channel="cg:bus")) == 0
    desk.go()
    assert desk.result(name) == 1
    assert desk.events.fills_refused == 1
