"""AdamW as Llama uses it: decoupled weight decay on matrices, none on norms. Masters and moments are float32."""

from __future__ import annotations

import torch

from herd.model.transformer import Transformer
from herd.train.config import StageConfig


def build_adamw(model: Transformer, stage: StageConfig) -> torch.optim.AdamW:
    """Two groups, matrices with decay and vectors without; fused where the device has it."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    matrices = [parameter for parameter in trained if parameter.dim() >= 2]
    vectors = [parameter for parameter in trained if parameter.dim() < 2]
    groups = [{"params": matrices, "weight_decay": stage.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=stage.lr, betas=(stage.beta1, stage.beta2), eps=stage.eps, fused=True)
