"""The softmax of causal scores and its gradient are torch's, at every instruction set and dtype, whatever the threads."""

from __future__ import annotations

import math

import pytest
import torch
from kinds import dtypes, kinds, running  # pyright: ignore[reportMissingImports]
from torch import Tensor

from herd.base.errors import ConfigError
from herd.kernels.softmax import causal_softmax, softmax_gradient

SHAPES = [(1, 1, 1, 1), (2, 3, 4, 4), (2, 3, 5, 17), (1, 2, 64, 64), (3, 1, 33, 300), (1, 4, 64, 1024)]
"""Matrices, heads, queries, keys; the last query looks at the last key."""


def given(shape: tuple[int, ...], scale: float = 4.0) -> tuple[Tensor, int]:
    """Scores, and the keys of the first row."""
    generator = torch.Generator().manual_seed(math.prod(shape))
    return scale * torch.randn(*shape, generator=generator), shape[-1] - shape[-2] + 1


def exact(scores: Tensor, first: int, scale: float) -> Tensor:
    later = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(first)
    return torch.softmax((scores.double() * scale).masked_fill(later, -math.inf), -1)


@kinds
@dtypes
@pytest.mark.parametrize("shape", SHAPES)
def test_probabilities_and_gradients_are_torchs(kind: str, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    scores, first = given(shape)
    leaf = scores.double().requires_grad_()
    wanted = exact(leaf, first, 0.3)
    grad = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    with running(kind):
        found = causal_softmax(scores.clone(), first=first, scale=0.3, dtype=dtype)
        delta = (grad.float() * found.float()).sum(-1)
        mine = softmax_gradient(grad.clone(), found, delta, scale=0.3)
    assert found.dtype == mine.dtype == dtype
    tolerance = 3e-6 if dtype == torch.float32 else 2**-8
    torch.testing.assert_close(found.double(), wanted.detach(), rtol=tolerance, atol=1e-7)
    later = torch.ones(shape[-2:], dtype=torch.bool).triu(first)
    assert not bool(found.masked_select(later).any()) and not bool(mine.masked_select(later).any()), "later keys weigh nothing"
    (expected,) = torch.autograd.grad(wanted, leaf, grad.double())
    torch.testing.assert_close(mine.double(), expected, rtol=0, atol=max(1e-6, 4 * tolerance * float(expected.abs().max())))


@kinds
@dtypes
def test_a_row_has_the_same_bits_in_any_company_and_by_any_number_of_threads(kind: str, dtype: torch.dtype) -> None:
    scores, first = given((5, 2, 9, 1500))
    grad, delta = torch.randn(5, 2, 9, 1500).to(dtype), torch.randn(5, 2, 9)
    with running(kind, threads=1):
        alone = [causal_softmax(part.clone(), first=first, scale=0.5, dtype=dtype) for part in scores]
        back = [softmax_gradient(grad[i].clone(), alone[i], delta[i], scale=0.5) for i in range(5)]
    with running(kind, threads=3):
        found = causal_softmax(scores.clone(), first=first, scale=0.5, dtype=dtype)
        assert torch.equal(found, torch.stack(alone))
        assert torch.equal(softmax_gradient(grad.clone(), found, delta, scale=0.5), torch.stack(back))


@kinds
def test_large_scores_do_not_overflow_and_what_is_no_number_is_told(kind: str) -> None:
    scores, first = given((1, 1, 8, 40), scale=1e5)
    bad = scores.clone()
    bad[0, 0, 3, 2], bad[0, 0, 5, 1] = float("nan"), float("inf")
    with running(kind):
        found = causal_softmax(scores.clone(), first=first, scale=1.0, dtype=torch.float32)
        told = causal_softmax(bad, first=first, scale=1.0, dtype=torch.float32)
    torch.testing.assert_close(found.double(), exact(scores, first, 1.0), rtol=1e-5, atol=1e-7)
    assert bool(told[0, 0, 3].isnan().any()) and bool(told[0, 0, 5].isnan().any()) and bool(told[0, 0, 4].isfinite().all())


@pytest.mark.parametrize(
    ("scores", "first", "message"),
    [
        (torch.zeros(2, 3, dtype=torch.bfloat16), 1, r"scores are torch.bfloat16"),
        (torch.zeros(3, 2).t(), 1, r"strides \[1, 2\]"),
        (torch.zeros(2, 3), 0, r"cannot look at 0 keys"),
        (torch.zeros(2, 3), 4, r"cannot look at 4 keys"),
    ],
)
def test_scores_that_do_not_fit_are_refused(unchecked: None, scores: Tensor, first: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        causal_softmax(scores, first=first, scale=1.0, dtype=torch.float32)


@pytest.mark.parametrize(
    ("grad", "delta", "message"),
    [
        (torch.zeros(2, 3, dtype=torch.bfloat16), torch.zeros(2), r"gradients torch.bfloat16 \[2, 3\]"),
        (torch.zeros(2, 4), torch.zeros(2), r"gradients torch.float32 \[2, 4\]"),
        (torch.zeros(2, 3), torch.zeros(3), r"deltas torch.float32 \[3\] do not fit"),
        (torch.zeros(3, 2).t(), torch.zeros(2), r"have to be contiguous"),
    ],
)
def test_gradients_that_do_not_fit_are_refused(unchecked: None, grad: Tensor, delta: Tensor, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        softmax_gradient(grad, torch.zeros(2, 3), delta, scale=1.0)
