"""cross_entropy: losses and gradients are torch's, at every instruction set and dtype, and a row's are the same in any company."""

from __future__ import annotations

import pytest
import torch
from entropy_cases import logits_of, torchs  # pyright: ignore[reportMissingImports]
from kinds import dtypes, kinds, running  # pyright: ignore[reportMissingImports]
from torch import Tensor

from herd.base.errors import ConfigError
from herd.kernels.cross_entropy import cross_entropy
from herd.train.loss import IGNORE


# 16 numbers are a step and 4,096 a chain of a sum: below, at and past both.
@kinds
@dtypes
@pytest.mark.parametrize("width", [1, 15, 16, 77, 4096, 4097, 20000])
@pytest.mark.parametrize("z_loss", [0.0, 0.05])
def test_losses_and_gradient_are_torchs(kind: str, dtype: torch.dtype, width: int, z_loss: float) -> None:
    logits, targets = logits_of(7, width, dtype)
    losses, log_z, gradient = torchs(logits, targets, z_loss)
    before = logits.clone()
    with running(kind):
        only = cross_entropy(logits, targets, ignore=IGNORE, z_loss=z_loss, gradient=False)
        assert torch.equal(logits, before)
        found = cross_entropy(logits, targets, ignore=IGNORE, z_loss=z_loss, gradient=True)
    for mine, alone, wanted in zip(found, only, (losses, log_z), strict=True):
        assert mine.dtype == torch.float32 and torch.equal(mine, alone)
        torch.testing.assert_close(mine, wanted, rtol=2e-6, atol=2e-6)
    assert logits.dtype == dtype and not bool(logits[targets == IGNORE].any())
    tolerance = 1e-5 if dtype == torch.float32 else 2**-8
    torch.testing.assert_close(logits.float(), gradient, rtol=tolerance, atol=1e-6)


@kinds
@dtypes
def test_a_row_has_the_same_bits_in_any_company_and_by_any_number_of_threads(kind: str, dtype: torch.dtype) -> None:
    logits, targets = logits_of(40, 3001, dtype)
    with running(kind, threads=1):
        alone = [
            (row := logits[i : i + 1].clone(), *cross_entropy(row, targets[i : i + 1], ignore=IGNORE, gradient=True)) for i in range(40)
        ]
    with running(kind, threads=3):
        losses, log_zs = cross_entropy(logits, targets, ignore=IGNORE, gradient=True)
    for found, parts in zip((logits, losses, log_zs), zip(*alone, strict=True), strict=True):
        assert torch.equal(found, torch.cat(parts))


@kinds
def test_rows_may_lie_apart_and_nothing_beside_them_is_written(kind: str) -> None:
    wide, targets = logits_of(5, 300, torch.bfloat16)
    before, targets = wide.clone(), targets.clamp(max=76)
    with running(kind):
        losses, _ = cross_entropy(wide[:, :77], targets, ignore=IGNORE, gradient=True)
    torch.testing.assert_close(losses, torchs(before[:, :77], targets, 0.0)[0], rtol=1e-5, atol=1e-5)
    assert torch.equal(wide[:, 77:], before[:, 77:]) and not torch.equal(wide, before)


@kinds
@dtypes
def test_large_logits_do_not_overflow_and_what_is_no_number_is_told(kind: str, dtype: torch.dtype) -> None:
    logits, targets = logits_of(6, 9000, dtype, scale=1e4)
    losses, log_z, _ = torchs(logits, targets, 0.0)
    logits[0, 5] = float("nan")  # of a row that does not count
    logits[2, 7] = -float("inf")
    bad, of_bad = logits_of(6, 9000, dtype)
    bad[1, 8999], bad[2, 3], bad[4, 5] = float("nan"), float("nan"), float("inf")
    with running(kind):
        found = cross_entropy(logits, targets, ignore=IGNORE, gradient=True)
        told, _ = cross_entropy(bad, of_bad, ignore=IGNORE, gradient=False)
    torch.testing.assert_close(found[0][1:3], losses[1:3], rtol=1e-5, atol=1e-3)
    torch.testing.assert_close(found[1][1:3], log_z[1:3], rtol=1e-5, atol=1e-3)
    assert bool(found[0].isfinite().all()) and bool(logits.isfinite().all()) and not bool(logits[0].any())
    assert not bool(told[[1, 2, 4]].isfinite().any()), "a number that is none makes its row's loss none"


@kinds
def test_no_rows(kind: str) -> None:
    with running(kind):
        losses, log_z = cross_entropy(torch.empty(0, 9), torch.empty(0, dtype=torch.int64), ignore=IGNORE, gradient=True)
    assert losses.shape == log_z.shape == (0,)


@pytest.mark.parametrize(
    ("logits", "targets", "message"),
    [
        (torch.zeros(2, 9), torch.tensor([0, 9]), r"target 9 is outside of a vocabulary of 9"),
        (torch.zeros(2, 9), torch.tensor([0, -1]), r"target -1 is outside of a vocabulary of 9"),
        (torch.zeros(2, 9), torch.tensor([0]), r"targets are torch.int64 \[1\], expected torch.int64 \[2\]"),
        (torch.zeros(2, 9), torch.tensor([0, 1], dtype=torch.int32), r"targets are torch.int32 \[2\], expected torch.int64 \[2\]"),
        (torch.zeros(9, 2).t(), torch.tensor([0, 1]), r"stride 2 in its last dimension"),
        (torch.zeros(1, 9).expand(2, 9), torch.tensor([0, 1]), r"rows of logits overlap"),
    ],
)
def test_what_does_not_fit_is_refused(unchecked: None, logits: Tensor, targets: Tensor, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        cross_entropy(logits, targets, ignore=IGNORE, gradient=True)
