"""Servers for the stepper, under the eyes of judges: the protocol without Redis, and the store beside Redis."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import Counter
from contextlib import nullcontext
from typing import Any, Protocol

from cacheguard.errors import Refused
from cacheguard.ports import Call, Reply, ScriptCall
from cacheguard.protocol.entry import Stored
from cacheguard.protocol.layout import NONCE_BYTES
from cacheguard.protocol.model import MemoryCommands
from cacheguard.protocol.names import is_marker
from cacheguard.protocol.state import State
from cacheguard.tiers.packing import ObjectPacking, Packing
from tests.support.stepper import Stepper
from tests.support.witness import Sight, Violation, Witness

FORGETTING = ("invalidate", "expire", "store")


class Listening(Protocol):
    """Who hears what is published."""

    def deliver(self, message: str, said: dict[str, int]) -> None: ...


class Judged(ABC):
    """A Redis under the eyes of judges: a lease is given to one at a time, and no deadline ends another.

    A subclass answers calls (`run`), and looks under a key (`look`, `forget`).
    """

    def __init__(self, stepper: Stepper) -> None:
        self.stepper = stepper
        self.version = 0  # counts the changes of anything that a poll could notice
        self.holders: dict[str, tuple[str, float]] = {}
        self.grants = 0
        self.bypasses = 0
        self.lost: Counter[str] = Counter()  # evictions, by key
        self.listeners: list[Listening] = []
        self.database: dict[str, int] = {}  # of the world
        self._news: list[str] = []
        self.witness = Witness(self)
        self.lag_over_ms = 0  # when the last quarantine ends that was ever begun

    def now_ms(self) -> int:
        """The server's time."""
        return math.floor(self.stepper.now * 1000)

    def tell(self, message: str) -> None:
        """Put the message into the inbox of everyone who listens, once the call is answered.

        Each hears it in a step of its own.
        """
        self._news.append(message)

    def answer(self, call: Call) -> Reply:
        """Run one call and judge the reply."""
        if not isinstance(call, ScriptCall):
            return self.run(call)
        key, name = call.keys[0], call.script.name
        before = self.look(key)
        reply = self.run(call)
        if isinstance(reply, Refused):
            return reply
        after = self.look(key)
        if self._news:
            # Where something was removed, all that is kept later was loaded later.
            removed = name == "invalidate" and (after is None or after.value is None)
            said = dict(self.database) if removed else {}
            for message in self._news:
                for process in self.listeners:
                    process.deliver(message, said)
            self._news.clear()
        self.version += before != after
        self._judge(name, str(call.args[0]) if call.args else "", call, key, reply)
        self.witness.saw(call, reply, before, after)
        return reply

    def _judge(self, name: str, token: str, call: ScriptCall, key: str, reply: Reply) -> None:
        now = self.stepper.now
        holder, until = self.holders.get(key, ("", 0.0))
        if name == "invalidate" and call.args[2]:
            self.lag_over_ms = max(self.lag_over_ms, self.now_ms() + int(call.args[2]))
        if name == "lease" and reply[0] == b"GRANTED":
            if holder not in {"", token} and until > now:
                raise Violation(f"{key} is leased to {holder} and to {token}")
            self.grants += holder != token
            self.holders[key] = token, now + int(call.args[1]) / 1000
        elif name == "lease":
            self.bypasses += reply[0] == b"BYPASS"
        elif name == "renew" and reply == 1:
            self.holders[key] = token, now + int(call.args[1]) / 1000
        elif name == "fill" and reply in {1, 2} and holder != token:
            raise Violation(f"{key} was filled under {token}, leased to {holder or 'nobody'}")
        elif self._takes_back(name, reply) or (name in {"fill", "release"} and holder == token):
            self.holders.pop(key, None)

    @staticmethod
    def _takes_back(name: str, reply: Reply) -> bool:
        """Whether the call has ended whatever lease there was."""
        if name in {"add", "replace"}:
            return bool(reply[0] == 1)
        return name in FORGETTING and not (name == "store" and reply == -1)

    def evict(self, key: str) -> None:
        """Lose *key*, as a server does that runs out of memory."""
        self.forget(key)
        self.holders.pop(key, None)
        self.witness.lost(key)
        self.lost[key] += 1
        self.version += 1

    def stored(self, key: str) -> Stored | None:
        """The entry of *key*, fresh or not."""
        there = self.look(key)
        return None if there is None or there.value is None else self.unpacked(key, there.value)

    def marker(self, key: str) -> Any:
        """The nonce of a marker."""
        there = self.look(key)
        return None if there is None or there.value is None else there.value[:NONCE_BYTES]

    def value(self, key: str, *, stale: bool) -> Any:
        """What a reader would find fresh, or *stale* if there is just that; None if nothing is there."""
        there = self.look(key)
        if there is None or there.value is None or not (stale or there.fresh > self.now_ms()):
            return None
        return self.unpacked(key, there.value).value

    # What a kind of server says

    @abstractmethod
    def run(self, call: Call) -> Reply:
        """Answer one call."""

    @abstractmethod
    def look(self, key: str) -> Sight | None:
        """What is under *key* and not over, without any change to it."""

    @abstractmethod
    def forget(self, key: str) -> None:
        """Remove *key*, whatever is there."""

    @abstractmethod
    def packing(self) -> Packing:
        """How its processes pack what they store."""

    @abstractmethod
    def unpacked(self, key: str, envelope: Any) -> Stored:
        """What *envelope* says."""


class ModelServer(Judged):
    """Redis as `model` has it."""

    def __init__(self, stepper: Stepper) -> None:
        super().__init__(stepper)
        self._model = MemoryCommands(1000, nullcontext(), lambda: stepper.now)
        self._model.publish = lambda _, message: self.tell(message)  # type: ignore[method-assign, assignment]

    def run(self, call: Call) -> Reply:
        return self._model.run(call)

    def look(self, key: str) -> Sight | None:
        return looked(self._model, key)

    def forget(self, key: str) -> None:
        model = self._model
        (model._of_markers() if is_marker(key) else model)._delete(key)  # noqa: SLF001 - as eviction does

    def packing(self) -> Packing:
        return ObjectPacking()

    def unpacked(self, key: str, envelope: Any) -> Stored:
        stored: Stored = envelope
        return stored


def looked(model: MemoryCommands, key: str) -> Sight | None:
    """What is under *key* in *model*."""
    store = model._of_markers() if model.sorts and is_marker(key) else model  # noqa: SLF001 - as it sorts itself
    now = model.now_ms()
    state = store._opened(key, now)  # noqa: SLF001 - what is over is removed, as any call does
    if state is None:
        return None
    return Sight(
        state.value,
        state.fresh,
        state.dead,
        state.version,
        tuple(state.lease) if state.lease is not None else None,
        tuple(state.quarantine) if state.quarantine is not None else None,
        tuple(map(tuple, floors_of(state))),
        {name: claim[0] for name, claim in state.writes.items()},
        tuple(state.failure) if state.failure is not None else None,
        state.end(),
    )


def floors_of(state: State) -> list[list[Any]]:
    """The version floors of *state*."""
    return [floor for floor in (state.floor, *state.floors.values()) if floor is not None]


class OwnStore(MemoryCommands):
    """The store of a process for functions with ``l2=False``, under the eyes of a witness."""

    def __init__(self, stepper: Stepper) -> None:
        super().__init__(1000, nullcontext(), lambda: stepper.now)
        self.version = 0
        self.witness = Witness(self)

    def run(self, call: Call) -> Reply:
        if not isinstance(call, ScriptCall):
            return super().run(call)
        before = looked(self, call.keys[0])
        reply = super().run(call)
        after = looked(self, call.keys[0])
        self.version += before != after
        self.witness.saw(call, reply, before, after)
        return reply

    def marker(self, key: str) -> Any:
        """The nonce of a marker."""
        there = looked(self, key)
        return None if there is None or there.value is None else there.value[:NONCE_BYTES]

    def stored(self, key: str) -> Stored | None:
        """The entry of *key*, fresh or not."""
        there = looked(self, key)
        return None if there is None else there.value

    def value(self, key: str, *, stale: bool) -> Any:
        """What a reader would find fresh, or *stale* if there is just that; None if nothing is there."""
        there = looked(self, key)
        usable = there is not None and there.value is not None and (stale or there.fresh > self.now_ms())
        return there.value.value if there is not None and usable else None
