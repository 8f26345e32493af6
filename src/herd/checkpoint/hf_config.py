"""Hugging Face's config.json and generation_config.json to and from `ModelConfig`.

Reads what transformers 4.43 and later wrote (`rope_theta` and `rope_scaling` at the top) and what version 5 writes (`rope_parameters`);
writes both forms, so either version reads it. A setting that would change the mathematics and that herd does not have is refused by name:
nothing is ignored that matters.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from herd.base.errors import CheckpointError, ConfigError, did_you_mean
from herd.checkpoint.json_file import Fields, read_json_object
from herd.kernels.buffer import dtype_name
from herd.model.config import ModelConfig, RopeScaling

if TYPE_CHECKING:
    import torch

CONFIG_FILE = "config.json"
ARCHITECTURE = "LlamaForCausalLM"


@dataclass(frozen=True, kw_only=True, slots=True)
class SpecialIds:
    """The ids that generation needs: the first token, those that stop it, and padding."""

    bos: int | None = None
    eos: tuple[int, ...] = ()
    pad: int | None = None


def config_from_json(data: Mapping[str, Any], where: str, *, accept_quantised: bool = False) -> ModelConfig:
    """The model config in a parsed config.json. `accept_quantised`: the caller reads `quantization_config` itself.

    Raises:
        ConfigError: it is another architecture, a field is missing or malformed, or it asks for something that herd's Llama does not have.
        CheckpointError: the weights are quantised.
    """
    fields = Fields(data=data, where=where)
    _refuse_other_architectures(fields)
    _refuse_variants(fields)
    if not accept_quantised:
        _refuse_quantised(fields)
    hidden, heads = fields.integer("hidden_size"), fields.integer("num_attention_heads")
    theta, scaling = _rope(fields)
    return ModelConfig(
        vocab_size=fields.integer("vocab_size"),
        hidden_size=hidden,
        intermediate_size=fields.integer("intermediate_size"),
        num_hidden_layers=fields.integer("num_hidden_layers"),
        num_attention_heads=heads,
        num_key_value_heads=fields.integer("num_key_value_heads", heads),
        head_dim=fields.integer("head_dim") if data.get("head_dim") is not None else _default_head_dim(hidden, heads, where),
        max_position_embeddings=fields.integer("max_position_embeddings"),
        rms_norm_eps=fields.number("rms_norm_eps", 1e-6),
        rope_theta=theta,
        rope_scaling=scaling,
        tie_word_embeddings=fields.flag("tie_word_embeddings", False),
        initializer_range=fields.number("initializer_range", 0.02),
    )


def is_quantised(folder: Path) -> bool:
    """Whether the folder's config.json names a quantisation."""
    return bool(read_json_object(folder / CONFIG_FILE).get("quantization_config"))


def _default_head_dim(hidden: int, heads: int, where: str) -> int:
    if heads < 1 or hidden % heads:
        raise ConfigError(
            f"{where} gives no head_dim, and hidden_size {hidden} does not divide into num_attention_heads {heads}",
            hint="add head_dim, or correct hidden_size or num_attention_heads",
        )
    return hidden // heads


def _refuse_other_architectures(fields: Fields) -> None:
    architectures, model_type = fields.data.get("architectures"), fields.data.get("model_type")
    names = architectures if isinstance(architectures, list) else [architectures]
    for key, name, known in (("architectures", names[0] if names else None, ARCHITECTURE), ("model_type", model_type, "llama")):
        if name is not None and name != known:
            hint = did_you_mean(str(name), [known], otherwise=f"herd reads models of architecture {ARCHITECTURE}")
            raise ConfigError(f"{key} in {fields.where} is {name!r}, herd reads {known!r}", hint=hint)
    if model_type is None and not architectures:
        raise ConfigError(
            f"{fields.where} names no architecture and no model_type",
            hint=f'a Llama has "architectures": ["{ARCHITECTURE}"], "model_type": "llama"',
        )


def _refuse_variants(fields: Fields) -> None:
    for key in ("attention_bias", "mlp_bias"):
        if fields.flag(key, False):
            raise ConfigError(
                f"{key} in {fields.where} is true, Llama 3 has no biases", hint="this model is a variant that herd does not have"
            )
    activation = fields.data.get("hidden_act", "silu")
    if activation != "silu":
        raise ConfigError(
            f"hidden_act in {fields.where} is {activation!r}, Llama 3 has 'silu'", hint="this model is a variant that herd does not have"
        )
    if fields.integer("pretraining_tp", 1) > 1:
        raise ConfigError(
            f"pretraining_tp in {fields.where} is {fields.data['pretraining_tp']}, herd computes every product in one piece",
            hint="set pretraining_tp to 1: results differ by rounding only",
        )


def _refuse_quantised(fields: Fields) -> None:
    quantisation = fields.table("quantization_config")
    if quantisation is not None:
        method = quantisation.data.get("quant_method", "unknown")
        raise CheckpointError(
            f"the weights beside {fields.where} are quantised ({method}), safetensors in BF16, F16 or F32 are needed here",
            hint="use the unquantised model; `herd convert SRC DST --to hf` makes one of a quantised folder",
        )


def _rope(fields: Fields) -> tuple[float, RopeScaling | None]:
    """Theta and scaling from whichever form is there; both forms must agree."""
    new, old = fields.table("rope_parameters"), fields.table("rope_scaling")
    old_form = (fields.number("rope_theta", 10000.0), _scaling(old))
    if new is None:
        return old_form
    new_form = (new.number("rope_theta", fields.number("rope_theta", 10000.0)), _scaling(new))
    written_old = (fields.data.get("rope_theta") is not None, old is not None)
    for is_written, before, after, key in zip(written_old, old_form, new_form, ("rope_theta", "rope_scaling"), strict=True):
        if is_written and before != after:
            raise ConfigError(
                f"{key} in {fields.where} is {before}, its rope_parameters say {after}", hint="make the two agree, or remove one"
            )
    return new_form


def _scaling(fields: Fields | None) -> RopeScaling | None:
    if fields is None:
        return None
    rope_type = fields.data.get("rope_type", fields.data.get("type", "default"))
    if rope_type == "default":
        return None
    if rope_type != "llama3":
        raise ConfigError(
            f"rope_type in {fields.where} is {rope_type!r}, herd has 'llama3' and 'default'", hint="Llama 3.1 and 3.2 use llama3"
        )
    return RopeScaling(
        factor=fields.number("factor"),
        low_freq_factor=fields.number("low_freq_factor"),
        high_freq_factor=fields.number("high_freq_factor"),
        original_max_position_embeddings=fields.integer("original_max_position_embeddings"),
    )


def _token_id(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def special_ids_from_json(data: Mapping[str, Any]) -> SpecialIds:
    """The special ids in a config.json or generation_config.json; anything that is not an id is left out."""
    eos = data.get("eos_token_id")
    candidates = [_token_id(value) for value in (eos if isinstance(eos, list) else [eos])]
    return SpecialIds(
        bos=_token_id(data.get("bos_token_id")),
        eos=tuple(token for token in candidates if token is not None),
        pad=_token_id(data.get("pad_token_id")),
    )


def config_to_json(config: ModelConfig, dtype: torch.dtype, ids: SpecialIds | None = None) -> dict[str, Any]:
    """A config.json that transformers from 4.43 on reads, version 5 included. `dtype` is what the weights are stored as."""
    scaling = None if config.rope_scaling is None else {"rope_type": "llama3", **asdict(config.rope_scaling)}
    plain = {key: value for key, value in asdict(config).items() if key != "rope_scaling"}
    return {
        "architectures": [ARCHITECTURE],
        "model_type": "llama",
        **plain,
        "rope_scaling": scaling,
        "rope_parameters": {"rope_theta": config.rope_theta, **(scaling or {"rope_type": "default"})},
        "hidden_act": "silu",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "mlp_bias": False,
        "pretraining_tp": 1,
        "use_cache": True,
        "torch_dtype": dtype_name(dtype),
        "dtype": dtype_name(dtype),
        **_ids_to_json(ids or SpecialIds()),
    }


def generation_config_to_json(ids: SpecialIds | None = None) -> dict[str, Any]:
    """Meta's reference sampling: temperature 0.6, top-p 0.9."""
    known = {key: value for key, value in _ids_to_json(ids or SpecialIds()).items() if value is not None}
    return {"do_sample": True, "temperature": 0.6, "top_p": 0.9, **known}


def _ids_to_json(ids: SpecialIds) -> dict[str, Any]:
    """All three keys always: transformers takes Llama 2's ids for those that config.json leaves out."""
    eos = list(ids.eos) if len(ids.eos) > 1 else next(iter(ids.eos), None)
    return {"bos_token_id": ids.bos, "eos_token_id": eos, "pad_token_id": ids.pad}
