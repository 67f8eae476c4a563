"""`make bench-scale`: where a curve bends, its table and its plot."""

from __future__ import annotations

import json
from xml.etree import ElementTree as ET

import pytest

from benchmarks.scale.curves import Curve, exponent, knee, plot, table

FLAT = [(1e3, 1e-5), (1e4, 1.1e-5), (1e5, 0.9e-5)]
BENT = [(1e3, 1e-5), (1e4, 1.1e-5), (1e5, 1.6e-5), (1e6, 9e-5)]


def test_a_curve_bends_where_it_leaves_what_was_least() -> None:
    assert knee(FLAT) is None
    assert knee(BENT) == 1e5
    assert knee(BENT, factor=5) == 1e6
    assert knee([]) is None


def test_the_exponent_is_of_powers() -> None:
    assert exponent([(x, 3 * x**2) for x in (1.0, 10.0, 100.0)]) == pytest.approx(2)
    assert exponent([(1.0, 5.0), (10.0, 5.0)]) == pytest.approx(0)
    with pytest.raises(ValueError, match="two points"):
        exponent([(1.0, 1.0)])


def test_the_table_has_a_line_for_each_size_and_says_where_it_bends() -> None:
    curve = Curve("l2-keys", "A hit", "keys", "seconds", {"ours": BENT, "theirs": FLAT})
    text = table(curve)
    assert "| 1,000,000 | 90.0 µs | – |" in text
    assert "- ours: grows as keys to the power of 0.30, above 1.5x from 100,000 on." in text
    assert "- theirs: grows as keys to the power of -0.02, flat." in text
    assert table(Curve("x", "x", "x", "bytes", absent="no server")) == "Not measured: no server"


def test_a_curve_comes_back_from_json_and_is_drawn() -> None:
    curve = Curve("tags", "Tags", "tags", "seconds", {"a hit": [(0.0, 1e-5), (4.0, 2e-5)], "a miss": FLAT})
    assert Curve.from_data(json.loads(json.dumps(curve.as_data()))) == curve
    lines = [each for each in ET.fromstring(plot(curve)).iter() if each.tag.endswith("polyline")]
    assert [len(line.attrib["points"].split()) for line in lines] == [2, 3]
