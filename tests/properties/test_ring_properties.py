"""Where keys belong among several nodes: the same for everybody, in proportion, and moved as little as can be."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cacheguard.errors import ConfigurationError
from cacheguard.servers.hashing import HashRing, point_of

KEYS = [f"cg:shop:e:user:{number}" for number in range(100_000)]
FEW = KEYS[:500]

names = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)
weighted = st.dictionaries(names, st.integers(1, 5), min_size=1, max_size=8)


def small(weights: dict[str, int]) -> HashRing:
    return HashRing(weights, points_per_weight=20)


@given(weighted, st.randoms())
def test_the_order_in_which_nodes_are_named_does_not_matter(weights: dict[str, int], random: object) -> None:
    shuffled = list(weights.items())
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    one, other = small(weights), small(dict(shuffled))
    assert one.names == other.names
    assert [one.node_of(key) for key in FEW] == [other.node_of(key) for key in FEW]


@given(weighted, names, st.integers(1, 5))
def test_a_new_node_takes_keys_and_moves_none_between_the_others(
    weights: dict[str, int], name: str, weight: int
) -> None:
    weights.pop(name, None)
    if not weights:
        return
    before, after = small(weights), small(weights | {name: weight})
    for key in FEW:
        assert after.node_of(key) in {before.node_of(key), name}


@given(weighted, st.data())
def test_a_node_that_goes_leaves_each_of_its_keys_to_the_next_one(weights: dict[str, int], data: st.DataObject) -> None:
    gone = data.draw(st.sampled_from(sorted(weights)))
    left = {name: weight for name, weight in weights.items() if name != gone}
    if not left:
        return
    before, after = small(weights), small(left)
    for key in FEW[:100]:
        assert list(after.nodes_of(key)) == [name for name in before.nodes_of(key) if name != gone]


@given(weighted, st.data())
def test_a_node_that_grows_only_takes(weights: dict[str, int], data: st.DataObject) -> None:
    grown = data.draw(st.sampled_from(sorted(weights)))
    before, after = small(weights), small(weights | {grown: weights[grown] + 1})
    for key in FEW:
        assert after.node_of(key) in {before.node_of(key), grown}


@given(weighted, st.text())
def test_all_nodes_come_once_the_owner_first(weights: dict[str, int], key: str) -> None:
    ring = small(weights)
    order = list(ring.nodes_of(key))
    assert order[0] == ring.node_of(key)
    assert sorted(order) == sorted(weights)


def test_of_100_000_keys_each_of_five_nodes_has_its_share_and_a_sixth_takes_one_in_six() -> None:
    five = HashRing({f"10.0.0.{number}:6379": 1 for number in range(1, 6)})
    six = HashRing(five.weights | {"10.0.0.6:6379": 1})
    before, after = [five.node_of(key) for key in KEYS], [six.node_of(key) for key in KEYS]
    assert all(18_000 <= count <= 22_000 for count in Counter(before).values())
    moved = [there for here, there in zip(before, after, strict=True) if here != there]
    assert set(moved) == {"10.0.0.6:6379"}
    assert 15_000 <= len(moved) <= 19_000


def test_a_node_has_as_many_keys_as_its_weight_says() -> None:
    ring = HashRing({"small": 0.5, "plain": 1, "double": 2})
    counts = Counter(ring.node_of(key) for key in KEYS)
    for name, weight in ring.weights.items():
        assert counts[name] / len(KEYS) == pytest.approx(weight / 3.5, rel=0.1)


def test_it_is_the_same_in_every_process_and_every_release() -> None:
    # Written down once; a change here would move the keys of everybody who upgrades.
    assert point_of("user:42") == 0x315A996DD95B35AF
    ring = HashRing({"a:6379": 1, "b:6379": 2, "c:6379": 1})
    assert (
        "".join(ring.node_of(f"user:{number}")[0] for number in range(40)) == "cacccaaabbccaaacbbcbbaabbacabbaacabbbaca"
    )
    program = (
        "from cacheguard.servers.hashing import HashRing; print(HashRing(dict.fromkeys('abc', 1)).node_of('user:42'))"
    )
    said = {
        subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True, env=env).stdout
        for env in ({"PYTHONHASHSEED": "1", "PYTHONPATH": ":".join(sys.path)}, {"PYTHONPATH": ":".join(sys.path)})
    }
    assert said == {HashRing(dict.fromkeys("abc", 1)).node_of("user:42") + "\n"}


@pytest.mark.parametrize(
    "weights", [{}, {"": 1}, {"a": 0}, {"a": -1}, {"a": float("nan")}, {"a": float("inf")}, {"a": True}, {"a": 1e6}]
)
def test_what_is_no_ring_is_said(weights: dict[str, float]) -> None:
    with pytest.raises(ConfigurationError):
        HashRing(weights)


def test_a_ring_needs_a_point_for_each_weight() -> None:
    with pytest.raises(ConfigurationError, match="points_per_weight"):
        HashRing({"a": 1}, points_per_weight=0)
