"""One block, quantised: what its matrices read is observed, scales are moved, and each matrix is rounded by the method asked for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from herd.checkpoint.quant_scheme import MatrixScheme
from herd.kernels.quantised import QuantWeight
from herd.model.block import Block
from herd.model.config import ModelConfig
from herd.model.quant_linear import QuantLinear
from herd.quant.calibration import POINT_OF, BlockRunner, Inputs, load_block
from herd.quant.folding import fold
from herd.quant.gptq import gptq
from herd.quant.rounding import check_finite, relative_error, round_matrix
from herd.quant.schemes import Settings


@dataclass(frozen=True, kw_only=True, slots=True)
class QuantisedBlock:
    """A block's matrices, its other tensors (float32, as they are stored), and the relative error of each matrix by name."""

    matrices: dict[str, QuantWeight]
    others: dict[str, Tensor]
    errors: dict[str, float]
    shares: dict[str, float]

    def build(self, config: ModelConfig) -> Block:
        """The block as it will compute."""
        filled = {f"{name}.weight": torch.zeros(1, 1) for name in self.matrices}
        block = load_block(config, self.others | filled)
        for name, weight in self.matrices.items():
            owner, _, place = name.rpartition(".")
            setattr(block.get_submodule(owner), place, QuantLinear(weight, torch.float32))
        return block


def quantise_block(
    tensors: dict[str, Tensor],
    schemes: Mapping[str, MatrixScheme],
    config: ModelConfig,
    settings: Settings,
    *,
    dtype: torch.dtype,
    where: str,
    runner: BlockRunner | None = None,
    hidden_BTD: Tensor | None = None,
    ready: Mapping[str, QuantWeight] | None = None,
) -> QuantisedBlock:
    """Quantise a block.

    Args:
        tensors: the block's, float32, by name within the block; changed.
        schemes: of its quantised matrices, by name within the block.
        config: the model's.
        settings: the method and how it rounds.
        dtype: what all else is stored in.
        where: the block's name, for messages.
        runner: for calibration.
        hidden_BTD: what the block reads, where the method needs calibration.
        ready: matrices that are rounded already, by their whole names.
    """
    for name, tensor in tensors.items():
        check_finite(where + name, tensor)
    inputs: dict[str, Inputs] = {}
    if hidden_BTD is not None and runner is not None and settings.method != "rtn":
        inputs = runner.observe(load_block(config, tensors), hidden_BTD)
    shares: dict[str, float] = {}
    if settings.method in ("smooth", "awq"):
        shares = fold(tensors, inputs, schemes, config, method=settings.method, dtype=dtype)
    matrices, errors = {}, {}
    for name, scheme in schemes.items():
        weight = tensors.pop(f"{name}.weight")
        done = None if ready is None else ready.get(where + name)
        matrices[name] = _round(weight, scheme, inputs.get(POINT_OF[name]), settings) if done is None else done
        errors[name] = relative_error(weight, matrices[name])
    others = {name: tensor.to(dtype).float() for name, tensor in tensors.items()}
    return QuantisedBlock(matrices=matrices, others=others, errors=errors, shares=shares)


def _round(weight: Tensor, scheme: MatrixScheme, inputs: Inputs | None, settings: Settings) -> QuantWeight:
    if inputs is None or scheme.kind == "fp8":
        return round_matrix(weight, scheme)
    if settings.method == "gptq":
        return gptq(weight, inputs.moment_KK, scheme, act_order=settings.act_order)
    return round_matrix(weight, scheme, inputs.moment_KK.diagonal())
