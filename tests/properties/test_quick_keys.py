"""The quick way to a key makes the text of the long one, or leaves it to that."""

from __future__ import annotations

from enum import IntEnum
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cacheguard.keys import TextTemplate, quick_key
from cacheguard.protocol.names import Scope, namespace_scope


class Word(str):
    __slots__ = ()


class Level(IntEnum):
    LOW = 1


VALUES: Any = st.one_of(
    st.integers(-(10**20), 10**20),
    st.integers(0, 100),
    st.text(st.characters(codec=None), max_size=70),
    st.text("abcXYZ019-_.@/#", max_size=70),
    st.text("ab:%{}| ~z\x7f", max_size=5),
    st.sampled_from([True, False, None, 1.0, Level.LOW, Word("word"), b"bytes", "", "#", "é", "\ud800", 10**5000]),
)
TEMPLATES = [
    "user:{a}", "{a}", "user:{a}:{b}", "{a}:{b}", "u'\"\\{a}", "u%{a}%s:{b}", "#{a}", "user:{a}:{a}:tail",
    "u:{b}:{a}", "é:{a}", "a b:{a}", "{{x}}:{a}", "u:{a!r}", "u:{a:>5}", "fixed",
    "x" * 200 + "{a}", "u:{a}" + "y" * 180,
]  # fmt: skip

SCOPES = [namespace_scope("shop"), namespace_scope(["shop", "it's {x}"]), Scope()]


def load(a: object, b: object) -> None:
    """Takes two arguments."""


@given(template=st.sampled_from(TEMPLATES), scope=st.sampled_from(SCOPES), a=VALUES, b=VALUES)
@settings(max_examples=500)
def test_the_quick_key_is_that_of_the_long_way(template: str, scope: Scope, a: object, b: object) -> None:
    maker = TextTemplate(template, load)
    positions = [("a", "b").index(name) for name in maker.fields]
    quick = quick_key(maker, scope.prefix, positions)
    key = None if quick is None else quick((a, b))
    if key is not None:
        assert key == scope.key(maker.text_of(*[(a, b)[position] for position in positions]))


@pytest.mark.parametrize("template", ["user:{a}", "user:{a}:{b}", "u'\"\\{a}", "u:{b}:{a}", "u%{a}%s:{b}", "fixed"])
def test_what_keys_are_made_of_takes_the_quick_way(template: str) -> None:
    maker = TextTemplate(template, load)
    quick = quick_key(maker, "cg:shop:e:", [("a", "b").index(name) for name in maker.fields])
    assert quick is not None
    assert quick((12, "ann@example.com")) is not None


@pytest.mark.parametrize(
    "value", [True, None, 1.5, 10**18, "a:b", "50%", "{x}", "a b", "é", "x" * 65, Word("a"), Level.LOW]
)
def test_what_has_to_be_looked_at_closely_does_not(value: object) -> None:
    quick = quick_key(TextTemplate("user:{a}", load), "cg:shop:e:", [0])
    assert quick is not None
    assert quick((value, None)) is None


@pytest.mark.parametrize("template", ["{a}", "#{a}", "é:{a}", "{{x}}:{a}", "u:{a!r}", "x" * 200 + "{a}"])
def test_a_template_that_is_not_plain_has_none(template: str) -> None:
    assert quick_key(TextTemplate(template, load), "cg:shop:e:", [0]) is None
