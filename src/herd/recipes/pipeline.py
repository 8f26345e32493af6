"""Carry out a recipe: tokenizer, data, stages, export, model card; every part is taken up where an interrupted run left it.

Output folder: `config.toml`, `tokenizer/`, `data/` (packed rows), `pretrain/`, `long-LENGTH/`, `anneal/` and `sft/` (states, log.jsonl),
`model/` (the result, as Hugging Face lays it out, with its card). Only `model/` is needed afterwards.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from herd.base.atomic import atomic_file
from herd.base.config_io import to_toml
from herd.base.errors import ConfigError, UsageError
from herd.base.log import get_logger
from herd.base.progress import track_steps
from herd.checkpoint.load import load_model, save_model
from herd.checkpoint.resolve import load_checkpoint_tokenizer, resolve_model
from herd.kernels.dispatch import usable_cores
from herd.model.config import ModelConfig
from herd.model.init import initialise
from herd.model.transformer import Transformer
from herd.recipes.abilities import measure_abilities
from herd.recipes.card import Beside, StageReport, machine_of, write_card
from herd.recipes.config import RecipeConfig
from herd.recipes.estimate import estimate_stages, this_machine
from herd.recipes.inspect import check_stage
from herd.recipes.needle_text import make_needles
from herd.recipes.pack_pool import Packing, pack_at_once
from herd.recipes.prepare import prepare_heldout, prepare_rows, prepare_tokenizer
from herd.recipes.registry import AnyConfig, read_config
from herd.recipes.tune_config import TuneConfig
from herd.recipes.tune_run import PARTS as TUNE_PARTS
from herd.recipes.tune_run import TuneResult, run_tune
from herd.text.tokenizer import Tokenizer
from herd.train.allocator import kept_memory
from herd.train.config import StageConfig
from herd.train.energy import find_meter
from herd.train.long_context import LengthGate, NeedleScore, check_passed, with_config
from herd.train.mixing import stage_mixture
from herd.train.parallel.config import ParallelConfig
from herd.train.parallel.export import whole_copy
from herd.train.parallel.mesh import build_mesh
from herd.train.parallel.model import ShardedTransformer, build_sharded
from herd.train.parallel.processes import first_rank_first, is_first, joined, local_device, wait_for_all
from herd.train.parallel.trainer import ParallelTrainer
from herd.train.precision import compute_dtype
from herd.train.prediction import PREDICTION, save_prediction
from herd.train.preemption import stop_on_signal
from herd.train.run_log import LOG
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

    @property
    def next_step(self) -> str:
        """What to do with it."""
        return f"herd chat --model {self.model}"


@dataclass(kw_only=True, slots=True)
class _Run:
    """What the stages of a run share. `model` and `moments` are those that the last stage left."""

    config: RecipeConfig
    data: Path | None
    output: Path
    tokenizer: Tokenizer
    heldout: dict[str, HeldOut]
    model: Transformer
    should_stop: Callable[[], object]
    workers: int = 1
    moments: dict[str, Tensor] | None = None
    scores: dict[str, float] = field(default_factory=dict[str, float])


def run_recipe(
    config: AnyConfig,
    *,
    data: Path | None,
    output: Path,
    restart: bool = False,
    device: str = "cpu",
    beside: str | None = None,
    workers: int | None = None,
) -> RunResult | TuneResult:
    """Train `config`, from random weights or from a model, into `output` and return where the model is.

    `device` is where the model trains. The card of a recipe from random weights shows the model named `beside` with the new one, and
    `workers` processes pack its rows (None: one beside a CPU that trains, all cores beside a GPU); a script that asks for more than one
    needs `if __name__ == "__main__"`.

    A folder that holds an interrupted run of the same config is resumed, bit for bit. SIGTERM and SIGUSR1 save and end it in order.
    Raises UsageError if it holds another config and `restart` is false, or for `beside` or `workers` with a recipe that tunes,
    PreemptedError after such a signal.
    """
    if workers is not None and isinstance(config, TuneConfig):
        raise UsageError(f"{config.name} tunes a model, and reads its data in one process", hint="leave --workers out")
    if beside is not None:
        if isinstance(config, TuneConfig):
            raise UsageError(f"{config.name} tunes a model: its card tells it before and after", hint="leave --beside out")
        beside = str(resolve_model(beside))  # before the hours of training
    parallel = ParallelConfig() if isinstance(config, TuneConfig) else config.parallel
    with joined(parallel, device), stop_on_signal() as stop, kept_memory():
        with first_rank_first():
            if is_first():
                _claim(config, output, restart=restart)
        if isinstance(config, TuneConfig):
            return run_tune(config, data=data, output=output, should_stop=lambda: stop, device=device)
        place = local_device(device) if parallel.world_size > 1 else device
        workers = workers if workers is not None else 1 if place == "cpu" else usable_cores()
        return _pretrain(config, data=data, output=output, should_stop=lambda: stop, device=place, beside=beside, workers=workers)


def _pretrain(
    config: RecipeConfig,
    *,
    data: Path | None,
    output: Path,
    should_stop: Callable[[], object],
    device: str,
    beside: str | None,
    workers: int,
) -> RunResult:
    """Every stage from random weights on, then the model and its card."""
    if config.num_threads:
        torch.set_num_threads(config.num_threads)
    if is_first():
        _predict(config, output, device)
    with first_rank_first():
        tokenizer = prepare_tokenizer(config, data, output / "tokenizer")
    heldout = prepare_heldout(config, data, tokenizer)
    model = _first_model(config, device)
    run = _Run(
        config=config, data=data, output=output, tokenizer=tokenizer, heldout=heldout, model=model, should_stop=should_stop, workers=workers
    )
    reports = tuple(_run_stage(name, stage, number, run) for number, (name, stage) in enumerate(config.stages()))
    target = output / "model"
    model = whole_copy(run.model, output / "model-pieces") if isinstance(run.model, ShardedTransformer) else run.model
    if is_first():
        exported = _export(model, tokenizer, target)
        abilities = measure_abilities(exported, tokenizer, config, heldout)
        other = None if beside is None else _other(Path(beside), config, data)
        write_card(config, reports, exported, tokenizer, target, abilities=abilities, beside=other, data=data)
    wait_for_all()
    return RunResult(model=target, stages=reports)


def _other(folder: Path, config: RecipeConfig, data: Path | None) -> Beside:
    """A model put to the same questions, on the same text in its own tokens."""
    model, tokenizer = load_model(folder), load_checkpoint_tokenizer(folder)
    abilities = measure_abilities(model, tokenizer, config, prepare_heldout(config, data, tokenizer))
    return Beside(name=folder.name, model=model, tokenizer=tokenizer, abilities=abilities)


def _predict(config: RecipeConfig, output: Path, device: str) -> None:
    """Say beforehand what the run will take. A run of an earlier herd that is under way has no beforehand any more."""
    if not (output / PREDICTION).exists() and not any((output / name / LOG).exists() for name, _ in config.stages()):
        machine = this_machine(device, compute_dtype(config.pretrain, device), config.parallel)
        save_prediction(output, estimate_stages(config, machine=machine))


def _first_model(config: RecipeConfig, device: str) -> Transformer:
    """The model, or this rank's part of it, with the values that seed and names give."""
    if config.parallel.world_size > 1:
        mesh = build_mesh(config.parallel, device)
        return build_sharded(config.model, mesh, seed=config.seed, compute_dtype=compute_dtype(config.pretrain, device))
    with torch.device("meta"):
        model = Transformer(config.model)
    return initialise(model, seed=config.seed, device=device)


def _claim(config: AnyConfig, output: Path, *, restart: bool) -> None:
    """Make `output` this config's folder: empty, or left by an earlier try of the same config."""
    saved = output / "config.toml"
    if output.exists() and not output.is_dir():
        raise UsageError(f"{output} is not a folder", hint="choose another --output")
    if restart and saved.exists():
        saved.unlink()
        parts = TUNE_PARTS if isinstance(config, TuneConfig) else _PARTS
        (output / PREDICTION).unlink(missing_ok=True)
        for part in (*(output / name for name in parts), *output.glob("long-*")):
            shutil.rmtree(part, ignore_errors=True)
    if saved.exists() and _without_mesh(_read_config(saved)) != _without_mesh(config):
        raise UsageError(
            f"{output} holds a run of another configuration", hint="choose another --output, or pass --restart to delete that run"
        )
    with atomic_file(saved) as temporary:
        temporary.write_text(to_toml(config), encoding="utf-8")


def _without_mesh(config: AnyConfig | None) -> AnyConfig | None:
    """What makes a run the same run: a mesh may change from one start to the next."""
    return replace(config, parallel=ParallelConfig()) if isinstance(config, RecipeConfig) else config


def _read_config(path: Path) -> AnyConfig | None:
    """A saved config; None for a file that is not one of this herd's."""
    try:
        return read_config(path.read_text(encoding="utf-8"))
    except (ConfigError, UnicodeDecodeError):
        return None


def _run_stage(name: str, stage: StageConfig, number: int, run: _Run) -> StageReport:
    """Train one stage, from its newest state if it has one; the run's model holds its result afterwards."""
    config, folder = run.config, run.output / name
    digest = hashlib.sha256((run.output / "tokenizer" / "tokenizer.model").read_bytes()).hexdigest()
    tokenizer, cache = run.output / "tokenizer", run.output / "data"
    with first_rank_first():
        packing = Packing(stage=stage, config=config, data=run.data, tokenizer=tokenizer, digest=digest, cache=cache)
        pack_at_once(packing, workers=run.workers)
        rows = prepare_rows(stage, config, run.data, run.tokenizer, digest=digest, cache=cache)
    check_stage(stage, rows, run.tokenizer)
    mixture = stage_mixture(rows, stage, seed=config.seed + number)
    if run.model.config != config.model_at(name):
        run.model = _with_config(run.model, config.model_at(name))
    gate = _gate(name, stage, run)
    device = run.model.device
    meter = find_meter(device=device.type, nameplate_watts=config.power.watts, gpu_indices=(device.index or 0,))
    trainer = _trainer_of(run.model)(
        run.model,
        stage,
        mixture,
        folder=folder,
        run=_run_digest(config, number, digest),
        heldout=run.heldout,
        gate=gate,
        callbacks=() if gate is None else (NeedleScore(gate, length=stage.sequence_length, every=stage.eval_every),),
        should_stop=run.should_stop,
        meter=meter,
        moments=run.moments if stage.continue_optimizer else None,
    )
    if trainer.resume():
        log.info("%s: resumed at step %d of %d", name, trainer.progress.step, stage.num_steps)
    with track_steps(name, total=stage.num_steps, done=trainer.progress.step) as advance:

        def on_step(step: int, result: StepResult, tokens_per_s: float) -> None:
            advance(step, f"loss {result.loss:.3f}  {tokens_per_s:,.0f} tok/s")

        trainer.on_step = on_step
        progress = trainer.fit()
    wait_for_all()
    run.moments = trainer.moments_of()
    scores = _last_heldout(folder / "log.jsonl")
    if gate is not None and not progress.finished:
        gate.problems = gate.judge(run.model, scores)
        check_passed(gate, length=stage.sequence_length, finished=False)
    run.scores = run.scores if gate is not None else scores
    return StageReport(
        name=name,
        num_steps=progress.step,
        num_tokens=progress.num_samples * stage.sequence_length,
        num_counted=progress.num_counted,
        seconds=progress.seconds,
        bits_per_byte=scores,
        epochs=mixture.epochs(progress.num_samples),
        machine=machine_of(run.model.device),
        energy_j=progress.energy_j,
        energy_method=meter.method,
    )


def _trainer_of(model: Transformer) -> Callable[..., Trainer]:
    return ParallelTrainer if isinstance(model, ShardedTransformer) else Trainer


def _with_config(model: Transformer, config: ModelConfig) -> Transformer:
    """The same weights with another context."""
    if not isinstance(model, ShardedTransformer):
        return with_config(model, config)
    model.set_config(config)
    return model


def _gate(name: str, stage: StageConfig, run: _Run) -> LengthGate | None:
    """The gate of a long-context length; its measure of short text is what the stage before left."""
    longer = run.config.long_context
    if longer is None or not name.startswith("long-"):
        return None
    needles = make_needles(run.tokenizer, count=longer.num_needles, length=stage.sequence_length, seed=run.config.seed)
    return LengthGate(config=longer, before=run.scores, needles=needles, dtype=compute_dtype(stage, run.model.device))


def _run_digest(config: RecipeConfig, number: int, tokenizer_digest: str) -> str:
    """What a stage's states depend on: the model, the seed, the tokenizer and every stage up to this one."""
    stages = config.stages()[: number + 1]
    parts = "|".join(f"{name}={to_toml(stage)}" for name, stage in stages)
    if (last := config.model_at(stages[-1][0])) != config.model:
        parts += f"|{to_toml(last)}"
    return hashlib.sha256(f"{config.seed}|{to_toml(config.model)}|{tokenizer_digest}|{parts}".encode()).hexdigest()


def _last_heldout(path: Path) -> dict[str, float]:
    """The newest held-out scores of a stage's log."""
    records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    scores = [record["heldout"] for record in records if "heldout" in record]
    return scores[-1] if scores else {}


def _export(model: Transformer, tokenizer: Tokenizer, target: Path) -> Transformer:
    """Write bfloat16 weights and tokenizer to `target`; returns the model as it was written."""
    narrow = Transformer(model.config).to(torch.bfloat16)
    narrow.load_state_dict(model.state_dict())
    save_model(narrow, target, tokenizer=tokenizer, overwrite=True)
    return narrow
