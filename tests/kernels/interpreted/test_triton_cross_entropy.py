"""Triton's cross entropy of rows of logits against torch's, and the chunked loss on top of it against its own path in torch.

Runs in a process of its own with TRITON_INTERPRET=1: see tests/kernels/test_triton.py.
"""

from __future__ import annotations

import os

import pytest
import torch
from entropy_cases import logits_of, torchs  # pyright: ignore[reportMissingImports]
from torch import Tensor

if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("run by tests/kernels/test_triton.py in Triton's interpreter", allow_module_level=True)

from herd.kernels.triton.cross_entropy import cross_entropy
from herd.train import loss as chunked
from herd.train.loss import IGNORE, cross_entropy_sum

DTYPES = [torch.float32, torch.bfloat16]
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=["float32", "bfloat16"])


# 8,192 logits are a block: below one, one exactly, and one more.
@dtypes
@pytest.mark.parametrize("width", [1, 77, 8192, 8193, 20000])
@pytest.mark.parametrize("z_loss", [0.0, 0.05])
def test_losses_and_gradient_are_torchs(dtype: torch.dtype, width: int, z_loss: float) -> None:
    logits, targets = logits_of(7, width, dtype)
    losses, log_z, gradient = torchs(logits, targets, z_loss)
    only = cross_entropy(logits.clone(), targets, ignore=IGNORE, z_loss=z_loss, gradient=False)
    found = cross_entropy(logits, targets, ignore=IGNORE, z_loss=z_loss, gradient=True)
    for mine, alone, wanted in zip(found, only, (losses, log_z), strict=True):
        assert mine.dtype == torch.float32 and torch.equal(mine, alone)
        torch.testing.assert_close(mine, wanted, rtol=1e-5, atol=1e-5)
    assert logits.dtype == dtype and not bool(logits[targets == IGNORE].any())
    tolerance = 1e-5 if dtype == torch.float32 else 2**-8
    torch.testing.assert_close(logits.float(), gradient, rtol=tolerance, atol=1e-6)


def test_without_the_gradient_the_logits_stay_and_rows_may_lie_apart() -> None:
    wide, targets = logits_of(5, 300, torch.bfloat16)
    before = wide.clone()
    losses, _ = cross_entropy(wide[:, :77], targets.clamp(max=76), ignore=IGNORE, gradient=False)
    assert torch.equal(wide, before)
    torch.testing.assert_close(losses, torchs(wide[:, :77], targets.clamp(max=76), 0.0)[0], rtol=1e-5, atol=1e-5)
    cross_entropy(wide[:, :77], targets.clamp(max=76), ignore=IGNORE, gradient=True)
    assert torch.equal(wide[:, 77:], before[:, 77:]), "nothing beside the rows is written"


def test_large_logits_do_not_overflow_and_what_is_no_number_is_told() -> None:
    logits, targets = logits_of(6, 9000, torch.float32, scale=1e4)
    losses, log_z, gradient = torchs(logits, targets, 0.0)
    logits[3] = logits[0]
    logits[0, 5] = float("nan")  # of a row that does not count
    found = cross_entropy(logits, targets, ignore=IGNORE, gradient=True)
    torch.testing.assert_close(found[0][1:3], losses[1:3], rtol=1e-5, atol=1e-3)
    torch.testing.assert_close(found[1][1:3], log_z[1:3], rtol=1e-5, atol=1e-3)
    torch.testing.assert_close(logits[1:3], gradient[1:3], rtol=1e-3, atol=1e-3)
    assert bool(found[0].isfinite().all()) and not bool(logits[0].any())
    again, targets = logits_of(6, 9000, torch.float32)
    again[1, 8999] = float("nan")
    assert bool(cross_entropy(again, targets, ignore=IGNORE, gradient=False)[0][1].isnan())


def test_no_rows() -> None:
    losses, log_z = cross_entropy(torch.empty(0, 9), torch.empty(0, dtype=torch.int64), ignore=IGNORE, gradient=True)
    assert losses.shape == log_z.shape == (0,)


@dtypes
@pytest.mark.parametrize("chunk", [4, 100])
@pytest.mark.parametrize("z_loss", [0.0, 0.05])
def test_the_chunked_loss_is_that_of_its_own_path_in_torch(
    dtype: torch.dtype, chunk: int, z_loss: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = torch.Generator().manual_seed(3)
    hidden, weight = torch.randn(21, 12, generator=generator).to(dtype), torch.randn(333, 12, generator=generator)
    targets = torch.randint(0, 333, (21,), generator=generator)
    targets[::4] = IGNORE

    def run() -> tuple[Tensor, ...]:
        leaves, out = [hidden.clone().requires_grad_(), weight.clone().requires_grad_()], torch.full((21,), -1.0)
        total = cross_entropy_sum(*leaves, targets, chunk=chunk, z_loss=z_loss, out_N=out)
        with torch.no_grad():
            torch.testing.assert_close(cross_entropy_sum(*leaves, targets, chunk=chunk, z_loss=z_loss), total.detach())
        return total.detach(), out, *torch.autograd.grad(0.5 * total, leaves)

    monkeypatch.setattr(chunked, "_is_fused", lambda hidden, vocabulary: False)
    expected = run()
    monkeypatch.setattr(chunked, "_is_fused", lambda hidden, vocabulary: True)
    monkeypatch.setattr(chunked, "_kernel", lambda hidden: cross_entropy)
    for mine, wanted in zip(run(), expected, strict=True):
        assert mine.dtype == wanted.dtype
        tolerance = 1e-5 if dtype == torch.float32 else 2**-7
        torch.testing.assert_close(mine, wanted, rtol=tolerance, atol=tolerance if dtype == torch.bfloat16 else 1e-5)
