"""Every class of error, made by a real server: told apart, no reader sees it, nothing is lost."""

from __future__ import annotations

import contextlib
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest
import redis

from cacheguard import CacheGuard, StateChange
from cacheguard.errors import Unreachable
from cacheguard.faults import TREATMENTS, Fault, Remedy, fault_of
from cacheguard.ports import AnotherServer
from cacheguard.runtime import run_now
from tests.conftest import OpenDoor
from tests.support.clusters import RedisCluster
from tests.support.doors import Door, well_again
from tests.support.faults import Fault as Wire
from tests.support.faults import FaultProxy
from tests.support.loader import Loader
from tests.support.redis_server import RedisServer, find_binaries
from tests.support.tls import Authority, TlsServer, binary_with_tls

Broken = AbstractContextManager[str]  # gives the address at which the fault is met


@contextmanager
def setting(server: RedisServer, name: str, value: str | int, **before: str) -> Iterator[str]:
    server.command("CONFIG", "SET", name, value)
    try:
        yield server.url
    finally:
        server.command("CONFIG", "SET", name, before.get("back", "0"))


@contextmanager
def behind_a_password(server: RedisServer) -> Iterator[str]:
    server.command("CONFIG", "SET", "requirepass", "right")
    server_url = f"redis://:wrong@127.0.0.1:{server.port}/0"
    try:
        yield server_url
    finally:
        with redis.Redis(port=server.port, password="right") as client:
            client.config_set("requirepass", "")


@contextmanager
def without_rights(server: RedisServer) -> Iterator[str]:
    server.command("ACL", "SETUSER", "reader", "on", ">pass", "~*", "&*", "+@connection", "+info", "+mget", "+time")
    try:
        yield f"redis://reader:pass@127.0.0.1:{server.port}/0"
    finally:
        server.command("ACL", "DELUSER", "reader")


@contextmanager
def not_saving(server: RedisServer) -> Iterator[str]:
    in_the_way = server.directory / "dump.rdb"  # a directory, where a file should go
    in_the_way.mkdir()
    server.command("CONFIG", "SET", "save", "3600 1")
    with contextlib.suppress(redis.RedisError):
        server.command("BGSAVE")
    until(lambda: "MISCONF" in _answer(server, "SET", "x", "1"))
    try:
        yield server.url
    finally:
        server.command("CONFIG", "SET", "save", "")
        in_the_way.rmdir()


@contextmanager
def a_replica(server: RedisServer, *, stale: bool) -> Iterator[str]:
    server.command("CONFIG", "SET", "replica-serve-stale-data", "yes" if stale else "no")
    server.command("REPLICAOF", "127.0.0.1", "1")
    try:
        yield server.url
    finally:
        server.command("REPLICAOF", "NO", "ONE")
        server.command("CONFIG", "SET", "replica-serve-stale-data", "yes")


@contextmanager
def busy(server: RedisServer) -> Iterator[str]:
    server.command("CONFIG", "SET", "lua-time-limit", "1")
    running = threading.Thread(target=_run_for_ever, args=(server.url,), daemon=True)
    running.start()
    until(lambda: _answer(server, "PING").startswith("BUSY"))
    try:
        yield server.url
    finally:
        server.command("SCRIPT", "KILL")
        running.join()
        server.command("CONFIG", "SET", "lua-time-limit", "5000")


def _run_for_ever(url: str) -> None:
    with contextlib.suppress(redis.RedisError), redis.from_url(url, socket_timeout=60) as client:
        client.eval("while true do end", 0)


def _answer(server: RedisServer, *words: str) -> str:
    """What it says, be it an error of the client's or of the server's."""
    try:
        return str(server.command(*words))
    except redis.RedisError as error:
        return str(error)


@contextmanager
def full_of_clients(server: RedisServer) -> Iterator[str]:
    with contextlib.ExitStack() as held:
        clients = [held.enter_context(redis.from_url(server.url, single_connection_client=True)) for _ in range(12)]
        for client in clients:
            client.ping()
        clients[0].config_set("maxclients", 8)
        try:
            yield server.url
        finally:
            clients[0].config_set("maxclients", 10_000)


@contextmanager
def killed(server: RedisServer) -> Iterator[str]:
    server.kill()
    try:
        yield server.url
    finally:
        server.start()


@contextmanager
def frozen(server: RedisServer) -> Iterator[str]:
    server.freeze()
    try:
        yield server.url
    finally:
        server.thaw()


@contextmanager
def without_scripts(server: RedisServer) -> Iterator[str]:
    server.command("SCRIPT", "FLUSH")
    yield server.url


@contextmanager
def on_the_wire(server: RedisServer, fault: Wire) -> Iterator[str]:
    with FaultProxy(server.port) as proxy:
        proxy.inject(fault)
        yield proxy.url


@contextmanager
def elsewhere(_: RedisServer, url: str) -> Iterator[str]:
    yield url


@contextmanager
def not_trusted(server: RedisServer) -> Iterator[str]:
    binary = binary_with_tls()
    if binary is None:
        pytest.skip("no redis-server here was built with TLS")
    authority, stranger = (Authority(server.directory / name) for name in ("ours", "theirs"))
    with TlsServer(binary, server.directory / "tls", authority, authority.issue("good", "localhost")) as other:
        yield other.tls_url().replace(str(authority.file), str(stranger.file))
    for name in ("ours", "theirs", "tls"):
        shutil.rmtree(server.directory / name)


MAKERS: dict[Fault, Callable[[RedisServer], Broken]] = {
    Fault.AUTHENTICATION: behind_a_password,
    Fault.PERMISSION: without_rights,
    Fault.OUT_OF_MEMORY: lambda server: setting(server, "maxmemory", 1),
    Fault.MISCONF: not_saving,
    Fault.NO_REPLICAS: lambda server: setting(server, "min-replicas-to-write", 1),
    Fault.READONLY: lambda server: a_replica(server, stale=True),
    Fault.MASTER_DOWN: lambda server: a_replica(server, stale=False),
    Fault.BUSY: busy,
    Fault.MAX_CLIENTS: full_of_clients,
    Fault.REFUSED: killed,
    Fault.TIMEOUT: frozen,
    Fault.LOST: lambda server: on_the_wire(server, Wire.LOSE_REPLY),
    Fault.GARBAGE: lambda server: on_the_wire(server, Wire.GARBAGE),
    Fault.NAME: lambda server: elsewhere(server, "redis://no-such-host.invalid/0"),
    Fault.NO_MASTER: lambda server: elsewhere(server, f"redis+sentinel://127.0.0.1:{server.port}/nobody/0"),
    Fault.TLS: not_trusted,
}
FOR_GOOD = {Fault.NAME, Fault.NO_MASTER, Fault.TLS, Fault.AUTHENTICATION, Fault.PERMISSION, Fault.LOST, Fault.GARBAGE}
READABLE = {Fault.PERMISSION, Fault.OUT_OF_MEMORY, Fault.MISCONF, Fault.NO_REPLICAS, Fault.READONLY}


def until(condition: Callable[[], Any], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come to that"
        time.sleep(0.005)


def said_by(url: str, *calls: tuple[str | int, ...]) -> Fault:
    """The fault that a call at *url* meets, as the way to Redis tells it."""
    with CacheGuard(url) as guard:
        nodes: Any = guard._hub._nodes  # noqa: SLF001 - below every defence
        try:
            run_now(nodes.blocking()[""].send(*calls))
        except Unreachable as error:
            return error.fault
    return Fault.OTHER


WRITE = ("EVAL", "return redis.call('SET', KEYS[1], 1)", "1", "{cg}:k")


@pytest.mark.parametrize("fault", MAKERS)
def test_each_fault_is_told_apart(redis_server: RedisServer, redis_url: str, fault: Fault) -> None:
    with MAKERS[fault](redis_server) as url:
        assert said_by(url, WRITE) is fault


@pytest.mark.parametrize("fault", MAKERS)
async def test_no_reader_sees_a_fault_and_no_invalidation_is_lost(
    open_door: OpenDoor, redis_server: RedisServer, redis_url: str, fault: Fault
) -> None:
    loader = Loader(seconds=0.001)
    with CacheGuard(redis_url) as before:
        before.set_many({"old": "old", "kept": "kept"})
    with contextlib.ExitStack() as stack:
        url = stack.enter_context(await anyio.to_thread.run_sync(lambda: MAKERS[fault](redis_server)))
        door = open_door(CacheGuard(url))
        for number in range(8):
            assert await door.get_or_set(f"row:{number}", loader, l1=False) == number + 1
        assert await door.get("row:none") is None
        assert await door.get_many(["row:none"]) == {}
        await door.invalidate("old")
        await door.invalidate_tags("some")
        stats = door.guard.stats()
        assert stats.loads == loader.runs == 8
        reads_work = fault in READABLE
        assert (await door.get("kept") == "kept") is reads_work or stats.invalidations_queued
        assert (stats.breaker_opens > 0) is TREATMENTS[fault].counts, str(stats)
        if fault is not Fault.OUT_OF_MEMORY:  # there, an invalidation works
            assert stats.invalidations_queued >= 2
        stack.close()
        if fault in FOR_GOOD:
            return
        await well_again(door.guard)
        with anyio.fail_after(10):
            while door.guard.stats().invalidations_queued:
                await anyio.sleep(0.01)
        assert await door.get("old") is None
        assert await door.get_or_set("row:new", loader) == 9
        with CacheGuard(redis_url) as after:
            assert after.get("row:new") == 9
            assert after.get("old") is None


async def test_a_server_that_loads_its_data_is_waited_for_without_an_error(
    open_door: OpenDoor, redis_url: str, tmp_path: Path
) -> None:
    binary = next(iter(find_binaries().values()))
    with RedisServer(binary, tmp_path / "loading", rdbcompression="no") as server:
        # While it loads, it answers after every 2 MiB (Redis 7 could be told to answer more often): after 100 keys.
        filler = "for i = 1, 1000 do redis.call('SET', 'filler' .. i, string.rep('x', 20000)) end"
        server.command("EVAL", filler, "0")
        door = open_door(CacheGuard(server.url))
        assert await door.get_or_set("before", Loader("value")) == "value"
        server.command("SAVE")
        server.kill()
        server.config["key-load-delay"] = "1000"  # microseconds
        starting = threading.Thread(target=server.start)
        starting.start()
        await anyio.to_thread.run_sync(lambda: until(lambda: "is loading" in _answer(server, "GET", "x")))
        # On a busy machine, a first try may find that it does not answer in time.
        await anyio.to_thread.run_sync(lambda: until(lambda: said_by(server.url, WRITE) is Fault.LOADING))
        loader = Loader()
        for number in range(8):
            assert await door.get_or_set(f"row:{number}", loader, l1=False) == number + 1
        await anyio.to_thread.run_sync(starting.join)
        await well_again(door.guard)
        assert await door.get_or_set("after", Loader("value")) == "value"
        assert server.command("EXISTS", "cg:cacheguard:e:after") == 1


def test_a_cluster_says_who_has_moved_and_that_it_is_down(
    redis_cluster: RedisCluster, cluster_url: str, tmp_path: Path
) -> None:
    ports = [server.port for server in redis_cluster.masters()]
    said = {said_by(f"redis://127.0.0.1:{port}/0", WRITE) for port in ports}
    assert said == {Fault.MOVED, Fault.OTHER}  # OTHER: that one owns the slot, and nothing is wrong
    with RedisServer(redis_cluster.masters()[0].binary, tmp_path / "alone", cluster_enabled="yes") as server:
        assert said_by(server.url, WRITE) is Fault.CLUSTER_DOWN


def test_scripts_that_are_unknown_and_keys_of_others_are_no_fault_of_the_server(
    redis_server: RedisServer, redis_url: str
) -> None:
    assert said_by(redis_url, ("EVALSHA", "0" * 40, "0")) is Fault.NO_SCRIPT
    redis_server.command("RPUSH", "cg:cacheguard:e:k", "a text")
    assert said_by(redis_url, ("GETRANGE", "cg:cacheguard:e:k", 0, 1)) is Fault.WRONG_TYPE
    with CacheGuard(redis_url) as guard:
        assert guard.get_or_set("k", Loader("value")) == "value"
        redis_server.command("SCRIPT", "FLUSH")
        assert guard.get_or_set("l", Loader("value")) == "value"
        assert guard.stats().breaker_opens == 0


async def test_a_wrong_password_is_tried_once_a_second_at_most(
    open_door: OpenDoor, redis_server: RedisServer, redis_url: str
) -> None:
    with behind_a_password(redis_server):
        door = open_door(CacheGuard(f"redis://:wrong@127.0.0.1:{redis_server.port}/0"))
        loader, began = Loader(), time.monotonic()
        with redis.Redis(port=redis_server.port, password="right", decode_responses=True) as client:
            await door.get_or_set("first", loader)
            before = _attempts(client)
            while time.monotonic() < began + 3:
                await door.get_or_set(f"row:{loader.runs}", loader, l1=False)
                await door.invalidate("row")
            took = time.monotonic() - began
            attempts = _attempts(client) - before
        assert attempts <= took + 1
        assert door.guard.stats().load_failures == 0


def _attempts(client: Any) -> int:
    return int(client.info("commandstats").get("cmdstat_auth", {}).get("calls", 0))


async def test_whoever_wants_to_know_is_told_of_each_change_of_state(
    open_door: OpenDoor, redis_server: RedisServer, redis_url: str
) -> None:
    changes: list[StateChange] = []
    door = open_door(CacheGuard(redis_url, on_state_change=changes.append))
    await door.get_or_set("k", Loader(1))
    redis_server.kill()
    for number in range(10):
        await door.get_or_set(f"row:{number}", Loader(1), l1=False)
    assert door.guard.stats().breaker in {"open", "half-open"}
    assert door.guard.stats().breaker_opens == 1
    redis_server.start()
    await well_again(door.guard)
    breaker = [(change.before, change.after) for change in changes if change.of == "breaker"]
    assert breaker[0] == ("closed", "open")
    assert breaker[-1] == ("half-open", "closed")
    assert all(one[1] == two[0] for one, two in pairwise(breaker))
    assert {change.name for change in changes if change.of == "breaker"} == {"Redis"}
    assert ("up", "down") in [(change.before, change.after) for change in changes if change.of == "redis"]
    await door.get("k")
    with anyio.fail_after(10):
        while not door.guard.stats().bus_up:
            await anyio.sleep(0.01)
    assert [change.after for change in changes if change.of == "bus"][-1] == "up"


async def test_a_listener_that_fails_harms_nobody(
    open_door: OpenDoor, redis_server: RedisServer, redis_url: str
) -> None:
    def fail(_: StateChange) -> None:
        raise ValueError("the listener's own")

    door = open_door(CacheGuard(redis_url, on_state_change=fail))
    await door.get_or_set("k", Loader(1))
    redis_server.kill()
    for number in range(10):
        await door.get_or_set(f"row:{number}", Loader(1), l1=False)
    redis_server.start()
    await well_again(door.guard)
    assert await door.get_or_set("new", Loader(1)) == 1


async def test_a_caller_loses_one_timeout_at_most_before_a_frozen_server_is_left_alone(
    door: Door, redis_server: RedisServer
) -> None:
    await door.get_or_set("k", Loader(1))
    redis_server.freeze()
    began = time.monotonic()
    for number in range(20):
        await door.get_or_set(f"row:{number}", Loader(1), l1=False)
    took = time.monotonic() - began
    redis_server.thaw()
    assert took < 0.2 + 0.05 + 20 * 0.05 + 0.5
    assert door.guard.stats().breaker_opens == 1
    assert door.guard.stats().l2_skips > 0


def test_every_fault_has_a_treatment_and_errors_of_other_libraries_are_no_fault_of_redis() -> None:
    assert set(TREATMENTS) == set(Fault)
    assert fault_of(ValueError("x")) is Fault.OTHER
    assert fault_of(ConnectionResetError(104, "reset by peer")) is Fault.LOST
    assert TREATMENTS[Fault.POOL].first is Remedy.BYPASS
    assert not TREATMENTS[Fault.POOL].counts


def test_threads_leave_a_server_that_is_a_master_no_more(redis_url: str) -> None:
    with CacheGuard(redis_url) as guard:
        nodes: Any = guard._hub._nodes  # noqa: SLF001 - below every defence
        commands = nodes.blocking()[""]
        connections = [run_now(commands.send(("CLIENT", "ID"))) for _ in range(2)]
        (refused,) = run_now(commands.send_each(("EVAL", "return redis.error_reply('READONLY planted')", "0")))
        assert refused.fault is Fault.READONLY
        connections.append(run_now(commands.send(("CLIENT", "ID"))))
    assert connections[0] == connections[1] != connections[2]


def test_threads_send_nothing_that_was_decided_for_another_server(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with CacheGuard(redis_url) as guard:
        nodes: Any = guard._hub._nodes  # noqa: SLF001 - below every defence
        commands = nodes.blocking()[""]
        run_now(commands.send(("PING",)))
        take = commands._take  # noqa: SLF001 - likewise

        def taken() -> Any:
            commands._identity.generation += 1  # noqa: SLF001 - another thread has met another server
            return take()

        monkeypatch.setattr(commands, "_take", taken)
        with pytest.raises(AnotherServer):
            run_now(commands.send(("SET", "late", "1")))
        monkeypatch.undo()
        assert run_now(commands.send(("EXISTS", "late"))) == [0]
