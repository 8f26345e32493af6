"""A training run of some ten thousand weights, the same in every process: what the tests of resuming interrupt and compare."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from herd.data.rows import Document, Rows, pack
from herd.model.config import ModelConfig
from herd.model.init import initialise
from herd.model.transformer import Transformer
from herd.train.config import SourceConfig, StageConfig
from herd.train.mixing import StageMixture, stage_mixture
from herd.train.step import Batch
from herd.train.trainer import HeldOut, Trainer

VOCAB = 96
PAD = VOCAB - 1
LENGTH = 24
NUM_STEPS = 12


def small_model(seed: int = 3, *, tied: bool = True) -> Transformer:
    config = ModelConfig(
        vocab_size=VOCAB,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=128,
        tie_word_embeddings=tied,
        initializer_range=0.1,
    )
    with torch.device("meta"):
        model = Transformer(config)
    return initialise(model, seed=seed)


def small_rows(num_documents: int, *, seed: int, length: int = LENGTH) -> Rows:
    """Packed random documents of 2 to 20 tokens; in every third one only the second half counts."""
    rng = np.random.default_rng(seed)
    documents: list[Document] = []
    for number in range(num_documents):
        ids = rng.integers(0, PAD, int(rng.integers(2, 21))).tolist()
        half = [place >= len(ids) // 2 for place in range(len(ids))]
        documents.append(Document(ids=ids, counts=half if number % 3 == 0 else None))
    return pack(documents, length, pad_id=PAD)


def as_batch(rows: Rows, first: int = 0, size: int | None = None) -> Batch:
    last = None if size is None else first + size
    return rows.tokens[first:last], rows.documents[first:last], rows.counts[first:last]


def small_stage(**changes: Any) -> StageConfig:
    fields: dict[str, Any] = {
        "sources": (SourceConfig(name="a", path="a.txt"), SourceConfig(name="b", path="b.txt", weight=2.0)),
        "num_steps": NUM_STEPS,
        "sequence_length": LENGTH,
        "batch_size": 4,
        "micro_batch_size": 2,
        "lr": 3e-3,
        "warmup_steps": 3,
        "compute_dtype": "float32",
        "log_every": 1,
        "eval_every": 5,
        "save_every": 2,
        "tensorboard": False,
    }
    return StageConfig(**(fields | changes))


def small_sources(length: int = LENGTH) -> dict[str, Rows]:
    return {"a": small_rows(20, seed=1, length=length), "b": small_rows(30, seed=2, length=length)}


def small_mixture(stage: StageConfig) -> StageMixture:
    return stage_mixture(small_sources(stage.sequence_length), stage, seed=7)


def small_trainer(folder: Path, *, run: str = "this run", heldout: bool = True, **changes: Any) -> Trainer:
    stage = small_stage(**changes)
    rows = {"en": HeldOut(rows=small_rows(10, seed=3), num_bytes=500), "th": HeldOut(rows=small_rows(4, seed=4), num_bytes=90)}
    return Trainer(small_model(), stage, small_mixture(stage), folder=folder, run=run, heldout=rows if heldout else None)


def whole_run(folder: Path, **changes: Any) -> Trainer:
    """The run without an interruption."""
    trainer = small_trainer(folder, **changes)
    trainer.fit()
    return trainer


def tensors_of(trainer: Trainer) -> dict[str, Tensor]:
    """Every weight and every moment of the optimiser."""
    parameters = dict(trainer.model.named_parameters())
    moments = {
        f"{name}/{key}": value for name, parameter in parameters.items() for key, value in trainer.optimizer.state[parameter].items()
    }
    assert len(moments) == 3 * len(parameters)
    return {name: parameter.detach() for name, parameter in parameters.items()} | moments


def log_of(folder: Path) -> list[dict[str, Any]]:
    """The log without the figures that a clock or the machine gives."""
    lines = (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()
    return [{key: value for key, value in json.loads(line).items() if key not in ("tokens_per_s", "machine")} for line in lines]


def assert_same_run(ours: Trainer, other: Trainer) -> None:
    """Weights, moments, loss log and counters of two runs are equal, bit for bit; only their seconds differ."""
    left, right = tensors_of(ours), tensors_of(other)
    assert left.keys() == right.keys()
    assert [name for name in left if not torch.equal(left[name], right[name])] == []
    assert log_of(ours.folder) == log_of(other.folder)
    for name in ("step", "num_samples", "num_counted"):
        assert getattr(ours.progress, name) == getattr(other.progress, name), name


def folders_of(root: Path) -> list[str]:
    """What a folder holds, hidden names included."""
    return sorted(path.name for path in root.iterdir())
