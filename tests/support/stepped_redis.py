"""A real server for the stepper: the production scripts, on a clock that the stepper moves."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from hashlib import sha1
from typing import Any

from redis.connection import Connection
from redis.exceptions import ResponseError

from cacheguard.codec import Registry
from cacheguard.errors import Refused
from cacheguard.ports import Call, Command, Reply, Script, ScriptCall
from cacheguard.protocol.calls import (
    ADD,
    EXPIRE,
    FILL,
    INVALIDATE,
    LEASE,
    MARK,
    RELEASE,
    RENEW,
    REPLACE,
    STORE,
    TAGGED,
    TOUCH,
)
from cacheguard.protocol.entry import Stored
from cacheguard.protocol.envelope import Sealer
from cacheguard.tiers.packing import Packing, SealedPacking
from tests.support.judged import Judged
from tests.support.stepped import CHANNEL
from tests.support.stepper import Stepper
from tests.support.witness import Sight

SCRIPTS = (LEASE, FILL, RELEASE, RENEW, INVALIDATE, EXPIRE, TOUCH, STORE, ADD, REPLACE, MARK, TAGGED)
PUBLISHING = {"fill", "release", "invalidate", "expire", "touch", "store", "add", "replace"}
BEYOND_MS = 4_000_000_000_000  # the stepper's time begins here: no key of a schedule ends by the server's own clock
NOW = """local T = redis.call('TIME')
local now = T[1] * 1000 + math.floor(T[2] / 1000)
"""
LOOK = """
local e = open(KEYS[1])
local c, flat = e.c, function(claims)
  local list = {}
  for id, claim in pairs(claims or {}) do
    list[#list + 1] = id
    list[#list + 1] = claim[1]
  end
  return list
end
local floors = {}
if c.f then floors[1] = c.f end
for _, floor in pairs(c.g or {}) do floors[#floors + 1] = floor end
local left, real = redis.call('PTTL', KEYS[1]), redis.call('TIME')
return {
  left == -2 and 0 or 1, value_of(e) or false, e.fresh, e.dead, c.n or false, c.l or false, c.q or false, floors,
  flat(c.w), c.x or false, left < 0 and 0 or real[1] * 1000 + math.floor(real[2] / 1000) + left,
}
"""

Tamper = Callable[[str, str], str]  # the name of a script, and its source


def as_it_is(_name: str, source: str) -> str:
    """The source of a script, without a bug."""
    return source


def on_our_clock(source: str) -> str:
    """The script with one more argument, the last: what time it is."""
    if NOW not in source:
        raise AssertionError("the prelude asks for the time in another way")
    return source.replace(NOW, "local now = tonumber(ARGV[#ARGV])\n")


@cache
def _prelude() -> str:
    source = LEASE.source
    return source[: source.index("-- LEASE:")]


class RealRedis:
    """Connections to a server, for one schedule after the other.

    Args:
        tamper: plants a bug into the scripts.
    """

    def __init__(self, port: int, tamper: Tamper = as_it_is) -> None:
        make: Any = Connection  # which has no types
        self._data = make(host="127.0.0.1", port=port, socket_timeout=10, protocol=2)
        self._news = make(host="127.0.0.1", port=port, socket_timeout=10, protocol=2)
        self._news.send_command("SUBSCRIBE", CHANNEL)
        self._news.read_response()
        self._sealer, self.registry = Sealer(), Registry()
        self._shas: dict[str, str] = {}
        for script in SCRIPTS:
            self._shas[script.name] = self._load(on_our_clock(tamper(script.name, script.source)))
        self._look = self._load(on_our_clock(_prelude() + LOOK))

    def _load(self, source: str) -> str:
        (sha,) = self.ask([("SCRIPT", "LOAD", source)])
        assert sha == sha1(source.encode(), usedforsecurity=False).hexdigest().encode(), sha
        return str(sha, "ascii")

    def packing(self) -> SealedPacking:
        return SealedPacking(self._sealer, self.registry)

    def ask(self, commands: list[Command]) -> list[Reply]:
        """The answers to *commands*, errors as `Refused`."""
        self._data.send_packed_command(self._data.pack_commands(commands))
        replies: list[Reply] = []
        for _ in commands:
            try:
                replies.append(self._data.read_response())
            except ResponseError as error:
                replies.append(Refused(str(error)))
        return replies

    def script(self, call: ScriptCall, now: int) -> Command:
        return ("EVALSHA", self._shas[call.script.name], 1, call.keys[0], *call.args, now)

    def look(self, key: str, now: int) -> Command:
        return ("EVALSHA", self._look, 1, key, now)

    def heard(self) -> list[str]:
        """What was published since this was asked last."""
        self._news.send_command("PING")
        messages: list[str] = []
        while True:
            kind, *rest = self._news.read_response()
            if kind == b"pong":
                return messages
            messages.append(rest[1].decode())

    def close(self) -> None:
        for connection in (self._data, self._news):
            with suppress(OSError):
                connection.disconnect()


class RealServer(Judged):
    """A Redis of which the judge of `ModelServer` knows as much; make one for each schedule."""

    def __init__(self, stepper: Stepper, redis: RealRedis) -> None:
        super().__init__(stepper)
        self._redis = redis
        self._packing = redis.packing()
        self._ends: dict[str, int] = {}  # when keys are removed, by the stepper's time
        redis.ask([("FLUSHDB",)])
        redis.heard()

    def now_ms(self) -> int:
        return BEYOND_MS + super().now_ms()

    def run(self, call: Call) -> Reply:
        now = self.now_ms()
        if isinstance(call, ScriptCall):
            self._remove(call.keys[0], now)
            (reply,) = self._redis.ask([self._redis.script(call, now)])
            _answered(call.script.name, reply)
            if call.script.name in PUBLISHING:
                for message in self._redis.heard():
                    self.tell(message)
            return reply
        if call[0] == "TIME":
            return now // 1000, now % 1000 * 1000
        for key in call[1:]:
            self._remove(str(key), now)
        return self._redis.ask([call])[0]

    def _remove(self, key: str, now: int) -> None:
        """As the server does at the end of the key's life."""
        if self._ends.get(key, now + 1) <= now:
            self._redis.ask([("DEL", key)])
            del self._ends[key]

    def look(self, key: str) -> Sight | None:
        now = self.now_ms()
        self._remove(key, now)
        (reply,) = self._redis.ask([self._redis.look(key, now)])
        _answered(key, reply)
        there, value, fresh, dead, version, lease, quarantine, floors, writes, failure, end = reply
        if not there:
            self._ends.pop(key, None)
            return None
        if end:
            self._ends[key] = end
        return Sight(
            value or None,
            fresh,
            dead,
            None if not version else (version[0].decode(), version[1]),
            _claim(lease),
            _claim(quarantine),
            tuple(_versioned(floor) for floor in floors),
            {name.decode(): until for name, until in zip(writes[::2], writes[1::2], strict=True)},
            _claim(failure),
            end,
        )

    def forget(self, key: str) -> None:
        self._redis.ask([("DEL", key)])
        self._ends.pop(key, None)

    def packing(self) -> Packing:
        return self._packing

    def unpacked(self, key: str, envelope: Any) -> Stored:
        return self._packing.unpack(key, envelope, None)


def _answered(what: str, reply: Reply) -> None:
    assert not isinstance(reply, Refused), f"{what}: {reply}"


def _claim(claim: Any) -> tuple[Any, ...] | None:
    return None if not claim else _versioned(claim)


def _versioned(claim: list[Any]) -> tuple[Any, ...]:
    """A claim, with its version as text."""
    return tuple(part.decode() if at == 2 else part for at, part in enumerate(claim))


def planted(script: str, what: str, instead: str) -> Tamper:
    """A bug: in this script (or the prelude of all), *what* is replaced."""

    def tamper(name: str, source: str) -> str:
        if script not in {name, "prelude"}:
            return source
        tampered, count = re.subn(re.escape(what), lambda _: instead, source)
        if not count:
            if script == "prelude":
                raise AssertionError(f"not in {name}: {what}")
            raise AssertionError(f"not in {script}: {what}")
        return tampered

    return tamper


__all__ = ["RealRedis", "RealServer", "Script", "Tamper", "as_it_is", "planted"]
