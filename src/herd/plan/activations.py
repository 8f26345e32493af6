"""What a layer keeps for its backward pass, token by token, under each policy of recomputation; the closed form of a fused implementation.

Kernels are taken to be fused: a norm keeps its input, SwiGLU its two inputs, attention q, k, v, its output and a logarithm a head.
Values a token and layer, D model dim, Q = N H query width, K' = K H key width, F ffn dim (all divided by TP, sequence parallel included):
    none         x, norm(x), q, k, v, o, h, norm(h), gate, up, product      4 D + 2 Q + 2 K' + 3 F
    elementwise  x, q, k, v, o, h, gate, up                                 2 D + 2 Q + 2 K' + 2 F
    selective    x, q, k, v, o, h                                           2 D + 2 Q + 2 K'
    full         x                                                          D
A test holds the first row against what autograd keeps of such a block.
"""

from __future__ import annotations

from herd.model.config import ModelConfig
from herd.plan.mesh import Recompute


def layer_bytes(config: ModelConfig, recompute: Recompute, *, tokens: int, tp: int, bytes_per_value: int) -> int:
    """Bytes that one layer keeps of `tokens` tokens on one tensor-parallel rank."""
    query, keyvalue = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
    dim, ffn = config.hidden_size, config.intermediate_size
    attention = 2 * query + 2 * keyvalue
    values = {
        "none": 4 * dim + attention + 3 * ffn,
        "elementwise": 2 * dim + attention + 2 * ffn,
        "selective": 2 * dim + attention,
        "full": dim,
    }[recompute]
    logs = 0 if recompute == "full" else 4 * config.num_attention_heads
    return tokens * (values * bytes_per_value + logs) // tp


def working_bytes(config: ModelConfig, recompute: Recompute, *, tokens: int, tp: int, bytes_per_value: int) -> int:
    """What the layer in work takes besides: what it computes again, gradients of the widest part, and what tensor parallel ranks gather."""
    whole = layer_bytes(config, "none", tokens=tokens, tp=tp, bytes_per_value=bytes_per_value)
    kept = layer_bytes(config, recompute, tokens=tokens, tp=tp, bytes_per_value=bytes_per_value)
    gradients = tokens * bytes_per_value * (3 * config.intermediate_size // tp + config.hidden_size)
    gathered = tokens * bytes_per_value * config.hidden_size if tp > 1 else 0
    return whole - kept + gradients + gathered


def moved_values(config: ModelConfig, recompute: Recompute) -> int:
    """Values a token and layer that pass through memory outside of products, forward and backward: norms, sums, rotation, SwiGLU."""
    query, keyvalue = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
    norms, sums, rotation = 4 * config.hidden_size, 6 * config.hidden_size, 2 * (query + keyvalue)
    swiglu = 3 * config.intermediate_size
    again = {"none": 0, "elementwise": norms + swiglu, "selective": norms + swiglu, "full": norms + sums + rotation + swiglu}[recompute]
    return 3 * (norms + sums + rotation + swiglu) + again
