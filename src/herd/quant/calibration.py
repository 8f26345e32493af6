"""What a block's matrices read while calibration text runs through it: second moments, largest and mean sizes, and a sample of rows.

    point      read by               made by
    attn_in    q_proj k_proj v_proj  input_layernorm
    o_in       o_proj                v_proj, head by head
    mlp_in     gate_proj up_proj     post_attention_layernorm
    down_in    down_proj             up_proj, row by row

One block at a time. Shapes: B sequences, T tokens, D model dim, K inputs of a point, R sample rows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor, nn

from herd.model.attention import AttentionCore, CausalCore
from herd.model.block import Block
from herd.model.config import ModelConfig
from herd.model.rope import rope_frequencies, rope_table

POINTS: dict[str, tuple[str, ...]] = {
    "attn_in": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "o_in": ("self_attn.o_proj",),
    "mlp_in": ("mlp.gate_proj", "mlp.up_proj"),
    "down_in": ("mlp.down_proj",),
}
"""Where inputs are looked at, and the matrices of a block that read them."""
POINT_OF = {matrix: point for point, matrices in POINTS.items() for matrix in matrices}
SAMPLE_ROWS = 512


@dataclass(kw_only=True, slots=True)
class Inputs:
    """What was seen at a point: X^T X, the largest and the mean size of every input, `count` rows in all, and a few of them."""

    moment_KK: Tensor
    largest_K: Tensor
    total_K: Tensor
    count: int = 0
    sample: list[Tensor] = field(default_factory=list)

    @property
    def mean_K(self) -> Tensor:
        """Mean size of every input."""
        return self.total_K / max(self.count, 1)

    @property
    def sample_RK(self) -> Tensor:
        """The rows that were kept."""
        return torch.cat(self.sample)[:SAMPLE_ROWS]

    def add(self, rows: Tensor, keep: int) -> None:
        """Look at more rows, and keep the first few."""
        rows = rows.float()
        self.moment_KK += rows.t() @ rows
        self.largest_K = torch.maximum(self.largest_K, rows.abs().amax(0))
        self.total_K += rows.abs().sum(0)
        self.count += len(rows)
        self.sample.append(rows[:keep].clone())

    def scaled(self, scale_K: Tensor) -> Inputs:
        """The same, had every input been divided by its scale."""
        return Inputs(
            moment_KK=self.moment_KK / scale_K[:, None] / scale_K,
            largest_K=self.largest_K / scale_K,
            total_K=self.total_K / scale_K,
            count=self.count,
            sample=[self.sample_RK / scale_K],
        )


def new_inputs(width: int) -> Inputs:
    """Nothing seen yet."""
    return Inputs(moment_KK=torch.zeros(width, width), largest_K=torch.zeros(width), total_K=torch.zeros(width))


def load_block(config: ModelConfig, tensors: dict[str, Tensor]) -> Block:
    """A block in float32 from its tensors by name within the block."""
    with torch.device("meta"):
        block = Block(config, 0)
    for name, tensor in tensors.items():
        owner, _, leaf = name.rpartition(".")
        setattr(block.get_submodule(owner), leaf, nn.Parameter(tensor.float(), requires_grad=False))
    return block.eval()


class CacheRange:
    """An attention core that remembers the largest key, after the rotation, and the largest value."""

    def __init__(self) -> None:
        self.key = self.value = 0.0
        self._core = CausalCore()

    def __call__(self, layer: int, q_BTNH: Tensor, k_BTKH: Tensor, v_BTKH: Tensor) -> Tensor:
        """Causal attention, looked at."""
        self.key = max(self.key, float(k_BTKH.abs().max()))
        self.value = max(self.value, float(v_BTKH.abs().max()))
        return self._core(layer, q_BTNH, k_BTKH, v_BTKH)


class BlockRunner:
    """Runs blocks over calibration sequences, one sequence at a time."""

    def __init__(self, config: ModelConfig, length: int) -> None:
        self._rope = rope_table(torch.arange(length)[None], rope_frequencies(config))

    @torch.no_grad()
    def __call__(self, block: Block, hidden_BTD: Float[Tensor, "B T D"], core: AttentionCore | None = None) -> Float[Tensor, "B T D"]:
        """The block's outputs."""
        core = core or CausalCore()
        return torch.cat([block(row[None], self._rope, core) for row in hidden_BTD])

    def observe(self, block: Block, hidden_BTD: Float[Tensor, "B T D"]) -> dict[str, Inputs]:
        """What every point of the block reads."""
        keep = -(-SAMPLE_ROWS // max(len(hidden_BTD), 1))
        seen: dict[str, Inputs] = {}
        handles = [
            block.get_submodule(matrices[0]).register_forward_pre_hook(_recorder(seen, point, keep)) for point, matrices in POINTS.items()
        ]
        try:
            self(block, hidden_BTD)
        finally:
            for handle in handles:
                handle.remove()
        return seen


def _recorder(seen: dict[str, Inputs], point: str, keep: int) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
    def record(_module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        rows = arguments[0].flatten(0, -2)
        seen.setdefault(point, new_inputs(rows.shape[1])).add(rows, keep)

    return record
