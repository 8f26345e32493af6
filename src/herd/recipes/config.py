"""A recipe's config: tokenizer, model, stages and what the model card has to say. No torch, so `--dry-run` and help stay fast."""

from __future__ import annotations

from dataclasses import dataclass

from herd.base.errors import ConfigError
from herd.model.config import ModelConfig
from herd.train.config import SourceConfig, StageConfig
from herd.train.context_config import LongContextConfig
from herd.train.parallel.config import ParallelConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenizerTraining:
    """How the tokenizer is trained: base tokens besides the 256 special ones, and the text it sees.

    `path` names the folder of one that is taken as it is; then `sources` may be empty.
    """

    vocab_size: int
    sources: tuple[SourceConfig, ...]
    path: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class PowerConfig:
    """The nameplate figures of the machine, for the card's energy and carbon: never measured, so always named as assumed."""

    hardware: str = "2 cores of a server CPU"
    watts: float = 15.0
    pue: float = 1.1
    grid_kg_per_kwh: float = 0.39


_ONE_PROCESS = ParallelConfig()


@dataclass(frozen=True, kw_only=True, slots=True)
class RecipeConfig:
    """Everything a run is made of. `heldout_bytes` of text per language stay out of training and measure it.

    The stages follow one another: `pretrain`, `long_context` at each of its lengths, `anneal`, `sft`; all but the first may be left out.

    `parallel` is how the run is spread over processes; the same run may go on on another mesh.

    `sample_prompts` are put to the finished model in the order given; every answer goes into the card as it came.
    """

    name: str
    seed: int = 0
    num_threads: int = 0
    tokenizer: TokenizerTraining
    model: ModelConfig
    pretrain: StageConfig
    long_context: LongContextConfig | None = None
    anneal: StageConfig | None = None
    sft: StageConfig | None = None
    heldout_bytes: int = 40_000
    heldout_one_in: int = 64
    power: PowerConfig = PowerConfig()
    parallel: ParallelConfig = _ONE_PROCESS
    sample_prompts: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for field, least in (("seed", 0), ("num_threads", 0), ("heldout_bytes", 0), ("heldout_one_in", 2)):
            if getattr(self, field) < least:
                raise ConfigError(f"{field} is {getattr(self, field)}, it must be at least {least}", hint=f"set {field}={least} or more")
        if self.tokenizer.vocab_size + 256 != self.model.vocab_size:
            raise ConfigError(
                f"the model has {self.model.vocab_size} rows for a tokenizer of {self.tokenizer.vocab_size} + 256 special tokens",
                hint=f"set model.vocab_size={self.tokenizer.vocab_size + 256}",
            )
        for name, stage in self.stages():
            context = self.model_at(name).max_position_embeddings
            if stage.sequence_length > context:
                raise ConfigError(
                    f"{name}.sequence_length {stage.sequence_length} is over the model's context of {context}",
                    hint=f"set {name}.sequence_length or model.max_position_embeddings",
                )

    def stages(self) -> list[tuple[str, StageConfig]]:
        """The stages in their order, with their names."""
        longer = self.long_context.stages() if self.long_context is not None else []
        later = (("anneal", self.anneal), ("sft", self.sft))
        return [("pretrain", self.pretrain), *longer, *((name, stage) for name, stage in later if stage is not None)]

    def model_at(self, name: str) -> ModelConfig:
        """The model's config in a stage: from the long-context stage on it has that stage's context and rotations."""
        return self.model if self.long_context is None or name == "pretrain" else self.long_context.extended(self.model)

    @property
    def final_model(self) -> ModelConfig:
        """The config of the model that comes out."""
        return self.model_at(self.stages()[-1][0])
