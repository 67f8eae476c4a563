"""The breaker against the plainest model of one."""

from __future__ import annotations

import threading
from itertools import pairwise

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from cacheguard.defenses.outage import JITTER, BreakerTerms, Outcome, Switch

TERMS = BreakerTerms(window=6, age=5.0, minimum=3, slow_after=1.0, pause=1.0, longest_pause=4.0)


class BreakerMachine(RuleBasedStateMachine):
    """Calls begin, end in any order, and time passes; the model only knows what may be true."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.changes: list[tuple[str, str]] = []
        self.switch = Switch(
            "x",
            TERMS,
            on_change=lambda a, b, _: self.changes.append((a, b)),
            now=lambda: self.now,
            new_lock=threading.Lock,
        )
        self.running: list[tuple[int, int]] = []  # turn, and how many changes there had been
        self.probes: dict[int, float] = {}  # by turn, when it began
        self.opened_at = 0.0
        self.recent: list[tuple[float, Outcome]] = []

    @rule(seconds=st.floats(0.0, 3.0))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def begin(self) -> None:
        before = self.switch.state
        turn = self.switch.enter()
        if before == "closed":
            assert turn is not None
        elif turn is None:
            # Nobody passes before the pause is over, nor beside a probe that may still come back.
            assert self.now < self.opened_at + TERMS.longest_pause
        else:
            assert self.now >= self.opened_at + TERMS.pause * (1 - JITTER) or before == "half-open"
            assert self.switch.state == "half-open"
            self.probes = {turn: self.now}
            self.opened_at = self.now
        if turn is not None:
            self.running.append((turn, len(self.changes)))

    @rule(data=st.data(), outcome=st.sampled_from(Outcome), took=st.sampled_from([0.0, 0.5, 1.0]))
    def end(self, data: st.DataObject, outcome: Outcome, took: float) -> None:
        if not self.running:
            return
        turn, then = self.running.pop(data.draw(st.integers(0, len(self.running) - 1)))
        before, known = self.switch.state, len(self.changes)
        current = known == then or turn in self.probes
        self.switch.leave(turn, outcome, took)
        after = self.switch.state
        if not current:
            assert after == before
            return
        well = outcome is Outcome.OK and took < TERMS.slow_after
        if before == "half-open" and turn in self.probes:
            self.probes = {}
            assert after == ("closed" if well else "open")
            self.opened_at = self.now if outcome is not Outcome.NONE else self.now - TERMS.longest_pause
            self.recent = []
        elif before == "closed":
            if outcome is not Outcome.NONE:
                kind = Outcome.SLOW if outcome is Outcome.OK and not well else outcome
                self.recent = [*self.recent, (self.now, kind)][-TERMS.window :]
            young = [kind for at, kind in self.recent if at > self.now - TERMS.age]
            failed, slow = young.count(Outcome.FAILED), young.count(Outcome.SLOW)
            reason = len(young) >= TERMS.minimum and (failed >= 0.5 * len(young) > 0 or slow >= 0.8 * len(young) > 0)
            opens = reason and outcome is not Outcome.NONE and not (outcome is Outcome.OK and well)
            assert after == ("open" if opens else "closed")
            if opens:
                self.opened_at, self.recent = self.now, []

    @invariant()
    def every_change_follows_the_one_before(self) -> None:
        assert all(one[1] == two[0] for one, two in pairwise(self.changes))
        assert ("closed", "half-open") not in self.changes
        assert self.switch.closed == (self.switch.state == "closed")


TestBreaker = BreakerMachine.TestCase
