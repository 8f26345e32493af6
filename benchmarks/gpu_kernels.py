"""The GPU runner's products one by one: microseconds and bytes of weights a second, beside torch's own product of the same matrix.

As in a decoding step: in a captured graph, over so many copies of the matrix that none is found in the device's cache. `sweep` tries other
tiles than `herd.kernels.triton.tiles` chooses, to choose them better.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from benchmarks.gpu_model import quantised, timed
from herd.engine.gpu.device import Captured
from herd.kernels import torch_compat
from herd.kernels.quantised import FP8_DTYPE
from herd.kernels.triton import linear, runtime
from herd.kernels.triton.linear import GpuMatrix, Scratch
from herd.kernels.triton.norm import quantise_rows
from herd.kernels.triton.tiles import Tile
from herd.model.config import ModelConfig

ROWS = (1, 16, 64, 256)
_SPREAD = 400e6
"""Bytes of all copies of a matrix: several times what the device's cache holds."""


def shapes(config: ModelConfig) -> dict[str, tuple[int, int]]:
    """Outputs and inputs of the stacks of a block."""
    query, keyvalue = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
    hidden, ffn = config.hidden_size, config.intermediate_size
    return {"qkv": (query + 2 * keyvalue, hidden), "out": (hidden, query), "gate_up": (2 * ffn, hidden), "down": (hidden, ffn)}


def matrices(n: int, k: int, kind: str) -> list[GpuMatrix]:
    """Copies of a matrix of random numbers, none like another."""
    bits = {"bf16": 16, "fp8": 8, "int4": 4}[kind]
    count = min(64, max(2, int(_SPREAD / (n * k * bits / 8)) + 1))
    weights = (torch.empty(n, k, dtype=torch.bfloat16, device="cuda").normal_(0.0, 0.02) for _ in range(count))
    return [linear.dense(weight) if kind == "bf16" else linear.quantised([quantised(weight, kind)]) for weight in weights]


def seconds(function: Callable[[GpuMatrix], Any], copies: list[GpuMatrix], repeats: int) -> float:
    """Seconds of a call, in a graph over all copies."""

    def all_of_them() -> None:
        for one in copies:
            function(one)

    return timed(Captured(all_of_them, None).replay, repeats) / len(copies)


def product_of(m: int, copies: list[GpuMatrix]) -> Callable[[GpuMatrix], Tensor]:
    """The runner's product of so many rows with a copy; the rows are quantised already where that is done by the norm."""
    one = copies[0]
    x = torch.randn(m, one.num_inputs, dtype=torch.bfloat16, device="cuda")
    out = torch.empty(m, one.num_outputs, dtype=torch.bfloat16, device="cuda")
    scratch = Scratch.of([one], rows=m, dtype=x.dtype, device=x.device)
    if one.inputs == linear.AS_IS:
        return lambda matrix: linear.product(x, matrix, out=out, scratch=scratch)
    codes, scales = scratch.codes_of(m, one)
    quantise_rows(x, mode="fp8", codes=codes, scales=scales)
    return lambda matrix: linear.product(codes, matrix, out=out, scratch=scratch, row_scales=scales)


def torchs_product(m: int, copies: list[GpuMatrix]) -> Callable[[GpuMatrix], Tensor] | None:
    """Torch's own, where it has one: of bf16, and of fp8 rows with fp8 weights."""
    one = copies[0]
    x = torch.randn(m, one.num_inputs, dtype=torch.bfloat16, device="cuda")
    if one.kind == linear.DENSE:
        out = torch.empty(m, one.num_outputs, dtype=torch.bfloat16, device="cuda")
        return lambda matrix: torch.mm(x, matrix.values.t(), out=out)
    if one.kind == linear.FP8:
        codes, scales = x.to(FP8_DTYPE), torch.ones(m, 1, device="cuda")
        return lambda matrix: torch_compat.scaled_mm(codes, matrix.values.view(FP8_DTYPE).t(), scales, matrix.scales.t(), torch.bfloat16)  # type: ignore[union-attr]
    return None


def kernels(config: ModelConfig, kind: str, roof: float, repeats: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """(matrix and rows, figures) of every matrix of a block. `roof` is what the memory reads a second."""
    for name, (n, k) in shapes(config).items():
        copies = matrices(n, k, kind)
        for m in ROWS:
            took = seconds(product_of(m, copies), copies, repeats)
            speed = copies[0].size_bytes / took
            found: dict[str, Any] = {
                "us": took * 1e6,
                "tb_per_s": speed / 1e12,
                "share": speed / roof,
                "tflops": 2 * m * n * k / took / 1e12,
            }
            try:
                peer = torchs_product(m, copies)
                found["torch_us"] = None if peer is None else seconds(peer, copies, repeats) * 1e6
            except RuntimeError as error:
                found["torch_us"] = str(error).splitlines()[0][:60]
            yield f"{kind} {name} [{n}, {k}] x {m}", found
        del copies
        torch.cuda.empty_cache()


@contextmanager
def tiled(tile: tuple[int, int, int], rows: int, warps: int, stages: int) -> Iterator[None]:
    """Products by another tile (outputs, inputs, splits), of so many rows, than the one that is chosen."""
    outputs, inputs, splits = tile

    def other(num_outputs: int, num_inputs: int, **_: Any) -> Tile:
        steps = -(-num_inputs // inputs)
        part = -(-steps // splits) * inputs
        return Tile(outputs=outputs, inputs=inputs, splits=-(-num_inputs // part), part=part)

    def options(num_warps: int, num_stages: int | None = None) -> dict[str, Any]:
        return runtime.options(num_warps) if num_stages is None else runtime.options(warps, stages)

    with mock.patch.multiple(linear, tile_of=other, ROWS=rows, options=options):
        yield


def agreements(config: ModelConfig, kind: str, *, m: int = 8) -> dict[str, Any]:
    """Which tiles give the very bits of the chosen one, over as many inputs a step and parts: those could be taken for few rows or many."""
    n, k = shapes(config)["qkv"]
    copies = matrices(n, k, kind)[:1]
    chosen = copies[0].tile
    torch.manual_seed(1)
    wanted = product_of(m, copies)(copies[0]).clone()
    found: dict[str, Any] = {}
    for outputs, rows, warps in itertools.product((16, 32, 64, 128, 256), (16, 32, 64, 128), (4, 8)):
        try:
            with tiled((outputs, chosen.inputs, chosen.splits), rows, warps, 3):
                torch.manual_seed(1)
                same = torch.equal(product_of(m, copies)(copies[0]), wanted)
        except Exception as error:  # a tile that Triton does not compile, or that does not fit, says so here
            same = str(error).splitlines()[0][:40]
        found.setdefault(str(same), []).append(f"{rows} rows x {outputs}, {warps} warps")
    return found


def sweep(config: ModelConfig, kind: str, roof: float, repeats: int, *, m: int = 8) -> Iterator[tuple[str, dict[str, Any]]]:
    """Which tiles agree bit for bit, then (matrix, its fastest tiles) of a few rows; the chosen one comes first."""
    wide = {"bf16": (64, 128), "fp8": (128, 256), "int4": (128,)}[kind]
    yield f"{kind}: tiles with the chosen one's bits", agreements(config, kind)
    tries = list(itertools.product((16, 32, 64, 128), wide, (1, 2, 4, 8), (16, 64), (4,), (3, 5)))
    for name, (n, k) in shapes(config).items():
        copies = matrices(n, k, kind)
        times: dict[str, float] = {}
        chosen = copies[0].tile
        times[f"chosen {chosen.outputs}x{chosen.inputs} in {chosen.splits}, 64 rows"] = seconds(product_of(m, copies), copies, repeats)
        for outputs, inputs, splits, rows, warps, stages in tries:
            if not 100 <= -(-n // outputs) * splits <= 4000:
                continue
            try:
                with tiled((outputs, inputs, splits), rows, warps, stages):
                    took = seconds(product_of(m, copies), copies, repeats)
            except Exception as error:  # a tile that does not fit the device says so here
                if "out of resource" not in str(error):
                    raise
                continue
            times[f"{outputs}x{inputs} in {splits}, {rows} rows, {stages} stages"] = took
        first, *others = times
        best = [first, *sorted(others, key=times.__getitem__)[:6]]
        size = copies[0].size_bytes
        yield f"{kind} {name} [{n}, {k}] x {m}", {one: f"{times[one] * 1e6:.1f} us, {size / times[one] / roof:.0%}" for one in best}
        del copies
        torch.cuda.empty_cache()
