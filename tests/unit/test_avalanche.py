from __future__ import annotations

from cacheguard.defenses.avalanche import jittered, next_start


def test_a_ttl_is_never_longer_than_asked_nor_shorter_than_the_jitter_allows() -> None:
    assert jittered(100.0, 0.1, 0.0) == 100.0
    assert 90.0 < jittered(100.0, 0.1, 0.999) < 90.2
    assert jittered(100.0, 0.0, 0.5) == 100.0


def test_a_warm_up_keeps_to_its_rate() -> None:
    assert [next_start(index, 50.0, 10.0) for index in (0, 1, 20)] == [50.0, 50.1, 52.0]
    assert next_start(7, 50.0, None) == 50.0
