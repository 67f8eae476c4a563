"""What is read over a connection by ourselves is what redis-py reads, whatever is asked and however it arrives."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import redis
import redis.asyncio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cacheguard.client import redispy, resp, wire
from cacheguard.errors import Refused
from cacheguard.ports import Call, Reply, ScriptCall
from cacheguard.protocol.lua import load
from cacheguard.testing import Fault, FaultProxy
from tests.support.counter import Asking
from tests.support.redis_server import RedisServer

CONNECTION: Any = redis.Connection  # it has no types
RUNNING_CONNECTION: Any = redis.asyncio.Connection
SCRIPT = load("tagged")
KEYS = st.sampled_from(["a", "b", "list", "none"])
VALUES = st.one_of(st.binary(max_size=40), st.integers(0, 200_000).map(lambda size: b"v" * size))
CALLS: Any = st.one_of(
    st.tuples(st.just("GET"), KEYS),
    st.tuples(st.just("SET"), KEYS, VALUES),
    st.tuples(st.just("MGET"), KEYS, KEYS, KEYS),
    st.tuples(st.just("INCR"), KEYS),  # refused where the value is no number
    st.tuples(st.just("LPUSH"), KEYS, VALUES),  # and the others refuse a list
    st.tuples(st.just("LRANGE"), KEYS, st.just("0"), st.just("-1")),
    st.tuples(st.just("NO-SUCH-COMMAND"), KEYS),
    st.tuples(st.just("HGETALL"), KEYS),  # a map under RESP 3
    st.just(("TIME",)),
    st.just(("CONFIG", "GET", "maxmemory*")),
    st.builds(ScriptCall, st.just(SCRIPT), st.tuples(KEYS), st.just((b"n" * 8, 0))),  # not known until it is loaded
)


def connected(port: int, protocol: int = 2, timeout: float = 5.0) -> Any:
    """A connection as pools make them."""

    def make() -> Any:
        return CONNECTION(port=port, protocol=protocol, socket_timeout=timeout)

    connection = redispy.limited(make)()
    connection.connect()
    return connection


def by_the_client(connection: Any, payload: bytes, count: int) -> list[Reply]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(redispy, "exchange", lambda *_: None)
        return redispy.ask(connection, payload, count)


def by_ourselves(connection: Any, payload: bytes, count: int) -> list[Reply]:
    replies = wire.exchange(connection, payload, count)
    assert replies is not None
    return replies


async def aconnected(port: int, protocol: int = 2) -> Any:
    connection = RUNNING_CONNECTION(port=port, protocol=protocol)
    await connection.connect()
    return connection


async def aby_the_client(connection: Any, payloads: list[bytes], counts: list[int]) -> list[list[Reply]]:
    async def away(*_: Any) -> None:
        return None

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(redispy, "aexchange", away)
        return await redispy.aask(connection, payloads, counts)


async def aby_ourselves(connection: Any, payloads: list[bytes], counts: list[int]) -> list[list[Reply]]:
    replies = await wire.aexchange(connection, payloads, counts)
    assert replies is not None
    return replies


def shown(replies: list[Reply]) -> list[Any]:
    return [(type(each), str(each), each.fault) if isinstance(each, Refused) else each for each in replies]


@pytest.mark.parametrize("protocol", [2, 3])
@given(program=st.lists(st.lists(CALLS, min_size=1, max_size=8), min_size=1, max_size=4))
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
def test_the_replies_are_those_that_the_client_reads(
    redis_server: RedisServer, protocol: int, program: list[Any]
) -> None:
    answers = []
    for read in (by_the_client, by_ourselves):
        connection = connected(redis_server.port, protocol)
        redispy.say(connection, "FLUSHALL")
        redispy.say(connection, "SCRIPT", "FLUSH")
        answers.append([shown(read(connection, resp.pack(calls), len(calls))) for calls in program])
        connection.disconnect()
    for one, other, calls in zip(*answers, program, strict=True):
        assert len(one) == len(calls)
        for mine, theirs, call in zip(one, other, calls, strict=True):
            assert mine == theirs or call == ("TIME",)


@pytest.mark.parametrize("protocol", [2, 3])
@given(packets=st.lists(st.lists(CALLS, min_size=1, max_size=8), min_size=1, max_size=4))
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
def test_several_packets_in_a_loop_are_answered_as_by_the_client(
    redis_server: RedisServer, protocol: int, packets: list[Any]
) -> None:
    async def run(read: Any) -> list[list[Reply]]:
        connection = await aconnected(redis_server.port, protocol)
        await redispy.asay(connection, "FLUSHALL")
        await redispy.asay(connection, "SCRIPT", "FLUSH")
        answers: list[list[Reply]] = await read(connection, list(map(resp.pack, packets)), list(map(len, packets)))
        await connection.disconnect(nowait=True)
        return answers

    one, other = asyncio.run(run(aby_the_client)), asyncio.run(run(aby_ourselves))
    for mine, theirs, calls in zip(one, other, packets, strict=True):
        assert len(mine) == len(calls)
        for left, right, call in zip(shown(mine), shown(theirs), calls, strict=True):
            assert left == right or call == ("TIME",)


READINGS = st.tuples(st.just("MGET"), KEYS, KEYS).map(lambda call: [call])
TURN = st.one_of(
    st.lists(st.lists(CALLS, min_size=1, max_size=4), min_size=1, max_size=6),
    st.lists(READINGS, min_size=2, max_size=8),
)
TURNS = st.lists(TURN, min_size=1, max_size=4)


async def in_turns(port: int, protocol: int, turns: list[list[list[Any]]], *, lean: bool) -> list[list[Reply]]:
    """What is answered to what is asked side by side in each of *turns*, over one connection."""
    with pytest.MonkeyPatch.context() as patch:
        if not lean:
            patch.setattr(wire, "_TRANSPORTS", frozenset())
        async with Asking(port, protocol=protocol) as asking:
            lane = asking.commands._rest  # noqa: SLF001 - over two, nobody could say what comes first
            for word in (b"FLUSHALL", b"SCRIPT"):
                await lane.ask(resp.pack([(word, "FLUSH") if word == b"SCRIPT" else (word,)]), 1, 0)
            answers: list[list[Reply]] = []
            for turn in turns:
                asked = zip(turn, _keys(turn), strict=True)
                answers += await asyncio.gather(
                    *(lane.ask(resp.pack(calls), len(calls), 0, key) for calls, key in asked)
                )
            assert asking.wire.startswith("lean" if lean else "redis-py: ")
            return answers


def _keys(turn: list[list[Any]]) -> list[str | None]:
    """By which reading each may be joined: where nothing is written beside it, once is as good as one by one."""
    reading = all(type(calls[0]) is tuple and calls[0][0] == "MGET" and len(calls) == 1 for calls in turn)
    return [str(calls[0][1]) if reading else None for calls in turn]


@pytest.mark.parametrize("protocol", [2, 3])
@given(turns=TURNS)
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
def test_tasks_that_share_a_transport_are_answered_as_by_the_client(
    redis_server: RedisServer, protocol: int, turns: list[Any]
) -> None:
    mine = asyncio.run(in_turns(redis_server.port, protocol, turns, lean=True))
    theirs = asyncio.run(in_turns(redis_server.port, protocol, turns, lean=False))
    asked = [calls for turn in turns for calls in turn]
    for one, other, calls in zip(mine, theirs, asked, strict=True):
        assert len(one) == len(calls)
        for left, right, call in zip(shown(one), shown(other), calls, strict=True):
            assert left == right or call == ("TIME",)


@pytest.mark.parametrize("protocol", [2, 3])
async def test_in_a_loop_a_reply_in_the_smallest_pieces_is_whole(redis_server: RedisServer, protocol: int) -> None:
    with FaultProxy(redis_server.port) as proxy:
        connection = await aconnected(proxy.port, protocol)
        calls = [("SET", "apiece", "v" * 30), ("GET", "apiece"), ("LPUSH", "apiece", "x")]
        await aby_ourselves(connection, [resp.pack(calls)], [3])
        proxy.inject(Fault.DRIBBLE)
        ((first,), (second,)) = await aby_ourselves(connection, [resp.pack([each]) for each in calls[1:]], [1, 1])
        assert first == b"v" * 30
        assert isinstance(second, Refused)
        proxy.inject(Fault.RESET)
        with pytest.raises(redis.ConnectionError):
            await aby_ourselves(connection, [resp.pack(calls)], [3])
        await connection.disconnect(nowait=True)


@pytest.mark.parametrize("protocol", [2, 3])
def test_a_reply_in_the_smallest_pieces_is_whole(redis_server: RedisServer, protocol: int) -> None:
    with FaultProxy(redis_server.port) as proxy:
        connection = connected(proxy.port, protocol)
        calls = [
            ("SET", "piece", "v" * 30),
            ("GET", "piece"),
            ("LPUSH", "piece", "x"),
            ("MGET", "piece", "no such piece"),
        ]
        by_ourselves(connection, resp.pack(calls), len(calls))
        proxy.inject(Fault.DRIBBLE)
        replies = by_ourselves(connection, resp.pack(calls[1:]), 3)
        assert (replies[0], replies[2]) == (b"v" * 30, [b"v" * 30, None])
        assert isinstance(replies[1], Refused)
        assert proxy.struck
        connection.disconnect()


def test_a_large_reply_between_small_ones_shifts_nothing(redis_server: RedisServer) -> None:
    connection = connected(redis_server.port)
    large = b"x" * (8 << 20)
    calls: list[Call] = [("SET", "large", large), *(("SET", f"small:{number}", number) for number in range(500))]
    by_ourselves(connection, resp.pack(calls), len(calls))
    asked = [("GET", f"small:{number}") for number in range(500)]
    replies = by_ourselves(connection, resp.pack([*asked[:250], ("GET", "large"), *asked[250:]]), 501)
    assert replies.pop(250) == large
    assert replies == [b"%d" % number for number in range(500)]
    connection.disconnect()


@pytest.mark.parametrize(
    ("fault", "expected"), [(Fault.BLACKHOLE, redis.TimeoutError), (Fault.RESET, redis.ConnectionError)]
)
def test_what_does_not_come_is_raised_as_the_client_does(
    redis_server: RedisServer, fault: Fault, expected: Any
) -> None:
    for read in (by_the_client, by_ourselves):
        with FaultProxy(redis_server.port) as proxy:
            connection = connected(proxy.port, timeout=0.2)
            proxy.inject(fault)
            with pytest.raises(expected):
                read(connection, resp.pack([("GET", "a")]), 1)
            connection.disconnect()


def test_a_push_is_for_the_client_and_no_reply(redis_server: RedisServer) -> None:
    heard: list[Any] = []
    connection = connected(redis_server.port, 3)
    other = connected(redis_server.port)
    connection._parser.set_invalidation_push_handler(heard.append)  # noqa: SLF001 - the client has no other place for it
    assert redispy.say(connection, "CLIENT", "TRACKING", "ON") == b"OK"
    assert by_ourselves(connection, resp.pack([("SET", "tracked", "1"), ("GET", "tracked")]), 2) == [b"OK", b"1"]
    assert by_ourselves(other, resp.pack([("SET", "tracked", "2")]), 1) == [b"OK"]
    calls = [("GET", "tracked"), ("PING",)]
    assert redispy.ask(connection, resp.pack(calls), 2) == [b"2", b"PONG"]
    assert heard
    connection.disconnect()
    other.disconnect()


@pytest.mark.parametrize("protocol", [2, 3])
@pytest.mark.parametrize("unasked", [b"+foreign\r\n", b"$7\r\nfor"])
def test_a_reply_that_nobody_asked_for_is_given_to_nobody(
    redis_server: RedisServer, unasked: bytes, protocol: int
) -> None:
    connection = connected(redis_server.port, protocol)
    connection._parser._reader.feed(unasked)  # noqa: SLF001 - as if it had come behind the last reply
    with pytest.raises(redis.ConnectionError, match="nobody had asked for"):
        redispy.ask(connection, resp.pack([("PING",)]), 1)
    connection.disconnect()


@pytest.mark.parametrize("protocol", [2, 3])
def test_where_there_are_more_replies_than_questions_none_is_believed(redis_server: RedisServer, protocol: int) -> None:
    connection = connected(redis_server.port, protocol)
    both = resp.pack([("ECHO", "one"), ("ECHO", "two")])
    assert redispy.ask(connection, both, 2) == [b"one", b"two"]
    with pytest.raises(redis.ConnectionError, match="nobody had asked for"):
        redispy.ask(connection, both, 1)
    connection.disconnect()


@pytest.mark.parametrize("protocol", [2, 3])
async def test_in_a_loop_a_reply_that_nobody_asked_for_is_given_to_nobody(
    redis_server: RedisServer, protocol: int
) -> None:
    both = resp.pack([("ECHO", "one"), ("ECHO", "two")])
    for unasked in (b"+foreign\r\n", b"$7\r\nfor", b""):
        connection = await aconnected(redis_server.port, protocol)
        connection._parser._reader.feed(unasked)  # noqa: SLF001 - as if it had come behind the last reply
        with pytest.raises(redis.ConnectionError, match="nobody had asked for"):
            await redispy.aask(connection, [both], [1])
        await connection.disconnect(nowait=True)


def test_where_there_is_no_hiredis_the_client_reads(redis_server: RedisServer) -> None:
    kind = redis.connection.PythonParser if hasattr(redis.connection, "PythonParser") else None
    if kind is None:
        from redis._parsers import _RESP2Parser as kind
    connection = redispy.limited(lambda: CONNECTION(port=redis_server.port, parser_class=kind))()
    connection.connect()
    assert wire.exchange(connection, resp.pack([("PING",)]), 1) is None
    assert redispy.ask(connection, resp.pack([("PING",)]), 1) == [b"PONG"]
    connection.disconnect()
