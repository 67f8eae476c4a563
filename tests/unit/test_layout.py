"""The house is in order: what is shipped, what it depends on, and what make offers."""

from __future__ import annotations

import ast
import re
import tomllib
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
TEXTS = [
    path
    for room in ("benchmarks", "docs", "examples", "integrations", "tests")
    for path in (ROOT / room).rglob("*.[mp][dy]")
]
SCRIPTS = sorted(path for path in (ROOT / "cacheguard").rglob("lua/*.lua") if path.stem != "prelude")
FRONTS = sorted((ROOT / "integrations").glob("**/*.py"))


@pytest.fixture(scope="module")
def settings() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def names(requirements: list[str]) -> set[str]:
    return {re.split(r"[\[<>=;~! ]", requirement, maxsplit=1)[0] for requirement in requirements}


def test_the_core_has_four_dependencies(settings: dict[str, Any]) -> None:
    assert names(settings["project"]["dependencies"]) == {"redis", "cachetools", "pybloom-live", "msgspec"}


def test_the_extra_all_is_every_extra_for_what_runs(settings: dict[str, Any]) -> None:
    extras = settings["project"]["optional-dependencies"]
    chosen = re.fullmatch(r"cacheguard\[(.*)\]", extras["all"][0])
    assert chosen is not None
    assert set(chosen[1].split(",")) == extras.keys() - {"all", "testing"}


def test_the_tools_of_development_are_named_once_and_are_not_published(settings: dict[str, Any]) -> None:
    assert "dev" not in settings["project"]["optional-dependencies"]
    tools = settings["dependency-groups"]["dev"]
    assert len(names(tools)) == len(tools)


def test_every_integration_is_shipped_and_shipped_packages_are_typed(settings: dict[str, Any]) -> None:
    shipped = set(settings["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"])
    present = {f"integrations/{marker.parent.name}" for marker in (ROOT / "integrations").glob("*/__init__.py")}
    assert shipped == present | {"cacheguard"}
    assert all((ROOT / package / "py.typed").exists() for package in shipped)


def test_the_linter_knows_every_integration(settings: dict[str, Any]) -> None:
    linter = settings["tool"]["importlinter"]
    fronts = {file.parent.name for file in (ROOT / "integrations").glob("*/__init__.py")}
    contracts = {contract["id"]: contract for contract in linter["contracts"] if "id" in contract}
    assert set(linter["root_packages"]) == fronts | {"cacheguard"}
    assert set(contracts["fronts-stay-outside"]["source_modules"]) == fronts
    assert set(contracts["fronts-without-circles"]["ancestors"]) == fronts


def test_pytest_warns_nobody_who_imports_a_shipped_package_before_it(settings: dict[str, Any]) -> None:
    for package in settings["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]:
        module = ast.parse((ROOT / package / "__init__.py").read_text(encoding="utf-8"))
        assert "PYTEST_DONT_REWRITE" in (ast.get_docstring(module) or ""), package


@pytest.mark.parametrize("file", FRONTS, ids=lambda file: str(file.relative_to(ROOT / "integrations")))
def test_an_integration_imports_nothing_from_inside(file: Path) -> None:
    allowed = {"cacheguard", "cacheguard.errors", "cacheguard.extending"}
    if file.parent.name == "cacheguard_pytest":
        allowed.add("cacheguard.testing")
    tree = ast.walk(ast.parse(file.read_text(encoding="utf-8")))
    imported = [
        name
        for node in tree
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in ([node.module or ""] if isinstance(node, ast.ImportFrom) else [each.name for each in node.names])
    ]
    assert {name for name in imported if name.split(".")[0] == "cacheguard"} <= allowed


def test_every_inner_room_says_that_it_is_not_for_import() -> None:
    mark = "Inner: not for import; use `cacheguard` or `cacheguard.extending`."
    rooms = sorted((ROOT / "cacheguard").glob("*/**/__init__.py"))
    unmarked = [
        room.parent.relative_to(ROOT / "cacheguard").as_posix()
        for room in rooms
        if mark not in (ast.get_docstring(ast.parse(room.read_text(encoding="utf-8"))) or "")
    ]
    assert unmarked == ["testing"]


def test_extending_says_of_each_of_its_names_what_it_is_for() -> None:
    from cacheguard import extending

    described = re.findall(r"^- (`\w+`(?:, `\w+`)*):", extending.__doc__ or "", re.MULTILINE)
    names = [name for names in described for name in re.findall(r"\w+", names)]
    assert sorted(names) == sorted(extending.__all__)
    assert all(hasattr(extending, name) for name in extending.__all__)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_a_script_says_in_its_header_what_goes_in_and_what_comes_out(script: Path) -> None:
    header = "".join(line for line in script.read_text(encoding="utf-8").splitlines(True) if line.startswith("--"))
    for word in ("KEYS", "ARGV", "reply"):
        assert re.search(word, header, re.IGNORECASE), f"{script.name} does not name its {word}"


def test_every_command_of_the_guide_exists() -> None:
    guide = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    assert set(re.findall(r"`make ([a-z-]+)", guide)) <= targets


def test_what_programs_in_strings_and_pages_import_exists() -> None:
    # No checker looks into them, and a move forgets them.
    named = {
        module: text.relative_to(ROOT)
        for text in [ROOT / "README.md", *TEXTS]
        for module in re.findall(
            r"^\s*(?:from|import) (cacheguard\w*(?:\.\w+)*)", text.read_text(encoding="utf-8"), re.MULTILINE
        )
    }
    assert [f"{where}: {module}" for module, where in named.items() if not is_there(module)] == []


def is_there(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:
        return False
