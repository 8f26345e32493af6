"""Tensor and sequence parallel: where each module's weight is cut, and how its input and output lie, as DTensor plans.

Queries, keys, values, gate and up are cut by rows (outputs), o and down by columns (inputs); between them the residual stream is cut along
the sequence, so norms and sums run on slices. Before attention and ffn the sequence is gathered, after them the partial sums are scattered.
Embedding and head are cut by rows of the vocabulary. Shapes: B batch, T tokens, D model dim.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    PrepareModuleInput,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)

SEQUENCE = 1
"""The dimension of tokens in [B, T, D]."""


def block_plan() -> dict[str, Any]:
    """The plan of a `model.block.Block`, by path."""
    gathered = (Replicate(), None, None)
    attention = PrepareModuleInput(input_layouts=(Shard(SEQUENCE), None, None), desired_input_layouts=gathered)
    ffn = PrepareModuleInput(input_layouts=(Shard(SEQUENCE),), desired_input_layouts=(Replicate(),))
    columns = {f"self_attn.{name}_proj": ColwiseParallel() for name in "qkv"}
    columns |= {f"mlp.{name}_proj": ColwiseParallel() for name in ("gate", "up")}
    rows = {name: RowwiseParallel(output_layouts=Shard(SEQUENCE), use_local_output=False) for name in ("self_attn.o_proj", "mlp.down_proj")}
    norms = {name: SequenceParallel() for name in ("input_layernorm", "post_attention_layernorm")}
    return {"self_attn": attention, "mlp": ffn, **columns, **rows, **norms}


def split_block(block: nn.Module, mesh: Any) -> None:
    """Cut a block's matrices over the ranks of `mesh`, in place."""
    parallelize_module(block, mesh, block_plan())


def split_embedding(embedding: nn.Module, mesh: Any) -> None:
    """Cut the embedding by rows of the vocabulary; its output is cut along the sequence."""
    plan = RowwiseParallel(input_layouts=Replicate(), output_layouts=Shard(SEQUENCE), use_local_output=False)
    parallelize_module(embedding, mesh, plan)


def split_norm(norm: nn.Module, mesh: Any) -> None:
    """The final norm runs on slices of the sequence."""
    parallelize_module(norm, mesh, SequenceParallel())


def split_head(head: nn.Module, mesh: Any) -> None:
    """Cut the output matrix by rows of the vocabulary; the loss reads its slice (`parallel.loss`)."""
    parallelize_module(head, mesh, ColwiseParallel())


def enter(x: Tensor, mesh: Any) -> DTensor:
    """A slice of the sequence as the DTensor that the blocks take."""
    return DTensor.from_local(x, mesh, [Shard(SEQUENCE)], run_check=False)


def leave(x: Tensor) -> Tensor:
    """The slice of a DTensor, as it is sent to the next stage."""
    return x.to_local() if isinstance(x, DTensor) else x


def gather_sequence(x: Tensor, mesh: Any) -> Tensor:
    """The whole sequence from every rank's slice; its gradient, a part of it on each rank, is added up and cut again."""
    whole: Any = enter(x, mesh)
    whole = whole.redistribute(mesh, [Replicate()])
    return whole.to_local(grad_placements=[Partial()])


def slice_of(weight: Tensor) -> Tensor:
    """This rank's rows of a weight."""
    return weight.to_local() if isinstance(weight, DTensor) else weight
