"""The reward model: the same Llama with a scalar head in place of the output matrix.

Parameter names are those of Hugging Face's sequence classification with one label: `model.*` and `score.weight`. Llama 3 report, section
4.1.2. Shapes: D model dim.
"""

from __future__ import annotations

from dataclasses import replace

from jaxtyping import Float
from torch import Tensor

from herd.model.config import ModelConfig
from herd.model.linear import Linear
from herd.model.transformer import Transformer


class RewardModel(Transformer):
    """A Transformer that gives a number to a sequence: `score_of` its hidden state at the last token. It predicts no tokens."""

    def __init__(self, config: ModelConfig) -> None:
        # Tied, since there is no output matrix to have weights of its own.
        super().__init__(replace(config, tie_word_embeddings=True))
        self.score = Linear(config.hidden_size, 1)

    def score_of(self, hidden: Float[Tensor, "*batch D"]) -> Float[Tensor, "*batch"]:
        """Rewards, float32, of hidden states at last tokens."""
        return (hidden.float() @ self.score.weight.float().t())[..., 0]
