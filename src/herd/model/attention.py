"""Grouped-query attention, split at the seam: the projections live here, the core that mixes tokens is given.

A core is called once a layer as `core(layer, q_BTNH, k_BTKH, v_BTKH) -> o_BTNH` after the rotation, so keys are cached rotated. Training
passes a causal or a document core, generation a cache (`model.cache`), the engine its pages; nothing else in the model differs.
Query head i reads KV head i // (N/K); scores are divided by sqrt(H). Shapes: B batch, T tokens, N query heads, K KV heads, H head dim.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from herd.kernels import plain
from herd.model.config import ModelConfig
from herd.model.linear import Linear
from herd.model.rope import apply_rope


@runtime_checkable
class AttentionCore(Protocol):
    """What mixes tokens. `layer` numbers the block, for cores that keep state by layer."""

    def __call__(
        self, layer: int, q_BTNH: Float[Tensor, "B T N H"], k_BTKH: Float[Tensor, "B T K H"], v_BTKH: Float[Tensor, "B T K H"]
    ) -> Float[Tensor, "B T N H"]: ...


def sdpa(
    q_BTNH: Float[Tensor, "B T N H"],
    k_BSKH: Float[Tensor, "B S K H"],
    v_BSKH: Float[Tensor, "B S K H"],
    mask: Bool[Tensor, "... T S"] | None = None,
    *,
    causal: bool = False,
) -> Float[Tensor, "B T N H"]:
    """Torch's scaled dot product attention over herd's layout; `mask` is True where a token may look."""
    out = F.scaled_dot_product_attention(
        q_BTNH.transpose(1, 2),
        k_BSKH.transpose(1, 2),
        v_BSKH.transpose(1, 2),
        attn_mask=mask,
        is_causal=causal,
        enable_gqa=q_BTNH.shape[2] != k_BSKH.shape[2],
    )
    return out.transpose(1, 2)


class CausalCore:
    """Every token sees itself and all before it."""

    def __call__(
        self, layer: int, q_BTNH: Float[Tensor, "B T N H"], k_BTKH: Float[Tensor, "B T K H"], v_BTKH: Float[Tensor, "B T K H"]
    ) -> Float[Tensor, "B T N H"]:
        fixed = plain.causal_attention(q_BTNH, k_BTKH, v_BTKH)
        return sdpa(q_BTNH, k_BTKH, v_BTKH, causal=True) if fixed is None else fixed


class MaskedCore:
    """A given mask, True where a token may look; [B, 1, T, T] or [T, T]."""

    def __init__(self, mask: Bool[Tensor, "... T T"]) -> None:
        self.mask = mask

    def __call__(
        self, layer: int, q_BTNH: Float[Tensor, "B T N H"], k_BTKH: Float[Tensor, "B T K H"], v_BTKH: Float[Tensor, "B T K H"]
    ) -> Float[Tensor, "B T N H"]:
        return sdpa(q_BTNH, k_BTKH, v_BTKH, self.mask)


def document_mask(documents_BT: Int[Tensor, "B T"]) -> Bool[Tensor, "B 1 T T"]:
    """Causal and within one document: a token sees those before it that carry its document number. Llama 3 report, section 3.2."""
    same = documents_BT[:, None, :, None] == documents_BT[:, None, None, :]
    length = documents_BT.shape[1]
    return same & torch.ones(length, length, dtype=torch.bool, device=documents_BT.device).tril()


def padding_mask(valid_BT: Bool[Tensor, "B T"]) -> Bool[Tensor, "B 1 T T"]:
    """Causal over the valid tokens, whichever side the padding is on. A padding token sees itself, so that no row is empty."""
    length = valid_BT.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool, device=valid_BT.device).tril()
    self_only = torch.eye(length, dtype=torch.bool, device=valid_BT.device)
    return (valid_BT[:, None, None, :] & causal) | self_only


class Attention(nn.Module):
    """Projections, rotation, the given core, output projection."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.head_dim = config.head_dim
        query, keyvalue = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
        self.q_proj = Linear(config.hidden_size, query)
        self.k_proj = Linear(config.hidden_size, keyvalue)
        self.v_proj = Linear(config.hidden_size, keyvalue)
        self.o_proj = Linear(query, config.hidden_size)

    def forward(
        self, x_BTD: Float[Tensor, "B T D"], rope: tuple[Float[Tensor, "#B T 1 H"], Float[Tensor, "#B T 1 H"]], core: AttentionCore
    ) -> Float[Tensor, "B T D"]:
        shape = (*x_BTD.shape[:2], -1, self.head_dim)
        q_BTNH = apply_rope(self.q_proj(x_BTD).view(shape), *rope)
        k_BTKH = apply_rope(self.k_proj(x_BTD).view(shape), *rope)
        v_BTKH = self.v_proj(x_BTD).view(shape)
        return self.o_proj(self.mix(core, q_BTNH, k_BTKH, v_BTKH).flatten(2))

    def mix(
        self, core: AttentionCore, q_BTNH: Float[Tensor, "B T N H"], k_BTKH: Float[Tensor, "B T K H"], v_BTKH: Float[Tensor, "B T K H"]
    ) -> Float[Tensor, "B T N H"]:
        """The core's answer for this layer: the one place that reads the layer's number."""
        return core(self.layer, q_BTNH, k_BTKH, v_BTKH)
