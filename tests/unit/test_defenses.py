"""The table of the defences names files and names that exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import cacheguard
from cacheguard import defenses

PACKAGE = Path(cacheguard.__file__).parent
ROOT = Path(__file__).parents[2]
MODES = re.compile(r"^(\w+): .+$", re.MULTILINE)
WHERE = re.compile(r"^    (\S.*)\n        (\S+): (\w+) \| (\S+) \| (\S+)$", re.MULTILINE)
TABLE = defenses.__doc__ or ""


def names_in(path: Path) -> set[str]:
    """What a module defines."""
    names: set[str] = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign):
            names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names.add(node.target.id)
    return names


def test_the_table_has_every_failure_mode_and_every_line_is_read() -> None:
    assert MODES.findall(TABLE) == ["avalanche", "penetration", "breakdown", "inconsistency", "outage"]
    assert len(WHERE.findall(TABLE)) == TABLE.count(" | ") / 2 > 15


@pytest.mark.parametrize("line", WHERE.findall(TABLE), ids=lambda line: line[0])
def test_a_line_names_a_mechanism_a_test_and_a_page(line: tuple[str, ...]) -> None:
    _, file, name, test, page = line
    assert name in names_in(PACKAGE / file)
    assert (ROOT / test).is_file()
    assert (ROOT / page).is_file()


def test_every_file_of_the_room_is_in_the_table() -> None:
    rooms = {path.stem if path.suffix else path.name for path in (PACKAGE / "defenses").iterdir()} - {
        "__init__",
        "__pycache__",
    }
    assert {room for room in rooms if f"defenses/{room}" not in TABLE} == set()
