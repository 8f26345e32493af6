"""A model's weights as the Triton kernels read them. Matrices over one input are stacked where they are of one kind.

Shapes: D model dim, F ffn dim, V vocabulary, N outputs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from herd.kernels.quantised import QuantWeight
from herd.kernels.triton import linear
from herd.kernels.triton.linear import GpuMatrix
from herd.model.block import Block as DecoderBlock
from herd.model.quant_linear import QuantLinear, quantised_matrices
from herd.model.transformer import Transformer

Stack = tuple[GpuMatrix, ...]
"""Matrices whose outputs stand behind one another."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class GpuBlock:
    """One block; `gate_up` is the gate's outputs, then those of up."""

    norm: Tensor
    qkv: Stack
    out: Stack
    ffn_norm: Tensor
    gate_up: Stack
    down: Stack


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class GpuWeights:
    """A model; `head` has the rows of the vocabulary that stand for tokens."""

    blocks: list[GpuBlock]
    norm: Tensor
    head: Stack
    embedding: Tensor

    def matrices(self) -> Iterator[GpuMatrix]:
        """All of them."""
        for block in self.blocks:
            for stack in (block.qkv, block.out, block.gate_up, block.down):
                yield from stack
        yield from self.head


def runs_in_triton(model: Transformer) -> bool:
    """Whether every quantised matrix of a model has a kernel."""
    return all(linear.takes(one.quantised) for one in quantised_matrices(model).values())


def stack(*modules: nn.Module, rows: int | None = None) -> Stack:
    """Matrices that read the same input, of each the first `rows`: in as few products as their kinds allow."""
    runs: list[list[nn.Module]] = []
    for module in modules:
        if runs and _together([*runs[-1], module]):
            runs[-1].append(module)
        else:
            runs.append([module])
    return tuple(_matrix(run, rows) for run in runs)


def _together(modules: Sequence[nn.Module]) -> bool:
    kinds = [isinstance(module, QuantLinear) for module in modules]
    return not any(kinds) or (all(kinds) and linear.alike(_quantised(modules)))


def _quantised(modules: Sequence[nn.Module]) -> list[QuantWeight]:
    return [module.quantised for module in modules if isinstance(module, QuantLinear)]


def _matrix(modules: Sequence[nn.Module], rows: int | None) -> GpuMatrix:
    quantised = _quantised(modules)
    if quantised:
        made = linear.quantised([weight.rows(rows) for weight in quantised])
        if len(modules) > 1:
            _share(modules, made)
        return made
    weights = [module.weight for module in modules]
    parts = [weight.detach()[:rows] for weight in weights if isinstance(weight, Tensor)]
    made = linear.dense(parts[0] if len(parts) == 1 else torch.cat(parts))
    if len(modules) > 1:
        _share(modules, made)
    return made


def _share(modules: Sequence[nn.Module], stacked: GpuMatrix) -> None:
    """Let modules read their rows of what was stacked of them, so that a model has its weights once."""
    row = 0
    for module in modules:
        if isinstance(module, QuantLinear):
            rows = slice(row, row + module.out_features)
            module.values = stacked.values[rows].view(module.values.dtype)
            if stacked.scales is not None:
                module.scales = stacked.scales[rows]
            if stacked.zeros is not None and module.zeros is not None:
                module.zeros = stacked.zeros[rows]
            row = rows.stop
        else:
            assert isinstance(module.weight, Tensor)
            rows = slice(row, row + len(module.weight))
            module.weight.data = stacked.values[rows]
            row = rows.stop


def stacks(model: Transformer) -> Iterator[Stack]:
    """The stacks of a model, one after another."""
    for block in model.model.layers:
        made = _block(block, model.dtype)
        yield from (made.qkv, made.out, made.gate_up, made.down)
    yield stack(model.lm_head or model.model.embed_tokens)


def gpu_weights(model: Transformer, vocab_size: int) -> GpuWeights:
    """Stack a model, block by block; its modules read what was stacked, so nothing is there twice."""
    return GpuWeights(
        blocks=[_block(block, model.dtype) for block in model.model.layers],
        norm=model.model.norm.weight.detach().to(model.dtype),
        head=stack(model.lm_head or model.model.embed_tokens, rows=vocab_size),
        embedding=model.model.embed_tokens.weight.detach(),
    )


def _block(block: nn.Module, dtype: torch.dtype) -> GpuBlock:
    assert isinstance(block, DecoderBlock)
    attention, mlp = block.self_attn, block.mlp
    return GpuBlock(
        norm=block.input_layernorm.weight.detach().to(dtype),
        qkv=stack(attention.q_proj, attention.k_proj, attention.v_proj),
        out=stack(attention.o_proj),
        ffn_norm=block.post_attention_layernorm.weight.detach().to(dtype),
        gate_up=stack(mlp.gate_proj, mlp.up_proj),
        down=stack(mlp.down_proj),
    )
