"""Carry out a run of curation in a folder, from whatever an earlier try left there."""

from __future__ import annotations

from pathlib import Path

from herd.base.errors import UsageError
from herd.data.curate.compile import compile_plan
from herd.data.curate.config import CurateConfig
from herd.data.curate.report import CONFIG_FILE, CurateReport, finish, save_config
from herd.data.executor.local import run_local
from herd.data.executor.plan import Plan, write_plan


def prepare(config: CurateConfig, folder: Path) -> Plan:
    """Make the plan and save it with its configuration. Raises UsageError for a folder that holds something else."""
    if folder.exists() and any(folder.iterdir()) and not (folder / CONFIG_FILE).exists():
        raise UsageError(f"{folder} holds files that are of no run of curation", hint="choose an empty or a new --output")
    plan = compile_plan(config)
    folder.mkdir(parents=True, exist_ok=True)
    save_config(config, folder)
    write_plan(plan, folder)
    return plan


def curate(config: CurateConfig, folder: Path, *, workers: int = 1) -> CurateReport:
    """Curate into `folder` by processes of this machine; returns the report. The same folder again redoes only what is missing."""
    plan = prepare(config, folder)
    run_local(plan, folder, workers=workers)
    return finish(config, plan, folder)
