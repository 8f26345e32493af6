"""The named models: published Llama shapes and the cria sizes that herd trains itself.

Numbers are those of the model cards and params.json files; `tests/model/test_config.py` holds every exact parameter count.
"""

from __future__ import annotations

from herd.base.errors import NotFoundError, did_you_mean
from herd.model.config import ModelConfig, RopeScaling, ffn_dim

_SCALING_31 = RopeScaling(factor=8.0)
_SCALING_32 = RopeScaling(factor=32.0)


def _llama3(
    dim: int,
    layers: int,
    heads: int,
    *,
    multiplier: float,
    multiple_of: int,
    scaling: RopeScaling | None,
    context: int = 131072,
    tied: bool = False,
) -> ModelConfig:
    return ModelConfig(
        vocab_size=128256,
        hidden_size=dim,
        intermediate_size=ffn_dim(dim, multiplier, multiple_of),
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=8,
        head_dim=dim // heads,
        max_position_embeddings=context,
        rope_scaling=scaling,
        tie_word_embeddings=tied,
    )


def _cria(dim: int, layers: int, heads: int, kv_heads: int, ffn: int, *, vocab: int, context: int) -> ModelConfig:
    return ModelConfig(
        vocab_size=vocab,
        hidden_size=dim,
        intermediate_size=ffn,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=64,
        max_position_embeddings=context,
        tie_word_embeddings=True,
    )


PRESETS: dict[str, ModelConfig] = {
    "llama-3-8b": _llama3(4096, 32, 32, multiplier=1.3, multiple_of=1024, scaling=None, context=8192),
    "llama-3-70b": _llama3(8192, 80, 64, multiplier=1.3, multiple_of=4096, scaling=None, context=8192),
    "llama-3.1-8b": _llama3(4096, 32, 32, multiplier=1.3, multiple_of=1024, scaling=_SCALING_31),
    "llama-3.1-70b": _llama3(8192, 80, 64, multiplier=1.3, multiple_of=4096, scaling=_SCALING_31),
    "llama-3.1-405b": _llama3(16384, 126, 128, multiplier=1.2, multiple_of=4096, scaling=_SCALING_31),
    "llama-3.2-1b": _llama3(2048, 16, 32, multiplier=1.5, multiple_of=256, scaling=_SCALING_32, tied=True),
    "llama-3.2-3b": _llama3(3072, 28, 24, multiplier=1.0, multiple_of=256, scaling=_SCALING_32, tied=True),
    "llama-guard-3-8b": _llama3(4096, 32, 32, multiplier=1.3, multiple_of=1024, scaling=_SCALING_31),
    "llama-guard-3-1b": _llama3(2048, 16, 32, multiplier=1.5, multiple_of=256, scaling=_SCALING_32, tied=True),
    "cria-25m": _cria(384, 12, 6, 2, 1024, vocab=16384, context=1024),
    "cria-8m": _cria(256, 8, 4, 1, 768, vocab=8448, context=1024),
    "cria-tiny": _cria(128, 4, 2, 1, 384, vocab=1280, context=512),
}


def preset(name: str) -> ModelConfig:
    """The config named `name`. Raises NotFoundError, with the nearest name, where there is none."""
    if name not in PRESETS:
        hint = did_you_mean(name, PRESETS, otherwise="presets: " + ", ".join(PRESETS))
        raise NotFoundError(f"no model preset is named {name!r}", hint=hint)
    return PRESETS[name]
