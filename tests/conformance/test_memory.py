"""The protocol in process answers as a server running our scripts does, and leaves the same behind.

Programs are random calls on one key. Durations are multiples of 100 s and time passes in sevenths of a second less than
a hundred times over, so no deadline is ever met within the moments that a real server takes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
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
    HEAD,
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
from cacheguard.protocol.model import MemoryCommands, glob
from cacheguard.runtime import run_now
from tests.support.redis_server import RedisServer

KEY = "k"
LONG = 10**9  # ms before any moment of a program: no difference to it looks like -1, which is no time
TIMES = {"u", "q", "c", "l"}
STEP = 7_000  # ms
TOLERANCE = 3_000  # ms: what a busy machine may take for one program
BUS = ("cg:bus", "drop k")

# What happens to a key when everyone stands still for a while: every deadline comes nearer.
AGE = """
local K, ms = KEYS[1], tonumber(ARGV[1])
local left = redis.call('PTTL', K)
if left < 0 then return end
if left <= ms then return redis.call('DEL', K) end
for _, f in ipairs(redis.call('HKEYS', K)) do
  if string.find('uqcl', f, 1, true) or string.sub(f, 1, 2) == 'w:' then redis.call('HINCRBY', K, f, -ms) end
end
redis.call('PEXPIRE', K, left - ms)
"""

Program = list[ScriptCall | Command | int]

tokens = st.sampled_from(["one", "two", "three"])
some = st.sampled_from([100_000, 200_000, 300_000])
lives = st.sampled_from([110_000, 250_000, 390_000])  # none is twice another: a clock that stands still would tell
maybe = st.sampled_from([0, 0, 100_000, 400_000])
versions = st.sampled_from(["", "", "001", "002", "003"])
writers = st.sampled_from(["", "", "a", "b"])
floors = st.sampled_from([0, 0, 100_000, ALWAYS])
values = st.binary(max_size=3)
stamps = st.one_of(st.just(""), st.builds(lambda value: sha1(value).hexdigest(), st.sampled_from([b"", b"a", b"b"])))
short = st.sampled_from([b"", b"a", b"b"])

CALLS: list[st.SearchStrategy[ScriptCall | Command]] = [
    st.builds(LEASE(KEY), tokens, some, some, floors, st.one_of(st.just(""), tokens), st.just("")),
    st.builds(LEASE(KEY), tokens, some, some, floors, st.one_of(st.just(""), tokens), st.just("")),
    st.builds(FILL(KEY), tokens, values, some, maybe, versions),
    st.builds(FILL(KEY), tokens, values, some, maybe, versions),
    st.builds(RELEASE(KEY), tokens, st.sampled_from([b"", b"it broke", b"a\nb \x00"]), some),
    st.builds(RENEW(KEY), tokens, some, some),
    st.builds(INVALIDATE(KEY), *map(st.just, BUS), maybe, versions, maybe, writers, some, writers),
    st.builds(INVALIDATE(KEY), *map(st.just, BUS), maybe, versions, maybe, writers, some, writers, st.just(100)),
    st.builds(STORE(KEY), values, some, maybe, versions, *map(st.just, BUS)),
    st.builds(ADD(KEY), tokens, short, some, maybe, stamps, *map(st.just, BUS)),
    st.builds(REPLACE(KEY), tokens, stamps, short, *map(st.just, BUS)),
    st.just(HEAD(KEY)(100)),
    st.just(EXPIRE(KEY)(*BUS)),
    st.builds(TOUCH(KEY), some, maybe, *map(st.just, BUS)),
    st.just(("HMGET", KEY, "v", "g")),
    st.just(("PTTL", KEY)),
]
MARKER_CALLS: list[st.SearchStrategy[ScriptCall | Command]] = [
    st.builds(MARK(KEY), st.sampled_from([b"red", b"blue"]), lives),
    st.builds(MARK(KEY), st.sampled_from([b"red", b"blue"]), lives),
    st.just(TAGGED(KEY)()),
    st.builds(INVALIDATE(KEY), *map(st.just, BUS), maybe, *map(st.just, ("", 0, "", 0, ""))),
    st.just(("HGET", KEY, "v")),
    st.just(("HGET", KEY, "l")),
    st.just(("PTTL", KEY)),
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

    def state(self) -> dict[str, Any]:
        """What is left, deadlines as the time to go."""
        fields = self._hash(KEY, self.ms)
        left: dict[str, Any] = {"pttl": self._pttl(KEY, self.ms)}
        for name, value in fields.items():
            left[name] = value - self.ms - LONG if name in TIMES or name.startswith("w:") else value
            if name == "x":
                left[name] = value[0].encode() + b" " + value[1]
        return left


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
        seconds, micros = self._client.time()
        now = seconds * 1000 + micros // 1000
        left: dict[str, Any] = {"pttl": self._client.pttl(KEY)}
        for field, value in self._client.hgetall(KEY).items():
            name = field.decode()
            if name in TIMES or name.startswith("w:"):
                left[name] = int(value) - now - LONG
            else:
                left[name] = int(value) if name in {"g", "n"} else value
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
    if isinstance(ours, dict) and isinstance(theirs, dict):
        return ours.keys() == theirs.keys() and all(same(ours[name], theirs[name]) for name in ours)
    if isinstance(ours, list) and isinstance(theirs, list):
        return len(ours) == len(theirs) and all(map(same, ours, theirs))
    if isinstance(ours, int | float) and isinstance(theirs, bytes):
        return same(ours, int(theirs))
    if isinstance(ours, int | float) and isinstance(theirs, int):
        # -1 and -2 are no times: no deadline, nothing there.
        return ours == theirs or (abs(ours - theirs) < TOLERANCE and not {ours, theirs} & {-1, -2})
    return bool((ours.encode() if isinstance(ours, str) else ours) == theirs)


def timeless(call: ScriptCall | Command, reply: Any) -> Any:
    """*reply* without the moment of the answer, of which only the server's own clock can speak."""
    name = call.script.name if isinstance(call, ScriptCall) else ""
    if name == "lease" and reply[0] == b"GRANTED":
        return [reply[0], *reply[2:]]
    if name == "mark":
        return [reply[0], reply[2] > 0]
    return reply is None if call == ("HGET", KEY, "l") else reply


@given(
    st.lists(st.text("ab*?[]^-\\", max_size=6), min_size=1, max_size=5),
    st.text("ab*?[]^-\\", min_size=1, max_size=6).filter(lambda pattern: not pattern.endswith("\\")),
)
def test_a_pattern_matches_the_same_names(server: Server, names: list[str], pattern: str) -> None:
    server.empty()
    memory = Memory()
    for name in names:
        call = STORE(f"n{name}")(b"v", 100_000, 0, "", *BUS)
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
    *, quarantine: int = 0, floor: str = "", floor_ms: int = 0, begin: str = "", end: str = ""
) -> ScriptCall:
    return INVALIDATE(KEY)(*BUS, quarantine, floor, floor_ms, begin, 100_000, end)


@given(program=programs(CALLS))
@example(program=[lease("one"), 11 * STEP, STEP, lease("two"), 11 * STEP, lease("three")])
@example(program=[lease("one"), RELEASE(KEY)("one", b"why", 100_000), lease("two", "one"), lease("three")])
@example(program=[invalidate(begin="a"), lease("one"), invalidate(begin="b"), invalidate(end="a"), lease("one")])
@example(program=[invalidate(quarantine=100_000), lease("one"), FILL(KEY)("one", b"v", 300_000, 100_000, "")])
@example(program=[invalidate(floor="002"), lease("one"), FILL(KEY)("one", b"v", 100_000, 0, "001")])
@example(program=[STORE(KEY)(b"v", 100_000, 300_000, "", *BUS), EXPIRE(KEY)(*BUS), lease("one"), lease("two")])
@example(
    program=[STORE(KEY)(b"v", 100_000, 0, "", *BUS), lease("one", "", ALWAYS), RENEW(KEY)("one", 300_000, 100_000)]
)
@example(program=[lease("one"), 11 * STEP, 11 * STEP, 11 * STEP, ("PTTL", KEY)])
@settings(
    max_examples=max(300, settings.default.max_examples if settings.default else 0),
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
def test_a_program_has_the_same_answers_and_the_same_end(server: Server, program: Program) -> None:
    run(server, program)


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
            memory.ms += call
            server.age(call)
            continue
        ours, theirs = timeless(call, run_now(memory.send(call))[0]), timeless(call, server.run(call))
        assert same_answer(call, ours, theirs), (call, ours, theirs)
        assert same(memory.state(), server.state()), (call, memory.state(), server.state())


@given(st.lists(st.tuples(st.sampled_from("abc"), st.booleans()), max_size=8))
def test_calls_of_one_round_trip_are_answered_in_order(server: Server, wanted: list[tuple[str, bool]]) -> None:
    server.empty()
    calls = [STORE(key)(key.encode(), 100_000, 0, "", *BUS) if write else ("HMGET", key, "v") for key, write in wanted]
    assert same(run_now(Memory().send_each(*calls)), [server.run(call) for call in calls])


def test_an_unknown_command_is_refused_as_a_server_does(server: Server) -> None:
    (ours,) = run_now(Memory().send_each(("NONSENSE", KEY)))
    assert isinstance(ours, Refused)
    with pytest.raises(redis.ResponseError, match="unknown command"):
        server.run(("NONSENSE", KEY))
