"""Small rows of every kind for the tests of objectives: texts, prompts with graded answers, labelled answers, a teacher's predictions."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import torch
from small_run import LENGTH, PAD, small_model, small_rows  # pyright: ignore[reportMissingImports]

from herd.data.answers import Answer, Judged, pack_answers
from herd.model.init import initialise
from herd.model.reward import RewardModel
from herd.model.transformer import Transformer
from herd.train.batch import Columns
from herd.train.objectives.branches import KL_ONLY
from herd.train.objectives.config import DistillConfig, PreferenceConfig, RewardConfig
from herd.train.objectives.distill import Distillation
from herd.train.objectives.kto import Kto
from herd.train.objectives.next_token import NextToken
from herd.train.objectives.objective import Objective
from herd.train.objectives.preference import Preference
from herd.train.objectives.ranking import Ranking
from herd.train.objectives.reference import reference_logprobs
from herd.train.teacher import read_teacher, write_teacher

HEADER = 2
ROW = 2 * LENGTH


def small_answer(rng: np.random.Generator, length: int, grade: int) -> Answer:
    """A header of two tokens, `length` of content, an end token."""
    ids = rng.integers(0, PAD, HEADER + length + 1).tolist()
    return Answer(
        ids=ids,
        counts=[False] * HEADER + [True] * length + [False],
        answer=[False] * HEADER + [True] * (length + 1),
        grade=grade,
    )


def small_judged(number: int, *, seed: int, grades: tuple[int, ...] = (2, 1), longest: int = 6) -> list[Judged]:
    rng = np.random.default_rng(seed)
    return [
        Judged(
            prompt=rng.integers(0, PAD, int(rng.integers(1, 6))).tolist(),
            answers=tuple(small_answer(rng, int(rng.integers(1, longest + 1)), grade) for grade in grades),
        )
        for _ in range(number)
    ]


def columns_of(judged: list[Judged], *, reference: Transformer | None = None, length: int = ROW) -> dict[str, Any]:
    rows = pack_answers(judged, length, pad_id=PAD)
    assert rows.num_dropped == 0
    columns = dict(rows.columns)
    if reference is not None:
        columns["reference"] = reference_logprobs(reference, columns)
    return columns


def small_reward_model(seed: int = 4) -> RewardModel:
    config = small_model().config
    with torch.device("meta"):
        model = RewardModel(config)
    initialise(model, seed=seed)
    return model


def ragged_pairs(*, reference: Transformer | None) -> dict[str, Any]:
    """Prompts with two, three and one answer, so that rows hold unequal numbers of pairs."""
    judged = [
        *small_judged(7, seed=1),
        *small_judged(4, seed=2, grades=(1, 3, 2)),
        *small_judged(3, seed=3, grades=(2,)),
        *small_judged(2, seed=4, grades=(1, 1)),
    ]
    return columns_of(judged, reference=reference)


def labelled(*, reference: Transformer) -> dict[str, Any]:
    judged = []
    for number, item in enumerate(small_judged(36, seed=6, grades=(1, KL_ONLY), longest=12)):
        answers = item.answers if number % 2 else item.answers[:1]  # some without a mismatched answer
        first = dataclasses.replace(answers[0], grade=int(number % 3 == 0))
        judged.append(dataclasses.replace(item, answers=(first, *answers[1:])))
    return columns_of(judged, reference=reference)


def taught(folder: Path, *, top_k: int = 5) -> dict[str, Any]:
    rows = small_rows(40, seed=9)
    columns = {"tokens": rows.tokens, "documents": rows.documents, "counts": rows.counts}
    write_teacher(small_model(seed=8), columns, folder, top_k=top_k, teacher="small", tokenizer="t", rows_per_file=5, micro_batch_size=3)
    return read_teacher(folder, tokenizer="t")


def text_columns() -> dict[str, Any]:
    rows = small_rows(60, seed=5)
    return {"tokens": rows.tokens, "documents": rows.documents, "counts": rows.counts}


LOSSES: dict[str, PreferenceConfig] = {
    "dpo": PreferenceConfig(),
    "dpo smoothed, end tokens, nll by token": PreferenceConfig(label_smoothing=0.1, end_tokens=True, nll_per="token"),
    "dpo by length": PreferenceConfig(length_normalised=True, beta=2.0, nll_end=False),
    "robust": PreferenceConfig(loss="robust", label_smoothing=0.1, nll_weight=0.0),
    "hinge": PreferenceConfig(loss="hinge", nll_weight=0.0),
    "ipo": PreferenceConfig(loss="ipo", length_normalised=True, nll_weight=0.0),
    "simpo": PreferenceConfig(loss="simpo", beta=2.0, gamma=1.0, nll_weight=0.0),
    "orpo": PreferenceConfig(loss="orpo", nll_weight=1.0),
}


def every_objective(folder: Path) -> dict[str, tuple[Objective, Transformer, Columns]]:
    """All objectives by name, with a model and rows that have more and fewer units in a row."""
    reference = small_model(seed=11)
    pairs = ragged_pairs(reference=reference)
    found: dict[str, tuple[Objective, Transformer, Columns]] = {
        "next token": (NextToken(z_loss=1e-2), small_model(), text_columns()),
        "ranking": (Ranking(config=RewardConfig(center_weight=0.1)), small_reward_model(), pairs),
        "kto": (
            Kto(config=PreferenceConfig(loss="kto", desirable_weight=1.3, beta=0.5)),
            small_model(),
            labelled(reference=reference),
        ),
    }
    found |= {name: (Preference(config=config), small_model(), pairs) for name, config in LOSSES.items()}
    for number, config in enumerate((DistillConfig(), DistillConfig(divergence="symmetric", tail="renormalise", temperature=2.0))):
        found[f"distillation {number}"] = (Distillation(config=config), small_model(), taught(folder / str(number)))
    return found
