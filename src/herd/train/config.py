"""What a training stage is: its data, its lengths, its optimiser. Validated; one flat dataclass, so every field is one dotted override."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from herd.base.errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceConfig:
    """One source of training data.

    `path` is a file below the data folder, `package:NAME` for a file that ships with herd, `own:dialogues` or `own:drills`.
    `weight` is its share of the sequences. `languages` keeps only records of those languages, `max_bytes` stops reading after that much
    text, `num_items` after that many records.
    """

    name: str
    path: str
    kind: Literal["text", "chat"] = "text"
    weight: float = 1.0
    languages: tuple[str, ...] = ()
    max_bytes: int = 0
    num_items: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.weight < math.inf:
            raise ConfigError(f"source {self.name!r} has weight {self.weight}", hint="a weight is a share of the sequences, 0 or more")
        for name in ("max_bytes", "num_items"):
            if getattr(self, name) < 0:
                raise ConfigError(f"source {self.name!r} has {name} {getattr(self, name)}", hint="a limit is positive; 0 is none")


_POSITIVE = ("num_steps", "sequence_length", "batch_size", "micro_batch_size", "log_every", "eval_every", "save_every", "keep_states")


@dataclass(frozen=True, kw_only=True, slots=True)
class StageConfig:
    """One stage of training: pre-training or fine-tuning, by what its sources are and what counts in the loss.

    `batch_size` counts sequences a step; `micro_batch_size` of them are in memory at once, with the same result. Chat sources count answers
    only when `answers_only`. `lr` is the peak, `grad_clip` 0 clips nothing; `z_loss` is `NextToken`'s. AdamW's betas and epsilon are not
    published for Llama 3: these are the field's usual ones.
    """

    sources: tuple[SourceConfig, ...]
    num_steps: int
    sequence_length: int = 512
    batch_size: int = 8
    micro_batch_size: int = 8
    lr: float = 1e-3
    final_lr_fraction: float = 0.01
    warmup_steps: int = 50
    weight_decay: float = 0.1
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8
    grad_clip: float = 1.0
    z_loss: float = 0.0
    answers_only: bool = False
    compute_dtype: Literal["float32", "bfloat16"] = "bfloat16"
    log_every: int = 10
    eval_every: int = 250
    save_every: int = 250
    keep_states: int = 2

    def __post_init__(self) -> None:
        for name in _POSITIVE:
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}, it must be at least 1", hint=f"set {name} to a positive number")
        if self.batch_size % self.micro_batch_size:
            raise ConfigError(
                f"batch_size {self.batch_size} is not a multiple of micro_batch_size {self.micro_batch_size}",
                hint="choose a micro batch that divides the batch",
            )
        self._check_optimizer()
        if not 0 <= self.warmup_steps <= self.num_steps:
            raise ConfigError(
                f"warmup_steps is {self.warmup_steps}, it must lie between 0 and num_steps ({self.num_steps})",
                hint="a few per cent is usual",
            )
        if not self.sources:
            raise ConfigError("a training stage needs at least one data source", hint="add a SourceConfig")
        names = [source.name for source in self.sources]
        for name in names:
            if names.count(name) > 1:
                raise ConfigError(f"{names.count(name)} sources of a stage are named {name!r}", hint="give every source a name of its own")

    def _check_optimizer(self) -> None:
        if not 0 < self.lr < math.inf:
            raise ConfigError(f"lr is {self.lr}, it must be positive", hint="small models take about 1e-3")
        if not 0 <= self.final_lr_fraction <= 1:
            raise ConfigError(f"final_lr_fraction is {self.final_lr_fraction}, it must be between 0 and 1", hint="Llama 3 used 0.01")
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}, it must be 0 or more and below 1", hint="0.9 and 0.95 are usual")
        for name in ("weight_decay", "eps", "grad_clip", "z_loss"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ConfigError(f"{name} is {getattr(self, name)}, it must be 0 or more", hint=f"leave {name} at its default")

    @property
    def num_tokens(self) -> int:
        """Tokens read over the whole stage, padding included."""
        return self.num_steps * self.batch_size * self.sequence_length
