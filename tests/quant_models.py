"""Random quantised matrices, of every kind of integers that C has a kernel for and of e4m3, and models made of them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from herd.kernels.quantised import QuantWeight, fp8_rows, pack_int4
from herd.model.quant_linear import QuantLinear
from herd.model.transformer import Transformer


@dataclass(frozen=True, kw_only=True)
class Kind:
    """What a matrix is like; `group` 0 is one scale a row. `scales`: the dtype that holds them exactly. `floats`: e4m3 in 8 bits."""

    bits: int
    group: int = 0
    floats: bool = False
    bound: float | None = None
    activation: str = "none"
    zeros: bool = False
    columns: bool = False
    scales: torch.dtype = torch.float16


QUANT_KINDS = [
    Kind(bits=8),
    Kind(bits=8, activation="int8"),
    Kind(bits=8, group=32),
    Kind(bits=8, group=16, activation="int8", scales=torch.bfloat16),
    Kind(bits=4, group=32),
    Kind(bits=4, group=16, zeros=True),
    Kind(bits=4, group=16, activation="int8", zeros=True, scales=torch.bfloat16),
    Kind(bits=4, activation="int8"),
    Kind(bits=4, scales=torch.float32, columns=True),
    Kind(bits=4, group=16, scales=torch.float32, columns=True),
]


def named(kind: Kind) -> str:
    """For the names of tests."""
    extra = "".join(f"-{name}" for name in ("zeros", "columns") if getattr(kind, name))
    return f"{'fp' if kind.floats else 'int'}{kind.bits}-g{kind.group}-{kind.activation}{extra}"


def quant_weight(weight: Tensor, kind: Kind, *, seed: int = 0) -> QuantWeight:
    """A matrix rounded to the nearest, its zero points somewhere."""
    n, k = weight.shape
    if kind.floats:
        codes, scales = fp8_rows(weight.reshape(-1, kind.group or k))
        told = {"activation": kind.activation, "bound": kind.bound}
        return QuantWeight(kind="fp8", values=codes.view(n, k), scales=scales.view(n, -1), **told)  # pyright: ignore[reportArgumentType]
    group, generator = kind.group or k, torch.Generator().manual_seed(seed)
    columns = torch.randperm(k, generator=generator) if kind.columns else None
    stored = weight.float() if columns is None else weight.float()[:, columns]
    grouped = stored.view(n, k // group, group)
    most = 127 if kind.bits == 8 else 7
    scales = (grouped.abs().amax(dim=2) / most).clamp(min=1e-6).to(kind.scales).float()
    numbers = (grouped / scales[:, :, None]).round()
    zeros = torch.randint(5, 11, scales.shape, dtype=torch.uint8, generator=generator) if kind.zeros else None
    if kind.bits == 8:
        values = numbers.clamp(-128, 127).view(n, k).to(torch.int8)
    else:
        offset = 8.0 if zeros is None else zeros.float()[:, :, None]
        values = pack_int4((numbers + offset).clamp(0, 15).view(n, k).to(torch.uint8))
    parts = {"zeros": zeros, "columns": None if columns is None else columns.int(), "activation": kind.activation}
    return QuantWeight(kind=f"int{kind.bits}", values=values, scales=scales, **parts)  # pyright: ignore[reportArgumentType]


def quantise_model(model: Transformer, kind: Kind, *, head: bool = False) -> Transformer:
    """Every matrix of the blocks, and the output matrix if `head`, in place of what they were."""
    for block in model.model.layers:
        for part, names in (
            (block.self_attn, ("q_proj", "k_proj", "v_proj", "o_proj")),
            (block.mlp, ("gate_proj", "up_proj", "down_proj")),
        ):
            for name in names:
                setattr(part, name, QuantLinear(quant_weight(getattr(part, name).weight.detach(), kind), model.dtype))
    if head:
        assert model.lm_head is not None
        model.lm_head = QuantLinear(quant_weight(model.lm_head.weight.detach(), kind), model.dtype)
    return model
