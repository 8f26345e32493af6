"""The scheme `auto`: matrices are measured (`sensitivity`), what each scheme costs is worked out, and the budget is spent (`budget`)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from herd.base.errors import HerdError
from herd.checkpoint.load import model_from_source
from herd.checkpoint.quant_parts import written_parts
from herd.checkpoint.quant_scheme import MatrixScheme
from herd.checkpoint.source import TensorSource
from herd.quant.budget import Choice, spend
from herd.quant.schemes import GROUPS, INT8, Settings, int4_scheme, matrix_bytes, schemes_for
from herd.quant.sensitivity import Advance, error_ratio, measure

DEFAULT_BITS = 4.5


@dataclass(frozen=True, kw_only=True, slots=True)
class Mixture:
    """The scheme of each matrix that is quantised, and the divergence each was measured to cause alone at 4 bits."""

    schemes: dict[str, MatrixScheme]
    sensitivity: dict[str, float]


def mix(
    source: TensorSource,
    settings: Settings,
    tokens_BT: Int[Tensor, "B T"],
    *,
    dtype: torch.dtype,
    sensitivity: dict[str, float] | None = None,
    progress: Advance | None = None,
) -> Mixture:
    """Choose. The model is loaded whole, in float32, unless it was measured before."""
    start = schemes_for(source.config, settings)
    if sensitivity is None:
        model = model_from_source(source, torch.float32, torch.device("cpu"))
        sensitivity = measure(model, tokens_BT, start, progress)
    shapes, choices, budget = source.config.parameter_shapes(), {}, 0
    for name, measured in start.items():
        n, k = shapes[f"{name}.weight"]
        weight, cost = source.read(f"{name}.weight").float(), sensitivity[name]
        budget += n * k
        choices[name] = [Choice(scheme=None, size_bytes=matrix_bytes(None, (n, k), dtype.itemsize), cost=0.0)]
        for scheme in _candidates(measured, settings, (n, k)):
            size = matrix_bytes(scheme, (n, k), dtype.itemsize)
            choices[name].append(Choice(scheme=scheme, size_bytes=size, cost=cost * error_ratio(weight, scheme, measured)))
    chosen = spend(choices, int(budget * (settings.budget_bits or DEFAULT_BITS) / 8))
    schemes = {name: choice.scheme for name, choice in chosen.items() if choice.scheme is not None}
    return Mixture(schemes=schemes, sensitivity=sensitivity)


def _candidates(measured: MatrixScheme, settings: Settings, shape: tuple[int, int]) -> list[MatrixScheme]:
    found = [measured]
    for scheme in (*(int4_scheme(group, symmetric=settings.symmetric) for group in GROUPS), INT8):
        try:
            written_parts(scheme, shape)
        except HerdError:
            continue
        if scheme not in found:
            found.append(scheme)
    return found
