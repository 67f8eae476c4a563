from __future__ import annotations

import math
from contextlib import suppress
from datetime import timedelta
from decimal import Decimal
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

import pytest

from cacheguard.durations import DAY, FOREVER, seconds
from cacheguard.errors import ConfigurationError
from cacheguard.options import MOST_CALL_POLICIES, Policies
from cacheguard.policy import DEFAULTS, UNSET, Policy, PolicyOptions, Unset, resolve

DURATIONS = [
    "ttl",
    "null_ttl",
    "stale_while_revalidate",
    "stale_if_error",
    "soft_timeout",
    "hard_timeout",
    "wait_timeout",
    "l1_ttl",
]


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("250ms", 0.25),
        ("30s", 30.0),
        ("1.5m", 90.0),
        ("1h30m", 5400.0),
        (" 2d ", 172_800.0),
        (5, 5.0),
        (0.5, 0.5),
        (timedelta(minutes=1), 60.0),
        (0.0000001, 0.001),
        ("365d", FOREVER),
        (timedelta(days=365), FOREVER),
    ],
)
def test_a_duration_has_many_forms(text: object, number: float) -> None:
    assert seconds(text, "x") == number


@pytest.mark.parametrize(
    "text", [0, -1, math.nan, math.inf, True, "", "5", "5 s", "-5s", "5x", "0s", timedelta(0), None, [1], "s"]
)
def test_what_is_no_duration_is_refused_by_name(text: object) -> None:
    with pytest.raises(ConfigurationError, match="patience must be a duration > 0"):
        seconds(text, "patience")


@pytest.mark.parametrize("text", ["366d", FOREVER + 1, 10**400, timedelta.max, 1e300, "900000h"])
def test_a_duration_beyond_what_is_possible_is_refused_and_not_cut(text: object) -> None:
    with pytest.raises(ConfigurationError, match="patience must be"):
        seconds(text, "patience")
    for name in [*DURATIONS, "error_backoff"]:
        with pytest.raises(ConfigurationError, match=name):
            Policy.of({name: ("1s", text) if name == "error_backoff" else text})


@pytest.mark.parametrize("name", DURATIONS)
def test_every_duration_may_be_off_and_none_may_be_negative(name: str) -> None:
    Policy.of({name: None})
    with pytest.raises(ConfigurationError, match=name):
        Policy.of({name: -1})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"jitter": 1.0}, "jitter must be a ratio"),
        ({"jitter": -0.1}, "jitter must be a ratio"),
        ({"jitter": True}, "jitter must be a ratio"),
        ({"jitter": "0.1"}, "jitter must be a ratio"),
        ({"not_found": ValueError()}, "not_found must be an exception class"),
        ({"not_found": (KeyError, BaseException)}, "not_found must be an exception class"),
        ({"not_found": "KeyError"}, "not_found must be an exception class"),
        ({"rebuild": "quick"}, "rebuild must be one of 'mutex', 'logical', 'early'"),
        ({"error_backoff": 1}, "error_backoff must be a pair"),
        ({"error_backoff": (1, 2, 3)}, "error_backoff must be a pair"),
        ({"error_backoff": (2, 1)}, "must not start above its longest pause"),
        ({"error_backoff": (0, 1)}, r"error_backoff\[0\] must be a duration"),
        ({"l1": 1}, "l1 must be True or False"),
        ({"l2": None}, "l2 must be True or False"),
        ({"tttl": 5}, "unknown option 'tttl'; a policy has: ttl, jitter"),
    ],
)
def test_a_value_that_cannot_work_is_refused_with_its_name(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        Policy.of(options)


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        (Policy(soft_timeout=5, hard_timeout=5), "soft_timeout must be below hard_timeout"),
        (Policy(soft_timeout="31s"), "soft_timeout must be below hard_timeout"),
        (Policy(l1=False, l2=False), "leave nothing to cache in"),
    ],
)
def test_fields_that_contradict_each_other_are_refused(policy: Policy, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        resolve(policy)


def test_a_field_that_is_not_set_inherits() -> None:
    policy = Policy(ttl=5).over(Policy(ttl=7, jitter=0.5))
    assert (policy.ttl, policy.jitter, policy.l1) == (5, 0.5, UNSET)
    assert repr(policy.l1) == "UNSET"


def test_the_defaults_are_what_their_documentation_says() -> None:
    rules = resolve(Policy())
    assert rules == resolve(DEFAULTS)
    assert (rules.ttl, rules.jitter, rules.null_ttl, rules.stale) == (300.0, 0.1, 30.0, 60.0)
    assert (rules.hard_timeout, rules.soft_timeout, rules.wait_timeout) == (30.0, None, None)
    assert (rules.error_backoff, rules.l1_ttl) == ((0.1, 5.0), 60.0)


def test_what_is_switched_off_is_nothing_or_for_ever() -> None:
    rules = resolve(
        Policy(ttl=None, jitter=None, null_ttl=None, stale_if_error=None, error_backoff=None, l1_ttl=None, not_found=())
    )
    assert (rules.ttl, rules.l1_ttl) == (FOREVER, FOREVER)
    assert (rules.jitter, rules.stale, rules.null_ttl, rules.error_backoff) == (0.0, 0.0, None, None)


def test_logical_rebuild_keeps_stale_entries_for_a_day_unless_told_otherwise() -> None:
    assert resolve(Policy(rebuild="logical")).revalidate == DAY
    assert resolve(Policy(rebuild="logical", stale_while_revalidate=60)).revalidate == 60.0


def test_one_exception_class_is_as_good_as_a_tuple_of_one() -> None:
    assert resolve(Policy(not_found=KeyError)).not_found == (KeyError,)
    assert resolve(Policy(not_found=(KeyError, ValueError))).not_found == (KeyError, ValueError)


def test_a_ttl_may_be_a_function_of_the_value() -> None:
    rules = resolve(Policy(ttl=lambda value: value))
    assert rules.ttl_of("90s") == 90.0
    assert rules.ttl_of(None) == FOREVER
    with pytest.raises(ConfigurationError, match=r"ttl\(value\) must be a duration"):
        rules.ttl_of(-1)


def members(hint: Any) -> set[Any]:
    return set(get_args(hint)) if get_origin(hint) in (Union, UnionType) else {hint}


def test_the_options_of_a_call_are_typed_as_the_fields_of_a_policy() -> None:
    fields = {name: members(hint) - {Unset} for name, hint in get_type_hints(Policy).items()}
    options = {name: members(hint) for name, hint in get_type_hints(PolicyOptions).items()}
    assert options == fields


def test_options_that_are_equal_and_not_the_same_are_told_apart() -> None:
    policies = Policies(None)
    assert policies.of({"jitter": 0}).jitter == policies.of({"jitter": 0.0}).jitter == 0.0
    assert policies.of({"l1": False}).l1 is False
    for options in ({"jitter": False}, {"l1": 0}, {"l1": 0.0}, {"error_backoff": (True, 5)}, {"ttl": True}):
        of_equal = {name: (1, 5) if name == "error_backoff" else 1 for name in options}
        with suppress(ConfigurationError):
            policies.of(of_equal)
        with pytest.raises(ConfigurationError, match=next(iter(options))):
            policies.of(options)


class Text(str):
    __slots__ = ()

    def __repr__(self) -> str:
        return f"Text({super().__repr__()})"


@pytest.mark.parametrize(
    "fallbacks", [(False, 0, 0.0, -0.0), (1, True, 1.0, Decimal(1), Decimal("1.0")), ([], []), ("a", Text("a"))]
)
def test_each_caller_gets_its_own_fallback(fallbacks: tuple[Any, ...]) -> None:
    policies = Policies(None)
    for _ in range(2):
        for fallback in fallbacks:
            given = policies.of({"fallback": fallback}).fallback
            assert (type(given), repr(given)) == (type(fallback), repr(fallback))
            assert given is fallback or isinstance(fallback, int | float | str)


def test_policies_of_calls_are_remembered_and_not_too_many_of_them() -> None:
    class Lasting:
        def of_value(self, _: object) -> float:
            return 1.0

    policies, lasting = Policies(None), Lasting()
    assert policies.of({"ttl": lasting.of_value}) is policies.of({"ttl": lasting.of_value})
    assert policies.of({"ttl": 5}) is policies.of({"ttl": 5})
    for number in range(2 * MOST_CALL_POLICIES):
        assert policies.of({"fallback": [number]}).fallback == [number]
