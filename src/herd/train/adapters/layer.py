"""A linear layer with an adapter; the frozen matrix is a plain tensor, or 4-bit codes that are unpacked for each use and not kept.

Plain: y = x W^T + scale * dropout(x) A^T B^T. DoRA: y = (m / |W + scale B A|) * (x W^T + scale * dropout(x) A^T B^T), with the row norms
taken as constants in the gradient (arXiv 2402.09353, section 4.3); under dropout the frozen part of the correction sees the dropped x too,
as in PEFT.
Parameter names are PEFT's: `lora_A.weight` [r, K], `lora_B.weight` [N, r], `lora_magnitude_vector` [N].
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from herd.base.errors import UsageError
from herd.kernels import plain
from herd.model.linear import Linear
from herd.train.adapters.config import LoraConfig
from herd.train.adapters.nf4 import EIGHT_BIT, Nf4, dequantise, quantise

_BITS = {"codes": torch.uint8, "scales": torch.uint8, "factors": torch.int32, "mean": torch.int32}
_VALUES = {"codes": torch.uint8, "scales": EIGHT_BIT, "factors": torch.float32, "mean": torch.float32}
"""The parts of a 4-bit matrix are kept as integers, which `model.to(dtype)` leaves alone."""


class _Nf4Linear(torch.autograd.Function):
    """x W^T with W unpacked from 4 bits, in the forward pass and again in the backward pass. No gradient of W."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, codes: Tensor, scales: Tensor, factors: Tensor, mean: Tensor, shape: tuple[int, ...]) -> Tensor:
        ctx.save_for_backward(codes, scales, factors, mean)
        ctx.shape = shape
        return F.linear(x, dequantise(Nf4(codes=codes, scales=scales, factors=factors, mean=mean, shape=shape), x.dtype))

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None, None, None, None]:
        codes, scales, factors, mean = ctx.saved_tensors
        stored = Nf4(codes=codes, scales=scales, factors=factors, mean=mean, shape=ctx.shape)
        return grad_outputs[0] @ dequantise(stored, grad_outputs[0].dtype), None, None, None, None, None


class AdaptedLinear(nn.Module):
    """A frozen linear layer and its adapter. `merge` adds the adapter to the matrix, `unmerge` puts back the very bits from before."""

    def __init__(self, base: Linear, config: LoraConfig) -> None:
        super().__init__()
        self.config = config
        self.shape: tuple[int, int] = (base.out_features, base.in_features)
        device = base.weight.device
        if config.nf4:
            stored = quantise(base.weight)
            self.weight = None
            for name, kind in _BITS.items():
                self.register_buffer(name, getattr(stored, name).view(kind), persistent=False)
        else:
            self.weight = nn.Parameter(base.weight.detach(), requires_grad=False)
        with torch.device(device):
            self.lora_A = nn.Linear(self.shape[1], config.rank, bias=False)
            self.lora_B = nn.Linear(config.rank, self.shape[0], bias=False)
        self.lora_magnitude_vector = nn.Parameter(_row_norms(self.base_weight()).detach()) if config.dora else None
        self.enabled = True
        self._before: Tensor | None = None

    @property
    def is_merged(self) -> bool:
        """Whether the matrix holds the adapter's part already."""
        return self._before is not None

    def _stored(self) -> Nf4:
        parts: dict[str, Any] = {name: getattr(self, name).view(kind) for name, kind in _VALUES.items()}
        return Nf4(**parts, shape=self.shape)

    def base_weight(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The frozen matrix [N, K], unpacked if it is in 4 bits."""
        return dequantise(self._stored(), dtype) if self.weight is None else self.weight.to(dtype)

    def _product(self) -> Tensor:
        return self.config.scale * (self.lora_B.weight.float() @ self.lora_A.weight.float())

    def adapted_weight(self) -> Tensor:
        """The matrix that gives the same output alone; float32."""
        whole = self.base_weight() + self._product()
        if self.lora_magnitude_vector is None:
            return whole
        return (self.lora_magnitude_vector.float() / _row_norms(whole))[:, None] * whole

    def _frozen(self, x: Tensor) -> Tensor:
        if self.weight is not None:
            return plain.linear(x, self.weight)
        if torch.is_autocast_enabled(x.device.type):  # a function of our own is not cast by itself
            x = x.to(torch.get_autocast_dtype(x.device.type))
        stored = self._stored()
        parts = (stored.codes, stored.scales, stored.factors, stored.mean)
        return _Nf4Linear.apply(x, *parts, stored.shape)  # pyright: ignore[reportReturnType]
        ignore[reportReturnType]

    def forward(self, input: Tensor) -> Tensor:
        """The layer's output; the frozen layer's alone where the adapter is off or merged."""
        out = self._frozen(input)
        if not self.enabled or self.is_merged:
            return out
        dropped = F.dropout(input, self.config.dropout, training=self.training)
        added = self.config.scale * self.lora_B(self.lora_A(dropped.to(self.lora_A.weight.dtype)))
        if self.lora_magnitude_vector is None:
            return out + added.to(out.dtype)
        with torch.no_grad():
            norms = _row_norms(self.base_weight() + self._product())
        gain = (self.lora_magnitude_vector / norms).to(out.dtype)
        corrected = out if dropped is input else self._frozen(dropped)
        return out + (gain - 1) * corrected + gain * added.to(out.dtype)

    @torch.no_grad()
    def merge(self) -> None:
        """Add the adapter to the matrix, whose old bits are kept for `unmerge`. Raises UsageError for a 4-bit matrix."""
        if self.weight is None:
            raise UsageError("an adapter cannot be merged into 4-bit codes", hint="merge it into the model in its own precision")
        if not self.is_merged:
            self._before = self.weight.detach().clone()
            self.weight.copy_(self.adapted_weight())

    @torch.no_grad()
    def unmerge(self) -> None:
        """Put the frozen matrix back as it was."""
        if self._before is not None and self.weight is not None:
            self.weight.copy_(self._before)
            self._before = None


def _row_norms(weight: Tensor) -> Tensor:
    return torch.linalg.vector_norm(weight, dim=1)
