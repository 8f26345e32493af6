"""Rounding by the published error vectors, and properties that hold for every matrix."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from herd.base.errors import CheckpointError
from herd.checkpoint.quant_parts import scale_dtype
from herd.checkpoint.quant_scheme import MatrixScheme
from herd.quant.gptq import gptq, inverse_factor
from herd.quant.rotate import rotation
from herd.quant.rounding import check_finite, grid_of, relative_error, round_matrix
from herd.quant.schemes import int4_scheme


@pytest.fixture(scope="module")
def gaussian() -> Tensor:
    return torch.randn(1024, 4096, generator=torch.Generator().manual_seed(0)) * 0.02


@pytest.mark.parametrize(
    ("scheme", "expected"),
    [
        (MatrixScheme(kind="fp8"), 0.0265),
        (MatrixScheme(kind="int8"), 0.0087),
    ],
    ids=["fp8", "int8"],
)
def test_published_errors_of_8_bits(gaussian: Tensor, scheme: MatrixScheme, expected: float) -> None:
    assert relative_error(gaussian, round_matrix(gaussian, scheme)) == pytest.approx(expected, abs=0.0002)


@pytest.mark.parametrize(("group", "most", "asymmetric"), [(32, 0.094, 0.081), (64, 0.099, 0.091), (128, 0.106, 0.101)])
def test_published_errors_of_4_bits_bound_ours(gaussian: Tensor, group: int, most: float, asymmetric: float) -> None:
    """The anchors are without a search: asymmetric without one is theirs, and a search is better."""
    part = gaussian[:256]
    plain = MatrixScheme(kind="int4", group=group, symmetric=False, layout="packed")
    assert relative_error(part, round_matrix(part, plain, search=False)) == pytest.approx(asymmetric, abs=0.0015)
    assert relative_error(part, round_matrix(part, plain)) < asymmetric
    assert relative_error(part, round_matrix(part, int4_scheme(group))) < most + 0.0005


SCHEMES = [
    MatrixScheme(kind="fp8"),
    MatrixScheme(kind="int8", layout="packed"),
    int4_scheme(8),
    int4_scheme(16, symmetric=False),
    MatrixScheme(kind="int4", symmetric=False, layout="packed"),
]


@settings(max_examples=40)
@given(scheme=st.sampled_from(SCHEMES), seed=st.integers(0, 2**30), exponent=st.integers(-20, 20))
def test_a_value_is_within_a_step_of_its_code_or_clipped(scheme: MatrixScheme, seed: int, exponent: int) -> None:
    weight = torch.randn(4, 16, generator=torch.Generator().manual_seed(seed)) * 2.0**exponent
    found = round_matrix(weight, scheme, search=False)
    assert found.dequantise().isfinite().all()
    assert torch.equal(found.scales, found.scales.to(scale_dtype(scheme)).float()), "scales are numbers of the file"
    error = (found.dequantise() - weight).abs().view(4, found.scales.shape[1], -1)
    largest = weight.abs().view(error.shape).amax(-1, keepdim=True)
    limit = {"fp8": 1 / 16, "int8": 1 / 250, "int4": 1 / 6.5}[scheme.kind]
    assert bool((error <= limit * largest + 2.0**-30).all())


@pytest.mark.parametrize("scheme", SCHEMES, ids=lambda scheme: scheme.label)
def test_zeros_stay_zeros(scheme: MatrixScheme) -> None:
    assert not round_matrix(torch.zeros(4, 16), scheme).dequantise().any()


def test_what_is_no_number_is_named() -> None:
    with pytest.raises(CheckpointError, match=r"layer\.w holds 2 values that are NaN or infinite"):
        check_finite("layer.w", torch.tensor([1.0, float("nan"), float("inf")]))


def correlated(rows: int, width: int) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    mix = torch.randn(width, width, generator=generator) * 0.3 + torch.eye(width)
    sizes = torch.exp(torch.randn(width, generator=generator))
    return (torch.randn(rows, width, generator=generator) @ mix) * sizes


@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize(
    "scheme",
    [int4_scheme(32), int4_scheme(64, symmetric=False), MatrixScheme(kind="int8", layout="packed")],
    ids=lambda scheme: scheme.label,
)
def test_gptq_is_better_than_rounding_where_it_counts(scheme: MatrixScheme, act_order: bool) -> None:
    inputs, weight = correlated(1000, 192), torch.randn(48, 192, generator=torch.Generator().manual_seed(6))
    moment = inputs.t() @ inputs

    def loss(found: Any) -> float:
        difference = found.dequantise() - weight
        return float(((difference @ moment) * difference).sum())

    assert loss(gptq(weight, moment, scheme, act_order=act_order)) < 0.8 * loss(round_matrix(weight, scheme, moment.diagonal()))


def test_gptq_by_its_definition() -> None:
    """One column at a time, the rest solved for anew by least squares: what the factors are to give."""
    inputs, weight = correlated(400, 16), torch.randn(3, 16, generator=torch.Generator().manual_seed(8))
    moment = (inputs.t() @ inputs).double()
    damped = moment + 0.01 * moment.diagonal().mean() * torch.eye(16, dtype=torch.float64)
    scheme = MatrixScheme(kind="int8", layout="packed")
    scales = grid_of(weight, scheme).scales.double()
    left, codes = weight.double().clone(), torch.zeros(3, 16)
    for column in range(16):
        code = (left[:, column] / scales[:, 0]).round().clamp(-127, 127)
        codes[:, column] = code
        error = left[:, column] - code * scales[:, 0]
        rest = slice(column + 1, 16)
        if column < 15:
            left[:, rest] += (torch.linalg.solve(damped[rest, rest], damped[rest, column])[:, None] * error).t()
    found = gptq(weight, moment.float(), scheme, act_order=False)
    assert (found.values.float() != codes).float().mean() < 0.05, "float32 moments may tip a tie"


def test_a_moment_without_a_factor_is_damped_until_it_has_one() -> None:
    row = torch.ones(1, 8)
    factor = inverse_factor(row.t() @ row, damping=0.0 + 1e-20)
    assert factor.isfinite().all()
    assert torch.equal(factor, factor.triu())


@pytest.mark.parametrize("size", [1, 2, 64, 48, 96, 36])
def test_rotations_are_orthogonal(size: int) -> None:
    matrix = rotation(size, seed=3)
    assert torch.allclose(matrix @ matrix.t(), torch.eye(size), atol=1e-5)
