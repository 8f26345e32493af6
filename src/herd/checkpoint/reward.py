"""Reward models on disk: Hugging Face's folder of a LlamaForSequenceClassification with one label.

Config and header are compared before a tensor is read. A causal model's folder can be loaded too: its head is then new, zero everywhere, so
that every reward begins at 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack, closing
from pathlib import Path

import torch
from torch import nn

from herd.base.atomic import atomic_directory
from herd.base.errors import CheckpointError
from herd.checkpoint.hf import INDEX_FILE, SINGLE_FILE, read_weight_map, write_json
from herd.checkpoint.hf_config import ARCHITECTURE, CONFIG_FILE, config_from_json, config_to_json
from herd.checkpoint.json_file import read_json_object
from herd.checkpoint.load import SavesTokenizer, as_dtype, load_model, special_ids
from herd.checkpoint.problems import compare_shapes, raise_first
from herd.checkpoint.safetensors_file import SafetensorsFile, write_safetensors
from herd.model.config import ModelConfig
from herd.model.reward import RewardModel

REWARD_ARCHITECTURE = "LlamaForSequenceClassification"
_HEAD = "score.weight"


def is_reward_model(path: Path | str) -> bool:
    """Whether a folder's config names this architecture."""
    file = Path(path) / CONFIG_FILE
    return file.is_file() and read_json_object(file).get("architectures") == [REWARD_ARCHITECTURE]


def load_reward_model(path: Path | str, dtype: torch.dtype | str | None = None, device: torch.device | str = "cpu") -> RewardModel:
    """A reward model in evaluation mode, from its own folder or, with a zero head, from a causal model's in any format.

    Raises NotFoundError, CheckpointError and ConfigError as `load_model`.
    """
    if not is_reward_model(path):
        return _from_causal(Path(path), dtype, device)
    folder = Path(path)
    raw = read_json_object(folder / CONFIG_FILE)
    config = config_from_json({**raw, "architectures": [ARCHITECTURE]}, str(folder / CONFIG_FILE))
    labels = raw.get("id2label", {"0": "LABEL_0"})
    if not isinstance(labels, Mapping) or len(labels) != 1:
        raise CheckpointError(f"{folder / CONFIG_FILE} has the labels {labels!r:.200}", hint="a reward model has one, its reward")
    with torch.device("meta"):
        model = RewardModel(config)
    with ExitStack() as stack:
        files = [stack.enter_context(closing(SafetensorsFile(path))) for path in _weight_files(folder)]
        where = {name: file for file in files for name in file.entries}
        found = {name: file.entries[name].shape for name, file in where.items()}
        raise_first(compare_shapes(reward_shapes(model.config), found, str(folder)))
        stored = where[_HEAD].entries[_HEAD].dtype
        for name, file in where.items():
            owner, _, leaf = name.rpartition(".")
            value = file.read(name).to(device=device, dtype=as_dtype(dtype or stored))
            setattr(model.get_submodule(owner), leaf, nn.Parameter(value))
    return model.eval()


def _weight_files(folder: Path) -> list[Path]:
    """One file, or the shards that an index names."""
    if (folder / INDEX_FILE).is_file() and not (folder / SINGLE_FILE).is_file():
        return [folder / name for name in sorted(set(read_weight_map(read_json_object(folder / INDEX_FILE)).values()))]
    return [folder / SINGLE_FILE]


def reward_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a reward model's parameters."""
    shapes = {name: shape for name, shape in config.parameter_shapes().items() if name != "lm_head.weight"}
    return {**shapes, _HEAD: (1, config.hidden_size)}


def _from_causal(path: Path, dtype: torch.dtype | str | None, device: torch.device | str) -> RewardModel:
    causal = load_model(path, dtype=dtype, device=device)
    with torch.device("meta"):
        model = RewardModel(causal.config)
    model.model = causal.model
    model.score.weight = nn.Parameter(torch.zeros(1, causal.config.hidden_size, dtype=causal.dtype, device=causal.device))
    return model.eval()


def save_reward_model(model: RewardModel, folder: Path | str, *, tokenizer: SavesTokenizer, overwrite: bool = False) -> None:
    """Write a folder that herd and transformers read, whole or not at all.

    Its config names the padding token, by which transformers finds a sequence's last token. Raises UsageError if the folder is occupied.
    """
    dtype = as_dtype(model.dtype)
    tensors = dict(model.named_parameters())
    declared = [(name, tuple(tensor.shape), dtype) for name, tensor in tensors.items()]
    config = config_to_json(model.config, dtype, special_ids(tokenizer))
    config |= {"architectures": [REWARD_ARCHITECTURE], "id2label": {"0": "reward"}, "label2id": {"reward": 0}, "num_labels": 1}
    with atomic_directory(folder, overwrite=overwrite) as temporary:
        write_safetensors(temporary / SINGLE_FILE, declared, (tensor.detach().to("cpu", dtype) for tensor in tensors.values()))
        write_json(temporary / CONFIG_FILE, config)
        tokenizer.save(temporary)
