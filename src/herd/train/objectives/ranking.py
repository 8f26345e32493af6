"""The reward model's loss: -log s(r(better) - r(worse)) for every two answers to one prompt with different grades. Unit: pairs.

Llama 2's ranking loss without its margin, as in the Llama 3 report, section 4.1.2. An answer's reward is the scalar head's value at its
last token. The prompt and its answers share a row, and no answer sees another (`forward`), so rewards are those of separate rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from herd.base.errors import ConfigError
from herd.model.reward import RewardModel
from herd.model.transformer import Transformer
from herd.train.batch import Columns, to_tensors
from herd.train.objectives.branches import Answers, find_answers, ranked_pairs
from herd.train.objectives.config import RewardConfig
from herd.train.objectives.forward import hidden_states
from herd.train.objectives.objective import Objective, Shared, Sums


def answer_rewards(model: Transformer, columns: Columns, answers: Answers, dtype: torch.dtype) -> Tensor:
    """The reward of every answer, float32 and differentiable. Raises ConfigError for a model without a scalar head."""
    if not isinstance(model, RewardModel):
        raise ConfigError("a reward needs a model with a scalar head, this one predicts tokens", hint="herd.model.reward.RewardModel")
    tensors = to_tensors(columns, model.device)
    hidden = hidden_states(model, tensors, dtype, length=columns["tokens"].shape[1])
    return model.score_of(hidden.flatten(0, 1)[torch.from_numpy(answers.last).to(model.device)])


@dataclass(frozen=True, kw_only=True, slots=True)
class Ranking(Objective):
    """Columns: `branches` and `grades` beside the usual three."""

    config: RewardConfig

    def units(self, columns: Columns) -> dict[str, int]:
        """The ranked pairs."""
        return {"pairs": len(ranked_pairs(find_answers(columns)))}

    def prepare(self, model: Transformer, parts: Sequence[Columns], dtype: torch.dtype) -> Shared:
        """Nothing."""
        return {}

    def sums(self, model: Transformer, columns: Columns, dtype: torch.dtype, shared: Shared) -> Sums:
        """The sum over pairs; metrics: share of pairs in the right order, their margin, both rewards."""
        answers = find_answers(columns)
        pairs = torch.from_numpy(ranked_pairs(answers)).to(model.device)
        rewards = answer_rewards(model, columns, answers, dtype)
        better, worse = rewards[pairs[:, 0]], rewards[pairs[:, 1]]
        loss = -F.logsigmoid(better - worse).sum()
        if self.config.center_weight:
            loss = loss + self.config.center_weight * (better + worse).square().sum()
        return Sums(terms={"pairs": loss}, metrics=pair_metrics(better.detach(), worse.detach()))


def pair_metrics(better: Tensor, worse: Tensor) -> dict[str, tuple[float, float]]:
    """What the log tells of pairs of rewards. Equal rewards are half right."""
    number = float(len(better))
    right = (better > worse).sum() + 0.5 * (better == worse).sum()
    values = {"accuracy": right, "margin": (better - worse).sum(), "reward_better": better.sum(), "reward_worse": worse.sum()}
    return {name: (float(value), number) for name, value in values.items()}
