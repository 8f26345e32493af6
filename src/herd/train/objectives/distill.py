"""Knowledge distillation on a teacher's stored top-k log-probabilities; `config.DistillConfig` has the choices. Unit: tokens.

Columns beside the usual three: `teacher_ids` and `teacher_logprobs` [B, T+1, k], aligned with the token that they predict (`train.teacher`
writes them). With p the teacher and q the student, both over the vocabulary:

- forward, `bucket`: sum over the k tokens of p log(p / q), and the same for the rest of the vocabulary taken as one outcome.
- forward, `renormalise`: p is scaled to sum to one over the k tokens, q stays whole.
- reverse: p and q change places; with `renormalise` q too is scaled over the k tokens, since p is zero on all others.

Shapes: n tokens of a chunk, V vocabulary, k stored tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from herd.model.transformer import Transformer
from herd.train.batch import Columns, to_tensors
from herd.train.loss import by_chunks
from herd.train.objectives.config import DistillConfig
from herd.train.objectives.forward import hidden_states
from herd.train.objectives.next_token import num_targets
from herd.train.objectives.objective import Objective, Shared, Sums

_LEAST = 1e-8
"""Probability of the tail at least: a rounding below zero is none, and its logarithm stays finite."""


def _with_tail(logprobs_nk: Tensor) -> Tensor:
    """One more outcome, the rest of the vocabulary."""
    tail = (1 - logprobs_nk.exp().sum(-1, keepdim=True)).clamp(min=_LEAST).log()
    return torch.cat([logprobs_nk, tail], dim=-1)


def _kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def divergence(config: DistillConfig, logits_nV: Tensor, ids_nk: Tensor, teacher_nk: Tensor) -> Tensor:
    """The divergence of each token, in nats, times the squared temperature."""
    t = config.temperature
    whole = (logits_nV / t).gather(1, ids_nk) - (logits_nV / t).logsumexp(-1, keepdim=True)
    if config.tail == "bucket":
        teacher = _with_tail(teacher_nk)
        student = narrow = _with_tail(whole)
    else:
        teacher = (teacher_nk / t).log_softmax(-1)
        student, narrow = whole, whole.log_softmax(-1)
    forward = _kl(teacher, student) if config.divergence != "reverse" else torch.zeros_like(whole[:, 0])
    reverse = _kl(narrow, teacher) if config.divergence != "forward" else torch.zeros_like(whole[:, 0])
    share = 0.5 if config.divergence == "symmetric" else 1.0
    return share * t * t * (forward + reverse)


@dataclass(frozen=True, kw_only=True, slots=True)
class Distillation(Objective):
    """A mix of the divergence from the teacher and the cross entropy with the data."""

    config: DistillConfig

    def units(self, columns: Columns) -> dict[str, int]:
        """The counted tokens."""
        return {"tokens": num_targets(columns)}

    def prepare(self, model: Transformer, parts: Sequence[Columns], dtype: torch.dtype) -> Shared:
        """Nothing."""
        return {}

    def sums(self, model: Transformer, columns: Columns, dtype: torch.dtype, shared: Shared) -> Sums:
        """The sum over tokens; metrics: the divergence and the cross entropy apart."""
        tensors = to_tensors(columns, model.device)
        hidden = hidden_states(model, tensors, dtype).flatten(0, 1)
        places = tensors["counts"][:, 1:].flatten().nonzero()[:, 0]
        targets, ids, teacher = (tensors[name][:, 1:].flatten(0, 1)[places] for name in ("tokens", "teacher_ids", "teacher_logprobs"))

        def both(logits: Tensor, target: Tensor, top: Tensor, logprobs: Tensor) -> Tensor:
            ce = logits.logsumexp(-1) - logits.gather(1, target[:, None])[:, 0]
            return torch.stack([divergence(self.config, logits, top, logprobs), ce], dim=-1)

        found = by_chunks(both, hidden[places], model.head_weight, targets, ids.long(), teacher.float()).sum(0)
        weight, number = self.config.ce_weight, float(len(places))
        metrics = {"divergence": (float(found[0].detach()), number), "ce": (float(found[1].detach()), number)}
        return Sums(terms={"tokens": (1 - weight) * found[0] + weight * found[1]}, metrics=metrics)
