"""Activation recomputation, one block at a time: less memory for a second forward of what was dropped, with the same bits.

full drops everything inside a block; selective keeps the results of matrix products and attention, which are dear, and computes the rest
(norms, rotations, the gate's product) again. Where ranks split a product's sum (tensor parallel), its result is computed again too.
Set as the model's `block_runner`; knows blocks, not their insides.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from herd.model.block import Block
from herd.model.transformer import Transformer, call_block

_aten = torch.ops.aten
KEPT_OPS = (
    _aten.mm.default,
    _aten.bmm.default,
    _aten.addmm.default,
    _aten._scaled_mm.default,
    _aten._scaled_dot_product_flash_attention.default,
    _aten._scaled_dot_product_efficient_attention.default,
    _aten._scaled_dot_product_cudnn_attention.default,
    _aten._scaled_dot_product_flash_attention_for_cpu.default,
)
"""Operators whose results selective recomputation keeps."""

KEPT_NAMES = ("torch_attn::_varlen_attn",)
"""The same, by name: operators that exist only once a module of torch's that not every run needs was imported."""


def _is_part_of_a_sum(args: tuple[Any, ...]) -> bool:
    """Whether a product's inputs are cut along what is summed over: its result, before the ranks add it up, is as large as all ranks'."""
    cut = getattr(args[0], "placements", ()) if args else ()
    return any(placement.is_shard(args[0].dim() - 1) for placement in cut)


def _policy(_context: Any, op: Any, *args: Any, **_rest: Any) -> CheckpointPolicy:
    keeps = (op in KEPT_OPS or getattr(op, "_name", None) in KEPT_NAMES) and not _is_part_of_a_sum(args)
    return CheckpointPolicy.MUST_SAVE if keeps else CheckpointPolicy.PREFER_RECOMPUTE


def _full(block: Block, *args: object) -> Tensor:
    return checkpoint(block, *args, use_reentrant=False)  # pyright: ignore[reportReturnType]


def _selective(block: Block, *args: object) -> Tensor:
    contexts = partial(create_selective_checkpoint_contexts, _policy)
    return checkpoint(block, *args, use_reentrant=False, context_fn=contexts)  # pyright: ignore[reportReturnType]


def set_recompute(model: Transformer, mode: Literal["none", "selective", "full"]) -> None:
    """Choose what a model's blocks keep of their activations. Without gradients nothing is kept in any mode."""
    runner = {"none": call_block, "selective": _selective, "full": _full}[mode]
    model.block_runner = lambda block, *args: runner(block, *args) if torch.is_grad_enabled() else block(*args)
    if mode == "none":
        model.block_runner = call_block
