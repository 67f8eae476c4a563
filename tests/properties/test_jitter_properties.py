from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cacheguard.defenses.avalanche import jittered, next_start
from cacheguard.defenses.breakdown import Verdict, early_by, judge, next_pause, poll_delay

ttls = st.floats(0.001, 1e9)
draws = st.floats(0, 1, exclude_max=True)
ratios = st.floats(0, 1, exclude_max=True)


@given(ttls, ratios, draws)
def test_a_drawn_ttl_is_within_the_jitter_and_above_nothing(ttl: float, jitter: float, draw: float) -> None:
    assert 0 < jittered(ttl, jitter, draw) <= ttl
    assert jittered(ttl, jitter, draw) >= ttl * (1 - jitter) * (1 - 1e-9)


@given(ttls, ratios, draws, draws)
def test_a_higher_draw_never_means_a_longer_ttl(ttl: float, jitter: float, one: float, other: float) -> None:
    low, high = sorted((one, other))
    assert jittered(ttl, jitter, high) <= jittered(ttl, jitter, low)


@given(st.floats(0, 1e6), draws)
def test_a_poll_is_never_sooner_than_7_5_ms_nor_later_than_200(waited: float, draw: float) -> None:
    assert 0.0075 <= poll_delay(waited, draw) <= 0.2


@given(st.floats(0, 1e4), draws, draws)
def test_an_early_reload_is_a_time_ahead_and_grows_with_the_draw(load_time: float, one: float, other: float) -> None:
    low, high = sorted((one, other))
    assert 0 <= early_by(load_time, low) <= early_by(load_time, high) < float("inf")


@given(st.floats(0.001, 100), st.floats(1, 100), st.integers(1, 50))
def test_pauses_never_shrink_and_never_pass_the_longest(first: float, factor: float, failures: int) -> None:
    backoff = first, first * factor
    pauses = [next_pause(None, backoff)]
    for _ in range(failures):
        pauses.append(next_pause(pauses[-1], backoff))
    assert pauses == sorted(pauses)
    assert pauses[0] == first
    assert pauses[-1] <= backoff[1]


@given(st.floats(-1e6, 1e6), st.floats(0, 1e6))
def test_an_entry_gets_no_better_with_age(fresh_left: float, revalidate: float) -> None:
    order = [Verdict.FRESH, Verdict.REVALIDATE, Verdict.LOAD]
    now, later = judge(fresh_left, revalidate), judge(fresh_left - 1, revalidate)
    assert order.index(now) <= order.index(later)


@given(st.integers(0, 10_000), st.floats(0, 1e6), st.floats(0.1, 1e4))
def test_a_warm_up_never_starts_more_than_its_rate_allows(index: int, began: float, rate: float) -> None:
    assert next_start(index, began, rate) - began >= (index / rate) * (1 - 1e-6) - 1e-6
