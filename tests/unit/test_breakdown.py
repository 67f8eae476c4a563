from __future__ import annotations

import pytest

from cacheguard.defenses.breakdown import Verdict, early_by, judge, next_pause, pause_after, poll_delay


@pytest.mark.parametrize(
    ("fresh_left", "revalidate", "verdict"),
    [
        (None, 60.0, Verdict.LOAD),
        (0.001, 0.0, Verdict.FRESH),
        (0.0, 60.0, Verdict.REVALIDATE),
        (-59.9, 60.0, Verdict.REVALIDATE),
        (-60.0, 60.0, Verdict.LOAD),
        (0.0, 0.0, Verdict.LOAD),
    ],
)
def test_what_a_reader_may_do_with_what_it_found(fresh_left: float | None, revalidate: float, verdict: Verdict) -> None:
    assert judge(fresh_left, revalidate) is verdict


def test_the_slower_the_load_and_the_higher_the_draw_the_earlier_the_reload() -> None:
    assert early_by(1.0, 0.0) == 0.0
    assert early_by(1.0, 0.5) < early_by(1.0, 0.9) < early_by(2.0, 0.9)
    assert early_by(0.0, 0.999) == 0.0


def test_a_poll_comes_after_a_fifth_of_the_wait_so_far_between_10_and_200_ms() -> None:
    assert poll_delay(0.0, 0.999) == pytest.approx(0.010, rel=0.01)
    assert poll_delay(0.5, 0.999) == pytest.approx(0.100, rel=0.01)
    assert poll_delay(60.0, 0.999) == pytest.approx(0.200, rel=0.01)
    assert poll_delay(60.0, 0.0) == pytest.approx(0.150)


def test_pauses_double_up_to_the_longest() -> None:
    pauses = [next_pause(None, (0.1, 0.5))]
    for _ in range(4):
        pauses.append(next_pause(pauses[-1], (0.1, 0.5)))
    assert pauses == [0.1, 0.2, 0.4, 0.5, 0.5]
    assert [pause_after(failures, (0.1, 0.5)) for failures in (1, 2, 3, 4, 5000)] == pauses
