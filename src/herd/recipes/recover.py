"""The parts of a post-training run that trains for rounding: what it starts from, and the quantised folder that it writes.

A starting model that is quantised (by GPTQ, say) is gone on with: its levels stay, its codes move. One that is not is rounded to nearest
first, with the search for the best clip.
"""

from __future__ import annotations

import shutil
from dataclasses import asdict
from pathlib import Path

import torch

from herd.base.errors import ConfigError
from herd.base.log import get_logger
from herd.checkpoint.load import ModelSource, as_dtype
from herd.model.quant_linear import quantised_matrices
from herd.model.transformer import Transformer
from herd.quant.schemes import Settings, schemes_for
from herd.quant.stream import Stream, Written, work_folder
from herd.recipes.tune_config import TuneConfig
from herd.text.tokenizer import Tokenizer
from herd.train.adapters.inject import inject, merged_copy
from herd.train.fake_quant import convert_to_fake, levels_for, rounded, unpack_for_training

log = get_logger(__name__)


def settings_of(config: TuneConfig) -> Settings:
    """The scheme that a config asks for."""
    quant = config.quant
    return Settings(scheme=quant.scheme, group=quant.group, symmetric=quant.symmetric)


def check_start(config: TuneConfig, model: Transformer) -> None:
    """Raises ConfigError for a quantised start that would learn from itself."""
    if config.method == "distill" and not config.teacher and quantised_matrices(model):
        raise ConfigError(
            f"{config.model} is quantised, and recovery learns from the model that it was made of",
            hint="set teacher=MODEL, the unquantised one",
        )


def make_trainable(config: TuneConfig, model: Transformer) -> Transformer:
    """The starting model, its matrices rounded whenever they are used; with adapters where the config has them. Returns the model."""
    if quantised_matrices(model):
        levels = unpack_for_training(model)
        log.info("%s: the starting model is quantised, its own schemes are kept", config.name)
    else:
        levels = levels_for(model, schemes_for(model.config, settings_of(config)))
    if config.lora.rank:
        inject(model, config.lora, seed=config.seed)
    return convert_to_fake(model, levels)


def write_recovered(config: TuneConfig, model: Transformer, start: Path, target: Path, tokenizer: Tokenizer) -> Written:
    """Write what was trained as a quantised folder, as `herd quantize` does."""
    matrices = rounded(model)
    source = ModelSource(
        merged_copy(model, torch.float32) if config.lora.rank else model.to("cpu"), start if start.is_dir() else start.parent
    )
    shutil.rmtree(work_folder(target), ignore_errors=True)
    stream = Stream(
        source,
        target,
        settings_of(config),
        {name: scheme for name, (scheme, _) in matrices.items()},
        dtype=as_dtype(config.export_dtype),
        details={"recovery": {"recipe": config.name, "lora": asdict(config.lora)}},
        ready={name: weight for name, (_, weight) in matrices.items()},
    )
    written = stream.run(overwrite=True)
    tokenizer.save(target)
    return written
