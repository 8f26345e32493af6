"""Meta's params.json to and from `ModelConfig`.

The file gives the feed-forward width only through a rule (`model.config.ffn_dim`), so writing searches for numbers that give it back.
What Meta's format does not say has Meta's constants: rope scaling is by 8 (low 1, high 4, from 8192), the context 131072 with scaling and
8192 without. Where a model differs, herd writes keys of its own (`rope_scaling_factor`, `max_seq_len`) and reads them back.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from herd.base.errors import ConfigError, UsageError
from herd.checkpoint.json_file import Fields
from herd.checkpoint.meta_int4 import MetaQuant, quant_from_params
from herd.model.config import ModelConfig, RopeScaling, ffn_dim

PARAMS_FILE = "params.json"
_SCALED_CONTEXT, _PLAIN_CONTEXT = 131072, 8192
_OTHER_MODELS = {
    "moe_args": "experts",
    "vision_chunk_size": "an image encoder",
    "vision_num_cross_attention_layers": "cross-attention to images",
}
_PUBLISHED_FFN = {
    (4096, 14336): (1.3, 1024),
    (8192, 28672): (1.3, 4096),
    (16384, 53248): (1.2, 4096),
    (2048, 8192): (1.5, 256),
    (3072, 8192): (1.0, 256),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class MetaParams:
    """params.json, checked. `vocab_size` is -1 where the tensors decide; `num_kv_heads` counts stored heads, copies included."""

    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    vocab_size: int
    norm_eps: float
    rope_theta: float
    rope_scaling: RopeScaling | None
    context: int
    says_tied: bool
    quant: MetaQuant | None = None

    def to_config(self, *, vocab_size: int, num_kv_heads: int, tied: bool) -> ModelConfig:
        """The model config, given what only the tensors tell. Raises ConfigError."""
        return ModelConfig(
            vocab_size=vocab_size,
            hidden_size=self.hidden_size,
            intermediate_size=self.intermediate_size,
            num_hidden_layers=self.num_layers,
            num_attention_heads=self.num_heads,
            num_key_value_heads=num_kv_heads,
            head_dim=self.hidden_size // self.num_heads,
            max_position_embeddings=self.context,
            rms_norm_eps=self.norm_eps,
            rope_theta=self.rope_theta,
            rope_scaling=self.rope_scaling,
            tie_word_embeddings=tied,
        )


def params_from_json(data: dict[str, Any], where: str = PARAMS_FILE) -> MetaParams:
    """A parsed params.json; its fields may lie under "model". Raises ConfigError."""
    fields = Fields(data=data, where=where)
    if "dim" not in data and isinstance(data.get("model"), dict):
        fields = Fields(data=data["model"], where=f"model in {where}")
    _refuse_other_models(fields)
    dim, heads = fields.integer("dim"), fields.integer("n_heads")
    if dim < 1 or heads < 1 or dim % heads:
        raise ConfigError(f"dim {dim} in {where} does not divide into n_heads {heads}", hint="compare it with the published params.json")
    scaled = fields.flag("use_scaled_rope", False)
    return MetaParams(
        hidden_size=dim,
        intermediate_size=_intermediate_size(fields, dim),
        num_layers=fields.integer("n_layers"),
        num_heads=heads,
        num_kv_heads=fields.integer("n_kv_heads", heads),
        vocab_size=fields.integer("vocab_size", -1),
        norm_eps=fields.number("norm_eps", 1e-5),
        rope_theta=fields.number("rope_theta", 500000.0),
        rope_scaling=RopeScaling(factor=fields.number("rope_scaling_factor", 8.0)) if scaled else None,
        context=fields.integer("max_seq_len", _SCALED_CONTEXT if scaled else _PLAIN_CONTEXT),
        says_tied=fields.flag("tie_word_embeddings", False),
        quant=quant_from_params(fields),
    )


def _refuse_other_models(fields: Fields) -> None:
    for key, what in _OTHER_MODELS.items():
        if fields.data.get(key) not in (None, False, -1):
            raise ConfigError(f"{fields.where} has {key}: the model has {what}, which herd does not read", hint="use the plain text model")


def _intermediate_size(fields: Fields, dim: int) -> int:
    if fields.data.get("ffn_dim") is not None:
        return fields.integer("ffn_dim")
    multiplier, multiple_of = fields.number("ffn_dim_multiplier", 1.0), fields.integer("multiple_of")
    if not 0.0 < multiplier <= 1000.0 or multiple_of < 1:
        raise ConfigError(
            f"ffn_dim_multiplier {multiplier} and multiple_of {multiple_of} in {fields.where} give no feed-forward width",
            hint="Llama 3.1 8B has 1.3 and 1024",
        )
    return ffn_dim(dim, multiplier, multiple_of)


def params_to_json(config: ModelConfig, *, stored_kv_heads: int) -> dict[str, Any]:
    """The params.json of a model. Raises UsageError for a rope scaling that Meta's format cannot say."""
    multiplier, multiple_of = find_ffn_rule(config.hidden_size, config.intermediate_size)
    params: dict[str, Any] = {
        "dim": config.hidden_size,
        "n_layers": config.num_hidden_layers,
        "n_heads": config.num_attention_heads,
        "n_kv_heads": stored_kv_heads,
        "vocab_size": config.vocab_size,
        "ffn_dim_multiplier": multiplier,
        "multiple_of": multiple_of,
        "norm_eps": config.rms_norm_eps,
        "rope_theta": config.rope_theta,
        "use_scaled_rope": config.rope_scaling is not None,
    }
    return params | _own_keys(config)


def _own_keys(config: ModelConfig) -> dict[str, Any]:
    """Keys of ours, only where the model differs from what Meta's format implies: Meta's own loader refuses keys it does not know."""
    own: dict[str, Any] = {}
    scaling = config.rope_scaling
    if scaling is not None:
        if scaling != RopeScaling(factor=scaling.factor):
            raise UsageError(
                f"Meta's format cannot say {scaling}", hint="only the factor may differ from Llama 3.1's scaling: convert to hf or gguf"
            )
        if scaling.factor != RopeScaling().factor:
            own["rope_scaling_factor"] = scaling.factor
    if config.max_position_embeddings != (_SCALED_CONTEXT if scaling else _PLAIN_CONTEXT):
        own["max_seq_len"] = config.max_position_embeddings
    return own


def find_ffn_rule(dim: int, width: int) -> tuple[float, int]:
    """A multiplier and a multiple_of whose rule gives `width`: the published pair where there is one, else the shortest multiplier found.

    A multiple_of of 1 and a multiplier half a step above width / base always give it, so the search cannot fail.
    """
    if (dim, width) in _PUBLISHED_FFN:
        return _PUBLISHED_FFN[dim, width]
    base = int(2 * (4 * dim) / 3)
    multiple_of = min(width & -width, 4096)
    for digits in range(1, 6):
        multiplier = round((width - multiple_of / 2) / base, digits)
        if multiplier > 0 and ffn_dim(dim, multiplier, multiple_of) == width:
            return multiplier, multiple_of
    return (width + 0.5) / base, 1
