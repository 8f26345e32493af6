"""How a run is spread over processes: the size of each dimension of the mesh. Llama 3 report, section 3.3.2.

Ranks are numbered [TP, CP, PP, DP], tensor parallel innermost: rank = tp + TP (cp + CP (pp + PP dp)). Knows numbers only, no torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from herd.base.errors import ConfigError
from herd.model.config import ModelConfig
from herd.plan.mesh import Mesh

ScheduleName = Literal["1f1b", "interleaved", "gpipe"]
DIMENSIONS = ("dp_replicate", "dp_shard", "pp", "cp", "tp")
"""Of the device mesh, outermost first."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ParallelConfig:
    """The mesh. All ones, the default, is one process without any of it.

    `dp_replicate` copies of the model each read other rows; `dp_shard` ranks share one copy's optimiser, gradients and, with `zero` 3,
    parameters (2 keeps the parameters together between forward and backward, as the 405B was trained). `tp` ranks split every matrix and,
    between the matrices, the sequence. `cp` ranks split the sequence in 2 x cp chunks, two for each. `pp` ranks have `virtual_stages`
    chunks of layers each, run by `schedule`: interleaved is taken for 1f1b where there is more than one chunk a rank.

    `timeout_s` is how long a collective may wait for a rank that does not come.
    """

    dp_replicate: int = 1
    dp_shard: int = 1
    cp: int = 1
    tp: int = 1
    pp: int = 1
    virtual_stages: int = 1
    schedule: ScheduleName = "1f1b"
    zero: int = 2
    timeout_s: float = 1800.0

    def __post_init__(self) -> None:
        for name in (*DIMENSIONS, "virtual_stages"):
            if getattr(self, name) < 1:
                raise ConfigError(
                    f"parallel.{name} is {getattr(self, name)}, it must be at least 1", hint=f"parallel.{name}=1 splits nothing"
                )
        if self.zero not in (2, 3):
            raise ConfigError(f"parallel.zero is {self.zero}", hint="2 shares optimiser and gradients, 3 parameters too")
        if self.timeout_s <= 0:
            raise ConfigError(f"parallel.timeout_s is {self.timeout_s}, it must be positive", hint="half an hour is usual")
        if self.virtual_stages > 1 and self.pp == 1:
            raise ConfigError(f"parallel.virtual_stages is {self.virtual_stages} without a pipeline", hint="set parallel.pp to 2 or more")
        if self.virtual_stages > 1 and self.schedule == "gpipe":
            raise ConfigError("gpipe runs one chunk a rank", hint="set parallel.schedule=interleaved, or parallel.virtual_stages=1")
        if self.schedule == "interleaved" and self.virtual_stages == 1 and self.pp > 1:
            raise ConfigError(
                "an interleaved pipeline needs several chunks a rank", hint="set parallel.virtual_stages to 2 or more, or schedule=1f1b"
            )

    @property
    def world_size(self) -> int:
        """Processes."""
        return self.dp_replicate * self.dp_shard * self.cp * self.tp * self.pp

    @property
    def dp(self) -> int:
        """Ranks that read rows of their own."""
        return self.dp_replicate * self.dp_shard

    @property
    def mesh(self) -> Mesh:
        """As the planner knows it."""
        return Mesh(tp=self.tp, cp=self.cp, pp=self.pp, dp=self.dp, virtual_stages=self.virtual_stages, zero=self.zero)

    def coordinates(self, rank: int) -> dict[str, int]:
        """Where a rank sits in each dimension. Raises ConfigError for one that the mesh does not have."""
        if not 0 <= rank < self.world_size:
            raise ConfigError(f"rank {rank} is none of the mesh's {self.world_size:,}", hint=f"ranks are 0 to {self.world_size - 1:,}")
        found: dict[str, int] = {}
        for name in reversed(DIMENSIONS):
            rank, found[name] = divmod(rank, getattr(self, name))
        return found

    def check(self, model: ModelConfig) -> None:
        """Raises ConfigError for a mesh that the model cannot have."""
        self.mesh.check(model)
        for what, count in (("query heads", model.num_attention_heads), ("rows of the vocabulary", model.vocab_size)):
            if count % self.tp:
                raise ConfigError(f"parallel.tp {self.tp} does not divide the model's {count:,} {what}", hint="choose a divisor")

    def check_rows(self, *, length: int, batch_size: int, micro_batch_size: int) -> int:
        """Micro-batches of a rank in a step. Raises ConfigError for rows that cannot be cut for the mesh."""
        piece = (2 * self.cp if self.cp > 1 else 1) * self.tp
        if length % piece:
            raise ConfigError(
                f"rows of {length} tokens cannot be cut for cp {self.cp} and tp {self.tp}", hint=f"choose a length that {piece} divides"
            )
        per_round = self.dp * micro_batch_size
        if batch_size % per_round:
            raise ConfigError(
                f"batch_size {batch_size} is not a multiple of {self.dp} data parallel ranks x micro_batch_size {micro_batch_size}",
                hint=f"choose a multiple of {per_round}",
            )
        count = batch_size // per_round
        if self.pp > 1 and count < self.pp:
            raise ConfigError(
                f"{count} micro-batches do not fill a pipeline of {self.pp} stages",
                hint="lower micro_batch_size or dp, or raise batch_size",
            )
        if self.virtual_stages > 1 and count % self.pp:
            raise ConfigError(
                f"{count} micro-batches are no multiple of the {self.pp} stages of an interleaved pipeline",
                hint="choose batch_size / (dp x micro_batch_size) as a multiple of pp",
            )
        return count
