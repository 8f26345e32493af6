"""Adapters on disk as PEFT lays them out: adapter_config.json and adapter_model.safetensors; either side reads the other's.

Names in the file are `base_model.model.` + the layer's name + `.lora_A.weight`, `.lora_B.weight` or `.lora_magnitude_vector`. Settings of
PEFT that would change the mathematics and that herd does not have (biases, ranks by pattern, other kinds of adapter) are refused by name.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from herd.base.atomic import atomic_directory
from herd.base.errors import CheckpointError, ConfigError, NotFoundError
from herd.checkpoint.json_file import read_json_object
from herd.checkpoint.problems import compare_shapes, raise_first
from herd.checkpoint.safetensors_file import SafetensorsFile
from herd.model.reward import RewardModel
from herd.model.transformer import Transformer
from herd.train.adapters.config import TARGETS, LoraConfig
from herd.train.adapters.inject import inject, trained_parameters

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
_PREFIX = "base_model.model."
_ABSENT: dict[str, tuple[Any, ...]] = {
    "bias": ("none",),
    "fan_in_fan_out": (False,),
    "lora_bias": (False,),
    "rank_pattern": ({},),
    "alpha_pattern": ({},),
    "layers_to_transform": (None,),
    "layer_replication": (None,),
    "target_parameters": (None, []),
    "trainable_token_indices": (None,),
    "use_qalora": (False,),
    "alora_invocation_tokens": (None,),
}
"""Settings that have to be off, and how PEFT writes that."""


def is_adapter(path: Path | str) -> bool:
    """Whether a folder holds an adapter."""
    return (Path(path) / CONFIG_FILE).is_file()


def save_adapter(model: Transformer, config: LoraConfig, folder: Path | str, *, base: str, overwrite: bool = False) -> None:
    """Write the adapters of a model, whole or not at all; `base` names the model that they belong to.

    Raises UsageError if `folder` is not empty and `overwrite` is false.
    """
    head = isinstance(model, RewardModel)
    tensors = {_PREFIX + name: value.detach().cpu().contiguous() for name, value in trained_parameters(model).items()}
    record = {
        "peft_type": "LORA",
        "task_type": "SEQ_CLS" if head else "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": config.rank,
        "lora_alpha": config.alpha,
        "lora_dropout": config.dropout,
        "use_rslora": config.rslora,
        "use_dora": config.dora,
        "target_modules": list(config.targets),
        "modules_to_save": ["score"] if head else None,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
    }
    with atomic_directory(folder, overwrite=overwrite) as temporary:
        save_file(tensors, temporary / WEIGHTS_FILE, metadata={"format": "pt"})
        (temporary / CONFIG_FILE).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def read_adapter_config(folder: Path | str) -> tuple[LoraConfig, str | None]:
    """An adapter's settings, and the model that it says it belongs to. Raises NotFoundError, CheckpointError and ConfigError."""
    path = Path(folder) / CONFIG_FILE
    if not path.is_file():
        raise NotFoundError(f"there is no adapter in {folder}: {CONFIG_FILE} is missing", hint="give the folder that training left")
    raw = read_json_object(path)
    if raw.get("peft_type") != "LORA":
        raise CheckpointError(f"{path} has the peft_type {raw.get('peft_type')!r}", hint="herd reads LORA, also with DoRA")
    for name, off in _ABSENT.items():
        if name in raw and raw[name] not in off and raw[name] is not None:
            raise CheckpointError(f"{path} has {name} {raw[name]!r}, which herd does not have", hint="merge it with the tool that made it")
    targets = raw.get("target_modules")
    if isinstance(targets, str):
        targets = list(TARGETS) if targets == "all-linear" else [targets]
    if not isinstance(targets, list):
        raise CheckpointError(f"{path} has target_modules {targets!r}", hint="it is a list of layers' names")
    try:
        config = LoraConfig(
            rank=_number(raw, "r", path, int),
            alpha=float(_number(raw, "lora_alpha", path, float)),
            dropout=float(raw.get("lora_dropout") or 0.0),
            rslora=bool(raw.get("use_rslora")),
            dora=bool(raw.get("use_dora")),
            targets=tuple(name for name in TARGETS if name in targets) + tuple(name for name in targets if name not in TARGETS),
        )
    except ConfigError as error:
        raise ConfigError(f"{path}: {error.message}", hint=error.hint) from error
    base = raw.get("base_model_name_or_path")
    return config, base if isinstance(base, str) else None


def _number(raw: Mapping[str, Any], name: str, path: Path, kind: type[int] | type[float]) -> Any:
    value = raw.get(name)
    if isinstance(value, bool) or not isinstance(value, (int, kind)):
        raise CheckpointError(f"{path} has {name} {value!r}, expected a number", hint="take the file from the training that made it")
    return value


def load_adapter(model: Transformer, folder: Path | str) -> Transformer:
    """Put the adapter of a folder on a model. Returns the model.

    Raises NotFoundError, CheckpointError where the adapter belongs to a model of another shape.
    """
    config, _ = read_adapter_config(folder)
    path = Path(folder) / WEIGHTS_FILE
    if not path.is_file():
        raise NotFoundError(f"{path} does not exist", hint="herd reads adapters from safetensors only, which cannot hold code")
    inject(model, config)
    wanted = trained_parameters(model)
    with closing(SafetensorsFile(path)) as file:
        stored = {_ours(name): name for name in file.entries}
        found = {name: file.entries[theirs].shape for name, theirs in stored.items()}
        raise_first(compare_shapes({name: tuple(value.shape) for name, value in wanted.items()}, found, str(path)))
        with torch.no_grad():
            for name, parameter in wanted.items():
                value: Tensor = file.read(stored[name])
                parameter.copy_(value)
    return model.eval()


def _ours(name: str) -> str:
    """A name in PEFT's file as herd has it."""
    short = name.removeprefix(_PREFIX)
    return short.removesuffix(".weight") if short.endswith("lora_magnitude_vector.weight") else short
