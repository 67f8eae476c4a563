"""Servers that fork their workers: the bus lives in each, and nothing is left when they reload or stop."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.faults.test_bus import until
from tests.support.fleet import ROOT
from tests.support.redis_server import is_free, own_ports

ALIVE_WITHIN = 2.0  # seconds after a worker answers
STOPPED_WITHIN = 8.0

# It forks, so it does not exist for Windows; the group `dev` has it.
needs_gunicorn = pytest.mark.skipif(importlib.util.find_spec("gunicorn") is None, reason="gunicorn is not installed")


class Served:
    """A server with two workers, and what they say."""

    def __init__(self, words: list[str], port: int, url: str, log: Path) -> None:
        environment = os.environ | {
            "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'integrations'}",
            "CACHEGUARD_URL": url,
            "PYTHONWARNINGS": "error::ResourceWarning",
        }
        self.port, self.log = port, log
        with log.open("wb") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-m", *words], env=environment, stdout=out, stderr=out, start_new_session=True
            )
        self.seen: set[int] = set()

    def ask(self, path: str, key: str = "k") -> dict[str, Any]:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}?key={key}", timeout=5) as answer:
            said: dict[str, Any] = json.load(answer)
        self.seen.add(said["pid"])
        return said

    def answers(self) -> bool:
        assert self.process.poll() is None, self.log.read_text()
        try:
            return bool(self.ask("/get"))
        except OSError:
            return False

    def workers(self) -> list[int]:
        """Those that are there now."""
        found: list[int] = []
        for child in psutil.Process(self.process.pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):  # one that is just ending
                if "resource_tracker" not in " ".join(child.cmdline()):
                    found.append(child.pid)
        return found

    def each(self, path: str, key: str, workers: set[int]) -> dict[int, dict[str, Any]]:
        """What each of *workers* says; they answer by chance."""
        found: dict[int, dict[str, Any]] = {}
        end = time.monotonic() + 10
        while set(found) < workers:
            assert time.monotonic() < end, f"only {set(found)} of {workers} have answered"
            said = self.ask(path, key)
            found[said["pid"]] = said
        return found

    def stop(self) -> float:
        """Ask it to stop; how long that took."""
        began = time.monotonic()
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        self.process.wait(20)
        return time.monotonic() - began


@pytest.fixture
def port() -> int:
    return next(port for port in own_ports()[os.getpid() % 1000 :] if is_free(port))


def gunicorn(port: int, *words: str) -> list[str]:
    bind = ["--bind", f"127.0.0.1:{port}", "--workers", "2", "--graceful-timeout", "5"]
    return ["gunicorn", "--preload", *bind, *words, "tests.support.served:wsgi"]


def uvicorn(port: int) -> list[str]:
    return ["uvicorn", "--port", str(port), "--workers", "2", "--log-level", "warning", "tests.support.served:asgi"]


@pytest.fixture(params=[pytest.param("sync", marks=pytest.mark.slow), "gthread", "uvicorn"])
def served(request: pytest.FixtureRequest, redis_url: str, port: int, tmp_path: Path) -> Iterator[Served]:
    if request.param == "uvicorn":
        words = uvicorn(port)
    else:
        pytest.importorskip("gunicorn")
        threads = ["--threads", "4"] if request.param == "gthread" else []
        words = gunicorn(port, "--worker-class", request.param, *threads)
    server = Served(words, port, redis_url, tmp_path / "server.log")
    try:
        until(server.answers, 20)
        yield server
    finally:
        if server.process.poll() is None:
            for child in psutil.Process(server.process.pid).children(recursive=True):
                child.kill()
            server.process.kill()
            server.process.wait()


def in_each_worker(served: Served, workers: set[int]) -> None:
    """Their buses are alive soon, and what one invalidates, the other drops."""
    began = time.monotonic()
    until(lambda: all(said["bus"] for said in served.each("/get", "k", workers).values()), ALIVE_WITHIN + 3)
    assert time.monotonic() - began <= ALIVE_WITHIN
    for turn in range(3):
        key = f"key{turn}"
        values = {said["value"] for said in served.each("/get", key, workers).values()}
        assert len(values) == 1  # one has loaded it for both
        (old,) = values
        served.ask("/drop", key)

        def dropped(key: str = key, old: str = old) -> bool:
            return all(said["value"] != old for said in served.each("/get", key, workers).values())

        until(dropped, 1)
    for said in served.each("/get", "k", workers).values():
        assert said["errors"] == 0
        assert said["threads"].count("cacheguard-bus") == 1


def test_the_bus_is_alive_in_every_worker_and_nothing_is_left_when_they_stop(served: Served) -> None:
    workers = set(served.workers())
    until(lambda: len(set(served.workers())) == 2, 10)
    workers = set(served.workers())
    in_each_worker(served, workers)
    assert served.stop() <= STOPPED_WITHIN
    assert not [pid for pid in workers if psutil.pid_exists(pid)]
    log = served.log.read_text()
    assert "Traceback" not in log, log


@pytest.mark.slow
@needs_gunicorn
def test_workers_that_are_replaced_leave_nothing_and_the_new_ones_hear(
    redis_url: str, port: int, tmp_path: Path
) -> None:
    served = Served(gunicorn(port, "--threads", "2"), port, redis_url, tmp_path / "server.log")
    try:
        until(served.answers, 20)
        until(lambda: len(set(served.workers())) == 2, 10)
        before = set(served.workers())
        served.process.send_signal(signal.SIGHUP)
        until(lambda: len(set(served.workers()) - before) == 2 and not before & set(served.workers()), 15)
        in_each_worker(served, set(served.workers()))
        victim = served.workers()[0]
        os.kill(victim, signal.SIGKILL)
        until(lambda: len(set(served.workers()) - {victim}) == 2, 15)
        in_each_worker(served, set(served.workers()))
    finally:
        assert served.stop() <= STOPPED_WITHIN
    assert "Traceback" not in served.log.read_text()
