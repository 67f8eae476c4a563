from __future__ import annotations

import pytest

from cacheguard.engine.flights import Flight
from cacheguard.protocol.entry import Stored
from cacheguard.protocol.envelope import Kind
from tests.support.turn import Turn

ANSWER = Stored(Kind.VALUE, 1, 300.0, 0.0, ())


@pytest.mark.parametrize(
    ("joined_at", "proven", "anew", "wanted_anew", "serves"),
    [
        (0, False, False, False, True),  # joined before the lease was asked for
        (1, False, False, False, False),  # joined after it, and nothing says that no invalidation came between
        (1, True, False, False, True),  # the fill was accepted
        (0, False, True, True, True),  # a refresh may use a refresh that began later
        (1, True, True, True, False),
        (0, True, False, True, False),  # a refresh needs more than a read
    ],
)
def test_who_may_use_the_outcome_of_a_flight(
    joined_at: int, proven: bool, anew: bool, wanted_anew: bool, serves: bool
) -> None:
    flight = Flight(Turn(), anew=anew)
    flight.leases = 1
    flight.land(ANSWER, proven=proven)
    assert flight.serves(joined_at, anew=wanted_anew) == serves


def test_a_flight_lands_once() -> None:
    flight = Flight(Turn())
    flight.land(ANSWER, proven=False)
    flight.fail(ValueError())
    flight.land(ANSWER, proven=True)
    assert (flight.answer, flight.error, flight.proven) == (ANSWER, None, False)
    abandoned = Flight(Turn())
    abandoned.abandon()
    assert (abandoned.landed, abandoned.answer, abandoned.error) == (True, None, None)
