"""Carry out a post-training recipe: the starting model, rows, what is computed once (reference, teacher), the stage, what is written.

Output folder: `config.toml`, `data/` (rows; the reference's log-probabilities; the teacher's predictions), `train/` (states, log.jsonl),
`adapter/` where adapters were trained, and `model/`: a Hugging Face folder with its card. An interrupted run goes on where it was, bit for
bit.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from herd.base.config_io import to_toml
from herd.base.errors import ConfigError
from herd.base.log import get_logger
from herd.base.progress import track_steps
from herd.checkpoint.json_file import read_json_object
from herd.checkpoint.load import load_model
from herd.checkpoint.open import open_checkpoint
from herd.checkpoint.resolve import load_checkpoint_tokenizer, resolve_model
from herd.checkpoint.reward import is_reward_model, load_reward_model
from herd.data.columns import ColumnMixture
from herd.model.transformer import Transformer
from herd.recipes.card import machine_of
from herd.recipes.estimate import estimate_tuning, this_machine
from herd.recipes.mask_view import check_answers_end, show_sample
from herd.recipes.recover import check_start, make_trainable
from herd.recipes.tune_columns import completed, teacher_of
from herd.recipes.tune_config import TuneConfig
from herd.recipes.tune_data import Prepared, Table, data_digest, joined, prepare_source, tokenizer_digest
from herd.recipes.tune_export import TuneReport, export
from herd.text.tokenizer import Tokenizer
from herd.train.adapters.inject import inject
from herd.train.callback import HeldBack, measure
from herd.train.config import StageConfig
from herd.train.objectives.distill import Distillation
from herd.train.objectives.kto import Kto
from herd.train.objectives.next_token import NextToken
from herd.train.objectives.objective import Objective
from herd.train.objectives.preference import Preference
from herd.train.objectives.ranking import Ranking
from herd.train.parallel.config import ParallelConfig
from herd.train.precision import compute_dtype
from herd.train.prediction import PREDICTION, save_prediction
from herd.train.run_log import LOG
from herd.train.step import StepResult
from herd.train.trainer import Trainer

log = get_logger(__name__)

PARTS = ("data", "train", "adapter", "model")
"""The folders of a run: what `restart` deletes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TuneResult:
    """Where the model is, and what the run reported."""

    model: Path
    stages: tuple[TuneReport, ...]
    next_step: str


def run_tune(
    config: TuneConfig, *, data: Path | None, output: Path, should_stop: Callable[[], object] = lambda: False, device: str = "cpu"
) -> TuneResult:
    """Tune a model into `output`, whose config.toml has been written; returns where the model is. `should_stop` is the trainer's."""
    if config.num_threads:
        torch.set_num_threads(config.num_threads)
    path = resolve_model(config.model)
    tokenizer = load_checkpoint_tokenizer(path)
    model = _starting_model(config, path, device)
    _check_length(config, model)
    if config.quant.scheme:
        check_start(config, model)
    digests, prepared = _prepare(config, data, output, tokenizer, context=model.config.max_position_embeddings)
    for name, part in prepared.items():
        show_sample(name, part.train, tokenizer)
    run = _run_digest(config, path, digests)
    dtype = compute_dtype(config.train, model.device)
    prepared = {name: completed(name, part, config, model, tokenizer, run, dtype, output / "data") for name, part in prepared.items()}
    if config.quant.scheme:
        make_trainable(config, model)
    elif config.lora.rank:
        inject(model, config.lora, seed=config.seed)
    report = _fit(config, model, prepared, run, output / "train", should_stop)
    target = output / "model"
    export(config, model, path, tokenizer, report, output)
    return TuneResult(model=target, stages=(report,), next_step=_next_step(config, output))


def _prepare(
    config: TuneConfig, data: Path | None, output: Path, tokenizer: Tokenizer, *, context: int
) -> tuple[dict[str, str], dict[str, Prepared]]:
    """The digest of every source's data, and its rows. Raises FormatError for answers that never end."""
    vocabulary = tokenizer_digest(tokenizer)
    digests = {source.name: data_digest(source, config, data, vocabulary) for source in config.train.sources if source.weight > 0}
    prepared: dict[str, Prepared] = {}
    for source in config.train.sources:
        if source.weight > 0:
            digest = digests[source.name]
            prepared[source.name] = prepare_source(source, config, data, tokenizer, context=context, digest=digest, cache=output / "data")
            if source.kind == "chat":
                check_answers_end(source.name, prepared[source.name].train, tokenizer)
    return digests, prepared


def inspect_data(config: TuneConfig, *, data: Path | None, output: Path) -> tuple[Tokenizer, dict[str, Table]]:
    """The tokenizer of the starting model, and the rows that a run would train on. Nothing is trained."""
    path = resolve_model(config.model)
    tokenizer = load_checkpoint_tokenizer(path)
    _, prepared = _prepare(config, data, output, tokenizer, context=_context(path))
    return tokenizer, {name: part.train for name, part in prepared.items()}


def _context(path: Path) -> int:
    """The context of a model, its weights unread."""
    if is_reward_model(path):
        return int(read_json_object(path / "config.json")["max_position_embeddings"])
    with open_checkpoint(path) as source:
        return source.config.max_position_embeddings


def _starting_model(config: TuneConfig, path: Path, device: str) -> Transformer:
    """float32 masters; where only adapters are trained, the frozen weights in the compute dtype."""
    dtype = compute_dtype(config.train, device) if config.lora.rank else torch.float32
    load = load_reward_model if config.method == "reward" else load_model
    return load(path, dtype=dtype, device=device)


def _check_length(config: TuneConfig, model: Transformer) -> None:
    context = model.config.max_position_embeddings
    if config.method in ("sft", "distill") and config.train.sequence_length > context:
        raise ConfigError(
            f"train.sequence_length {config.train.sequence_length} is over the model's context of {context}",
            hint=f"set train.sequence_length={context} or less",
        )


def _run_digest(config: TuneConfig, path: Path, digests: dict[str, str]) -> str:
    """What the states of a run depend on: the config, the data, the files of the starting model and of a teacher."""
    models = [path, *([resolve_model(teacher_of(config))] if config.method == "distill" else [])]
    files = [file for model in models for file in ([model] if model.is_file() else sorted(model.iterdir())) if file.is_file()]
    marks = "|".join(f"{file.name} {file.stat().st_size} {file.stat().st_mtime_ns}" for file in files)
    return hashlib.sha256(f"{to_toml(config)}|{sorted(digests.items())}|{marks}".encode()).hexdigest()


def objective_of(config: TuneConfig) -> Objective:
    """What a config's method minimises."""
    if config.method == "reward":
        return Ranking(config=config.reward)
    if config.method == "distill":
        return Distillation(config=config.distill)
    if config.method == "preference":
        return Kto(config=config.preference) if config.is_kto else Preference(config=config.preference)
    return NextToken(z_loss=config.train.z_loss)


def resolved_stage(config: TuneConfig, num_rows: int) -> StageConfig:
    """The stage with its steps: as many as the epochs take, the warm-up no more than a tenth of them."""
    if not config.epochs:
        return config.train
    num_steps = max(1, math.ceil(config.epochs * num_rows / config.train.batch_size))
    return replace(config.train, num_steps=num_steps, warmup_steps=min(config.train.warmup_steps, num_steps // 10))


def _fit(
    config: TuneConfig, model: Transformer, prepared: dict[str, Prepared], run: str, folder: Path, should_stop: Callable[[], object]
) -> TuneReport:
    tables = {name: part.train for name, part in prepared.items()}
    stage = resolved_stage(config, sum(len(table["tokens"]) for table in tables.values()))
    weights = {source.name: source.weight for source in stage.sources}
    mixture = ColumnMixture(tables, weights, seed=config.seed, num_samples=stage.num_steps * stage.batch_size)
    objective, dtype = objective_of(config), compute_dtype(stage, model.device)
    if not (folder.parent / PREDICTION).exists() and not (folder / LOG).exists():
        machine = this_machine(model.device.type, dtype, ParallelConfig())
        save_prediction(folder.parent, [estimate_tuning(folder.name, stage, model, machine)])
    heldback = joined([part.heldback for part in prepared.values()])
    has_heldback = sum(objective.units(heldback).values()) > 0
    callback = HeldBack(objective=objective, columns=heldback, every=stage.eval_every, dtype=dtype, micro_batch_size=stage.micro_batch_size)
    model.eval()
    before = measure(model, objective, heldback, dtype=dtype, micro_batch_size=stage.micro_batch_size) if has_heldback else {}
    trainer = Trainer(
        model,
        stage,
        mixture,
        folder=folder,
        run=run,
        objective=objective,
        callbacks=(callback,) if has_heldback else (),
        should_stop=should_stop,
    )
    if trainer.resume():
        log.info("%s: resumed at step %d of %d", config.name, trainer.progress.step, stage.num_steps)
    with track_steps(config.name, total=stage.num_steps, done=trainer.progress.step) as advance:
        trainer.on_step = _on_step(advance)
        model.train()
        progress = trainer.fit()
    model.eval()
    after = measure(model, objective, heldback, dtype=dtype, micro_batch_size=stage.micro_batch_size) if has_heldback else {}
    return TuneReport(
        name=config.name,
        num_steps=progress.step,
        num_tokens=progress.num_samples * stage.sequence_length,
        num_counted=progress.num_counted,
        seconds=progress.seconds,
        before={name: round(value, 4) for name, value in before.items()},
        after={name: round(value, 4) for name, value in after.items()},
        epochs=mixture.epochs(progress.num_samples),
        num_records=sum(part.num_records for part in prepared.values()),
        num_dropped=sum(part.num_dropped for part in prepared.values()),
        machine=machine_of(model.device),
    )


def _on_step(advance: Callable[[int, str], None]) -> Callable[[int, StepResult, float], None]:
    def on_step(step: int, result: StepResult, tokens_per_s: float) -> None:
        accuracy = f"  accuracy {result.metrics['accuracy']:.2f}" if "accuracy" in result.metrics else ""
        advance(step, f"loss {result.loss:.3f}{accuracy}  {tokens_per_s:,.0f} tok/s")

    return on_step


def _next_step(config: TuneConfig, output: Path) -> str:
    if config.lora.rank and not config.merge and not config.quant.scheme:
        return f"herd merge {output / 'adapter'} {output / 'model'}"
    if config.method == "reward":
        return f"{output / 'model'} is a reward model: herd.inference.reward.RewardScorer reads it"
    return f"herd chat --model {output / 'model'}"
