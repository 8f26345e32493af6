"""Polyak averaging: the running mean of the weights at several steps, which is what the Llama 3 report releases after annealing.

    mean_n = mean_(n-1) + (w_n - mean_(n-1)) / n,  in float32

Knows tensors by name; when to add to it is the trainer's business.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

_COUNT = "count"


class WeightAverage:
    """The mean of the weights added so far. Its state is part of a resumable state."""

    def __init__(self) -> None:
        self.count = 0
        self.mean: dict[str, Tensor] = {}

    @torch.no_grad()
    def add(self, model: nn.Module) -> None:
        """Take the model's present weights in."""
        self.count += 1
        for name, parameter in model.named_parameters():
            if not parameter.requires_grad:  # frozen: it is its own mean
                continue
            weights = parameter.detach().float()
            if self.count == 1:
                self.mean[name] = weights.clone()
            else:
                self.mean[name] += (weights - self.mean[name]) / self.count

    @torch.no_grad()
    def apply(self, model: nn.Module) -> None:
        """Write the mean into the model. Without anything added the model stays as it is."""
        for name, parameter in model.named_parameters():
            if name in self.mean:
                parameter.copy_(self.mean[name])

    def tensors(self) -> dict[str, Tensor]:
        """Its state; empty when nothing was added."""
        return {**self.mean, _COUNT: torch.tensor(self.count)} if self.count else {}

    def restore(self, tensors: Mapping[str, Tensor], model: nn.Module) -> None:
        """Take a saved state, onto the devices of the model's parameters."""
        self.count = int(tensors[_COUNT]) if tensors else 0
        self.mean = {name: tensors[name].to(parameter.device) for name, parameter in model.named_parameters() if name in tensors}
