"""linear: within a bound of the exact product, every fusion equal to its parts, every wrong argument refused."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from kinds import DTYPES, KINDS, any_of, dtypes, kinds, running, same
from torch import Tensor

from herd.base.errors import ConfigError
from herd.kernels.linear import linear, linear_swiglu, pack_gate_up, pack_linear
from herd.kernels.swiglu import swiglu

UNIT = 2.0**-24


def random(*shape: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def bound(x: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    """The product in float64, and how far a float32 sum in any order, rounded to the dtype, may lie from it: 2 K u sum |x w|."""
    exact = x.double() @ w.double().T
    error = 2 * x.shape[1] * UNIT * (x.double().abs() @ w.double().abs().T) + 2.0**-126
    return exact, error + exact.abs() * (2.0**-8 if x.dtype == torch.bfloat16 else 0.0)


@settings(max_examples=60, deadline=None)
@given(
    kind=any_of(KINDS),
    dtype=st.sampled_from(DTYPES),
    m=st.integers(1, 70),
    n=st.integers(1, 140),
    k=st.one_of(st.integers(1, 80), st.integers(250, 262), st.integers(505, 530)),
    seed=st.integers(0, 9),
)
def test_it_is_the_product_within_the_bound(kind: str, dtype: torch.dtype, m: int, n: int, k: int, seed: int) -> None:
    x, w = random(m, k, dtype=dtype, seed=seed), random(n, k, dtype=dtype, seed=seed + 100)
    with running(kind):
        packed = pack_linear(w)
        assert same(packed.weight(), w)
        y = linear(x, packed)
    exact, error = bound(x, w)
    assert y.dtype == dtype and bool(((y.double() - exact).abs() <= error).all())


@dtypes
def test_float32_loses_no_more_than_the_reference_over_a_long_sum(dtype: torch.dtype) -> None:
    x, w = random(4, 8192, dtype=dtype), random(64, 8192, dtype=dtype, seed=1)
    exact = x.double() @ w.double().T

    def error(kind: str) -> float:
        with running(kind):
            return float((linear(x, pack_linear(w)).double() - exact).abs().max())

    assert error("scalar") <= 2 * error("reference")


@pytest.mark.parametrize("width", [(64, 32, 32), (5, 3, 3), (40, 1, 70)])
@dtypes
@kinds
def test_stacked_weights_are_one_product(kind: str, dtype: torch.dtype, width: tuple[int, ...]) -> None:
    weights = [random(n, 96, dtype=dtype, seed=n) for n in width]
    x = random(5, 96, dtype=dtype)
    with running(kind):
        together = linear(x, pack_linear(weights))
        apart = [linear(x, pack_linear(weight)) for weight in weights]
        assert same(pack_linear(weights).weight(), torch.cat(weights))
    assert all(same(part, one) for part, one in zip(together.split(width, dim=1), apart, strict=True))


@pytest.mark.parametrize("m", [1, 3, 20])
@pytest.mark.parametrize("f", [64, 96, 33])
@dtypes
@kinds
def test_fusions_are_their_parts(kind: str, dtype: torch.dtype, f: int, m: int) -> None:
    gate, up, w = random(f, 70, dtype=dtype, seed=1), random(f, 70, dtype=dtype, seed=2), random(f, 70, dtype=dtype, seed=3)
    x, residual = random(m, 70, dtype=dtype), random(m, f, dtype=dtype, seed=4)
    with running(kind):
        pair, packed = pack_gate_up(gate, up), pack_linear(w)
        assert same(pair.weight(), torch.cat([gate, up]))
        assert same(linear_swiglu(x, pair), swiglu(linear(x, pack_linear(gate)), linear(x, pack_linear(up))))
        plain = linear(x, packed)
        assert same(linear(x, packed, residual=residual), residual + plain)
        wide = torch.empty(m, f)
        assert same(linear(x, packed, wide), plain.float())
        stream = residual.clone()
        assert linear(x, packed, stream, residual=stream) is stream
        assert same(stream, residual + plain)


@dtypes
@kinds
def test_views_are_read_and_written_in_place(kind: str, dtype: torch.dtype) -> None:
    big_w, big_x, big_out = random(50, 100, dtype=dtype), random(9, 90, dtype=dtype, seed=1), torch.zeros(9, 80, dtype=dtype)
    w, x = big_w[3:40, 5:70], big_x[:, 7:72]
    with running(kind):
        expected = linear(x.contiguous(), pack_linear(w.contiguous()))
        linear(x, pack_linear(w), big_out[:, 4:41])
        assert same(big_out[:, 4:41].contiguous(), expected)
        assert not big_out[:, :4].any() and not big_out[:, 41:].any()
        assert same(linear(x.contiguous().view(3, 3, 65), pack_linear(w)), expected.view(3, 3, 37))
        assert same(linear(x[0], pack_linear(w)), expected[0])
        assert same(linear(x, pack_linear(w.T.contiguous().T)), expected)
        assert linear(x[:0], pack_linear(w)).shape == (0, 37)


@dtypes
@kinds
def test_rows_of_a_tied_embedding(kind: str, dtype: torch.dtype) -> None:
    w = random(75, 33, dtype=dtype)
    with running(kind):
        packed = pack_linear(w)
        ids = torch.tensor([[74, 0, 31], [32, 5, 5]])
        assert same(packed.rows(ids), w[ids])
        assert packed.rows(ids[:0]).shape == (0, 3, 33)
        with pytest.raises(ConfigError, match="reach from 0 to 75, the matrix has rows 0 to 74"):
            packed.rows(torch.tensor([0, 75]))
        with pytest.raises(ConfigError, match="no rows to look up"):
            pack_gate_up(w, w).rows(ids)


@kinds
def test_numbers_that_are_none_stay_in_their_row(kind: str) -> None:
    x, w = random(20, 64, dtype=torch.float32), random(40, 64, dtype=torch.float32, seed=1)
    with running(kind):
        clean = linear(x, pack_linear(w))
        x[3, 5], x[4, 0] = torch.nan, torch.inf
        y = linear(x, pack_linear(w))
    assert y[3].isnan().all() and not y[4].isfinite().any()
    assert all(same(y[row], clean[row]) for row in range(20) if row not in (3, 4))


def test_a_weight_packed_in_c_answers_when_the_reference_is_forced() -> None:
    x, w = random(5, 40, dtype=torch.float32), random(20, 40, dtype=torch.float32, seed=1)
    with running("scalar"):
        packed = pack_linear(w)
    with running("reference"):
        assert same(linear(x, packed), linear(x, pack_linear(w)))


@dtypes
def test_a_packed_matrix_is_as_large_as_its_weights(dtype: torch.dtype) -> None:
    w = random(256, 1024, dtype=dtype)
    with running("scalar"):
        packed = pack_linear(w)
        assert packed.size_bytes == w.nbytes and packed.data.data_ptr() % 64 == 0
        large = pack_linear(torch.zeros(2048, 512))
        assert large.data.data_ptr() % (2 << 20) == 0
    with running("reference"):
        assert pack_linear(w).data.data_ptr() == w.data_ptr()


def test_other_dtypes_run_the_reference() -> None:
    x, w = random(3, 32, dtype=torch.float64), random(8, 32, dtype=torch.float64, seed=1)
    packed = pack_linear(w)
    assert packed.layout == "rows"
    assert torch.allclose(linear(x, packed), F.linear(x, w))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x, w: linear(x[:, :-1].contiguous(), w), r"x is torch.float32 \[4, 31\] on cpu, expected torch.float32 \[4, 32\] on cpu"),
        (lambda x, w: linear(x.bfloat16(), w), "expected torch.float32"),
        (lambda x, w: linear(x.t().contiguous().t(), w), "stride 4 in its last dimension"),
        (lambda x, w: linear(x, w, torch.empty(4, 7)), r"out is torch.float32 \[4, 7\]"),
        (lambda x, w: linear(x, w, torch.empty(4, 8, dtype=torch.bfloat16)), "out is torch.bfloat16"),
        (lambda x, w: linear(x, w, torch.empty(1, 8).expand(4, 8)), "rows of out overlap: stride 0"),
        (lambda x, w: linear(x, w, residual=torch.empty(4, 9)), r"residual is torch.float32 \[4, 9\]"),
        (lambda x, w: linear(x, pack_linear(torch.zeros(32, 32)), x), "out is x itself"),
        (lambda x, w: linear(x.view(2, 2, 32).transpose(0, 1), w), "is no matrix"),
        (lambda x, w: linear_swiglu(x, w), "one matrix"),
        (lambda x, w: linear(x, pack_gate_up(torch.zeros(8, 32), torch.zeros(8, 32))), "gated pair"),
        (lambda x, w: pack_gate_up(torch.zeros(8, 32), torch.zeros(9, 32)), r"gate is \[8, 32\] and up \[9, 32\]"),
        (lambda x, w: pack_linear([torch.zeros(8, 32), torch.zeros(8, 31)]), "cannot be one matrix"),
        (lambda x, w: pack_linear([]), "no weight to pack"),
        (lambda x, w: pack_linear(torch.zeros(0, 32)), r"shape \[0, 32\] is no matrix"),
    ],
)
def test_what_does_not_fit_is_refused(unchecked: None, call: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as refused:
        call(torch.zeros(4, 32), pack_linear(torch.zeros(8, 32)))  # type: ignore[operator]
    assert refused.value.hint
