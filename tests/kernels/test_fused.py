"""Norm, gate and rotation with their gradients in C: the model's formulas, at every instruction set, whatever the threads."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from kinds import C_KINDS, DTYPES, any_of, c_kinds, dtypes, running, same
from torch import Tensor

from herd.base.errors import ConfigError
from herd.kernels import fused
from herd.kernels.plain import rms_norm, swiglu
from herd.model.rope import apply_rope

EPS = 1e-5


def random(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype).requires_grad_()


def angles(*shape: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines, [B, T, 1, H], of random angles."""
    turned = 5 * torch.randn(*shape[:2], 1, shape[2] // 2, generator=torch.Generator().manual_seed(9))
    return torch.cat([turned.cos()] * 2, -1), torch.cat([turned.sin()] * 2, -1)


def exact_norm(x: Tensor, weight: Tensor) -> Tensor:
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + EPS) * weight


def exact_swiglu(gate: Tensor, up: Tensor) -> Tensor:
    return F.silu(gate) * up


def exact_rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, -1)
    return x * cos + torch.cat((-second, first), -1) * sin


def with_gradients(op: Callable[..., Tensor], *leaves: Tensor, grad: Tensor) -> list[Tensor]:
    """The op's result and the gradients of its inputs."""
    out = op(*leaves)
    return [out.detach(), *torch.autograd.grad(out, leaves, grad.to(out.dtype))]


def assert_close(found: list[Tensor], wanted: list[Tensor], dtype: torch.dtype) -> None:
    """Within a few roundings of the largest value: a gradient is a difference."""
    for mine, exact in zip(found, wanted, strict=True):
        assert mine.dtype == dtype
        bound = (2e-6 if dtype == torch.float32 else 2**-6) * max(1.0, float(exact.abs().max()))
        assert float((mine.double() - exact).abs().max()) <= bound


SIZES = st.sampled_from([1, 2, 7, 16, 31, 64, 75, 260])


@settings(max_examples=60, deadline=None)
@given(kind=any_of(C_KINDS), dtype=st.sampled_from(DTYPES), rows=st.sampled_from([1, 3, 64, 65, 200]), width=SIZES)
def test_norm_and_its_gradients_are_exact(kind: str, dtype: torch.dtype, rows: int, width: int) -> None:
    x, weight = random(rows, width, dtype=dtype), random(width, dtype=dtype, seed=1)
    grad = random(rows, width, dtype=dtype, seed=2).detach()
    with running(kind):
        assert fused.applies(x, weight)
        found = with_gradients(partial(rms_norm, eps=EPS), x, weight, grad=grad)
    assert_close(found, with_gradients(exact_norm, x.double(), weight.double(), grad=grad), dtype)


@settings(max_examples=60, deadline=None)
@given(kind=any_of(C_KINDS), dtype=st.sampled_from(DTYPES), rows=st.sampled_from([1, 3, 300]), width=SIZES)
def test_gate_and_its_gradients_are_exact(kind: str, dtype: torch.dtype, rows: int, width: int) -> None:
    gate, up = (8 * random(rows, width)).to(dtype).detach().requires_grad_(), random(rows, width, dtype=dtype, seed=1)
    grad = random(rows, width, dtype=dtype, seed=2).detach()
    with running(kind):
        assert fused.applies(gate, up)
        found = with_gradients(swiglu, gate, up, grad=grad)
    assert_close(found, with_gradients(exact_swiglu, gate.double(), up.double(), grad=grad), dtype)


@c_kinds
@dtypes
@pytest.mark.parametrize(
    ("batch", "tables", "tokens", "heads", "width"), [(1, 1, 1, 1, 2), (3, 1, 7, 4, 24), (3, 3, 40, 2, 64), (2, 1, 300, 3, 128)]
)
def test_rotation_has_the_models_bits_and_turns_back(
    kind: str, dtype: torch.dtype, batch: int, tables: int, tokens: int, heads: int, width: int
) -> None:
    x, (cos, sin) = random(batch, tokens, heads, width, dtype=dtype), angles(tables, tokens, width)
    grad = random(*x.shape, dtype=dtype, seed=2).detach()
    with running(kind):
        assert fused.applies(x)
        found, back = with_gradients(lambda x: apply_rope(x, cos, sin), x, grad=grad)
    assert same(found, exact_rope(x.detach().float(), cos, sin).to(dtype))
    assert_close([back], with_gradients(lambda x: exact_rope(x, cos.double(), sin.double()), x.double(), grad=grad)[1:], dtype)


@c_kinds
@dtypes
def test_the_bits_do_not_depend_on_the_threads(kind: str, dtype: torch.dtype) -> None:
    x, weight, up = random(3, 150, 130, dtype=dtype), random(130, dtype=dtype, seed=1), random(3, 150, 130, dtype=dtype, seed=2)
    cos, sin = angles(1, 150, 26)
    grad = random(3, 150, 130, dtype=dtype, seed=3).detach()

    def everything() -> list[Tensor]:
        return [
            *with_gradients(partial(rms_norm, eps=EPS), x, weight, grad=grad),
            *with_gradients(swiglu, x, up, grad=grad),
            *with_gradients(lambda x: apply_rope(x.view(3, 150, 5, 26), cos, sin).flatten(2), x, grad=grad),
        ]

    with running(kind, threads=1):
        alone = everything()
    with running(kind, threads=3):
        assert all(same(a, b) for a, b in zip(everything(), alone, strict=True))


@c_kinds
def test_views_are_read_as_they_are(kind: str) -> None:
    wide, weight = random(4, 6, 64), random(32, seed=1)
    grad = random(4, 6, 32, seed=2).detach()
    with running(kind):
        for view in (wide[..., :32], wide[..., 32:], wide[:, :, ::2], wide[:, :, :32].transpose(0, 1).contiguous().transpose(0, 1)):
            found = with_gradients(partial(rms_norm, eps=EPS), view, weight, grad=grad)
            again = with_gradients(partial(rms_norm, eps=EPS), view.detach().clone().requires_grad_(), weight, grad=grad)
            assert all(same(a, b) for a, b in zip(found, again, strict=True))
            gates = with_gradients(swiglu, view, view, grad=grad.transpose(0, 1).contiguous().transpose(0, 1))
            assert same(gates[0], exact_swiglu(view.detach(), view.detach())) or torch.allclose(gates[0], exact_swiglu(view, view).detach())


@c_kinds
def test_gates_at_the_ends_of_the_line_have_finite_gradients(kind: str) -> None:
    gate = torch.tensor([[-1e4, -200.0, -88.5, -87.0, -0.0, 0.0, 87.0, 200.0, 1e4]], requires_grad=True)
    with running(kind):
        _, slope, up_grad = with_gradients(swiglu, gate, torch.ones_like(gate).requires_grad_(), grad=torch.ones_like(gate))
    torch.testing.assert_close(slope, torch.tensor([[0.0, 0, 0, 0, 0.5, 0.5, 1, 1, 1]]), rtol=0, atol=1e-6)
    torch.testing.assert_close(up_grad, F.silu(gate.detach()), rtol=1e-6, atol=1e-6)


@c_kinds
def test_what_is_no_number_is_told(kind: str) -> None:
    x, weight = random(3, 40), random(40, seed=1)
    with torch.no_grad():
        x[1, 5] = float("nan")
    with running(kind):
        out, x_grad, weight_grad = with_gradients(partial(rms_norm, eps=EPS), x, weight, grad=torch.ones(3, 40))
    assert bool(out[1].isnan().all()) and bool(x_grad[1].isnan().all()) and bool(weight_grad.isnan().all())
    assert bool(out[[0, 2]].isfinite().all()) and bool(x_grad[[0, 2]].isfinite().all())


def test_where_it_applies() -> None:
    x, half = random(2, 8), random(2, 8, dtype=torch.float16)
    assert fused.applies(x) and fused.applies(x, x.detach())
    assert not fused.applies(half) and not fused.applies(x, x.bfloat16()), "neither float16 nor two dtypes"
    assert not fused.applies(x.detach()), "no gradient is wanted"
    assert not fused.applies(random(0, 8)) and not fused.applies(x.detach().to("meta").requires_grad_())
    with torch.no_grad():
        assert not fused.applies(x)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: fused.rms_norm(x, torch.ones(7), EPS), r"weight is torch.float32 \[7\] on cpu, expected torch.float32 \[8\]"),
        (lambda x: fused.rms_norm(x, torch.ones(8), 0.0), "eps is 0.0"),
        (lambda x: fused.swiglu(x, x.bfloat16()), "up is torch.bfloat16"),
        (lambda x: fused.swiglu(x, x[:, :7]), r"up is torch.float32 \[2, 7\]"),
        (
            lambda x: fused.rotate(x[:, None, None], torch.ones(1, 1, 1, 6), torch.ones(1, 1, 1, 6)),
            r"cosines are torch.float32 \[1, 1, 1, 6\]",
        ),
        (lambda x: fused.rotate(x.view(1, 2, 1, 8), *[torch.ones(1, 3, 1, 8)] * 2), r"\[1, 3, 1, 8\]"),
        (lambda x: fused.rotate(x.view(1, 2, 1, 8), *[torch.ones(1, 2, 1, 8).double()] * 2), "torch.float64"),
    ],
)
def test_what_does_not_fit_is_refused(unchecked: None, call: Callable[[Tensor], Tensor], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as refused:
        call(random(2, 8))
    assert refused.value.hint
