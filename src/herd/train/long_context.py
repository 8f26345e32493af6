"""Growing the context: the rotations' scaling switched on, and the gate that each length has to pass. Llama 3 report, section 3.4.2.

Knows a model, held-out scores and needles; stages and their order are in `context_config`, carrying them out is the recipe's work.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch

from herd.base.errors import GateError
from herd.base.log import get_logger
from herd.model.config import ModelConfig
from herd.model.transformer import Transformer
from herd.train.context_config import LongContextConfig
from herd.train.needles import Needle, share_found

log = get_logger(__name__)


def with_config(model: Transformer, config: ModelConfig) -> Transformer:
    """The same weights, not copied, in a model of another context or rotation."""
    with torch.device("meta"):
        other = Transformer(config)
    other.load_state_dict(model.state_dict(), assign=True)
    return other.train(model.training)


@dataclass(kw_only=True, slots=True)
class LengthGate:
    """Whether a length is learned: short text as good as `before`, and the needles found. Called by the trainer after each evaluation.

    What it saw last is in `problems`; empty means passed.
    """

    config: LongContextConfig
    before: Mapping[str, float]
    needles: Sequence[Needle]
    dtype: torch.dtype = torch.float32
    problems: list[str] = field(default_factory=lambda: ["it was never evaluated"])
    found: float = 0.0

    def __call__(self, model: Transformer, step: int, scores: Mapping[str, float]) -> bool:
        """Judge; a length is not done before its least steps."""
        self.problems = self.judge(model, scores)
        return not self.problems and step >= self.config.min_steps

    def judge(self, model: Transformer, scores: Mapping[str, float]) -> list[str]:
        """What does not hold yet, in words."""
        model.eval()
        self.found = share_found(model, self.needles, self.dtype)
        model.train()
        problems: list[str] = []
        for name, before in self.before.items():
            limit = before * (1 + self.config.recovery)
            if scores[name] > limit:
                problems.append(f"{name} has {scores[name]:.4f} bits per byte, over {limit:.4f}")
        if self.found < self.config.needle_pass:
            problems.append(f"{self.found:.0%} of {len(self.needles)} needles are found, below {self.config.needle_pass:.0%}")
        return problems


class NeedleScore:
    """A callback that logs the share of needles found, for the curve."""

    name = "needles"

    def __init__(self, gate: LengthGate, *, length: int, every: int) -> None:
        self.gate, self.length, self.every = gate, length, every

    def __call__(self, model: Transformer, step: int) -> Mapping[str, float]:
        """What the gate measured at this step's evaluation."""
        return {str(self.length): self.gate.found}


def check_passed(gate: LengthGate, *, length: int, finished: bool) -> None:
    """After a length's training: raise GateError where it did not pass, or warn, as the config has it."""
    if finished or not gate.problems:
        return
    message = f"the context of {length} tokens is not learned after {gate.config.stage.num_steps} steps: {'; '.join(gate.problems)}"
    if gate.config.on_stuck == "stop":
        raise GateError(
            message,
            hint="give the stage more steps (long_context.stage.num_steps), another mix, or a milder gate (needle_pass, recovery); "
            "on_stuck=go_on takes it as it is",
        )
    log.warning("%s; on_stuck is go_on, so the next length follows", message)
