"""Lines by step as SVG: what the page of a run shows. Knows points and their names, nothing of training."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping

Points = list[tuple[float, float]]

_WIDTH, _HEIGHT, _LEFT, _BOTTOM = 620, 260, 64, 28
_COLOURS = ("#2563eb", "#dc2626", "#16a34a", "#9333ea", "#ea580c", "#0891b2", "#be185d", "#65a30d", "#4b5563", "#ca8a04")
_MOST_POINTS = 1500


def line_chart(title: str, series: Mapping[str, Points], *, smooth: bool = False, log_y: bool = False) -> str:
    """An SVG of lines; a smoothed line lies over its raw one where asked for."""
    lines: list[tuple[str, Points, float]] = []
    keys: list[str] = []
    for number, (name, raw) in enumerate((name, points) for name, points in series.items() if points):
        points = [(x, math.log10(y)) for x, y in raw if y > 0] if log_y else raw
        colour = _COLOURS[number % len(_COLOURS)]
        if smooth and len(points) > 100:
            lines += [(colour, _thinned(points), 0.25), (colour, _thinned(_smoothed(points)), 1.0)]
        else:
            lines.append((colour, _thinned(points), 1.0))
        keys.append(f'<b style="background:{colour}"></b>{html.escape(name)}')
    everything = [point for _, points, _ in lines for point in points]
    if not everything:
        return ""
    xs, ys = [x for x, _ in everything], [y for _, y in everything]
    (left, right), (low, high) = (min(xs), max(xs)), (min(ys), max(ys))
    span_x, span_y = right - left or 1.0, high - low or 1.0

    def place(point: tuple[float, float]) -> str:
        x = _LEFT + (point[0] - left) / span_x * (_WIDTH - _LEFT - 10)
        y = 10 + (high - point[1]) / span_y * (_HEIGHT - _BOTTOM - 20)
        return f"{x:.1f},{y:.1f}"

    drawn = "".join(
        f'<polyline fill="none" stroke="{colour}" stroke-width="1.6" opacity="{opacity}" points="{" ".join(map(place, points))}"/>'
        for colour, points, opacity in lines
    )
    ticks = "".join(_tick(low + part * span_y / 4, high, span_y, log_y=log_y) for part in range(5))
    at_end = f'<text x="{_WIDTH - 10}" y="{_HEIGHT - 8}" text-anchor="end">{right:,.0f}</text>'
    ends = f'<text x="{_LEFT}" y="{_HEIGHT - 8}">{left:,.0f}</text>{at_end}'
    svg = f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}" role="img" aria-label="{html.escape(title)}">{ticks}{drawn}{ends}</svg>'
    key = f'<div class="key">{"".join(keys)}</div>' if len(keys) > 1 else ""
    return f"<figure><figcaption>{html.escape(title)}</figcaption>{svg}{key}</figure>"


def _thinned(points: Points) -> Points:
    """At most so many points that a page stays small: means of neighbours."""
    size = math.ceil(len(points) / _MOST_POINTS)
    groups = [points[start : start + size] for start in range(0, len(points), size or 1)]
    return [(group[-1][0], sum(y for _, y in group) / len(group)) for group in groups]


def _smoothed(points: Points) -> Points:
    """An exponential mean over about a fiftieth of the curve."""
    factor = 1 - 1 / max(1.0, len(points) / 50)
    out: Points = []
    for x, y in points:
        out.append((x, y if not out else factor * out[-1][1] + (1 - factor) * y))
    return out


def _tick(value: float, high: float, span: float, *, log_y: bool) -> str:
    y = 10 + (high - value) / span * (_HEIGHT - _BOTTOM - 20)
    shown = f"{10**value if log_y else value:.3g}"
    return (
        f'<line class="axis" x1="{_LEFT}" x2="{_WIDTH - 10}" y1="{y:.1f}" y2="{y:.1f}"/>'
        f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{shown}</text>'
    )
