"""The named schemes, and the bytes of a model under them: from the config alone, exactly what the writer writes.

    fp8       every matrix of the blocks in e4m3, a scale a row; inputs in e4m3, a scale a token
    fp8-meta  Meta's release of the 405B: the feed-forward matrices of all layers but the first and the last, inputs capped at 1200
    int8      every matrix of the blocks in 8 bits, a scale a row; inputs stay
    w8a8      the same, and inputs in 8 bits, a scale a token
    int4      every matrix of the blocks in 4 bits, a scale for each group of inputs; inputs stay
    auto      each matrix in 4 or 8 bits or as it was, by what it is worth under a budget (`budget`)

Embedding and norms stay as they are; the head too unless it is asked for. No torch is run here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from herd.base.errors import UsageError, did_you_mean
from herd.checkpoint.quant_cache import LARGEST, cache_names
from herd.checkpoint.quant_parts import written_parts
from herd.checkpoint.quant_scheme import META_BOUND, MatrixScheme, ffn_names, linear_names
from herd.model.config import ModelConfig

SCHEMES = ("fp8", "fp8-meta", "int8", "w8a8", "int4", "auto")
METHODS: Mapping[str, tuple[str, ...]] = {
    "fp8": ("rtn",),
    "fp8-meta": ("rtn",),
    "int8": ("rtn", "gptq"),
    "w8a8": ("rtn", "smooth"),
    "int4": ("rtn", "gptq", "awq"),
    "auto": ("rtn", "gptq", "awq"),
}
GROUPS = (32, 64, 128)


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """What `herd quantize` is asked for. Raises UsageError for what does not go together.

    `budget_bits` is for auto: bits a weight of the blocks' matrices, scales included. `kv_cache` stores the scales of an 8-bit cache beside
    the weights, int8 or fp8, for engines that need them; empty stores none.
    """

    scheme: str
    method: str = "rtn"
    group: int = 128
    symmetric: bool = True
    act_order: bool = True
    rotate: bool = False
    head: bool = False
    budget_bits: float | None = None
    seed: int = 0
    kv_cache: str = ""

    def __post_init__(self) -> None:
        if self.scheme not in SCHEMES:
            known = "schemes: " + ", ".join(SCHEMES)
            raise UsageError(f"there is no scheme {self.scheme!r}", hint=did_you_mean(self.scheme, SCHEMES, otherwise=known))
        if self.method not in METHODS[self.scheme]:
            allowed = " or ".join(METHODS[self.scheme])
            raise UsageError(f"the scheme {self.scheme} has no method {self.method!r}", hint=f"choose {allowed}")
        if self.group < 2 or self.group % 2:
            raise UsageError(f"a group of {self.group} inputs", hint="groups are " + ", ".join(map(str, GROUPS)))
        if self.budget_bits is not None and self.scheme != "auto":
            raise UsageError(f"a budget is for the scheme auto, not for {self.scheme}", hint="choose --scheme auto, or leave --budget out")
        if self.head and self.scheme in ("fp8-meta", "auto"):
            raise UsageError(f"the scheme {self.scheme} leaves the head as it is", hint="leave --head out")
        if self.rotate and self.scheme == "fp8-meta":
            raise UsageError("Meta's recipe has no rotation", hint="choose --scheme fp8, or leave --rotate out")

        if self.kv_cache and self.kv_cache not in LARGEST:
            raise UsageError(f"there is no cache of {self.kv_cache!r}", hint="choose int8 or fp8")
        if self.kv_cache and self.scheme == "fp8-meta":
            raise UsageError("Meta's recipe says nothing of the cache", hint="choose --scheme fp8, or leave --kv-cache out")

    @property
    def needs_calibration(self) -> bool:
        """Whether text has to run through the model."""
        return self.reads_text or self.scheme == "auto"

    @property
    def reads_text(self) -> bool:
        """Whether text runs through the blocks while they are quantised."""
        return self.method != "rtn" or bool(self.kv_cache)


def int4_scheme(group: int, *, symmetric: bool = True) -> MatrixScheme:
    """4 bits in groups."""
    return MatrixScheme(kind="int4", group=group, symmetric=symmetric, layout="packed")


INT8 = MatrixScheme(kind="int8", layout="packed")


def schemes_for(config: ModelConfig, settings: Settings) -> dict[str, MatrixScheme]:
    """The scheme of each matrix, by name without `.weight`; of auto, what all start from. Raises UsageError where one has no form."""
    if settings.scheme == "fp8-meta":
        chosen = MatrixScheme(kind="fp8", activation="fp8", bound=META_BOUND)
        names = ffn_names(config)
        if not names:
            raise UsageError(
                f"Meta's recipe leaves the first and the last layer as they are, this model has {config.num_hidden_layers}",
                hint="choose --scheme fp8",
            )
    else:
        chosen = {
            "fp8": MatrixScheme(kind="fp8", activation="fp8"),
            "int8": INT8,
            "w8a8": MatrixScheme(kind="int8", activation="int8"),
            "int4": int4_scheme(settings.group, symmetric=settings.symmetric),
            "auto": int4_scheme(settings.group, symmetric=settings.symmetric),
        }[settings.scheme]
        names = [name for name in linear_names(config) if settings.head or name != "lm_head"]
        if settings.head and "lm_head" not in names:
            raise UsageError("the head of this model is its embedding, which stays as it is", hint="leave --head out")
    shapes = config.parameter_shapes()
    for name in names:
        written_parts(chosen, _matrix(shapes, name))
    return dict.fromkeys(names, chosen)


def _matrix(shapes: Mapping[str, tuple[int, ...]], name: str) -> tuple[int, int]:
    n, k = shapes[f"{name}.weight"]
    return n, k


@dataclass(frozen=True, kw_only=True, slots=True)
class Size:
    """Bytes of all tensors, of them those of quantised matrices with scales, and bits a weight of the blocks' matrices."""

    total_bytes: int
    quantised_bytes: int
    scale_bytes: int
    num_quantised: int
    bits_per_weight: float


def matrix_bytes(scheme: MatrixScheme | None, shape: tuple[int, int], dtype_bytes: int) -> int:
    """Bytes of a matrix, as it is where there is no scheme."""
    if scheme is None:
        return math.prod(shape) * dtype_bytes
    return sum(math.prod(part) * dtype.itemsize for part, dtype in written_parts(scheme, shape).values())


def size_of(config: ModelConfig, schemes: Mapping[str, MatrixScheme], *, dtype_bytes: int = 2, kv_cache: bool = False) -> Size:
    """What a model takes on disk, headers of files apart; with the scales of a cache where it has them."""
    cache_bytes = 4 * len(cache_names(config)) if kv_cache else 0
    total = quantised = scales = num = block_bytes = block_values = 0
    shapes = config.parameter_shapes()
    linear = set(linear_names(config)) - {"lm_head"}
    for name, shape in shapes.items():
        short = name.removesuffix(".weight")
        scheme = schemes.get(short)
        if len(shape) != 2:
            total += math.prod(shape) * dtype_bytes
            continue
        size = matrix_bytes(scheme, _matrix(shapes, short), dtype_bytes)
        total += size
        if short in linear:
            block_bytes, block_values = block_bytes + size, block_values + math.prod(shape)
        if scheme is not None:
            quantised, num = quantised + size, num + math.prod(shape)
            scales += size - math.prod(shape) * scheme.bits // 8
    return Size(
        total_bytes=total + cache_bytes,
        quantised_bytes=quantised,
        scale_bytes=scales,
        num_quantised=num,
        bits_per_weight=8 * block_bytes / block_values,
    )
