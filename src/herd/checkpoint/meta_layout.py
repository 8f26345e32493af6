"""Where each tensor of a model lies in Meta's layout: its key, how ranks share it, and how many bytes a shard has.

Meta rotates adjacent components (2i, 2i+1), Hugging Face halves (i, i + H/2), so the rows of wq and wk are reordered within each head.
Where there are more ranks than KV heads each KV head is stored several times, once a rank.
Letters: L layers, D model dim, V vocabulary, F ffn dim, N query heads, K KV heads, H head dim.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from herd.base.errors import UsageError
from herd.checkpoint.meta_fp8 import FP8_DTYPE, FP8_MATRICES, is_fp8_layer
from herd.model.config import ModelConfig

_TOP = {
    "model.embed_tokens.weight": ("tok_embeddings.weight", 0),
    "model.norm.weight": ("norm.weight", None),
    "lm_head.weight": ("output.weight", 0),
}
_LAYER: dict[str, tuple[str, int | None]] = {
    "input_layernorm": ("attention_norm", None),
    "self_attn.q_proj": ("attention.wq", 0),
    "self_attn.k_proj": ("attention.wk", 0),
    "self_attn.v_proj": ("attention.wv", 0),
    "self_attn.o_proj": ("attention.wo", 1),
    "post_attention_layernorm": ("ffn_norm", None),
    "mlp.gate_proj": ("feed_forward.w1", 0),
    "mlp.up_proj": ("feed_forward.w3", 0),
    "mlp.down_proj": ("feed_forward.w2", 1),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Slot:
    """One tensor: Hugging Face's name, Meta's key, its full shape, and the dimension that ranks split (None: each has all of it).

    `layer` is -1 outside of layers. `matrix` is the key's last part within a layer ("wq", "w1", "attention_norm"), empty outside of layers.
    """

    name: str
    key: str
    shape: tuple[int, ...]
    split: int | None
    layer: int = -1
    matrix: str = ""

    @property
    def is_keyvalue(self) -> bool:
        """Whether its rows are KV heads, which may be stored repeatedly."""
        return self.matrix in ("wk", "wv")

    def is_fp8(self, config: ModelConfig) -> bool:
        """Whether the 8-bit release stores it in 8 bits."""
        return self.matrix in FP8_MATRICES and is_fp8_layer(config, self.layer)

    def shard_shape(self, shards: int) -> tuple[int, ...]:
        """Its shape in one of `shards` files."""
        return tuple(size // shards if dim == self.split else size for dim, size in enumerate(self.shape))


def meta_slots(config: ModelConfig) -> list[Slot]:
    """Every tensor of the model, in file order."""
    shapes, slots = config.parameter_shapes(), []
    for name, shape in shapes.items():
        if name in _TOP:
            key, split = _TOP[name]
            slots.append(Slot(name=name, key=key, shape=shape, split=split))
            continue
        layer, _, part = name.removeprefix("model.layers.").removesuffix(".weight").partition(".")
        key, split = _LAYER[part]
        slots.append(
            Slot(name=name, key=f"layers.{layer}.{key}.weight", shape=shape, split=split, layer=int(layer), matrix=key.rpartition(".")[2])
        )
    return slots


def kv_repeats(config: ModelConfig, shards: int) -> int:
    """How many times each KV head is stored in `shards` files."""
    return max(1, shards // config.num_key_value_heads)


def check_shardable(config: ModelConfig, shards: int, *, fp8: bool = False) -> None:
    """Raise UsageError, naming the numbers, if the model cannot be cut into that many shards."""
    if shards < 1:
        raise UsageError(f"{shards} shards are not possible", hint="choose 1, 2, 4, 8 or 16")
    kv_heads = config.num_key_value_heads
    sizes = {
        "vocab_size": config.vocab_size,
        "intermediate_size": config.intermediate_size,
        "num_attention_heads": config.num_attention_heads,
    }
    for name, size in sizes.items():
        if size % shards:
            raise UsageError(f"{name} {size} does not divide into {shards} shards", hint="choose fewer shards: 1 always works")
    if kv_heads % shards and shards % kv_heads:
        raise UsageError(f"{kv_heads} KV heads cannot be shared by {shards} shards", hint="one of the two must divide the other")
    if config.head_dim * config.num_attention_heads != config.hidden_size:
        raise UsageError(
            f"head_dim {config.head_dim} x {config.num_attention_heads} heads is not hidden_size {config.hidden_size}",
            hint="Meta's format knows no such model: convert to hf or gguf",
        )
    if fp8 and config.num_hidden_layers < 3:
        message = f"the 8-bit format keeps the first and the last layer whole: with {config.num_hidden_layers} layers nothing is left"
        raise UsageError(message, hint="convert without fp8")


def meta_shard_shapes(config: ModelConfig, shards: int, fp8: bool = False) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    """The keys of one shard with their shapes and published dtypes; all shards are alike. Raises UsageError for an impossible number."""
    check_shardable(config, shards, fp8=fp8)
    table = {}
    for slot in meta_slots(config):
        shape = slot.shard_shape(shards)
        if slot.is_keyvalue:
            shape = (slot.shape[0] * kv_repeats(config, shards) // shards, slot.shape[1])
        table[slot.key] = (shape, FP8_DTYPE if fp8 and slot.is_fp8(config) else torch.bfloat16)
    return table


def meta_shard_bytes(config: ModelConfig, shards: int, *, fp8: bool = False) -> int:
    """Bytes of the weights in one shard as published: BF16, or 8 bits where the 8-bit release has them. Scales are not counted.

    Equal to the sum over `meta_shard_shapes`; nothing is allocated. Raises UsageError for an impossible number of shards.
    """
    check_shardable(config, shards, fp8=fp8)
    layers, dim = config.num_hidden_layers, config.hidden_size
    norms = (2 * layers + 1) * dim
    one_kv_copy = 2 * layers * config.num_key_value_heads * config.head_dim * dim
    matrices = config.num_parameters - norms + (kv_repeats(config, shards) - 1) * one_kv_copy
    eight_bit = (layers - 2) * config.num_parameters_ffn if fp8 else 0
    return (2 * matrices - eight_bit) // shards + 2 * norms


def meta_scale_bytes(config: ModelConfig, shards: int) -> int:
    """Bytes of one rank's scales in the 8-bit release: float32, one per row of the local shard."""
    return 4 * (config.num_hidden_layers - 2) * (2 * config.intermediate_size // shards + config.hidden_size)


def as_pairs(weight: Tensor, heads: int) -> Tensor:
    """A view of q_proj or k_proj, [heads * H, D], as Meta orders its rows: [heads, H / 2, 2, D]."""
    return weight.view(heads, 2, weight.shape[0] // heads // 2, weight.shape[1]).transpose(1, 2)


def rows_to_meta(weight: Tensor, heads: int) -> Tensor:
    """Reorder the rows of q_proj or k_proj from halves to adjacent pairs, [heads * H, D]."""
    return as_pairs(weight, heads).reshape(weight.shape)


def repeat_heads(weight: Tensor, head_dim: int, repeats: int) -> Tensor:
    """Each KV head's rows `repeats` times in a row."""
    if repeats == 1:
        return weight
    heads = weight.view(-1, head_dim, math.prod(weight.shape[1:]))
    return heads.repeat_interleave(repeats, dim=0).reshape(-1, *weight.shape[1:])
