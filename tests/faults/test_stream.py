"""A connection of an event loop, read by ourselves: who gets which reply, and what becomes of those that never come."""

from __future__ import annotations

import asyncio
import gc
import importlib
import logging
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any
from unittest.mock import ANY

import pytest

from cacheguard import CacheGuard, faults
from cacheguard.client import stream, wire
from cacheguard.errors import Refused, Unreachable
from cacheguard.ports import AnotherServer, ScriptCall
from cacheguard.protocol.lua import load
from tests.support.counter import Asking, bulk, counter, value_of
from tests.support.redis_server import RedisServer

PARSERS: Any = importlib.import_module("redis._parsers")
TRANSPORT = "_SelectorSocketTransport"
LARGE = b"x" * stream.LARGE
ERRORS = {
    "WRONGTYPE planted": faults.Fault.WRONG_TYPE,
    "NOSCRIPT planted": faults.Fault.NO_SCRIPT,
    "OOM planted": faults.Fault.OUT_OF_MEMORY,
    "MOVED 1 127.0.0.1:1": faults.Fault.MOVED,
    "ASK 1 127.0.0.1:1": faults.Fault.ASK,
    "NOPERM planted": faults.Fault.PERMISSION,
    "ERR planted": faults.Fault.OTHER,
}


async def test_what_is_asked_in_one_turn_goes_in_one_piece() -> None:
    async with counter() as server, Asking(server.port) as asking:
        await asking.read("first")
        written = asking.noting()
        keys = [f"k{number}" for number in range(10)]
        for _ in range(2):
            assert await asyncio.gather(*map(asking.read, keys)) == [key.encode() for key in keys]
        # Who comes first goes at once, until others came with him.
        assert [piece.count(b"MGET") for piece in written] == [1, 9, 10]
        for _ in range(3):
            await asking.read("last")
        assert [piece.count(b"MGET") for piece in written[3:]] == [1, 1, 1]
        assert asking.wire == "lean"


async def test_the_same_reading_travels_once_and_everybody_gets_a_list_of_his_own() -> None:
    async with counter() as server, Asking(server.port) as asking:
        await asking.read("first")
        written = asking.noting()
        asked = [asking.commands.read_entry(key, ("m",)) for key in ("other", "k", "k", "k")]
        asked.append(asking.commands.read_entry("k", ("another marker",)))
        asked[1].cancel()
        _, cancelled, *same, different = await asyncio.gather(*asked, return_exceptions=True)
        assert isinstance(cancelled, asyncio.CancelledError)
        assert [piece.count(b"MGET") for piece in written] == [1, 2]
        for mine in same:
            assert not isinstance(mine, BaseException)
            assert mine[0] == [b"k", b"m"]
            mine[0].clear()
            mine[1].clear()
        assert not isinstance(different, BaseException)
        assert different[0] == [b"k", b"another marker"]


async def test_what_has_been_sent_is_joined_by_nobody() -> None:
    async with counter() as server, Asking(server.port) as asking:
        await asking.read("first")
        server.open.clear()
        early = asking.commands.read_entry("k", ())
        await server.until(2)
        late = asking.commands.read_entry("k", ())
        await asyncio.sleep(0)
        server.open.set()
        await asyncio.gather(early, late)
        assert server.sizes() == [2, 2, 2]


async def test_a_piece_leaves_while_another_is_under_way() -> None:
    held = asyncio.Event()
    async with counter() as server, Asking(server.port) as asking:
        await asking.read("first")
        server.open = held
        written = asking.noting()
        asked = []
        for number in range(3):
            asked += [asyncio.ensure_future(asking.read(f"{number}{letter}")) for letter in "ab"]
            await asyncio.sleep(0.02)
        assert [piece.count(b"MGET") for piece in written] == [1, 1, 2, 2]  # none of which is answered
        held.set()
        assert await asyncio.gather(*asked) == [b"0a", b"0b", b"1a", b"1b", b"2a", b"2b"]


async def test_a_cancelled_caller_leaves_his_reply_to_nobody() -> None:
    async with counter() as server, Asking(server.port) as asking:
        await asking.read("first")
        server.open.clear()
        tasks = [asyncio.ensure_future(asking.read(f"k{number}")) for number in range(20)]
        await server.until(2)
        for task in tasks[::3]:
            task.cancel()
        later = asyncio.ensure_future(asking.read("later"))
        await asyncio.sleep(0)
        server.open.set()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        for number, outcome in enumerate(outcomes):
            assert isinstance(outcome, asyncio.CancelledError) if number % 3 == 0 else outcome == b"k%d" % number
        assert await later == b"later"
        assert server.connections == 1


@pytest.mark.parametrize("text", ERRORS)
async def test_an_error_in_the_middle_is_the_reply_of_one_call(redis_server: RedisServer, text: str) -> None:
    async with Asking(redis_server.port) as asking:
        send = asking.commands.send_each
        await send(("SET", "{k}a", "1"), ("SET", "{k}b", "2"))
        error = ("EVAL", f"return redis.error_reply('{text}')", "0")
        tasks = [send(("GET", "{k}a"), ("GET", "{k}b")), send(("GET", "{k}a"), error, ("GET", "{k}b")), send(error)]
        tasks += [send(("GET", "{k}b")), asking.commands.read_entry("{k}a", ("{k}b",))]  # type: ignore[list-item]
        first, second, third, fourth, fifth = await asyncio.gather(*tasks)
        assert first == [b"1", b"2"]
        assert (second[0], second[2]) == (b"1", b"2")
        for each in (second[1], third[0]):
            assert isinstance(each, Refused)
            assert each.fault is ERRORS[text]
        assert fourth == [b"2"]
        assert fifth[0] == [b"1", b"2"]


async def test_a_script_that_the_server_has_forgotten_is_sent_again_with_what_stood_behind_it(
    redis_server: RedisServer,
) -> None:
    redis_server.command("SCRIPT", "FLUSH")
    async with Asking(redis_server.port) as asking:
        script = ScriptCall(load("tagged"), ("k",), (b"n" * 8, 0))
        asked = [asking.commands.send_each(("GET", f"n{number}"), script) for number in range(3)]
        for before, answer in await asyncio.gather(*asked):
            assert before is None
            assert not isinstance(answer, Refused)


async def test_what_an_old_link_has_not_answered_is_asked_again_once() -> None:
    left = 3

    def answer(command: list[bytes]) -> bytes | None:
        nonlocal left
        left -= command[0] == b"MGET"
        return None if left == 0 and command[0] == b"MGET" else value_of(command)

    async with counter(answer) as server, Asking(server.port) as asking:
        assert await asking.read("first") == b"first"
        keys = [f"k{number}" for number in range(5)]
        assert await asyncio.gather(*map(asking.read, keys)) == [key.encode() for key in keys]
        sent = [command[1] for piece in server.pieces for command in piece if command[0] == b"MGET"]
        assert sent.count(b"k0") == 1  # it was answered
        assert sent.count(b"k4") == 2
        assert server.connections == 2
        assert asking.events.redis_errors == 0


async def test_what_no_link_answers_is_not_asked_for_ever() -> None:
    well = True

    def answer(command: list[bytes]) -> bytes | None:
        return value_of(command) if well or command[0] == b"INFO" else None

    async with counter(answer) as server, Asking(server.port) as asking:
        await asking.read("first")
        well = False
        with pytest.raises(Unreachable) as caught:
            await asking.read("k")
        assert caught.value.fault is faults.Fault.LOST
        assert server.connections == 2
        well = True
        assert await asking.read("k") == b"k"


async def test_a_link_that_answers_something_before_it_breaks_is_no_reason_to_ask_a_third_time() -> None:
    asked = 0

    def answer(command: list[bytes]) -> bytes | None:
        nonlocal asked
        asked += command[0] == b"MGET"
        return None if asked in {3, 5} and command[0] == b"MGET" else value_of(command)

    async with counter(answer) as server, Asking(server.port) as asking:
        await asking.read("first")
        outcomes = await asyncio.gather(*map(asking.read, "abcd"), return_exceptions=True)
        assert outcomes[:2] == [b"a", b"b"]
        assert [type(each) for each in outcomes[2:]] == [Unreachable, Unreachable]
        assert server.connections == 2


async def test_an_idle_link_that_was_cut_is_replaced() -> None:
    async with counter() as server, Asking(server.port) as asking:
        for _ in range(3):
            assert await asking.read("k") == b"k"
            server.cut()
            await asyncio.sleep(0.01)
        assert server.connections == 3


async def test_a_reply_that_does_not_come_ends_the_link_and_all_that_is_under_way() -> None:
    async with counter() as server, Asking(server.port, timeout=0.15) as asking:
        await asking.read("first")
        server.open.clear()
        tasks = [asyncio.ensure_future(asking.read("a")), asyncio.ensure_future(asking.read("b"))]
        await server.until(2)
        tasks.append(asyncio.ensure_future(asking.read("c")))
        for outcome in await asyncio.gather(*tasks, return_exceptions=True):
            assert isinstance(outcome, Unreachable)
            assert outcome.fault is faults.Fault.TIMEOUT
            assert "0.15 s" in str(outcome)
        server.open.set()
        async with asyncio.timeout(5):
            while not asking.circuit.closed:  # a slow answer is a reason to ask somebody else's question first
                await asyncio.sleep(0.01)
        assert await asking.read("d") == b"d"


async def test_a_loop_that_was_busy_blames_itself_and_not_the_server() -> None:
    async with counter() as server, Asking(server.port, timeout=0.1) as asking:
        await asking.read("first")
        reading = asyncio.ensure_future(asking.read("k"))
        await asyncio.sleep(0)
        busy_until = asyncio.get_running_loop().time() + 0.3
        while asyncio.get_running_loop().time() < busy_until:
            pass
        assert await reading == b"k"


@pytest.mark.parametrize("said", [b"+nobody asked\r\n", b"\x00 no reply\r\n", b"-LOADING as yet\r\n"])
async def test_what_nobody_has_asked_for_ends_the_link(said: bytes) -> None:
    async with counter() as server, Asking(server.port) as asking:
        await asking.read("k")
        server.say(said)
        await asyncio.sleep(0.02)
        assert asking.stream is None
        assert await asking.read("k") == b"k"
        assert server.connections == 2


async def test_a_server_that_is_a_master_no_more_is_left_by_readings_too(redis_server: RedisServer) -> None:
    async with Asking(redis_server.port) as asking:
        await asking.read("k")
        before = asking.stream
        (refused,) = await asking.commands.send_each(("EVAL", "return redis.error_reply('READONLY planted')", "0"))
        assert isinstance(refused, Refused)
        await asyncio.sleep(0)
        assert await asking.read("k") is None
        assert asking.stream is not before


async def test_what_was_decided_before_another_server_answered_is_not_sent_to_it() -> None:
    async with counter() as server, Asking(server.port) as asking:
        await asking.read("first")
        tasks = [asyncio.ensure_future(asking.read(key)) for key in "ab"]
        await asyncio.sleep(0)  # one has been sent, the other waits for the end of the turn
        asking.identity.changed()
        one, other = await asyncio.gather(*tasks, return_exceptions=True)
        assert isinstance(other, AnotherServer)
        assert one == b"a" or isinstance(one, AnotherServer)
        assert await asking.read("c") == b"c"
        assert server.connections == 2


async def test_scripts_and_large_values_hold_up_no_small_reading() -> None:
    held = asyncio.Event()
    sizes = {b"large": LARGE}

    def answer(command: list[bytes]) -> bytes:
        if command[0] == b"MGET":
            return b"*1\r\n" + bulk(sizes.get(command[1], command[1]))
        return value_of(command)

    async with counter(answer) as server, Asking(server.port) as asking:
        assert await asking.read("small") == b"small"
        assert await asking.read("large") == LARGE  # who knew
        assert server.connections == 1
        assert await asking.read("large") == LARGE
        assert server.connections == 2
        sizes.clear()
        assert await asking.read("large") == b"large"  # over the other one, for the last time
        written = asking.noting()
        assert await asking.read("large") == b"large"
        assert len(written) == 1
        server.open = held  # every connection waits at its next piece: small readings must not come to this one
        script = asyncio.ensure_future(asking.commands.send_each(("EVAL", "return 1", "0")))
        await server.until(len(server.pieces) + 1)
        server.open = asyncio.Event()
        server.open.set()
        async with asyncio.timeout(5):
            assert await asking.read("small") == b"small"
        assert not script.done()
        held.set()
        await script


async def test_the_keys_of_large_values_are_forgotten_at_some_point() -> None:
    large = stream.Large()
    for number in range(stream.Large.MOST + 5):
        large.seen(f"k{number}", [[LARGE], []])
    assert len(large.keys) == stream.Large.MOST
    assert "k0" not in large.keys
    large.seen("k9", [Refused("WRONGTYPE"), []])
    assert "k9" not in large.keys


async def test_who_waits_while_the_guard_is_closed_is_told() -> None:
    async with counter() as server, Asking(server.port) as asking:
        await asking.read("first")
        server.open.clear()
        tasks = [asyncio.ensure_future(asking.read("a")), asyncio.ensure_future(asking.commands.send_each(("PING",)))]
        await server.until(2)
        await asking.commands.aclose()
        for outcome in await asyncio.gather(*tasks, return_exceptions=True):
            assert isinstance(outcome, Unreachable)
            assert "closed" in str(outcome)
        with pytest.raises(Unreachable, match="closed"):
            await asking.read("b")


@pytest.mark.parametrize("under_way", [False, True])
def test_a_loop_that_is_closed_leaves_nothing_that_warns(redis_server: RedisServer, *, under_way: bool) -> None:
    loop = asyncio.new_event_loop()

    async def begin() -> tuple[Asking, Any]:
        asking = Asking(redis_server.port)
        await asking.read("k")
        await asking.commands.send_each(("PING",))
        return asking, asking.commands.read_entry("k", ()) if under_way else None

    asking, reading = loop.run_until_complete(begin())
    loop.close()
    asking.commands.abandon()
    asking.circuits.close()
    del asking, reading
    gc.collect()  # a socket that is left open warns, which is an error here


async def test_a_push_is_told_to_the_client_and_is_nobodys_reply(redis_server: RedisServer) -> None:
    heard: list[Any] = []

    async def hear(message: Any) -> None:
        heard.append(message)

    async with Asking(redis_server.port, protocol=3) as asking, Asking(redis_server.port) as other:
        await asking.read("tracked")
        lane = asking.commands._reads  # noqa: SLF001 - nobody else can have it tracked
        assert lane.stream is not None
        lane._connection._parser.set_invalidation_push_handler(hear)  # noqa: SLF001 - likewise
        assert await lane.ask(b"*3\r\n$6\r\nCLIENT\r\n$8\r\nTRACKING\r\n$2\r\nON\r\n", 1, 0) == [b"OK"]
        for number in range(3):
            await asking.read("tracked")
            await other.commands.send_each(("SET", "tracked", number))
            assert await asking.read("tracked") == b"%d" % number
        async with asyncio.timeout(5):
            while len(heard) < 3:
                await asyncio.sleep(0.001)
        assert asking.wire == "lean"


async def test_megabytes_are_written_as_fast_as_they_are_taken(redis_server: RedisServer) -> None:
    async with Asking(redis_server.port) as asking:
        big = b"v" * (4 << 20)
        sent = [
            asking.commands.send_each(("SET", f"big{number}", big), ("STRLEN", f"big{number}")) for number in (1, 2, 3)
        ]
        assert await asyncio.gather(*sent) == [[b"OK", len(big)]] * 3
        assert await asking.read("big1") == big


# Where it is left to redis-py


@pytest.fixture
def served(redis_server: RedisServer, caplog: pytest.LogCaptureFixture) -> Callable[..., Coroutine[Any, Any, str]]:
    """Asks, and returns what `Stats.wire` says of it; said once in the log if redis-py has to read."""

    async def serve(**options: Any) -> str:
        with caplog.at_level(logging.INFO, "cacheguard"):
            async with Asking(redis_server.port, **options) as asking:
                send = asking.commands.send_each
                assert await send(("SET", "k", "v"), ("LPUSH", "k", "x"), ("GET", "k")) == [b"OK", ANY, b"v"]
                tasks = [asking.read("k"), asking.read("none"), asking.read("k")]
                assert await asyncio.gather(*tasks) == [b"v", None, b"v"]
                said = [each.getMessage() for each in caplog.records if "by way of" in each.getMessage()]
                assert said == ([] if asking.wire == "lean" else [f"Redis is asked by way of {asking.wire}"])
                return asking.wire

    return serve


async def test_redis_py_reads_where_hiredis_is_missing(
    served: Callable[..., Coroutine[Any, Any, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wire, "_known", lambda: None)
    assert await served(parser_class=PARSERS._AsyncRESP2Parser) == "redis-py: hiredis is missing"  # noqa: SLF001 - as there


async def test_redis_py_reads_with_a_parser_of_another_make(served: Callable[..., Coroutine[Any, Any, str]]) -> None:
    kind = PARSERS._AsyncRESP2Parser  # noqa: SLF001 - that is its name
    assert await served(parser_class=kind, protocol=2) == "redis-py: unknown parser _AsyncRESP2Parser"


async def test_redis_py_reads_from_a_transport_of_another_make(
    served: Callable[..., Coroutine[Any, Any, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wire, "_TRANSPORTS", frozenset())
    assert await served() == f"redis-py: unknown transport {TRANSPORT}"


async def test_redis_py_reads_where_somebody_else_listens(
    served: Callable[..., Coroutine[Any, Any, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Ours(asyncio.StreamReaderProtocol):
        pass

    monkeypatch.setattr(asyncio.streams, "StreamReaderProtocol", Ours)
    assert await served() == "redis-py: unknown protocol Ours"


async def test_redis_py_reads_what_has_come_before_the_transport_is_ours(
    served: Callable[..., Coroutine[Any, Any, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = wire.standing

    def early(connection: Any) -> Any:
        connection._reader.feed_data(b">2\r\n+invalidate\r\n*0\r\n")  # noqa: SLF001 - so would the transport
        return found(connection)

    monkeypatch.setattr("cacheguard.client.lane.standing", early)
    assert await served(protocol=3) == "redis-py: something came unasked"


def test_threads_say_how_they_are_read_too(redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    with CacheGuard(redis_server.url, operation_timeout=5) as guard:
        assert guard.stats().wire == ""
        guard.set("k", 1)
        assert guard.stats().wire == "lean"
    monkeypatch.setattr(wire, "_known", lambda: None)
    with CacheGuard(redis_server.url, operation_timeout=5) as guard:
        assert guard.get("k") == 1
        assert guard.stats().wire == "redis-py: hiredis is missing"
    with CacheGuard("memory://") as guard:
        guard.set("k", 1)
        assert guard.stats().wire == ""


async def test_one_door_that_is_left_to_redis_py_is_not_hidden_by_the_other(
    redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with CacheGuard(redis_server.url) as guard:
        await asyncio.to_thread(guard.get, "door")
        monkeypatch.setattr(wire, "_TRANSPORTS", frozenset())
        assert await guard.aget("door") is None
        assert guard.stats().wire == f"redis-py: unknown transport {TRANSPORT}"


# Other loops, and TLS


def test_it_is_the_same_in_uvloop(redis_server: RedisServer) -> None:
    uvloop = pytest.importorskip("uvloop")

    async def use() -> str:
        async with CacheGuard(redis_server.url, operation_timeout=5) as guard:
            await guard.aset_many({f"uv{number}": number for number in range(50)})
            values = await asyncio.gather(*(guard.aget(f"uv{number}") for number in range(50)))
            assert values == list(range(50))
            return guard.stats().wire

    loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        assert runner.run(use()) == "lean"


def test_every_loop_has_its_own(redis_server: RedisServer) -> None:
    async def use(guard: CacheGuard, number: int) -> None:
        for turn in range(30):
            key = f"loop{number}:{turn}"
            calls = (guard.aget_or_set(key, partial(str, key), l1=False) for _ in range(3))
            assert await asyncio.gather(*calls) == [key] * 3

    with CacheGuard(redis_server.url, operation_timeout=5) as guard, ThreadPoolExecutor(4) as threads:
        for done in [threads.submit(asyncio.run, use(guard, number)) for number in range(4)]:
            done.result()
        assert guard.stats().redis_errors == 0
        assert guard.stats().wire == "lean"
