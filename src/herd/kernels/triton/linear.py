"""Products with a weight matrix for GPUs: y = x w^T for weights of 32, 16, 8 and 4 bits, over inputs as they are or quantised row by row.

    weights                                   inputs             products
    float32, bfloat16, float16 [N, K]         as they are        exact, summed in float32
    int8, fp8 [N, K]; int4 [N, K/2]           as they are        of x and whole codes; a group's sum times its scale
    int8, int4                                int8, a scale each integers, exact; a group's sum times its scale, the row's scale last
    fp8, one scale a row                      fp8, a scale each  summed in float32, times both scales

The layouts are `kernels.quantised`'s. Codes less their zero points are exact in 16 bits, so a scale meets sums, never weights. int4 codes
lie two to a byte, read a byte at a time and laid out as inputs are. Tiles and parts follow from [N, K] alone (`tiles`), and parts are
added in ascending order, so a row's result is the same in any batch. `scaled_mm` is torch's product for many fp8 rows: faster there by what
is published, without that promise, so it runs only where it is asked for. Shapes: M rows, K inputs, N outputs.
"""

# pyright: reportUnknownParameterType=false, reportMissingParameterType=false, reportUnknownMemberType=false

from __future__ import annotations

from dataclasses import dataclass
from typing import no_type_check

import torch
import triton
import triton.language as tl
from torch import Tensor

from herd.kernels import torch_compat
from herd.kernels.checks import require as demand
from herd.kernels.quantised import FP8_DTYPE, QuantWeight
from herd.kernels.triton.norm import quantise_rows
from herd.kernels.triton.numbers import INTERPRETED, fp8_numbers, narrow, tile_product
from herd.kernels.triton.runtime import options, require
from herd.kernels.triton.tiles import ROWS, Tile, tile_of

DENSE, INT8, INT4, FP8 = 0, 1, 2, 3
AS_IS, BYTES, FP8_INPUTS = 0, 1, 2
_KINDS = {"int8": INT8, "int4": INT4, "fp8": FP8}
_INPUTS = {"none": AS_IS, "int8": BYTES, "fp8": FP8_INPUTS}


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class GpuMatrix:
    """A matrix as the kernels read it, on its device. `columns` is the order that inputs are to be gathered in."""

    values: Tensor
    num_outputs: int
    num_inputs: int
    kind: int
    inputs: int = AS_IS
    group: int | None = None
    scales: Tensor | None = None
    zeros: Tensor | None = None
    columns: Tensor | None = None
    bound: float | None = None

    @property
    def tile(self) -> Tile:
        """Its tile."""
        bits = {DENSE: self.values.element_size() * 8, INT4: 4}.get(self.kind, 8)
        return tile_of(self.num_outputs, self.num_inputs, bits=bits, group=self.group)

    @property
    def size_bytes(self) -> int:
        """Bytes of all parts."""
        return sum(part.nbytes for part in (self.values, self.scales, self.zeros, self.columns) if part is not None)


def dense(weight_NK: Tensor) -> GpuMatrix:
    """A matrix of the model's dtype."""
    n, k = weight_NK.shape
    return GpuMatrix(values=weight_NK.contiguous(), num_outputs=n, num_inputs=k, kind=DENSE)


def takes(weight: QuantWeight) -> bool:
    """Whether there is a kernel: groups are 16 at least and a power of two up to 128 or a multiple of it."""
    group = weight.group
    whole = weight.scales.shape[1] == 1
    good = whole or (group >= 128 and group % 128 == 0) or group in (32, 64)
    return good and (weight.activation != "fp8" or whole) and (weight.kind != "int4" or weight.num_inputs % 2 == 0)


def alike(weights: list[QuantWeight]) -> bool:
    """Whether matrices can be stacked: they differ in their rows alone."""
    first = weights[0]
    return all(_manner(one) == _manner(first) and _same_columns(one, first) for one in weights)


def quantised(weights: list[QuantWeight]) -> GpuMatrix:
    """Matrices over the same inputs, stacked. Raises ConfigError for what no kernel takes, or where they differ in more than their rows."""
    first = weights[0]
    kinds = ", ".join(f"{one.kind} in groups of {one.group} over {one.activation} inputs" for one in weights)
    demand(alike(weights) and takes(first), f"no Triton kernel takes these matrices as one: {kinds}", "see herd.kernels.triton.linear")
    zeros = None
    if any(one.zeros is not None for one in weights):
        zeros = torch.cat([torch.full_like(one.scales, 8, dtype=torch.uint8) if one.zeros is None else one.zeros for one in weights])
    return GpuMatrix(
        values=torch.cat([one.values.view(torch.uint8) if one.kind == "fp8" else one.values for one in weights]),
        num_outputs=sum(one.num_outputs for one in weights),
        num_inputs=first.num_inputs,
        kind=_KINDS[first.kind],
        inputs=_INPUTS[first.activation],
        group=None if first.scales.shape[1] == 1 else first.group,
        scales=torch.cat([one.scales for one in weights]).contiguous(),
        zeros=zeros,
        columns=None if first.columns is None else first.columns.long(),
        bound=first.bound,
    )


def _manner(weight: QuantWeight) -> tuple[object, ...]:
    return weight.kind, weight.activation, weight.bound, weight.group, weight.num_inputs


def _same_columns(one: QuantWeight, other: QuantWeight) -> bool:
    if one.columns is None or other.columns is None:
        return one.columns is other.columns
    return torch.equal(one.columns, other.columns)


@triton.jit
@no_type_check
def _as_fp8(bytes_at):
    """A pointer to fp8 numbers: they go to the tensor instructions as they lie in memory, without a stop in registers."""
    return bytes_at.to(tl.pointer_type(tl.float8e4nv), bitcast=True)


@triton.jit
@no_type_check
def _inputs(x, rows, k, sx, M, end, INPUTS: tl.constexpr):
    at = x + rows[:, None] * sx + k[None, :]
    there = (rows[:, None] < M) & (k[None, :] < end)
    if INPUTS == 2 and INTERPRETED:
        return fp8_numbers(tl.load(at, mask=there, other=0))
    elif INPUTS == 2:
        return tl.load(_as_fp8(at), mask=there, other=0.0)
    else:
        return tl.load(at, mask=there, other=0)


@triton.jit
@no_type_check
def _met(a, codes, total, INPUTS: tl.constexpr):
    """Total + a @ codes^T; whole numbers for int8 inputs. Codes come as int32 or as the kind that a has."""
    if INPUTS == 1:
        return total + tl.dot(a, tl.trans(codes.to(tl.int8)), out_dtype=tl.int32)
    elif INPUTS == 2 or codes.dtype == a.dtype:
        return total + tile_product(a, tl.trans(codes))
    else:
        return total + tile_product(a, tl.trans(codes.to(tl.float32).to(a.dtype)))


@triton.jit
@no_type_check
def _four_bits(codes, zero, KIND: tl.constexpr, INPUTS: tl.constexpr):
    """Codes of 4 bits less their zero points. In bfloat16 by bits, 128 + code: a GPU turns whole numbers into others far more slowly."""
    if INPUTS == 0 and tl.bfloat16 == KIND and not INTERPRETED:
        return (codes.to(tl.uint16) | 0x4300).to(tl.bfloat16, bitcast=True) - (zero + 128).to(tl.float32).to(tl.bfloat16)
    else:
        return codes.to(tl.int32) - zero


@triton.jit
@no_type_check
def _pairs(
    x, w, zeros, rows, n, at, sx, M, N, K, end, some,
    INPUTS: tl.constexpr, GROUP: tl.constexpr, GROUPS: tl.constexpr, ZEROS: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """`some` and a step of int4 codes. What lies behind the last input meets inputs of 0, whatever code stands there."""
    j = tl.multiple_of(at // 2, BK // 2) + tl.arange(0, BK // 2)
    pairs = tl.load(w + n[:, None] * (K // 2) + j[None, :], mask=(n[:, None] < N) & (j[None, :] < end // 2), other=0)
    if ZEROS:
        zero = tl.load(zeros + n * GROUPS + at // GROUP, mask=n < N, other=0).to(tl.int32)[:, None]
    else:
        zero = tl.full((1, 1), 8, tl.int32)
    codes = tl.reshape(tl.join(pairs & 15, pairs >> 4), (BN, BK))
    a = _inputs(x, rows, at + tl.arange(0, BK), sx, M, end, INPUTS)
    return _met(a, _four_bits(codes, zero, a.dtype, INPUTS), some, INPUTS)


@triton.jit
@no_type_check
def _codes(x, w, rows, n, at, sx, M, N, K, end, some, KIND: tl.constexpr, INPUTS: tl.constexpr, BK: tl.constexpr):
    """`some` and a step of numbers, int8 codes or fp8 bytes."""
    k = at + tl.arange(0, BK)
    place = w + n[:, None] * K + k[None, :]
    there = (n[:, None] < N) & (k[None, :] < end)
    a = _inputs(x, rows, k, sx, M, end, INPUTS)
    if KIND == 3 and INPUTS == 2 and not INTERPRETED:
        found = _met(a, tl.load(_as_fp8(place), mask=there, other=0.0), some, INPUTS)
    elif KIND == 3:
        found = _met(a, fp8_numbers(tl.load(place, mask=there, other=0)), some, INPUTS)
    elif KIND == 0:
        found = some + tile_product(a, tl.trans(tl.load(place, mask=there, other=0)))
    else:
        found = _met(a, tl.load(place, mask=there, other=0), some, INPUTS)
    return found


@triton.jit
@no_type_check
def _product(
    x, row_scales, w, scales, zeros, out, M, N, K, sx, so, part,
    KIND: tl.constexpr, INPUTS: tl.constexpr, GROUP: tl.constexpr, GROUPS: tl.constexpr, ZEROS: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, SPLIT: tl.constexpr, SUM: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0).to(tl.int64) * BM + tl.arange(0, BM)
    n = tl.program_id(1).to(tl.int64) * BN + tl.arange(0, BN)
    number = tl.program_id(2)
    begin, end = number * part, tl.minimum(K, (number + 1) * part)
    total = tl.zeros((BM, BN), dtype=tl.float32)
    some = tl.zeros((BM, BN), dtype=SUM)
    for at in range(begin, end, BK):
        if GROUPS > 1:
            some = tl.zeros((BM, BN), dtype=SUM)
        if KIND == 2:
            some = _pairs(x, w, zeros, rows, n, at, sx, M, N, K, end, some, INPUTS, GROUP, GROUPS, ZEROS, BN, BK)
        else:
            some = _codes(x, w, rows, n, at, sx, M, N, K, end, some, KIND, INPUTS, BK)
        if GROUPS > 1:
            factor = tl.load(scales + n * GROUPS + at // GROUP, mask=n < N, other=0.0)
            total += some.to(tl.float32) * factor[None, :]
    if GROUPS == 1:
        total = some.to(tl.float32)
    inside = (rows[:, None] < M) & (n[None, :] < N)
    if SPLIT:
        tl.store(out + (number.to(tl.int64) * M + rows[:, None]) * N + n[None, :], total, mask=inside)
    else:
        if INPUTS == 2:
            total *= tl.load(row_scales + rows, mask=rows < M, other=0.0)[:, None]
        if GROUPS == 1 and KIND != 0:
            total *= tl.load(scales + n, mask=n < N, other=0.0)[None, :]
        if INPUTS == 1:
            total *= tl.load(row_scales + rows, mask=rows < M, other=0.0)[:, None]
        tl.store(out + rows[:, None] * so + n[None, :], narrow(total, out.dtype.element_ty), mask=inside)


@triton.jit
@no_type_check
def _gather(parts, row_scales, scales, out, M, N, so, NUM: tl.constexpr, INPUTS: tl.constexpr, SCALED: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    n = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), dtype=tl.float32)
    for number in range(NUM):
        total += tl.load(parts + (row + M * number) * N + n, mask=n < N, other=0.0)
    if INPUTS == 2:
        total *= tl.load(row_scales + row)
    if SCALED:
        total *= tl.load(scales + n, mask=n < N, other=0.0)
    if INPUTS == 1:
        total *= tl.load(row_scales + row)
    tl.store(out + row * so + n, narrow(total, out.dtype.element_ty), mask=n < N)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Scratch:
    """Working space of products, allocated once: float32 parts, bytes and scales of quantised inputs, inputs in another order."""

    parts: Tensor
    codes: Tensor
    scales: Tensor
    gathered: Tensor

    @classmethod
    def of(cls, matrices: list[GpuMatrix], *, rows: int, dtype: torch.dtype, device: torch.device) -> Scratch:
        """Enough for each of the matrices with so many rows."""
        parts = max((one.num_outputs * one.tile.splits * rows for one in matrices if one.tile.splits > 1), default=0)
        codes = max((one.num_inputs * rows for one in matrices if one.inputs != AS_IS), default=0)
        gathered = max((one.num_inputs * rows for one in matrices if one.columns is not None), default=0)
        return cls(
            parts=torch.empty(parts, dtype=torch.float32, device=device),
            codes=torch.empty(codes, dtype=torch.int8, device=device),
            scales=torch.empty(rows if codes else 0, dtype=torch.float32, device=device),
            gathered=torch.empty(gathered, dtype=dtype, device=device),
        )

    @property
    def size_bytes(self) -> int:
        """Bytes of it all."""
        return sum(one.nbytes for one in (self.parts, self.codes, self.scales, self.gathered))

    def codes_of(self, rows: int, matrix: GpuMatrix) -> tuple[Tensor, Tensor]:
        """Room for the codes [M, K] and scales [M] of a matrix's inputs."""
        codes = self.codes[: rows * matrix.num_inputs].view(rows, matrix.num_inputs)
        return codes.view(FP8_DTYPE) if matrix.inputs == FP8_INPUTS else codes, self.scales[:rows]


def product(x_MK: Tensor, matrix: GpuMatrix, *, out: Tensor, scratch: Scratch, row_scales: Tensor | None = None) -> Tensor:
    """The product with inputs that are what the matrix wants already: rows of the model's dtype, or codes with their `row_scales`."""
    require(out.device)
    m, n, k, tile = len(x_MK), matrix.num_outputs, matrix.num_inputs, matrix.tile
    if not m:
        return out
    split = tile.splits > 1
    target = scratch.parts[: tile.splits * m * n] if split else out
    raw = x_MK.view(torch.uint8) if x_MK.dtype == FP8_DTYPE else x_MK
    scales = out if matrix.scales is None else matrix.scales
    sums = out if row_scales is None else row_scales
    groups = 1 if matrix.group is None else k // matrix.group
    grid = (triton.cdiv(m, ROWS), triton.cdiv(n, tile.outputs), tile.splits)
    _product[grid](
        raw, sums, matrix.values, scales, out if matrix.zeros is None else matrix.zeros, target,
        m, n, k, raw.stride(0), out.stride(0), tile.part,
        KIND=matrix.kind, INPUTS=matrix.inputs, GROUP=matrix.group or k, GROUPS=groups, ZEROS=matrix.zeros is not None,
        BM=ROWS, BN=tile.outputs, BK=tile.inputs, SPLIT=split, SUM=tl.int32 if matrix.inputs == BYTES else tl.float32,
        **options(4, 3),
    )  # fmt: skip
    if split:
        _gather[(m, triton.cdiv(n, 512))](
            target, sums, scales, out, m, n, out.stride(0),
            NUM=tile.splits, INPUTS=matrix.inputs, SCALED=groups == 1 and matrix.kind != DENSE, BLOCK=512, **options(4),
        )  # fmt: skip
    return out


def linear(x_MK: Tensor, matrix: GpuMatrix, *, out: Tensor, scratch: Scratch, exact: bool = True) -> Tensor:
    """X w^T for rows of the model's dtype; gathers and quantises them first where the matrix wants that.

    Without `exact`, many fp8 rows go to `scaled_mm`: other bits than few rows get, and faster.
    """
    rows = x_MK
    if matrix.columns is not None:
        room = scratch.gathered[: x_MK.numel()].view(x_MK.shape)
        rows = torch.index_select(x_MK, 1, matrix.columns, out=room)
    if matrix.inputs == AS_IS:
        return product(rows, matrix, out=out, scratch=scratch)
    codes, scales = scratch.codes_of(len(rows), matrix)
    quantise_rows(rows, mode="int8" if matrix.inputs == BYTES else "fp8", codes=codes, scales=scales, bound=matrix.bound)
    return met_codes(codes, scales, matrix, out=out, scratch=scratch, exact=exact)


def met_codes(codes: Tensor, row_scales: Tensor, matrix: GpuMatrix, *, out: Tensor, scratch: Scratch, exact: bool = True) -> Tensor:
    """The product of rows that are quantised already."""
    if matrix.inputs == FP8_INPUTS and not exact and len(codes) > ROWS:
        return scaled_mm(codes, row_scales, matrix, out=out)
    return product(codes, matrix, out=out, scratch=scratch, row_scales=row_scales)


def scaled_mm(codes_MK: Tensor, row_scales: Tensor, matrix: GpuMatrix, *, out: Tensor) -> Tensor:
    """Torch's own rowwise product of fp8 rows, for many of them; bfloat16 out. Its order of summation may depend on how many there are."""
    assert matrix.scales is not None and matrix.kind == FP8
    weight = matrix.values.view(FP8_DTYPE)
    return out.copy_(torch_compat.scaled_mm(codes_MK, weight.t(), row_scales[:, None], matrix.scales.t(), out.dtype))
