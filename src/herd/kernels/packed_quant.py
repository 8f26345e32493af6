"""Quantised matrices as their C kernels read them: what of `QuantWeight` C knows, how it is packed, and the torch oracle of the product.

    packed = pack_quantised([q, k, v], torch.bfloat16)     stacked; a `PackedLinear`, for `linear` and `linear_swiglu` as any other
    packed = pack_quantised_gated(gate, up, torch.bfloat16)

Inputs of int8 and int4 become int8 either way, since integer sums are what makes a product of few bits fast:
    activation int8    one scale a row of inputs: `quantised.matmul` up to rounding
    activation none    one scale for each `input_group` of at most 128 inputs, no wider than the weights' groups; an input then differs by
                       at most 1/254 of the largest of its group
A scale is max|x| / 127, bytes are round half to even(x / scale). Within a segment, where all scales are one, sums are exact integers;
segments are added in ascending order (csrc/qlinear.c), so that rows depend on nothing beside them.

Weights of fp8 stay e4m3 in memory and become bfloat16 in registers (csrc/fp8.c), which holds each code exactly. Inputs, by the scheme:
    activation fp8     FBGEMM's definition, e4m3 with a scale a row, capped at the scheme's bound: bit for bit the inputs of
                       `quantised.matmul`, which `QuantLinear` and the GPU's kernels compute too; sums differ by their order alone
    activation none    they stay what they are (FBGEMM has no such product); the matrix's scale multiplies sums, in `matmul` each weight
Shapes: M rows, K inputs, N outputs.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from herd.kernels import dispatch, library, memory
from herd.kernels.checks import require
from herd.kernels.linear import PackedLinear
from herd.kernels.quantised import QuantWeight, int8_rows, matmul
from herd.kernels.stored import QUANTISED, QuantFormat

MOST_INPUTS = 1024
"""Inputs of a segment at most, but where there is one segment (LDQ of csrc/qshape.h)."""
_INPUT_GROUP = 128
MOST_FP8_GROUP = 256
"""Inputs of a group of fp8 at most, but where a row is one (LDA of csrc/gemm.h)."""
_KINDS = ("int8", "int4", "fp8")


def format_of(weight: QuantWeight) -> QuantFormat | None:
    """How C would store a matrix, or None where it has no kernel for it."""
    group = 0 if weight.scales.shape[1] == 1 else weight.group
    if weight.kind not in _KINDS or weight.num_inputs % 2 or group % 8:
        return None
    scales = _narrowest(weight.scales) if group else "float32"
    if weight.kind == "fp8":
        codes = library.E4M3_INPUTS if weight.activation == "fp8" else library.E4M3
        found = QuantFormat(bits=8, group=group, input_group=0, scale_dtype=scales, zeros=False, codes=codes, bound=weight.bound or 0.0)
        return found if group <= MOST_FP8_GROUP else None
    input_group = 0
    if weight.activation == "none":
        width = group or _INPUT_GROUP
        input_group = next((size for size in range(min(width, _INPUT_GROUP), 15, -8) if not width % size), 0)
        if not input_group:
            return None
    elif group > MOST_INPUTS:
        return None
    return QuantFormat(
        bits=4 if weight.kind == "int4" else 8, group=group, input_group=input_group, scale_dtype=scales, zeros=weight.zeros is not None
    )


def _narrowest(scales: Tensor) -> str:
    """The dtype of 16 bits that holds every scale exactly, else float32."""
    if not bool(scales.isfinite().all()):
        return "float32"
    narrow = {"float16": torch.float16, "bfloat16": torch.bfloat16}
    return next((name for name, dtype in narrow.items() if torch.equal(scales.to(dtype).float(), scales)), "float32")


def common_format(weights: Sequence[QuantWeight]) -> QuantFormat | None:
    """The format of matrices that are stacked; None where one matrix cannot hold them all."""
    formats = [format_of(weight) for weight in weights]
    first, columns = formats[0], weights[0].columns
    if first is None or any(one is None or replace(one, scale_dtype=first.scale_dtype) != first for one in formats):
        return None
    if any((weight.columns is None) != (columns is None) for weight in weights):
        return None
    if columns is not None and not all(weight.columns is not None and torch.equal(weight.columns, columns) for weight in weights):
        return None
    dtypes = {one.scale_dtype for one in formats if one is not None}
    return first if len(dtypes) == 1 else replace(first, scale_dtype="float32")


def pack_quantised(weights: Sequence[QuantWeight], dtype: torch.dtype, *, data: Tensor | None = None) -> PackedLinear:
    """Pack matrices that read the same input, stacked in order. `dtype` is the model's: of inputs and outputs.

    `data` is memory of the right size, zeroed; None allocates it. Raises ConfigError where `common_format` gives none.
    """
    packed = _empty(weights, dtype, sum(weight.num_outputs for weight in weights), gated=False, data=data)
    row = 0
    for weight in weights:
        _fill(packed, weight, row, 0)
        row += weight.num_outputs
    return packed


def pack_quantised_gated(gate: QuantWeight, up: QuantWeight, dtype: torch.dtype, *, data: Tensor | None = None) -> PackedLinear:
    """Pack the two matrices of a SwiGLU, their panels in turns. Raises ConfigError as `pack_quantised`."""
    require(gate.num_outputs == up.num_outputs, f"gate has {gate.num_outputs} outputs, up {up.num_outputs}", "they must have one shape")
    packed = _empty([gate, up], dtype, gate.num_outputs, gated=True, data=data)
    _fill(packed, gate, 0, 0)
    _fill(packed, up, 0, 1)
    return packed


def _empty(weights: Sequence[QuantWeight], dtype: torch.dtype, num_outputs: int, *, gated: bool, data: Tensor | None) -> PackedLinear:
    found = common_format(weights)
    kinds = ", ".join(f"{weight.kind} in groups of {weight.group} over {weight.activation} inputs" for weight in weights)
    num_inputs = weights[0].num_inputs
    same = all(weight.num_inputs == num_inputs for weight in weights)
    require(found is not None and same, f"no C kernel takes these matrices as one: {kinds}", "see herd.kernels.packed_quant")
    assert found is not None
    matrix = found.matrix()
    size = dispatch.loaded().quantised_bytes(ctypes.byref(matrix), num_outputs, num_inputs, int(gated))
    if data is None:
        data = memory.zeros((size,), torch.uint8)
    assert data.numel() == size, "memory of another size"
    return PackedLinear(
        data=data,
        num_outputs=num_outputs,
        num_inputs=num_inputs,
        dtype=dtype,
        layout=QUANTISED,
        gated=gated,
        quant=found,
        columns=weights[0].columns,
    )


def _fill(packed: PackedLinear, weight: QuantWeight, row: int, part: int) -> None:
    matrix = packed.matrix()
    values, scales = weight.values.contiguous(), weight.scales.contiguous()
    zeros = None if weight.zeros is None else weight.zeros.contiguous()
    sources = (values.data_ptr(), scales.data_ptr(), None if zeros is None else zeros.data_ptr())
    place = (packed.data.data_ptr(), row, packed.num_parts, part)
    library.raise_for(dispatch.loaded().pack_quantised(*sources, weight.num_outputs, weight.num_inputs, ctypes.byref(matrix), *place))


def reference(x_MK: Tensor, weight: QuantWeight) -> Tensor:
    """The oracle: the product in float32, rounded to the dtype of x, with inputs made what C makes of them."""
    found = format_of(weight)
    assert found is not None, "C has no such product"
    if weight.kind == "fp8":
        return matmul(x_MK, weight)
    rows = x_MK if weight.columns is None else x_MK[:, weight.columns.long()]
    codes, width = weight.codes().double(), found.input_group or (found.group or weight.num_inputs)
    numbers, row_scales = int8_rows(rows)
    total = torch.zeros(len(rows), weight.num_outputs)
    for begin in range(0, weight.num_inputs, width):
        end = min(begin + width, weight.num_inputs)
        scales = weight.scales[:, begin // weight.group]
        if found.input_group:
            part, input_scales = int8_rows(rows[:, begin:end])
            factors = input_scales[:, None] * scales
        else:
            part, factors = numbers[:, begin:end], scales
        total += (part.double() @ codes[:, begin:end].t()).float() * factors
    return (total if found.input_group else total * row_scales[:, None]).to(x_MK.dtype)
