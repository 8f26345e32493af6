"""What a stage's matrix products are computed in, on the device that it is on.

bfloat16 where the device multiplies it. A processor without AVX-512 or AMX, a laptop's or an older server's, does not: torch multiplies
bfloat16 there a hundred times slower than float32 (1 and 100 GFLOP/s on two cores of a Zen 3), so a stage that leaves the choice open
(`compute_dtype = "auto"`) is computed in float32.
"""

from __future__ import annotations

import torch

from herd.kernels.torch_compat import multiplies_bfloat16
from herd.train.config import StageConfig


def compute_dtype(stage: StageConfig, device: torch.device | str) -> torch.dtype:
    """The dtype of the stage's products on a device ("cpu", "cuda:1"): as the stage says, or with "auto" the fastest that trains."""
    if stage.compute_dtype != "auto":
        return getattr(torch, stage.compute_dtype)
    return torch.bfloat16 if multiplies_bfloat16(torch.device(device).type) else torch.float32
