"""What is owed, while others owe more."""

from __future__ import annotations

from typing import Any

from cacheguard.delivery.outbox import Invalidation, Outbox
from cacheguard.events import Events


class Restless(dict[Invalidation, object]):
    """Changes its size the first time that somebody looks at it, as another thread would have it."""

    disturbed = False

    def items(self) -> Any:
        for each in super().items():
            if not self.disturbed:
                self.disturbed = True
                self[Invalidation("another")] = object()
            yield each


def test_what_is_owed_can_be_looked_at_while_another_thread_owes_more() -> None:
    outbox = Outbox("root", Events(), lambda: 0.0)
    outbox.pending = Restless({Invalidation("one"): object()})
    assert [item.key for item in outbox.part(10)] == ["one", "another"]
