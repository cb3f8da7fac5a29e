"""Bar charts as SVG, without a plotting library."""

from __future__ import annotations

from html import escape

_COLOURS = ("#2a6fdb", "#8db4f0", "#2e9e5b", "#94d3ae", "#888888")
_BAR, _GAP, _LABEL, _WIDTH = 16, 10, 170, 520


def draw(title: str, results: dict[str, dict[str, dict[str, float]]]) -> str:
    """Decoded tokens per second: a group of bars for each weight type, a bar for each engine."""
    longest = max(figures["decode"] for engines in results.values() for figures in engines.values())
    rows: list[str] = []
    y = 40
    for kind, engines in results.items():
        rows.append(f'<text x="8" y="{y + 12}" font-weight="bold">{escape(kind)}</text>')
        y += _BAR + 4
        for colour, (engine, figures) in zip(_COLOURS * len(engines), engines.items(), strict=False):
            width = _WIDTH * figures["decode"] / longest
            rows.append(f'<text x="{_LABEL - 8}" y="{y + 12}" text-anchor="end">{escape(engine)}</text>')
            rows.append(f'<rect x="{_LABEL}" y="{y}" width="{width:.0f}" height="{_BAR}" fill="{colour}"/>')
            rows.append(f'<text x="{_LABEL + width + 6:.0f}" y="{y + 12}">{figures["decode"]:.0f}</text>')
            y += _BAR + 2
        y += _GAP
    body = "\n".join(rows)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_LABEL + _WIDTH + 70}" height="{y}" '
        f'font-family="sans-serif" font-size="12">\n'
        f'<text x="8" y="20" font-size="14">Decoded tokens per second, batch 1. {escape(title)}</text>\n'
        f"{body}\n</svg>\n"
    )
