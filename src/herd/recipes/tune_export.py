"""What a post-training recipe leaves behind: the adapter, if there is one, and the model as a Hugging Face folder with its card."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from herd.checkpoint.json_file import read_json_object
from herd.checkpoint.load import as_dtype, load_model, save_model
from herd.checkpoint.reward import load_reward_model, save_reward_model
from herd.model.reward import RewardModel
from herd.model.transformer import Transformer
from herd.recipes.recover import write_recovered
from herd.recipes.tune_card import write_tune_card
from herd.recipes.tune_config import TuneConfig
from herd.text.tokenizer import Tokenizer
from herd.train.adapters.files import CONFIG_FILE, load_adapter, save_adapter
from herd.train.adapters.inject import merged_copy


@dataclass(frozen=True, kw_only=True, slots=True)
class TuneReport:
    """What a run did: steps, tokens read (padding included), units counted in the loss, seconds, scores of what was kept back."""

    name: str
    num_steps: int
    num_tokens: int
    num_counted: int
    seconds: float
    before: dict[str, float]
    after: dict[str, float]
    epochs: dict[str, float]
    num_records: int
    num_dropped: int
    machine: str


def export(config: TuneConfig, model: Transformer, path: Path, tokenizer: Tokenizer, report: TuneReport, output: Path) -> None:
    """Write the adapter, if there is one, and the model with its card."""
    dtype, target = as_dtype(config.export_dtype), output / "model"
    if config.quant.scheme:
        write_recovered(config, model, path, target, tokenizer)
        write_tune_card(config, _facts(config, report, model), load_model(target), tokenizer, target)
        return
    plain = model
    if config.lora.rank:
        save_adapter(model, config.lora, output / "adapter", base=config.model, overwrite=True)
        if not config.merge:
            return
        plain = merged(path, output / "adapter", reward=config.method == "reward", dtype=dtype)
    plain = plain.to("cpu", dtype)
    if isinstance(plain, RewardModel):
        save_reward_model(plain, target, tokenizer=tokenizer, overwrite=True)
    else:
        save_model(plain, target, tokenizer=tokenizer, overwrite=True)
    write_tune_card(config, _facts(config, report, plain), plain, tokenizer, target)


def merged(path: Path, adapter: Path, *, reward: bool, dtype: torch.dtype) -> Transformer:
    """A model with an adapter added to its weights, computed in float32, stored in `dtype`."""
    base = load_reward_model(path, dtype="float32") if reward else load_model(path, dtype="float32")
    return merged_copy(load_adapter(base, adapter), dtype)


def is_reward_adapter(adapter: Path) -> bool:
    """Whether an adapter belongs to a reward model."""
    return read_json_object(adapter / CONFIG_FILE).get("task_type") == "SEQ_CLS"


def _facts(config: TuneConfig, report: TuneReport, model: Transformer) -> dict[str, Any]:
    """What training.json holds."""
    values = {name: getattr(report, name) for name in report.__dataclass_fields__}
    return {"recipe": config.name, "method": config.method, "from": config.model, "num_parameters": model.config.num_parameters, **values}
