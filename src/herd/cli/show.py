"""`herd show`: what a checkpoint is, from its headers alone; or a published shape by its preset name."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from herd.base import settings
from herd.cli.load import JsonOption

if TYPE_CHECKING:
    from herd.model.config import ModelConfig


def show(
    model: Annotated[
        str | None, typer.Argument(help="Path, hub name, alias, or a preset as llama-3.1-405b. [default: the model setting]")
    ] = None,
    json: JsonOption = False,
) -> None:
    """Show a model's config, exact parameter count, bytes, context and quantisation. No weights are read."""
    from herd.cli.output import facts, print_json
    from herd.model.presets import PRESETS

    name = settings.value("model", model)
    data = _preset(name, PRESETS[name]) if name in PRESETS and not Path(name).exists() else _checkpoint(name)
    if json:
        print_json(data)
        return
    facts(_lines(data))


def _checkpoint(name: str) -> dict[str, Any]:
    from herd.base.errors import NotFoundError, nearest
    from herd.checkpoint.open import open_checkpoint
    from herd.checkpoint.resolve import hub_name, resolve_model
    from herd.model.presets import PRESETS

    try:
        path = resolve_model(name)
    except NotFoundError as error:
        close = nearest(name, PRESETS)
        raise NotFoundError(error.message, hint=f"did you mean {close!r}?" if close and hub_name(name) is None else error.hint) from error
    with open_checkpoint(path) as source:
        stored: dict[str, int] = {}
        for info in source.tensors.values():
            stored[info.stored] = stored.get(info.stored, 0) + info.size_bytes
        matrices = {info.stored for info in source.tensors.values() if len(info.shape) > 1}
        return {
            "name": name,
            "path": str(path),
            "format": source.format,
            **_numbers(source.config),
            "size_bytes": sum(stored.values()),
            "stored_bytes": stored,
            "quantisation": _quantisation(matrices),
        }


def _quantisation(kinds: set[str]) -> str | None:
    """What the matrices are quantised to; None for plain floating point."""
    quantised = sorted(kinds - {"F64", "F32", "F16", "BF16"})
    return "+".join(quantised) if quantised else None


def _preset(name: str, config: ModelConfig) -> dict[str, Any]:
    return {
        "name": name,
        "path": None,
        "format": "preset",
        **_numbers(config),
        "size_bytes": 2 * config.num_parameters,
        "stored_bytes": {"BF16": 2 * config.num_parameters},
        "quantisation": None,
    }


def _numbers(config: ModelConfig) -> dict[str, Any]:
    from herd.base.config_io import to_dict

    return {
        "num_parameters": config.num_parameters,
        "context": config.max_position_embeddings,
        "kv_bytes_per_token": config.kv_bytes_per_token(),
        "config": to_dict(config),
    }


def _lines(data: dict[str, Any]) -> dict[str, str]:
    from herd.base.memory import gib

    config = data["config"]
    scaling = config.get("rope_scaling")
    context = data["context"]
    return {
        "model": data["name"],
        "path": data["path"] or "(a published shape, no files)",
        "format": data["format"],
        "parameters": f"{data['num_parameters']:,}",
        "weights": f"{gib(data['size_bytes'])} ({', '.join(f'{kind} {gib(size)}' for kind, size in data['stored_bytes'].items())})",
        "quantisation": data["quantisation"] or "none",
        "context": f"{context:,} tokens ({gib(data['kv_bytes_per_token'] * context)} of keys and values in 16 bits)",
        "layers": str(config["num_hidden_layers"]),
        "width, ffn": f"{config['hidden_size']:,}, {config['intermediate_size']:,}",
        "heads": f"{config['num_attention_heads']} query, {config['num_key_value_heads']} KV, of {config['head_dim']}",
        "vocabulary": f"{config['vocab_size']:,}" + (", tied head" if config["tie_word_embeddings"] else ""),
        "positions": f"theta {config['rope_theta']:g}" + (f", scaled by {scaling['factor']:g}" if scaling else ", not scaled"),
    }
