"""What a process keeps in the place of Redis: nothing is done where nothing is kept, and what lasts is noted."""

from __future__ import annotations

from contextlib import nullcontext

import pytest

from cacheguard.delivery.outbox import Invalidation
from cacheguard.engine.here import Here
from cacheguard.protocol.model import MemoryCommands

KEY, TAG = "cg:test:k", "cg:test:m:red"


class Store(MemoryCommands):
    """A store that counts what it is asked."""

    def __init__(self) -> None:
        super().__init__(100, nullcontext(), lambda: 0.0)
        self.asked = 0

    async def send_each(self, *calls: object) -> list[object]:
        self.asked += len(calls)
        return await super().send_each(*calls)  # type: ignore[arg-type]


@pytest.fixture
def store() -> Store:
    return Store()


def test_an_invalidation_of_nothing_costs_nothing(store: Store) -> None:
    Here(store, beside_redis=True).forget([Invalidation(KEY), Invalidation(TAG)])
    assert store.asked == 0


@pytest.mark.parametrize("key", [KEY, TAG])
@pytest.mark.parametrize(
    "lasting", [{"lag_ms": 500}, {"version": "0" * 20}, {"begins": "w", "intent_ms": 1000}], ids=min
)
def test_what_outlives_an_invalidation_is_noted_though_nothing_is_kept(
    store: Store, key: str, lasting: dict[str, object]
) -> None:
    here = Here(store, beside_redis=True)
    here.forget([Invalidation(key, **lasting)])  # type: ignore[arg-type]
    assert not store.empty
    here.forget([Invalidation(KEY)])  # now there is something that it may concern
    assert store.asked >= 2


def test_the_namespaces_of_many_versions_are_asked_once(store: Store) -> None:
    many = [Invalidation(f"cg:test:k{number}", version="0" * 20) for number in range(50)]
    Here(store, beside_redis=True).forget(many)
    assert store.asked < 2 * len(many)


def test_without_redis_nothing_is_said_twice(store: Store) -> None:
    Here(store, beside_redis=False).forget([Invalidation(KEY, lag_ms=500)])
    assert store.empty
