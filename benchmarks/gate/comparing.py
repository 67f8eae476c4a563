"""Compares what was counted with the committed figures, in plain functions."""

from __future__ import annotations

from dataclasses import dataclass

KINDS = ("calls", "instructions")
UPDATE = "make bench-gate UPDATE=1"

Figures = dict[str, dict[str, int]]  # row → kind → count


@dataclass(frozen=True)
class Verdict:
    """Lines to print, and whether the gate is open."""

    lines: list[str]
    ok: bool


def compare(found: Figures, committed: Figures | None, version: str) -> Verdict:
    """A higher count fails, a lower one is worth a commit, a row that only one side has must be made known."""
    if committed is None:
        text = f"no figures for Python {version} yet, so nothing was compared; `{UPDATE}` writes them"
        return Verdict([*_table(found, {}), text], ok=True)
    worse, better = [], []
    for row, counts in found.items():
        for kind in KINDS:
            was, now = committed.get(row, {}).get(kind), counts[kind]
            if was is None:
                worse.append(f"{row}: {now} {kind}, and no figure is committed; `{UPDATE}` writes it")
            elif now > was:
                worse.append(f"{row}: {now} {kind}, {now - was} more than the {was} committed ({_percent(now, was)})")
            elif now < was:
                better.append(f"{row}: {now} {kind}, {was - now} fewer than the {was} committed ({_percent(now, was)})")
    gone = [row for row in committed if row not in found]
    worse += [f"{row}: committed, but not counted any more; `{UPDATE}` removes it" for row in gone]
    lines = _table(found, committed)
    lines += [f"HIGHER  {line}" for line in worse] + [f"lower   {line}" for line in better]
    if better:
        lines.append(f"commit the lower figures: {UPDATE}")
    if not (worse or better):
        lines.append(f"all counts are as committed for Python {version}")
    return Verdict(lines, ok=not worse)


def merged(book: dict[str, Figures], version: str, found: Figures) -> dict[str, Figures]:
    """The committed figures with those of *version* replaced, sorted by version."""
    both = {**book, version: found}
    return {each: both[each] for each in sorted(both, key=lambda text: tuple(map(int, text.split("."))))}


def _percent(now: int, was: int) -> str:
    return f"{(now - was) / was:+.1%}" if was else "from none"


def _table(found: Figures, committed: Figures) -> list[str]:
    width = max(map(len, found), default=0)
    lines = [f"{'':{width}}  {'calls':>8} {'was':>8}  {'instructions':>12} {'was':>8}"]
    for row, counts in found.items():
        was = [str(committed.get(row, {}).get(kind, "-")) for kind in KINDS]
        lines.append(f"{row:{width}}  {counts['calls']:8} {was[0]:>8}  {counts['instructions']:12} {was[1]:>8}")
    return lines
