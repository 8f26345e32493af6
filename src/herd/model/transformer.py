"""The Llama transformer: tokens in, float32 logits out. The same class trains, evaluates and serves.

Knows no text, no cache layout and no device plan: what mixes tokens is the attention core that the caller gives (`model.attention`).
Parameter names are Hugging Face's, so a state dict is a checkpoint. Llama 3 report, section 3.2.
Shapes: B batch, T tokens, D model dim, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from herd.base.errors import ConfigError
from herd.kernels import plain
from herd.model.attention import AttentionCore, CausalCore, MaskedCore, padding_mask
from herd.model.block import Block
from herd.model.config import ModelConfig
from herd.model.linear import Linear
from herd.model.norm import RMSNorm
from herd.model.quant_linear import QuantLinear
from herd.model.rope import rope_frequencies, rope_table

BlockRunner = Callable[..., Tensor]


def call_block(block: Block, *args: object) -> Tensor:
    """Run a block as it is: the default of `Transformer.block_runner`."""
    return block(*args)


class Decoder(nn.Module):
    """Embedding, blocks and final norm: the part whose names begin with `model.` in a checkpoint."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        # Not nn.Embedding(V, D): its initialisation on the meta device imports torch._dynamo, 0.6 s and 100 MB before any weights.
        self.embed_tokens = nn.Embedding.from_pretrained(torch.empty(config.vocab_size, config.hidden_size), freeze=False)
        self.layers = nn.ModuleList(Block(config, layer) for layer in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)


class Transformer(nn.Module):
    """A Llama model.

    Build under `torch.device("meta")` for shapes alone; `init.initialise` fills it, `checkpoint.load_model` loads it.
    `block_runner` is the hook for activation checkpointing: it is called as `block_runner(block, x, rope, core)`.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.model = Decoder(config)
        self.lm_head: Linear | QuantLinear | None = None if config.tie_word_embeddings else Linear(config.hidden_size, config.vocab_size)
        self.block_runner: BlockRunner = call_block
        self._frequencies: Tensor | None = None

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.model.embed_tokens.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights and of the residual stream."""
        return self.model.embed_tokens.weight.dtype

    @property
    def head_weight(self) -> Float[Tensor, "V D"]:
        """The output matrix; the embedding itself when tied."""
        return self.model.embed_tokens.weight if self.lm_head is None else self.lm_head.weight

    def _rope(self, positions_BT: Int[Tensor, "B T"]) -> tuple[Tensor, Tensor]:
        if self._frequencies is None or self._frequencies.device != positions_BT.device:
            self._frequencies = rope_frequencies(self.config, positions_BT.device)
        return rope_table(positions_BT, self._frequencies)

    def hidden(
        self, tokens_BT: Int[Tensor, "B T"], *, core: AttentionCore | None = None, positions_BT: Int[Tensor, "#B T"] | None = None
    ) -> Float[Tensor, "B T D"]:
        """The final normalised hidden states, in the model's dtype. Positions count from 0 unless given."""
        if positions_BT is None:
            positions_BT = torch.arange(tokens_BT.shape[1], device=tokens_BT.device)[None]
        rope = self._rope(positions_BT)
        core = core or CausalCore()
        x_BTD = self.model.embed_tokens(tokens_BT)
        for block in self.model.layers:
            x_BTD = self.block_runner(block, x_BTD, rope, core)
        return self.model.norm(x_BTD)

    def logits(self, hidden: Float[Tensor, "*batch D"]) -> Float[Tensor, "*batch V"]:
        """Project hidden states to the vocabulary; float32."""
        if isinstance(self.lm_head, QuantLinear):
            return self.lm_head(hidden).float()
        return plain.linear(hidden, self.head_weight).float()

    def forward(
        self,
        tokens_BT: Int[Tensor, "B T"],
        *,
        core: AttentionCore | None = None,
        positions_BT: Int[Tensor, "#B T"] | None = None,
        valid_BT: Bool[Tensor, "B T"] | None = None,
    ) -> Float[Tensor, "B T V"]:
        """Float32 logits of every position.

        `valid_BT` is False on padding, on either side; positions then count valid tokens only. Logits of padding mean nothing.
        Raises ConfigError if both a core and a padding mask are given.
        """
        if valid_BT is not None:
            if core is not None:
                raise ConfigError("give the transformer a core or a padding mask, not both", hint="fold the padding into the core's mask")
            core = MaskedCore(padding_mask(valid_BT))
            if positions_BT is None:
                positions_BT = (valid_BT.long().cumsum(-1) - 1).clamp(min=0)
        return self.logits(self.hidden(tokens_BT, core=core, positions_BT=positions_BT))
