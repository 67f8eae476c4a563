"""What checks an argument: it lets through what fits, and its error says what came and what is allowed."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from cacheguard import checks
from cacheguard.errors import ConfigurationError


class Odd(int):
    """A whole number of another class."""


async def coroutine_function() -> None:
    """Awaited by nobody."""


@pytest.mark.parametrize("value", [True, False, "1", None, 1j, b"1", [1]])
def test_what_is_no_number_compares_with_nothing(value: object) -> None:
    number = checks.number_of(value)
    assert math.isnan(number)
    assert not number >= 0
    assert not number < 0


@pytest.mark.parametrize("value", [0, 1.5, -3, 10**400, math.inf, Odd(2)])
def test_a_number_is_taken_as_it_is(value: float) -> None:
    assert checks.number_of(value) is value


@pytest.mark.parametrize(
    ("check", "good", "bad", "allowed"),
    [
        (checks.flag, [True, False], [0, 1, None, "yes"], "True or False"),
        (checks.share, [0, 1, 0.5], [-0.1, 1.1, math.nan, True, "0.5", None], "a share from 0 to 1"),
        (checks.positive_share, [1, 0.001], [0, 1.1, math.nan, True, None], "a share above 0 and up to 1"),
        (checks.count, [1, 10**30, Odd(7)], [0, -1, 1.0, True, "1", None], "a whole number >= 1"),
        (checks.text, ["a", " "], ["", b"a", None, 1], "a text"),
        (checks.path_of, ["a"], ["", ":memory:", b"a", 1], "the path of a file or None"),
        (
            checks.exception_classes,
            [(), (KeyError,)],
            [[KeyError], KeyError(), int, (KeyError, 1)],
            "an exception class",
        ),
        (checks.question, [len], [1, "f", coroutine_function], "a plain function without parameters"),
        (checks.listener, [None, len], [1, "f", coroutine_function], "a plain function of a StateChange or None"),
    ],
)
def test_a_check_gives_back_what_fits_and_says_what_does_not(
    check: Any, good: list[Any], bad: list[Any], allowed: str
) -> None:
    for value in good:
        assert check("knob", value) == value
    for value in bad:
        with pytest.raises(ConfigurationError, match=rf"^knob must be {allowed}.*, got ") as caught:
            check("knob", value)
        assert str(caught.value).endswith(f"got {value!r}")


def test_a_count_may_have_other_bounds_other_words_and_a_way_out() -> None:
    assert checks.count("knob", 0, 0) == 0
    with pytest.raises(ConfigurationError, match=r"^knob must be a whole number >= 2, got 1$"):
        checks.count("knob", 1, 2)
    with pytest.raises(ConfigurationError, match=r"^knob must be from 1 to 3, got 4; use 3$"):
        checks.count("knob", 4, 1, 3, allowed="from 1 to 3", instead="; use 3")


def test_one_exception_class_is_as_good_as_a_tuple_of_it() -> None:
    assert checks.exception_classes("knob", KeyError) == (KeyError,)


def test_a_path_becomes_text_and_no_path_stays_none() -> None:
    assert checks.path_of("knob", Path("a") / "b") == str(Path("a") / "b")
    assert checks.path_of("knob", None) is None


def test_no_question_is_one_that_is_answered_with_no() -> None:
    assert checks.question("knob", None)() is False


def test_a_word_is_one_of_those_that_are_known() -> None:
    checks.one_of("knob", "a", ("a", "b"))
    with pytest.raises(ConfigurationError, match=r"^knob must be one of 'a', 'b', got 'c'$"):
        checks.one_of("knob", "c", ("a", "b"))


def test_keys_and_tags_are_taken_once_each_and_in_order() -> None:
    assert checks.texts(iter(["b", "a", "b"])) == ["b", "a"]
    assert checks.tags_of(["b", "a", "b"]) == ("b", "a")


@pytest.mark.parametrize(
    ("check", "value", "error"),
    [
        (checks.texts, "ab", TypeError),
        (checks.texts, ["a", 1], TypeError),
        (checks.tags_of, "ab", TypeError),
        (checks.tags_of, [1], TypeError),
        (checks.tags_of, [""], ValueError),
        (checks.check_key, b"a", TypeError),
        (checks.check_tag, b"a", TypeError),
        (checks.check_tag, "", ValueError),
        (checks.check_loader, 1, TypeError),
        (checks.check_usable, coroutine_function, TypeError),
        (checks.check_change, None, TypeError),
    ],
)
def test_what_a_call_was_given_is_a_type_error_or_a_value_error(check: Any, value: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="must") as caught:
        check(value)
    assert not isinstance(caught.value, ConfigurationError)
