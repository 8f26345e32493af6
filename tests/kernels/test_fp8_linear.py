"""Products over e4m3 in C: every code exact, inputs FBGEMM's, the oracle's sums within a bound, the law to the bit."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kinds import C_KINDS, DTYPES, QUANTISED_KINDS, any_of, c_kinds, c_library, dtypes, running, same
from torch import Tensor

from herd.base.errors import ConfigError
from herd.kernels import dispatch
from herd.kernels.linear import PackedLinear, linear, linear_swiglu
from herd.kernels.packed_quant import MOST_FP8_GROUP, common_format, format_of, pack_quantised, pack_quantised_gated, reference
from herd.kernels.quantised import FP8_DTYPE, QuantWeight, fp8_rows, matmul
from herd.kernels.swiglu import swiglu
from quant_models import Kind, named, quant_weight  # pyright: ignore[reportMissingImports]

pytestmark = pytest.mark.skipif(dispatch.choice().library is None, reason="the C kernels do not run here")
UNIT = 2.0**-24


PLAIN, CAPPED = Kind(bits=8, floats=True, activation="fp8"), Kind(bits=8, floats=True, activation="fp8", bound=1200.0)
WEIGHTS_ALONE = Kind(bits=8, floats=True)
FORMS = [PLAIN, CAPPED, WEIGHTS_ALONE, replace(PLAIN, group=32), replace(WEIGHTS_ALONE, group=128)]
forms = pytest.mark.parametrize("form", FORMS, ids=named)


def random(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def fp8_weight(n: int, k: int, form: Kind, *, seed: int = 0) -> QuantWeight:
    """Normal numbers in e4m3; a fifth of them so small that their codes have the exponent 0."""
    numbers = random(n, k, seed=seed)
    numbers[:, ::5] *= 2.0**-14
    return quant_weight(numbers, form)


def packed_of(weight: QuantWeight, dtype: torch.dtype) -> PackedLinear:
    return pack_quantised([weight], dtype)


def exact(x: Tensor, weight: QuantWeight) -> tuple[Tensor, Tensor]:
    """The product in float64, and how far a float32 sum may be from it: each of its steps rounds once."""
    rows, scales = (x.float(), torch.ones(len(x))) if weight.activation == "none" else fp8_rows(x, weight.bound)
    numbers, matrix = rows.double(), weight.dequantise().double()
    sums = numbers.abs() @ matrix.abs().t() * scales[:, None]
    return numbers @ matrix.t() * scales[:, None], sums * (weight.num_inputs + weight.scales.shape[1] + 4) * UNIT


def agrees(y: Tensor, x: Tensor, weight: QuantWeight) -> bool:
    expected, error = exact(x, weight)
    error = error + (expected.abs() * 2.0**-8 if y.dtype == torch.bfloat16 else 0.0) + 1e-30
    return bool(((y.double() - expected).abs() <= error).all())


@pytest.mark.parametrize("level", QUANTISED_KINDS)
def test_all_codes_are_exact(level: str) -> None:
    """Each code by its own output, met by a one among zeros at every place of a group of four: the product, and the row read back."""
    codes = torch.arange(256, dtype=torch.uint8).view(FP8_DTYPE)
    for place in range(8):
        values = torch.zeros(256, 8, dtype=torch.uint8)
        values[:, place] = torch.arange(256)
        weight = QuantWeight(kind="fp8", values=values.view(FP8_DTYPE), scales=torch.ones(256, 1))
        x = torch.zeros(3, 8)
        x[1, place], x[2, place] = 1.0, -2.0
        for dtype in DTYPES:
            with running(level):
                packed = packed_of(weight, dtype)
                y, row = linear(x.to(dtype), packed), linear(x[1:2].to(dtype), packed)
            numbers = codes.float()
            nan = numbers.isnan()
            assert torch.equal(y[1, ~nan].float(), numbers[~nan]) and torch.equal(y[2, ~nan].float(), -2 * numbers[~nan])
            assert torch.equal(row[0, ~nan].float(), numbers[~nan])
            assert y[:, nan].isnan().all() and row[:, nan].isnan().all() and int(nan.sum()) == 2
            back = packed.weight().float()
            assert torch.equal(back[~nan], weight.dequantise()[~nan]) and back[nan, place].isnan().all()


@settings(max_examples=60)
@given(
    level=any_of(C_KINDS),
    form=st.sampled_from(FORMS),
    dtype=st.sampled_from(DTYPES),
    m=st.integers(1, 40),
    n=st.integers(1, 100),
    groups=st.one_of(st.integers(1, 9), st.integers(17, 20)),
)
def test_it_is_the_exact_product_within_the_bound(level: str, form: Kind, dtype: torch.dtype, m: int, n: int, groups: int) -> None:
    k = groups * (form.group or 58)
    x, weight = random(m, k, dtype=dtype, seed=m), fp8_weight(n, k, form, seed=n)
    with running(level):
        packed = packed_of(weight, dtype)
        y, row = linear(x, packed), linear(x[m // 2 : m // 2 + 1], packed)
    assert y.dtype == dtype and agrees(y, x, weight)
    assert same(row, y[m // 2 : m // 2 + 1])


@forms
def test_the_oracle_is_that_of_the_interchange(form: Kind) -> None:
    x, weight = random(9, 640), fp8_weight(20, 640, form)
    assert torch.equal(reference(x, weight), matmul(x, weight))
    assert agrees(matmul(x, weight), x, weight)


@c_kinds
@pytest.mark.parametrize("bound", [None, 1200.0])
def test_inputs_become_fbgemms_bit_for_bit(kind: str, bound: float | None) -> None:
    """By an identity the outputs are the inputs as they were made: those that a scale does not divide, halves of a step, the smallest."""
    k = 256
    x = random(40, k)
    x[0] = 0.0
    x[1] = torch.linspace(-1e-42, 1e-42, k)
    x[2] *= 5000.0
    x[3] = torch.arange(k) / 512.0
    x[4, 0] = 448.0
    x[4, 1:] = torch.cat([torch.arange(1, 101) * 2.0**-10, torch.arange(1, k - 100) * 0.03125])
    x[5] = 3e38
    x[6] *= 1e-30
    x[7:20] = random(13, k, seed=5) * torch.logspace(-6, 4, 13)[:, None]
    if bound is not None:
        x[8, 3], x[8, 4] = torch.inf, -torch.inf
    weight = QuantWeight(kind="fp8", values=torch.eye(k).to(FP8_DTYPE), scales=torch.ones(k, 1), activation="fp8", bound=bound)
    codes, scales = fp8_rows(x, bound)
    with running(kind):
        y = linear(x, packed_of(weight, torch.float32))
        one = linear(x[7:8], packed_of(weight, torch.float32))
    assert torch.equal(y, codes.float() * scales[:, None])
    assert same(one, y[7:8])


@c_kinds
def test_what_is_not_finite_spoils_its_own_row_alone(kind: str) -> None:
    x, weight = random(6, 96), fp8_weight(40, 96, PLAIN)
    x[1, 5], x[2, 7] = torch.nan, torch.inf
    with running(kind):
        y = linear(x, packed_of(weight, torch.float32))
        capped = linear(x, packed_of(replace(weight, bound=1200.0), torch.float32))
        alone = linear(x[3:4], packed_of(weight, torch.float32))
    assert y[1].isnan().all() and y[2].isnan().all() and y[[0, 3, 4, 5]].isfinite().all()
    assert capped[1].isnan().all() and capped[[0, 2, 3, 4, 5]].isfinite().all()
    assert same(alone, y[3:4])


@forms
@dtypes
def test_rows_and_epilogues(form: Kind, dtype: torch.dtype) -> None:
    x = random(19, 256, dtype=dtype)
    gate, up = fp8_weight(50, 256, form), fp8_weight(50, 256, form, seed=1)
    stacked = pack_quantised([gate, up], dtype)
    assert same(stacked.weight(), torch.cat([gate.dequantise(), up.dequantise()]).to(dtype))
    ids = torch.tensor([[44, 0], [99, 51]])
    assert same(stacked.rows(ids), stacked.weight()[ids])
    parts = [linear(x, packed_of(weight, dtype)) for weight in (gate, up)]
    assert same(linear(x, stacked), torch.cat(parts, dim=1))
    both = pack_quantised_gated(gate, up, dtype)
    assert same(linear_swiglu(x, both), swiglu(*parts))
    assert same(linear_swiglu(x[3:4], both), swiglu(*parts)[3:4])
    residual = random(19, 50, dtype=dtype, seed=2)
    assert same(linear(x, packed_of(gate, dtype), residual=residual), residual + parts[0])


@c_kinds
@forms
@dtypes
def test_a_row_is_the_same_among_any_others_and_with_any_threads(kind: str, form: Kind, dtype: torch.dtype) -> None:
    k = 1152 if form.group else 1100
    x, weight = random(270, k, dtype=dtype), fp8_weight(100, k, form)
    results = []
    for threads in (1, 3):
        with running(kind, threads=threads):
            packed = packed_of(weight, dtype)
            whole = linear(x, packed)
            for begin, count in ((0, 1), (7, 2), (100, 13), (64, 64), (3, 31), (200, 17)):
                assert same(linear(x[begin : begin + count], packed), whole[begin : begin + count]), (begin, count)
            results.append(whole)
    assert same(*results)


@forms
@dtypes
def test_levels_with_fused_multiply_add_agree_bit_for_bit(form: Kind, dtype: torch.dtype) -> None:
    found = [level for level in c_library().levels if level not in ("scalar", "neon")]
    x, weight = random(40, 640, dtype=dtype), fp8_weight(70, 640, form)
    results = []
    for level in found:
        with running(level):
            results.append(linear(x, packed_of(weight, dtype)))
    assert all(same(results[0], other) for other in results[1:])


def test_columns_are_taken_from_where_they_belong() -> None:
    weight = fp8_weight(40, 64, PLAIN)
    columns = torch.randperm(64, generator=torch.Generator().manual_seed(3))
    shuffled = replace(weight, columns=columns.int())
    x = random(5, 64)
    packed = packed_of(shuffled, torch.float32)
    assert same(linear(x, packed), linear(x[:, columns].contiguous(), packed_of(weight, torch.float32)))
    assert same(packed.weight(), shuffled.dequantise())


def test_what_has_no_kernel_is_refused() -> None:
    wide, odd = fp8_weight(4, 4 * MOST_FP8_GROUP, replace(PLAIN, group=2 * MOST_FP8_GROUP)), fp8_weight(4, 60, replace(PLAIN, group=12))
    assert format_of(wide) is None and format_of(odd) is None
    capped, plain = fp8_weight(8, 64, CAPPED), fp8_weight(8, 64, PLAIN)
    assert common_format([capped, capped]) is not None and common_format([capped, plain]) is None
    with pytest.raises(ConfigError, match="no C kernel takes these matrices as one: fp8 in groups of 64 over fp8 inputs"):
        pack_quantised([capped, plain], torch.float32)
