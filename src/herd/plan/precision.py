"""Bytes a parameter has in training, by precision policy.

`bf16` is what Llama 3.1 trained with: bfloat16 to compute, and master, both moments, sums of gradients in float32, 18 bytes in all where
nothing is shared. `fp8` has the same state. `fp32` computes in its masters.
"""

from __future__ import annotations

from dataclasses import dataclass

from herd.plan.mesh import Precision


@dataclass(frozen=True, kw_only=True, slots=True)
class StateBytes:
    """Bytes of a parameter: the copy that computes, its gradient, the optimiser's own (master and moments); and of an activation."""

    parameter: int
    gradient: int
    optimizer: int
    activation: int
    dtype: str

    @property
    def total(self) -> int:
        """With nothing shared."""
        return self.parameter + self.gradient + self.optimizer


STATE_BYTES: dict[Precision, StateBytes] = {
    "bf16": StateBytes(parameter=2, gradient=4, optimizer=12, activation=2, dtype="bf16"),
    "fp8": StateBytes(parameter=2, gradient=4, optimizer=12, activation=2, dtype="fp8"),
    "fp32": StateBytes(parameter=4, gradient=4, optimizer=8, activation=4, dtype="fp32"),
    "bf16-pure": StateBytes(parameter=2, gradient=2, optimizer=4, activation=2, dtype="bf16"),
}
