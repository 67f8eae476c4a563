"""Processes that share one Redis and one database, run by the stepper: the real engine, and a judge beside it."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Sequence
from contextlib import nullcontext
from contextvars import copy_context
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from cacheguard.batch import Batch
from cacheguard.defenses.penetration import AbsenceBudget
from cacheguard.engine import Engine, opened, stored_of
from cacheguard.errors import CacheGuardError, Refused, Unreachable
from cacheguard.events import Events
from cacheguard.flights import Shared
from cacheguard.loading import Ask
from cacheguard.policy import Policy, Rules, resolve
from cacheguard.ports import Call, Reply, Runtime, ScriptCall
from cacheguard.tiers.local import Local
from cacheguard.tiers.memory import Hash, MemoryCommands
from cacheguard.tiers.packing import ObjectPacking
from cacheguard.tiers.remote import Remote
from tests.support.stepper import ANYTHING, NOTHING, Cancelled, Choose, Crashed, Pause, Redundant, Stepper, stop_at

PLAIN = resolve(Policy(jitter=None))
REDIS_ONLY = resolve(Policy(jitter=None, l1=False))
INVALIDATING = ("invalidate", "expire", "store")


class Violation(AssertionError):
    """A promise that was not kept."""


class DatabaseDown(Exception):  # noqa: N818 - what a loader raises
    """The loader's own."""


class Fault(Enum):
    """What becomes of one round trip."""

    NONE = "none"
    UNHEARD = "unheard"  # it never reached the server
    UNANSWERED = "unanswered"  # it did, and the reply was lost


class ModelServer(MemoryCommands):
    """Redis, and a judge who knows just one rule: a lease is given to one at a time and taken back by nobody else."""

    def __init__(self, stepper: Stepper, size: int = 1000) -> None:
        super().__init__(size, nullcontext(), lambda: stepper.now)
        self._stepper = stepper
        self.version = 0  # of everything that a reply could tell
        self.holders: dict[str, str] = {}
        self.grants = 0
        self.bypasses = 0

    def answer(self, call: Call) -> Reply:
        """Run one call."""
        key = call.keys[0] if isinstance(call, ScriptCall) else str(call[1])
        before = dict(self._hashes.get(key, {})), self._ends.get(key)
        reply = self._run(call)
        if isinstance(call, ScriptCall):
            self._judge(call, key, reply)
            self.version += before != (dict(self._hashes.get(key, {})), self._ends.get(key))
        return reply

    def _judge(self, call: ScriptCall, key: str, reply: Reply) -> None:
        name, token = call.script.name, str(call.args[0])
        holder = self.holders.get(key)
        if name == "lease" and reply[0] == b"GRANTED":
            if holder not in (None, token) and self.lease_left(key, holder) > 0:
                raise Violation(f"{key} is leased to {holder} and to {token}")
            self.grants += holder != token
            self.holders[key] = token
        elif name == "lease":
            self.bypasses += reply[0] == b"BYPASS"
        elif name == "fill" and reply == 1:
            if holder != token:
                raise Violation(f"{key} was filled under {token}, leased to {holder}")
            del self.holders[key]
        elif name in INVALIDATING or (name in {"fill", "release"} and holder == token):
            self.holders.pop(key, None)

    def lease_left(self, key: str, holder: str | None) -> float:
        """How long the lease would last if nobody interfered with it, as the judge remembers it."""
        return self._deadlines.get((key, str(holder)), 0.0) - self._stepper.now

    @property
    def _deadlines(self) -> dict[tuple[str, str], float]:
        return self.__dict__.setdefault("deadlines", {})

    def _run(self, call: Call) -> Reply:
        reply = super()._run(call)
        if isinstance(call, ScriptCall) and call.script.name in {"lease", "renew"}:
            granted = reply == 1 or (isinstance(reply, list) and reply[0] == b"GRANTED")
            if granted:
                previous = self._deadlines.get((call.keys[0], str(call.args[0])), 0.0)
                self._deadlines[call.keys[0], str(call.args[0])] = max(
                    previous, self._stepper.now + int(call.args[1]) / 1000
                )
        return reply
