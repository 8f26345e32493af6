"""swiglu: silu(gate) * up, each step rounded to the dtype, as the model does it. `linear.linear_swiglu` fuses it with both products."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from herd.kernels import dispatch, library, tiles
from herd.kernels.checks import check_apart, check_rows, flat, row_stride


def swiglu(
    gate: Float[Tensor, "*batch F"], up: Float[Tensor, "*batch F"], out: Float[Tensor, "*batch F"] | None = None
) -> Float[Tensor, "*batch F"]:
    """silu(gate) * up. `out` may be either of them. Raises ConfigError where a shape, dtype or stride does not fit."""
    gate_MF, up_MF = flat("gate", gate), flat("up", up)
    m, f = gate_MF.shape
    if out is None:
        out = torch.empty(gate.shape, dtype=gate.dtype, device=gate.device)
    out_MF = flat("out", out)
    for name, rows in (("gate", gate_MF), ("up", up_MF), ("out", out_MF)):
        check_rows(name, rows, (m, f), gate.dtype, gate.device)
    check_apart("out", out_MF)
    found = dispatch.native(gate.device, gate.dtype)
    if found is None:
        out_MF.copy_(reference(gate_MF, up_MF))
        return out
    inputs = (gate_MF.data_ptr(), row_stride(gate_MF), up_MF.data_ptr(), row_stride(up_MF))
    library.raise_for(found.swiglu(*inputs, m, f, library.code(gate.dtype), out_MF.data_ptr(), row_stride(out_MF)))
    return out


def reference(gate: Tensor, up: Tensor) -> Tensor:
    """The oracle."""
    return tiles.by_elements(F.silu, gate) * up
