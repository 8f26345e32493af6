"""The report as one page that needs nothing else: no script, no font, no picture from elsewhere. Plots are inline SVG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from herd.data.curate.report import CurateReport

_STYLE = """
:root { color-scheme: light dark; --ink: #1d2733; --paper: #fff; --kept: #2f7d5b; --gone: #c9683c; --line: #d5dbe1; --soft: #f3f5f7; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e4e9ee; --paper: #14191f; --kept: #58b98c; --gone: #e08c62; --line: #37414c; --soft: #1d242c; }
}
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 60rem; margin: 2rem auto;
  padding: 0 1rem; }
h1, h2, h3 { line-height: 1.2; }
table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; padding: .25rem .6rem; border-bottom: 1px solid var(--line); vertical-align: top; }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; }
details { margin: .4rem 0; }
blockquote { margin: .3rem 0; padding: .4rem .8rem; background: var(--soft); white-space: pre-wrap; overflow-wrap: anywhere; }
svg text { fill: var(--ink); font: 13px system-ui, sans-serif; }
.kept { fill: var(--kept); }
.gone { fill: var(--gone); }
"""


def megabytes(size: int | float) -> str:
    """Bytes as people read them."""
    for unit, scale in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= scale:
            return f"{size / scale:,.1f} {unit}"
    return f"{size:,.0f} B"


def _bars(rows: Sequence[tuple[str, float, float, str]]) -> str:
    """Horizontal bars: a label, what stays, what goes, and a caption. Both parts share the scale of the largest bar."""
    most = max((kept + gone for _, kept, gone, _ in rows), default=0) or 1
    height, left, width = 24, 190, 460
    parts = [f'<svg viewBox="0 0 840 {len(rows) * height + 4}" width="100%" role="img">']
    for number, (label, kept, gone, caption) in enumerate(rows):
        y = number * height
        first, second = width * kept / most, width * gone / most
        parts.append(
            f'<text x="{left - 8}" y="{y + 16}" text-anchor="end">{escape(label)}</text>'
            f'<rect class="kept" x="{left}" y="{y + 4}" width="{first:.1f}" height="{height - 8}"/>'
            f'<rect class="gone" x="{left + first:.1f}" y="{y + 4}" width="{second:.1f}" height="{height - 8}"/>'
            f'<text x="{left + first + second + 8:.1f}" y="{y + 16}">{escape(caption)}</text>'
        )
    return "".join(parts) + "</svg>"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    def cells(tag: str, row: Sequence[str]) -> str:
        return "".join(f"<{tag}{' class=n' if number else ''}>{escape(cell)}</{tag}>" for number, cell in enumerate(row))

    body = "".join(f"<tr>{cells('td', row)}</tr>" for row in rows)
    return f"<table><tr>{cells('th', header)}</tr>{body}</table>"


def _stage_rows(stages: Sequence[Mapping[str, Any]]) -> list[tuple[str, float, float, str]]:
    rows: list[tuple[str, float, float, str]] = []
    for stage in stages:
        gone = sum(size for _, size in stage["dropped"].values())
        documents = sum(count for count, _ in stage["dropped"].values())
        share = gone / stage["bytes_in"] if stage["bytes_in"] else 0
        rows.append((stage["stage"], float(stage["bytes_in"] - gone), float(gone), f"-{documents:,} documents, {share:.2%}"))
    return rows


def _stage_section(stage: Mapping[str, Any]) -> str:
    parts = [
        f"<h3>{escape(stage['stage'])}</h3>",
        f"<p>{stage['seen']:,} documents seen, {stage['kept']:,} kept, {stage['changed']:,} changed.</p>",
    ]
    if stage["dropped"]:
        rows = sorted(stage["dropped"].items(), key=lambda item: -item[1][1])
        parts.append(_table(("reason", "documents", "text"), [(why, f"{count:,}", megabytes(size)) for why, (count, size) in rows]))
    if stage["notes"]:
        rows = sorted(stage["notes"].items(), key=lambda item: (-item[1], item[0]))[:24]
        parts.append(
            f"<details><summary>counted</summary>{_table(('what', 'times'), [(what, f'{count:,}') for what, count in rows])}</details>"
        )
    for reason, samples in stage["samples"].items():
        quotes = "".join(
            f"<p>{escape(' · '.join(filter(None, (sample['id'], sample['detail']))))}</p><blockquote>{escape(sample['text'])}</blockquote>"
            for sample in samples
        )
        parts.append(f"<details><summary>samples: {escape(reason)}</summary>{quotes}</details>")
    return "".join(parts)


def _census(title: str, before: Mapping[str, list[int]], after: Mapping[str, list[int]]) -> str:
    """Bars of a table's keys: what came out of what went in. A key that a stage gave (a language) may hold more after than before."""
    keys = sorted({*before, *after}, key=lambda key: -max(before.get(key, [0, 0])[1], after.get(key, [0, 0])[1]))[:30]
    rows = [
        (key, float(after.get(key, [0, 0])[1]), max(0.0, float(before.get(key, [0, 0])[1] - after.get(key, [0, 0])[1])),
         f"{after.get(key, [0, 0])[0]:,} documents, {megabytes(after.get(key, [0, 0])[1])}")
        for key in keys
    ]  # fmt: skip
    return f"<h2>{escape(title)}</h2>{_bars(rows)}"


def _lengths(before: Mapping[str, list[int]], after: Mapping[str, list[int]]) -> str:
    bits = sorted(map(int, before))
    rows: list[tuple[str, float, float, str]] = []
    for bit in range(bits[0], bits[-1] + 1) if bits else ():
        were, are = before.get(f"{bit:02d}", [0, 0])[0], after.get(f"{bit:02d}", [0, 0])[0]
        rows.append((f"up to {megabytes(2**bit)}", float(are), max(0.0, float(were - are)), f"{are:,} of {were:,} documents"))
    return f"<h2>Documents by length</h2>{_bars(rows)}"


def render_page(report: CurateReport) -> str:
    """The page."""
    total = report.total
    share = total["bytes_out"] / total["bytes_in"] if total["bytes_in"] else 0
    body = [
        f"<h1>Curation: {escape(report.name)}</h1>",
        f"<p>{total['documents_in']:,} documents ({megabytes(total['bytes_in'])}) went in, {total['documents_out']:,} "
        f"({megabytes(total['bytes_out'])}, {share:.1%}) came out. Green stays, orange goes.</p>",
        "<h2>Stages</h2>",
        _bars(_stage_rows(report.stages)),
        _census("Languages", report.before["languages"], report.after["languages"]),
        _census("Routes", report.before["routes"], report.after["routes"]),
        _census("Sources", report.before["sources"], report.after["sources"]),
        _lengths(report.before["lengths"], report.after["lengths"]),
        "<h2>Stage by stage</h2>",
        *map(_stage_section, report.stages),
    ]
    if report.searches:
        rows = [
            (name, ", ".join(f"{what} {value:,}" for what, value in figures.items()) or "-") for name, figures in report.searches.items()
        ]
        body += ["<h2>Searches</h2>", _table(("search", "found"), rows)]
    title = f"Curation: {escape(report.name)}"
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{title}</title><style>{_STYLE}</style>'
    return f"<!DOCTYPE html><html lang=en><head>{head}</head><body>{''.join(body)}</body></html>\n"
