"""What a training stage is: its data, its lengths, its optimiser. Validated; one flat dataclass, so every field is one dotted override."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from herd.base.errors import ConfigError

Decay = Literal["cosine", "linear", "constant"]
"""How the rate falls after the warm-up."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceConfig:
    """One source of training data.

    `path` is a file below the data folder, `package:NAME` for a file that ships with herd, `own:dialogues`, `own:drills` or
    `own:needles` (facts hidden in long texts of about `document_bytes`, and asked for at their end; 0 is 8,192). A folder of
    `herd data tokenize` is read as it is; any other path is text or dialogues, tokenised for the run.

    `weight` is its share of the sequences, `max_epochs` how often it may be read (0: as often as that takes). `languages` keeps only
    records of those languages, `max_bytes` stops reading after that much text, `num_items` after that many records.
    """

    name: str
    path: str
    kind: Literal["text", "chat"] = "text"
    weight: float = 1.0
    languages: tuple[str, ...] = ()
    max_bytes: int = 0
    num_items: int = 0
    document_bytes: int = 0
    max_epochs: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.weight < math.inf:
            raise ConfigError(f"source {self.name!r} has weight {self.weight}", hint="a weight is a share of the sequences, 0 or more")
        if not 0 <= self.max_epochs < math.inf:
            raise ConfigError(f"source {self.name!r} has max_epochs {self.max_epochs}", hint="0 reads it as often as its weight takes")
        for name in ("max_bytes", "num_items", "document_bytes"):
            if getattr(self, name) < 0:
                raise ConfigError(f"source {self.name!r} has {name} {getattr(self, name)}", hint="a limit is positive; 0 is none")


@dataclass(frozen=True, kw_only=True, slots=True)
class RampPhase:
    """A phase before the stage's own batch and length: `batch_size` rows of `sequence_length` until `until_tokens` have been read.

    `micro_batch_size` 0 is the stage's. The phase ends at the step boundary nearest to the mark. Llama 3 405B prints "252M tokens" for
    its first phase: at 4M tokens a step that is 60 steps, so few for a change of batch that 252B may be meant; the printed number is
    what the recipes carry, and it is one override to change.
    """

    until_tokens: int
    sequence_length: int
    batch_size: int
    micro_batch_size: int = 0

    def __post_init__(self) -> None:
        for name in ("until_tokens", "sequence_length", "batch_size"):
            if getattr(self, name) < 1:
                raise ConfigError(
                    f"a ramp's {name} is {getattr(self, name)}, it must be at least 1", hint=f"set {name} to a positive number"
                )
        if self.micro_batch_size < 0:
            raise ConfigError(f"a ramp's micro_batch_size is {self.micro_batch_size}", hint="0 takes the stage's")


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceWeight:
    """A source's new weight."""

    name: str
    weight: float

    def __post_init__(self) -> None:
        if not 0 <= self.weight < math.inf:
            raise ConfigError(f"source {self.name!r} has weight {self.weight}", hint="a weight is a share of the sequences, 0 or more")


@dataclass(frozen=True, kw_only=True, slots=True)
class MixChange:
    """Other weights of some sources once `from_tokens` have been read in the stage; sources not named keep theirs."""

    from_tokens: int
    weights: tuple[SourceWeight, ...]

    def __post_init__(self) -> None:
        if self.from_tokens < 0:
            raise ConfigError(f"a mix change has from_tokens {self.from_tokens}", hint="tokens are counted from the stage's beginning")
        if not self.weights:
            raise ConfigError("a mix change names no source", hint="add a SourceWeight")


@dataclass(frozen=True, kw_only=True, slots=True)
class GuardConfig:
    """What to do with a step whose loss or gradient cannot be right.

    `on_nonfinite`: stop the run, skip the step (no update, the data is passed over), or roll back to the newest whole state and pass over
    the data since. `on_spike` decides the same for a loss over mean + `spike_sigma` standard deviations of the last `window` steps, once
    that many are known. At most `max_skips` steps are skipped and `max_rollbacks` times is rolled back in a stage; then the run stops.
    """

    on_nonfinite: Literal["stop", "skip", "rollback"] = "stop"
    on_spike: Literal["ignore", "skip", "rollback"] = "ignore"
    spike_sigma: float = 6.0
    window: int = 128
    max_skips: int = 20
    max_rollbacks: int = 3

    def __post_init__(self) -> None:
        if not 0 < self.spike_sigma < math.inf:
            raise ConfigError(f"guard.spike_sigma is {self.spike_sigma}, it must be positive", hint="6 is usual")
        if self.window < 8:
            raise ConfigError(f"guard.window is {self.window}, it must be at least 8", hint="128 steps are usual")
        for name in ("max_skips", "max_rollbacks"):
            if getattr(self, name) < 0:
                raise ConfigError(f"guard.{name} is {getattr(self, name)}, it must be 0 or more", hint="0 allows none")


_POSITIVE = (
    *("num_steps", "sequence_length", "batch_size", "micro_batch_size", "log_every", "eval_every", "save_every", "keep_states"),
    "max_failed_saves",
)
_COUNTS = ("horizon_steps", "average_every", "keep_every", "hash_every")


@dataclass(frozen=True, kw_only=True, slots=True)
class StageConfig:
    """One stage of training: pre-training or fine-tuning, by what its sources are and what counts in the loss.

    `batch_size` counts sequences a step; `micro_batch_size` of them are in memory at once, with the same result. `ramp` are the phases
    before that size is reached, `mix_changes` other weights of the sources from a number of tokens on. Chat sources count answers
    only when `answers_only`.

    `lr` is the peak. `horizon_steps` is where the decay ends; 0 is `num_steps`. Llama 3 405B prints a cosine over 1,200,000 steps, but
    15.6T tokens at the printed batches are 1,100,928 steps: its recipe carries both numbers. AdamW's betas, epsilon, clipping and weight
    decay are not published for Llama 3: these are the field's usual ones. `continue_optimizer` takes the moments of the stage before
    instead of beginning with none.

    `average_every` N ends the stage with the mean of the weights after every N-th step (Polyak averaging); 0 keeps the last ones.
    `clip` norm scales the whole gradient to `grad_clip` at most, value cuts every number to it; `grad_clip` 0 clips nothing. `z_loss`
    weighs the square of log Z, which keeps logits from drifting. `recompute` drops activations and computes them again on the way back:
    selective keeps the matrix products. `float8` runs the blocks' matrix products in 8 bits, where the hardware has them.

    `keep_every` N keeps the state of every N-th step besides the newest `keep_states`. `save_async` writes states beside the training;
    after `max_failed_saves` failures in a row the run stops. `hang_timeout_s` 0 watches nothing. `profile_steps` A,B traces those steps.
    """

    sources: tuple[SourceConfig, ...]
    num_steps: int
    sequence_length: int = 512
    batch_size: int = 8
    micro_batch_size: int = 8
    ramp: tuple[RampPhase, ...] = ()
    mix_changes: tuple[MixChange, ...] = ()
    lr: float = 1e-3
    decay: Decay = "cosine"
    final_lr_fraction: float = 0.01
    warmup_steps: int = 50
    horizon_steps: int = 0
    weight_decay: float = 0.1
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8
    continue_optimizer: bool = False
    average_every: int = 0
    grad_clip: float = 1.0
    clip: Literal["norm", "value"] = "norm"
    z_loss: float = 0.0
    answers_only: bool = False
    compute_dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    recompute: Literal["none", "selective", "full"] = "none"
    compile: bool = False
    float8: bool = False
    guard: GuardConfig = GuardConfig()
    hash_every: int = 0
    log_every: int = 10
    eval_every: int = 250
    save_every: int = 250
    keep_states: int = 2
    keep_every: int = 0
    save_async: bool = True
    max_failed_saves: int = 3
    hang_timeout_s: float = 1800.0
    tensorboard: bool = True
    wandb: bool = False
    profile_steps: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for name in _POSITIVE:
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}, it must be at least 1", hint=f"set {name} to a positive number")
        for name in _COUNTS:
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} is {getattr(self, name)}, it must be 0 or more", hint=f"{name}=0 turns it off")
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
        self._check_ramp()
        self._check_mix(names)
        if self.profile_steps and (len(self.profile_steps) != 2 or not 1 <= self.profile_steps[0] <= self.profile_steps[1]):
            raise ConfigError(
                f"profile_steps is {self.profile_steps}, it must be a first and a last step",
                hint="write profile_steps=10,12; steps count from 1",
            )

    def _check_optimizer(self) -> None:
        if not 0 < self.lr < math.inf:
            raise ConfigError(f"lr is {self.lr}, it must be positive", hint="small models take about 1e-3")
        if not 0 <= self.final_lr_fraction <= 1:
            raise ConfigError(f"final_lr_fraction is {self.final_lr_fraction}, it must be between 0 and 1", hint="Llama 3 used 0.01")
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}, it must be 0 or more and below 1", hint="0.9 and 0.95 are usual")
        for name in ("weight_decay", "eps", "grad_clip", "z_loss", "hang_timeout_s"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ConfigError(f"{name} is {getattr(self, name)}, it must be 0 or more", hint=f"leave {name} at its default")
        if self.horizon_steps and self.horizon_steps < self.warmup_steps:
            raise ConfigError(
                f"horizon_steps {self.horizon_steps} is below warmup_steps {self.warmup_steps}", hint="the decay ends after the warm-up"
            )

    def _check_ramp(self) -> None:
        for earlier, later in pairwise(self.ramp):
            if later.until_tokens <= earlier.until_tokens:
                raise ConfigError(
                    f"a ramp phase until {later.until_tokens} tokens follows one until {earlier.until_tokens}", hint="order them by tokens"
                )
        for phase in self.ramp:
            micro = phase.micro_batch_size or self.micro_batch_size
            if phase.batch_size % micro:
                raise ConfigError(
                    f"a ramp's batch_size {phase.batch_size} is not a multiple of its micro_batch_size {micro}",
                    hint="choose a micro batch that divides the batch",
                )
            if self.sequence_length % phase.sequence_length or phase.batch_size * phase.sequence_length % self.sequence_length:
                raise ConfigError(
                    f"a ramp's {phase.batch_size} rows of {phase.sequence_length} are no whole number of rows of {self.sequence_length}",
                    hint="its sequence_length has to divide the stage's, and its tokens a step have to be a multiple of it",
                )

    def _check_mix(self, names: list[str]) -> None:
        for earlier, later in pairwise(self.mix_changes):
            if later.from_tokens <= earlier.from_tokens:
                raise ConfigError(
                    f"a mix change from {later.from_tokens} tokens follows one from {earlier.from_tokens}", hint="order them by tokens"
                )
        for change in self.mix_changes:
            for weight in change.weights:
                if weight.name not in names:
                    raise ConfigError(f"a mix change names {weight.name!r}, which is no source", hint="sources: " + ", ".join(names))

    @property
    def num_tokens(self) -> int:
        """Tokens read over the whole stage, padding included."""
        from herd.train.schedule import step_plan  # it is made of this class

        return step_plan(self).tokens_before(self.num_steps)

    @property
    def used_sources(self) -> tuple[SourceConfig, ...]:
        """The sources that have a positive weight at some time."""
        later = {weight.name for change in self.mix_changes for weight in change.weights if weight.weight > 0}
        return tuple(source for source in self.sources if source.weight > 0 or source.name in later)
