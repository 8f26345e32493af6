"""Context parallel without processes: who has which places, how even the work is, and attention piece by piece against a mask."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from herd.model.attention import MaskedCore, document_mask
from herd.train.parallel import context
from herd.train.parallel.context import ContextCore, global_order, local_positions


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
    block, masked = context.QUERY_BLOCK, data.draw(st.booleans())
    for rank in range(ranks):
        places = local_positions(length, ranks, rank)
        core = ContextCore(documents, group=None, ranks=ranks, rank=rank)
        core._gather = lambda _both: (k, v)  # pyright: ignore[reportAttributeAccessIssue]
        if masked:
            core.mask = None
            context.QUERY_BLOCK = 2
        try:
            torch.testing.assert_close(core(0, q[:, places], k[:, places], v[:, places]), expected[:, places], atol=1e-5, rtol=1e-5)
        finally:
            context.QUERY_BLOCK = block
