"""Compiles every launch of the Triton kernels for an H100 or H200, which needs neither: what the interpreter lets pass a compiler may not.

A program of its own, as it puts itself in the place of Triton's launcher. Prints what came of each kernel as JSON. `--full` compiles more.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

from herd.kernels.quantised import FP8_DTYPE, QuantWeight
from herd.kernels.triton import attention, cross_entropy, draw, linear, norm, rope, runtime, swiglu

_TYPES = {
    torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.int8: "*i8", torch.uint8: "*u8",
    torch.int32: "*i32", torch.int64: "*i64", torch.float64: "*fp64",
}  # fmt: skip
_OPTIONS = ("num_warps", "num_stages", "enable_fp_fusion")
_seen: dict[str, dict[str, Any]] = {}
_called: set[str] = set()


def _type_of(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return _TYPES[value.dtype]
    if isinstance(value, float):
        return "fp32"
    return "constexpr" if value == 1 else "i32"  # as Triton's launcher has it: one row, one part, a table of one column


def _compile(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
    options = {name: kwargs.pop(name) for name in _OPTIONS if name in kwargs}
    named = dict(zip(self.arg_names, args, strict=False)) | kwargs
    fixed = {param.name for param in self.params if param.is_constexpr}
    signature = {name: "constexpr" if name in fixed else _type_of(named[name]) for name in self.arg_names}
    constants = {(at,): named[name] for at, name in enumerate(self.arg_names) if signature[name] == "constexpr"}
    whole = {
        (at,): [["tt.divisibility", 16]]
        for at, name in enumerate(self.arg_names)
        if _aligned(named[name]) and signature[name] != "constexpr"
    }
    key = f"{self.fn.__name__} {signature} {sorted((name, str(named[name])) for name in fixed)}"
    if key in _called:
        return
    _called.add(key)
    source = ASTSource(self, signature, constants, whole)
    made = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    told = {name: getattr(made.metadata, name) for name in ("shared", "num_warps")}
    told["wgmma"] = "wgmma" in made.asm["ptx"]
    _seen[f"{self.fn.__name__} {len(_seen)}"] = told | {
        "bytes": len(made.asm["cubin"]),
        "about": {name: str(named[name]) for name in sorted(fixed)},
    }


def _aligned(value: Any) -> bool:
    return isinstance(value, torch.Tensor) or (isinstance(value, int) and value % 16 == 0)


def _quantised(kind: Any, group: int, activation: Any, *, zeros: bool = False, n: int = 256, k: int = 1024) -> linear.GpuMatrix:
    dtype = {"int8": torch.int8, "int4": torch.uint8, "fp8": FP8_DTYPE}[kind]
    values = torch.zeros(n, k // 2 if kind == "int4" else k, dtype=torch.uint8).view(dtype)
    scales = torch.ones(n, k // group)
    zero = torch.zeros(scales.shape, dtype=torch.uint8) if zeros else None
    return linear.quantised([QuantWeight(kind=kind, values=values, scales=scales, zeros=zero, activation=activation)])


def _rows(dtype: torch.dtype) -> None:
    x, weight = torch.zeros(4, 4096, dtype=dtype), torch.ones(4096, dtype=dtype)
    norm.rms_norm(x, weight, 1e-5, out=torch.empty_like(x), delta=x)
    for mode, kind in (("fp8", FP8_DTYPE), ("int8", torch.int8)):
        codes = torch.zeros(4, 4096, dtype=torch.uint8).view(kind)
        norm.rms_norm_quantised(x, weight, 1e-5, mode=mode, codes=codes, scales=torch.empty(4), delta=x)
    swiglu.swiglu(x, x, out=x)


def _losses(dtype: torch.dtype) -> None:
    logits, targets = torch.zeros(4, 128256, dtype=dtype), torch.zeros(4, dtype=torch.int64)
    for gradient in (False, True):
        cross_entropy.cross_entropy(logits, targets, ignore=-100, gradient=gradient)


def _cache(dtype: torch.dtype, cache_dtype: torch.dtype) -> None:
    q, k = torch.zeros(4, 32, 128, dtype=dtype), torch.zeros(4, 8, 128, dtype=dtype)
    width = 132 if cache_dtype.itemsize == 1 else 128
    keys = torch.zeros(8 * 16 * 8 * width * cache_dtype.itemsize, dtype=torch.uint8).view(cache_dtype).view(8, 16, 8, width)
    places, narrow = torch.zeros(4, dtype=torch.int32), torch.zeros(5, dtype=torch.int32)
    angles = torch.zeros(64, 64)
    rope.rope_write(q, k, k, cos=angles, sin=angles, positions=places, slots=places, keys=keys, values=keys)
    tables, tiles = torch.zeros(4, 8, dtype=torch.int32), torch.zeros(4, 2, dtype=torch.int32)
    attention.attend(q, keys, keys, tables=tables, starts=narrow, first=narrow, tiles=tiles, out=q)
    for parts, width in ((2, 8), (1, 1)):
        scratch, own = torch.empty(attention.partial_numbers(4, 32, 128, parts)), tables[:, :width].contiguous()
        attention.attend_decoding(q, keys, keys, tables=own, positions=places, parts=parts, scratch=scratch, out=q)


def _products(dtype: torch.dtype, matrices: list[linear.GpuMatrix], rows: int = 4) -> None:
    for matrix in matrices:
        x = torch.zeros(rows, matrix.num_inputs, dtype=dtype)
        scratch = linear.Scratch.of([matrix], rows=rows, dtype=dtype, device=x.device)
        linear.linear(x, matrix, out=torch.empty(rows, matrix.num_outputs, dtype=dtype), scratch=scratch)


def main(*, full: bool) -> None:
    """Compile the launches of an 8B model's shapes in bfloat16; with `full` of the other dtypes and groups as well."""
    runtime.why_not = lambda device: None
    JITFunction.run = _compile  # type: ignore[method-assign]
    some = [
        linear.dense(torch.zeros(256, 1024, dtype=torch.bfloat16)),
        _quantised("int8", 1024, "none"),
        _quantised("int4", 128, "none"),
        _quantised("int8", 1024, "int8"),
        _quantised("fp8", 1024, "fp8"),
    ]
    more = [
        _quantised("int4", 32, "none", zeros=True), _quantised("int4", 64, "int8"), _quantised("int4", 128, "int8"),
        _quantised("int8", 128, "none"), _quantised("fp8", 1024, "none"), _quantised("fp8", 128, "none"), _quantised("int4", 1024, "none"),
    ]  # fmt: skip
    _rows(torch.bfloat16)
    _losses(torch.bfloat16)
    _cache(torch.bfloat16, torch.bfloat16)
    _cache(torch.bfloat16, FP8_DTYPE)
    _products(torch.bfloat16, some)
    _products(torch.bfloat16, some, rows=1)
    one = torch.zeros(4)
    doubles, ids = {"top_p": one.double(), "uniforms": one.double()}, torch.zeros(4, dtype=torch.int64)
    draw.draw(torch.zeros(4, 2000), temperatures=one, top_k=one.int(), min_p=one, **doubles, ids=ids)
    if full:
        _cache(torch.bfloat16, torch.int8)
        _products(torch.bfloat16, more)
        for dtype in (torch.float16, torch.float32):
            _rows(dtype)
            _losses(dtype)
            _cache(dtype, dtype)
            _products(dtype, [linear.dense(torch.zeros(256, 1024, dtype=dtype)), *some[1:]])
    print(json.dumps(_seen, indent=1))


if __name__ == "__main__":
    main(full="--full" in sys.argv)
