"""`cacheguard warm` counts what is in Redis."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from cacheguard.operations.cli import commands

APP = """
import os
from cacheguard import CacheGuard

guard = CacheGuard(os.environ["WARMED_URL"])


@guard.cached("a:{x}")
def plain(x: int) -> int | None:
    return x or None


@guard.cached("b:{x}")
async def coroutine(x: int) -> int:
    return x


@guard.cached("c:{x}")
def odd(x: int) -> object:
    return x if x == 1 else guard  # only the first can be stored


@guard.cached("d:{x}", l2=False)
def here(x: int) -> int:
    return x
"""


@pytest.fixture
def warmed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, redis_url: str) -> Iterator[None]:
    (tmp_path / "app_to_warm.py").write_text(APP)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("WARMED_URL", redis_url)
    yield
    module = sys.modules.pop("app_to_warm", None)
    if module is not None:
        module.guard.close()


def warm(name: str, given: str) -> Result:
    return CliRunner().invoke(commands, ["warm", f"app_to_warm:{name}", "-"], input=given)


@pytest.mark.usefixtures("warmed")
@pytest.mark.parametrize("name", ["plain", "coroutine"])
def test_what_is_in_redis_is_counted(name: str) -> None:
    result = warm(name, '0\n{"x": 1}\n[2]\n')
    assert (result.stdout, result.exit_code) == ("3 of 3 calls are in Redis\n", 0)


@pytest.mark.usefixtures("warmed")
@pytest.mark.parametrize(
    ("name", "said", "why"), [("odd", "1 of 2", "cannot be stored"), ("here", "0 of 2", "here has l2=False")]
)
def test_what_is_not_in_redis_makes_the_command_fail(name: str, said: str, why: str) -> None:
    result = warm(name, "1\n2\n")
    assert result.exit_code == 1
    assert f"{said} calls are in Redis" in result.stdout
    assert why in result.output


@pytest.mark.usefixtures("warmed")
def test_without_redis_nothing_is_called_cached(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WARMED_URL", "redis://127.0.0.1:1/0")
    result = warm("plain", "1\n2\n")
    assert result.exit_code == 1
    assert "0 of 2 calls are in Redis" in result.stdout
    assert "Redis cannot be reached" in result.output
