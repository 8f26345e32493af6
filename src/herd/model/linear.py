"""A matrix without bias: torch's Linear, computed by `kernels.plain`. Shapes: K inputs, N outputs."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from herd.kernels import plain


class Linear(nn.Linear):
    """x w^T; a Llama has no biases."""

    def __init__(self, num_inputs: int, num_outputs: int) -> None:
        super().__init__(num_inputs, num_outputs, bias=False)

    def forward(self, input: Float[Tensor, "*batch K"]) -> Float[Tensor, "*batch N"]:
        return plain.linear(input, self.weight)
