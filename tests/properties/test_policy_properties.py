from __future__ import annotations

import re
from datetime import timedelta

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from cacheguard.durations import FOREVER, seconds
from cacheguard.errors import ConfigurationError
from cacheguard.policy import UNSET, Policy, resolve

durations = st.one_of(st.floats(0.001, 1e6), st.integers(1, 10**6), st.integers(1, 10**6).map(lambda n: f"{n}ms"))
fields = {
    "ttl": st.none() | durations,
    "jitter": st.none() | st.floats(0, 1, exclude_max=True),
    "null_ttl": st.none() | durations,
    "stale_while_revalidate": st.none() | durations,
    "stale_if_error": st.none() | durations,
    "rebuild": st.sampled_from(["mutex", "logical", "early"]),
    "wait_timeout": st.none() | durations,
    "l1_ttl": st.none() | durations,
}
policies = st.fixed_dictionaries({}, optional=fields).map(Policy.of)


@given(st.integers(0, 99), st.integers(0, 59), st.integers(0, 59), st.integers(0, 999))
def test_parts_add_up(hours: int, minutes: int, rest: int, millis: int) -> None:
    assume(hours or minutes or rest or millis)
    total = hours * 3600 + minutes * 60 + rest + millis / 1000
    assert seconds(f"{hours}h{minutes}m{rest}s{millis}ms", "x") == pytest.approx(total)
    assert seconds(timedelta(hours=hours, minutes=minutes, seconds=rest, milliseconds=millis), "x") == pytest.approx(
        total
    )


@given(st.text(max_size=12))
def test_any_text_is_a_duration_or_an_error_that_names_the_option(text: str) -> None:
    try:
        number = seconds(text, "patience")
    except ConfigurationError as error:
        assert re.match("patience must be a duration", str(error))  # noqa: PT017 - either outcome is right
    else:
        assert 0 < number <= FOREVER


@given(policies, policies, policies)
def test_inheriting_is_the_same_however_it_is_bracketed(call: Policy, decorator: Policy, guard: Policy) -> None:
    assert call.over(decorator.over(guard)) == call.over(decorator).over(guard)


@given(policies)
def test_a_policy_over_itself_or_over_nothing_is_itself(policy: Policy) -> None:
    assert policy.over(policy) == policy == policy.over(Policy())
    assert Policy().over(policy) == policy


@given(policies)
def test_what_is_resolved_is_in_seconds_and_within_bounds(policy: Policy) -> None:
    rules = resolve(policy)
    assert not callable(rules.ttl)
    assert 0 < rules.ttl <= FOREVER
    assert 0 <= rules.jitter < 1
    assert rules.stale == max(rules.revalidate, rules.if_error)
    assert 0 < rules.l1_ttl <= FOREVER
    resolved: list[object] = [rules.ttl, rules.jitter, rules.null_ttl, rules.rebuild, rules.l1, rules.l2]
    assert UNSET not in resolved
