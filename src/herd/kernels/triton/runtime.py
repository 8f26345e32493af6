"""Where Triton kernels run: on a GPU, or in Triton's interpreter on CPU tensors. Imports no triton."""

from __future__ import annotations

import functools
import importlib.util
import os
from typing import TYPE_CHECKING, Any

from herd.base.errors import ConfigError

if TYPE_CHECKING:
    import torch


def options(num_warps: int, num_stages: int | None = None) -> dict[str, Any]:
    """Options of a launch. Of every one: products and sums are rounded one by one."""
    chosen: dict[str, Any] = {"num_warps": num_warps, "enable_fp_fusion": False}
    return chosen if num_stages is None else chosen | {"num_stages": num_stages}


@functools.cache
def installed() -> bool:
    """Whether triton can be imported."""
    return importlib.util.find_spec("triton") is not None


def interpreted() -> bool:
    """Whether kernels run in the interpreter. Triton reads the variable when a kernel is defined, so it has to be set before."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def why_not(device: torch.device) -> str | None:
    """Why Triton kernels cannot run for tensors of a device; None where they can."""
    if not installed():
        return "triton is not installed"
    if device.type == "cuda" and not interpreted():
        return None
    if device.type == "cpu" and interpreted():
        return None
    return f"TRITON_INTERPRET={os.environ.get('TRITON_INTERPRET', '')!r} and a {device.type} tensor do not go together"


def require(device: torch.device) -> None:
    """Raise ConfigError unless Triton kernels run for tensors of this device."""
    why = why_not(device)
    if why is not None:
        raise ConfigError(
            f"no Triton kernel runs on {device}: {why}",
            hint="install triton, on Linux with an NVIDIA GPU; to test on a CPU set TRITON_INTERPRET=1 before Python starts",
        )
