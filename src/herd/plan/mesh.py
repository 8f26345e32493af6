"""How a training run is cut up: the mesh of devices, and the batch that goes through it. Llama 3 report, section 3.3.2.

Ranks are numbered [TP, CP, PP, DP], tensor parallel innermost: rank = tp + TP (cp + CP (pp + PP dp)). Tensor parallel ranks split every
matrix and, between the matrices, the sequence; context parallel ranks split the sequence; pipeline ranks the layers; data parallel ranks
the batch. Data and context parallel ranks together share optimiser, gradients and perhaps parameters (`zero`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from herd.base.errors import ConfigError
from herd.model.config import ModelConfig

Recompute = Literal["none", "elementwise", "selective", "full"]
Precision = Literal["bf16", "fp8", "fp32", "bf16-pure"]
RECOMPUTE: tuple[Recompute, ...] = ("none", "elementwise", "selective", "full")
PRECISIONS: tuple[Precision, ...] = ("bf16", "fp8", "fp32", "bf16-pure")


def as_precision(text: str) -> Precision:
    """A precision by name. Raises ConfigError for one that is not known."""
    for known in PRECISIONS:
        if text == known:
            return known
    raise ConfigError(f"precision is {text!r}", hint="choose " + ", ".join(PRECISIONS))


def as_recompute(text: str) -> Recompute:
    """A policy of recomputation by name. Raises ConfigError for one that is not known."""
    for known in RECOMPUTE:
        if text == known:
            return known
    raise ConfigError(f"recompute is {text!r}", hint="choose " + ", ".join(RECOMPUTE))


@dataclass(frozen=True, kw_only=True, slots=True)
class Mesh:
    """Devices by dimension.

    Attributes:
        tp: tensor (and sequence) parallel.
        cp: context parallel.
        pp: pipeline stages.
        dp: data parallel.
        virtual_stages: chunks of layers on each pipeline rank, interleaved.
        zero: what ranks share: 0 nothing, 1 the optimiser, 2 gradients too (a reduction after every run of micro-batches), 3 parameters too
            (gathered before every use). The 405B was trained with 2.
    """

    tp: int = 1
    cp: int = 1
    pp: int = 1
    dp: int = 1
    virtual_stages: int = 1
    zero: int = 2

    def __post_init__(self) -> None:
        for name in ("tp", "cp", "pp", "dp", "virtual_stages"):
            if getattr(self, name) < 1:
                raise ConfigError(
                    f"{name} is {getattr(self, name)}, it must be at least 1", hint=f"1 means that nothing is split by {name}"
                )
        if self.zero not in (0, 1, 2, 3):
            raise ConfigError(f"zero is {self.zero}, it must be 0, 1, 2 or 3", hint="2 shares optimiser and gradients, as Llama 3.1 did")
        if self.virtual_stages > 1 and self.pp == 1:
            raise ConfigError(f"{self.virtual_stages} virtual stages need a pipeline", hint="set pp to 2 or more")

    @property
    def size(self) -> int:
        """Devices."""
        return self.tp * self.cp * self.pp * self.dp

    @property
    def shard(self) -> int:
        """Ranks that share a state: data and context parallel together."""
        return self.dp * self.cp

    def __str__(self) -> str:
        stages = f" x {self.virtual_stages}" if self.virtual_stages > 1 else ""
        return f"TP {self.tp}, CP {self.cp}, PP {self.pp}{stages}, DP {self.dp}, ZeRO-{self.zero}"

    def check(self, config: ModelConfig) -> None:
        """Raises ConfigError for a mesh that the model cannot have."""
        for what, count in (("KV heads", config.num_key_value_heads), ("ffn columns", config.intermediate_size)):
            if count % self.tp:
                raise ConfigError(f"tp {self.tp} does not divide the model's {count:,} {what}", hint="choose a divisor")
        chunks, slots = self.pp * self.virtual_stages, config.num_hidden_layers + 2
        if chunks > slots:
            raise ConfigError(
                f"pp {self.pp} x {self.virtual_stages} makes {chunks} chunks of {config.num_hidden_layers} layers, embedding and head",
                hint=f"choose pp x virtual stages of at most {slots}",
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """What goes through the mesh in a step.

    Attributes:
        sequence: tokens of a sequence.
        tokens: of a global batch.
        micro_batch: sequences that a replica computes at once.
        precision: bf16 (masters, moments and gradients in float32), fp8 (the same, products in float8), fp32, or bf16-pure (all in
        bfloat16).
        recompute: what is computed again in the backward pass: none; elementwise (norms and the product of SwiGLU: no matrix product
            twice); selective (gate and up as well, attention is kept); full (the whole layer from its input).
    """

    sequence: int = 8192
    tokens: int = 16_777_216
    micro_batch: int = 1
    precision: Precision = "bf16"
    recompute: Recompute = "none"

    def __post_init__(self) -> None:
        for name in ("sequence", "tokens", "micro_batch"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}, it must be at least 1", hint=f"set {name} to a positive number")

    def num_micro_batches(self, mesh: Mesh) -> int:
        """Micro-batches of each replica in a step. Raises ConfigError where they do not come out even."""
        if self.sequence % (2 * mesh.cp if mesh.cp > 1 else 1) or (self.sequence // mesh.cp) % mesh.tp:
            raise ConfigError(
                f"a sequence of {self.sequence:,} tokens cannot be cut for CP {mesh.cp} and TP {mesh.tp}",
                hint="2 x cp and cp x tp must divide it",
            )
        per_round = self.sequence * self.micro_batch * mesh.dp
        if self.tokens % per_round:
            raise ConfigError(
                f"{self.tokens:,} tokens a batch are no multiple of {mesh.dp} replicas x {self.micro_batch} sequences of {self.sequence:,}",
                hint=f"set the batch to a multiple of {per_round:,} tokens",
            )
        return self.tokens // per_round
