"""Direct preference optimisation and its relatives over pairs; `config.PreferenceConfig` has the formulas. Unit: pairs.

Llama 3 report, section 4.1.4: header and end tokens are masked out of the loss (the column `counts` leaves them out), and a weighted
negative log-likelihood of the better answer keeps its probability from falling. The reference's log-probabilities are data: the column
`reference`, made once by `reference.reference_logprobs` with the model that training starts from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from herd.model.transformer import Transformer
from herd.train.batch import Columns
from herd.train.objectives.branches import AnswerTokens, answer_tokens, find_answers, ranked_pairs
from herd.train.objectives.config import PreferenceConfig
from herd.train.objectives.objective import Objective, Shared, Sums
from herd.train.objectives.ranking import pair_metrics


def _smoothed(logits: Tensor, smoothing: float) -> Tensor:
    return -(1 - smoothing) * F.logsigmoid(logits) - smoothing * F.logsigmoid(-logits)


def _robust(logits: Tensor, smoothing: float) -> Tensor:
    return (-(1 - smoothing) * F.logsigmoid(logits) + smoothing * F.logsigmoid(-logits)) / (1 - 2 * smoothing)


def log_odds(mean_logprobs: Tensor) -> Tensor:
    """log(p / (1 - p)) of p = exp(mean log-probability), also where p is near one. The mean is kept below zero by one rounding step."""
    below = mean_logprobs.clamp(max=-torch.finfo(mean_logprobs.dtype).eps)
    return below - torch.log(-torch.expm1(below))


def pair_losses(config: PreferenceConfig, better: Tensor, worse: Tensor) -> Tensor:
    """The loss of each pair, from its answers' log-ratios (or, where there is no reference, mean log-probabilities)."""
    h = better - worse
    if config.loss == "orpo":
        return -config.beta * F.logsigmoid(log_odds(better) - log_odds(worse))
    if config.loss == "ipo":
        return (h - 1 / (2 * config.beta)).square()
    if config.loss == "hinge":
        return torch.relu(1 - config.beta * h)
    if config.loss == "robust":
        return _robust(config.beta * h, config.label_smoothing)
    return _smoothed(config.beta * h - config.gamma, config.label_smoothing)


@dataclass(frozen=True, kw_only=True, slots=True)
class Preference(Objective):
    """Columns: `branches`, `grades`, `answer` (all that the assistant wrote, end token included) and `reference` where it is needed."""

    config: PreferenceConfig

    def units(self, columns: Columns) -> dict[str, int]:
        """The pairs, and the tokens of the better answers where the log-likelihood is a mean over tokens."""
        answers = find_answers(columns)
        pairs = ranked_pairs(answers)
        if not self.config.nll_weight or self.config.nll_per == "sequence":
            return {"pairs": len(pairs)}
        mask = columns["answer" if self.config.nll_end else "counts"][:, 1:] & (answers.ids[:, 1:] >= 0)
        lengths = np.bincount(answers.ids[:, 1:][mask], minlength=len(answers))
        return {"pairs": len(pairs), "better_tokens": int(lengths[pairs[:, 0]].sum())}

    def prepare(self, model: Transformer, parts: Sequence[Columns], dtype: torch.dtype) -> Shared:
        """Nothing."""
        return {}

    def sums(self, model: Transformer, columns: Columns, dtype: torch.dtype, shared: Shared) -> Sums:
        """The sum over pairs; metrics: accuracy and margin of the implicit rewards, log-probability of both answers."""
        config = self.config
        answers = find_answers(columns)
        pairs = torch.from_numpy(ranked_pairs(answers)).to(model.device)
        extra = ("counts", "answer", *(("reference",) if config.needs_reference else ()))
        tokens, (content, answer, *reference) = answer_tokens(model, columns, answers, dtype, *extra)
        counted = answer if config.end_tokens else content
        values = tokens.sums(counted)
        logprobs = values.detach()
        if config.needs_reference:
            values = values - tokens.sums(counted, reference[0])
        if config.takes_means:
            values = values / tokens.lengths(counted)
        better, worse = values[pairs[:, 0]], values[pairs[:, 1]]
        terms = {"pairs": pair_losses(config, better, worse).sum()}
        metrics = pair_metrics(config.beta * better.detach(), config.beta * worse.detach())
        metrics["logp_better"] = (float(logprobs[pairs[:, 0]].sum()), float(len(pairs)))
        metrics["logp_worse"] = (float(logprobs[pairs[:, 1]].sum()), float(len(pairs)))
        if config.nll_weight:
            self._add_likelihood(terms, metrics, tokens, answer if config.nll_end else content, pairs[:, 0])
        return Sums(terms=terms, metrics=metrics)

    def _add_likelihood(
        self, terms: dict[str, Tensor], metrics: dict[str, tuple[float, float]], tokens: AnswerTokens, mask: Tensor, better: Tensor
    ) -> None:
        """The weighted negative log-likelihood of the better answers."""
        sums, lengths = -tokens.sums(mask)[better], tokens.lengths(mask)[better]
        metrics["nll_better"] = (float(sums.detach().sum()), float(lengths.sum()))
        if self.config.nll_per == "sequence":
            terms["pairs"] = terms["pairs"] + self.config.nll_weight * (sums / lengths).sum()
        else:
            terms["better_tokens"] = self.config.nll_weight * sums.sum()
