"""The page of a run: its curves, its speed, its energy and what happened to it, in one HTML file without anything from outside.

Reads the files that a run writes (`log.jsonl`, `events.jsonl` and the newest state of each stage) and knows nothing of how it was made.
"""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

from herd.base.errors import NotFoundError
from herd.plan.train import Beside
from herd.train.energy import JOULES_PER_KWH, carbon_kg
from herd.train.line_chart import Points, line_chart
from herd.train.prediction import StageEstimate, beside_measured, read_prediction
from herd.train.run_log import EVENTS, LOG, effective_time, read_lines

_STYLE = """
:root{color-scheme:light dark}body{font:15px/1.5 system-ui,sans-serif;max-width:1320px;margin:2rem auto;padding:0 1rem}
h1{font-size:1.5rem}h2{font-size:1.2rem;margin-top:2.2rem}table{border-collapse:collapse}td,th{padding:.2rem .8rem .2rem 0;text-align:left}
td+td{font-variant-numeric:tabular-nums}figure{display:inline-block;margin:.5rem 1rem .5rem 0}figcaption{font-weight:600}
svg{background:color-mix(in srgb,currentColor 4%,transparent);border-radius:6px;max-width:100%}.axis{stroke:currentColor;opacity:.25}
text{fill:currentColor;font-size:11px}.key{font-size:12px}.key b{display:inline-block;width:1.1em;height:.25em;margin:0 .3em .2em .8em}
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class StageSummary:
    """The figures of one stage. What was never logged is None."""

    name: str
    num_steps: int
    num_counted: int
    seconds: float
    loss: float | None
    tokens_per_s: float | None
    mfu: float | None
    mfu_nameplate: float | None
    peak_memory_bytes: int | None
    effective: float | None
    energy_kwh: float
    carbon_kg: float
    num_skipped: int
    num_rollbacks: int
    heldout: dict[str, float]
    beside: tuple[Beside, ...] = ()


def stage_folders(run: Path) -> list[Path]:
    """The folders of a run's stages, in the order in which they began. Raises NotFoundError where nothing was trained."""
    found = [run] if (run / LOG).is_file() else [path.parent for path in run.glob(f"*/{LOG}")]
    if not found:
        raise NotFoundError(f"{run} holds no training log", hint="give the folder of a run, as runs/tiny; `herd train` makes one")

    def began(folder: Path) -> tuple[float, float]:
        events = read_lines(folder / EVENTS)
        return (events[0]["time"] if events else math.inf, (folder / LOG).stat().st_mtime)

    return sorted(found, key=began)


def summarise(folder: Path, *, pue: float = 1.0, grid_kg_per_kwh: float = 0.0, prediction: StageEstimate | None = None) -> StageSummary:
    """The figures of a stage's folder, and those predicted; energy is the machine's own, carbon has the overhead `pue` on it."""
    records, events = read_lines(folder / LOG), read_lines(folder / EVENTS)
    machines = [record["machine"] for record in records if "machine" in record]
    last = machines[-1] if machines else {}
    losses = [record["loss"] for record in records if "loss" in record]
    joules = float(last.get("energy_j", 0.0))
    seconds = float(max([last.get("seconds", 0.0), *(event.get("seconds", 0.0) for event in events)]))

    def middle(name: str) -> float | None:
        values = [machine[name] for machine in machines if name in machine]
        return median(values) if values else None

    speeds = [record["tokens_per_s"] for record in records if "tokens_per_s" in record]
    summary = StageSummary(
        name=folder.name,
        num_steps=max((record["step"] for record in records), default=0),
        num_counted=max((record["num_counted"] for record in records), default=0),
        seconds=seconds,
        loss=sum(losses[-10:]) / len(losses[-10:]) if losses else None,
        tokens_per_s=median(speeds) if speeds else None,
        mfu=middle("mfu"),
        mfu_nameplate=middle("mfu_nameplate"),
        peak_memory_bytes=max((machine["peak_memory_bytes"] for machine in machines), default=None),
        effective=effective_time(folder, seconds),
        energy_kwh=joules / JOULES_PER_KWH,
        carbon_kg=carbon_kg(joules, pue=pue, grid_kg_per_kwh=grid_kg_per_kwh),
        num_skipped=sum("skipped" in record for record in records),
        num_rollbacks=sum("rolled_back_from" in record for record in records),
        heldout=next((record["heldout"] for record in reversed(records) if "heldout" in record), {}),
    )
    if prediction is None:
        return summary
    found = {name: getattr(summary, name) for name in ("num_steps", "seconds", "tokens_per_s", "peak_memory_bytes", "energy_kwh")}
    return replace(summary, beside=beside_measured(prediction, **found, kg_per_kwh=pue * grid_kg_per_kwh))


def write_report(run: Path, target: Path, *, pue: float = 1.0, grid_kg_per_kwh: float = 0.0) -> list[StageSummary]:
    """Write the page of a run to `target`; returns the figures of its stages."""
    folders = stage_folders(run)
    predicted = read_prediction(run)
    summaries = [summarise(folder, pue=pue, grid_kg_per_kwh=grid_kg_per_kwh, prediction=predicted.get(folder.name)) for folder in folders]
    parts = [f"<h1>{html.escape(run.resolve().name)}</h1>", _totals(summaries, pue, grid_kg_per_kwh)]
    parts += [_section(folder, summary, predicted.get(folder.name)) for folder, summary in zip(folders, summaries, strict=True)]
    config = run / "config.toml"
    if config.is_file():
        text = html.escape(config.read_text(encoding="utf-8"))
        parts.append(f"<h2>Config</h2><details><summary>config.toml</summary><pre>{text}</pre></details>")
    body = "\n".join(parts)
    page = f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{html.escape(run.resolve().name)}</title>'
    target.write_text(f"{page}<style>{_STYLE}</style><body>{body}</body></html>\n", encoding="utf-8")
    return summaries


def _totals(summaries: Sequence[StageSummary], pue: float, grid: float) -> str:
    energy, carbon = sum(item.energy_kwh for item in summaries), sum(item.carbon_kg for item in summaries)
    return _table(
        {
            "stages": ", ".join(item.name for item in summaries),
            "tokens in the loss": f"{sum(item.num_counted for item in summaries):,}",
            "time in steps": _duration(sum(item.seconds for item in summaries)),
            "energy": f"{energy:.4g} kWh of the machine, {energy * pue:.4g} kWh with PUE {pue:g}",
            "carbon": f"{carbon:.4g} kg CO2eq at {grid:g} kg/kWh",
        }
    )


def _section(folder: Path, summary: StageSummary, prediction: StageEstimate | None) -> str:
    records = read_lines(folder / LOG)
    parts = [f"<h2>{html.escape(summary.name)}</h2>", _table(_facts(summary))]
    if prediction is not None:
        parts.append(_predicted(summary, prediction))
    parts.append(line_chart("loss (nats a token)", {"loss": _points(records, "loss")}, smooth=True))
    sources = sorted({name for record in records for name in record if name.startswith("loss/")})
    if sources:
        parts.append(line_chart("loss by source", {name.removeprefix("loss/"): _points(records, name) for name in sources}, smooth=True))
    languages = sorted({name for record in records for name in record.get("heldout", {})})
    if languages:
        parts.append(line_chart("held-out bits per byte", _table_points(records, "heldout", languages)))
    parts.append(line_chart("learning rate", {"lr": _points(records, "lr")}))
    parts.append(line_chart("gradient norm", {"norm": _points(records, "grad_norm")}, log_y=True))
    parts.append(line_chart("tokens a second", {"tokens/s": _points(records, "tokens_per_s")}))
    for name in _scores(records):
        fields = sorted({key for record in records for key in record.get(name, {})})
        parts.append(line_chart(name, _table_points(records, name, fields)))
    return "\n".join([*parts, _events(read_lines(folder / EVENTS))])


def _scores(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """Names under which callbacks logged tables of numbers."""
    return sorted({name for record in records for name, value in record.items() if isinstance(value, dict)} - {"heldout", "machine"})


def _facts(summary: StageSummary) -> dict[str, str]:
    def share(value: float | None) -> str:
        return "not known" if value is None else f"{100 * value:.1f}%"

    memory = summary.peak_memory_bytes
    return {
        "steps": f"{summary.num_steps:,}",
        "tokens in the loss": f"{summary.num_counted:,}",
        "loss, mean of the last ten logged": "not logged" if summary.loss is None else f"{summary.loss:.4f}",
        "time in steps": _duration(summary.seconds),
        "effective training time": share(summary.effective),
        "tokens a second, median": "not logged" if summary.tokens_per_s is None else f"{summary.tokens_per_s:,.0f}",
        "MFU by the measured peak, median": share(summary.mfu),
        "MFU by the nameplate, median": share(summary.mfu_nameplate),
        "peak memory": "not logged" if memory is None else f"{memory / 2**30:.2f} GiB",
        "skipped steps, rollbacks": f"{summary.num_skipped}, {summary.num_rollbacks}",
    }


_BESIDE = {
    "peak_bytes": ("peak memory of a device", lambda value: f"{value / 2**30:.2f} GiB"),
    "tokens_per_s": ("tokens a second", lambda value: f"{value:,.0f}"),
    "step_s": ("a step", lambda value: f"{value:.4g} s"),
    "seconds": ("time in the steps made", lambda value: _duration(value)),
    "energy_kwh": ("energy of the machine", lambda value: f"{value:.4g} kWh"),
    "carbon_kg": ("carbon", lambda value: f"{value:.4g} kg CO2eq"),
}
"""What each figure is called, and how it is written."""


def _predicted(summary: StageSummary, prediction: StageEstimate) -> str:
    """What was said before the first step, beside what came of it."""
    rows = "".join(
        f"<tr><td>{_BESIDE[row.what][0]}</td><td>{_BESIDE[row.what][1](row.planned)}</td><td>{_BESIDE[row.what][1](row.measured)}</td>"
        f"<td>{100 * row.difference:+.0f}%</td></tr>"
        for row in summary.beside
    )
    basis = html.escape(prediction.basis or "no speed was at hand")
    head = "<tr><th></th><th>predicted</th><th>measured</th><th>difference</th></tr>"
    return f"<h3>Predicted and measured</h3><table>{head}{rows}</table><p>Predicted before the first step; time and energy {basis}.</p>"


def _events(events: Sequence[Mapping[str, Any]]) -> str:
    if not events:
        return ""
    first = events[0]["time"]
    rows = "".join(
        f"<tr><td>{_duration(event['time'] - first)}</td><td>{html.escape(str(event['event']))}</td><td>{event.get('step', '')}</td>"
        f"<td>{html.escape(str(event.get('reason') or event.get('why') or ''))}</td></tr>"
        for event in events[-200:]
    )
    head = "<tr><th>after</th><th>event</th><th>step</th><th></th></tr>"
    return f"<details><summary>events ({len(events)})</summary><table>{head}{rows}</table></details>"


def _table(facts: Mapping[str, str]) -> str:
    return (
        "<table>"
        + "".join(f"<tr><td>{html.escape(name)}</td><td>{html.escape(value)}</td></tr>" for name, value in facts.items())
        + "</table>"
    )


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}"


def _points(records: Sequence[Mapping[str, Any]], name: str) -> Points:
    """The finite numbers of a name by step."""
    found = [(float(record["step"]), record.get(name)) for record in records]
    return [(step, float(value)) for step, value in found if isinstance(value, int | float) and math.isfinite(value)]


def _table_points(records: Sequence[Mapping[str, Any]], name: str, fields: Sequence[str]) -> dict[str, Points]:
    """The finite numbers of each field of a table by step."""
    rows = [{"step": record["step"], **record[name]} for record in records if name in record]
    return {field: _points(rows, field) for field in fields}
