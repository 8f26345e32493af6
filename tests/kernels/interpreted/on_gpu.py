"""The tests of this folder on an NVIDIA GPU instead of in Triton's interpreter: `HERD_TEST_GPU=1 pytest tests/kernels/interpreted`.

The tests make tensors on the CPU. At every launch what they lie in is copied to the GPU, the kernel compiled for it runs, and all of it is
copied back: so they find errors of compilers and instructions, while copies and captured graphs are for `benchmarks.gpu`.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

ON_GPU = os.environ.get("HERD_TEST_GPU") == "1"
RUNS = ON_GPU or os.environ.get("TRITON_INTERPRET") == "1"
"""Whether there is anything that these tests can run on."""
WHY = "run by tests/kernels/test_triton.py in Triton's interpreter, or on a GPU with HERD_TEST_GPU=1"
SLACK = 16.0 if ON_GPU else 1.0
"""A GPU's e^x is off by several units in the last place of float32."""
FP8_SLACK = 64.0 if ON_GPU else 1.0
"""Hopper's tensor instructions sum products of fp8 numbers in some 14 bits, a step of 128 of them at a time."""


class Moved:
    """Tensors on a device in the place of tensors on the CPU: of one storage they share one there too."""

    def __init__(self, device: str) -> None:
        self._device = device
        self._storages: dict[int, tuple[Tensor, Tensor]] = {}

    def __call__(self, value: Any) -> Any:
        """A tensor there, anything else as it is."""
        if not isinstance(value, Tensor) or value.device.type != "cpu":
            return value
        storage = value.untyped_storage()
        if storage.data_ptr() not in self._storages:
            here = torch.empty(0, dtype=torch.uint8).set_(storage)
            self._storages[storage.data_ptr()] = here, here.to(self._device, copy=True)
        there = self._storages[storage.data_ptr()][1].untyped_storage()
        return torch.empty(0, dtype=value.dtype, device=self._device).set_(there, value.storage_offset(), value.shape, value.stride())

    def back(self) -> None:
        """Copy all of them back."""
        for here, there in self._storages.values():
            here.copy_(there)


def through(run: Callable[..., Any], device: str) -> Callable[..., Any]:
    """Triton's launch over tensors of the CPU."""

    def launched(self: Any, *args: Any, **kwargs: Any) -> Any:
        with torch.no_grad():
            moved = Moved(device)
            found = run(self, *map(moved, args), **{name: moved(value) for name, value in kwargs.items()})
            moved.back()
        return found

    return launched


def install() -> None:
    """Launch on the GPU in this process, from now on."""
    from triton.runtime.jit import JITFunction

    from herd.kernels.triton import runtime

    runtime.why_not = lambda device: None
    JITFunction.run = through(JITFunction.run, "cuda")  # type: ignore[method-assign]
