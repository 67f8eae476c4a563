"""Which slot a key is in, and what a guard makes of what the nodes of a cluster tell."""

from __future__ import annotations

from typing import Any

import pytest
from redis.crc import key_slot

from cacheguard.client.endpoints import Address, Endpoint
from cacheguard.client.identity import Identity
from cacheguard.errors import Refused
from cacheguard.servers.slots import SLOTS, Map, slot_of


def test_the_slot_of_a_key_is_that_of_the_specification() -> None:
    assert slot_of(b"123456789") == 0x31C3
    assert slot_of(b"{user1000}.following") == slot_of(b"{user1000}.followers") == slot_of(b"user1000")


def test_the_slot_of_a_key_is_that_of_redis_py() -> None:
    for key in (b"", b"a", b"{}a", b"a{}b{c}", b"a{b", b"a}b{c}d", b"{{a}}", b"{a}{b}", b"\xff{\x00}", b"}{a}", b"{"):
        assert slot_of(key) == key_slot(key), key


A, B, C = ("a", 1), ("b", 2), ("c", 3)
HALF = SLOTS // 2


class Told:
    """A map that hears what its nodes own, and counts what may have lost something."""

    def __init__(self) -> None:
        self.losses = 0
        self.map = Map(Endpoint(None, {}, (A,)), Identity(self._lost))

    def _lost(self, _of_unknown_age: bool) -> None:
        self.losses += 1

    def hear(self, *halves: tuple[Address, str | None] | None) -> int:
        """The two halves of the slots, each as its owner and the id of that; how often something may have been lost."""
        rows: list[Any] = []
        for at, half in enumerate(halves):
            if half is not None:
                (host, port), name = half
                words = [host.encode(), port] if name is None else [host.encode(), port, name.encode()]
                rows.append([at * HALF, (at + 1) * HALF - 1, words])
        self.map.learn(A, rows)
        return self.losses


def test_a_slot_that_one_master_hands_to_another_has_lost_nothing() -> None:
    told = Told()
    assert told.hear((A, "1"), (B, "2")) == 0
    told.map.learn(A, [[0, HALF, [b"a", 1, b"1"]], [HALF + 1, SLOTS - 1, [b"b", 2, b"2"]]])
    assert told.map.owners[HALF] == A
    assert told.losses == 0


def test_a_master_that_takes_the_place_of_another_may_have_lost_something() -> None:
    told = Told()
    told.hear((A, "1"), (B, "2"))
    assert told.hear((A, "1"), (C, "3")) == 1
    assert told.map.masters == (A, C)
    assert told.hear((A, "1"), (C, "3")) == 1, "the same again is no change"


def test_a_master_that_gives_away_its_last_slot_is_taken_for_gone() -> None:
    told = Told()
    told.hear((A, "1"), (B, "2"))
    assert told.hear((A, "1"), (A, "1")) == 1


def test_a_master_that_has_only_moved_house_is_the_same() -> None:
    told = Told()
    told.hear((A, "1"), (B, "2"))
    assert told.hear((A, "1"), (C, "2")) == 0
    assert told.map.masters == (A, C)


def test_without_ids_an_address_is_the_id() -> None:
    told = Told()
    told.hear((A, None), (B, None))
    assert told.hear((A, None), (C, None)) == 1


def test_a_slot_that_is_not_mentioned_keeps_its_owner() -> None:
    told = Told()
    told.hear((A, "1"), (B, "2"))
    assert told.hear((A, "1"), None) == 0
    assert told.map.owners[HALF] == B
    assert told.hear((A, "1"), (B, "2")) == 0, "its id is still known"


def test_a_node_that_knows_of_no_slots_is_refused() -> None:
    told = Told()
    with pytest.raises(Refused, match="a:1 knows of no slots"):
        told.hear()
    assert told.map.masters == ()


def test_a_node_without_a_host_is_where_the_one_is_that_was_asked() -> None:
    told = Told()
    for unnamed in (b"", b"?", None):
        told.map.learn(("here", 7), [[0, SLOTS - 1, [unnamed, 8, b"1"], [b"there", 9, b"2"]]])
        assert told.map.masters == (("here", 8),)
        assert told.map.replicas == {("here", 8): (("there", 9),)}


def test_an_address_is_found_where_the_user_says() -> None:
    place = Endpoint(None, {}, (A,), remap=lambda address: ("outside", address[1]))
    owners = Map(place, Identity(lambda _: None))
    owners.learn(A, [[0, SLOTS - 1, [b"inside", 8, b"1"]]])
    assert owners.masters == (("outside", 8),)
