"""What a long-context stage is: one stage at growing lengths, and what has to hold before each next length. No torch."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal

from herd.base.errors import ConfigError
from herd.model.config import ModelConfig, RopeScaling
from herd.train.config import StageConfig

_LLAMA_31 = RopeScaling()


@dataclass(frozen=True, kw_only=True, slots=True)
class LongContextConfig:
    """Continued pre-training at each of `lengths` in turn, with as many tokens a step at each as `stage` has, to the row. Llama 3 report,
    section 3.4.2.

    Llama 3.1 went from 8K to 128K in six steps over about 800B tokens; the lengths between are not published, so those of the recipes are
    our choice. Every length trains `min_steps` at least and `stage.num_steps` at most; it is done when, at an evaluation, short text is as
    good as before the stage (held-out bits per byte at most `recovery` above, as a share) and needles are found at the present length
    (`needle_pass` of `num_needles`, spread over the depth of the text). `on_stuck` says what follows when that never happens: the run
    stops with a gate error, or goes on with a warning.

    `rope_scaling` is switched on with the first length; None leaves the rotations as they are.
    """

    stage: StageConfig
    lengths: tuple[int, ...]
    min_steps: int = 1
    rope_scaling: RopeScaling | None = _LLAMA_31
    recovery: float = 0.01
    num_needles: int = 10
    needle_pass: float = 1.0
    on_stuck: Literal["stop", "go_on"] = "stop"

    def __post_init__(self) -> None:
        if not self.lengths:
            raise ConfigError("a long-context stage has no lengths", hint="set lengths, as 16384,32768,65536,131072")
        for earlier, later in pairwise(self.lengths):
            if later <= earlier:
                raise ConfigError(f"lengths has {later} after {earlier}", hint="order them from short to long")
        if self.stage.ramp:
            raise ConfigError("a long-context stage has a ramp of its own", hint="its lengths are the ramp: leave stage.ramp empty")
        tokens = self.stage.batch_size * self.stage.sequence_length
        for length in self.lengths:
            if not 2 <= length <= tokens:
                raise ConfigError(
                    f"a row of {length} is not within the {tokens} tokens of a step",
                    hint="choose stage.batch_size x stage.sequence_length at least as large as every length",
                )
        if not 1 <= self.min_steps <= self.stage.num_steps:
            raise ConfigError(
                f"min_steps is {self.min_steps}, it must lie between 1 and stage.num_steps ({self.stage.num_steps})", hint="set min_steps"
            )
        if not 0 <= self.recovery < math.inf:
            raise ConfigError(f"recovery is {self.recovery}, it must be 0 or more", hint="0.01 allows one per cent")
        if self.num_needles < 0:
            raise ConfigError(f"num_needles is {self.num_needles}, it must be 0 or more", hint="0 asks for none")
        if not 0 <= self.needle_pass <= 1:
            raise ConfigError(f"needle_pass is {self.needle_pass}, it must lie between 0 and 1", hint="1 asks for all of them")

    def at(self, length: int) -> StageConfig:
        """The stage at one of its lengths: as many tokens a step in fewer, longer rows, and as many rows in memory as fit those tokens."""
        tokens, in_memory = self.stage.batch_size * self.stage.sequence_length, self.stage.micro_batch_size * self.stage.sequence_length
        rows = tokens // length
        micro = max(size for size in range(1, rows + 1) if rows % size == 0 and (size == 1 or size * length <= in_memory))
        return replace(self.stage, sequence_length=length, batch_size=rows, micro_batch_size=micro)

    def stages(self) -> list[tuple[str, StageConfig]]:
        """The stages, named by their lengths."""
        return [(f"long-{length}", self.at(length)) for length in self.lengths]

    def extended(self, model: ModelConfig) -> ModelConfig:
        """The model's config from this stage on."""
        context = max(model.max_position_embeddings, self.lengths[-1])
        return replace(model, max_position_embeddings=context, rope_scaling=self.rope_scaling or model.rope_scaling)
