from __future__ import annotations

import socket
import threading
import time
from types import SimpleNamespace
from typing import Any

import pytest
from redis.exceptions import TimeoutError as RedisTimeoutError

from cacheguard import CacheGuard
from cacheguard.client.names import resolve_within
from cacheguard.faults import Fault, fault_of


def connection(host: object, **more: Any) -> Any:
    return SimpleNamespace(host=host, port=6379, **more)


def test_a_resolver_that_hangs_costs_one_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    go_on = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_: go_on.wait(10))
    with pytest.raises(RedisTimeoutError, match=r"to resolve cache.example took longer than 0.05 s") as error:
        resolve_within(connection("cache.example"), 0.05)
    assert fault_of(error.value) is Fault.TIMEOUT
    go_on.set()


def test_a_host_that_is_unknown_is_said_to_be(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: object) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with pytest.raises(socket.gaierror) as error:
        resolve_within(connection("cache.example"), 1)
    assert fault_of(error.value) is Fault.NAME


@pytest.mark.parametrize(
    "known",
    [
        connection("127.0.0.1"),
        connection("::1"),
        connection("fe80::1%eth0"),
        connection("localhost"),
        connection(None),
        connection("master", connection_pool=object()),
        SimpleNamespace(path="/run/redis.sock"),
    ],
)
def test_what_needs_no_resolver_asks_none(monkeypatch: pytest.MonkeyPatch, known: Any) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", None)
    resolve_within(known, 0.01)


def test_a_reader_behind_a_resolver_that_hangs_is_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    go_on, real = threading.Event(), socket.getaddrinfo

    def hang(host: Any, *args: Any, **more: Any) -> Any:
        if host == "cache.example":
            go_on.wait(10)
            host = "127.0.0.1"
        return real(host, *args, **more)

    monkeypatch.setattr(socket, "getaddrinfo", hang)
    began = time.monotonic()
    with CacheGuard("redis://cache.example:1/0") as guard:
        for number in range(5):
            assert guard.get_or_set(f"k{number}", lambda: "loaded") == "loaded"
        took = time.monotonic() - began
        assert guard.stats().breaker != "closed"
        go_on.set()
    assert took < 5 * 0.2 + 1
