"""Context parallel without processes: who has which places, how even the work is, and attention piece by piece against a mask."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from herd.model.attention import MaskedCore, document_mask
from herd.train.parallel.context import ContextCore, global_order, local_positions
from herd.train.parallel.memory_tracker import MemoryTracker
from herd.train.parallel.past import last_tokens, lower_right


@given(ranks=st.integers(2, 5), size=st.integers(1, 6))
def test_every_place_is_one_ranks_and_gathering_restores_the_order(ranks: int, size: int) -> None:
    length = 2 * ranks * size
    places = [local_positions(length, ranks, rank) for rank in range(ranks)]
    assert sorted(torch.cat(places).tolist()) == list(range(length))
    assert torch.cat(places)[global_order(length, ranks)].tolist() == list(range(length))


@pytest.mark.parametrize("ranks", [2, 4, 8])
def test_causal_work_is_even(ranks: int) -> None:
    work = [int((local_positions(32 * ranks, ranks, rank) + 1).sum()) for rank in range(ranks)]
    assert len(set(work)) == 1


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_attention_of_a_rank_is_that_of_the_whole_row_under_any_documents(data: st.DataObject) -> None:
    ranks, rows = data.draw(st.integers(2, 3)), data.draw(st.integers(1, 2))
    length = 2 * ranks * data.draw(st.integers(1, 5))
    numbers = data.draw(st.lists(st.integers(0, 3), min_size=rows * length, max_size=rows * length))
    documents = torch.tensor(np.sort(np.array(numbers).reshape(rows, length)), dtype=torch.int16)
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(rows, length, heads, 8, generator=generator) for heads in (4, 2, 2))
    expected = MaskedCore(document_mask(documents))(0, q, k, v)
    masked = data.draw(st.booleans())
    for rank in range(ranks):
        places = local_positions(length, ranks, rank)
        core = ContextCore(documents, group=None, ranks=ranks, rank=rank)
        core._gather = lambda _both: (k, v)  # pyright: ignore[reportAttributeAccessIssue]
        if not masked:
            core.mask = None
        torch.testing.assert_close(core(0, q[:, places], k[:, places], v[:, places]), expected[:, places], atol=1e-5, rtol=1e-5)


def _plain(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Scores, a mask, a softmax, in float64."""
    group, before = q.shape[2] // k.shape[2], k.shape[1] - q.shape[1]
    q, k, v = (x.double().transpose(1, 2) for x in (q, k, v))
    k, v = (x.repeat_interleave(group, dim=1) for x in (k, v))
    later = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool).triu(before + 1)
    scores = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).masked_fill(later, -torch.inf)
    return (scores.softmax(-1) @ v).transpose(1, 2)


@settings(max_examples=25, deadline=None)
@given(queries=st.integers(1, 40), before=st.integers(0, 70), group=st.integers(1, 3), seed=st.integers(0, 99))
def test_the_last_tokens_of_a_document_see_what_a_mask_would_let_them_see(queries: int, before: int, group: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    shapes = ((queries, 2 * group), (before + queries, 2), (before + queries, 2))
    ours = [torch.randn(2, length, heads, 8, generator=generator).requires_grad_() for length, heads in shapes]
    theirs = [x.detach().clone().requires_grad_() for x in ours]
    weight = torch.randn(2, queries, 2 * group, 8, generator=generator)
    out, expected = last_tokens(*ours), _plain(*theirs)
    (out * weight).sum().backward()
    (expected * weight).sum().backward()
    torch.testing.assert_close(out, expected.float(), atol=1e-5, rtol=1e-5)
    for found, wanted in zip(ours, theirs, strict=True):
        torch.testing.assert_close(found.grad, wanted.grad, atol=2e-5, rtol=1e-5)
    q, k, v = (x.detach().transpose(1, 2) for x in ours)
    torch.testing.assert_close(lower_right(q, k, v).transpose(1, 2), expected.float(), atol=1e-5, rtol=1e-5)


def test_scores_far_apart_and_bfloat16_are_put_together_rightly() -> None:
    generator = torch.Generator().manual_seed(1)
    q, k, v = (torch.randn(1, length, 2, 16, generator=generator) * 8 for length in (33, 90, 90))
    torch.testing.assert_close(last_tokens(q, k, v), _plain(q, k, v).float(), atol=1e-4, rtol=1e-4)
    narrow = [x.bfloat16() for x in (q / 8, k / 8, v / 8)]
    torch.testing.assert_close(last_tokens(*narrow).float(), _plain(*narrow).float(), atol=2e-2, rtol=2e-2)


def test_no_buffer_grows_with_queries_times_keys() -> None:
    """Of what the forward and backward pass take: 512 queries over 4,096 keys would be 4 MB of scores a head in bfloat16."""
    q, k, v = (torch.randn(1, length, 2, 16).requires_grad_() for length in (512, 4096, 4096))
    tracker = MemoryTracker()
    tracker.add([q, k, v])
    with tracker:
        last_tokens(q, k, v).sum().backward()
    assert tracker.peak - q.nbytes - k.nbytes - v.nbytes < 5 * (q.nbytes + k.nbytes + v.nbytes) < 512 * 4096 * 2 * 2
