from __future__ import annotations

import asyncio
import logging
from threading import RLock
from typing import Any

import pytest

from cacheguard import Breaker
from cacheguard.defenses.breakdown import next_pause
from cacheguard.defenses.outage import JITTER, BreakerTerms, Outcome, State, Switch, reason_to_open
from cacheguard.errors import ConfigurationError, Overloaded

TERMS = BreakerTerms(window=10, age=10.0, minimum=4, slow_after=0.1, pause=1.0, longest_pause=4.0)


class Bench:
    """A switch whose clock the test moves."""

    def __init__(self, terms: BreakerTerms = TERMS, *, probed_by_callers: bool = True) -> None:
        self.now = 100.0
        self.changes: list[tuple[State, State, str]] = []
        self.switch = Switch(
            "db",
            terms,
            on_change=lambda *change: self.changes.append(change),
            now=lambda: self.now,
            new_lock=RLock,
            probed_by_callers=probed_by_callers,
        )

    @property
    def state(self) -> str:
        return self.switch.state

    def calls(self, outcome: Outcome, count: int, took: float = 0.0) -> None:
        for _ in range(count):
            turn = self.switch.enter()
            assert turn is not None
            self.switch.leave(turn, outcome, took)

    def open(self) -> None:
        self.calls(Outcome.FAILED, TERMS.minimum)
        assert self.state == "open"


def test_nothing_is_decided_on_too_few_calls() -> None:
    bench = Bench()
    bench.calls(Outcome.FAILED, TERMS.minimum - 1)
    assert bench.state == "closed"
    bench.calls(Outcome.FAILED, 1)
    assert bench.state == "open"
    assert bench.switch.enter() is None
    assert bench.changes == [("closed", "open", "4 of the last 4 calls failed")]


def test_a_few_failures_among_many_calls_open_nothing() -> None:
    bench = Bench()
    for _ in range(20):
        bench.calls(Outcome.OK, 3)
        bench.calls(Outcome.FAILED, 1)
    assert bench.state == "closed"


def test_old_calls_and_those_outside_the_window_do_not_count() -> None:
    calls = [(float(at), Outcome.FAILED) for at in range(8)]
    assert reason_to_open(calls, TERMS, 20.0) is None
    assert reason_to_open(calls, TERMS, 8.0) == (Outcome.FAILED, "8 of the last 8 calls failed")
    bench = Bench()
    bench.calls(Outcome.FAILED, 3)
    bench.calls(Outcome.OK, TERMS.window)
    bench.calls(Outcome.FAILED, 3)
    assert bench.state == "closed"


def test_slow_calls_open_it_too() -> None:
    bench = Bench()
    bench.calls(Outcome.OK, 3, took=0.1)
    bench.calls(Outcome.OK, 1, took=0.3)
    assert bench.state == "open"
    assert "slow" in bench.changes[0][2]


def test_after_the_pause_one_call_passes_and_decides() -> None:
    bench = Bench()
    bench.open()
    bench.now += TERMS.pause * (1 - JITTER) - 0.01
    assert bench.switch.enter() is None
    bench.now += TERMS.pause * JITTER + 0.02
    probe = bench.switch.enter()
    assert probe is not None
    assert bench.state == "half-open"
    assert bench.switch.enter() is None  # one at a time
    bench.switch.leave(probe, Outcome.OK)
    assert bench.state == "closed"
    assert [change[:2] for change in bench.changes] == [
        ("closed", "open"),
        ("open", "half-open"),
        ("half-open", "closed"),
    ]


@pytest.mark.parametrize(("outcome", "took"), [(Outcome.FAILED, 0.0), (Outcome.OK, 0.5)])
def test_a_probe_that_fails_or_is_slow_makes_the_pause_longer(outcome: Outcome, took: float) -> None:
    bench = Bench()
    bench.open()
    waits: list[float] = []
    for _ in range(4):
        waits.append(bench.switch.waits)
        bench.now += bench.switch.waits
        probe = bench.switch.enter()
        assert probe is not None
        bench.switch.leave(probe, outcome, took)
        assert bench.state == "open"
    for wait, longest in zip(waits, (1.0, 2.0, 4.0, 4.0), strict=True):
        assert longest * (1 - JITTER) <= wait <= longest


def test_a_probe_that_says_nothing_lets_the_next_one_pass_at_once() -> None:
    bench = Bench()
    bench.open()
    bench.now += 2
    probe = bench.switch.enter()
    assert probe is not None
    bench.switch.leave(probe, Outcome.NONE)
    assert bench.state == "open"
    assert bench.switch.enter() is not None


def test_a_probe_that_never_comes_back_is_not_waited_for_for_ever() -> None:
    bench = Bench()
    bench.open()
    bench.now += 2
    assert bench.switch.enter() is not None
    bench.now += TERMS.longest_pause
    assert bench.switch.enter() is not None


def test_what_began_in_an_earlier_state_says_nothing_about_this_one() -> None:
    bench = Bench()
    late = bench.switch.enter()
    assert late is not None
    bench.open()
    bench.now += 2
    probe = bench.switch.enter()
    assert probe is not None
    bench.switch.leave(late, Outcome.OK)
    assert bench.state == "half-open"
    bench.switch.leave(probe, Outcome.FAILED)
    bench.switch.leave(late, Outcome.OK)
    assert bench.state == "open"


def test_a_breaker_that_opens_again_soon_goes_on_with_the_longer_pause_and_forgets_it_when_all_is_well() -> None:
    bench = Bench()
    for _ in range(2):
        bench.open()
        bench.now += bench.switch.waits
        bench.calls(Outcome.OK, 1)
    bench.open()
    assert bench.switch.waits > 2.0
    bench.now += bench.switch.waits
    bench.calls(Outcome.OK, 1)
    bench.now += TERMS.age + 1
    bench.open()
    assert bench.switch.waits <= 1.0


def test_a_doubt_opens_at_once_and_asks_for_a_probe_at_once() -> None:
    bench = Bench(probed_by_callers=False)
    turn = bench.switch.enter()
    assert turn is not None
    bench.switch.doubt(turn, "a timeout")
    assert bench.switch.undecided
    assert bench.switch.enter() is None  # callers are no probes here
    probe = bench.switch.probe()
    assert probe is not None
    bench.switch.leave(probe, Outcome.OK, took=0.5)  # that it is slow was not the question
    assert bench.state == "closed"
    assert not bench.switch.undecided


def test_the_pause_doubles_up_to_its_longest() -> None:
    pause: float | None = None
    pauses: list[float] = []
    for _ in range(5):
        pause = next_pause(pause, (TERMS.pause, TERMS.longest_pause))
        pauses.append(pause)
    assert pauses == [1.0, 2.0, 4.0, 4.0, 4.0]


# The public one


def test_a_breaker_stands_by_itself(caplog: pytest.LogCaptureFixture) -> None:
    breaker = Breaker("db", minimum=2, window=4, pause="1h", longest_pause="1h", ignored=KeyError)
    with breaker:
        pass
    for error in (KeyError, KeyError, KeyError):
        with pytest.raises(error), breaker:
            raise error
    assert repr(breaker) == "<Breaker 'db': closed>"
    with caplog.at_level(logging.INFO, "cacheguard"):
        for _ in range(3):
            with pytest.raises((ValueError, Overloaded)), breaker:
                raise ValueError
    assert breaker.retry_after > 2000
    with pytest.raises(Overloaded, match="breaker of db is open"), breaker:
        pytest.fail("it is open")
    assert [record.message for record in caplog.records] == ["the breaker of db is open: 2 of the last 4 calls failed"]
    assert repr(breaker) == "<Breaker 'db': open>"


async def test_a_cancelled_call_is_no_failure_and_tasks_do_not_mix_up_their_calls() -> None:
    breaker = Breaker(minimum=1, window=1)

    async def call(seconds: float) -> None:
        with breaker:
            await asyncio.sleep(seconds)

    tasks = [asyncio.ensure_future(call(each)) for each in (10, 0.01, 10)]
    await tasks[1]
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert breaker.state == "closed"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"name": ""}, "name must be a text, got ''"),
        ({"window": 0}, "window must be a whole number >= 1, got 0"),
        ({"minimum": True}, "minimum must be a whole number >= 1, got True"),
        ({"minimum": 30}, "minimum must not be above window, got 30 and 20"),
        ({"failure_rate": 0}, "failure_rate must be a share above 0 and up to 1, got 0"),
        ({"slow_rate": 1.5}, "slow_rate must be a share above 0 and up to 1, got 1.5"),
        ({"slow_after": -1}, "slow_after must be a duration > 0"),
        ({"pause": "20s"}, "pause must not be above longest_pause, got '20s' and '10s'"),
        ({"ignored": int}, "ignored must be an exception class or a tuple of them"),
    ],
)
def test_what_cannot_work_is_said_by_its_name(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigurationError, match=said.replace("(", r"\(")):
        Breaker(**options)
