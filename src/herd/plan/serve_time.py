"""How fast a served model can be at best, by the bounds of the hardware.

A token's time is the longer of reading weights and keys and of computing, in each stage, and what ranks exchange, which does not overlap.
What a server loses between steps is not in it.
"""

from __future__ import annotations

from dataclasses import dataclass

from herd.base.errors import ConfigError
from herd.model.config import ModelConfig
from herd.plan.assumptions import Assumptions
from herd.plan.hardware import Device
from herd.plan.network import link
from herd.plan.weights import Format, layer_range, weight_bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class Served:
    """What the times depend on."""

    config: ModelConfig
    device: Device
    tp: int
    pp: int
    weights: Format
    cache_bytes_per_token: int
    assumptions: Assumptions


@dataclass(frozen=True, kw_only=True, slots=True)
class Speed:
    """Sequences that are written at once, seconds between their tokens, tokens a second of all of them, and what bounds it."""

    sequences: int
    step_s: float
    tokens_per_s: float
    bound: str


@dataclass(frozen=True, kw_only=True, slots=True)
class _StageTime:
    """Seconds of one stage by what they go to."""

    reading: float
    computing: float
    exchanging: float

    def of(self, rounds: int = 1) -> float:
        """All of it, where weights are read so many times."""
        return max(self.reading * rounds, self.computing) + self.exchanging

    @property
    def bound(self) -> str:
        """What takes longest."""
        parts = {"memory bandwidth": self.reading, "matrix products": self.computing, "communication": self.exchanging}
        return max(parts, key=parts.__getitem__)


def _computing_s(served: Served, stage: int, *, sequences: int, new: int, past: int) -> float:
    """Seconds of products and attention. Only the last token of each sequence is scored."""
    config, device, rows = served.config, served.device, sequences * new
    held = weight_bytes(config, served.weights, tp=served.tp, pp=served.pp, stage=stage)
    rate = device.tflops("fp32" if served.weights == "fp32" else "bf16") * 1e12
    share = served.assumptions.matmul
    narrow = held.num_quantised if served.weights in ("fp8", "fp8-linear") and device.fp8_tflops else 0
    head = -(-config.vocab_size // served.tp) * config.hidden_size if stage == served.pp - 1 else 0
    seconds = 2 * ((held.num_matrix - narrow) * rows + head * sequences) / (rate * share)
    if narrow and device.fp8_tflops:
        seconds += 2 * narrow * rows / (device.fp8_tflops * 1e12 * share)
    seen = sequences * (past * new + new * (new + 1) / 2)
    layers = len(layer_range(config, served.pp, stage))
    attention = 4 * config.num_attention_heads * config.head_dim * seen * layers / served.tp
    return seconds + attention / (rate * served.assumptions.attention)


def _stage(served: Served, stage: int, *, sequences: int, new: int, past: int) -> _StageTime:
    """One stage for `new` tokens of each of so many sequences that have `past` behind them."""
    config, supposed, rows = served.config, served.assumptions, sequences * new
    held = weight_bytes(config, served.weights, tp=served.tp, pp=served.pp, stage=stage)
    layers = len(layer_range(config, served.pp, stage))
    is_head_too = config.tie_word_embeddings and served.pp == 1
    read = held.total - (0 if is_head_too else held.embedding)
    read += sequences * (past + new) * served.cache_bytes_per_token * layers / config.num_hidden_layers / served.tp
    inside = link(served.device, supposed, ranks=served.tp, stride=1)
    between = link(served.device, supposed, ranks=served.pp, stride=served.tp, in_pairs=True)
    return _StageTime(
        reading=read / (served.device.memory_gb_per_s * 1e9 * supposed.memory),
        computing=_computing_s(served, stage, sequences=sequences, new=new, past=past),
        exchanging=2 * layers * inside.reduce_s(rows * config.hidden_size * 2) + between.send_s(rows * config.hidden_size * 2 / served.tp),
    )


def decode_speed(served: Served, sequences: int, length: int) -> Speed:
    """Writing, with `length` tokens behind each sequence. Stages of a pipeline work on groups of them in turn.

    Raises ConfigError for no sequences.
    """
    if sequences < 1:
        raise ConfigError(f"sequences are {sequences}, they must be at least 1", hint="ask for one or more")
    groups = min(served.pp, sequences)
    parts = [_stage(served, stage, sequences=-(-sequences // groups), new=1, past=length) for stage in range(served.pp)]
    slowest = max(parts, key=_StageTime.of)
    # A group comes back to the first stage after all stages, or after the slowest one has served every group.
    step = max(sum(part.of() for part in parts), groups * slowest.of())
    return Speed(sequences=sequences, step_s=step, tokens_per_s=sequences / step, bound=slowest.bound)


def first_token_s(served: Served, prompt: int, token_budget: int) -> float:
    """Seconds until the first token of a prompt that is alone; its chunks follow each other through the stages, and each reads the weights.

    Raises ConfigError for an empty prompt.
    """
    if prompt < 1:
        raise ConfigError(f"the prompt has {prompt} tokens, it must have at least 1", hint="ask for one or more")
    chunks = -(-prompt // token_budget)
    times = [_stage(served, stage, sequences=1, new=prompt, past=0).of(chunks) for stage in range(served.pp)]
    return max(times) + (sum(times) - max(times)) / chunks
