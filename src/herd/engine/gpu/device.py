"""All that speaks to CUDA: page-locked memory, waiting for a copy, capturing and replaying a graph. On a CPU each does the plain thing.

The rest of the runner knows tensors alone, so it runs as it is on a CPU, in Triton's interpreter, without graphs.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from herd.base.errors import ConfigError

_FP8_CAPABILITY = (8, 9)


def staging(count: int, device: torch.device) -> Tensor:
    """Int32 numbers on the host that are copied to the device while the host goes on, where it can."""
    return torch.zeros(count, dtype=torch.int32, pin_memory=device.type == "cuda")


class Sent:
    """Whether the last copy from staging has arrived: `wait` before it is written again."""

    def __init__(self, device: torch.device) -> None:
        self._event = torch.cuda.Event() if device.type == "cuda" else None
        self._any = False

    def mark(self) -> None:
        """A copy was just queued."""
        if self._event is not None:
            self._event.record()
            self._any = True

    def wait(self) -> None:
        """Wait for it."""
        if self._event is not None and self._any:
            self._event.synchronize()


class Arriving:
    """Numbers of the device on their way to the host: `read` waits for them. On a CPU they are there."""

    def __init__(self, values: Tensor) -> None:
        self.values = values
        self._event = torch.cuda.Event() if values.device.type == "cuda" else None
        if self._event is None:
            self._host = values
            return
        self._host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
        self._host.copy_(values, non_blocking=True)
        self._event.record()

    def read(self) -> list[int]:
        """The numbers."""
        if self._event is not None:
            self._event.synchronize()
        return self._host.tolist()


def sent_now(values: Tensor, device: torch.device) -> Tensor:
    """Host numbers on the device, without waiting for what runs there: page-locked memory that torch keeps until they have arrived."""
    return values.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else values


def current(device: torch.device) -> AbstractContextManager[Any]:
    """Launches go to this device, whichever of several GPUs the thread had before."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def captures(device: torch.device) -> bool:
    """Whether graphs can be captured."""
    return device.type == "cuda"


class Captured:
    """A function's launches as one graph. It ran once before, to compile what it launches; all graphs share one pool of memory.

    Other threads may go on with CUDA meanwhile: a second model's, or one that loads weights.
    """

    def __init__(self, function: Callable[[], None], pool: Any) -> None:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            function()
        torch.cuda.current_stream().wait_stream(stream)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph, pool=pool, capture_error_mode="thread_local"):
            function()

    def replay(self) -> None:
        """Launch it."""
        self._graph.replay()


def graph_pool(device: torch.device) -> Any:
    """Memory that graphs share; None where there are none."""
    return torch.cuda.graph_pool_handle() if device.type == "cuda" else None


def check_fp8(device: torch.device) -> None:
    """Raise ConfigError where the device has no fp8 numbers."""
    if device.type == "cuda" and torch.cuda.get_device_capability(device) < _FP8_CAPABILITY:
        name = torch.cuda.get_device_name(device)
        raise ConfigError(
            f"fp8 was asked for on {name}, which has none", hint="fp8 runs on Ada, Hopper and newer GPUs: take int8, or bfloat16"
        )
