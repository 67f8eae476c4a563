from __future__ import annotations

import gc
import math
import weakref
from contextlib import nullcontext
from sys import getsizeof
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cacheguard.errors import ConfigurationError
from cacheguard.events import Events
from cacheguard.tiers.held import DEAD, Entry, Shelf, Shelving
from cacheguard.tiers.local import Eviction, Local, check
from tests.support.entries import entry


def tier(size: int = 10, max_bytes: int | None = None, eviction: Eviction = "lru") -> Local:
    return Local(size, max_bytes, eviction, nullcontext(), Events(), lambda: 1.0)


def put(local: Local, key: str, value: Any = 1, *, absence: bool = False) -> Entry:
    made = entry(value, kind=int(absence), keyed=local.touches)
    assert local.put(key, made, local.tickets.take(), absence=absence)
    return made


def test_a_voided_ticket_keeps_an_entry_out() -> None:
    local = tier()
    ticket = local.tickets.take()
    local.drop("k")
    assert not local.put("k", entry(), ticket, absence=False)
    assert local.find("k") is None


def test_a_dropped_entry_is_dead_for_whoever_still_holds_it() -> None:
    local = tier()
    made = put(local, "k")
    local.drop("k")
    assert made.until == made.common.fresh_until == made.common.kept_until == DEAD


def test_a_used_entry_gets_a_second_chance() -> None:
    local = tier(2)
    put(local, "a").hits += 1
    put(local, "b")
    put(local, "c")
    assert [local.find(key) is not None for key in "abc"] == [True, False, True]


def test_second_chances_have_an_end() -> None:
    local = tier(40)
    for number in range(40):
        put(local, str(number)).hits += 1
    put(local, "new")
    assert local.find("new") is not None
    assert local.census()[0] == 40


def test_the_least_often_used_goes_first_under_lfu() -> None:
    local = tier(2, eviction="lfu")
    assert local.touches
    often, seldom = put(local, "often"), put(local, "seldom")
    for used in (often, often, seldom):
        local.touch(used)
    put(local, "new")
    assert local.find("seldom") is None
    assert local.find("often") is often


def test_under_other_policies_a_use_is_not_told() -> None:
    local = tier(2, eviction="fifo")
    first = put(local, "first")
    put(local, "second")
    local.touch(first)
    put(local, "third")
    assert local.find("first") is None


def test_absences_never_push_out_a_value() -> None:
    local = tier(8)
    put(local, "value")
    for number in range(20):
        put(local, f"absent {number}", None, absence=True)
    assert local.find("value") is not None
    assert local.find("absent 19") is not None
    assert local.find("absent 18") is None


def test_bytes_bound_the_room_too() -> None:
    local = tier(100, max_bytes=5_000)
    for number in range(10):
        put(local, str(number), "x" * 500)
    entries, size = local.census()
    assert 2 <= entries <= 5
    assert 0 < size <= 5_000


def test_what_is_larger_than_the_room_is_true_but_not_kept() -> None:
    local = tier(100, max_bytes=1_000)
    put(local, "old")
    huge = entry("x" * 5_000)
    assert local.put("old", huge, local.tickets.take(), absence=False)
    assert local.find("old") is None


def test_arguments_lead_to_an_entry_until_it_goes() -> None:
    local, shelf = tier(), Shelf()
    made = put(local, "k")
    local.bind("k", made, shelf, 42, int)
    assert shelf.index[42] is made
    local.drop("k")
    assert shelf.index == {}


def test_large_arguments_lead_nowhere_where_bytes_are_bounded() -> None:
    local, shelf = tier(100, max_bytes=50_000), Shelf()
    made = put(local, "k")
    local.bind("k", made, shelf, "x" * 4000, str)
    local.bind("k", made, shelf, ("x" * 4000, 1), None)
    assert shelf.index == {}
    local.bind("k", made, shelf, ("x" * 100, 1), None)
    assert len(shelf.index) == 1


def test_the_texts_of_tags_take_room() -> None:
    def size(mark: str) -> int:
        local = tier(100, max_bytes=50_000)
        made = entry("v", marks=(mark,))
        local.put("k", made, local.tickets.take(), absence=False)
        return local.census()[1]

    assert size("m" * 3000) >= size("m") + 2 * 2999


def test_an_entry_that_has_gone_is_not_bound() -> None:
    local, shelf = tier(), Shelf()
    made = put(local, "k")
    local.drop("k")
    local.bind("k", made, shelf, 42, int)
    assert shelf.index == {}


def test_an_entry_has_few_bindings_and_one_type() -> None:
    local, shelf = tier(), Shelf()
    made = put(local, "k")
    for number in range(9):
        local.bind("k", made, shelf, number, int)
    assert len(shelf.index) == 4
    other = put(local, "other")
    local.bind("other", other, shelf, "text", str)
    local.bind("other", other, shelf, 77, int)
    assert 77 not in shelf.index


def test_a_binding_that_leads_to_another_entry_by_now_is_left_alone() -> None:
    local, shelf = tier(), Shelf()
    first, second = put(local, "first"), put(local, "second")
    local.bind("first", first, shelf, 42, int)
    local.bind("second", second, shelf, 42, int)
    local.drop("first")
    assert shelf.index[42] is second


def test_hits_are_handed_in_when_an_entry_goes() -> None:
    events = Events()
    local = Local(10, None, "lru", nullcontext(), events, lambda: 1.0)
    made = put(local, "k")
    made.hits += 3
    put(local, "absent", None, absence=True).hits += 2
    assert local.census() == (2, 0)
    assert (events.l1_hits, events.null_hits) == (5, 2)
    made.hits += 1
    local.drop_all()
    assert (events.l1_hits, events.null_hits) == (6, 2)
    assert local.census() == (0, 0)
    assert dict(events.snapshot(0, 0).age_at_serve)[1.0] == 6


def test_a_tier_that_is_switched_off_stays_empty_until_all_have_switched_it_on() -> None:
    local = tier()
    put(local, "k")
    local.switch(off=True)
    local.switch(off=True)
    local.switch(off=False)
    assert local.find("k") is None
    assert not local.put("k", entry(), local.tickets.take(), absence=False)
    local.switch(off=False)
    put(local, "k")


@pytest.mark.parametrize(
    ("size", "max_bytes", "eviction", "name"),
    [
        (0, None, "lru", "l1_size"),
        (True, None, "lru", "l1_size"),
        (1.5, None, "lru", "l1_size"),
        (1, 0, "lru", "l1_max_bytes"),
        (1, True, "lru", "l1_max_bytes"),
        (1, "1mb", "lru", "l1_max_bytes"),
        (1, None, "mru", "l1_eviction"),
    ],
)
def test_options_that_no_tier_can_have_are_refused_by_name(
    size: object, max_bytes: object, eviction: object, name: str
) -> None:
    with pytest.raises(ConfigurationError, match=name):
        check(size, max_bytes, eviction)


def test_options_that_a_tier_can_have_are_taken() -> None:
    for eviction in ("lru", "lfu", "fifo", "random"):
        check(1, 1, eviction)
        put(tier(2, eviction=eviction), "k")


def test_a_ticket_is_renewed_for_its_holder_alone() -> None:
    local = tier()
    mine = local.tickets.take()
    renewed = local.renewed_ticket("k", (), mine)
    assert not local.tickets.holds(mine, "k")
    assert local.tickets.holds(renewed, "k")
    assert local.renewed_ticket("k", (), mine) == mine


def test_no_ticket_is_renewed_that_is_void_for_a_marker() -> None:
    local = tier()
    mine = local.tickets.take()
    local.drop("marker of red")
    assert local.renewed_ticket("k", ("marker of red",), mine) == mine
    assert local.tickets.holds(local.renewed_ticket("k", ("marker of blue",), mine), "k")


# What an entry takes


def shelved(value: Any = 7, *, now: float = 1000.0, **more: Any) -> Entry:
    times: dict[str, Any] = {"now": now, "kept_until": now + 3600, "fresh_until": now + 3600, "born": now}
    return SHELVING.entry(value, **times, **more)


SHELVING = Shelving()


def test_an_entry_is_64_bytes_and_the_collector_does_not_look_at_it_if_its_value_holds_nothing() -> None:
    made = shelved(7)
    assert (getsizeof(made), gc.is_tracked(made)) == (64, False)
    assert type(made).__setattr__ is object.__setattr__  # CPython stores into the slots of such a class directly


def test_an_entry_whose_value_may_lead_back_to_it_is_known_to_the_collector() -> None:
    class Service:
        row: Any

    service = Service()
    service.row = shelved(service)
    known = weakref.ref(service)
    assert gc.is_tracked(service.row)
    del service
    gc.collect()
    assert known() is None


def test_a_function_that_is_gone_with_its_index_is_no_cycle_of_its_entries() -> None:
    local, shelf = tier(), Shelf()
    made = put(local, "k")
    local.bind("k", made, shelf, 42, int)
    known = weakref.ref(shelf)
    del shelf
    assert known() is None
    local.drop("k")
    assert local.find("k") is None


def test_entries_of_nearly_the_same_times_share_them() -> None:
    one, other = shelved(now=1000.0), shelved(now=1000.3)
    assert one.common is other.common
    assert one.until is other.until
    assert shelved(now=1000.0, marks=("m",), tags=("t",)).common is not one.common


@given(
    now=st.floats(0, 1e7),
    left=st.floats(0.001, 1e7),
    kept=st.floats(0.001, 1e7),
    dead=st.floats(0, 1e7) | st.just(math.inf),
    age=st.floats(0, 1e6),
)
def test_what_is_shared_never_makes_an_entry_live_longer_and_hardly_shorter(
    now: float, left: float, kept: float, dead: float, age: float
) -> None:
    end, kept_until = now + left, now + min(kept, left)
    made = SHELVING.entry(
        7, now=now, kept_until=kept_until, fresh_until=end, born=now - age, dead_from=end + dead
    ).common
    assert made.kept_until <= kept_until
    assert made.fresh_until <= end
    assert made.dead_from <= end + dead
    assert made.born <= now - age
    room = 1 / 256 + 1e-9
    assert made.fresh_until >= end - left * room - 1e-6
    assert made.kept_until >= kept_until - left * room - 1e-6
    assert made.born >= now - age - (left + age) * room - 1e-6
    assert made.kept_until <= made.fresh_until <= made.dead_from


def test_a_wrapper_meets_one_class_of_entries_where_some_ids_do_not_exist() -> None:
    for values in ((7, None), ([7], None)):
        assert len({type(shelved(value)) for value in values}) == 1


def test_who_holds_an_entry_that_is_dropped_still_reads_what_its_value_is() -> None:
    local = tier()
    made = put(local, "k", None, absence=True)
    local.drop("k")
    assert (made.common.kind, made.value) == (1, None)


@pytest.mark.parametrize("eviction", ["lru", "fifo"])
def test_the_first_of_many_goes_first_however_many_are_gone_before_it(eviction: Eviction) -> None:
    local = tier(2_000, eviction=eviction)
    for number in range(2_000):
        put(local, str(number))
    for number in range(0, 2_000, 2):
        local.drop(str(number))
    put(local, "1")  # comes again: last
    for number in range(1_001 + 500):
        put(local, f"new {number}")
    left = [number for number in range(2_000) if local.find(str(number)) is not None]
    assert left == [1, *range(1_005, 2_000, 2)]


def test_hits_that_are_handed_in_still_count_as_a_use() -> None:
    local = tier(2)
    put(local, "a").hits += 1
    put(local, "b")
    local.census()
    put(local, "c")
    assert [local.find(key) is not None for key in "abc"] == [True, False, True]


@pytest.mark.parametrize("eviction", ["lru", "fifo", "lfu", "random"])
def test_bytes_are_given_back(eviction: Eviction) -> None:
    local = tier(100, max_bytes=50_000, eviction=eviction)
    for number in range(20):
        put(local, str(number), "x" * 500)
    before = local.census()
    put(local, "19", "x" * 900)
    local.drop("18")
    assert local.census()[0] == before[0] - 1
    local.drop_all()
    assert local.census() == (0, 0)
