"""Bar charts as SVG, without a plotting library."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape

_COLOURS = ("#2a6fdb", "#8db4f0", "#2e9e5b", "#94d3ae", "#888888", "#c9772d", "#e0b184", "#8e5bb5")
_BAR, _GAP, _LABEL, _WIDTH = 16, 10, 170, 520


def draw(title: str, groups: Mapping[str, Mapping[str, float]]) -> str:
    """A group of bars under each name, a bar for each engine, which has the same colour in all groups."""
    engines = list(dict.fromkeys(engine for group in groups.values() for engine in group))
    colours = {engine: _COLOURS[number % len(_COLOURS)] for number, engine in enumerate(engines)}
    longest = max((value for group in groups.values() for value in group.values()), default=1.0)
    rows: list[str] = []
    y = 40
    for name, group in groups.items():
        rows.append(f'<text x="8" y="{y + 12}" font-weight="bold">{escape(name)}</text>')
        y += _BAR + 4
        for engine, value in group.items():
            width = _WIDTH * value / longest
            rows.append(f'<text x="{_LABEL - 8}" y="{y + 12}" text-anchor="end">{escape(engine)}</text>')
            rows.append(f'<rect x="{_LABEL}" y="{y}" width="{width:.0f}" height="{_BAR}" fill="{colours[engine]}"/>')
            rows.append(f'<text x="{_LABEL + width + 6:.0f}" y="{y + 12}">{value:.0f}</text>')
            y += _BAR + 2
        y += _GAP
    body = "\n".join(rows)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_LABEL + _WIDTH + 70}" height="{y}" '
        f'font-family="sans-serif" font-size="12">\n'
        f'<text x="8" y="20" font-size="14">{escape(title)}</text>\n'
        f"{body}\n</svg>\n"
    )
