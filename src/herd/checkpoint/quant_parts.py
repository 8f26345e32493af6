"""Quantised matrices as the tensors of their files, and back: one function a layout, every part checked before it is used.

    dense    weight [N, K] int8 or e4m3, weight_scale [N, 1], [N, G], [1] or by blocks
    packed   weight_packed int32 [N, K b/32], weight_scale [N, G], weight_shape int64 [2]; weight_zero_point int32 [N b/32, G],
             weight_g_idx int32 [K]. Codes are offset by 2^(b-1), the lowest bits come first
    gptq     qweight int32 [K b/32, N], qzeros int32 [G, N b/32], scales [G, N], g_idx int32 [K]; version 1 stores zero points less one
    awq      qweight int32 [K, N/8], qzeros int32 [G, N/8], scales [G, N]; nibble i of a word is output 8 j + (0 2 4 6 1 3 5 7)[i]

Scales of groups are written in bfloat16, scales of rows in float32. Shapes: N outputs, K inputs, G groups, b bits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from herd.base.errors import CheckpointError, UsageError
from herd.checkpoint.quant_scheme import MatrixScheme
from herd.kernels.quantised import FP8_DTYPE, INT4_ZERO, QuantWeight, pack_int4

Shape = tuple[int, ...]
Parts = Mapping[str, Tensor]
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
_FLOATS = (torch.float32, torch.bfloat16, torch.float16)
_HINT = "the file is damaged, hostile, or its config belongs to another model: download it again"


def part_names(scheme: MatrixScheme) -> tuple[frozenset[str], frozenset[str]]:
    """Suffixes of the tensors that a matrix needs, and of those that it may have."""
    if scheme.layout == "dense":
        return frozenset({"weight", "weight_scale"}), frozenset()
    if scheme.layout == "packed":
        zeros = set() if scheme.symmetric else {"weight_zero_point"}
        return frozenset({"weight_packed", "weight_scale", "weight_shape"} | zeros), frozenset({"weight_g_idx"})
    if scheme.layout == "awq":
        return frozenset({"qweight", "qzeros", "scales"}), frozenset()
    return frozenset({"qweight", "qzeros", "scales"}), frozenset({"g_idx"})


def written_parts(scheme: MatrixScheme, shape: Shape) -> dict[str, tuple[Shape, torch.dtype]]:
    """Suffix, shape and dtype of the tensors that `encode` gives for a matrix. Raises UsageError where it has no such form."""
    n, k = shape
    if scheme.group and k % scheme.group:
        raise UsageError(
            f"rows of {k:,} inputs are no whole groups of {scheme.group}", hint="choose a group that divides every matrix's width"
        )
    scale: dict[str, tuple[Shape, torch.dtype]] = {"weight_scale": ((n, scheme.groups(k)), scale_dtype(scheme))}
    if scheme.layout == "dense":
        return {"weight": (shape, FP8_DTYPE if scheme.kind == "fp8" else torch.int8)} | scale
    per_word = 32 // scheme.bits
    if k % per_word or (not scheme.symmetric and n % per_word):
        raise UsageError(
            f"a [{n:,}, {k:,}] matrix of {scheme.bits} bits fills no whole 32-bit words", hint="quantise to 8 bits in rows: int8"
        )
    parts = {"weight_packed": ((n, k // per_word), torch.int32)} | scale | {"weight_shape": ((2,), torch.int64)}
    return parts if scheme.symmetric else parts | {"weight_zero_point": ((n // per_word, scheme.groups(k)), torch.int32)}


def scale_dtype(scheme: MatrixScheme) -> torch.dtype:
    """What scales are written in: there are many for groups, few for rows."""
    return torch.bfloat16 if scheme.group else torch.float32


def encode(weight: QuantWeight, scheme: MatrixScheme) -> dict[str, Tensor]:
    """The tensors of a matrix by suffix, dense or packed. Scales must be numbers that `scale_dtype` has."""
    assert weight.columns is None and scheme.layout in ("dense", "packed") and weight.kind == scheme.kind
    scales = weight.scales.to(scale_dtype(scheme))
    assert torch.equal(scales.float(), weight.scales), "scales were not rounded to what is written"
    if scheme.layout == "dense":
        return {"weight": weight.values, "weight_scale": scales}
    if weight.kind == "int4":
        packed = _plain(weight.values).view(torch.int32)
    else:
        packed = _plain(weight.values.view(torch.uint8) ^ 128).view(torch.int32)
    shape = torch.tensor([weight.num_outputs, weight.num_inputs])
    parts = {"weight_packed": packed, "weight_scale": scales, "weight_shape": shape}
    if weight.zeros is None:
        return parts
    words = _plain(pack_int4(_plain(weight.zeros.t()))).view(torch.int32)
    return parts | {"weight_zero_point": _plain(words.t())}


def _plain(tensor: Tensor) -> Tensor:
    """A copy whose strides are those of its shape, also where a dimension is 1: what a change of dtype needs."""
    return tensor.clone(memory_format=torch.contiguous_format)


def decode(parts: Parts, scheme: MatrixScheme, shape: Shape, name: str) -> QuantWeight:
    """The matrix in its file's tensors. Raises CheckpointError, naming it, where a part is not what it should be."""
    needed, allowed = part_names(scheme)
    for suffix in sorted(needed - parts.keys()):
        raise CheckpointError(f"{name} has no {suffix}, which {scheme.label} weights need", hint=_HINT)
    assert parts.keys() <= needed | allowed
    for suffix, part in parts.items():
        if part.is_floating_point() and part.dtype in _FLOATS and not bool(torch.isfinite(part).all()):
            raise CheckpointError(f"{name}.{suffix} holds numbers that are NaN or infinite", hint=_HINT)
    readers: dict[str, Callable[[Parts, MatrixScheme, Shape, str], QuantWeight]] = {
        "dense": _dense, "packed": _packed, "gptq": _gptq, "gptq_v2": _gptq, "awq": _awq,
    }  # fmt: skip
    return readers[scheme.layout](parts, scheme, shape, name)


def _check(parts: Parts, suffix: str, shape: Shape, dtypes: tuple[torch.dtype, ...], name: str) -> Tensor:
    part = parts[suffix]
    if tuple(part.shape) != shape or part.dtype not in dtypes:
        wanted = " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
        raise CheckpointError(
            f"{name}.{suffix} is {str(part.dtype).removeprefix('torch.')} {list(part.shape)}, it must be {wanted} {list(shape)}", hint=_HINT
        )
    return part


def _num_groups(scheme: MatrixScheme, k: int, name: str) -> int:
    if scheme.group and k % scheme.group:
        raise CheckpointError(f"{name} has rows of {k:,} inputs, which are no whole groups of {scheme.group:,}", hint=_HINT)
    return scheme.groups(k)


def _weight(scheme: MatrixScheme, values: Tensor, scales: Tensor, **more: Tensor | None) -> QuantWeight:
    return QuantWeight(
        kind=scheme.kind, values=values, scales=scales.float().contiguous(), activation=scheme.activation, bound=scheme.bound, **more
    )


def _dense(parts: Parts, scheme: MatrixScheme, shape: Shape, name: str) -> QuantWeight:
    n, k = shape
    values = _check(parts, "weight", shape, (FP8_DTYPE,) if scheme.kind == "fp8" else (torch.int8,), name)
    groups, scales = _num_groups(scheme, k, name), parts["weight_scale"]
    if scheme.block == 0:
        scales = _check({"weight_scale": scales.reshape(-1)}, "weight_scale", (1,), _FLOATS, name).expand(n, 1)
    elif scheme.block > 1:
        rows = -(-n // scheme.block)
        scales = _check(parts, "weight_scale", (rows, groups), _FLOATS, name).repeat_interleave(scheme.block, dim=0)[:n]
    else:
        scales = _check(
            {"weight_scale": scales.reshape(n, 1) if scales.shape == (n,) else scales}, "weight_scale", (n, groups), _FLOATS, name
        )
    return _weight(scheme, values, scales)


def _packed(parts: Parts, scheme: MatrixScheme, shape: Shape, name: str) -> QuantWeight:
    n, k = shape
    told = _check(parts, "weight_shape", (2,), (torch.int64, torch.int32), name).tolist()
    if told != [n, k]:
        raise CheckpointError(f"{name}.weight_shape says {told}, the config {[n, k]}", hint=_HINT)
    words = _check(parts, "weight_packed", (n, -(-k * scheme.bits // 32)), (torch.int32,), name)
    groups = _num_groups(scheme, k, name)
    scales, zeros = _check(parts, "weight_scale", (n, groups), _FLOATS, name), None
    if not scheme.symmetric:
        packed = _check(parts, "weight_zero_point", (-(-n * scheme.bits // 32), groups), (torch.int32,), name)
        zeros = _fields(_plain(packed.t()), scheme.bits)[:, :n].t().contiguous()
    codes = _fields(_plain(words), scheme.bits)[:, :k].contiguous()
    return _ordered(scheme, codes, scales, zeros, parts.get("weight_g_idx"), name)


def _fields(words: Tensor, bits: int) -> Tensor:
    """The unsigned codes in rows of 32-bit words, lowest bits first; uint8."""
    raw = words.view(torch.uint8)
    return raw if bits == 8 else torch.stack([raw & 15, raw >> 4], dim=-1).view(len(words), -1)


def _ordered(
    scheme: MatrixScheme, codes_NK: Tensor, scales_NG: Tensor, zeros_NG: Tensor | None, g_idx: Tensor | None, name: str
) -> QuantWeight:
    """The matrix with its groups made contiguous, where the file says which input belongs to which."""
    columns = None
    if g_idx is not None:
        columns = _columns(
            _check({"g_idx": g_idx}, "g_idx", (codes_NK.shape[1],), (torch.int32, torch.int64), name), scales_NG.shape[1], name
        )
        codes_NK = codes_NK if columns is None else codes_NK[:, columns.long()].contiguous()
    if scheme.kind == "int4":
        return _weight(scheme, pack_int4(codes_NK), scales_NG, zeros=zeros_NG, columns=columns)
    if zeros_NG is not None and not bool((zeros_NG == 128).all()):
        raise CheckpointError(f"{name} has 8 bits and zero points other than 128", hint="herd reads 8-bit weights that are symmetric")
    return _weight(scheme, (codes_NK ^ 128).view(torch.int8), scales_NG, columns=columns)


def _columns(g_idx: Tensor, groups: int, name: str) -> Tensor | None:
    """The order that makes groups contiguous, None where they are."""
    low, high = int(g_idx.min()), int(g_idx.max())
    if low < 0 or high >= groups:
        raise CheckpointError(f"{name}.g_idx reaches from {low} to {high}, there are groups 0 to {groups - 1}", hint=_HINT)
    counts = torch.bincount(g_idx.long(), minlength=groups)
    size = len(g_idx) // groups
    if not bool((counts == size).all()):
        wrong = int((counts != size).nonzero()[0])
        raise CheckpointError(f"{name}.g_idx puts {int(counts[wrong])} inputs into group {wrong}, a group has {size}", hint=_HINT)
    order = torch.argsort(g_idx.long(), stable=True)
    return None if torch.equal(order, torch.arange(len(order))) else order.int()


def _gptq(parts: Parts, scheme: MatrixScheme, shape: Shape, name: str) -> QuantWeight:
    n, k = shape
    bits, groups = scheme.bits, _num_groups(scheme, k, name)
    if k * bits % 32 or n * bits % 32:
        raise CheckpointError(f"{name} is [{n}, {k}], GPTQ packs whole words of {32 // bits}", hint=_HINT)
    words = _check(parts, "qweight", (k * bits // 32, n), (torch.int32,), name)
    packed = _check(parts, "qzeros", (groups, n * bits // 32), (torch.int32,), name)
    scales = _check(parts, "scales", (groups, n), _FLOATS, name).t()
    zeros = _fields(_plain(packed), bits).t().contiguous()
    zeros = zeros + 1 if scheme.layout == "gptq" else zeros
    codes = _fields(_plain(words.t()), bits).contiguous()
    return _ordered(scheme, codes, scales, _uniform(zeros, scheme), parts.get("g_idx"), name)


def _uniform(zeros_NG: Tensor, scheme: MatrixScheme) -> Tensor | None:
    """None where every zero point is the symmetric one."""
    return None if scheme.kind == "int4" and bool((zeros_NG == INT4_ZERO).all()) else zeros_NG


def _awq(parts: Parts, scheme: MatrixScheme, shape: Shape, name: str) -> QuantWeight:
    n, k = shape
    groups = _num_groups(scheme, k, name)
    if n % 8 or k % 2:
        raise CheckpointError(f"{name} is [{n}, {k}], AWQ packs 8 outputs to a word", hint=_HINT)
    words = _check(parts, "qweight", (k, n // 8), (torch.int32,), name)
    packed = _check(parts, "qzeros", (groups, n // 8), (torch.int32,), name)
    scales = _check(parts, "scales", (groups, n), _FLOATS, name).t()
    codes, zeros = (_awq_codes(part).t().contiguous() for part in (words, packed))
    return _ordered(scheme, codes, scales, _uniform(zeros, scheme), None, name)


def _awq_codes(words: Tensor) -> Tensor:
    nibbles = _fields(_plain(words), 4).view(len(words), -1, 8)
    out = torch.empty_like(nibbles)
    out[:, :, list(AWQ_ORDER)] = nibbles
    return out.view(len(words), -1)
