"""The house is as docs/architecture.md says: rooms, sizes, no circles, and one file for each question of a newcomer."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path

import grimp
import pytest

ROOT = Path(__file__).parents[2]
CORE = ROOT / "cacheguard"
FRONTS = sorted(each.parent for each in (ROOT / "integrations").glob("*/__init__.py"))
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")

MOST_IN_THE_ROOT = 14
LONGEST = 600
LONGEST_FRONT_DOOR = 900  # guard.py: signatures and docstrings of two colours

# Who waits, and who reaches Redis. Everything else is written once, for threads and for event loops.
MAY_WAIT = {"runtime", "client", "servers", "process", "testing", "operations"}
WAITING = {"asyncio", "threading", "_thread", "concurrent", "multiprocessing", "redis"}


def sources(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.py"))


def imported(path: Path) -> set[str]:
    """The outermost names of all that *path* imports from elsewhere, in functions, too."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(each.name.split(".")[0] for each in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module is not None:
            names.add(node.module.split(".")[0])
    return names


def circles(imports: Mapping[str, set[str]]) -> list[set[str]]:
    """Groups of modules each of which imports, over others of its group, itself (Tarjan, 1972)."""
    order: dict[str, int] = {}
    lowest: dict[str, int] = {}
    stack: list[str] = []
    found: list[set[str]] = []

    def visit(module: str) -> None:
        order[module] = lowest[module] = len(order)
        stack.append(module)
        for other in sorted(imports.get(module, ())):
            if other not in order:
                visit(other)
                lowest[module] = min(lowest[module], lowest[other])
            elif other in stack:
                lowest[module] = min(lowest[module], order[other])
        if lowest[module] == order[module]:
            at = stack.index(module)
            group = set(stack[at:])
            del stack[at:]
            if len(group) > 1:
                found.append(group)

    for module in sorted(imports):
        if module not in order:
            visit(module)
    return found


def test_a_circle_of_files_is_seen() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == [{"a", "b", "c"}]


@pytest.fixture(scope="module")
def imports() -> dict[str, set[str]]:
    sys.path[:0] = [str(ROOT), str(ROOT / "integrations")]
    try:
        graph = grimp.build_graph("cacheguard", *(front.name for front in FRONTS), cache_dir=None)
    finally:
        del sys.path[:2]
    return {module: set(graph.find_modules_directly_imported_by(module)) for module in graph.modules}


def test_no_files_import_one_another_in_a_circle(imports: dict[str, set[str]]) -> None:
    assert circles(imports) == []


def test_every_room_has_a_layer() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    layers = next(each for each in settings["tool"]["importlinter"]["contracts"] if each["type"] == "layers")
    named = {name.strip() for layer in layers["layers"] for name in re.split("[:|]", layer)}
    assert layers["exhaustive"] is True
    assert named == {
        each.stem for each in CORE.iterdir() if each.suffix == ".py" or (each / "__init__.py").exists()
    } - {"__init__"}


def test_the_root_holds_the_front_and_the_vocabulary_only() -> None:
    assert len(list(CORE.glob("*.py"))) <= MOST_IN_THE_ROOT


def test_a_file_can_be_read_in_one_sitting() -> None:
    files = [*sources(CORE), *sources(ROOT / "integrations")]
    lines = {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8").count("\n") for path in files}
    assert lines.pop("cacheguard/guard.py") <= LONGEST_FRONT_DOOR
    assert {path: count for path, count in lines.items() if count > LONGEST} == {}


def test_only_the_rooms_that_wait_know_threads_event_loops_or_the_client() -> None:
    strangers = {
        (name, *sorted(found))
        for path in sources(CORE)
        if (name := path.relative_to(CORE).as_posix()).split("/")[0] not in MAY_WAIT
        and (found := imported(path) & WAITING)
    }
    assert strangers == set()


# What docs/architecture.md says


def section(title: str) -> str:
    found = re.search(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL)
    assert found is not None, title
    return found[1]


def rows(text: str) -> Iterator[list[str]]:
    """The cells of a table, without its head."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    for line in lines[2:]:
        yield [cell.strip() for cell in line.strip("|").split(" | ")]


def test_the_table_of_rooms_is_the_list_of_folders() -> None:
    named = {name for row in rows(section("Rooms")) for name in re.findall(r"`([a-z_]+)/`", row[0])}
    assert named == {each.parent.name for each in CORE.glob("*/__init__.py")}


def test_the_table_of_the_root_is_the_list_of_its_files() -> None:
    named = {name for row in rows(section("The root")) for name in re.findall(r"`(\w+\.py)`", row[0])}
    assert named == {each.name for each in CORE.glob("*.py")}


def defined(path: Path) -> set[str]:
    """The names that a file defines: functions, classes, what they hold, constants; of a script, its text."""
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".py":
        return set(re.findall(r"\w+", text))
    names: set[str] = set()

    def collect(nodes: list[ast.stmt], before: str) -> None:
        for node in nodes:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                names.add(before + node.name)
                if isinstance(node, ast.ClassDef):
                    collect(node.body, f"{before}{node.name}.")
            elif isinstance(node, ast.Assign | ast.AnnAssign):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                names.update(before + target.id for target in targets if isinstance(target, ast.Name))

    collect(ast.parse(text).body, "")
    return names


QUESTIONS = list(rows(section("Twenty questions")))


def test_there_are_twenty_questions() -> None:
    assert len(QUESTIONS) >= 20
    assert all(len(row) == 3 for row in QUESTIONS)


@pytest.mark.parametrize("row", QUESTIONS, ids=lambda row: row[0][:60])
def test_each_question_has_one_file_and_one_name(row: list[str]) -> None:
    _, file, name = row
    (path,) = re.findall(r"`([\w/.]+)`", file)
    (wanted,) = re.findall(r"`([\w.]+)`", name)
    assert wanted in defined(CORE / path)


STEPS = re.findall(
    r"^ *([A-Za-z_.]+(?: / [a-z_]+)?) {2,}([\w/]+\.(?:py|lua)) ",
    section("How a read travels") + section("How an invalidation travels"),
    re.MULTILINE,
)


def test_the_ways_are_drawn() -> None:
    assert len(STEPS) >= 12


@pytest.mark.parametrize(("step", "file"), STEPS, ids=lambda text: text)
def test_a_step_of_the_drawn_ways_exists_under_its_name(step: str, file: str) -> None:
    first, _, twin = step.partition(" / ")
    wanted = {first, *([f"{first.rpartition('.')[0]}.{twin}"] if twin else ())}
    assert wanted <= defined(CORE / file) | {"lua"}
