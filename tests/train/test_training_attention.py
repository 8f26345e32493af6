"""Attention in training: inside documents, by blocks on a CPU, all documents of a batch in one call on a GPU."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from herd.kernels import dispatch
from herd.model.attention import MaskedCore, document_mask, sdpa
from herd.train import attention, blockwise
from herd.train.attention import DocumentCore, VarlenCore, document_edges, document_spans, training_core

documents = st.lists(st.integers(1, 9), min_size=1, max_size=12)


@given(first=documents, second=documents, seed=st.integers(0, 99))
def test_attention_inside_documents_is_that_of_the_mask(first: list[int], second: list[int], seed: int) -> None:
    length = max(sum(first), sum(second))
    numbers = np.full((2, length), -1)
    for row, sizes in enumerate((first, second)):
        numbers[row, : sum(sizes)] = np.repeat(np.arange(len(sizes)), sizes)
    docs = torch.from_numpy(numbers)
    generator = torch.Generator().manual_seed(seed)
    q, k, v = (torch.randn(2, length, heads, 8, generator=generator, requires_grad=True) for heads in (4, 2, 2))
    found = [core(0, q, k, v) for core in (MaskedCore(document_mask(docs)), DocumentCore(document_spans(docs)))]
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-5)
    grads = [torch.autograd.grad(out.square().sum(), (q, k, v)) for out in found]
    for left, right in zip(*grads, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-4)


@given(
    batch=st.integers(1, 3), length=st.integers(1, 200), group=st.integers(1, 3), num_kv=st.integers(1, 2), keep=st.booleans(),
    seed=st.integers(0, 99),
)  # fmt: skip
def test_blockwise_attention_is_torchs(batch: int, length: int, group: int, num_kv: int, keep: bool, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    shapes = [(batch, length, heads, 8) for heads in (group * num_kv, num_kv, num_kv)]
    exact = [torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True) for shape in shapes]
    weight = torch.randn(shapes[0], generator=generator, dtype=torch.float64)
    expected = sdpa(*exact, causal=True)
    grads = torch.autograd.grad((expected * weight).sum(), exact)
    for dtype, tolerance in ((torch.float32, 1e-4), (torch.bfloat16, 0.06)):
        given = [part.detach().to(dtype).requires_grad_() for part in exact]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(blockwise, "KEEP_UP_TO", {dtype: 1024} if keep else {})
            found = blockwise.blockwise_attention(*given)
            ours = torch.autograd.grad((found.float() * weight.float()).sum(), given)
        assert found.dtype == dtype
        for left, right in zip((found, *ours), (expected, *grads), strict=True):
            scale = max(1.0, float(right.detach().abs().max()))
            assert float((left.detach().double() - right.detach()).abs().max()) < tolerance * scale


@pytest.mark.parametrize("keep", [True, False])
def test_autocast_does_not_round_the_scores(keep: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blockwise, "KEEP_UP_TO", {torch.bfloat16: 1024} if keep else {})
    generator = torch.Generator().manual_seed(0)
    q, k, v = (3 * torch.randn(1, 100, heads, 8, generator=generator) for heads in (4, 2, 2))
    found: list[tuple[Tensor, ...]] = []
    for enabled in (False, True):
        leaves = [part.bfloat16().requires_grad_() for part in (q, k, v)]
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            out = blockwise.blockwise_attention(*leaves)
        found.append((out.detach(), *torch.autograd.grad(out.float().square().sum(), leaves)))
    assert all(torch.equal(left, right) for left, right in zip(*found, strict=True))


def test_blockwise_attention_is_taken_on_a_cpu_in_rows_that_are_not_long(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    real = blockwise.blockwise_attention
    monkeypatch.setattr("herd.train.attention.blockwise_attention", lambda q, k, v: seen.append(q.shape[1]) or real(q, k, v))
    core = DocumentCore(document_spans((torch.arange(96) // 40)[None]))
    has_kernels = dispatch.choice().library is not None
    for dtype, taken in ((torch.float64, False), (torch.float32, has_kernels), (torch.bfloat16, True)):
        q = torch.randn(1, 96, 2, 8, dtype=dtype)
        core(0, q, q[:, :, :1], q[:, :, :1])
        assert sorted(seen) == ([16, 40] if taken else [])  # documents of 40, 40 and 16 tokens, by length
        seen.clear()
    assert blockwise.is_faster(torch.empty(1, 2048, 1, 8, dtype=torch.bfloat16))
    for length, dtype in ((2049, torch.bfloat16), (1025, torch.float32)):
        assert not blockwise.is_faster(torch.empty(1, length, 1, 8, dtype=dtype))
    monkeypatch.setattr(dispatch, "native", lambda *_: None)
    assert not blockwise.is_faster(torch.empty(1, 8, 1, 8))


def test_long_rows_never_meet_a_mask_of_their_square() -> None:
    class Largest(TorchDispatchMode):
        size = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            out = func(*args, **(kwargs or {}))
            for tensor in out if isinstance(out, tuple | list) else (out,):
                if isinstance(tensor, Tensor):
                    self.size = max(self.size, tensor.numel())
            return out

    length = 4096
    docs = (torch.arange(length) // 7)[None]
    assert isinstance(training_core(docs), DocumentCore)
    assert isinstance(training_core(docs[:, :512]), MaskedCore), "many short documents in a short row"
    assert isinstance(training_core(docs[:, :512] * 0), DocumentCore)
    core = training_core((torch.arange(length) // 1500)[None])
    q = torch.randn(1, length, 1, 8, requires_grad=True)
    with Largest() as largest:
        core(0, q, q, q).sum().backward()
    assert largest.size < 64 * length


def _slow_varlen(q: Tensor, k: Tensor, v: Tensor, edges: Tensor, *_: Any, window_size: tuple[int, int]) -> Tensor:
    """What torch's function over all documents at once computes on a GPU, one document after another."""
    assert window_size == (-1, 0), "causal"
    assert k.shape == q.shape, "a release without grouped heads gets them repeated"
    cuts = list(itertools.pairwise(edges.tolist()))
    return torch.cat([sdpa(*(part[None, start:end] for part in (q, k, v)), causal=True)[0] for start, end in cuts])


def _slow_grouped_varlen(q: Tensor, k: Tensor, v: Tensor, *rest: Any, enable_gqa: bool = False, **more: Any) -> Tensor:
    assert enable_gqa or q.shape == k.shape
    return _slow_varlen(q, *(part.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for part in (k, v)), *rest, **more)


@pytest.mark.parametrize("function", [_slow_varlen, _slow_grouped_varlen])
def test_all_documents_of_a_batch_in_one_call(function: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", function)
    docs = torch.tensor([[0, 0, 0, 1, 1, 2, -1, -1], [0, 1, 1, 1, 1, 1, 1, 1], [0] * 8, [5, 5, 5, 5, 5, 5, 5, -1]])
    q, k, v = (torch.randn(4, 8, heads, 8) for heads in (4, 2, 2))
    attention._varlen.cache_clear()  # it holds what the release at hand can
    try:
        found = VarlenCore(document_edges(docs), 8)(0, q, k, v)
    finally:
        attention._varlen.cache_clear()
    torch.testing.assert_close(found, MaskedCore(document_mask(docs))(0, q, k, v))


def test_edges_are_counted_over_all_rows() -> None:
    docs = torch.tensor([[0, 0, 1], [0, 0, 0], [0, -1, -1]])
    assert document_edges(docs).tolist() == [0, 2, 3, 6, 7, 9], "a number that goes on in the next row is another document"
    assert document_edges(docs).dtype == torch.int32
    assert document_spans(docs) == [(0, 0, 2), (0, 2, 3), (1, 0, 3), (2, 0, 1), (2, 1, 3)]


def test_a_cpu_and_float32_take_no_flash_attention() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        assert not VarlenCore.runs_on(torch.device("cpu"))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_all_documents_in_one_call_on_a_gpu() -> None:
    docs = torch.tensor([[0] * 100 + [1] * 27 + [-1], [3] * 128], device="cuda")
    q, k, v = (torch.randn(2, 128, heads, 64, device="cuda", dtype=torch.bfloat16, requires_grad=True) for heads in (6, 2, 2))
    with torch.autocast("cuda", torch.bfloat16):
        assert isinstance(training_core(docs), VarlenCore)
        found = [core(0, q, k, v) for core in (training_core(docs), MaskedCore(document_mask(docs)))]
    torch.testing.assert_close(*found, rtol=2e-2, atol=2e-2)
    grads = [torch.autograd.grad(out.float().square().sum(), (q, k, v)) for out in found]
    for left, right in zip(*grads, strict=True):
        torch.testing.assert_close(left, right, rtol=5e-2, atol=5e-2)
