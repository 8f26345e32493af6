"""The seams for loops that generate: callbacks with the model of the moment, and batches that the model makes itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from objective_rows import columns_of, small_judged  # pyright: ignore[reportMissingImports]
from small_run import LENGTH, PAD, as_batch, log_of, small_mixture, small_model, small_rows, small_stage  # pyright: ignore[reportMissingImports]

from herd.data.rows import Document, pack
from herd.model.transformer import Transformer
from herd.train.batch import Batch, as_columns
from herd.train.callback import BatchSource, Callback, HeldBack, measure
from herd.train.objectives.config import PreferenceConfig
from herd.train.objectives.next_token import NextToken
from herd.train.objectives.preference import Preference
from herd.train.trainer import Trainer


@dataclass
class Looks:
    """A callback that generates a token and notes in what state it found the model."""

    name: str = "looks"
    every: int = 4
    seen: list[tuple[int, bool, bool]] = field(default_factory=list)

    def __call__(self, model: Transformer, step: int) -> Mapping[str, float]:
        self.seen.append((step, model.training, torch.is_grad_enabled()))
        return {"token": float(model(torch.tensor([[1, 2, 3]]))[0, -1].argmax())} if step != 8 else {}


def test_a_callback_is_called_at_its_steps_and_after_the_last_and_what_it_returns_is_logged(tmp_path: Path) -> None:
    looks, stage = Looks(), small_stage(num_steps=10)
    assert isinstance(looks, Callback)
    trainer = Trainer(small_model(), stage, small_mixture(stage), folder=tmp_path, run="a", callbacks=(looks,))
    trainer.fit()
    assert looks.seen == [(4, False, False), (8, False, False), (10, False, False)] and trainer.model.training
    assert [line["step"] for line in log_of(tmp_path) if "looks" in line] == [4, 10]


def test_a_callback_changes_nothing_of_the_training(tmp_path: Path) -> None:
    stage = small_stage(num_steps=6)
    models = []
    for number, callbacks in enumerate(((), (Looks(every=1),))):
        trainer = Trainer(small_model(), stage, small_mixture(stage), folder=tmp_path / str(number), run="a", callbacks=callbacks)
        trainer.fit()
        models.append(trainer.model.state_dict())
    assert all(torch.equal(value, models[1][name]) for name, value in models[0].items())


class OwnAnswers:
    """Batches of what the model says greedily after a random token, with its own weights of the moment."""

    def __init__(self, model: Transformer) -> None:
        self.model = model
        self.asked: list[tuple[int, int]] = []

    @torch.no_grad()
    def batch(self, first: int, size: int) -> Batch:
        self.asked.append((first, size))
        documents = []
        for number in range(first, first + size):
            ids = torch.tensor([[int(np.random.default_rng(number).integers(0, PAD))]])
            for _ in range(6):
                ids = torch.cat([ids, self.model(ids)[:, -1:].argmax(-1)], 1)
            documents.append(Document(ids=ids[0].tolist()))
        rows = [pack([document], LENGTH, pad_id=PAD) for document in documents]
        parts = [as_batch(row) for row in rows]
        tokens, numbers, counts = (np.concatenate([part[column] for part in parts]) for column in range(3))
        return tokens, numbers, counts


def test_a_loop_may_train_on_what_the_model_says(tmp_path: Path) -> None:
    model, stage = small_model(), small_stage(num_steps=5)
    source = OwnAnswers(model)
    assert isinstance(source, BatchSource)
    Trainer(model, stage, source, folder=tmp_path, run="a").fit()
    assert source.asked == [(4 * step, 4) for step in range(5)]
    losses = [line["loss"] for line in log_of(tmp_path) if "loss" in line]
    assert losses[-1] < losses[0]


def test_what_is_kept_back_is_measured_whatever_the_micro_batch(tmp_path: Path) -> None:
    model = small_model(3)
    columns = columns_of(small_judged(7, seed=21), reference=small_model(11))
    objective = Preference(config=PreferenceConfig())
    whole, cut = (HeldBack(objective=objective, columns=columns, every=5, micro_batch_size=size)(model, 1) for size in (100, 1))
    assert whole.keys() == cut.keys() and {"loss", "accuracy", "margin", "nll_better"} <= whole.keys()
    np.testing.assert_allclose([whole[name] for name in whole], [cut[name] for name in whole], rtol=1e-4, atol=1e-5)
    rows = as_columns(as_batch(small_rows(9, seed=2)))
    assert measure(model, NextToken(), rows, micro_batch_size=1)["loss"] > 0
