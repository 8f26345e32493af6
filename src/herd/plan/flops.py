"""Operations of a training token, in the convention of the Llama 3 report, so that TFLOPs a device can be held against its table.

6 for each parameter (all of them, embedding included) and token, and 6 L N H S for causal attention over sequences of S tokens: each
product once forward and twice backward, what is recomputed never counted. 405B: 2.537e12 a token at 8,192, 4.059e12 at 131,072.
"""

from __future__ import annotations

from herd.model.config import ModelConfig


def attention_flops_per_token(config: ModelConfig, sequence: int) -> int:
    """Of causal attention itself, forward and backward."""
    return 6 * config.num_hidden_layers * config.num_attention_heads * config.head_dim * sequence


def flops_per_token(config: ModelConfig, sequence: int) -> int:
    """Of a token in sequences of that length, forward and backward."""
    return 6 * config.num_parameters + attention_flops_per_token(config, sequence)
