"""The protocol in process answers as a server running our scripts does, and leaves the same behind.

Programs are random calls on one key. Durations are multiples of 100 s and time passes in sevenths of a second less than
a hundred times over, so no deadline is ever met within the moments that a real server takes.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import nullcontext
from copy import deepcopy
from hashlib import sha1
from typing import Any

import pytest
import redis
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from cacheguard.errors import Refused
from cacheguard.ports import Command, ScriptCall
from cacheguard.protocol.calls import (
    ADD,
    ALWAYS,
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
from cacheguard.protocol.glob import glob
from cacheguard.protocol.layout import HEADER, HEADER_BYTES, Record
from cacheguard.protocol.model import MemoryCommands
from cacheguard.protocol.state import Claim
from cacheguard.runtime import run_now
from tests.support.ageing import AGE, PRELUDE
from tests.support.redis_server import RedisServer

KEY = "k"
LONG = 1_000  # ms before any moment of a program: no difference to it looks like -1, which is no time
STEP = 7_000  # ms
TOLERANCE = 3_000  # ms: what a busy machine may take for one program
BUS = ("cg:bus", "me.1")

# All that is there, as JSON; times as the time to go.
STATE = (
    PRELUDE
    + """
local e = open(KEYS[1])
local function hex(text)
  return (string.gsub(text, '.', function(c) return string.format('%02x', string.byte(c)) end))
end
local function told(claim)
  if type(claim) ~= 'table' then return claim end
  local parts = {}
  for i, part in ipairs(claim) do parts[i] = type(part) == 'string' and hex(part) or part end
  parts[1] = parts[1] - now
  return parts
end
local said = {pttl = redis.call('PTTL', KEYS[1])}
for _, name in ipairs({'l', 'q', 'f', 'x', 't'}) do said[name] = e.c[name] and told(e.c[name]) end
for _, name in ipairs({'w', 'r', 'g'}) do
  if e.c[name] then
    said[name] = {}
    for id, claim in pairs(e.c[name]) do said[name][id] = told(claim) end
  end
end
if e.c.b then said.b = e.c.b - now - 1000 end
if e.c.n then said.n = {hex(e.c.n[1]), hex(e.c.n[2])} end
if e.vlen > 0 then
  said.value = hex(value_of(e))
  said.life = {e.fresh == 0 and 0 or e.fresh - now - 1000, e.span, e.dead - now, e.born - now - 1000}
end
return cjson.encode(said)
"""
)

Program = list[ScriptCall | Command | int]

tokens = st.sampled_from(["one", "two", "three"])
some = st.sampled_from([100_000, 200_000, 300_000])
lives = st.sampled_from([110_000, 250_000, 390_000])  # none is twice another: a clock that stands still would tell
maybe = st.sampled_from([0, 0, 100_000, 400_000])
versions = st.sampled_from(["", "", "001", "002", "003"])
writers = st.sampled_from(["", "", "a", "b"])
floors = st.sampled_from([0, 0, 100_000, ALWAYS])
values = st.binary(min_size=1, max_size=3)
stamps = st.one_of(st.just(""), st.builds(lambda value: sha1(value).hexdigest(), st.sampled_from([b"c", b"a", b"b"])))
short = st.sampled_from([b"c", b"a", b"b"])

unders = st.sampled_from([b"", b"N", b"O"])

CALLS: list[st.SearchStrategy[ScriptCall | Command]] = [
    st.builds(LEASE(KEY), tokens, some, some, floors, st.one_of(st.just(""), tokens), st.just("")),
    st.builds(LEASE(KEY), tokens, some, some, floors, st.one_of(st.just(""), tokens), st.just("")),
    st.builds(FILL(KEY), tokens, values, some, maybe, versions, unders, st.just(0), st.just(BUS[0])),
    st.builds(FILL(KEY), tokens, values, some, maybe, versions, unders, st.just(0), st.just(BUS[0])),
    st.builds(
        RELEASE(KEY),
        tokens,
        st.sampled_from([b"", b"it broke", b"a\nb \x00"]),
        st.integers(0, 9),
        maybe,
        some,
        st.just(BUS[0]),
    ),
    st.builds(RENEW(KEY), tokens, some, some),
    st.builds(INVALIDATE(KEY), *map(st.just, BUS), maybe, versions, unders, some, writers, some, writers, st.just("")),
    st.builds(INVALIDATE(KEY), *map(st.just, BUS), maybe, versions, unders, some, writers, some, writers, st.just(100)),
    st.builds(STORE(KEY), values, some, maybe, versions, unders, *map(st.just, BUS)),
    st.builds(ADD(KEY), tokens, short, some, maybe, stamps, *map(st.just, BUS)),
    st.builds(REPLACE(KEY), tokens, stamps, short, *map(st.just, BUS)),
    st.just(EXPIRE(KEY)(*BUS)),
    st.builds(TOUCH(KEY), some, maybe, *map(st.just, BUS)),
    st.just(("MGET", KEY)),
]
MARKER_CALLS: list[st.SearchStrategy[ScriptCall | Command]] = [
    st.builds(MARK(KEY), st.sampled_from([b"r" * 8, b"b" * 8]), lives),
    st.builds(MARK(KEY), st.sampled_from([b"r" * 8, b"b" * 8]), lives),
    st.builds(TAGGED(KEY), st.sampled_from([b"1" * 8, b"2" * 8]), maybe),
    st.builds(INVALIDATE(KEY), *map(st.just, BUS), maybe, *map(st.just, ("", b"", 0, "", 0, "", ""))),
    st.just(("MGET", KEY)),
]


def programs(calls: list[st.SearchStrategy[ScriptCall | Command]]) -> st.SearchStrategy[Program]:
    # At most nine times eleven steps: the sum never comes to a multiple of 100 s.
    return st.lists(st.one_of(*calls, st.sampled_from([STEP, 3 * STEP, 11 * STEP])), max_size=14).filter(
        lambda program: sum(isinstance(each, int) for each in program) < 10
    )


class Memory(MemoryCommands):
    """Ours, with a clock that stands still between steps."""

    def __init__(self) -> None:
        self.ms = 1_000_000
        super().__init__(10, nullcontext(), lambda: self.ms / 1000)

    def is_stamp(self, stamp: Any, value: Any) -> bool:
        return bool(stamp == sha1(value).hexdigest())

    def age(self, ms: int) -> None:
        """Time passes; first, what is over is let go of, as the script does that ages what a server has."""
        self._opened(KEY, self.ms)
        self.ms += ms

    def state(self) -> dict[str, Any]:
        """What is left, deadlines as the time to go."""
        there = self._there(KEY, self.ms)
        if there is None:
            return {"pttl": -2}
        left: dict[str, Any] = {"pttl": there.end() - self.ms}
        state = deepcopy(there)  # as the script that tells the server's saves nothing
        state.open(self.ms)
        named = {"l": state.lease, "q": state.quarantine, "f": state.floor, "x": state.failure, "t": state.beneath}
        left |= {name: self._told(claim) for name, claim in named.items() if claim is not None}
        floors = {under.decode(): claim for under, claim in state.floors.items()}
        for name, claims in (("w", state.writes), ("r", state.repeated), ("g", floors)):
            if claims:
                left[name] = {each: self._told(claim) for each, claim in claims.items()}
        if state.latest is not None:
            left["b"] = state.latest - self.ms - LONG
        if state.version is not None:
            left["n"] = [hexed(state.version[0]), hexed(state.version[1])]
        if state.value is not None:
            left["value"] = hexed(state.value)
            fresh = state.fresh - self.ms - LONG if state.fresh else 0
            left["life"] = [fresh, state.span, state.dead - self.ms, state.born - self.ms - LONG]
        return left

    def _told(self, claim: Claim) -> list[Any]:
        told = [claim[0] - self.ms, *map(hexed, claim[1:])]
        return told[:3] if len(told) == 4 and told[3] == 0 and not isinstance(claim[2], int) else told


def hexed(part: Any) -> Any:
    """Text and bytes as hexadecimal digits."""
    return part if isinstance(part, int) else (part.encode() if isinstance(part, str) else part).hex()


class Server:
    """A real one."""

    def __init__(self, url: str) -> None:
        self._client: Any = redis.Redis.from_url(url, socket_timeout=5)

    def run(self, call: ScriptCall | Command) -> Any:
        if isinstance(call, ScriptCall):
            return self._client.eval(call.script.source, 1, *call.keys, *call.args)
        return self._client.execute_command(*call)

    def age(self, ms: int) -> None:
        self._client.eval(AGE, 1, KEY, ms)

    def empty(self) -> None:
        self._client.flushdb()

    def state(self) -> dict[str, Any]:
        """What is left, deadlines as the time to go."""
        left: dict[str, Any] = json.loads(self._client.eval(STATE, 1, KEY))
        return left

    def close(self) -> None:
        self._client.close()


@pytest.fixture(scope="module")
def server(redis_server: RedisServer) -> Iterator[Server]:
    server = Server(redis_server.url)
    yield server
    server.close()


def same(ours: Any, theirs: Any) -> bool:
    """Equal, give or take what a call takes; text is bytes on the wire."""
    if isinstance(ours, Record):
        return isinstance(theirs, bytes) and same_bytes(ours, theirs)
    if isinstance(ours, dict) and isinstance(theirs, dict):
        return ours.keys() == theirs.keys() and all(same(ours[name], theirs[name]) for name in ours)
    if isinstance(ours, list | tuple) and isinstance(theirs, list):
        return len(ours) == len(theirs) and all(map(same, ours, theirs))
    if isinstance(ours, int | float) and isinstance(theirs, int):
        # -1 and -2 are no times: no deadline, nothing there.
        return ours == theirs or (abs(ours - theirs) < TOLERANCE and not {ours, theirs} & {-1, -2})
    return bool(ours == theirs or (isinstance(ours, str) and ours.encode() == theirs))


def same_bytes(ours: Record, theirs: bytes) -> bool:
    """The same value and the same spans; the moments are each clock's own, and `state` compares them."""
    first, _, span_2, span_4, dead_2, dead_4, *_, size = HEADER.unpack_from(theirs)
    fresh, span, dead = first & (2**48 - 1), span_2 << 32 | span_4, dead_2 << 32 | dead_4
    value = theirs[HEADER_BYTES : HEADER_BYTES + size]
    lives = same([ours.span, ours.dead - ours.fresh if ours.fresh else 0], [span, dead - fresh if fresh else 0])
    return first >> 56 == 0xC2 and value == ours.value and lives


def timeless(call: ScriptCall | Command, reply: Any) -> Any:
    """*reply* without the moment of the answer, of which only the server's own clock can speak."""
    name = call.script.name if isinstance(call, ScriptCall) else ""
    if name == "lease":
        return [reply[0], *reply[2:]]
    if name in {"add", "replace"}:
        return [reply[0], *reply[2:]]
    if name == "invalidate" and not isinstance(reply, int):
        return reply[:1]
    if name == "mark":
        return [reply[0], reply[1], reply[2] > 0, reply[3] > 0]
    if isinstance(call, tuple) and call[0] == "MGET":
        return [None if raw is None or (isinstance(raw, bytes) and not value_in(raw)) else raw for raw in reply]
    return reply


def value_in(raw: bytes) -> int:
    """How long the value is; the model answers claims without one with nothing."""
    now = int(time.time() * 1000)
    *_, dead_2, dead_4, _, _, size = HEADER.unpack_from(raw)
    return int(size) if dead_2 << 32 | dead_4 > now else 0


@given(
    st.lists(st.text("ab*?[]^-\\", max_size=6), min_size=1, max_size=5),
    st.text("ab*?[]^-\\", min_size=1, max_size=6).filter(lambda pattern: not pattern.endswith("\\")),
)
def test_a_pattern_matches_the_same_names(server: Server, names: list[str], pattern: str) -> None:
    server.empty()
    memory = Memory()
    for name in names:
        call = STORE(f"n{name}")(b"v", 100_000, 0, "", b"", *BUS)
        run_now(memory.send(call))
        server.run(call)
    scan = ("SCAN", "0", "MATCH", f"n{pattern}", "COUNT", 1000)
    ours, theirs = run_now(memory.send(scan))[0], server.run(scan)
    assert ours[0] == theirs[0] if isinstance(theirs[0], bytes) else not theirs[0]
    assert sorted(ours[1]) == sorted(theirs[1])


def test_a_pattern_means_what_redis_means() -> None:
    assert glob("a?c*")("abcd")
    assert not glob("a?c")("ac")
    assert glob("[a-c]x")("bx")
    assert not glob("[^a-c]x")("bx")
    assert glob(r"\*")("*")
    assert not glob(r"\*")("a")


def same_answer(call: ScriptCall | Command, ours: Any, theirs: Any) -> bool:
    """A number that a script answers is a code."""
    return bool(ours == theirs) if isinstance(call, ScriptCall) and isinstance(ours, int) else same(ours, theirs)


def lease(token: str, awaited: str = "", floor: int = 0) -> ScriptCall:
    return LEASE(KEY)(token, 100_000, 100_000, floor, awaited, "")


def invalidate(
    *, quarantine: int = 0, floor: str = "", under: bytes = b"", begin: str = "", end: str = ""
) -> ScriptCall:
    return INVALIDATE(KEY)(*BUS, quarantine, floor, under, 300_000, begin, 100_000, end, "")


def fill(token: str, fresh: int = 100_000, stale: int = 0, version: str = "") -> ScriptCall:
    return FILL(KEY)(token, b"v", fresh, stale, version, b"", 0, BUS[0])


def store(fresh: int, stale: int) -> ScriptCall:
    return STORE(KEY)(b"v", fresh, stale, "", b"", *BUS)


@given(program=programs(CALLS))
@example(program=[lease("one"), 11 * STEP, STEP, lease("two"), 11 * STEP, lease("three")])
@example(
    program=[lease("one"), RELEASE(KEY)("one", b"why", 1, 0, 100_000, BUS[0]), lease("two", "one"), lease("three")]
)
@example(
    program=[
        lease("one"),
        RELEASE(KEY)("one", b"why", 1, 100_000, 100_000, BUS[0]),
        lease("two"),
        lease("three", "", ALWAYS),
    ]
)
@example(program=[invalidate(begin="a"), lease("one"), invalidate(begin="b"), invalidate(end="a"), lease("one")])
@example(program=[invalidate(quarantine=100_000), lease("one"), fill("one", 300_000, 100_000)])
@example(program=[invalidate(floor="002"), lease("one"), fill("one", version="001")])
@example(program=[invalidate(floor="002", quarantine=400_000), lease("one"), fill("one", 100_000, 0, "002")])
@example(program=[store(100_000, 300_000), EXPIRE(KEY)(*BUS), lease("one"), lease("two")])
@example(program=[store(100_000, 0), lease("one", "", ALWAYS), RENEW(KEY)("one", 300_000, 100_000)])
@example(program=[lease("one"), 11 * STEP, 11 * STEP, 11 * STEP, ("MGET", KEY)])
@example(program=[lease("one"), lease("two"), fill("one"), ("MGET", KEY)])
@example(program=[lease("one"), STORE(KEY)(b"v", 100_000, 0, "001", b"", *BUS), 77_000, 77_000, lease("one")])
@example(program=[lease("one"), STORE(KEY)(b"v", 100_000, 0, "001", b"", *BUS), 77_000, 77_000, ("MGET", KEY)])
@example(
    program=[
        lease("one"),
        fill("one", 100_000, 0, "001"),
        STORE(KEY)(b"v", 100_000, 0, "001", b"", *BUS),
        154_000,
        ("MGET", KEY),
        11_000,
        lease("one"),
    ]
)
@example(
    program=[
        invalidate(begin="a"),
        STORE(KEY)(b"3", 100_000, 0, "003", b"", *BUS),
        invalidate(end="a"),
        STORE(KEY)(b"2", 100_000, 0, "002", b"", *BUS),
    ]
)
@settings(
    max_examples=max(150, settings.default.max_examples if settings.default else 0),
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
def test_a_program_has_the_same_answers_and_the_same_end(server: Server, program: Program) -> None:
    run(server, program)


@pytest.mark.slow
@given(program=programs(MARKER_CALLS))
@settings(
    max_examples=max(200, settings.default.max_examples if settings.default else 0),
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
def test_a_marker_has_the_same_answers_and_the_same_end(server: Server, program: Program) -> None:
    run(server, program)


def run(server: Server, program: Program) -> None:
    server.empty()
    memory = Memory()
    for call in program:
        if isinstance(call, int):
            memory.age(call)
            server.age(call)
            continue
        ours, theirs = timeless(call, run_now(memory.send(call))[0]), timeless(call, server.run(call))
        assert same_answer(call, ours, theirs), (call, ours, theirs)
        assert same(memory.state(), server.state()), (call, memory.state(), server.state())


@given(st.lists(st.tuples(st.sampled_from("abc"), st.booleans()), max_size=8))
def test_calls_of_one_round_trip_are_answered_in_order(server: Server, wanted: list[tuple[str, bool]]) -> None:
    server.empty()
    calls = [
        STORE(key)(key.encode(), 100_000, 0, "", b"", *BUS) if write else ("MGET", key, "a") for key, write in wanted
    ]
    assert same(run_now(Memory().send_each(*calls)), [server.run(call) for call in calls])


def test_an_unknown_command_is_refused_as_a_server_does(server: Server) -> None:
    (ours,) = run_now(Memory().send_each(("NONSENSE", KEY)))
    assert isinstance(ours, Refused)
    with pytest.raises(redis.ResponseError, match="unknown command"):
        server.run(("NONSENSE", KEY))
