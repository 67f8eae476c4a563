from __future__ import annotations

import math
import random
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from enum import Enum, IntEnum, StrEnum
from fractions import Fraction
from uuid import UUID

import pytest

from cacheguard.defenses.penetration.absences import AbsenceBudget
from cacheguard.defenses.penetration.bits import Layers
from cacheguard.defenses.penetration.items import LONGEST_TEXT, item_text
from cacheguard.defenses.penetration.layout import (
    CHUNK_BITS,
    HEADER_BYTES,
    Shape,
    checked_plan,
    chunk_and_bit,
    describe,
    hashes_of,
    next_shape,
    parse,
    positions,
    probe,
)
from cacheguard.errors import ConfigurationError


class Level(IntEnum):
    HIGH = 42


class Color(StrEnum):
    RED = "red"


class Plain(Enum):
    ONE = 1


@dataclass
class Row:
    number: int


@pytest.mark.parametrize(
    "item", [42, "42", b"42", bytearray(b"42"), 42.0, Decimal(42), Decimal("42.00"), Level.HIGH, Fraction(42)]
)
def test_all_forms_of_one_text_are_one_item(item: object) -> None:
    assert item_text(item) == "42"


@pytest.mark.parametrize(
    ("item", "text"),
    [
        (Color.RED, "red"),
        (Plain.ONE, "Plain.ONE"),
        (0.5, "0.5"),
        (Decimal("1e999999999"), "1E+999999999"),
        (-7, "-7"),
        ("Ä", "Ä"),
        ("Ä".encode(), "Ä"),
        (UUID(int=1), "00000000-0000-0000-0000-000000000001"),
        (datetime(2026, 1, 2, tzinfo=UTC), "2026-01-02 00:00:00+00:00"),
    ],
)
def test_an_item_with_a_text_of_its_own_stands_for_that_text(item: object, text: str) -> None:
    assert item_text(item) == text


@pytest.mark.parametrize(
    "item",
    [
        None,
        True,
        False,
        math.nan,
        math.inf,
        Decimal("NaN"),
        Decimal("sNaN"),
        (1, 2),
        [1],
        {"a": 1},
        {1},
        object(),
        Row(1),
        int,
    ],
)
def test_an_item_without_a_stable_text_is_refused(item: object) -> None:
    with pytest.raises(ConfigurationError, match="must be a str, int"):
        item_text(item)


@pytest.mark.parametrize(
    "item", ["x" * 10_000, "Ä" * 65, pytest.param(10**5000, id="huge"), "\ud800", b"\xff" * 5, "a\udcffb"]
)
def test_the_text_of_a_hostile_item_is_short_and_encodable(item: object) -> None:
    text = item_text(item)
    assert len(text) <= LONGEST_TEXT
    assert text.encode()
    assert text == item_text(item)


def test_long_items_that_differ_have_texts_that_differ() -> None:
    assert len({item_text("x" * 100 + str(number)) for number in range(1000)}) == 1000


@pytest.mark.parametrize("capacity", [0, -1, 2**32 + 1, 1.5, "10", True, None])
def test_a_capacity_out_of_range_is_refused(capacity: object) -> None:
    with pytest.raises(ConfigurationError, match="capacity must be"):
        checked_plan(capacity, 0.01)


@pytest.mark.parametrize("error_rate", [0, 1, -0.1, 1.5, math.nan, math.inf, "0.1", True, None, 1e-13])
def test_an_error_rate_out_of_range_is_refused(error_rate: object) -> None:
    with pytest.raises(ConfigurationError, match="error_rate must be"):
        checked_plan(10, error_rate)


def test_the_errors_of_all_layers_together_stay_below_what_was_asked() -> None:
    shapes = [checked_plan(1000, 0.01)]
    for _ in range(20):
        shapes.append(next_shape(shapes))
    assert sum(shape.error_rate for shape in shapes) <= 0.01
    assert [shape.capacity for shape in shapes[:4]] == [1000, 2000, 4000, 8000]


@pytest.mark.parametrize(("capacity", "error_rate"), [(1, 0.999), (1, 1e-12), (7, 0.5), (100_000, 0.001)])
def test_a_layer_measures_what_pybloom_measures(capacity: int, error_rate: float) -> None:
    shape = checked_plan(capacity, error_rate)
    layers = Layers([shape, next_shape([shape])])
    assert [layer.num_bits for layer in layers.filters] == [shape.bits for shape in layers.shapes]


def test_a_layer_that_pybloom_measures_otherwise_is_refused() -> None:
    with pytest.raises(ValueError, match="differently"):
        Layers([Shape(10, 0.1, 3, 5)])


def test_the_description_of_layers_can_be_read_back() -> None:
    shapes = [checked_plan(12345, 0.003)]
    shapes.append(next_shape(shapes))
    assert list(parse(describe(shapes))) == shapes


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x",
        "1:2:3",
        "0:0.1:4:1",
        "10:1.5:4:1",
        "10:0.1:4:99",
        "10:nan:4:1",
        f"{10**400}:0.1:4:15",
        "10:1e-400:4:15",
        " 10:0.08:4:14",
    ],
)
def test_a_description_that_nobody_wrote_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        parse(text)


def test_an_item_is_found_where_pybloom_put_it() -> None:
    shape = checked_plan(1000, 0.01)
    layers = Layers([shape])
    assert not layers.holds("x")
    bits = layers.put("x")
    assert bits == positions(shape, hashes_of(shape), "x")
    assert len(bits) == shape.slices
    assert "x" in layers.filters[0]
    assert layers.put("x") == []


def test_the_chunks_of_one_filter_make_an_equal_one() -> None:
    shapes = (checked_plan(20_000, 0.01),)
    source, copy = Layers(shapes), Layers(shapes)
    for number in range(5000):
        source.put(str(number))
    for chunk in range(shapes[0].chunks):
        copy.load(0, chunk, source.chunk(0, chunk))
    assert copy.filters[0].bitarray == source.filters[0].bitarray


def test_a_bit_has_the_same_place_in_a_chunk_as_redis_counts() -> None:
    shape = checked_plan(20_000, 0.01)
    layers = Layers([shape])
    for position in layers.put("x"):
        chunk, bit = chunk_and_bit(position)
        stored = b"12345678" + layers.chunk(0, chunk)
        assert stored[bit // 8] >> (7 - bit % 8) & 1
    assert chunk_and_bit(CHUNK_BITS)[0] == 1
    assert chunk_and_bit(0) == (0, HEADER_BYTES * 8 + 7)


def test_a_full_filter_grows_and_keeps_its_word_about_errors() -> None:
    layers = Layers([checked_plan(5000, 0.01)])
    for number in range(20_000):
        layers.add(f"row {number}")
    assert len(layers.shapes) == 3
    assert all(layers.holds(f"row {number}") for number in range(20_000))
    wrong = sum(layers.holds(f"nothing {number}") for number in range(20_000))
    assert wrong <= 0.012 * 20_000
    assert 19_700 <= layers.count <= 20_000


def test_a_full_filter_does_not_grow_for_what_it_holds() -> None:
    layers = Layers([checked_plan(10, 0.001)])
    for _ in range(3):
        for number in range(10):
            layers.add(str(number))
    assert len(layers.shapes) == 1


def test_the_probe_tells_layers_of_other_measures_apart() -> None:
    assert probe(checked_plan(1000, 0.01)) != probe(checked_plan(1001, 0.01))


def test_no_more_absences_are_outstanding_than_the_limit_allows() -> None:
    draw = random.Random(7)
    for limit in (0, 1, 10, 100):
        budget = AbsenceBudget(limit)
        now, ends = 1000.0, list[float]()
        for _ in range(5000):
            now += draw.expovariate(20)
            ttl = draw.choice([0.01, 0.5, 3.0, 30.0, 300.0]) * draw.uniform(0.5, 1)
            if budget.take(now, ttl):
                ends.append(now + ttl)
            ends = [end for end in ends if end > now]
            assert len(ends) <= limit


def test_an_expired_absence_makes_room_an_eighth_of_its_life_later_at_most() -> None:
    for ttl in (0.3, 30.0, 1.0, 86_400.0):
        budget = AbsenceBudget(1)
        assert budget.take(1000.0, ttl)
        assert not budget.take(1000.0 + ttl * 0.999, ttl)
        assert budget.take(1000.0 + ttl * 1.126, ttl)


def test_a_long_absence_does_not_hold_up_the_short_ones() -> None:
    budget = AbsenceBudget(2)
    assert budget.take(0.0, 1e15)
    for turn in range(100):
        assert budget.take(turn * 2.0, 1.0)
        assert not budget.take(turn * 2.0 + 0.5, 1.0)


def test_a_clock_that_is_read_late_does_no_harm() -> None:
    budget = AbsenceBudget(1)
    assert budget.take(100.0, 1e-9)
    assert budget.take(200.0, 1.0)
    assert not budget.take(199.0, 1.0)
    assert not budget.take(200.5, 1.0)
    assert budget.take(300.0, -1.0)


def test_markers_take_room_from_absences_and_each_counts_once() -> None:
    budget = AbsenceBudget(4)
    for number in range(3):
        assert budget.take(0.0, 30.0)
        budget.add_markers(0.0, ["shared"], 100.0)
        assert budget.has_room(0.0) is (number < 2)
    assert budget.knows("shared")
    assert not budget.knows("other")
    assert not budget.take(0.0, 30.0)
    budget.add_markers(0.0, ["beyond"], 100.0)  # it is there already
    budget.add_markers(101.0, ["shared"], 100.0)  # kept for less than 100 s more, so for 200 s from now on
    assert [budget.take(101.0, 30.0) for _ in range(2)] == [True, False]
    budget.add_markers(1000.0, ["shared"], 100.0)
    assert [budget.take(1000.0, 30.0) for _ in range(4)] == [True, True, True, False]


def test_what_is_known_of_markers_is_bounded() -> None:
    budget = AbsenceBudget(10)
    budget.add_markers(0.0, map(str, range(1000)), 60.0)
    assert sum(budget.knows(str(number)) for number in range(1000)) == 10
    assert not budget.has_room(0.0)
    assert budget.has_room(1000.0)


@pytest.mark.parametrize("limit", [-1, 1.5, True, None, "10"])
def test_a_limit_of_absences_that_is_no_number_is_refused(limit: object) -> None:
    with pytest.raises(ConfigurationError, match="limit of stored absences"):
        AbsenceBudget(limit)  # type: ignore[arg-type]  # the mistake under test
