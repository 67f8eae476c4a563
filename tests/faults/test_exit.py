"""An interpreter that ends while everything runs: soon, silently, and with the right exit code."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support.fleet import ROOT
from tests.support.redis_server import RedisServer

PROMISE = 2.0  # seconds from the end of the program to the end of the process

BEGIN = """
import asyncio, atexit, os, signal, sys, threading, time
from cacheguard import CacheGuard, current_load

guard = CacheGuard(sys.argv[1], outbox=sys.argv[2] if "://" in sys.argv[1] and "redis" in sys.argv[1] else None)
begun = threading.Event()

@guard.cached("row:{number}", ttl="20ms", jitter=0.0, rebuild="logical", l1=False)
def row(number):
    if number < 0:
        begun.set()
        time.sleep(60)
    return number

@guard.cached("arow:{number}")
async def arow(number):
    if number < 0:
        begun.set()
        await asyncio.sleep(60)
    return number

def load_in_a_thread(**options):
    thread = threading.Thread(target=row, args=(-1,), **options)
    thread.start()
    begun.wait(10)

def load_behind():
    global row
    assert guard.get_or_set("behind", lambda: 1, ttl=0.02, jitter=0.0, rebuild="logical", l1=False) == 1
    time.sleep(0.05)
    stuck = lambda: (begun.set(), time.sleep(60))
    assert guard.get_or_set("behind", stuck, ttl=0.02, jitter=0.0, rebuild="logical", l1=False) == 1
    begun.wait(10)

def end():
    print("end", flush=True)

assert row(1) == 1
"""

ENDS = {
    "after a blocking load in a daemon thread": ("load_in_a_thread(daemon=True); end()", 0, ""),
    "after a load behind a stale answer": ("load_behind(); end()", 0, ""),
    "in the middle of a write": ("guard.writing('row:1').__enter__(); end()", 0, ""),
    "after the end of an event loop with a load": (
        """
async def main():
    assert await arow(1) == 1
    reader = asyncio.ensure_future(arow(-1))
    while not begun.is_set():
        await asyncio.sleep(0.001)
    end()
asyncio.run(main())
""",
        0,
        "",
    ),
    "with an event loop in a daemon thread": (
        """
async def main():
    await asyncio.gather(arow(-1), *(arow(number) for number in range(10)))
threading.Thread(target=asyncio.run, args=(main(),), daemon=True).start()
begun.wait(10)
end()
""",
        0,
        "",
    ),
    "with a loop that was closed without a word": (
        """
loop = asyncio.new_event_loop()
assert loop.run_until_complete(arow(1)) == 1
loop.close()
end()
guard.close()
""",
        0,
        "",
    ),
    "in a loop that nobody closes": (
        """
import warnings
loop = asyncio.new_event_loop()
assert loop.run_until_complete(arow(1)) == 1
end()
warnings.simplefilter("ignore")  # the loop is the program's own, and it says so
""",
        0,
        "",
    ),
    "reading in atexit": (
        """
def last():
    assert row(1) == 1 and row(2) == 2
    guard.invalidate("row:1")
    guard.close()
atexit.register(last)
load_in_a_thread(daemon=True)
end()
""",
        0,
        "",
    ),
    "by sys.exit in a loader": (
        "load_behind(); guard.get_or_set('exits', lambda: (end(), sys.exit(5)))",
        5,
        "",
    ),
    "by sys.exit in a loader of an event loop": (
        """
async def load():
    end()
    sys.exit(6)
async def main():
    await guard.aget_or_set("exits", load)
asyncio.run(main())
""",
        6,
        "",
    ),
    "by an exception": ("load_in_a_thread(daemon=True); end(); raise KeyError('mine')", 1, "KeyError: 'mine'"),
    "by SIGINT in a loader": ("end(); row(-1)", -signal.SIGINT, "KeyboardInterrupt"),
    "by SIGINT in an event loop": ("end(); asyncio.run(arow(-1))", -signal.SIGINT, "KeyboardInterrupt"),
    "by SIGTERM": ("load_behind(); end(); row(-1)", -signal.SIGTERM, ""),
    "by a handler of SIGTERM": (
        """
signal.signal(signal.SIGTERM, lambda *_: (row(2), guard.invalidate("row:2"), sys.exit(7)))
load_behind()
end()
number = 0
while True:
    number += 1
    row(number)
    guard.invalidate(f"row:{number}")
""",
        7,
        "",
    ),
}


# A signal that arrives between the making of a coroutine and its first step: Python says so, and nobody can prevent it.
NEVER_BEGUN = re.compile(
    r"^(?:Exception ignored in: <coroutine object .*\n(?:.*\n)*?)?.*RuntimeWarning: coroutine '.*' was never awaited\n",
    re.MULTILINE,
)


def ended(script: str, url: str, tmp_path: Path, send: signal.Signals | None = None) -> tuple[int, str, float]:
    """How a program has ended: its code, what it said to stderr, and how long that took."""
    command = [sys.executable, "-W", "error", "-c", BEGIN + script, url, str(tmp_path / "outbox.db")]
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'integrations'}"}
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True
    )
    assert process.stdout is not None
    said = process.stdout.readline()
    began = time.monotonic()
    if said and send is not None:
        time.sleep(0.2)
        process.send_signal(send)
        began = time.monotonic()
    try:
        _, errors = process.communicate(timeout=20)
    except subprocess.TimeoutExpired:
        process.kill()
        errors = "".join(process.communicate())
        raise AssertionError(f"the process hangs; it said {errors}") from None
    seconds = time.monotonic() - began
    assert said == "end\n", errors
    return process.returncode, errors, seconds


def check(url: str, tmp_path: Path, how: str) -> None:
    script, code, last_words = ENDS[how]
    send = signal.SIGINT if "SIGINT" in how else signal.SIGTERM if "SIGTERM" in how else None
    ended_with, errors, seconds = ended(script, url, tmp_path, send)
    assert ended_with == code, errors
    if send is not None:
        errors = NEVER_BEGUN.sub("", errors)
    assert errors.strip().splitlines()[-1:] == ([last_words] if last_words else [])
    assert errors.count("Traceback") <= 1 + errors.count("During handling")
    assert "ignored" not in errors
    assert "never" not in errors
    assert seconds <= PROMISE


# Every second one in `make test`; the others end in nearly the same way.
SLOWLY = {how for number, how in enumerate(ENDS) if number % 2}


@pytest.mark.parametrize("how", [pytest.param(how, marks=[pytest.mark.slow] if how in SLOWLY else []) for how in ENDS])
def test_the_interpreter_ends_soon_and_says_nothing(redis_url: str, tmp_path: Path, how: str) -> None:
    check(redis_url, tmp_path, how)


@pytest.mark.parametrize("how", ["after a load behind a stale answer", "by a handler of SIGTERM"])
def test_it_ends_as_well_without_redis(tmp_path: Path, how: str) -> None:
    check("memory://", tmp_path, how)


@pytest.mark.chaos
@pytest.mark.parametrize("how", ENDS)
def test_it_ends_as_well_without_redis_in_every_way(tmp_path: Path, how: str) -> None:
    check("memory://", tmp_path, how)


@pytest.mark.parametrize("how", ["after a load behind a stale answer", "after the end of an event loop with a load"])
def test_it_ends_as_soon_when_redis_hangs(redis_server: RedisServer, redis_url: str, tmp_path: Path, how: str) -> None:
    freeze = f"os.kill({redis_server.pid}, signal.SIGSTOP)\n"
    script = "def end():\n    " + freeze + "    guard.invalidate('x')\n    print('end', flush=True)\n" + ENDS[how][0]
    code, errors, seconds = ended(script, redis_url, tmp_path)
    redis_server.thaw()
    assert code == 0
    assert [line for line in errors.splitlines() if "out of reach" not in line] == []
    assert seconds <= PROMISE


def test_a_program_that_closes_its_guard_ends_soon_when_redis_hangs(
    redis_server: RedisServer, redis_url: str, tmp_path: Path
) -> None:
    freeze = f"os.kill({redis_server.pid}, signal.SIGSTOP)\n"
    script = f"load_behind()\n{freeze}print('end', flush=True)\nguard.close()"
    code, errors, seconds = ended(script, redis_url, tmp_path)
    redis_server.thaw()
    assert code == 0
    assert [line for line in errors.splitlines() if "out of reach" not in line] == []
    assert seconds <= 2 * PROMISE + 0.5  # the loads behind are given time, and so is the bus
