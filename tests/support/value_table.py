"""The table of docs/values.md, made from the matrix of values."""

from __future__ import annotations

from pathlib import Path

from tests.support.value_cases import CASES

PAGE = Path(__file__).parents[2] / "docs" / "values.md"
BEGIN, END = "<!-- the matrix begins -->", "<!-- the matrix ends -->"


def table() -> str:
    """The lines between the marks."""
    families = list(dict.fromkeys(case.family for case in CASES))
    kept = [case for case in CASES if case.path is None]
    lines = [
        (
            f"{len(CASES)} pairs of a value and an annotation are sent through two processes by "
            f"`tests/behaviour/test_value_matrix.py`: {len(kept)} come back as themselves, {len(CASES) - len(kept)} "
            "are refused."
        ),
        "",
        "| family | pairs | come back | refused |",
        "| --- | ---: | ---: | ---: |",
    ]
    for family in families:
        mine = [case for case in CASES if case.family == family]
        back = sum(case.path is None for case in mine)
        lines.append(f"| {family} | {len(mine)} | {back} | {len(mine) - back} |")
    lines += ["", "What is refused, and why:", "", "| what | where | why |", "| --- | --- | --- |"]
    for case in CASES:
        if case.path is not None:
            where = f"`{case.path}`" if case.path else "the value"
            lines.append(f"| {case.family}: {case.shown.replace('|', '&#124;')} | {where} | {case.reason} |")
    return "\n".join(lines)


def page_with_table(page: str) -> str:
    """The page with the table as it must be."""
    before, _, rest = page.partition(BEGIN)
    return f"{before}{BEGIN}\n\n{table()}\n\n{END}{rest.partition(END)[2]}"


if __name__ == "__main__":
    PAGE.write_text(page_with_table(PAGE.read_text()))
