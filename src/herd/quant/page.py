"""The report of a quantised model as one HTML page without anything from outside: figures, drift by layer, error of every matrix."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

_STYLE = """
:root{color-scheme:light dark}body{font:15px/1.5 system-ui,sans-serif;max-width:1100px;margin:2rem auto;padding:0 1rem}
h1{font-size:1.5rem}h2{font-size:1.2rem;margin-top:2.2rem}table{border-collapse:collapse}td,th{padding:.2rem .8rem .2rem 0;text-align:left}
td+td{font-variant-numeric:tabular-nums}svg{background:color-mix(in srgb,currentColor 4%,transparent);border-radius:6px;max-width:100%}
text{fill:currentColor;font-size:11px}rect{fill:#2563eb}
"""
_WIDTH, _LEFT, _ROW = 900, 260, 15


def write_page(target: Path, *, title: str, facts: Mapping[str, str], drift: Sequence[float], record: Mapping[str, Any] | None) -> None:
    """Write the page. `record` is the `quantize.json` of the model, where it has one."""
    parts = [f"<h1>{html.escape(title)}</h1>", _table(facts)]
    layers = {f"layer {layer}": value for layer, value in enumerate(drift)}
    parts.append(_bars("Drift of the residual stream after each layer, relative", layers))
    if record is not None:
        matrices = record.get("matrices", [])
        errors = {f"{_short(row['name'])} ({row['scheme']})": float(row["relative_error"]) for row in matrices}
        parts.append(_bars("Relative error of each matrix", errors))
        sensitivity = {_short(name): float(value) for name, value in (record.get("sensitivity") or {}).items()}
        if sensitivity:
            parts.append(_bars("Sensitivity: divergence (KL) when this matrix alone has 4 bits", sensitivity))
    page = f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{html.escape(title)}</title>'
    body = "\n".join(parts)
    target.write_text(f"{page}<style>{_STYLE}</style><body>{body}</body></html>\n", encoding="utf-8")


def _short(name: str) -> str:
    return name.removeprefix("model.layers.")


def _table(facts: Mapping[str, str]) -> str:
    rows = "".join(f"<tr><td>{html.escape(name)}</td><td>{html.escape(value)}</td></tr>" for name, value in facts.items())
    return f"<table>{rows}</table>"


def _bars(title: str, values: Mapping[str, float]) -> str:
    """One bar a row; the longest reaches the edge."""
    if not values:
        return ""
    most = max(values.values()) or 1.0
    rows = []
    for row, (name, value) in enumerate(values.items()):
        top, width = 6 + row * _ROW, max(value, 0.0) / most * (_WIDTH - _LEFT - 80)
        rows.append(f'<text x="{_LEFT - 8}" y="{top + 10}" text-anchor="end">{html.escape(name)}</text>')
        rows.append(f'<rect x="{_LEFT}" y="{top + 1}" width="{width:.1f}" height="{_ROW - 4}"/>')
        rows.append(f'<text x="{_LEFT + width + 6:.1f}" y="{top + 10}">{value:.3g}</text>')
    height = 12 + len(values) * _ROW
    return f'<h2>{html.escape(title)}</h2><svg viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}">{"".join(rows)}</svg>'
