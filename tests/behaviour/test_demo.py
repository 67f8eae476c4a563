"""The demo as a user starts it, and the commands that need a Redis."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
import redis
from click.testing import CliRunner

from cacheguard import CacheGuard
from cacheguard.operations.cli import commands
from cacheguard.operations.demo.server import NamedRedis, NoRedisError, OwnRedis, find_binary
from tests.support.redis_server import find_binaries

# Nothing can be shown without a server. On a developer's machine that is no failure; in CI it is one.
needs_redis = pytest.mark.skipif(not find_binaries() and "CI" not in os.environ, reason="there is no redis-server")


class Page(HTMLParser):
    """The table of a report, the number of charts, and whatever a browser would have to fetch."""

    VOID = frozenset({"meta", "br", "link", "img"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.charts = 0
        self.fetched: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.charts += tag == "svg"
        self.fetched += [value or "" for name, value in attrs if name in {"src", "href"}]
        if tag == "tr":
            self.rows.append([])
        if tag not in self.VOID and not (self.get_starttag_text() or "").endswith("/>"):
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] in {"td", "th"}:
            self.rows[-1].append(data)


# What `python -m cacheguard` does, with some of the disasters only and a shop that is soon built.
SHORTER = """
import sys
from cacheguard.__main__ import main
from cacheguard.operations.demo import shop, show
names = sys.argv.pop(1).split()
shop.PRODUCTS = 2_000
show.FULL = [each for each in show.FULL if each.name in names]
main()
"""
ALL_NAMES = "avalanche penetration breakdown inconsistency"


def start(room: Path, *options: str, names: str = ALL_NAMES) -> subprocess.Popen[str]:
    environment = {name: value for name, value in os.environ.items() if name != "CACHEGUARD_DEMO_REDIS"}
    program = ["-m", "cacheguard"] if names == ALL_NAMES else ["-c", SHORTER, names]
    return subprocess.Popen(
        [sys.executable, *program, "demo", "--quick", *options],
        env=environment | {"TMPDIR": str(room), "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def still_running(room: Path) -> list[str]:
    listed = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    return [line for line in listed.splitlines() if str(room) in line]


@needs_redis
@pytest.mark.slow
@pytest.mark.timeout(180)
@pytest.mark.parametrize("names", ["inconsistency", ALL_NAMES])
def test_the_demo_runs_through_and_leaves_only_its_report(tmp_path: Path, names: str) -> None:
    room, report = tmp_path / "tmp", tmp_path / "report.html"
    room.mkdir()
    demo = start(room, "--report", str(report), "--seed", "7", names=names)
    said, _ = demo.communicate(timeout=150)
    assert demo.returncode == 0, said
    assert str(report) in said
    assert list(room.iterdir()) == []
    assert still_running(room) == []
    page = Page(report.read_text(encoding="utf-8"))
    assert page.fetched == []
    assert page.charts == len(names.split()) + 1
    plain, guarded = (
        {name: dict(zip(columns, row[-8:], strict=True)) for name, row in zip(names.split(), rows, strict=True)}
        for columns in [["requests", "queries", "peak", "p50", "p99", "stale", "memory", "errors"]]
        for rows in (page.rows[1::2], page.rows[2::2])
    )
    for name in plain:
        assert number(guarded[name]["queries"]) < number(plain[name]["queries"]), said
        assert number(guarded[name]["peak"]) < number(plain[name]["peak"]), said
        assert guarded[name]["errors"] == "0", said
    assert plain["inconsistency"]["stale"] != "0", said
    assert guarded["inconsistency"]["stale"] == "0", said


def number(text: str) -> int:
    return int(text.replace(",", ""))


@needs_redis
@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    "end", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)], ids=["ctrl-c", "sigterm"]
)
def test_a_demo_that_is_interrupted_leaves_nothing(tmp_path: Path, end: signal.Signals) -> None:
    room, report = tmp_path / "tmp", tmp_path / "report.html"
    room.mkdir()
    demo = start(room, "--report", str(report), names="avalanche")
    assert demo.stdout is not None
    while "avalanche, plain" not in (line := demo.stdout.readline()):
        assert line, "the demo ended before its first run"
    if end is signal.SIGINT:
        os.killpg(demo.pid, end)
    else:
        demo.send_signal(end)
    said, _ = demo.communicate(timeout=60)
    assert demo.returncode != 0
    assert "Traceback" not in said
    assert not report.exists()
    assert list(room.iterdir()) == []
    assert still_running(room) == []


def test_a_named_database_must_be_empty_and_is_empty_afterwards(redis_url: str) -> None:
    with redis.Redis.from_url(redis_url) as client:
        client.set("somebody", "else's")
        with pytest.raises(NoRedisError, match="1 keys"), NamedRedis(redis_url):
            pass
        assert client.get("somebody") == b"else's"
        client.flushdb()
        with NamedRedis(redis_url) as named:
            assert named.url == redis_url
            client.set("ours", "1")
        assert client.dbsize() == 0


@needs_redis
def test_a_server_that_does_not_start_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = tmp_path / "redis-server"
    wrong.write_text("#!/bin/sh\necho out of order\n")
    wrong.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert find_binary() == wrong
    room = tmp_path / "room"
    room.mkdir()
    with pytest.raises(NoRedisError, match="out of order"), OwnRedis(room):
        pass


def inspect(key: str, url: str, *options: str) -> tuple[int, str]:
    result = CliRunner().invoke(commands, ["inspect", key, "--url", url, *options])
    return result.exit_code, result.output


def test_inspect_says_what_is_cached(redis_url: str) -> None:
    with CacheGuard(redis_url, namespace="shop") as guard:
        guard.set("user:42", {"name": "Ada"}, tags=["users", "org:1"], ttl=100, jitter=0.0)
        guard.namespace("v2").set("user:43", None)
    code, said = inspect("user:42", redis_url, "--namespace", "shop")
    assert code == 0
    lines = dict(line.split(maxsplit=1) for line in said.replace("ttl left", "ttl_left").splitlines())
    assert (lines["state"], lines["tier"], lines["tags"]) == ("fresh", "l2", "users, org:1")
    assert 90 < float(lines["ttl_left"].removesuffix(" s")) <= 100
    assert inspect("user:43", redis_url, "--namespace", "shop/v2")[1].startswith("state     null\n")


def test_inspect_tells_nothing_from_nobody(redis_url: str) -> None:
    assert inspect("user:42", redis_url) == (3, "state     missing\n")
    code, said = inspect("user:42", "redis://127.0.0.1:1/0")
    assert code == 1
    assert "Redis cannot be reached" in said


def test_inspect_does_not_call_missing_what_it_cannot_read(redis_url: str) -> None:
    with CacheGuard(redis_url, secret=b"s" * 16) as guard:
        guard.set("user:42", 1)
    code, said = inspect("user:42", redis_url)
    assert code == 1
    assert "cannot be read here" in said
