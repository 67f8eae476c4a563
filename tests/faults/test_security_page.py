"""What docs/security.md shows is what happens, against a server that speaks TLS."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from click.testing import CliRunner

from cacheguard.operations.cli import commands
from tests.support.tls import Authority, TlsServer, binary_with_tls

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "security.md"


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)


def test_the_examples_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    binary = binary_with_tls()
    if binary is None:
        pytest.skip("no redis-server here was built with TLS")
    authority = Authority(tmp_path / "authority")
    server = TlsServer(binary, tmp_path / "server", authority, authority.issue("cache", "localhost")).start()
    try:
        scope: dict[str, object] = {"__name__": "security"}
        assert len(blocks("python")) >= 6
        for block in blocks("python"):
            here = block.replace("cache.example:6380", f"localhost:{server.tls_port}")
            here = here.replace("/etc/ssl/cache-ca.pem", str(authority.file))
            exec(compile(here, str(PAGE), "exec", dont_inherit=True), scope)
        assert server.entries()
    finally:
        server.stop()


def test_the_commands_print_what_is_shown() -> None:
    (shown,) = blocks("console")
    command, *printed = shown.splitlines()
    words = shlex.split(command.removeprefix("$ python -m cacheguard "))
    assert CliRunner().invoke(commands, words).output.splitlines() == printed


def test_every_option_of_a_url_is_on_the_page() -> None:
    from cacheguard.servers.urls.options import options_of

    named = set(re.findall(r"`([a-z_]+)(?:=[a-z]+)?`", PAGE.read_text(encoding="utf-8")))
    with pytest.raises(ValueError, match="there are") as error:
        options_of("x=1", tls=True, sentinel=False)
    known = set(str(error.value).rpartition("there are ")[2].split(", "))
    assert known <= named


@pytest.mark.parametrize("page", [PAGE, ROOT / "SECURITY.md"])
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target
