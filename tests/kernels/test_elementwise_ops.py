"""rms_norm and swiglu: the model's own lines within a rounding or two, in float32 and bfloat16."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from kinds import DTYPES, KINDS, any_of, dtypes, kinds, running, same
from torch import Tensor

from herd.base.errors import ConfigError
from herd.kernels.norm import add_rms_norm, rms_norm
from herd.kernels.swiglu import swiglu
from herd.model.norm import RMSNorm

EPS = 1e-5


def random(*shape: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def model_norm(x: Tensor, weight: Tensor) -> Tensor:
    norm = RMSNorm(x.shape[-1], EPS)
    with torch.no_grad():
        norm.weight.copy_(weight)
        return norm(x)


def close(found: Tensor, expected: Tensor, *, roundings: float) -> bool:
    """Within so many units in the last place of the dtype."""
    unit = {torch.float32: 2.0**-23, torch.bfloat16: 2.0**-7}[found.dtype]
    return bool(((found.double() - expected.double()).abs() <= roundings * unit * expected.double().abs() + 1e-30).all())


@settings(max_examples=40, deadline=None)
@given(kind=any_of(KINDS), dtype=st.sampled_from(DTYPES), m=st.integers(1, 40), d=st.integers(1, 300), seed=st.integers(0, 9))
def test_rms_norm_is_the_models(kind: str, dtype: torch.dtype, m: int, d: int, seed: int) -> None:
    x, weight = random(m, d, dtype=dtype, seed=seed) * 3, random(d, dtype=dtype, seed=seed + 50)
    with running(kind):
        y = rms_norm(x, weight, EPS)
    assert close(y, model_norm(x, weight), roundings=4 if dtype == torch.float32 else 1)


def test_rms_norm_of_bfloat16_differs_from_the_model_by_ties_alone() -> None:
    x, weight = random(200, 512, dtype=torch.bfloat16), random(512, dtype=torch.bfloat16, seed=1)
    for kind in ("scalar", "reference"):
        with running(kind):
            differing = (rms_norm(x, weight, EPS) != model_norm(x, weight)).float().mean()
        assert differing < 1e-3


@dtypes
@kinds
def test_add_rms_norm_is_an_addition_and_a_norm(kind: str, dtype: torch.dtype) -> None:
    for m, d in ((1, 70), (9, 256), (40, 600)):
        x, delta, weight = random(m, d, dtype=dtype), random(m, d, dtype=dtype, seed=1), random(d, dtype=dtype, seed=2)
        total = x + delta
        with running(kind):
            normed = add_rms_norm(x, delta, weight, EPS)
            assert same(x, total) and same(normed, rms_norm(total, weight, EPS))
            expected, row = rms_norm(total, weight, EPS), total.clone()
            assert rms_norm(row, weight, EPS, row) is row and same(row, expected)


@kinds
def test_a_float32_weight_is_cast_as_the_model_casts_it(kind: str) -> None:
    x, weight = random(3, 64, dtype=torch.bfloat16), random(64, dtype=torch.float32)
    with running(kind):
        assert same(rms_norm(x, weight, EPS), rms_norm(x, weight.bfloat16(), EPS))


@settings(max_examples=40, deadline=None)
@given(kind=any_of(KINDS), dtype=st.sampled_from(DTYPES), m=st.integers(1, 30), f=st.integers(1, 300), seed=st.integers(0, 9))
def test_swiglu_is_the_models(kind: str, dtype: torch.dtype, m: int, f: int, seed: int) -> None:
    gate, up = random(m, f, dtype=dtype, seed=seed) * 8, random(m, f, dtype=dtype, seed=seed + 50)
    with running(kind):
        y = swiglu(gate, up)
    assert close(y, F.silu(gate) * up, roundings=6 if dtype == torch.float32 else 2)


@kinds
def test_swiglu_at_the_ends_of_the_line(kind: str) -> None:
    gate = torch.tensor([[-1e30, -200.0, -88.5, -87.0, -0.0, 0.0, 87.0, 200.0, 1e30, torch.inf, torch.nan]])
    with running(kind):
        y = swiglu(gate, torch.ones_like(gate))
    exact = (gate.double() / (1 + (-gate.double()).exp())).nan_to_num(nan=torch.nan, neginf=0.0)
    assert bool(((y.double() - exact).abs()[:, 1:-2] <= 1e-6 * exact.abs()[:, 1:-2] + 1e-35).all())
    assert y[0, 0].abs() < 1 or kind != "reference"
    assert y[0, -2] == torch.inf and y[0, -1].isnan()


@kinds
def test_views_and_large_rows(kind: str) -> None:
    wide = random(4, 40000, dtype=torch.float32)
    gate, up = wide[:, :18000], wide[:, 20000:38000]
    with running(kind):
        out = torch.zeros(4, 18100)
        swiglu(gate, up, out[:, 50:18050])
        assert same(out[:, 50:18050].contiguous(), swiglu(gate.contiguous(), up.contiguous()))
        assert not out[:, :50].any() and not out[:, 18050:].any()
        weight = random(18000, dtype=torch.float32, seed=3)
        assert same(rms_norm(gate, weight, EPS), rms_norm(gate.contiguous(), weight, EPS))
        assert rms_norm(gate[:0], weight, EPS).shape == (0, 18000) and swiglu(gate[:0], up[:0]).shape == (0, 18000)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: rms_norm(x, torch.ones(7), EPS), r"weight is torch.float32 \[7\] on cpu, expected torch.float32 \[8\]"),
        (lambda x: rms_norm(x, torch.ones(8), 0.0), "eps is 0.0"),
        (lambda x: rms_norm(x, torch.ones(8), EPS, torch.empty(3, 8)), r"out is torch.float32 \[3, 8\]"),
        (lambda x: add_rms_norm(x, torch.ones(2, 7), torch.ones(8), EPS), r"delta is torch.float32 \[2, 7\]"),
        (lambda x: add_rms_norm(x, x, torch.ones(8), EPS, x), "out is x"),
        (lambda x: swiglu(x, x.bfloat16()), "up is torch.bfloat16"),
        (lambda x: swiglu(x, x, torch.empty(1, 8).expand(2, 8)), "rows of out overlap"),
    ],
)
def test_what_does_not_fit_is_refused(unchecked: None, call: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as refused:
        call(torch.ones(2, 8))  # type: ignore[operator]
    assert refused.value.hint
