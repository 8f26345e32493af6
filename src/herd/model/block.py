"""One layer: h = x + Attention(norm(x)); out = h + SwiGLU(norm(h)). Shapes: B batch, T tokens, D model dim, H head dim."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from herd.kernels import plain
from herd.model.attention import Attention, AttentionCore
from herd.model.config import ModelConfig
from herd.model.linear import Linear
from herd.model.norm import RMSNorm


class SwiGLU(nn.Module):
    """down(silu(gate(x)) * up(x)); w2, w1 and w3 in Meta's names."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate_proj = Linear(config.hidden_size, config.intermediate_size)
        self.up_proj = Linear(config.hidden_size, config.intermediate_size)
        self.down_proj = Linear(config.intermediate_size, config.hidden_size)

    def forward(self, x: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
        return self.down_proj(plain.swiglu(self.gate_proj(x), self.up_proj(x)))


class Block(nn.Module):
    """A pre-norm transformer layer. Attribute names are those of Hugging Face files."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config, layer)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = SwiGLU(config)

    def forward(
        self, x_BTD: Float[Tensor, "B T D"], rope: tuple[Float[Tensor, "#B T 1 H"], Float[Tensor, "#B T 1 H"]], core: AttentionCore
    ) -> Float[Tensor, "B T D"]:
        h_BTD = x_BTD + self.self_attn(self.input_layernorm(x_BTD), rope, core)
        return h_BTD + self.mlp(self.post_attention_layernorm(h_BTD))
