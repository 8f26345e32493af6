"""KTO: answers labelled good or bad one by one, no pairs needed. Unit: examples. Ethayarajh et al., arXiv 2402.01306.

With r as in `preference` and z the reference point: a good answer costs w_D (1 - s(beta (r - z))), a bad one w_U (1 - s(beta (z - r))).
z is the mean, at least 0, of r over answers put to the wrong prompts: how far the model has moved from its reference. It is taken over
the whole batch and carries no gradient. A document holds a prompt, its answer (grade 1 good, 0 bad) and an answer of another document with
the grade `branches.KL_ONLY`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from herd.model.transformer import Transformer
from herd.train.batch import Columns
from herd.train.objectives.branches import Answers, answer_tokens, find_answers
from herd.train.objectives.config import PreferenceConfig
from herd.train.objectives.objective import Objective, Shared, Sums


@dataclass(frozen=True, kw_only=True, slots=True)
class Kto(Objective):
    """Columns: `branches`, `grades`, `answer` and `reference`."""

    config: PreferenceConfig

    def units(self, columns: Columns) -> dict[str, int]:
        """The labelled answers."""
        return {"examples": int((find_answers(columns).grades >= 0).sum())}

    def _ratios(self, model: Transformer, columns: Columns, answers: Answers, dtype: torch.dtype) -> Tensor:
        mask = "answer" if self.config.end_tokens else "counts"
        tokens, (counted, reference) = answer_tokens(model, columns, answers, dtype, mask, "reference")
        ratios = tokens.sums(counted) - tokens.sums(counted, reference)
        return ratios / tokens.lengths(counted) if self.config.takes_means else ratios

    def prepare(self, model: Transformer, parts: Sequence[Columns], dtype: torch.dtype) -> Shared:
        """The reference point."""
        total, count = 0.0, 0
        for columns in parts:
            answers = find_answers(columns)
            mismatched = answers.grades < 0
            if mismatched.any():
                ratios = self._ratios(model, columns, answers, dtype)
                total += float(ratios.detach()[torch.from_numpy(mismatched).to(ratios.device)].sum())
                count += int(mismatched.sum())
        return {"z": max(0.0, total / count) if count else 0.0}

    def sums(self, model: Transformer, columns: Columns, dtype: torch.dtype, shared: Shared) -> Sums:
        """The sum over labelled answers; metrics: rewards of good and bad ones, the reference point."""
        answers = find_answers(columns)
        ratios = self._ratios(model, columns, answers, dtype)
        grades = torch.from_numpy(answers.grades).to(ratios.device)
        good, bad = ratios[grades == 1], ratios[grades == 0]
        beta, z = self.config.beta, shared["z"]
        loss = self.config.desirable_weight * (1 - torch.sigmoid(beta * (good - z))).sum()
        loss = loss + self.config.undesirable_weight * (1 - torch.sigmoid(beta * (z - bad))).sum()
        number = float(np.sum(answers.grades >= 0))
        metrics = {
            "reward_good": (beta * float(good.detach().sum()), float(len(good))),
            "reward_bad": (beta * float(bad.detach().sum()), float(len(bad))),
            "z": (z * number, number),
        }
        return Sums(terms={"examples": loss}, metrics=metrics)
