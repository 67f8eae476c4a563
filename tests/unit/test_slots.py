"""Which slot a key is in, and what a guard makes of what the nodes of a cluster tell."""

from __future__ import annotations

from redis.crc import key_slot

from cacheguard.servers.slots import slot_of


def test_the_slot_of_a_key_is_that_of_the_specification() -> None:
    assert slot_of(b"123456789") == 0x31C3
    assert slot_of(b"{user1000}.following") == slot_of(b"{user1000}.followers") == slot_of(b"user1000")


def test_the_slot_of_a_key_is_that_of_redis_py() -> None:
    for key in (b"", b"a", b"{}a", b"a{}b{c}", b"a{b", b"a}b{c}d", b"{{a}}", b"{a}{b}", b"\xff{\x00}", b"}{a}", b"{"):
        assert slot_of(key) == key_slot(key), key
