"""For all arguments: one text for one call, and no text for two."""

from __future__ import annotations

import random
import re
import string
from collections.abc import Callable
from datetime import date
from decimal import Decimal
from typing import Any
from urllib.parse import unquote_to_bytes

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from cacheguard.keys import compile_key
from cacheguard.protocol.names import escape, namespace_scope, redis_key

# Texts of the characters that structure a key, so that a slip shows.
_tricky = st.text("a1:{}%,()=s/#\x00\ud800é ", max_size=6)
_texts = _tricky | st.text()


def call(x: Any, y: Any = None) -> None: ...


_call_text = compile_key(None, call)
_template = compile_key("{x}:{y}", call)


@given(_texts)
def test_an_escaped_text_can_be_read_back(text: str) -> None:
    escaped = escape(text)
    assert not set(escaped) & set(":{}\x00\x1f\x7f")
    assert unquote_to_bytes(escaped.encode()).decode("utf-8", "surrogatepass") == text


@given(_texts, _texts, _texts, _texts)
def test_different_fields_make_different_texts(a: str, b: str, c: str, d: str) -> None:
    assume((a, b) != (c, d))
    assert _template.text_of(a, b) != _template.text_of(c, d)
    assert _call_text.text_of(a, b) != _call_text.text_of(c, d)


@given(_texts, _texts)
def test_different_texts_have_different_redis_keys_in_every_namespace(a: str, b: str) -> None:
    keys = {redis_key(prefix, text) for prefix in ("p:", "q:") for text in (a, b)}
    assert len(keys) == (2 if a == b else 4)
    for key in keys:
        assert re.fullmatch(r"[pq]:(#[0-9a-f]{32}|(?!#)[!-z|~]{0,250})", key)


_names = st.lists(st.text("a/:%{", min_size=1, max_size=3) | st.text(min_size=1, max_size=100), min_size=1, max_size=3)


@given(_names, _names)
def test_different_namespaces_have_different_prefixes(one: list[str], other: list[str]) -> None:
    assert (namespace_scope(one).prefix == namespace_scope(other).prefix) is (one == other)
    assert not namespace_scope(one).prefix.startswith(namespace_scope(other).prefix) or one == other


_hashable = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | _texts | st.binary() | st.decimals(allow_nan=False),
    lambda inner: st.lists(inner, max_size=3).map(tuple) | st.frozensets(inner, max_size=3),
    max_leaves=5,
)
_arguments = st.recursive(
    _hashable | st.uuids() | st.datetimes() | st.timedeltas(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_hashable, inner, max_size=3) | st.sets(_hashable),
    max_leaves=8,
)


def identity(value: Any) -> Any:
    """What a text must tell apart: types, and contents without the order of sets and dicts."""
    kind = type(value)
    if kind in (list, tuple):
        return kind, tuple(map(identity, value))
    if kind in (set, frozenset):
        return kind, frozenset(map(identity, value))
    if kind is dict:
        return kind, frozenset((identity(key), identity(item)) for key, item in value.items())
    if kind in (float, Decimal):
        return kind, str(value)
    return kind, value


@given(_arguments, _arguments)
def test_texts_are_equal_exactly_if_arguments_are(one: Any, other: Any) -> None:
    assert (_call_text.text_of(one, 0) == _call_text.text_of(other, 0)) is (identity(one) == identity(other))


_CHARACTERS = "a1s:,()=%{}# "


def _leaf(dice: random.Random) -> Any:
    makers: tuple[Callable[[], Any], ...] = (
        lambda: dice.randrange(12),
        lambda: float(dice.randrange(12)),
        lambda: dice.random() < 0.5,
        lambda: "".join(dice.choices(_CHARACTERS, k=dice.randrange(5))),
        lambda: "".join(dice.choices(string.digits, k=dice.randrange(3))),
        lambda: dice.randbytes(dice.randrange(3)),
        lambda: Decimal(dice.randrange(12)),
        lambda: date(2024, 1, 1 + dice.randrange(12)),
        lambda: None,
    )
    return dice.choice(makers)()


def _structure(dice: random.Random, depth: int) -> Any:
    if depth == 0 or dice.random() < 0.3:
        return _leaf(dice)
    match dice.randrange(5):
        case 0:
            return [_structure(dice, depth - 1) for _ in range(dice.randrange(3))]
        case 1:
            return tuple(_structure(dice, depth - 1) for _ in range(dice.randrange(3)))
        case 2:
            return {_leaf(dice): _structure(dice, depth - 1) for _ in range(dice.randrange(3))}
        case 3:
            return {_leaf(dice) for _ in range(dice.randrange(3))}
        case _:
            return frozenset(_leaf(dice) for _ in range(dice.randrange(3)))


@pytest.mark.parametrize("calls", [20_000, pytest.param(100_000, marks=pytest.mark.slow)])
def test_random_calls_do_not_collide(calls: int) -> None:
    dice = random.Random(20)
    owners: dict[str, Any] = {}
    for _ in range(calls):
        arguments = (_structure(dice, 3), _structure(dice, 1))
        owner = owners.setdefault(_call_text.text_of(*arguments), identity(arguments))
        assert owner == identity(arguments)
    assert len(set(owners.values())) == len(owners) > calls // 2


@given(_texts, st.integers(), _texts)
def test_a_call_has_one_text_however_it_is_spelled(a: str, b: int, c: str) -> None:
    def find(a: str, b: int = 0, *rest: str, **options: str) -> None: ...

    key = compile_key(None, find)
    one = key.text({"a": a, "b": b, "rest": (c,), "options": {"x": c, "y": a}})
    assert one == key.text({"options": {"y": a, "x": c}, "rest": (c,), "b": b, "a": a})
    assert one == key.text_of(a, b, (c,), {"x": c, "y": a})
