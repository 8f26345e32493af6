"""SwiGLU for GPUs: silu(gate) * up, each step rounded to the dtype. Shapes: M rows, F ffn dim."""

# pyright: reportUnknownParameterType=false, reportMissingParameterType=false, reportUnknownMemberType=false

from __future__ import annotations

from typing import no_type_check

import triton
import triton.language as tl
from torch import Tensor

from herd.kernels.triton.numbers import narrow, rounded
from herd.kernels.triton.runtime import options, require

_BLOCK = 1024


@triton.jit
@no_type_check
def _swiglu(gate, up, out, sg, su, so, F, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    i = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    there = i < F
    kind: tl.constexpr = gate.dtype.element_ty
    g = tl.load(gate + row * sg + i, mask=there, other=0.0).to(tl.float32)
    u = tl.load(up + row * su + i, mask=there, other=0.0).to(tl.float32)
    # Where e^-g is infinite the quotient is the zero that it tends to.
    half = rounded(tl.math.div_rn(g, 1.0 + tl.exp(-g)), kind)
    tl.store(out + row * so + i, narrow(half * u, kind), mask=there)


def swiglu(gate_MF: Tensor, up_MF: Tensor, *, out: Tensor) -> Tensor:
    """silu(gate) * up. The three may be apart between rows; `out` may be either input."""
    require(gate_MF.device)
    rows, width = gate_MF.shape
    if rows:
        strides = (gate_MF.stride(0), up_MF.stride(0), out.stride(0))
        _swiglu[(rows, triton.cdiv(width, _BLOCK))](gate_MF, up_MF, out, *strides, width, BLOCK=_BLOCK, **options(4))
    return out
