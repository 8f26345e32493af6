"""Meta's quantised Llama 3.2 1B and 3B (SpinQuant, QLoRA): 4 bits in groups beside 8-bit embedding and output, read as numbers.

    blocks             weight int8 [N, K] with codes -8..7, scales [N, K / g], zeros [N, K / g] or absent: w = (code - zero) scale
    embedding, output  weight int8 [V, D], scales [V, 1]
    adapters           adaptor.A.weight [r, K], adaptor.B.weight [N, r]: w + scale B A               (params.json: lora_args)
    SpinQuant          down's inputs meet a Hadamard matrix first, w H, which is multiplied out here (quantization_args.spinquant)

Inputs of 8 bits a token, which Meta's runtimes use, are not part of the numbers. What is the matter with a shard is listed, not raised.
Shapes: N outputs, K inputs, g inputs of a group, r rank, V vocabulary, D model dim.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from herd.base.errors import ConfigError
from herd.checkpoint.json_file import Fields
from herd.checkpoint.problems import Problem, ProblemKind

CODES = torch.int8
SCHEME = "int4_weight_int8_dynamic_activation"
_TOP = ("tok_embeddings", "output")
_PARTS = (".scales", ".zeros", ".adaptor.A.weight", ".adaptor.B.weight")
_FLOATS = (torch.float32, torch.bfloat16, torch.float16)
_HINT = "params.json and the file are of different models, or damaged: download both again"


@dataclass(frozen=True, kw_only=True, slots=True)
class MetaQuant:
    """What params.json says of the bits: inputs of a group, whether down's inputs are rotated, rank and scale of adapters (0: none)."""

    group: int
    spinquant: bool = False
    lora_rank: int = 0
    lora_scale: float = 0.0


def quant_from_params(fields: Fields) -> MetaQuant | None:
    """From `quantization_args` and `lora_args`. Raises ConfigError."""
    args, lora = fields.table("quantization_args"), fields.table("lora_args")
    if args is None:
        if lora is not None:
            raise ConfigError(
                f"{fields.where} has lora_args without quantization_args: adapters on plain weights", hint="use the merged model"
            )
        return None
    scheme = args.data.get("scheme")
    if scheme != SCHEME:
        raise ConfigError(
            f"quantization_args in {fields.where} names the scheme {scheme!r}, herd reads {SCHEME}",
            hint="use the model in 16 bits, and `herd quantize`",
        )
    group = args.integer("group_size")
    rank, scale = (0, 0.0) if lora is None else (lora.integer("rank"), lora.number("scale"))
    if group < 1 or rank < 0 or (lora is not None and rank < 1):
        raise ConfigError(f"group_size {group} and LoRA rank {rank} in {fields.where}", hint="both are positive: 32 and 16 as published")
    return MetaQuant(group=group, spinquant=args.flag("spinquant", False), lora_rank=rank, lora_scale=scale)


def split_parts(shard: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """A shard's matrices and norms, and what stands beside quantised ones."""
    parts = {key: tensor for key, tensor in shard.items() if key.endswith(_PARTS)}
    return {key: tensor for key, tensor in shard.items() if key not in parts}, parts


def _base(key: str) -> str:
    return key.removesuffix(".weight")


def check_parts(shard: dict[str, Tensor], parts: dict[str, Tensor], quant: MetaQuant) -> list[Problem]:
    """What is missing, left over, of another shape, or no number."""
    problems: list[Problem] = []
    expected: dict[str, tuple[tuple[int, ...], ...]] = {}
    for key, tensor in shard.items():
        if tensor.dtype == CODES and tensor.ndim == 2:
            reason = None if _base(key) in _TOP else _reason(key, tensor, quant)
            if reason is not None:
                problems.append(reason)
            else:
                expected |= _expected(key, tensor, parts, quant)
    for name, shapes in expected.items():
        part = parts.get(name)
        if part is None:
            problems.append(_problem("missing", name, f"there is no {name}, though its matrix has quantised codes"))
        elif tuple(part.shape) not in shapes or part.dtype not in _FLOATS:
            problems.append(_problem("shape", name, f"{name} is {part.dtype} {list(part.shape)}, it must be of floats {list(shapes[0])}"))
        elif not bool(torch.isfinite(part).all()):
            problems.append(_problem("values", name, f"{name} holds numbers that are NaN or infinite"))
    if not problems:
        problems += [_problem("unexpected", name, f"{name} belongs to no quantised matrix") for name in parts if name not in expected]
    return problems


def _reason(key: str, codes_NK: Tensor, quant: MetaQuant) -> Problem | None:
    """Why the codes of a block's matrix cannot be read."""
    k = codes_NK.shape[1]
    if k % quant.group:
        return _problem("shape", key, f"{key} has rows of {k:,} inputs, which are no whole groups of {quant.group:,}")
    if bool(((codes_NK < -8) | (codes_NK > 7)).any()):
        return _problem("values", key, f"{key} holds codes outside -8 to 7")
    if quant.spinquant and key.endswith("feed_forward.w2.weight") and k & (k - 1):
        return _problem("shape", key, f"{key} has {k:,} rotated inputs, a Hadamard matrix needs a power of two")
    return None


def _expected(key: str, codes_NK: Tensor, parts: dict[str, Tensor], quant: MetaQuant) -> dict[str, tuple[tuple[int, ...], ...]]:
    """The parts of a matrix, with the shapes that they may have."""
    (n, k), base = codes_NK.shape, _base(key)
    if base in _TOP:
        return {f"{base}.scales": ((n, 1), (n,))}
    grouped = (n, k // quant.group)
    found: dict[str, tuple[tuple[int, ...], ...]] = {f"{base}.scales": (grouped,)}
    if f"{base}.zeros" in parts:
        found[f"{base}.zeros"] = (grouped,)
    if quant.lora_rank:
        found |= {f"{base}.adaptor.A.weight": ((quant.lora_rank, k),), f"{base}.adaptor.B.weight": ((n, quant.lora_rank),)}
    return found


def _problem(kind: ProblemKind, name: str, message: str) -> Problem:
    return Problem(kind=kind, name=name, message=message, hint=_HINT)


def dequantise(key: str, codes_NK: Tensor, parts: dict[str, Tensor], quant: MetaQuant) -> Tensor:
    """The numbers of a checked matrix, float32."""
    base = _base(key)
    scales = parts[f"{base}.scales"].float()
    if base in _TOP:
        return codes_NK.float() * scales.view(-1, 1)
    grouped = codes_NK.float().view(len(codes_NK), -1, quant.group)
    if f"{base}.zeros" in parts:
        grouped = grouped - parts[f"{base}.zeros"].float()[:, :, None]
    weight = (grouped * scales[:, :, None]).view(codes_NK.shape)
    if quant.lora_rank:
        added = parts[f"{base}.adaptor.B.weight"].float() @ parts[f"{base}.adaptor.A.weight"].float()
        weight = weight + quant.lora_scale * added
    return hadamard_rows(weight) if quant.spinquant and base.endswith("feed_forward.w2") else weight


def hadamard_rows(weight_NK: Tensor) -> Tensor:
    """Each row times the orthonormal Hadamard matrix of Sylvester's order; K is a power of two."""
    n, k = weight_NK.shape
    out, width = weight_NK.clone(), 1
    while width < k:
        pairs = out.view(n, k // (2 * width), 2, width)
        out = torch.stack([pairs[:, :, 0] + pairs[:, :, 1], pairs[:, :, 0] - pairs[:, :, 1]], dim=2).view(n, k)
        width *= 2
    return out / k**0.5
