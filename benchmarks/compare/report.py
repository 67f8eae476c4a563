"""The page: what `make bench` writes stands between two comments, the rest of the page is kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.compare.apart import ROOT
from benchmarks.compare.figures import (
    OURS,
    Figure,
    Measured,
    Row,
    number,
    pretty,
    pretty_number,
    pretty_seconds,
    reached,
)
from benchmarks.compare.machine import ENOUGH, busy

PAGE = ROOT / "docs" / "benchmarks.md"

VERDICTS = {True: "yes", False: "**no**", None: "–"}


def places(name: str, *, whole: bool) -> tuple[Path, Path]:
    """The folder of JSON and plots, and the page. A part of a run stays below the folder build, its page as *name*."""
    out = ROOT / "docs" / "benchmarks" if whole else ROOT / "build" / "bench"
    out.mkdir(parents=True, exist_ok=True)
    return out, PAGE if whole else out / name


def write_page(page: Path, name: str, text: str) -> None:
    """Write the page as it is, with *text* in its block *name*."""
    page.write_text(replaced(PAGE.read_text(encoding="utf-8"), name, text), encoding="utf-8")


def replaced(page: str, name: str, text: str) -> str:
    """*page* with *text* in its block *name*.

    Raises:
        ValueError: the page has no such block, or two.
    """
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    if page.count(begin) != 1 or page.count(end) != 1 or page.index(begin) > page.index(end):
        raise ValueError(f"the page needs {begin!r} and then {end!r}, once each")
    head, rest = page.split(begin)
    return f"{head}{begin}\n\n{text.strip()}\n\n{end}{rest.split(end)[1]}"


def markdown(machine: dict[str, Any], options: dict[str, Any], rows: list[tuple[Row, Measured]]) -> str:
    """All that a run has to say."""
    parts = [*_headline(machine, options), _targets(rows)]
    for section in dict.fromkeys(row.section for row, _ in rows):
        parts.append(f"### {section}")
        parts += [_row(row, measured) for row, measured in rows if row.section == section]
    parts += [_missing(machine), _versions(machine)]
    return "\n\n".join(part for part in parts if part)


def problems(rows: list[tuple[Row, Measured]], *, every_row: bool) -> list[str]:
    """Why the run cannot count as a comparison."""
    found = []
    for row, measured in rows:
        missing = [name for name in (OURS, row.baseline) if name is not None and name not in measured.figures]
        if missing:
            why = measured.absent.get("all") or measured.absent.get(missing[0], "not measured")
            found.append(f"{row.name}, {missing[0]}: {why}")
    peers = {figure.library for _, measured in rows for figure in measured.figures.values()} - {OURS, "python"}
    if every_row and len(peers) < ENOUGH:
        found.append(f"{len(peers)} peers ({', '.join(sorted(peers))}); at least {ENOUGH} make a comparison")
    return found


def lines(row: Row, measured: Measured) -> list[str]:
    """The row for a terminal."""
    out = [f"{row.title}  [{row.name}, {measured.took:.0f} s]"]
    width = max(map(len, measured.figures), default=0)
    for name, figure in measured.figures.items():
        found = pretty_number(row, number(row, measured, name))
        marks = f"{pretty(figure.unit, figure.p10):>9} {pretty(figure.unit, figure.p50):>9}"
        out.append(f"  {name:{width}}  {marks}  ±{figure.spread:4.0%} {found:>9}  {_extra(figure)}".rstrip())
    out += [f"  {name}: absent, {why}" for name, why in measured.absent.items()]
    if row.target is not None:
        found, word = number(row, measured, OURS), {True: "reached", False: "MISSED", None: "not measured"}
        verdict = word[reached(row, measured)]
        out.append(f"  target {_bound(row)}: {pretty_number(row, found)}, {verdict}")
    return [*out, ""]


def _headline(machine: dict[str, Any], options: dict[str, Any]) -> list[str]:
    parts = []
    if busy(machine):
        parts.append(
            f"> **These figures are from a busy machine**: its load was {machine['load']} on {machine['cores']} cores "
            "before the run began. They show what is measured and how the page looks. Do not quote them."
        )
    if not options.get("whole", True):
        parts.append("> This is a part of a run: fewer rounds or fewer rows than `make bench` has.")
    pinned = "client and server share one core" if options.get("pinned") else "client and server use any core"
    parts.append(
        f"Measured on {machine['date']}: {machine['python']}, {machine['server']}, {machine['system']}, "
        f"{machine['processor']}, {machine['cores']} cores. In all rows but those with many readers, {pinned}. "
        f"The run took {options['took'] / 60:.0f} minutes."
    )
    return parts


def _targets(rows: list[tuple[Row, Measured]]) -> str:
    out = [
        "### Targets",
        "",
        "| row | target | measured | reached | best of the others |",
        "| --- | --- | --- | --- | --- |",
    ]
    for row, measured in rows:
        found = pretty_number(row, number(row, measured, OURS))
        cells = [row.title, _bound(row), found, VERDICTS[reached(row, measured)], _best(row, measured)]
        out.append(f"| {' | '.join(cells)} |")
    return "\n".join(out)


def _bound(row: Row) -> str:
    if row.target is None:
        return "–"
    bound = f"{'≥' if row.aim == 'faster' else '≤'} {pretty_number(row, row.target)}"
    return bound if row.loads is None else f"{bound}, {row.loads} load"


def _best(row: Row, measured: Measured) -> str:
    """The best of the libraries that are neither ours nor the baseline nor a bare socket."""
    found = {
        name: value
        for name, figure in measured.figures.items()
        if figure.library not in {OURS, "python"}
        and name not in {row.baseline, "redis-py"}
        and (value := number(row, measured, name)) is not None
    }
    if not found:
        return "–"
    best = (max if row.aim == "faster" else min)(found, key=lambda name: found[name])
    loads = measured.figures[best].extra.get("most_loads")
    return f"{best} {pretty_number(row, found[best])}" + (f", {loads} load{'s' * (loads != 1)}" if loads else "")


def _row(row: Row, measured: Measured) -> str:
    out = [f"#### {row.title}", "", f"![{row.title}](benchmarks/{row.name}.svg)", ""]
    crowd = row.aim == "p99"
    ratio = {"ratio": f"by {row.baseline}", "faster": f"× {row.baseline}", "p99": "p99 of all reads"}.get(row.aim, "")
    unit = "p99 of a round: " if crowd else ""
    head = ["", "call", f"{unit}p10", "median", "spread", *([ratio] if ratio else []), "beside"]
    out += [f"| {' | '.join(head)} |", f"| {' | '.join('---' for _ in head)} |"]
    for name, figure in measured.figures.items():
        shown = f"**{name}**" if figure.library == OURS else name
        marks = [pretty(figure.unit, figure.p10), pretty(figure.unit, figure.p50), f"{figure.spread:.0%}"]
        compared = [pretty_number(row, number(row, measured, name))] if ratio else []
        out.append(f"| {' | '.join([shown, figure.how, *marks, *compared, _extra(figure)])} |")
    out += [f"| {name} | absent: {why} {'| ' * (len(head) - 2)}|" for name, why in measured.absent.items()]
    operations = sum(figure.operations for figure in measured.figures.values())
    rounds = max((figure.rounds for figure in measured.figures.values()), default=0)
    out += ["", f"{operations:,} operations in {rounds} rounds each."]
    return "\n".join(out + measured.notes)


def _extra(figure: Figure) -> str:
    """What only some rows have, in words."""
    extra, words = figure.extra, []
    if "commands" in extra:
        words.append(f"{extra['commands']:g} commands each")
    if "keys" in extra:
        words.append(f"{extra['keys']:g} keys each")
    if "loads" in extra:
        least, most = min(extra["loads"]), max(extra["loads"])
        words.append(f"loads {least}" if least == most else f"loads {least} to {most}")
        words.append(f"median read {pretty_seconds(extra['p50_read'])}")
        words.append(f"p99 from the agreed moment {pretty_seconds(extra['p99_scheduled'])}")
    return ", ".join(words)


def _missing(machine: dict[str, Any]) -> str:
    notes = [f"- {peer}: {why}" for peer, why in machine["not_installed"].items()]
    if not notes:
        return "Every peer could be installed."
    return "\n".join(["These peers could not be installed:", "", *notes])


def _versions(machine: dict[str, Any]) -> str:
    out = ["### Versions", "", "| distribution | version |", "| --- | --- |"]
    out += [f"| {name} | {each or 'absent'} |" for name, each in machine["versions"].items()]
    return "\n".join(out)
