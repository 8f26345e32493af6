"""The cache that a checkpoint was calibrated for: `kv_cache_scheme` of compressed-tensors, and a scale of keys and one of values a layer.

    model.layers.N.self_attn.k_scale, v_scale   one float each; a cached number is code * scale, int8 or e4m3, keys after the rotation

Engines with one scale for a whole layer need them (vLLM, SGLang). herd's own int8 cache has a scale for every vector, taken as it is
written, so it needs none: the scales are checked, carried and not used. Knows names and numbers, no cache.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from torch import Tensor

from herd.base.errors import CheckpointError
from herd.checkpoint.json_file import Fields
from herd.model.config import ModelConfig

CacheKind = Literal["int8", "fp8"]
LARGEST: Mapping[str, float] = {"int8": 127.0, "fp8": 448.0}
"""The largest code of a kind: what the largest number seen becomes."""
_HINT = "herd reads caches of 8 bits with one scale a layer, or scales taken at run time"


def cache_names(config: ModelConfig) -> list[str]:
    """The tensors that hold the scales."""
    return [f"model.layers.{layer}.self_attn.{part}" for layer in range(config.num_hidden_layers) for part in ("k_scale", "v_scale")]


def cache_kind(data: Mapping[str, Any], where: str) -> tuple[CacheKind | None, bool]:
    """The kind of cache in a config.json's `quantization_config`, and whether its scales are in the file. Raises CheckpointError."""
    quant = Fields(data=data, where=where).table("quantization_config")
    scheme = None if quant is None else quant.table("kv_cache_scheme")
    if scheme is None:
        return None, False
    bits, name = scheme.integer("num_bits"), str(scheme.data.get("type", "int"))
    kinds: dict[tuple[int, str], CacheKind] = {(8, "int"): "int8", (8, "float"): "fp8"}
    kind, dynamic = kinds.get((bits, name)), scheme.flag("dynamic", False)
    if kind is None or not scheme.flag("symmetric", True) or (not dynamic and scheme.data.get("strategy", "tensor") != "tensor"):
        raise CheckpointError(
            f"kv_cache_scheme in {where} has {bits} bits of type {name!r}, strategy {scheme.data.get('strategy')!r}", hint=_HINT
        )
    return kind, not dynamic


def cache_to_json(kind: str) -> dict[str, Any]:
    """The `kv_cache_scheme` of a kind, with scales in the file."""
    number = "int" if kind == "int8" else "float"
    return {"num_bits": 8, "type": number, "strategy": "tensor", "symmetric": True, "dynamic": False}


def scale_problem(name: str, scale: Tensor) -> str | None:
    """What is wrong with a scale."""
    if scale.numel() != 1 or not scale.is_floating_point():
        return f"{name} is {str(scale.dtype).removeprefix('torch.')} {list(scale.shape)}, it must be one float"
    value = float(scale)
    return None if 0.0 < value < float("inf") else f"{name} is {value:g}, a scale is positive and finite"
