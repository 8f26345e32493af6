"""Bytes of a model's weights by format, exactly, whole or on one rank of a served model. Scales are told apart from weights.

fp32, bf16   every value
fp8          as Meta released the 405B: the ffn of all layers but the first and the last in one byte, a float32 scale for each row of each
             rank's part; all else bfloat16. 487.2 GB for the 405B, where one byte for everything would be 406
fp8-linear   every matrix of the layers and the head in one byte, a float32 scale for each row; embedding and norms bfloat16
int8         the same sizes as fp8-linear
int4         every matrix of the layers in half a byte, a bfloat16 scale for each 128 values of a row; all else bfloat16
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from herd.base.errors import ConfigError
from herd.model.config import ModelConfig

Format = Literal["bf16", "fp32", "fp8", "fp8-linear", "int8", "int4"]
FORMATS: tuple[Format, ...] = ("bf16", "fp32", "fp8", "fp8-linear", "int8", "int4")
_GROUP = 128
_TORCH_NAMES = {"bfloat16": "bf16", "float32": "fp32"}


def as_format(text: str) -> Format:
    """A format by name, torch's names too. Raises ConfigError for one that is not known."""
    for known in FORMATS:
        if _TORCH_NAMES.get(text, text) == known:
            return known
    raise ConfigError(f"the format of weights is {text!r}", hint="choose " + ", ".join(FORMATS))


@dataclass(frozen=True, kw_only=True, slots=True)
class WeightBytes:
    """Bytes of weights, the embedding's among them, and of scales; values of the layers' matrices, and those of them that are quantised."""

    weights: int
    scales: int
    embedding: int
    num_matrix: int
    num_quantised: int

    @property
    def total(self) -> int:
        """Weights and scales."""
        return self.weights + self.scales


def _layer(config: ModelConfig, kind: Format, tp: int, *, inner: bool) -> tuple[int, int, int]:
    """Bytes of a layer's weights and scales on one of `tp` ranks, and how many values are quantised."""
    attention, ffn = config.num_parameters_attention // tp, config.num_parameters_ffn // tp
    norms, dim, width = 2 * config.hidden_size, config.hidden_size, config.intermediate_size // tp
    query, keyvalue = (heads * config.head_dim // tp for heads in (config.num_attention_heads, config.num_key_value_heads))
    ffn_rows, attention_rows = 2 * width + dim, query + 2 * keyvalue + dim
    if kind in ("bf16", "fp32"):
        return (attention + ffn + norms) * (4 if kind == "fp32" else 2), 0, 0
    if kind == "fp8":
        return (ffn + 2 * (attention + norms), 4 * ffn_rows, ffn) if inner else (2 * (attention + ffn + norms), 0, 0)
    matrices = attention + ffn
    if kind == "int4":
        return matrices // 2 + 2 * norms, 2 * (matrices // _GROUP), matrices
    return matrices + 2 * norms, 4 * (ffn_rows + attention_rows), matrices


def layer_range(config: ModelConfig, pp: int, stage: int) -> range:
    """The layers of a stage of a served model: as even as they go, the first stages have one more."""
    size, more = divmod(config.num_hidden_layers, pp)
    start = stage * size + min(stage, more)
    return range(start, start + size + (1 if stage < more else 0))


def weight_bytes(config: ModelConfig, kind: Format, *, tp: int = 1, pp: int = 1, stage: int = 0) -> WeightBytes:
    """What one rank holds; with tp and pp 1, the whole model. Raises ConfigError for a split that does not come out even."""
    if config.num_key_value_heads % tp or config.intermediate_size % tp:
        raise ConfigError(
            f"tp {tp} does not divide {config.num_key_value_heads} KV heads and {config.intermediate_size:,} ffn columns",
            hint="choose a divisor",
        )
    if not 1 <= pp <= config.num_hidden_layers:
        raise ConfigError(f"pp is {pp}, the model has {config.num_hidden_layers} layers", hint="choose between 1 and the layers")
    last, weights, scales, quantised = config.num_hidden_layers - 1, 0, 0, 0
    layers = layer_range(config, pp, stage)
    for layer in layers:
        one, its_scales, count = _layer(config, kind, tp, inner=0 < layer < last)
        weights, scales, quantised = weights + one, scales + its_scales, quantised + count
    matrix, plain = -(-config.vocab_size // tp) * config.hidden_size, 4 if kind == "fp32" else 2
    is_first, is_last, tied = stage == 0, stage == pp - 1, config.tie_word_embeddings
    if is_first:
        weights += matrix * plain
    if is_last:
        narrow = kind in ("fp8-linear", "int8") and not tied
        weights += config.hidden_size * plain
        weights += 0 if tied and is_first else matrix * (1 if narrow else plain)
        scales += 4 * -(-config.vocab_size // tp) if narrow else 0
    return WeightBytes(
        weights=weights,
        scales=scales,
        embedding=matrix * plain if is_first else 0,
        num_matrix=len(layers) * (config.num_parameters_attention + config.num_parameters_ffn) // tp,
        num_quantised=quantised,
    )


def model_bytes(config: ModelConfig, kind: Format, *, tp: int = 1) -> WeightBytes:
    """The model over all of `tp` ranks, a replicated norm counted once: the size of its files. Scales are those of all ranks."""
    return replace(weight_bytes(config, kind), scales=weight_bytes(config, kind, tp=tp).scales * tp)
