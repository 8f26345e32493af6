"""What a run came to: figures of all shards in one report (JSON and a page), and the documents under plain names.

The same run gives the same report, whatever carried it out: it holds no times and no machine.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from herd.base.atomic import atomic_directory, atomic_file
from herd.base.config_io import to_dict
from herd.base.errors import FormatError, NotFoundError
from herd.data.curate.compile import pass_name
from herd.data.curate.config import CurateConfig, from_toml, stage_to_dict, to_toml
from herd.data.curate.page import render_page
from herd.data.curate.steps import RECORDS
from herd.data.executor.plan import PLAN_FILE, Plan, read_plan
from herd.data.executor.shard_run import reports
from herd.data.stages.stage import merged

DOCUMENTS = "documents"
REPORT_JSON = "report.json"
REPORT_PAGE = "report.html"
CONFIG_FILE = "config.toml"


@dataclass(frozen=True, kw_only=True, slots=True)
class CurateReport:
    """Totals in documents and bytes, every stage's tally in order, the figures of the searches, and tables of what went in and came out."""

    name: str
    total: Mapping[str, int]
    stages: tuple[Mapping[str, Any], ...]
    searches: Mapping[str, Any]
    before: Mapping[str, Mapping[str, list[int]]]
    after: Mapping[str, Mapping[str, list[int]]]
    config: Mapping[str, Any]


def build_report(config: CurateConfig, plan: Plan, folder: Path) -> CurateReport:
    """The report of a finished run. Raises NotFoundError if a shard is not done."""
    passes = [step.name for step in plan.steps if step.name.startswith("pass-")]
    stages: list[dict[str, Any]] = []
    parts: list[dict[str, Any]] = []
    for number, name in enumerate(passes):
        parts = reports(plan, name, folder)
        tallies = [merged(column) for column in zip(*(part["stages"] for part in parts), strict=True)]
        stages.extend(tallies if number == 0 else tallies[1:])
    first = reports(plan, passes[0], folder)
    before, after = _added([part["before"] for part in first]), _added([part["after"] for part in parts])
    total = {
        "documents_in": stages[0]["seen"],
        "bytes_in": stages[0]["bytes_in"],
        "documents_out": sum(counts[0] for counts in after["lengths"].values()),
        "bytes_out": sum(counts[1] for counts in after["lengths"].values()),
    }
    searches = {
        step.name: reports(plan, step.name, folder)[0] for step in plan.steps if step.name.startswith("search-") and "parts" in step.config
    }
    plain = {**to_dict(config), "stages": [stage_to_dict(stage) for stage in config.stages]}
    return CurateReport(name=config.name, total=total, stages=tuple(stages), searches=searches, before=before, after=after, config=plain)


def _added(tables: list[Mapping[str, Mapping[str, list[int]]]]) -> dict[str, dict[str, list[int]]]:
    total: dict[str, dict[str, list[int]]] = {}
    for shard in tables:
        for name, table in shard.items():
            sums = total.setdefault(name, {})
            for key, (documents, size) in table.items():
                counts = sums.setdefault(key, [0, 0])
                counts[0] += documents
                counts[1] += size
    return {name: dict(sorted(table.items())) for name, table in total.items()}


def finish(config: CurateConfig, plan: Plan, folder: Path) -> CurateReport:
    """Write report.json, report.html and documents/ of a finished run into its folder; returns the report."""
    report = build_report(config, plan, folder)
    with atomic_file(folder / REPORT_JSON) as temporary:
        temporary.write_text(json.dumps(to_dict(report), indent=1, ensure_ascii=False), encoding="utf-8")
    with atomic_file(folder / REPORT_PAGE) as temporary:
        temporary.write_text(render_page(report), encoding="utf-8")
    last = sum(step.name.startswith("pass-") for step in plan.steps) - 1
    step = plan.step(pass_name(last))
    with atomic_directory(folder / DOCUMENTS, overwrite=True) as documents:
        for shard in step.shards:
            _link(folder / step.name / shard.name / RECORDS, documents / f"{shard.name}.jsonl.zst")
    return report


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def read_report(path: Path) -> CurateReport:
    """A report.json. Raises NotFoundError, FormatError for a file that is none."""
    try:
        return CurateReport(**{**(data := json.loads(path.read_text(encoding="utf-8"))), "stages": tuple(data["stages"])})
    except OSError as error:
        raise NotFoundError(f"cannot read {path}: {error.strerror}", hint="`herd data curate` writes it into its output") from error
    except (ValueError, TypeError, KeyError) as error:
        raise FormatError(f"{path} is no report of a curation: {error}", hint="`herd data curate` writes one into its output") from error


def save_config(config: CurateConfig, folder: Path) -> None:
    """Keep the configuration beside what it makes."""
    with atomic_file(folder / CONFIG_FILE) as temporary:
        temporary.write_text(to_toml(config), encoding="utf-8")


def read_run(folder: Path) -> tuple[CurateConfig, Plan]:
    """The configuration and plan of a run's folder. Raises NotFoundError."""
    try:
        text = (folder / CONFIG_FILE).read_text(encoding="utf-8")
    except OSError as error:
        raise NotFoundError(f"{folder} holds no run of curation: {error.strerror}", hint="name the --output of herd data curate") from error
    return from_toml(text), read_plan(folder / PLAN_FILE)
