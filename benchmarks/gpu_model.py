"""What the GPU benchmarks share: random models and matrices, times by events, and what the machine gives at most."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from herd.kernels import torch_compat
from herd.kernels.quantised import FP8_DTYPE, QuantWeight
from herd.model.config import ModelConfig
from herd.model.linear import Linear
from herd.model.quant_linear import QuantLinear
from herd.model.transformer import Transformer


def random_model(config: ModelConfig, kind: str, device: str, dtype: torch.dtype = torch.bfloat16) -> Transformer:
    """A model of random weights, made on the device: fp8 (rows, over fp8 inputs) or int4 (groups of 128) in the blocks; the head stays."""
    with torch.device("meta"):
        model = Transformer(config).to(dtype)
    model = model.to_empty(device=device).eval().requires_grad_(False)
    torch.manual_seed(0)
    for weight in model.parameters():
        weight.fill_(1.0) if weight.dim() == 1 else weight.normal_(0.0, 0.02)
    for block in model.model.layers:
        for parent in (block.self_attn, block.mlp):
            for name, module in list(parent.named_children()):  # pyright: ignore[reportAttributeAccessIssue]
                if isinstance(module, Linear) and kind != "bf16":
                    setattr(parent, name, QuantLinear(quantised(module.weight, kind), dtype))
    return model


def quantised(weight: Tensor, kind: str) -> QuantWeight:
    """A matrix of random numbers in fp8, or of its shape in random int4 codes."""
    n, k = weight.shape
    if kind == "fp8":
        values = (weight.float() / 0.0002).clamp(-448, 448).to(FP8_DTYPE)
        return QuantWeight(kind="fp8", values=values, scales=torch.full((n, 1), 0.0002, device=weight.device), activation="fp8")
    group = min(128, k)
    values = torch.randint(0, 256, (n, k // 2), dtype=torch.uint8, device=weight.device)
    return QuantWeight(kind="int4", values=values, scales=torch.full((n, k // group), 0.005, device=weight.device))


def timed(function: Callable[[], Any], repeats: int, *, calls: int = 1) -> float:
    """Seconds a call on the device, the median of events around so many calls, after one that is not counted."""
    function()
    found = []
    for _ in range(repeats):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        for _ in range(calls):
            function()
        end.record()
        end.synchronize()
        found.append(begin.elapsed_time(end) / 1e3 / calls)
    return statistics.median(found)


def roofs(repeats: int) -> dict[str, float]:
    """Bytes read a second by a sum over 8 GiB, bytes moved a second by a copy, and operations a second of torch's products.

    Of random numbers: over zeros a GPU draws less power and keeps a higher clock than any model lets it.
    """
    wide = torch.empty(2 * 2**30, dtype=torch.float32, device="cuda").normal_()
    half = len(wide) // 2
    found = {"read_bytes_per_s": wide.nbytes / timed(wide.sum, repeats)}
    found["copy_bytes_per_s"] = wide.nbytes / timed(lambda: wide[:half].copy_(wide[half:]), repeats)
    del wide
    size = 8192
    a, b = (torch.randn(size, size, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    found["bf16_flops"] = 2 * size**3 / timed(lambda: a @ b.t(), repeats)
    if torch.cuda.get_device_capability() >= (8, 9):
        x, y, scale = a.to(FP8_DTYPE), b.to(FP8_DTYPE), torch.ones(size, 1, device="cuda")
        found["fp8_flops"] = 2 * size**3 / timed(lambda: torch_compat.scaled_mm(x, y.t(), scale, scale.t(), torch.bfloat16), repeats)
    return found


def launches(function: Callable[[], Any]) -> list[tuple[str, float]]:
    """Every kernel that a call runs on the device, in order, and its microseconds, by torch's profiler; nothing where that cannot look."""
    from torch._C._autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile

    function()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        function()
        torch.cuda.synchronize()
    found: list[Any] = [event for event in profiler.events() or () if event.device_type == DeviceType.CUDA]
    found.sort(key=lambda event: event.time_range.start)
    return [(event.name, event.time_range.elapsed_us()) for event in found]


def by_name(found: list[tuple[str, float]]) -> dict[str, str]:
    """How often each kernel ran and its microseconds altogether, the longest first."""
    totals: dict[str, list[float]] = {}
    for name, microseconds in found:
        totals.setdefault(name[:48], []).append(microseconds)
    ordered = sorted(totals.items(), key=lambda one: -sum(one[1]))
    return {name: f"{len(times)} x, {sum(times):.0f} us" for name, times in ordered[:14]}
