from __future__ import annotations

import math
import random
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from enum import Enum, IntEnum, StrEnum
from fractions import Fraction
from pathlib import Path
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cacheguard.defenses.penetration.absences import AbsenceBudget
from cacheguard.defenses.penetration.bits import Layers
from cacheguard.defenses.penetration.items import LONGEST_TEXT, item_text, part_text, text_to_ask, texts_to_add
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
    ONE = 1
    HIGH = 42


class Color(StrEnum):
    RED = "red"


class Plain(Enum):
    ONE = 1


class Shade(Enum):
    RED = "red"


@dataclass
class Row:
    number: int


TENTH = 0.1
WHO = UUID("0a1b2c3d-0000-4000-8000-00000000002a")
DIGITS = UUID("00000000-0000-0000-0000-0000000001e9")  # its text reads like a number
FORMS: dict[str, list[object]] = {
    "a whole number": [
        *(42, "42", b"42", bytearray(b"42"), memoryview(b"42"), 42.0, Decimal(42), Decimal("42.00"), Decimal("4.2E+1")),
        *(
            Level.HIGH,
            Fraction(42),
            "042",
            "+42",
            "42.0",
            " 42 ",
            "4.2e1",
            "٤٢",
            "\N{FULLWIDTH DIGIT FOUR}\N{FULLWIDTH DIGIT TWO}",
        ),
    ],
    "zero": [0, -0.0, "0", "-0", "00.0", Decimal("-0"), Decimal("0E+5"), False - 0],
    "a fraction": [1.5, "1.5", "1.50", Decimal("1.500"), Fraction(3, 2), "+1.5", "15e-1", "01.5", b"1.5"],
    "a tenth": [0.1, "0.1", ".1", "1e-1", Decimal("0.1"), Decimal(TENTH), Fraction(1, 10)],
    "a small number": [1e-7, str(1e-7), Decimal("1E-7"), "0.0000001", "1.0E-07"],
    "a negative number": [-7, "-7", -7.0, Decimal("-7.0"), "-007"],
    "a large number": [10**25, str(10**25), Decimal("1E+25"), "1e+25", str(1e25), Fraction(10**25)],
    "a number of many digits": [10**70, str(10**70), Decimal("1e70"), "1E70", Decimal(10) ** 70],
    "a UUID": [
        *(
            WHO,
            str(WHO),
            WHO.hex,
            WHO.urn,
            str(WHO).upper(),
            WHO.hex.upper(),
            f"{{{WHO}}}",
            WHO.bytes,
            bytearray(WHO.bytes),
        ),
        *(str(WHO).encode(), f" {WHO}"),
    ],
    "a UUID like a number": [DIGITS, str(DIGITS), DIGITS.hex, DIGITS.urn],
    "upper and lower case": ["Straße", "STRASSE", "strasse", "Straße".encode()],
    "accents": ["é", "e\N{COMBINING ACUTE ACCENT}", "É", "E", "e\N{ZERO WIDTH JOINER}"],
    "an accent that is a letter": [
        "\N{GREEK SMALL LETTER ALPHA WITH YPOGEGRAMMENI}",
        "\N{GREEK SMALL LETTER ALPHA}\N{COMBINING GREEK YPOGEGRAMMENI}",
        "\N{GREEK CAPITAL LETTER ALPHA}\N{GREEK CAPITAL LETTER IOTA}",
    ],
    "letters in one sign": ["\N{TELEPHONE SIGN}", "TEL", "tel"],
    "a dotless i": ["istanbul", "İstanbul", "\N{LATIN SMALL LETTER DOTLESS I}stanbul", "ISTANBUL"],
    "a member of an enum": [Color.RED, "red", "RED", Shade.RED],
    "a member with a number": [Plain.ONE, 1, "1", Level.ONE],
    "a text with parts": [f"INV-0007:{WHO}:1.50", f"inv-7:{WHO.hex}:1.5", f"Inv-07:{str(WHO).upper()}:01.500"],
    "bytes that are no text": [b"\xff\x00\xfe", "ff00fe", "FF00FE"],
}


@pytest.mark.parametrize("forms", FORMS.values(), ids=list(FORMS))
def test_all_known_forms_of_one_item_have_one_text(forms: list[object]) -> None:
    assert len({item_text(form) for form in forms}) == 1


def test_what_is_not_the_same_has_different_texts() -> None:
    assert len({item_text(forms[0]) for forms in FORMS.values()}) == len(FORMS)
    assert len({item_text(2**60 + number) for number in range(100)}) == 100


def test_16_bytes_that_may_be_a_text_or_a_uuid_are_added_as_both_and_asked_for_as_neither() -> None:
    item = b"sixteen letters!"
    assert texts_to_add(item) == [item_text("sixteen letters!"), item_text(UUID(bytes=item))]
    assert text_to_ask(item) is None
    assert texts_to_add(WHO.bytes) == [item_text(WHO)] == [text_to_ask(WHO.bytes)]
    assert texts_to_add(b"fifteen letters") == ["fifteen letters"]


@pytest.mark.parametrize(
    ("part", "text"),
    [
        (7, "7"),
        (7.0, "7"),
        (Decimal("-7.0"), "-7"),
        ("07", "07"),
        (Color.RED, "red"),
        (Plain.ONE, "1"),
        (WHO, WHO.hex),
        (1.5, None),
        (None, None),
        (True, None),
        (b"7", None),
        (object(), None),
    ],
)
def test_a_part_of_an_item_has_a_text_only_if_there_is_one_way_to_write_it(part: object, text: str | None) -> None:
    assert part_text(part) == text


class Unspeakable:
    def __repr__(self) -> str:
        raise AssertionError("nobody asks")


@given(st.decimals(allow_nan=False, allow_infinity=False, min_value=-(10**30), max_value=10**30))
def test_every_way_to_write_a_number_is_one_item(number: Decimal) -> None:
    forms: list[object] = [number, str(number), f"{number:f}", f"{number:e}", str(number).lower().encode()]
    whole = number == number.to_integral_value()
    if whole:
        forms += [int(number), str(int(number)), Fraction(number)]
    if abs(number) < 2**53 and (whole or Decimal(repr(float(number))) == number):
        forms += [float(number), repr(float(number))]
    assert len({item_text(form) for form in forms}) == 1


@given(st.uuids())
def test_every_way_to_write_a_uuid_is_one_item(who: UUID) -> None:
    texts = {item_text(form) for form in (who, str(who), who.hex, who.urn, f"{{{who}}}", str(who).upper())}
    assert len(texts) == 1
    assert texts <= set(texts_to_add(who.bytes))
    assert text_to_ask(who.bytes) in {None, *texts}


@given(st.text(max_size=30))
def test_no_change_of_case_makes_another_item(text: str) -> None:
    for other in (text.upper(), text.lower(), text.casefold(), f" {text}\n", text.encode("utf-8", "surrogatepass")):
        assert item_text(other) == item_text(text) or "\ud800" <= max(text) <= "\udfff"


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
        datetime(2026, 1, 2, tzinfo=UTC),
        Path("a"),
        2.0**53,
        Decimal("1e999999999"),
        pytest.param(10**5000, id="huge"),
        pytest.param(Fraction(10**400, 3), id="huge fraction"),
    ],
)
def test_an_item_without_a_stable_text_is_refused(item: object) -> None:
    with pytest.raises(ConfigurationError, match="must be a str, int"):
        item_text(item)
    assert text_to_ask(item) is None


def test_a_reader_is_not_told_of_an_odd_argument() -> None:
    assert text_to_ask(Unspeakable()) is None


@pytest.mark.parametrize(
    "item", ["x" * 10_000, "Ä" * 65, "\N{ARABIC-INDIC DIGIT ONE}" * 9000, "1e999999", "\ud800", b"\xff" * 5, "a\udcffb"]
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
