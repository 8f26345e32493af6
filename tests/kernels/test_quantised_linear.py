"""Products of quantised matrices in C: the oracle's within a bound, the law to the bit, whatever the numbers are like."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kinds import DTYPES, QUANTISED_KINDS, any_of, c_library, dtypes, running, same
from torch import Tensor

from herd.base.errors import ConfigError
from herd.kernels import dispatch
from herd.kernels.linear import linear, linear_swiglu
from herd.kernels.packed_quant import common_format, format_of, pack_quantised, pack_quantised_gated, reference
from herd.kernels.quantised import QuantWeight, matmul
from herd.kernels.swiglu import swiglu
from quant_models import QUANT_KINDS, Kind, named, quant_weight  # pyright: ignore[reportMissingImports]

pytestmark = pytest.mark.skipif(dispatch.choice().library is None, reason="the C kernels do not run here")
levels = pytest.mark.parametrize("level", QUANTISED_KINDS)
quant_kinds = pytest.mark.parametrize("kind", QUANT_KINDS, ids=named)
UNIT = 2.0**-24


def random(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def bound(x: Tensor, weight: QuantWeight) -> Tensor:
    """How far two float32 sums of the same segments may lie apart: each takes a few roundings, and bfloat16 rounds at the end."""
    sizes = (x.float().abs() * 1.01 + x.float().abs().amax(1, keepdim=True) / 127) @ weight.dequantise().abs().t()
    return sizes * (2 * (weight.num_inputs // 16 + 4) * UNIT) + 1e-30


def agrees(y: Tensor, expected: Tensor, x: Tensor, weight: QuantWeight) -> bool:
    error = bound(x, weight) + (expected.float().abs() * 2.0**-7 if y.dtype == torch.bfloat16 else 0.0)
    return bool(((y.float() - expected.float()).abs() <= error).all())


@settings(max_examples=60)
@given(
    level=any_of(QUANTISED_KINDS),
    kind=st.sampled_from(QUANT_KINDS),
    dtype=st.sampled_from(DTYPES),
    m=st.integers(1, 70),
    n=st.integers(1, 100),
    groups=st.one_of(st.integers(1, 9), st.integers(31, 36), st.integers(63, 70)),
)
def test_it_is_the_oracle_within_the_bound(level: str, kind: Kind, dtype: torch.dtype, m: int, n: int, groups: int) -> None:
    k = groups * (kind.group or 26)
    x, weight = random(m, k, dtype=dtype, seed=m), quant_weight(random(n, k, seed=n), kind)
    with running(level):
        packed = pack_quantised([weight], dtype)
        y, row = linear(x, packed), linear(x[m // 2 : m // 2 + 1], packed)
    assert y.dtype == dtype and agrees(y, reference(x, weight), x, weight)
    assert same(row, y[m // 2 : m // 2 + 1])


@quant_kinds
def test_the_oracle_is_that_of_the_interchange_where_inputs_have_a_scale_a_row(kind: Kind) -> None:
    x, weight = random(9, 160), quant_weight(random(20, 160), kind)
    if kind.activation == "int8":
        assert torch.allclose(reference(x, weight), matmul(x, weight), rtol=1e-5, atol=1e-5)
    else:
        exact = matmul(x, weight)
        assert float((reference(x, weight) - exact).norm() / exact.norm()) < 0.008


@quant_kinds
@dtypes
def test_rows_are_the_matrix(kind: Kind, dtype: torch.dtype) -> None:
    weight, other = quant_weight(random(45, 96), kind), quant_weight(random(7, 96, seed=1), kind)
    packed = pack_quantised([weight, other], dtype)
    assert same(packed.weight(), torch.cat([weight.dequantise(), other.dequantise()]).to(dtype))
    ids = torch.tensor([[44, 0], [51, 45]])
    assert same(packed.rows(ids), packed.weight()[ids])


@quant_kinds
@dtypes
def test_epilogues_are_their_parts(kind: Kind, dtype: torch.dtype) -> None:
    x = random(19, 192, dtype=dtype)
    gate, up = quant_weight(random(50, 192), kind), quant_weight(random(50, 192, seed=1), kind)
    parts = [linear(x, pack_quantised([weight], dtype)) for weight in (gate, up)]
    both = pack_quantised_gated(gate, up, dtype)
    assert same(linear_swiglu(x, both), swiglu(*parts))
    assert same(linear_swiglu(x[3:4], both), swiglu(*parts)[3:4])
    assert same(both.weight(), torch.cat([gate.dequantise(), up.dequantise()]).to(dtype))
    residual = random(19, 50, dtype=dtype, seed=2)
    packed = pack_quantised([gate], dtype)
    assert same(linear(x, packed, residual=residual), residual + parts[0])
    wide = torch.empty(19, 50)
    assert same(linear(x, packed, wide), parts[0].float())


@levels
@quant_kinds
def test_a_row_is_the_same_among_any_others_and_with_any_threads(level: str, kind: Kind) -> None:
    k = 2080 if kind.group else 2056
    x, weight = random(270, k, dtype=torch.bfloat16), quant_weight(random(300, k), kind)
    results = []
    for threads in (1, 2, 5):
        with running(level, threads=threads):
            packed = pack_quantised([weight], torch.bfloat16)
            whole = linear(x, packed)
            for begin, count in ((0, 1), (7, 2), (100, 13), (64, 64), (3, 31), (200, 17)):
                assert same(linear(x[begin : begin + count], packed), whole[begin : begin + count]), (begin, count)
            results.append(whole)
    assert all(same(results[0], other) for other in results[1:])


@quant_kinds
def test_levels_with_fused_multiply_add_agree_bit_for_bit(kind: Kind) -> None:
    found = [level for level in c_library().levels if level not in ("scalar", "neon")]
    x, weight = random(40, 640, dtype=torch.bfloat16), quant_weight(random(70, 640), kind)
    results = []
    for level in found:
        with running(level):
            results.append(linear(x, pack_quantised([weight], torch.bfloat16)))
    assert all(same(results[0], other) for other in results[1:])


@levels
@quant_kinds
def test_numbers_at_the_edges(level: str, kind: Kind) -> None:
    """Zeros, subnormals, the largest and infinities: as the oracle has them, and no row spoils another."""
    x = random(24, 64)
    x[0] = 0.0
    x[1] = torch.linspace(-1e-42, 1e-42, 64)
    x[2] = 3e38
    x[3, 5] = torch.inf
    x[4, 9] = torch.nan
    x[5, 1:] = 0.0
    x[6] = torch.tensor([127.0, 126.5, 125.5, -0.5] * 16)
    x[7, ::2] = -x[7, ::2].abs() * 1e30
    weight = quant_weight(random(40, 64), kind)
    with running(level):
        y = linear(x, pack_quantised([weight], torch.float32))
    expected = reference(x, weight)
    assert bool((y[0] == 0).all()) and y[3].isnan().all() and y[4].isnan().all()
    finite = [row for row in range(24) if row not in (1, 2, 3, 4)]
    assert agrees(y[finite], expected[finite], x[finite], weight)
    assert torch.allclose(y[1], expected[1], atol=1e-40)
    assert bool((y[2].isfinite() == expected[2].isfinite()).all())


@levels
def test_the_largest_sums_do_not_overflow(level: str) -> None:
    """A row of extremes over the longest input of the family: integers of 16384 * 127 * 255."""
    k = 16384
    values = torch.full((33, k), 127, dtype=torch.int8)
    values[1] = -128
    weight = QuantWeight(kind="int8", values=values, scales=torch.ones(33, 1), activation="int8")
    x = torch.ones(14, k)
    x[1] = -1.0
    with running(level):
        y = linear(x, pack_quantised([weight], torch.float32))
    assert torch.allclose(y, x.double().matmul(values.double().t()).float(), rtol=1e-6)


def test_what_has_no_kernel_is_refused() -> None:
    odd = QuantWeight(kind="int8", values=torch.zeros(4, 60, dtype=torch.int8), scales=torch.ones(4, 5))
    assert format_of(odd) is None
    four, eight = quant_weight(random(8, 64), Kind(bits=4, group=32)), quant_weight(random(8, 64), Kind(bits=8))
    assert common_format([four, eight]) is None
    shuffled = quant_weight(random(8, 64), Kind(bits=4, group=32, columns=True))
    assert common_format([four, shuffled]) is None
    with pytest.raises(ConfigError, match="no C kernel takes these matrices as one: int4 in groups of 32 over none inputs, int8") as caught:
        pack_quantised([four, eight], torch.float32)
    assert "packed_quant" in (caught.value.hint or "")


def test_scales_take_the_narrowest_dtype_that_holds_them() -> None:
    half, brain, full = (
        quant_weight(random(8, 64), Kind(bits=4, group=32, scales=d)) for d in (torch.float16, torch.bfloat16, torch.float32)
    )
    found = [format_of(weight) for weight in (half, full)]
    assert [one.scale_dtype for one in found if one] == ["float16", "float32"]
    both = common_format([half, full])
    assert both is not None and both.scale_dtype == "float32"
    wide = QuantWeight(kind="int4", values=brain.values, scales=brain.scales.clamp(max=0) + 2.0**-60, zeros=brain.zeros)
    one = format_of(wide)
    assert one is not None and one.scale_dtype == "bfloat16"
