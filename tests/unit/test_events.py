from __future__ import annotations

import logging
from dataclasses import fields

import pytest

from cacheguard.events import Events, Stats


def test_every_counter_begins_at_nothing_and_redis_is_taken_to_be_up() -> None:
    stats = Events().snapshot(0, 0, 0, 0)
    assert {name: getattr(stats, name) for name in (field.name for field in fields(Stats))} == {
        field.name: field.name == "l2_up" for field in fields(Stats)
    }


def test_a_snapshot_adds_what_the_local_tier_has_not_handed_in() -> None:
    events = Events()
    events.l1_hits, events.null_hits = 5, 2
    stats = events.snapshot(3, 400, 10, 4)
    assert (stats.l1_hits, stats.null_hits, stats.l1_entries, stats.l1_bytes) == (15, 6, 3, 400)
    assert events.l1_hits == 5


def test_an_outage_is_said_once_when_it_begins_and_once_when_it_ends(caplog: pytest.LogCaptureFixture) -> None:
    events = Events()
    with caplog.at_level(logging.WARNING, "cacheguard"):
        events.redis_answered()
        events.redis_failed(OSError("refused"))
        events.redis_failed(OSError("refused"))
        events.redis_answered()
        events.redis_answered()
    assert len(caplog.records) == 2
    assert (events.redis_errors, events.l2_up) == (2, True)


def test_a_thing_is_said_once_and_not_everything_is_remembered(caplog: pytest.LogCaptureFixture) -> None:
    events = Events()
    with caplog.at_level(logging.WARNING, "cacheguard"):
        events.once("x", "%s is odd", "x")
        events.once("x", "%s is odd", "x")
        for number in range(2000):
            events.once(str(number), "odd")
    assert len(caplog.records) == 1000
