"""What each matrix is worth: the divergence of the model's answers when that matrix alone is quantised, measured.

    KL = mean over tokens of sum_v p_v log(p_v / q_v),   p the model as it is, q with one matrix rounded

The whole model is in memory; from the changed block on its answers are computed anew, what comes before is kept. Other schemes of a matrix
are not measured: divergence goes with the square of the error, so theirs is that of the measured one times the ratio of squared errors.
Shapes: B sequences, T tokens, D model dim, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from jaxtyping import Float, Int
from torch import Tensor

from herd.checkpoint.quant_scheme import MatrixScheme
from herd.model.attention import CausalCore
from herd.model.transformer import Transformer
from herd.quant.rounding import relative_error, round_matrix

Advance = Callable[[int, int, str], None]
TOKENS = 512
"""Tokens of calibration that are looked at, whole sequences."""


class _Answers:
    """The blocks of a model over fixed tokens, from any block on."""

    def __init__(self, model: Transformer, tokens_BT: Tensor) -> None:
        self._model = model
        self._rope = model._rope(torch.arange(tokens_BT.shape[1])[None])  # pyright: ignore[reportPrivateUsage]
        self.before = [model.model.embed_tokens(tokens_BT)]
        for block in model.model.layers:
            self.before.append(block(self.before[-1], self._rope, CausalCore()))

    def from_block(self, first: int) -> Float[Tensor, "B T V"]:
        """Log probabilities."""
        hidden = self.before[first]
        for block in list(self._model.model.layers)[first:]:
            hidden = block(hidden, self._rope, CausalCore())
        return self._model.logits(self._model.model.norm(hidden)).log_softmax(-1)


@torch.no_grad()
def measure(
    model: Transformer, tokens_BT: Int[Tensor, "B T"], schemes: Mapping[str, MatrixScheme], progress: Advance | None = None
) -> dict[str, float]:
    """The divergence that each quantised matrix causes alone, by name. The model comes back as it was; it should be float32."""
    tokens = tokens_BT[: max(1, TOKENS // tokens_BT.shape[1])]
    answers = _Answers(model, tokens)
    base = answers.from_block(len(model.model.layers))
    found: dict[str, float] = {}
    names = [name for name in schemes if name.startswith("model.layers.")]
    for number, name in enumerate(names):
        if progress is not None:
            progress(number, len(names), name)
        parameter = model.get_parameter(f"{name}.weight")
        before = parameter.clone()
        parameter.copy_(round_matrix(before, schemes[name]).dequantise())
        answer = answers.from_block(int(name.split(".")[2]))
        parameter.copy_(before)
        found[name] = max(float((base.exp() * (base - answer)).sum(-1).mean()), 0.0)
    return found


def error_ratio(weight: Tensor, scheme: MatrixScheme, measured: MatrixScheme) -> float:
    """The squared error of one scheme over that of the measured one."""
    if scheme == measured:
        return 1.0
    reference = relative_error(weight, round_matrix(weight, measured))
    return (relative_error(weight, round_matrix(weight, scheme)) / reference) ** 2 if reference else 0.0
