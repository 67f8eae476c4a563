"""The project's pages as data (code, tables, headings, links, names), and their examples as one program."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from textwrap import dedent

ROOT = Path(__file__).parents[2]

_FENCE = re.compile(r"^( *)(```+) *([^`\n]*)\n(.*?)^ *\2 *$", re.MULTILINE | re.DOTALL)
_SPAN = re.compile(r"(?<!`)(`+)(?!`)(.+?)(?<!`)\1(?!`)", re.DOTALL)
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#{1,6} +(.+?) *#* *$", re.MULTILINE)
_ROW = re.compile(r"^ *\|(.*)\| *$")


def pages() -> list[Path]:
    """Every page that is written for people, in the root and beside what it is about."""
    found = [ROOT / name for name in ("README.md", "CHANGELOG.md", "SECURITY.md", "CONTRIBUTING.md")]
    found += sorted((ROOT / "docs").glob("*.md"))
    found += sorted((ROOT / "examples").glob("*/README.md"))
    found += sorted((ROOT / "benchmarks").glob("*.md"))
    return [*found, ROOT / "integrations" / "README.md"]


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@dataclass(frozen=True, slots=True)
class Block:
    """What stands between two fences; *line* is the number of its first line on the page."""

    language: str
    words: tuple[str, ...]
    code: str
    line: int

    @property
    def runs(self) -> bool:
        return self.language == "python" and "fragment" not in self.words


def blocks(text: str) -> list[Block]:
    found = []
    for fence in _FENCE.finditer(text):
        language, *words = fence[3].split() or [""]
        found.append(Block(language, tuple(words), dedent(fence[4]), text.count("\n", 0, fence.start(4)) + 1))
    return found


def program(text: str) -> str:
    """The Python blocks of a page that are no fragments, on their own lines, so that a traceback shows the page's."""
    lines: list[str] = []
    for block in blocks(text):
        if block.runs:
            lines += [""] * (block.line - 1 - len(lines))
            lines += block.code.splitlines()
    return "\n".join(lines) + "\n" if lines else ""


def prose(text: str) -> str:
    """The page without its fenced code, line by line where it was."""
    return _FENCE.sub(lambda fence: "\n" * fence[0].count("\n"), text)


def spans(text: str) -> list[str]:
    """What stands between backticks in the prose."""
    return [span[2].strip() for span in _SPAN.finditer(prose(text))]


def links(text: str) -> list[str]:
    return _LINK.findall(_SPAN.sub("code", prose(text)))


def anchors(text: str) -> set[str]:
    """The names that GitHub gives to the headings of a page."""
    seen: Counter[str] = Counter()
    names = set()
    for heading in _HEADING.findall(prose(text)):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        name = re.sub(r"[^\w\- ]", "", plain.strip().lower()).replace(" ", "-")
        names.add(f"{name}-{seen[name]}" if seen[name] else name)
        seen[name] += 1
    return names


@dataclass(frozen=True, slots=True)
class Table:
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def tables(text: str) -> Iterator[Table]:
    rows: list[tuple[str, ...]] = []
    for line in [*prose(text).splitlines(), ""]:
        row = _ROW.match(line)
        if row is not None:
            rows.append(tuple(cell.strip() for cell in re.split(r"(?<!\\)\|", row[1])))
        elif rows:
            yield Table(rows[0], tuple(rows[2:]))  # the second row is the line below the header
            rows = []


def table(text: str, *header: str) -> Table:
    """The one table whose header begins so."""
    (found,) = [each for each in tables(text) if each.header[: len(header)] == header]
    return found


def run(page: Path, replacing: Mapping[str, str] | None = None) -> None:
    """Run a page's examples as one program; what it cannot know, such as an address, may be replaced in it."""
    text = program(page.read_text(encoding="utf-8"))
    for shown, real in (replacing or {}).items():
        if shown not in text:
            raise LookupError(f"{name_of(page)} does not show {shown!r}")
        text = text.replace(shown, real)
    exec(compile(text, str(page), "exec", dont_inherit=True), {"__name__": f"page_{page.stem}"})
