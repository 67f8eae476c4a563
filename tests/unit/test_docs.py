"""The pages say what the code is: options, errors, links and names; every check here is shown a planted mistake."""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Mapping
from importlib import import_module
from inspect import signature
from pathlib import Path
from typing import Any

import pytest

from cacheguard import CacheGuard, Load, Policy, Stats, errors
from cacheguard.errors import CacheGuardError
from cacheguard.policy import DEFAULTS
from tests.support.pages import (
    ROOT,
    Table,
    anchors,
    blocks,
    links,
    name_of,
    pages,
    program,
    prose,
    spans,
    table,
    tables,
)

PAGES = pages()
README = (ROOT / "README.md").read_text(encoding="utf-8")
each_page = pytest.mark.parametrize("page", PAGES, ids=name_of)

# What an application may import; everything else may move.
PUBLIC = {"cacheguard", "cacheguard.errors", "cacheguard.extending", "cacheguard.faults", "cacheguard.testing"}
# These two are about the inside.
ABOUT_THE_INSIDE = {"docs/architecture.md", "CONTRIBUTING.md"}
NOT_MODULES = {"cacheguard.asgi"}  # a logger
NOT_FILES = {"utils.py"}  # there is none, says the guide
# What a name before a dot stands for on the pages.
OBJECTS: dict[str, type] = {"guard": CacheGuard, "stats()": Stats, "current_load()": Load}
# Nothing raises it before there are locks.
NOT_RAISED_YET = {"LockLost"}


# Options


def in_words(value: object) -> object:
    """What a cell stands for: a literal between backticks, or a number, or a size in MiB."""
    text = str(value).strip().strip("`")
    size = re.fullmatch(r"(\d+) MiB", text)
    return int(size[1]) << 20 if size else ast.literal_eval(text)


def options_of(shown: Table) -> dict[str, object]:
    """Names and defaults that a table of options shows; one default may stand for all names of its row."""
    found: dict[str, object] = {}
    for names, defaults, *_ in shown.rows:
        every = [name.strip().strip("`") for name in names.split(",")]
        values = [defaults] if len(every) == 1 else re.findall(r"`[^`]*`|[^,`]*[^,` ]", defaults)
        values = values * len(every) if len(values) == 1 else values
        found |= {name: in_words(value) for name, value in zip(every, values, strict=True)}
    return found


def differences(shown: Mapping[str, object], real: Mapping[str, object]) -> list[str]:
    return [
        f"{name}: the page has {shown.get(name, 'nothing')!r}, the code {real.get(name, 'nothing')!r}"
        for name in sorted(shown.keys() | real.keys())
        if name not in shown or name not in real or shown[name] != real[name]
    ]


def test_the_readme_shows_every_option_of_a_guard_with_its_default() -> None:
    parameters = signature(CacheGuard.__init__).parameters.values()
    real = {each.name: each.default for each in parameters if each.name != "self"}
    (call,) = (span for span in spans(README) if span.startswith("CacheGuard(url, *"))
    named_only = set(re.findall(r"\w+", call)) - {"CacheGuard"}
    assert named_only <= real.keys()
    assert not differences(options_of(table(README, "option", "default")), without(real, named_only))


def test_the_readme_shows_every_field_of_a_policy_with_its_default() -> None:
    real = {name: getattr(DEFAULTS, name) for name in Policy.__dataclass_fields__}
    assert not differences(options_of(table(README, "field", "default")), real)


def test_a_wrong_or_missing_option_is_seen() -> None:
    (shown,) = tables('| option | default |\n| --- | --- |\n| `a`, `b` | 8 MiB, `"x"` |\n| `c` | `(1, 2)` |\n')
    assert options_of(shown) == {"a": 8 << 20, "b": "x", "c": (1, 2)}
    assert not differences(options_of(shown), {"a": 8 << 20, "b": "x", "c": (1, 2)})
    assert len(differences(options_of(shown), {"a": 8 << 20, "b": "y", "d": None})) == 3


def without(mapping: Mapping[str, object], names: set[str]) -> dict[str, object]:
    return {name: value for name, value in mapping.items() if name not in names}


# Errors


def errors_of(text: str) -> set[str]:
    return {name for cell, *_ in table(text, "error", "when").rows for name in re.findall(r"`(\w+)`", cell)}


def test_the_page_about_outages_shows_every_error() -> None:
    real = {name for name, each in vars(errors).items() if isinstance(each, type) and issubclass(each, CacheGuardError)}
    page = (ROOT / "docs" / "outages.md").read_text(encoding="utf-8")
    assert errors_of(page) == real - NOT_RAISED_YET


def test_an_error_without_an_entry_is_raised_nowhere() -> None:
    raised = {
        name
        for source in (ROOT / "cacheguard").rglob("*.py")
        for name in re.findall(r"raise (\w+)", source.read_text(encoding="utf-8"))
    }
    assert "Overloaded" in raised
    assert not raised & NOT_RAISED_YET


def test_a_missing_error_is_seen() -> None:
    assert errors_of("| error | when |\n| --- | --- |\n| `A`, `B` | `C` |\n| your own | always |\n") == {"A", "B"}


# Links


def dead_links(page: Path, text: str) -> list[str]:
    dead = []
    for target in links(text):
        if re.match(r"https?:|mailto:", target):
            continue
        path, _, anchor = target.partition("#")
        other = page.parent / path
        there = other.read_text(encoding="utf-8") if path and other.is_file() else text
        if (path and not other.exists()) or (anchor and anchor not in anchors(there)):
            dead.append(target)
    return dead


@each_page
def test_links_lead_somewhere(page: Path) -> None:
    assert not dead_links(page, page.read_text(encoding="utf-8"))


def test_a_dead_link_is_seen() -> None:
    text = """
# A `guard.get`: *one* [link](README.md), and 2+2
## Twice
## Twice
```
## Code
[code](nowhere.md)
```
`[code](nowhere.md)` [good](README.md#use-it) [good](#twice-1) [good](#a-guardget-one-link-and-22) [web](https://a.b/c.md)
[bad](#twice-2) [bad](#code) [bad](nowhere.md) [bad](README.md#nowhere)
"""
    assert dead_links(ROOT / "X.md", text) == ["#twice-2", "#code", "nowhere.md", "README.md#nowhere"]


# Names


def bound_in(package: Path) -> set[str]:
    """What a package's ``__init__`` binds, without running it: a framework takes half a second to import."""
    module = ast.parse((package / "__init__.py").read_text(encoding="utf-8"))
    names: set[str] = set()
    for node in ast.walk(module):
        match node:
            case ast.ImportFrom() | ast.Import():
                names |= {alias.asname or alias.name for alias in node.names}
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                names.add(name)
            case ast.Name(id=name, ctx=ast.Store()):
                names.add(name)
            case _:
                pass
    return names | {path.stem for path in package.glob("*.py")}


def exists(name: str) -> bool:
    """Whether *name* is a module of ours, or something in one."""
    first, *rest = name.split(".")
    front = ROOT / "integrations" / first
    if front.is_dir():
        return not rest or rest[0] in bound_in(front)
    for cut in range(len(rest), -1, -1):
        try:
            found: Any = import_module(".".join([first, *rest[:cut]]))
        except ModuleNotFoundError:
            continue
        for attribute in rest[cut:]:
            if not hasattr(found, attribute):
                return False
            found = getattr(found, attribute)
        return True
    return False


def is_public(module: str) -> bool:
    return module in PUBLIC or ("." not in module and module.startswith("cacheguard_"))


FILE_NAMES = {path.name for room in ("cacheguard", "integrations", "tests") for path in (ROOT / room).rglob("*.py")}


def unknown_names(page: Path, text: str) -> list[str]:
    """Names in the code of the prose that are ours by their look and that do not exist."""
    unknown = []
    for span in spans(text):
        name = re.match(r"cacheguard(?:_\w+)?(?:\.[A-Za-z_]\w*)+", span)
        if name and name[0] not in NOT_MODULES and not re.match(r"cacheguard\.[WE]\d", span) and not exists(name[0]):
            unknown.append(span)
        file = re.fullmatch(r"[\w./-]+(?:\.(?:py|lua|toml|md)|/)", span)
        if file and span not in NOT_FILES:
            rooms = (page.parent, ROOT, ROOT / "cacheguard")
            somewhere = "/" not in span and span in FILE_NAMES
            if not somewhere and not any((room / span).exists() for room in rooms):
                unknown.append(span)
        member = re.match(r"@?(guard|stats\(\)|current_load\(\))\.([a-z]\w*)", span)
        if member and not file and not is_member(OBJECTS[member[1]], member[2]):
            unknown.append(span)
        option = re.match(r"(CacheGuard|Policy)\((\w+)=", span)
        if option and option[2] not in signature({"CacheGuard": CacheGuard, "Policy": Policy}[option[1]]).parameters:
            unknown.append(span)
    unknown += [
        name
        for shown in tables(text)
        if shown.header[0] == "`stats()`"
        for row in shown.rows
        for name in re.findall(r"`(\w+)`", row[0])
        if not is_member(Stats, name)
    ]
    return unknown


def is_member(of: type, name: str) -> bool:
    return hasattr(of, name) or name in getattr(of, "__dataclass_fields__", {})


# docs/architecture.md has tables of rooms and names of its own, and tests of its own.
@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_names_of_ours_exist(page: Path) -> None:
    assert not unknown_names(page, page.read_text(encoding="utf-8"))


def test_an_unknown_name_is_seen() -> None:
    good = (
        "`cacheguard.testing.FaultProxy` `cacheguard_flask.CacheGuardFlask(x)` `benchmarks/ring.py` `guard.py` "
        "`tests/` "
        "`@guard.cached(…)` `stats().l2_up` `CacheGuard(audit=0.1)` `cacheguard.W001` `see/it` `redis://a/`\n"
        "| `stats()` | |\n| --- | --- |\n| `l2_up` | |\n"
    )
    assert not unknown_names(ROOT / "X.md", good)
    bad = [
        "cacheguard.nowhere",
        "cacheguard.testing.Nothing",
        "cacheguard_flask.Nothing()",
        "benchmarks/no.py",
        "nowhere.py",
        "nowhere/",
        "guard.nothing()",
        "stats().nothing",
        "CacheGuard(nothing=1)",
    ]
    assert unknown_names(ROOT / "X.md", " ".join(f"`{each}`" for each in bad)) == bad
    assert unknown_names(ROOT / "X.md", "| `stats()` | |\n| --- | --- |\n| `nothing` | |\n") == ["nothing"]


# Code


def wrong_code(text: str, *, inside: bool) -> list[str]:
    """What is wrong with the Python of a page: it must compile, and import what exists and may be imported."""
    wrong = [f"code without a fence: {line}" for line in prose(text).splitlines() if re.match(r" {4,}\S", line)]
    for block in blocks(text):
        if block.language != "python":
            continue
        try:
            tree = ast.parse(block.code)
        except SyntaxError as error:
            wrong.append(f"line {block.line}: {error.msg}")
            continue
        for module, name in imported(tree):
            if not inside and not is_public(module):
                wrong.append(f"{module} is not for users")
            if not exists(f"{module}.{name}" if name else module):
                wrong.append(f"there is no {module}.{name}")
    return wrong


def imported(tree: ast.Module) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    for node in ast.walk(tree):
        match node:
            case ast.ImportFrom(module=str(module), names=names):
                found += [(module, alias.name) for alias in names]
            case ast.Import(names=names):
                found += [(alias.name, "") for alias in names]
            case _:
                pass
    return [(module, name) for module, name in found if re.match(r"cacheguard\b|cacheguard_", module)]


@each_page
def test_code_compiles_and_imports_what_users_may_import(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert not wrong_code(text, inside=name_of(page) in ABOUT_THE_INSIDE)


@pytest.mark.parametrize("page", [page for page in PAGES if name_of(page) not in ABOUT_THE_INSIDE], ids=name_of)
def test_pages_for_users_name_no_inner_module(page: Path) -> None:
    assert not inner_names(page.read_text(encoding="utf-8"))


def inner_names(text: str) -> list[str]:
    """Dotted names in the prose that lead past what users may import."""
    named = (re.fullmatch(r"(cacheguard(?:\.[a-z_]\w*)+)(?:\..*|\(.*)?", span) for span in spans(text))
    return [name[1] for name in named if name and not is_public(name[1]) and name[1] not in NOT_MODULES]


PLANTED: list[tuple[str, str]] = [
    ("```python\nif:\n```\n", "line 2: "),
    ("1. x\n\n   ```python fragment\n   await nothing)\n   ```\n", "line 4: "),
    ("```python fragment\nfrom cacheguard import Nothing\n```\n", "there is no cacheguard.Nothing"),
    ("```python\nimport cacheguard.engine.reading\n```\n", "cacheguard.engine.reading is not for users"),
    ("```python\nfrom cacheguard_flask import Nothing\n```\n", "there is no cacheguard_flask.Nothing"),
    ("text\n\n    code()\n", "code without a fence:     code()"),
]


@pytest.mark.parametrize(("text", "told"), PLANTED)
def test_wrong_code_is_seen(text: str, told: str) -> None:
    (wrong,) = wrong_code(text, inside=False)
    assert wrong.startswith(told)


def test_right_code_passes_and_an_inner_name_is_seen() -> None:
    right = "```python\nfrom cacheguard import CacheGuard\nfrom cacheguard_flask import CacheGuardFlask\n```\n"
    assert not wrong_code(right, inside=False)
    assert not wrong_code("```python\nimport cacheguard.engine.reading\n```\n", inside=True)
    assert not inner_names("`cacheguard.errors.Overloaded` `cacheguard.testing` `cacheguard_flask.views`")
    assert inner_names("`cacheguard.engine.reading.Engine`") == ["cacheguard.engine.reading"]


def test_a_program_is_what_runs_on_its_own_lines() -> None:
    text = "a\n```python\nx = 1\n```\n```python fragment\nx = 2\n```\n\n- b\n\n  ```python\n  x += 1\n  ```\n"
    assert program(text) == "\n\nx = 1\n\n\n\n\n\n\n\n\nx += 1\n"
    assert not program("```console\n$ make\n```\n")


# Packages


def packages_of(text: str) -> dict[str, str]:
    rows = table(text, "package", "extra").rows
    return {package.strip("`"): extra.strip("`") for package, extra, *_ in rows}


def test_every_integration_is_in_the_table_with_an_extra_that_exists() -> None:
    shown = packages_of((ROOT / "integrations" / "README.md").read_text(encoding="utf-8"))
    assert shown.keys() == {marker.parent.name for marker in (ROOT / "integrations").glob("*/__init__.py")}
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert set(shown.values()) <= settings["project"]["optional-dependencies"].keys()


def test_every_page_of_the_docs_is_listed_in_the_readme() -> None:
    listed = {link.partition("#")[0] for row in table(README, "page", "for").rows for link in links(row[0])}
    assert not {name for page in PAGES if (name := name_of(page)).startswith("docs/")} - listed


def test_packages_are_read_from_the_table() -> None:
    assert packages_of("| package | extra | x |\n| --- | --- | --- |\n| `a_b` | `b` | |\n") == {"a_b": "b"}


# Words


def dead_terms(glossary: str, others: str) -> list[str]:
    """WriteTerms that the glossary explains and nobody uses, in singular or plural, hyphenated or not."""
    terms = {
        term for shown in tables(glossary) for row in shown.rows for term in re.findall(r"\*\*(.+?)\*\*", str(row))
    }
    used = plain(others)
    return sorted(term for term in terms if not re.search(rf"\b{re.escape(plain(term).rstrip('s'))}", used))


def plain(text: str) -> str:
    return re.sub(r"[\s_-]+", " ", text).lower()


def test_every_term_of_the_glossary_is_used_on_another_page() -> None:
    glossary = ROOT / "docs" / "glossary.md"
    others = [page.read_text(encoding="utf-8") for page in PAGES if page != glossary]
    assert not dead_terms(glossary.read_text(encoding="utf-8"), "\n".join(others))


def test_a_dead_term_is_seen() -> None:
    glossary = "| term | meaning |\n| --- | --- |\n| **a-b**, **fences** | a **dead word** |\n"
    assert dead_terms(glossary, "A_B. Fence!") == ["dead word"]


def test_the_checks_know_every_kind_of_page() -> None:
    names = {name_of(page) for page in PAGES}
    assert {"README.md", "docs/glossary.md", "examples/fastapi_shop/README.md", "integrations/README.md"} <= names
