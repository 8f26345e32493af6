"""Training that sees the rounding to come: matrices rounded in the forward pass, gradients passed through as if they were not (QAT).

    y = Q(x) Q(W)^T,   dL/dW = dL/dQ(W),   dL/dx = dL/dQ(x)      (straight-through: arXiv 1308.3432)

The levels of int8 and int4 (scales and zero points) are taken once, from the weights by the search of `quant.rounding`, or from the matrix
as it was quantised by whatever method; training moves the weights between them. fp8 takes a row's scale anew each time. What is rounded is
W itself, or W + scale B A where only adapters are trained; either way the result is a plain quantised matrix (`rounded`), the one that the
forward pass computed with. Shapes: K inputs, N outputs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from herd.base.errors import UsageError
from herd.checkpoint.quant_scheme import MatrixScheme
from herd.kernels import plain
from herd.kernels.quantised import INT4_ZERO, QuantWeight, fp8_rows, int8_rows
from herd.model.linear import Linear
from herd.model.quant_linear import QuantLinear
from herd.model.transformer import Transformer
from herd.quant.rounding import Grid, grid_of, levels_of, round_matrix, round_on, written_scales
from herd.train.adapters.layer import AdaptedLinear


class FakeQuantLinear(Linear):
    """A matrix that is trained, and rounded whenever it is used."""

    scheme: MatrixScheme
    grid: Grid | None

    def forward(self, input: Tensor) -> Tensor:
        """The product with inputs and weights rounded."""
        return plain.linear(_rounded_inputs(input, self.scheme), _rounded_weight(self.weight, self.grid, self.scheme))


class FakeQuantAdapted(AdaptedLinear):
    """A frozen matrix whose adapter is trained; their sum is rounded whenever it is used."""

    scheme: MatrixScheme
    grid: Grid | None

    def forward(self, input: Tensor) -> Tensor:
        """The product with inputs and the adapted weights rounded."""
        whole = self.adapted_weight() if self.enabled else self.base_weight()
        return plain.linear(_rounded_inputs(input, self.scheme), _rounded_weight(whole, self.grid, self.scheme).to(input.dtype))


def _rounded_weight(weight_NK: Tensor, grid: Grid | None, scheme: MatrixScheme) -> Tensor:
    with torch.no_grad():
        if grid is None:
            levels = round_matrix(weight_NK, scheme).dequantise()
        else:
            levels = levels_of(weight_NK.float().reshape(*grid.scales.shape, -1), grid, scheme).view(weight_NK.shape)
        away = levels.to(weight_NK.dtype) - weight_NK
    return weight_NK + away


def _rounded_inputs(x: Tensor, scheme: MatrixScheme) -> Tensor:
    if scheme.activation == "none":
        return x
    with torch.no_grad():
        rows = x.reshape(-1, x.shape[-1])
        codes, scales = int8_rows(rows) if scheme.activation == "int8" else fp8_rows(rows, scheme.bound)
        away = (codes.float() * scales[:, None]).view(x.shape).to(x.dtype) - x
    return x + away


def own_scheme(weight: QuantWeight) -> MatrixScheme:
    """The scheme of a matrix that is quantised, as herd writes it."""
    in_words = weight.kind == "int4" or (weight.kind == "int8" and weight.activation == "none")
    return MatrixScheme(
        kind=weight.kind,
        group=None if weight.group == weight.num_inputs else weight.group,
        symmetric=weight.zeros is None,
        activation=weight.activation,
        bound=weight.bound,
        layout="packed" if in_words else "dense",
    )


def _own_grid(weight: QuantWeight, scheme: MatrixScheme) -> Grid | None:
    if weight.kind == "fp8":
        return None
    scales = written_scales(weight.scales, scheme)
    if weight.kind == "int8":
        return Grid(scales=scales, zeros=None)
    return Grid(scales=scales, zeros=torch.full_like(scales, INT4_ZERO) if weight.zeros is None else weight.zeros.float())


@torch.no_grad()
def unpack_for_training(model: Transformer) -> dict[str, tuple[MatrixScheme, Grid | None]]:
    """Give a quantised model plain matrices of the numbers that its codes stand for, in place; the schemes and levels that they had."""
    found: dict[str, tuple[MatrixScheme, Grid | None]] = {}
    for name, module in list(model.named_modules()):
        if not isinstance(module, QuantLinear):
            continue
        weight = module.quantised
        if weight.columns is not None:
            raise UsageError(
                f"{name} has groups in an order of its own (g_idx), which training does not keep",
                hint="start from the unquantised model, or from one without act-order",
            )
        scheme = own_scheme(weight)
        with torch.device("meta"):
            linear = Linear(weight.num_inputs, weight.num_outputs)
        linear.weight = nn.Parameter(weight.dequantise())
        owner, _, place = name.rpartition(".")
        setattr(model.get_submodule(owner), place, linear)
        found[name] = (scheme, _own_grid(weight, scheme))
    return found


@torch.no_grad()
def levels_for(model: Transformer, schemes: Mapping[str, MatrixScheme]) -> dict[str, tuple[MatrixScheme, Grid | None]]:
    """The levels of every matrix that has a scheme, by the search for the best clip."""
    return {
        name: (scheme, None if scheme.kind == "fp8" else grid_of(model.get_parameter(f"{name}.weight").float(), scheme))
        for name, scheme in schemes.items()
    }


def convert_to_fake(model: Transformer, levels: Mapping[str, tuple[MatrixScheme, Grid | None]]) -> Transformer:
    """Round these matrices whenever they are used, in place; names and parameters stay. Adapters have to be there before."""
    for name, (scheme, grid) in levels.items():
        module = model.get_submodule(name)
        if isinstance(module, AdaptedLinear):
            module.__class__ = FakeQuantAdapted
        elif type(module) is Linear:
            module.__class__ = FakeQuantLinear
        else:
            raise UsageError(f"{name} is a {type(module).__name__}, which cannot be rounded in training", hint="set train.float8=false")
        assert isinstance(module, FakeQuantLinear | FakeQuantAdapted)
        module.scheme = scheme
        module.grid = None if grid is None else _on(grid, next(module.parameters()).device)
    return model


def _on(grid: Grid, device: torch.device) -> Grid:
    return replace(grid, scales=grid.scales.to(device), zeros=None if grid.zeros is None else grid.zeros.to(device))


@torch.no_grad()
def rounded(model: Transformer) -> dict[str, tuple[MatrixScheme, QuantWeight]]:
    """The matrices as they were computed with, quantised, on the CPU, by name; beside each its scheme."""
    found: dict[str, tuple[MatrixScheme, QuantWeight]] = {}
    for name, module in model.named_modules():
        if isinstance(module, FakeQuantLinear | FakeQuantAdapted):
            weight = module.weight if isinstance(module, FakeQuantLinear) else module.adapted_weight()
            grid = module.grid
            done = round_matrix(weight, module.scheme) if grid is None else round_on(weight, grid, module.scheme)
            found[name] = (module.scheme, done.to("cpu"))
    return found
