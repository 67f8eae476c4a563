"""A bar for each contestant, as SVG, readable on light and on dark pages."""

from __future__ import annotations

from html import escape

from benchmarks.compare.figures import OURS, Measured, Row, number, pretty, pretty_number

WIDTH, LEFT, RIGHT, BAR, GAP, TOP = 760, 190, 90, 18, 8, 46
CLIP = 4.0  # bars end at so many times the largest of target, baseline and ours: one slow peer must not hide the rest
BLUE, GREY, MARK, TEXT = "#2f7ed8", "#9aa5b1", "#d9480f", "#6b7280"


def plot(row: Row, measured: Measured) -> str:
    """The row as SVG, shortest bar first; a dashed line is the target."""
    values: dict[str, float] = {}
    for name, figure in measured.figures.items():
        found = number(row, measured, name)
        values[name] = figure.p10 if found is None else found
    names = sorted(values, key=lambda name: values[name], reverse=row.aim == "faster")
    anchors = [values[name] for name in (OURS, row.baseline) if name in values]
    most = min(max(values.values()), CLIP * max(*anchors, row.target or 0.0, 0.0)) or 1.0
    scale = (WIDTH - LEFT - RIGHT) / max(most, row.target or 0.0)
    height = TOP + len(names) * (BAR + GAP) + 12
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}"',
        f'  font-family="system-ui, sans-serif" font-size="13" fill="{TEXT}" role="img">',
        f"<title>{escape(row.title)}</title>",
        f'<text x="8" y="20" font-size="15" font-weight="600">{escape(row.title)}</text>',
        f'<text x="8" y="37" font-size="11">{escape(legend(row))}</text>',
    ]
    for at, name in enumerate(names):
        y = TOP + at * (BAR + GAP)
        value = values[name]
        length = max(1.0, min(value, most) * scale)
        colour = BLUE if measured.figures[name].library == OURS else GREY
        label = pretty_number(row, value) if row.aim != "bytes" else pretty("bytes", value)
        out += [
            f'<text x="{LEFT - 8}" y="{y + 14}" text-anchor="end">{escape(name)}</text>',
            f'<rect x="{LEFT}" y="{y}" width="{length:.1f}" height="{BAR}" rx="2" fill="{colour}"/>',
            f'<text x="{LEFT + length + 6:.1f}" y="{y + 14}">{escape(label)}{" …" if value > most else ""}</text>',
        ]
    if row.target is not None:
        x = LEFT + row.target * scale
        out.append(
            f'<line x1="{x:.1f}" y1="{TOP - 4}" x2="{x:.1f}" y2="{height - 8}" stroke="{MARK}" stroke-dasharray="4 3"/>'
        )
    return "\n".join([*out, "</svg>", ""])


def legend(row: Row) -> str:
    """What the bars and the dashed line are."""
    aims = {
        "ratio": f"time by that of {row.baseline}; shorter is better",
        "faster": f"reads per second by those of {row.baseline}; longer is better",
        "seconds": "time of one call; shorter is better",
        "bytes": "bytes of an entry; shorter is better",
        "p99": "99th percentile of all reads; shorter is better",
    }
    text = aims[row.aim].replace("time by", "bytes by") if row.name == "redis-memory" else aims[row.aim]
    return text + ("" if row.target is None else f"; dashed: the target, {pretty_number(row, row.target)}")
