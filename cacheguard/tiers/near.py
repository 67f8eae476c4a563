"""Reads from replicas: what one of them has is used only where nothing more has to be asked about it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..codec import Codec
from ..delivery.gate import Gate
from ..events import Events
from ..protocol import calls
from ..protocol.entry import Found, Usable
from ..protocol.names import Scope
from .opening import Opening


class Near:
    """The replicas of one place."""

    def __init__(self, gate: Gate, opening: Opening, events: Events) -> None:
        self._gate, self._opening, self._events = gate, opening, events

    async def read(
        self,
        keys: Sequence[str],
        codec: Codec | None,
        scope: Scope,
        tags: Sequence[tuple[str, ...]],
        markers: Sequence[str],
        usable: Usable | None = None,
    ) -> list[Found | None]:
        """Entries of *keys* that are fresh beyond doubt; None for everything else. One round trip.

        Args:
            tags: of each key.
            markers: of all of them.
            usable: whether the caller has a use for a value.
        """
        answer = await self._gate.ask_replicas(*calls.read_near(keys, markers))
        if answer is None:
            return [None] * len(keys)
        replies, time = answer
        seen = dict(zip(markers, map(calls.nonce, replies[len(keys) :]), strict=True))
        answers: list[Found | None] = []
        for key, raw, its_tags in zip(keys, replies, tags, strict=False):
            names = scope.markers(its_tags)
            held = calls.was_read_near(raw, calls.clock(time, key))
            found = None if held is None else self._entry(key, held, codec, its_tags, tuple(map(seen.get, names)))
            if found is not None and (
                self._gate.bus.is_dirty(key, names) or self._opening.wanted(found, usable, b"").stored is None
            ):
                found = None
            self._events.replica_hits += found is not None
            answers.append(found)
        return answers

    def _entry(
        self, key: str, held: calls.Held, codec: Codec | None, tags: tuple[str, ...], nonces: tuple[Any, ...]
    ) -> Found | None:
        """The entry, if it is fresh and has no other tags than those that were asked for."""
        found = self._opening.entry(key, held, codec)
        stored = found.stored
        if stored is None or found.fresh_left <= 0 or stored.tags != tags or stored.nonces != nonces:
            return None
        return found
