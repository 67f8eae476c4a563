from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest

from cacheguard.errors import ConfigurationError
from cacheguard.events import Events
from cacheguard.tiers.local import DEAD, Entry, Eviction, Index, Local, check


def tier(size: int = 10, max_bytes: int | None = None, eviction: Eviction = "lru") -> Local:
    return Local(size, max_bytes, eviction, nullcontext(), Events(), lambda: 1.0)


def entry(key: str, value: Any = 1, *, absence: bool = False) -> Entry:
    return Entry(key, value, kind=int(absence), until=9.0, fresh_until=9.0, born=0.0)


def put(local: Local, key: str, value: Any = 1, *, absence: bool = False) -> Entry:
    made = entry(key, value, absence=absence)
    assert local.put(made, local.tickets.take(), absence=absence)
    return made


def test_a_voided_ticket_keeps_an_entry_out() -> None:
    local = tier()
    ticket = local.tickets.take()
    local.drop("k")
    assert not local.put(entry("k"), ticket, absence=False)
    assert local.find("k") is None


def test_a_dropped_entry_is_dead_for_whoever_still_holds_it() -> None:
    local = tier()
    made = put(local, "k")
    local.drop("k")
    assert made.until == made.fresh_until == DEAD


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
    assert 2 <= entries <= 4
    assert 0 < size <= 5_000


def test_what_is_larger_than_the_room_is_true_but_not_kept() -> None:
    local = tier(100, max_bytes=1_000)
    put(local, "old")
    huge = entry("old", "x" * 5_000)
    assert local.put(huge, local.tickets.take(), absence=False)
    assert local.find("old") is None


def test_arguments_lead_to_an_entry_until_it_goes() -> None:
    local, index = tier(), Index()
    made = put(local, "k")
    local.bind(made, index, 42, int)
    assert index[42] is made
    local.drop("k")
    assert index == {}


def test_large_arguments_lead_nowhere_where_bytes_are_bounded() -> None:
    local, index = tier(100, max_bytes=50_000), Index()
    made = put(local, "k")
    local.bind(made, index, "x" * 4000, str)
    local.bind(made, index, ("x" * 4000, 1), None)
    assert index == {}
    local.bind(made, index, ("x" * 100, 1), None)
    assert len(index) == 1


def test_the_texts_of_tags_take_room() -> None:
    def size(mark: str) -> int:
        local = tier(100, max_bytes=50_000)
        made = entry("k", "v")
        made.marks = (mark,)
        local.put(made, local.tickets.take(), absence=False)
        return local.census()[1]

    assert size("m" * 3000) >= size("m") + 2 * 2999


def test_an_entry_that_has_gone_is_not_bound() -> None:
    local, index = tier(), Index()
    made = put(local, "k")
    local.drop("k")
    local.bind(made, index, 42, int)
    assert index == {}


def test_an_entry_has_few_bindings_and_one_type() -> None:
    local, index = tier(), Index()
    made = put(local, "k")
    for number in range(9):
        local.bind(made, index, number, int)
    assert len(index) == 4
    other = put(local, "other")
    local.bind(other, index, "text", str)
    local.bind(other, index, 77, int)
    assert 77 not in index


def test_a_binding_that_leads_to_another_entry_by_now_is_left_alone() -> None:
    local, index = tier(), Index()
    first, second = put(local, "first"), put(local, "second")
    local.bind(first, index, 42, int)
    local.bind(second, index, 42, int)
    local.drop("first")
    assert index[42] is second


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
    assert not local.put(entry("k"), local.tickets.take(), absence=False)
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
