"""linear: x w^T over weights packed once.

    packed = pack_linear(weight)                 one [N, K] matrix, or several that share K (q, k and v) stacked
    packed = pack_gate_up(gate, up)              two of one shape, for `linear_swiglu`

C layout: panels of 32 outputs, [N/32][K][32] float32 or [N/32][K/2][32][2] bfloat16, so that one stream of memory feeds every lane and the
same bytes serve one row and many. Every output is summed in one order, in float32, with ascending k (csrc/linear.c). The reference keeps
the matrix as it came and multiplies 16 rows at a time.
Rounding is the model's: the sum rounds to the dtype, then the residual is added and rounds again; silu(gate) rounds before it meets up.
Shapes: M rows, K inputs, N outputs, F ffn dim.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from herd.kernels import dispatch, library, memory, tiles
from herd.kernels.buffer import Buffer, dtype_name
from herd.kernels.checks import check_apart, check_rows, flat, refuse, require, row_stride
from herd.kernels.stored import PANELS, ROWS, StoredMatrix


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class PackedLinear(StoredMatrix):
    """A stored matrix in tensors, for the ops."""

    data: Tensor
    dtype: torch.dtype
    columns: Tensor | None = None

    @staticmethod
    def of(stored: StoredMatrix) -> PackedLinear:
        """Tensors over the memory of a stored matrix."""
        parts = {field.name: getattr(stored, field.name) for field in fields(stored)}
        parts |= {name: parts[name].tensor() for name in ("data", "columns") if isinstance(parts[name], Buffer)}
        return PackedLinear(**{**parts, "dtype": getattr(torch, dtype_name(stored.dtype))})

    def rows(self, ids: Int[Tensor, "*batch"]) -> Shaped[Tensor, "*batch K"]:
        """Rows of the matrix, so that a tied embedding needs no second copy. Raises ConfigError for an id out of range."""
        require(not self.gated, "a gated pair has no rows to look up", "pack the embedding with pack_linear")
        if ids.numel():
            low, high = int(ids.min()), int(ids.max())
            require(
                low >= 0 and high < self.num_outputs,
                f"ids reach from {low} to {high}, the matrix has rows 0 to {self.num_outputs - 1}",
                "check the token ids against the vocabulary",
            )
        if self.layout == ROWS:
            return self.data[: self.num_outputs, : self.num_inputs][ids]
        return self._unpack(ids.to(torch.int64).reshape(-1), 1, 0).view(*ids.shape, self.num_inputs)

    def weight(self) -> Shaped[Tensor, "N K"]:
        """The whole matrix: as it was stacked, gate above up when gated."""
        if self.layout == ROWS:
            return self.data[: self.num_rows, : self.num_inputs]
        every = torch.arange(self.num_outputs)
        return torch.cat([self._unpack(every, self.num_parts, part) for part in range(self.num_parts)])

    def _unpack(self, ids: Tensor, step: int, offset: int) -> Tensor:
        out = torch.empty(len(ids), self.num_inputs, dtype=self.dtype)
        ids = ids.contiguous()
        code, k = library.code(self.dtype), self.num_inputs
        if self.quant is not None:
            matrix = self.matrix()
            place = (k, step, offset, ids.data_ptr(), len(ids), out.data_ptr(), k, code)
            library.raise_for(_library(self).unpack_quantised(ctypes.byref(matrix), *place))
            return out
        arguments = (self.data.data_ptr(), k, code, step, offset, ids.data_ptr(), len(ids), out.data_ptr(), k)
        library.raise_for(_library(self).unpack(*arguments))
        return out


def _library(packed: PackedLinear) -> library.Library:
    """The library that reads panels. Weights outlive a choice only in tests, where the reference reads what C has packed."""
    found = dispatch.choice().library
    return found if found is not None else dispatch.loaded()


def pack_linear(weight: Float[Tensor, "N K"] | Sequence[Float[Tensor, "_ K"]]) -> PackedLinear:
    """Pack a matrix, or several that read the same input, stacked in order.

    C makes one copy, so the caller can let go of the weight; the reference keeps the tensor itself where its shape allows.
    Raises ConfigError where shapes or dtypes disagree.
    """
    weights = [weight] if isinstance(weight, Tensor) else list(weight)
    _check_weights(weights)
    first, num_outputs = weights[0], sum(len(one) for one in weights)
    if dispatch.native(first.device, first.dtype) is None:
        return _keep(weights, num_outputs, gated=False)
    packed = _panels(first, num_outputs, gated=False)
    row = 0
    for one in weights:
        _fill(packed, one, row, 0)
        row += len(one)
    return packed


def pack_gate_up(gate: Float[Tensor, "F K"], up: Float[Tensor, "F K"]) -> PackedLinear:
    """Pack the two matrices of a SwiGLU with their panels in turns, so that a task has both halves of an output."""
    _check_weights([gate, up])
    require(gate.shape == up.shape, f"gate is {list(gate.shape)} and up {list(up.shape)}", "they must have one shape")
    if dispatch.native(gate.device, gate.dtype) is None:
        return _keep([gate, up], len(gate), gated=True)
    packed = _panels(gate, len(gate), gated=True)
    _fill(packed, gate, 0, 0)
    _fill(packed, up, 0, 1)
    return packed


def _check_weights(weights: list[Tensor]) -> None:
    require(bool(weights), "no weight to pack", "give at least one matrix")
    first = weights[0]
    for one in weights:
        require(one.dim() == 2 and one.numel() > 0, f"a weight of shape {list(one.shape)} is no matrix", "give [N, K]")
        same = one.shape[1] == first.shape[1] and one.dtype == first.dtype and one.device == first.device
        require(
            same,
            f"weights of {first.dtype} [*, {first.shape[1]}] on {first.device} and {one.dtype} [*, {one.shape[1]}] on {one.device} "
            "cannot be one matrix",
            "pack them apart",
        )


def _keep(weights: list[Tensor], num_outputs: int, *, gated: bool) -> PackedLinear:
    """The layout of the reference."""
    first = weights[0]
    data = tiles.align((first if len(weights) == 1 else torch.cat(weights)).detach(), 2)
    return PackedLinear(data=data, num_outputs=num_outputs, num_inputs=first.shape[1], dtype=first.dtype, layout=ROWS, gated=gated)


def _panels(first: Tensor, num_outputs: int, *, gated: bool) -> PackedLinear:
    """Zeroed panels; the output matrix of a layer may be gigabytes, so they ask for huge pages."""
    k, panels = first.shape[1], -(-num_outputs // library.PANEL) * (2 if gated else 1)
    per_output = k if first.dtype == torch.float32 else 2 * -(-k // 2)
    data = memory.zeros((panels, per_output * library.PANEL), first.dtype)
    return PackedLinear(data=data, num_outputs=num_outputs, num_inputs=k, dtype=first.dtype, layout=PANELS, gated=gated)


def _fill(packed: PackedLinear, weight: Tensor, row: int, part: int) -> None:
    weight = weight.detach()
    weight = weight if weight.stride(1) == 1 or weight.shape[1] == 1 else weight.contiguous()
    code, k, parts = library.code(packed.dtype), packed.num_inputs, packed.num_parts
    arguments = (weight.data_ptr(), row_stride(weight), len(weight), k, code, packed.data.data_ptr(), row, parts, part)
    library.raise_for(_library(packed).pack(*arguments))


def linear(
    x: Float[Tensor, "*batch K"],
    packed: PackedLinear,
    out: Float[Tensor, "*batch N"] | None = None,
    *,
    residual: Float[Tensor, "*batch N"] | None = None,
) -> Float[Tensor, "*batch N"]:
    """The product x w^T, plus the residual if one is given.

    `out` may be the residual itself. Where `out` is float32 and the model is not, it gets the rounded values widened: herd.model's logits.
    Raises ConfigError where a shape, dtype or stride does not fit.
    """
    if packed.gated:
        raise refuse("these weights are a gated pair", "call linear_swiglu")
    return _run(x, packed, out, residual, library.STORE if residual is None else library.ADD)


def linear_swiglu(
    x: Float[Tensor, "*batch K"], packed: PackedLinear, out: Float[Tensor, "*batch F"] | None = None
) -> Float[Tensor, "*batch F"]:
    """silu(x gate^T) * (x up^T), over weights of `pack_gate_up`, without the two products in memory."""
    require(packed.gated, "these weights are one matrix", "pack gate and up with pack_gate_up")
    return _run(x, packed, out, None, library.SWIGLU)


def _run(x: Tensor, packed: PackedLinear, out: Tensor | None, residual: Tensor | None, epilogue: int) -> Tensor:
    x_MK = flat("x", x)
    m, n, k = x_MK.shape[0], packed.num_outputs, packed.num_inputs
    check_rows("x", x_MK, (m, k), packed.dtype, packed.data.device)
    if out is None:
        out = torch.empty((*x.shape[:-1], n), dtype=x.dtype, device=x.device)
    out_MN = flat("out", out)
    check_rows("out", out_MN, (m, n), torch.float32 if out.dtype == torch.float32 else x.dtype, x.device)
    check_apart("out", out_MN)
    if m and out.data_ptr() == x.data_ptr():
        raise refuse("out is x itself", "every output needs all of x: give another tensor")
    residual_MN = None if residual is None else flat("residual", residual)
    if residual_MN is not None:
        check_rows("residual", residual_MN, (m, n), x.dtype, x.device)
    if packed.layout == ROWS or (packed.quant is None and dispatch.choice().library is None):
        out_MN.copy_(reference(x_MK, packed, residual_MN))
        return out
    code, null = library.code(packed.dtype), (None, 0)
    matrix = packed.matrix()
    weights = packed.data.data_ptr() if packed.quant is None else ctypes.byref(matrix)
    arguments = (x_MK.data_ptr(), row_stride(x_MK), m, weights, n, k, code, epilogue)
    added = null if residual_MN is None else (residual_MN.data_ptr(), row_stride(residual_MN))
    run = _library(packed).linear if packed.quant is None else _library(packed).linear_quantised
    library.raise_for(run(*arguments, *added, out_MN.data_ptr(), row_stride(out_MN), library.code(out_MN.dtype)))
    return out


def reference(x_MK: Tensor, packed: PackedLinear, residual_MN: Tensor | None = None) -> Tensor:
    """The oracle: torch's own product, 16 rows at a time, and the epilogue in the model's steps."""
    weight = packed.data if packed.layout == ROWS else tiles.align(packed.weight(), 2)
    x_MK = F.pad(x_MK, (0, weight.shape[1] - x_MK.shape[1]))
    product = tiles.by_rows(lambda tile: F.linear(tile, weight), x_MK)[:, : packed.num_rows]
    if packed.gated:
        gate, up = product.split(packed.num_outputs, dim=1)
        return tiles.by_elements(F.silu, gate) * up
    return product if residual_MN is None else residual_MN + product
