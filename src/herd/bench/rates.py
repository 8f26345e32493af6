"""What this machine gives at best, measured: bytes read and operations a second. A model's figures are told against these."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from herd.kernels.dispatch import choice
from herd.kernels.torch_compat import multiplies_bfloat16

_LEAST_S = 0.2
_REPEATS = 5


def _best_s(work: Callable[[], object]) -> float:
    """Seconds of one call, the best of several that each took long enough to be measured."""
    work()
    best = float("inf")
    for _ in range(_REPEATS):
        count, started = 0, time.perf_counter()
        while time.perf_counter() - started < _LEAST_S / _REPEATS:
            work()
            count += 1
        best = min(best, (time.perf_counter() - started) / count)
    return best


def read_rate(size_bytes: int) -> float:
    """Bytes a second of reading a piece of memory of this size again and again, by all threads.

    A model that is smaller than the processor's cache is read from there, so the size is the model's.
    """
    size = max(2**20, min(size_bytes, 2 * 2**30))
    data = torch.ones(size // 4, dtype=torch.float32)
    library = choice().library
    if library is None:
        return size / _best_s(data.sum)
    return size / _best_s(lambda: library.read(data.data_ptr(), size))


def device_read_rate(device: torch.device, size_bytes: int) -> float:
    """Bytes a second of reading a piece of a GPU's memory again and again."""
    data = torch.ones(size_bytes // 4, dtype=torch.float32, device=device)

    def read() -> None:
        data.sum()
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    return size_bytes / _best_s(read)


def matmul_rate(dtype: torch.dtype, device: torch.device) -> float:
    """Operations a second (two for each multiplication and addition) of a large product in this dtype.

    On a processor that does not multiply bfloat16, float32's: what is stored in bfloat16 is multiplied there as float32.
    """
    side = 2048
    if dtype == torch.bfloat16 and not multiplies_bfloat16(device.type):
        dtype = torch.float32
    left, right = torch.randn(side, side, device=device).to(dtype), torch.randn(side, side, device=device).to(dtype)

    def product() -> None:
        torch.matmul(left, right)
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    with torch.inference_mode():
        return 2 * side**3 / _best_s(product)
