"""The config of a post-training run: a model to start from, one stage, what it minimises, adapters. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from herd.base.errors import ConfigError
from herd.train.adapters.config import LoraConfig
from herd.train.config import StageConfig
from herd.train.objectives.config import DistillConfig, PreferenceConfig, RewardConfig
from herd.train.qat_config import QatConfig

_PREFERENCE, _REWARD, _DISTILL, _WHOLE = PreferenceConfig(), RewardConfig(), DistillConfig(), LoraConfig()
_UNROUNDED = QatConfig()
Method = Literal["sft", "reward", "preference", "distill"]


@dataclass(frozen=True, kw_only=True, slots=True)
class TuneConfig:
    """Everything a post-training run is made of.

    Attributes:
        name: the recipe's name.
        method: `sft` (next token, answers only), `reward` (ranking loss), `preference` (DPO and relatives, KTO), `distill`.
        model: what to start from: a path, a hub name or an alias.
        teacher: the model whose predictions `distill` learns; where `quant` rounds, the starting model unless given.
        epochs: passes over the data, which set train.num_steps; 0 takes train.num_steps as it is.
        seed: of the order and of new weights.
        num_threads: CPU threads; 0 leaves torch's choice.
        train: the stage. A source whose path is `.` is what --data names.
        preference, reward, distill: settings of the three methods.
        lora: adapters; rank 0 trains the whole model.
        quant: what the matrices are rounded to while they are trained; the result is a quantised folder.
        merge: whether adapters are merged into a model of their own too.
        heldback_one_in: one record in that many stays out of training and measures it; 0 keeps none back.
        strengths: of preference records that tell their `strength`, these are used.
        today: the date that prompts with tools tell.
        export_dtype: of the weights that are written.
        sample_prompts: prompts whose answers go into the card.
    """

    name: str
    method: Method
    model: str = "cria"
    teacher: str = ""
    epochs: float = 3.0
    seed: int = 0
    num_threads: int = 0
    train: StageConfig
    preference: PreferenceConfig = _PREFERENCE
    reward: RewardConfig = _REWARD
    distill: DistillConfig = _DISTILL
    lora: LoraConfig = _WHOLE
    quant: QatConfig = _UNROUNDED
    merge: bool = True
    heldback_one_in: int = 16
    strengths: tuple[str, ...] = ("significantly better", "better")
    today: str = "23 July 2024"
    export_dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"
    sample_prompts: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not 0 <= self.epochs < 10_000:
            raise ConfigError(f"epochs is {self.epochs}, it must lie between 0 and 10,000", hint="1 to 3 are usual")
        for name in ("seed", "num_threads", "heldback_one_in"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} is {getattr(self, name)}, it must be 0 or more", hint=f"set {name}=0 or more")
        if self.heldback_one_in == 1:
            raise ConfigError("heldback_one_in is 1, which leaves nothing to train on", hint="set heldback_one_in=16, or 0 for none")
        if self.quant.scheme and self.method not in ("sft", "distill"):
            raise ConfigError(f"method {self.method} does not train for rounding", hint="set quant.scheme= to none, or method=distill")
        if self.quant.scheme and self.lora.nf4:
            raise ConfigError("lora.nf4 and quant.scheme both say what matrices are rounded to", hint="set lora.nf4=false")
        if self.method == "distill" and not self.teacher and not self.quant.scheme:
            raise ConfigError("distillation needs a teacher", hint="set teacher=MODEL")
        if self.method in ("reward", "preference") and any(source.kind != "chat" for source in self.train.sources):
            raise ConfigError(f"method {self.method} reads judged answers, not text", hint="remove the source of kind text")

    @property
    def is_kto(self) -> bool:
        """Whether answers are labelled one by one."""
        return self.method == "preference" and self.preference.loss == "kto"
