"""A quantised matrix as every format, scheme and kernel of herd hands it on, and the torch oracle of its products.

    w[n, columns[k]] = scales[n, k // group] * (values[n, k] - zeros[n, k // group])

    kind   values                                                    zero point
    int8   int8 [N, K]                                               0
    int4   uint8 [N, K/2]: codes 0..15, even k in the low nibble     8, or `zeros`
    fp8    float8_e4m3fn [N, K]                                      0

Scales are float32 [N, K/group]; one scale a row is a group of K. `columns` is the order in which GPTQ took the inputs (act-order): stored
column k belongs to input columns[k], so that a group is always contiguous. Without it column k is input k.

`activation` says what the inputs become before the product, row by row as they come (dynamic, one scale a token):
    none   they stay
    int8   scale = max|x| / 127, q = round half to even(x / scale);           y = sx * sum over groups, ascending, of sw * (integer sum)
    fp8    m = min(max|x|, bound), scale = max(m/448, 1/(448*512)), q = e4m3fn(x / scale), saturating;        y = (sum of q w) * sx * sw
Sums are float32 (those of int8 exact in a group, then rounded to float32), y rounds to the dtype of x.
FBGEMM's row-wise quantiser; Llama 3 report (arXiv 2407.21783), section 6.2. Shapes: M rows, K inputs, N outputs, G groups.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Float, Int8, Shaped, UInt8
from torch import Tensor

from herd.kernels import dispatch, tiles
from herd.kernels.checks import require

Kind = Literal["int8", "int4", "fp8"]
Activation = Literal["none", "int8", "fp8"]

FP8_DTYPE = torch.float8_e4m3fn
FP8_MAX = 448.0
FP8_MIN_SCALE = 1.0 / (448.0 * 512.0)
INT4_ZERO = 8

_VALUE_DTYPES = {"int8": torch.int8, "int4": torch.uint8, "fp8": FP8_DTYPE}
_ACTIVATIONS: dict[str, tuple[str, ...]] = {"int8": ("none", "int8"), "int4": ("none", "int8"), "fp8": ("none", "fp8")}
BITS = {"int8": 8, "int4": 4, "fp8": 8}


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class QuantWeight:
    """One matrix. Raises ConfigError where its parts do not belong together."""

    kind: Kind
    values: Tensor
    scales: Tensor
    zeros: Tensor | None = None
    columns: Tensor | None = None
    activation: Activation = "none"
    bound: float | None = None

    def __post_init__(self) -> None:
        hint = "see herd.kernels.quantised for the layout"
        require(self.kind in _VALUE_DTYPES, f"kind is {self.kind!r}", "kinds: int8, int4, fp8")
        wanted = _VALUE_DTYPES[self.kind]
        found = f"{self.values.dtype} {list(self.values.shape)}"
        require(self.values.dim() == 2 and self.values.dtype == wanted, f"{self.kind} values are {found}, expected {wanted} [N, K]", hint)
        shape, n, k = list(self.scales.shape), self.num_outputs, self.num_inputs
        sound = self.scales.dim() == 2 and self.scales.dtype == torch.float32 and shape[0] == n and shape[1] >= 1 and k % shape[1] == 0
        require(sound, f"scales are {self.scales.dtype} {shape} for a [{n}, {k}] matrix, expected float32 [{n}, K/group]", hint)
        if self.zeros is not None:
            good = self.kind == "int4" and self.zeros.dtype == torch.uint8 and self.zeros.shape == self.scales.shape
            require(good, f"zeros are {self.zeros.dtype} {list(self.zeros.shape)} for {self.kind} with scales {shape}", hint)
        if self.columns is not None:
            good = self.columns.dtype == torch.int32 and self.columns.shape == (k,)
            require(good, f"columns are {self.columns.dtype} {list(self.columns.shape)}, expected int32 [{k}]", hint)
        allowed = _ACTIVATIONS[self.kind]
        require(self.activation in allowed, f"{self.kind} weights cannot meet {self.activation} inputs", "choose " + " or ".join(allowed))
        if self.bound is not None:
            require(self.activation == "fp8" and self.bound > 0, f"a bound of {self.bound} on {self.activation} inputs", hint)

    @property
    def num_outputs(self) -> int:
        """N."""
        return self.values.shape[0]

    @property
    def num_inputs(self) -> int:
        """K."""
        return self.values.shape[1] * (2 if self.kind == "int4" else 1)

    @property
    def group(self) -> int:
        """Inputs that share a scale."""
        return self.num_inputs // self.scales.shape[1]

    @property
    def size_bytes(self) -> int:
        """Bytes of all parts as they lie in memory."""
        return sum(part.nbytes for part in (self.values, self.scales, self.zeros, self.columns) if part is not None)

    def codes(self) -> Shaped[Tensor, "N K"]:
        """Stored values less their zero points, float32, in the stored order of columns."""
        if self.kind != "int4":
            return self.values.float()
        codes = unpack_int4(self.values).float()
        if self.zeros is None:
            return codes - INT4_ZERO
        return (codes.view(*self.scales.shape, self.group) - self.zeros.float()[:, :, None]).view(codes.shape)

    def dequantise(self) -> Float[Tensor, "N K"]:
        """The matrix in float32, its columns in the order of the inputs."""
        stored = (self.codes().view(*self.scales.shape, self.group) * self.scales[:, :, None]).view(self.num_outputs, self.num_inputs)
        if self.columns is None:
            return stored
        out = torch.empty_like(stored)
        out[:, self.columns.long()] = stored
        return out

    def rows(self, count: int | None) -> QuantWeight:
        """The first `count` outputs; None: all of them."""
        if count is None or count >= self.num_outputs:
            return self
        zeros = None if self.zeros is None else self.zeros[:count]
        return replace(self, values=self.values[:count], scales=self.scales[:count], zeros=zeros)

    def to(self, device: torch.device | str) -> QuantWeight:
        """The same matrix on another device."""
        moved = {
            name: None if (part := getattr(self, name)) is None else part.to(device) for name in ("values", "scales", "zeros", "columns")
        }
        return replace(self, **moved)


def pack_int4(codes: UInt8[Tensor, "N K"]) -> UInt8[Tensor, "N K2"]:
    """Codes 0..15, two to a byte, even columns in the low nibble."""
    require(codes.shape[1] % 2 == 0, f"{codes.shape[1]} columns of 4 bits fill no whole bytes", "the number of inputs must be even")
    return codes[:, 0::2] | (codes[:, 1::2] << 4)


def unpack_int4(packed: UInt8[Tensor, "N K2"]) -> UInt8[Tensor, "N K"]:
    """What `pack_int4` packed."""
    return torch.stack([packed & 15, packed >> 4], dim=-1).view(packed.shape[0], -1)


def fp8_rows(x_MK: Float[Tensor, "M K"], bound: float | None = None) -> tuple[Tensor, Float[Tensor, "M"]]:
    """Rows in float8_e4m3fn and their scales, by FBGEMM's definition. `bound` caps the row's maximum, what is larger saturates."""
    wide = x_MK.float()
    largest = wide.abs().amax(dim=1)
    if bound is not None:
        largest = largest.clamp(max=bound)
    # Tensors, as GPUs replace the division by a number with a product by its reciprocal, which rounds differently.
    scales = (largest / torch.full_like(largest, FP8_MAX)).clamp(min=FP8_MIN_SCALE)
    return (wide / scales[:, None]).clamp(-FP8_MAX, FP8_MAX).to(FP8_DTYPE), scales


def int8_rows(x_MK: Float[Tensor, "M K"]) -> tuple[Int8[Tensor, "M K"], Float[Tensor, "M"]]:
    """Rows in int8 and their scales; a row of zeros has the scale 0, one that is not finite the scale NaN."""
    wide = x_MK.float()
    largest = wide.abs().amax(dim=1)
    scales = largest / torch.full_like(largest, 127.0)
    scales = torch.where(scales.isfinite(), scales, torch.nan)
    numbers = torch.where(scales[:, None] > 0, wide / scales[:, None], 0.0).round().clamp(-127, 127)
    return numbers.to(torch.int8), scales


def matmul(x: Float[Tensor, "*batch K"], weight: QuantWeight) -> Float[Tensor, "*batch N"]:
    """The product x w^T with the inputs quantised as the weight says. The oracle of every kernel; differentiable in x where they stay."""
    rows = x.reshape(-1, x.shape[-1])
    require(
        rows.shape[1] == weight.num_inputs, f"x has {rows.shape[1]} columns, the matrix {weight.num_inputs}", "check the model's config"
    )
    if weight.activation == "none":
        product = _in_tiles(rows.float(), weight.dequantise())
    else:
        if weight.columns is not None:
            rows = rows[:, weight.columns.long()]
        product = _int8_product(rows, weight) if weight.activation == "int8" else _fp8_product(rows, weight)
    return product.to(x.dtype).view(*x.shape[:-1], weight.num_outputs)


def _in_tiles(rows_MK: Tensor, weight_NK: Tensor) -> Tensor:
    """A float32 product: in the references' fixed order where that is asked for, else in torch's."""
    if not dispatch.fixed_order():
        return rows_MK @ weight_NK.t()
    aligned = tiles.align(weight_NK, 2)
    padded = torch.nn.functional.pad(rows_MK, (0, aligned.shape[1] - weight_NK.shape[1]))
    return tiles.by_rows(lambda tile: tile @ aligned.t(), padded)[:, : len(weight_NK)]


def _int8_product(rows_MK: Tensor, weight: QuantWeight) -> Tensor:
    numbers, scales = int8_rows(rows_MK)
    wide, codes, group = numbers.double(), weight.codes().double(), weight.group
    total = torch.zeros(len(rows_MK), weight.num_outputs, device=rows_MK.device)
    for number, begin in enumerate(range(0, weight.num_inputs, group)):
        # Integers below 2^53 in float64: the sum is exact in any order.
        part = wide[:, begin : begin + group] @ codes[:, begin : begin + group].t()
        total += part.float() * weight.scales[:, number]
    return total * scales[:, None]


def _fp8_product(rows_MK: Tensor, weight: QuantWeight) -> Tensor:
    codes, scales = fp8_rows(rows_MK, weight.bound)
    if weight.group == weight.num_inputs:
        return _in_tiles(codes.float(), weight.codes()) * scales[:, None] * weight.scales[:, 0]
    stored = (weight.codes().view(*weight.scales.shape, weight.group) * weight.scales[:, :, None]).view(weight.num_outputs, -1)
    return _in_tiles(codes.float(), stored) * scales[:, None]
