"""How fast the machine could be, and how much of it a run uses: MFU, by a measured matrix product and by the nameplate.

    MFU = tokens/s x FLOPs of a token's forward and backward / peak FLOP/s

The measured peak is that of a square product on this machine, now: what no model can pass. The nameplate is the vendor's dense figure.
"""

from __future__ import annotations

import resource
import sys
import time
from functools import lru_cache

import torch

from herd.plan.hardware import device_of_driver

_MEASURE_S = 0.1


@lru_cache(maxsize=8)
def measured_peak(device: str, dtype: torch.dtype, num_threads: int) -> float:
    """FLOP/s of the best of some square matrix products in `dtype`; measured once a process. `num_threads` is part of what is measured."""
    size = 8192 if device == "cuda" else 1024
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    out = left @ right
    best, started = float("inf"), time.perf_counter()
    while time.perf_counter() - started < _MEASURE_S:
        _wait(device)
        begun = time.perf_counter()
        torch.mm(left, right, out=out)
        _wait(device)
        best = min(best, time.perf_counter() - begun)
    return 2 * size**3 / best


def nameplate_peak(device_name: str) -> float | None:
    """The vendor's dense bf16 FLOP/s by the name that the driver gives; None for a device that the catalogue lacks, as processors."""
    device = device_of_driver(device_name)
    return None if device is None else device.bf16_tflops * 1e12


def utilisation(tokens_per_s: float, flops_per_token: int, device: torch.device, dtype: torch.dtype) -> dict[str, float]:
    """`mfu` by the measured peak and, where the device is known, `mfu_nameplate`."""
    achieved = tokens_per_s * flops_per_token
    found = {"mfu": round(achieved / measured_peak(device.type, dtype, torch.get_num_threads()), 4)}
    nameplate = nameplate_peak(torch.cuda.get_device_name(device)) if device.type == "cuda" else None
    return found | ({"mfu_nameplate": round(achieved / nameplate, 4)} if nameplate else {})


def peak_memory_bytes(device: torch.device) -> int:
    """The most memory in use so far: the allocator's on a GPU, the process's on a processor."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()
