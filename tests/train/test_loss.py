"""Chunked cross entropy against torch's own: value and gradients, whatever the chunk, and no more logits than a chunk's at once."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from herd.kernels.torch_compat import add_product
from herd.train.loss import CHUNK, IGNORE, cross_entropy_sum, token_logprobs, tokens_at_once

DIM = 12


def inputs(num_tokens: int, vocab: int, *, ignored: float = 0.3, seed: int = 0, scale: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(num_tokens, DIM, generator=generator)
    weight = scale * torch.randn(vocab, DIM, generator=generator)
    targets = torch.randint(0, vocab, (num_tokens,), generator=generator)
    targets[torch.rand(num_tokens, generator=generator) < ignored] = IGNORE
    return hidden.requires_grad_(), weight.requires_grad_(), targets


def with_gradients(loss: Tensor, hidden: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    grads = torch.autograd.grad(loss, (hidden, weight))
    return loss.detach(), *grads


def reference(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(hidden @ weight.t(), targets, ignore_index=IGNORE, reduction="sum")


@settings(deadline=None, max_examples=150)
@given(
    num_tokens=st.integers(1, 40),
    vocab=st.integers(1, 50),
    chunk=st.integers(1, 50),
    ignored=st.sampled_from([0.0, 0.3, 0.9]),
    seed=st.integers(0, 1000),
)
def test_value_and_gradients_equal_torchs(num_tokens: int, vocab: int, chunk: int, ignored: float, seed: int) -> None:
    hidden, weight, targets = inputs(num_tokens, vocab, ignored=ignored, seed=seed)
    ours = with_gradients(cross_entropy_sum(hidden, weight, targets, chunk=chunk), hidden, weight)
    expected = with_gradients(reference(hidden, weight, targets), hidden, weight)
    for got, wanted in zip(ours, expected, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)


def test_the_loss_is_a_float32_scalar_and_a_factor_reaches_the_gradients() -> None:
    hidden, weight, targets = inputs(20, 30)
    loss = cross_entropy_sum(hidden, weight, targets, chunk=7)
    assert loss.shape == () and loss.dtype == torch.float32
    once = torch.autograd.grad(loss, (hidden, weight), retain_graph=True)
    scaled = torch.autograd.grad(loss * 0.25, (hidden, weight))
    for single, quarter in zip(once, scaled, strict=True):
        assert torch.equal(single * 0.25, quarter)


def test_gradients_add_up_over_calls_as_micro_batches_need() -> None:
    hidden, weight, targets = inputs(20, 30)
    for start in (0, 10):
        cross_entropy_sum(hidden[start : start + 10], weight, targets[start : start + 10]).backward()
    expected = torch.autograd.grad(reference(hidden, weight, targets), (hidden, weight))
    for got, wanted in zip((hidden.grad, weight.grad), expected, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)


def test_ignored_tokens_weigh_nothing() -> None:
    hidden, weight, targets = inputs(20, 30, ignored=0.5)
    counted = targets != IGNORE
    assert 0 < int(counted.sum()) < 20
    loss, grad_hidden, grad_weight = with_gradients(cross_entropy_sum(hidden, weight, targets), hidden, weight)
    assert bool((grad_hidden[~counted] == 0).all()) and bool((grad_hidden[counted] != 0).any(1).all())
    with torch.no_grad():
        hidden[~counted] = 1e3
    again = with_gradients(cross_entropy_sum(hidden, weight, targets), hidden, weight)
    assert torch.equal(loss, again[0]) and torch.equal(grad_weight, again[2])


def test_nothing_counted_is_zero_with_zero_gradients() -> None:
    for num_tokens in (5, 0):
        hidden, weight, targets = inputs(num_tokens, 30, ignored=1.1)
        loss, *gradients = with_gradients(cross_entropy_sum(hidden, weight, targets), hidden, weight)
        assert loss.item() == 0 and not any(bool(gradient.any()) for gradient in gradients)


def test_large_logits_do_not_overflow() -> None:
    hidden, weight, targets = inputs(20, 30, scale=1e4)
    ours = with_gradients(cross_entropy_sum(hidden, weight, targets, chunk=6), hidden, weight)
    expected = with_gradients(reference(hidden, weight, targets), hidden, weight)
    for got, wanted in zip(ours, expected, strict=True):
        assert bool(got.isfinite().all())
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-3)


def test_bfloat16_hidden_states_give_float32_loss_and_weight_gradient_within_their_precision() -> None:
    hidden, weight, targets = inputs(64, 50)
    narrow = hidden.detach().bfloat16().requires_grad_()
    loss, grad_hidden, grad_weight = with_gradients(cross_entropy_sum(narrow, weight, targets, chunk=10), narrow, weight)
    assert (loss.dtype, grad_hidden.dtype, grad_weight.dtype) == (torch.float32, torch.bfloat16, torch.float32)
    exact = with_gradients(reference(hidden, weight, targets), hidden, weight)
    # bfloat16 keeps 8 bits: a logit of 8, about the largest here, is off by 1/64, and so is its probability, by that factor.
    for got, wanted in zip((loss, grad_hidden, grad_weight), exact, strict=True):
        assert float((got.float() - wanted).abs().max() / wanted.abs().max()) < 2 / 64


class LargestTensor(TorchDispatchMode):
    """Remembers the most rows of any tensor with a vocabulary's width, but the output matrix itself and its gradient."""

    def __init__(self, vocab: int) -> None:
        super().__init__()
        self.vocab, self.rows = vocab, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, Tensor) and tensor.dim() == 2 and tensor.shape[1] == self.vocab:
                self.rows = max(self.rows, tensor.shape[0])
        return result


@pytest.mark.parametrize("chunk", [4, 16])
def test_no_more_logits_exist_at_once_than_a_chunks(chunk: int) -> None:
    vocab = 77
    hidden, weight, targets = inputs(50, vocab)
    with LargestTensor(vocab) as largest:
        cross_entropy_sum(hidden, weight.detach(), targets, chunk=chunk).backward()
    # The transposed output matrix [D, V] is a view of the weights.
    assert largest.rows == max(chunk, DIM)


def test_an_evaluation_forms_no_gradients() -> None:
    hidden, weight, targets = inputs(50, 77)
    products = 2 * 50 * 77 * DIM
    with FlopCounterMode(display=False) as trained:
        loss = cross_entropy_sum(hidden, weight, targets, chunk=16)
    assert trained.get_total_flops() == 3 * products
    with torch.no_grad(), FlopCounterMode(display=False) as evaluated:
        assert torch.equal(cross_entropy_sum(hidden, weight, targets, chunk=16), loss)
    assert evaluated.get_total_flops() == products


def test_z_loss_and_its_gradient_are_those_of_torch() -> None:
    hidden, weight, targets = torch.randn(11, 6), torch.randn(9, 6), torch.randint(0, 9, (11,))
    targets[3] = IGNORE
    leaves = [part.clone().requires_grad_() for part in (hidden, weight)]
    cross_entropy_sum(*leaves, targets, chunk=4, z_loss=0.1).backward()
    plain = [part.clone().requires_grad_() for part in (hidden, weight)]
    logits = plain[0] @ plain[1].t()
    expected = F.cross_entropy(logits, targets, ignore_index=IGNORE, reduction="sum")
    expected = expected + 0.1 * logits.logsumexp(-1)[targets != IGNORE].square().sum()
    expected.backward()
    torch.testing.assert_close(cross_entropy_sum(hidden, weight, targets, z_loss=0.1), expected.detach())
    for ours, theirs in zip(leaves, plain, strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)


@pytest.mark.parametrize("chunk", [1, 4, 100])
def test_log_probabilities_of_tokens_and_their_gradients_are_those_of_torch(chunk: int) -> None:
    hidden, weight, targets, upstream = torch.randn(11, 6), torch.randn(9, 6), torch.randint(0, 9, (11,)), torch.randn(11)
    leaves = [part.clone().requires_grad_() for part in (hidden, weight)]
    found = token_logprobs(*leaves, targets, chunk=chunk)
    (found * upstream).sum().backward()
    plain = [part.clone().requires_grad_() for part in (hidden, weight)]
    expected = (plain[0] @ plain[1].t()).log_softmax(-1).gather(1, targets[:, None])[:, 0]
    (expected * upstream).sum().backward()
    torch.testing.assert_close(found, expected)
    for ours, theirs in zip(leaves, plain, strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)
    assert token_logprobs(hidden[:0], weight, targets[:0]).shape == (0,)


def test_a_gpu_is_given_a_gibibyte_of_logits_at_once_and_a_cpu_as_many_as_ever() -> None:
    gpu = torch.device("cuda")
    assert tokens_at_once(torch.device("cpu"), 128256, 2) == CHUNK == 512
    assert tokens_at_once(gpu, 128256, 2) == 4096, "a row of 8K is two chunks"
    assert tokens_at_once(gpu, 10**7, 4) == CHUNK, "never fewer"
    for vocab in (1, 32000, 128256):
        count = tokens_at_once(gpu, vocab, 2)
        assert count % 128 == 0 and count * vocab * 2 <= 2**30


@pytest.mark.parametrize(("narrow", "wide"), [(torch.float32, torch.float32), (torch.bfloat16, torch.float32)])
def test_products_add_up_in_the_dtype_of_the_sum(narrow: torch.dtype, wide: torch.dtype) -> None:
    left, right, total = torch.randn(7, 5).to(narrow), torch.randn(5, 3).to(narrow), torch.randn(7, 3, dtype=wide)
    expected = total + (left @ right).to(wide)
    assert add_product(total, left, right) is total
    torch.testing.assert_close(total, expected)
