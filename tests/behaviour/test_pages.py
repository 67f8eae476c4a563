"""What the pages show is what happens: each is one program, without Redis and with it."""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from cacheguard.operations.cli import commands
from tests.support.pages import ROOT, blocks, name_of, pages, program, run
from tests.support.rings import RingOfServers
from tests.support.tls import Authority, TlsServer, binary_with_tls

DOCS = ROOT / "docs"
# They need more than one Redis, and have tests of their own.
SECURITY, TOPOLOGIES, FEEDS = DOCS / "security.md", DOCS / "topologies.md", DOCS / "change-feeds.md"
# Programs of their own: Django is set up once in a process, RQ and Strawberry look for the module that they run in.
IN_A_PROCESS_OF_ITS_OWN = {"docs/async-apps.md", "docs/django.md", "docs/rest-framework.md", "docs/workers.md"}
# What a page is about; it comes with the group `dev`.
NEEDS = {
    "docs/async-apps.md": ("aiohttp", "strawberry"),
    "docs/rest-framework.md": ("rest_framework",),
    "docs/workers.md": ("celery", "rq"),
}
PROGRAMS = [page for page in pages() if program(page.read_text(encoding="utf-8"))]
RUN = [page for page in PROGRAMS if page not in {SECURITY, TOPOLOGIES, FEEDS}]


@pytest.fixture(autouse=True)
def _somewhere_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some examples make files."""
    monkeypatch.chdir(tmp_path)


def run_page(page: Path) -> None:
    for needed in NEEDS.get(name_of(page), ()):
        if importlib.util.find_spec(needed) is None:
            pytest.skip(f"{needed} is not installed")
    if name_of(page) not in IN_A_PROCESS_OF_ITS_OWN:
        run(page)
        return
    Path("example.py").write_text(program(page.read_text(encoding="utf-8")), encoding="utf-8")
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path.cwd()), *filter(None, sys.path)])}
    words = ["-m", "example"] if name_of(page) == "docs/django.md" else ["-c", "import example"]
    command = [sys.executable, "-W", "error", *words]
    ended = subprocess.run(command, env=env, capture_output=True, text=True, timeout=50, check=False)
    assert ended.returncode == 0, ended.stderr


# A program of its own takes seconds to start.
SLOW = pytest.mark.slow
EACH = [pytest.param(page, id=name_of(page), marks=SLOW if name_of(page) in NEEDS else ()) for page in RUN]
IN_REDIS = [
    pytest.param(page, id=name_of(page), marks=SLOW if name_of(page) in IN_A_PROCESS_OF_ITS_OWN else ()) for page in RUN
]


@pytest.mark.parametrize("page", EACH)
def test_the_examples_run_within_one_process(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CACHEGUARD_URL", raising=False)
    run_page(page)


@pytest.mark.parametrize("page", IN_REDIS)
def test_the_examples_run_on_redis(page: Path, redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CACHEGUARD_URL", redis_url)
    run_page(page)


def test_the_examples_of_several_nodes_run_on_a_ring(ring: RingOfServers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CACHEGUARD_URL", ring.url())
    run(TOPOLOGIES)


def test_the_examples_of_security_run_on_a_server_that_speaks_tls(tmp_path: Path) -> None:
    binary = binary_with_tls()
    if binary is None:
        pytest.skip("no redis-server here was built with TLS")
    authority = Authority(tmp_path / "authority")
    server = TlsServer(binary, tmp_path / "server", authority, authority.issue("cache", "localhost")).start()
    try:
        here = {"cache.example:6380": f"localhost:{server.tls_port}", "/etc/ssl/cache-ca.pem": str(authority.file)}
        run(SECURITY, here)
        assert server.entries()
    finally:
        server.stop()


def test_the_commands_of_security_print_what_is_shown() -> None:
    (shown,) = (block for block in blocks(SECURITY.read_text(encoding="utf-8")) if block.language == "console")
    command, *printed = shown.code.splitlines()
    words = shlex.split(command.removeprefix("$ python -m cacheguard "))
    assert CliRunner().invoke(commands, words).output.splitlines() == printed


def test_every_option_of_a_url_is_on_the_page_about_security() -> None:
    from cacheguard.servers.urls.options import options_of

    named = set(re.findall(r"`([a-z_]+)(?:=[a-z]+)?`", SECURITY.read_text(encoding="utf-8")))
    with pytest.raises(ValueError, match="there are") as error:
        options_of("x=1", tls=True, sentinel=False)
    known = set(str(error.value).rpartition("there are ")[2].split(", "))
    assert known <= named


def test_the_url_of_a_ring_is_shown_as_the_error_about_a_wrong_one_shows_it() -> None:
    from cacheguard.servers.urls.ring import SHAPE

    assert f"\n{SHAPE}\n" in TOPOLOGIES.read_text(encoding="utf-8")


def test_every_page_with_examples_is_found() -> None:
    names = {name_of(page) for page in PROGRAMS}
    front = {f"docs/{name}.md" for name in ("django", "flask", "http-cache", "sqlalchemy", "testing", "change-feeds")}
    front |= NEEDS.keys()
    assert names >= front | {"README.md", "docs/consistency.md", "docs/outages.md"}


def test_an_example_that_does_not_hold_fails(tmp_path: Path) -> None:
    page = ROOT / "docs" / "outages.md"
    with pytest.raises(AssertionError):
        run(page, {'== "closed"': '== "open"'})
    with pytest.raises(LookupError):
        run(page, {"nowhere on the page": ""})
