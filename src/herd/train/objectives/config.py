"""Settings of the objectives of post-training. No torch, so that a recipe's config costs nothing to make."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from herd.base.errors import ConfigError

PreferenceLoss = Literal["sigmoid", "hinge", "robust", "ipo", "simpo", "orpo", "kto"]
_REFERENCE_FREE = ("simpo", "orpo")


def _at_least(config: object, names: tuple[str, ...], least: float = 0.0) -> None:
    for name in names:
        if not least <= getattr(config, name) < math.inf:
            raise ConfigError(f"{name} is {getattr(config, name)}, it must be {least:g} or more", hint=f"leave {name} at its default")


@dataclass(frozen=True, kw_only=True, slots=True)
class PreferenceConfig:
    """Direct preference optimisation and its relatives.

    With r = log p(answer) - log p_reference(answer), summed over the answer's content, and h = r(better) - r(worse):

    - `sigmoid`: -log s(beta h), DPO as Llama 3.1 used it; `label_smoothing` e makes it (1 - e) of that plus e of -log s(-beta h).
    - `robust`: the same two parts, (1 - e) and -e of them, over 1 - 2e: unbiased when a share e of the labels is wrong.
    - `hinge`: max(0, 1 - beta h).
    - `ipo`: (h - 1 / (2 beta))^2.
    - `simpo`: -log s(beta (mean log p(better) - mean log p(worse)) - gamma); needs no reference.
    - `orpo`: beta times -log s(log odds(better) - log odds(worse)) of the mean log-probabilities; needs no reference.
    - `kto`: for answers that are labelled good or bad one by one, with a reference point taken over the batch.

    `length_normalised` takes means over an answer's tokens in place of sums (always so in simpo and orpo); the authors of IPO mean it that
    way. `nll_weight` adds the negative log-likelihood of the better answer, as Llama 3.1 did with 0.2: by `nll_per` the mean over its
    tokens and then over the pairs, or over all tokens. Llama 3.1 masks an answer's header and end token in the preference term, since
    better and worse share them; `end_tokens` counts the end token there. It stays in the negative log-likelihood unless `nll_end` is false.
    """

    loss: PreferenceLoss = "sigmoid"
    beta: float = 0.1
    label_smoothing: float = 0.0
    length_normalised: bool = False
    gamma: float = 0.0
    nll_weight: float = 0.2
    nll_per: Literal["sequence", "token"] = "sequence"
    nll_end: bool = True
    end_tokens: bool = False
    desirable_weight: float = 1.0
    undesirable_weight: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.beta < math.inf:
            raise ConfigError(f"beta is {self.beta}, it must be positive", hint="Llama 3.1 used 0.1")
        if not 0 <= self.label_smoothing < 0.5:
            raise ConfigError(f"label_smoothing is {self.label_smoothing}, it must be below 0.5", hint="it is the share of wrong labels")
        if self.label_smoothing and self.loss not in ("sigmoid", "robust", "simpo"):
            raise ConfigError(f"{self.loss} has no label_smoothing", hint="set label_smoothing=0, or choose sigmoid, robust or simpo")
        _at_least(self, ("gamma", "nll_weight", "desirable_weight", "undesirable_weight"))
        if self.gamma and self.loss != "simpo":
            raise ConfigError(f"{self.loss} has no gamma, here {self.gamma}", hint="set gamma=0, or loss=simpo")

    @property
    def needs_reference(self) -> bool:
        """Whether log-probabilities of the starting model are part of the loss."""
        return self.loss not in _REFERENCE_FREE

    @property
    def takes_means(self) -> bool:
        """Whether log-probabilities are means over tokens."""
        return self.length_normalised or not self.needs_reference


@dataclass(frozen=True, kw_only=True, slots=True)
class RewardConfig:
    """The reward model's ranking loss. `center_weight` times (r(better) + r(worse))^2 keeps rewards around zero; 0 is the paper's."""

    center_weight: float = 0.0

    def __post_init__(self) -> None:
        _at_least(self, ("center_weight",))


@dataclass(frozen=True, kw_only=True, slots=True)
class DistillConfig:
    """Knowledge distillation on the `top_k` log-probabilities that a teacher gave to each token.

    The loss is (1 - `ce_weight`) of a divergence plus `ce_weight` of the cross entropy with the data's tokens. `forward` is KL(teacher,
    student), `reverse` KL(student, teacher), `symmetric` their mean. `tail` says what becomes of the teacher's probability outside its top
    k: `bucket` keeps it as one more outcome, `renormalise` leaves it out. With a `temperature` t both distributions are softened and the
    divergence is multiplied by t^2; the tail cannot be softened, so that needs `renormalise`.
    """

    divergence: Literal["forward", "reverse", "symmetric"] = "forward"
    tail: Literal["bucket", "renormalise"] = "bucket"
    temperature: float = 1.0
    ce_weight: float = 0.5
    top_k: int = 32

    def __post_init__(self) -> None:
        if not 0 < self.temperature < math.inf:
            raise ConfigError(f"temperature is {self.temperature}, it must be positive", hint="1 leaves the distributions as they are")
        if self.temperature != 1 and self.tail == "bucket":
            raise ConfigError(
                f"temperature {self.temperature} cannot soften the tail, whose tokens are not stored", hint="set tail=renormalise"
            )
        if not 0 <= self.ce_weight <= 1:
            raise ConfigError(f"ce_weight is {self.ce_weight}, it must lie between 0 and 1", hint="0 trains on the teacher alone")
        if self.top_k < 1:
            raise ConfigError(f"top_k is {self.top_k}, it must be at least 1", hint="32 keeps nearly all of a teacher's probability")
