from __future__ import annotations

import ast
import logging
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import pytest

import cacheguard
from cacheguard.events import Events, Stats


def test_every_counter_begins_at_nothing_and_redis_is_taken_to_be_up() -> None:
    stats = Events().snapshot(0, 0)
    names = {field.name for field in fields(Stats)} - {"age_at_serve"}
    assert {name: getattr(stats, name) for name in names} == {
        **dict.fromkeys(names, 0),
        "l2_up": True,
        "breaker": "closed",
        "wire": "",
    }
    assert {count for _, count in stats.age_at_serve} == {0}


def test_ages_are_counted_in_the_bucket_whose_bound_they_do_not_exceed() -> None:
    events = Events()
    for age in (-0.1, 0.0, 0.01, 0.011, 10.0, 10.1, 1e9):
        events.served(age)
    events.served(5.0, 4)
    stats = events.snapshot(3, 400)
    assert (stats.l1_entries, stats.l1_bytes) == (3, 400)
    assert [count for _, count in stats.age_at_serve] == [3, 1, 0, 5, 1, 0, 0, 0, 1]


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


def test_a_thing_is_said_of_many_keys_and_leaves_room_for_others(caplog: pytest.LogCaptureFixture) -> None:
    events = Events()
    with caplog.at_level(logging.WARNING, "cacheguard"):
        for number in range(5000):
            for _ in range(2):
                events.once("odd", "%s is odd", number, key=str(number))
        assert len(caplog.records) == 100
        events.once("even", "even is said, too")
    assert len(caplog.records) == 101


def test_no_text_of_a_key_is_kept() -> None:
    events = Events()
    secret = "the key of one customer"
    events.once("odd", "%s is odd", secret, key=secret)
    events.once(f"foreign {secret}", "%s is foreign", secret)
    kept: list[object] = [getattr(events, name) for name in Events.__slots__]
    for part in kept:  # grows meanwhile
        assert not (isinstance(part, str) and secret in part)
        if isinstance(part, dict | list | set):
            kept += [*part, *(part.values() if isinstance(part, dict) else ())]


def counted() -> Iterator[str]:
    """The attributes of `Events` that the library assigns to."""
    for path in Path(cacheguard.__file__).parent.rglob("*.py"):
        own = "self" if path.name == "events.py" else "events"
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.AugAssign) and isinstance(node.target, ast.Attribute):
                owner = node.target.value
                name = owner.attr if isinstance(owner, ast.Attribute) else getattr(owner, "id", "")
                if name.lstrip("_") == own:
                    yield node.target.attr


def test_whatever_is_counted_is_in_the_stats_and_whatever_is_in_the_stats_is_counted() -> None:
    given = {"l1_entries", "l1_bytes", "invalidations_queued", "breaker", "l2_up", "bus_up", "wire", "age_at_serve"}
    assert set(counted()) - {"failures"} == {field.name for field in fields(Stats)} - given


def test_a_counter_that_is_not_in_the_stats_is_an_error() -> None:
    with pytest.raises(AttributeError):
        Events().no_such_counter += 1
