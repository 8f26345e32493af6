"""How llama.cpp lays a Llama out in GGUF: key names, tensor names, row order and rotary factors, each way.

Knows no bytes: it turns a ModelConfig into metadata and back. What GGUF cannot hold exactly (the rotary scaling as numbers, epsilon
beyond 32 bits) is stored once more under `herd.` keys, which must agree with llama.cpp's own.
Source: llama.cpp's convert_hf_to_gguf.py, class LlamaModel.

Rotary rows: Hugging Face pairs (i, i + H/2), GGUF interleaves (2i, 2i + 1); the rows of q and k are permuted within each head.
Rotary scaling: `rope_freqs.weight` holds, for each pair, what its frequency is divided by; between the two wavelengths of
`config.RopeScaling` that is 1 / ((1 - s) / factor + s).
Shapes: H head dim.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from herd.base.errors import ConfigError, did_you_mean
from herd.checkpoint.gguf_format import Metadata, Typed, ValueType, array, f32, f64, text, u32
from herd.model.config import ModelConfig, RopeScaling
from herd.model.rope import rope_frequencies

ARCHITECTURE = "llama"
ROPE_FACTORS = "rope_freqs.weight"
EMBEDDING = "token_embd.weight"
OUTPUT = "output.weight"
NORM_DTYPE_KEY = "herd.norm_dtype"

PUBLISHED_FACTORS = (8.0, 32.0)
FACTOR_TOLERANCE = 1e-4

_LAYER_NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_GLOBAL_NAMES = {"model.embed_tokens.weight": EMBEDDING, "model.norm.weight": "output_norm.weight", "lm_head.weight": OUTPUT}
_CHECK = "the file was not made from a Llama model, or by a converter that herd does not know; convert the original again"


def gguf_name(name: str) -> str:
    """GGUF's name of a Hugging Face tensor of `ModelConfig.parameter_shapes`."""
    if name in _GLOBAL_NAMES:
        return _GLOBAL_NAMES[name]
    layer, part = name.removeprefix("model.layers.").removesuffix(".weight").split(".", maxsplit=1)
    return f"blk.{layer}.{_LAYER_NAMES[part]}.weight"


def interleaved_rows(name: str, config: ModelConfig) -> npt.NDArray[np.int64] | None:
    """The Hugging Face row that each GGUF row of a tensor holds; None for tensors whose rows stay."""
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}.get(name.split(".")[-2])
    if heads is None:
        return None
    rows = np.arange(heads * config.head_dim, dtype=np.int64)
    return rows.reshape(heads, 2, config.head_dim // 2).swapaxes(1, 2).reshape(-1)


def rope_factors(config: ModelConfig, scaling: RopeScaling) -> npt.NDArray[np.float32]:
    """What each pair's frequency is divided by under a scaling; float32 [H/2]."""
    wavelengths = 2 * math.pi / rope_frequencies(replace(config, rope_scaling=None))
    original = scaling.original_max_position_embeddings
    smooth = (original / wavelengths - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    factors = 1 / ((1 - smooth) / scaling.factor + smooth)
    factors = torch.where(wavelengths > original / scaling.low_freq_factor, torch.full_like(factors, scaling.factor), factors)
    factors = torch.where(wavelengths < original / scaling.high_freq_factor, torch.ones_like(factors), factors)
    return factors.numpy()


def scaling_from_factors(config: ModelConfig, factors: npt.NDArray[np.float32]) -> RopeScaling | None:
    """The published scaling that gives these factors; None if they are all 1. Raises ConfigError if there is none."""
    if factors.shape != (config.head_dim // 2,):
        raise ConfigError(f"{ROPE_FACTORS} holds {factors.shape} factors, {config.head_dim // 2} pairs are rotated", hint=_CHECK)
    if (factors == 1).all():
        return None
    for factor in (*PUBLISHED_FACTORS, _short(float(factors.max()))):
        if math.isfinite(factor) and factor >= 1:
            scaling = RopeScaling(factor=factor)
            if same_factors(rope_factors(config, scaling), factors):
                return scaling
    raise ConfigError(
        f"{ROPE_FACTORS} (from {factors.min():g} to {factors.max():g}) is no Llama 3.1 rotary scaling of 8192 positions, low 1, high 4",
        hint="convert the original Hugging Face model with `herd convert`, which reads its scaling from config.json",
    )


def same_factors(first: npt.NDArray[np.float32], second: npt.NDArray[np.float32]) -> bool:
    """Whether two sets of factors are one scaling, computed with different rounding."""
    return first.shape == second.shape and bool(np.allclose(first, second, rtol=FACTOR_TOLERANCE, atol=0))


def metadata_from_config(config: ModelConfig, *, name: str, file_type: int, alignment: int) -> Metadata:
    """The metadata of a model file, in the order that llama.cpp's converter writes it."""
    head_dim = config.head_dim
    metadata = {
        "general.architecture": text(ARCHITECTURE),
        "general.type": text("model"),
        "general.name": text(name),
        "general.file_type": u32(file_type),
        "general.alignment": u32(alignment),
        "general.quantization_version": u32(2),
        "llama.block_count": u32(config.num_hidden_layers),
        "llama.context_length": u32(config.max_position_embeddings),
        "llama.embedding_length": u32(config.hidden_size),
        "llama.feed_forward_length": u32(config.intermediate_size),
        "llama.attention.head_count": u32(config.num_attention_heads),
        "llama.attention.head_count_kv": u32(config.num_key_value_heads),
        "llama.attention.key_length": u32(head_dim),
        "llama.attention.value_length": u32(head_dim),
        "llama.attention.layer_norm_rms_epsilon": f32(config.rms_norm_eps),
        "llama.rope.freq_base": f32(config.rope_theta),
        "llama.rope.dimension_count": u32(head_dim),
        "llama.vocab_size": u32(config.vocab_size),
        "herd.rms_norm_eps": f64(config.rms_norm_eps),
        "herd.rope.theta": f64(config.rope_theta),
        "herd.initializer_range": f64(config.initializer_range),
    }
    return metadata | _scaling_metadata(config.rope_scaling)


def _scaling_metadata(scaling: RopeScaling | None) -> Metadata:
    if scaling is None:
        return {}
    numbers = [scaling.factor, scaling.low_freq_factor, scaling.high_freq_factor]
    return {
        "herd.rope.scaling": array(ValueType.FLOAT64, numbers),
        "herd.rope.original_context_length": u32(scaling.original_max_position_embeddings),
    }


def config_from_metadata(metadata: Metadata, *, vocab_rows: int, tied: bool) -> ModelConfig:
    """The config that the metadata describes, rotary scaling left out (`scaling_from_metadata` adds it).

    Args:
        metadata: the file's key-values.
        vocab_rows: rows of the embedding, for files without `llama.vocab_size`.
        tied: whether the file has no output matrix.

    Raises:
        ConfigError: another architecture, a missing key, or a feature that herd's Llama does not have.
    """
    _check_architecture(metadata)
    _check_features(metadata)
    heads = _whole(metadata, "llama.attention.head_count")
    hidden = _whole(metadata, "llama.embedding_length")
    head_dim = _whole(metadata, "llama.attention.key_length", hidden // heads)
    _check_head(metadata, head_dim)
    return ModelConfig(
        vocab_size=_whole(metadata, "llama.vocab_size", vocab_rows),
        hidden_size=hidden,
        intermediate_size=_whole(metadata, "llama.feed_forward_length"),
        num_hidden_layers=_whole(metadata, "llama.block_count"),
        num_attention_heads=heads,
        num_key_value_heads=_whole(metadata, "llama.attention.head_count_kv", heads),
        head_dim=head_dim,
        max_position_embeddings=_whole(metadata, "llama.context_length"),
        rms_norm_eps=_exact(metadata, "herd.rms_norm_eps", _real(metadata, "llama.attention.layer_norm_rms_epsilon")),
        rope_theta=_exact(metadata, "herd.rope.theta", _real(metadata, "llama.rope.freq_base", 10000.0)),
        tie_word_embeddings=tied,
        initializer_range=_real(metadata, "herd.initializer_range", 0.02),
    )


def scaling_from_metadata(metadata: Metadata, config: ModelConfig, factors: npt.NDArray[np.float32] | None) -> RopeScaling | None:
    """The rotary scaling: herd's own keys if the file has them, else recovered from the factors. Raises ConfigError if the two differ."""
    if "herd.rope.scaling" not in metadata:
        return None if factors is None else scaling_from_factors(config, factors)
    typed = metadata["herd.rope.scaling"]
    numbers = typed.value.values if typed.type is ValueType.ARRAY else ()
    if len(numbers) != 3 or not all(isinstance(number, float) and math.isfinite(number) for number in numbers):
        raise ConfigError("herd.rope.scaling is not three finite numbers", hint=_CHECK)
    scaling = RopeScaling(
        factor=numbers[0],
        low_freq_factor=numbers[1],
        high_freq_factor=numbers[2],
        original_max_position_embeddings=_whole(metadata, "herd.rope.original_context_length"),
    )
    if factors is None or not same_factors(rope_factors(config, scaling), factors):
        raise ConfigError(f"herd.rope.scaling {tuple(numbers)} is not what {ROPE_FACTORS} holds", hint=_CHECK)
    return scaling


def _check_architecture(metadata: Metadata) -> None:
    typed = metadata.get("general.architecture")
    if typed is None or typed.type is not ValueType.STRING:
        raise ConfigError("the file names no general.architecture", hint="this GGUF file holds no model (a LoRA adapter or a vocabulary?)")
    if typed.value != ARCHITECTURE:
        close = did_you_mean(typed.value, [ARCHITECTURE], otherwise=None)
        raise ConfigError(
            f"general.architecture is {typed.value[:60]!r}",
            hint=f"herd reads one architecture, {ARCHITECTURE!r}" + (f"; {close}" if close else ""),
        )


def _check_features(metadata: Metadata) -> None:
    shards = _whole(metadata, "split.count", 1)
    if shards > 1:
        raise ConfigError(f"the file is one of {shards} splits", hint="join them first: llama-gguf-split --merge FIRST OUT")
    if _whole(metadata, "llama.expert_count", 0):
        raise ConfigError("llama.expert_count is over 0: a mixture of experts", hint="herd reads dense Llama models")
    scaling = metadata.get("llama.rope.scaling.type")
    if scaling is not None and scaling.value != "none":
        raise ConfigError(
            f"llama.rope.scaling.type is {str(scaling.value)[:60]!r}",
            hint=f"herd knows Llama 3.1 scaling, which GGUF keeps in {ROPE_FACTORS}",
        )


def _check_head(metadata: Metadata, head_dim: int) -> None:
    for key in ("llama.attention.value_length", "llama.rope.dimension_count"):
        value = _whole(metadata, key, head_dim)
        if value != head_dim:
            raise ConfigError(f"{key} is {value}, the head size is {head_dim}", hint="herd's Llama rotates whole heads of one size")


def _typed(metadata: Metadata, key: str) -> Typed:
    if key not in metadata:
        raise ConfigError(f"the file has no key {key}", hint=did_you_mean(key, metadata, otherwise=_CHECK))
    return metadata[key]


def _whole(metadata: Metadata, key: str, default: int | None = None) -> int:
    """A positive count, or the default (which may be 0) where the key is absent."""
    if default is not None and key not in metadata:
        return default
    value: Any = _typed(metadata, key).value
    if not isinstance(value, int) or isinstance(value, bool) or value < (1 if default != 0 else 0):
        raise ConfigError(f"{key} is {_shown(value)}, it must be one positive integer", hint=_CHECK)
    return value


def _real(metadata: Metadata, key: str, default: float | None = None) -> float:
    if default is not None and key not in metadata:
        return default
    typed = _typed(metadata, key)
    if not isinstance(typed.value, float) or not math.isfinite(typed.value):
        raise ConfigError(f"{key} is {_shown(typed.value)}, it must be a finite number", hint=_CHECK)
    return _short(typed.value) if typed.type is ValueType.FLOAT32 else typed.value


def _exact(metadata: Metadata, key: str, rounded: float) -> float:
    """The 64-bit value of a `herd.` key where the file has one; it must be what llama.cpp's key rounds."""
    value = _real(metadata, key, rounded)
    if not math.isclose(value, rounded, rel_tol=1e-6):
        raise ConfigError(f"{key} is {value:g} where llama.cpp's own key says {rounded:g}", hint="edit or remove both keys together")
    return value


def _short(value: float) -> float:
    """The shortest decimal that a float32 rounds from: 1e-05 for 9.999999747e-06."""
    return float(str(np.float32(value)))


def _shown(value: Any) -> str:
    return f"{value!r:.60}" if isinstance(value, (bool, int, float, str)) else "an array"
