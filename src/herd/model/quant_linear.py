"""A quantised matrix in the place of a `Linear`: codes and scales as buffers, the product by `kernels.quantised`.

Has no parameters, so training leaves it as it is, though gradients pass through it where its inputs stay unquantised (adapters over a
quantised model). Which matrices of a model are quantised is the checkpoint's business. Shapes: K inputs, N outputs.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from herd.kernels import quantised
from herd.kernels.quantised import Activation, Kind, QuantWeight


class QuantLinear(nn.Module):
    """x w^T over a `QuantWeight`."""

    values: Tensor
    scales: Tensor
    zeros: Tensor | None
    columns: Tensor | None

    def __init__(self, weight: QuantWeight, dtype: torch.dtype = torch.bfloat16) -> None:
        super().__init__()
        self.in_features, self.out_features, self.dtype = weight.num_inputs, weight.num_outputs, dtype
        self._kind: Kind = weight.kind
        self._activation: Activation = weight.activation
        self._bound = weight.bound
        for name in ("values", "scales", "zeros", "columns"):
            self.register_buffer(name, getattr(weight, name), persistent=False)

    @property
    def quantised(self) -> QuantWeight:
        """The matrix, wherever the module has been moved to."""
        return QuantWeight(
            kind=self._kind,
            values=self.values,
            scales=self.scales,
            zeros=self.zeros,
            columns=self.columns,
            activation=self._activation,
            bound=self._bound,
        )

    @property
    def weight(self) -> Float[Tensor, "N K"]:
        """The matrix in the model's dtype, made anew at each call: for writers and comparisons."""
        return self.quantised.dequantise().to(self.dtype)

    def forward(self, input: Float[Tensor, "*batch K"]) -> Float[Tensor, "*batch N"]:
        return quantised.matmul(input, self.quantised)


def quantised_matrices(model: nn.Module) -> dict[str, QuantLinear]:
    """The quantised matrices of a model by the names of their modules."""
    return {name: module for name, module in model.named_modules() if isinstance(module, QuantLinear)}
