"""Carry out a recipe: tokenizer, data, stages, export, model card; every part is taken up where an interrupted run left it.

Output folder: `config.toml`, `tokenizer/`, `data/` (packed rows), `pretrain/`, `anneal/` and `sft/` (states, log.jsonl), `model/` (the
result, as Hugging Face lays it out, with its card). Only `model/` is needed afterwards.
"""

from __future__ import annotations

import hashlib
import json
import platform
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch

from herd.base.atomic import atomic_file
from herd.base.config_io import from_toml, to_toml
from herd.base.errors import ConfigError, UsageError
from herd.base.log import get_logger
from herd.base.progress import track_steps
from herd.checkpoint.load import save_model
from herd.model.init import initialise
from herd.model.transformer import Transformer
from herd.recipes.card import StageReport, write_card
from herd.recipes.config import RecipeConfig
from herd.recipes.prepare import prepare_heldout, prepare_rows, prepare_tokenizer
from herd.text.tokenizer import Tokenizer
from herd.train.config import StageConfig
from herd.train.mixing import stage_mixture
from herd.train.step import StepResult
from herd.train.trainer import HeldOut, Trainer

log = get_logger(__name__)

_PARTS = ("tokenizer", "data", "pretrain", "anneal", "sft", "model")
"""The folders of a run: what `restart` deletes, and nothing else that may be beside them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunResult:
    """Where the model is, and what each stage reported."""

    model: Path
    stages: tuple[StageReport, ...]


def run_recipe(config: RecipeConfig, *, data: Path | None, output: Path, restart: bool = False) -> RunResult:
    """Train `config` into `output` and return where the model is.

    A folder that holds an interrupted run of the same config is resumed, bit for bit. Raises UsageError if it holds another config and
    `restart` is false.
    """
    _claim(config, output, restart=restart)
    if config.num_threads:
        torch.set_num_threads(config.num_threads)
    tokenizer = prepare_tokenizer(config, data, output / "tokenizer")
    heldout = prepare_heldout(config, data, tokenizer)
    with torch.device("meta"):
        model = Transformer(config.model)
    initialise(model, seed=config.seed)
    reports = tuple(
        _run_stage(name, stage, number, config, model, tokenizer, heldout, data=data, output=output)
        for number, (name, stage) in enumerate(config.stages())
    )
    target = output / "model"
    exported = _export(model, config, tokenizer, target)
    write_card(config, reports, exported, tokenizer, target)
    return RunResult(model=target, stages=reports)


def _claim(config: RecipeConfig, output: Path, *, restart: bool) -> None:
    """Make `output` this config's folder: empty, or left by an earlier try of the same config."""
    saved = output / "config.toml"
    if output.exists() and not output.is_dir():
        raise UsageError(f"{output} is not a folder", hint="choose another --output")
    if restart and saved.exists():
        saved.unlink()
        for part in _PARTS:
            shutil.rmtree(output / part, ignore_errors=True)
    if saved.exists() and _read_config(saved) != config:
        raise UsageError(
            f"{output} holds a run of another configuration", hint="choose another --output, or pass --restart to delete that run"
        )
    with atomic_file(saved) as temporary:
        temporary.write_text(to_toml(config), encoding="utf-8")


def _read_config(path: Path) -> RecipeConfig | None:
    """A saved config; None for a file that is not one of this herd's."""
    try:
        return from_toml(RecipeConfig, path.read_text(encoding="utf-8"))
    except (ConfigError, UnicodeDecodeError):
        return None


def _run_stage(
    name: str,
    stage: StageConfig,
    number: int,
    config: RecipeConfig,
    model: Transformer,
    tokenizer: Tokenizer,
    heldout: dict[str, HeldOut],
    *,
    data: Path | None,
    output: Path,
) -> StageReport:
    """Train one stage, from its newest state if it has one; the model holds its result afterwards."""
    digest = hashlib.sha256((output / "tokenizer" / "tokenizer.model").read_bytes()).hexdigest()
    rows = prepare_rows(stage, config, data, tokenizer, digest=digest, cache=output / "data")
    mixture = stage_mixture(rows, stage, seed=config.seed + number)
    run = _run_digest(config, number, digest)
    trainer = Trainer(model, stage, mixture, folder=output / name, run=run, heldout=heldout)
    if trainer.resume():
        log.info("%s: resumed at step %d of %d", name, trainer.progress.step, stage.num_steps)
    with track_steps(name, total=stage.num_steps, done=trainer.progress.step) as advance:

        def on_step(step: int, result: StepResult, tokens_per_s: float) -> None:
            advance(step, f"loss {result.loss:.3f}  {tokens_per_s:,.0f} tok/s")

        trainer.on_step = on_step
        progress = trainer.fit()
    return StageReport(
        name=name,
        num_steps=progress.step,
        num_tokens=progress.num_samples * stage.sequence_length,
        num_counted=progress.num_counted,
        seconds=progress.seconds,
        bits_per_byte=_last_heldout(output / name / "log.jsonl"),
        epochs=mixture.epochs(progress.num_samples),
        machine=f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}",
    )


def _run_digest(config: RecipeConfig, number: int, tokenizer_digest: str) -> str:
    """What a stage's states depend on: the model, the seed, the tokenizer and every stage up to this one."""
    stages = "|".join(f"{name}={to_toml(stage)}" for name, stage in config.stages()[: number + 1])
    return hashlib.sha256(f"{config.seed}|{to_toml(config.model)}|{tokenizer_digest}|{stages}".encode()).hexdigest()


def _last_heldout(path: Path) -> dict[str, float]:
    """The newest held-out scores of a stage's log."""
    records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    scores = [record["heldout"] for record in records if "heldout" in record]
    return scores[-1] if scores else {}


def _export(model: Transformer, config: RecipeConfig, tokenizer: Tokenizer, target: Path) -> Transformer:
    """Write bfloat16 weights and tokenizer to `target`; returns the model as it was written."""
    narrow = Transformer(config.model).to(torch.bfloat16)
    narrow.load_state_dict(model.state_dict())
    save_model(narrow, target, tokenizer=tokenizer, overwrite=True)
    return narrow
