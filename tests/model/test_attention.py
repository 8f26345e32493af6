"""Attention's masks and cores: who may look at whom, and that nothing else changes a logit."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from herd.model.attention import CausalCore, MaskedCore, document_mask, padding_mask, sdpa
from herd.model.config import ModelConfig, RopeScaling
from herd.model.init import initialise
from herd.model.transformer import Transformer

CONFIG = ModelConfig(
    vocab_size=120,
    hidden_size=64,
    intermediate_size=80,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=64,
    rope_scaling=RopeScaling(factor=8.0),
    initializer_range=0.1,
)


@pytest.fixture(name="model", scope="module")
def build() -> Transformer:
    return initialise(Transformer(CONFIG), seed=2).eval()


def random_tokens(batch: int, length: int, seed: int = 0) -> Tensor:
    return torch.randint(0, CONFIG.vocab_size, (batch, length), generator=torch.Generator().manual_seed(seed))


def by_hand(q_BTNH: Tensor, k_BSKH: Tensor, v_BSKH: Tensor, mask: Tensor) -> Tensor:
    """Softmax attention in float64, one query head at a time."""
    share = q_BTNH.shape[2] // k_BSKH.shape[2]
    heads = []
    for head in range(q_BTNH.shape[2]):
        q, k, v = (x.double() for x in (q_BTNH[:, :, head], k_BSKH[:, :, head // share], v_BSKH[:, :, head // share]))
        scores = (q @ k.transpose(1, 2) / math.sqrt(q.shape[-1])).masked_fill(~mask, -math.inf)
        heads.append(scores.softmax(-1) @ v)
    return torch.stack(heads, 2).float()


@pytest.mark.parametrize("kv_heads", [1, 2, 3, 6])
def test_query_head_i_reads_kv_head_i_over_share(kv_heads: int) -> None:
    generator = torch.Generator().manual_seed(kv_heads)
    q_BTNH = torch.randn(2, 7, 6, 16, generator=generator)
    k_BTKH, v_BTKH = torch.randn(2, 2, 7, kv_heads, 16, generator=generator)
    causal = torch.ones(7, 7, dtype=torch.bool).tril()
    expected = by_hand(q_BTNH, k_BTKH, v_BTKH, causal)
    torch.testing.assert_close(CausalCore()(0, q_BTNH, k_BTKH, v_BTKH), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(MaskedCore(causal)(0, q_BTNH, k_BTKH, v_BTKH), expected, rtol=1e-5, atol=1e-5)


def test_fewer_queries_than_keys_attend_under_a_mask() -> None:
    generator = torch.Generator().manual_seed(0)
    q_BTNH, k_BSKH, v_BSKH = (torch.randn(2, length, heads, 8, generator=generator) for length, heads in ((3, 4), (9, 2), (9, 2)))
    mask = torch.ones(3, 9, dtype=torch.bool).tril(diagonal=6)
    torch.testing.assert_close(sdpa(q_BTNH, k_BSKH, v_BSKH, mask), by_hand(q_BTNH, k_BSKH, v_BSKH, mask), rtol=1e-5, atol=1e-5)
    everything = torch.ones(3, 9, dtype=torch.bool)
    torch.testing.assert_close(sdpa(q_BTNH, k_BSKH, v_BSKH), by_hand(q_BTNH, k_BSKH, v_BSKH, everything), rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_a_later_token_changes_no_earlier_logit(model: Transformer) -> None:
    tokens_BT = random_tokens(2, 12)
    changed = tokens_BT.clone()
    changed[:, 7] = (changed[:, 7] + 1) % CONFIG.vocab_size
    before, after = model(tokens_BT), model(changed)
    torch.testing.assert_close(before[:, :7], after[:, :7], rtol=1e-6, atol=1e-6)
    assert not torch.allclose(before[:, 7:], after[:, 7:], atol=1e-3)


@torch.no_grad()
def test_logits_depend_on_distances_not_on_where_counting_starts(model: Transformer) -> None:
    tokens_BT = random_tokens(1, 10)
    shifted = model(tokens_BT, positions_BT=torch.arange(500, 510)[None])
    torch.testing.assert_close(shifted, model(tokens_BT), rtol=1e-3, atol=1e-3)


def packed(lengths: list[int]) -> tuple[Tensor, Tensor]:
    """Document numbers and positions that restart in every document, as one row."""
    documents = torch.cat([torch.full((length,), number) for number, length in enumerate(lengths)])
    return documents[None], torch.cat([torch.arange(length) for length in lengths])[None]


@pytest.mark.parametrize("restart", [True, False], ids=["positions restart", "positions run on"])
@torch.no_grad()
def test_a_packed_row_has_the_logits_of_its_documents_alone(model: Transformer, restart: bool) -> None:
    lengths = [5, 1, 9, 4]
    documents_BT, positions_BT = packed(lengths)
    tokens_BT = random_tokens(1, sum(lengths))
    row = model(tokens_BT, core=MaskedCore(document_mask(documents_BT)), positions_BT=positions_BT if restart else None)
    alone = [model(document)[0] for document in tokens_BT.split(lengths, dim=1)]
    tolerance = 1e-5 if restart else 1e-4
    torch.testing.assert_close(row[0], torch.cat(alone), rtol=tolerance, atol=tolerance)


@torch.no_grad()
def test_rows_of_a_batch_keep_their_own_documents(model: Transformer) -> None:
    tokens_BT = random_tokens(2, 8)
    documents_BT = torch.stack((packed([3, 5])[0][0], packed([6, 2])[0][0]))
    both = model(tokens_BT, core=MaskedCore(document_mask(documents_BT)))
    for row in range(2):
        one = model(tokens_BT[row : row + 1], core=MaskedCore(document_mask(documents_BT[row : row + 1])))
        torch.testing.assert_close(both[row : row + 1], one, rtol=1e-5, atol=1e-5)


@settings(max_examples=50, deadline=None)
@given(lengths=st.lists(st.integers(1, 6), min_size=1, max_size=6))
def test_a_document_mask_is_a_row_of_causal_triangles(lengths: list[int]) -> None:
    mask = document_mask(packed(lengths)[0])
    triangles = [torch.ones(length, length, dtype=torch.bool).tril() for length in lengths]
    assert mask.shape == (1, 1, sum(lengths), sum(lengths))
    assert torch.equal(mask[0, 0], torch.block_diag(*[triangle.float() for triangle in triangles]).bool())


def test_one_document_is_plain_causal() -> None:
    assert torch.equal(document_mask(torch.zeros(2, 6, dtype=torch.long))[1, 0], torch.ones(6, 6, dtype=torch.bool).tril())


@settings(max_examples=100, deadline=None)
@given(valid=st.lists(st.lists(st.booleans(), min_size=5, max_size=5), min_size=1, max_size=3))
def test_a_padding_mask_is_causal_hides_padding_and_leaves_no_row_empty(valid: list[list[bool]]) -> None:
    valid_BT = torch.tensor(valid)
    mask_BTT = padding_mask(valid_BT)[:, 0]
    for row, flags in enumerate(valid):
        for query in range(5):
            seen = {key for key in range(5) if bool(mask_BTT[row, query, key])}
            assert seen == {key for key in range(query + 1) if flags[key]} | {query}


def test_without_padding_the_padding_mask_is_plain_causal() -> None:
    assert torch.equal(padding_mask(torch.ones(1, 6, dtype=torch.bool))[0, 0], torch.ones(6, 6, dtype=torch.bool).tril())


@torch.no_grad()
def test_a_row_of_padding_alone_gives_finite_logits(model: Transformer) -> None:
    valid_BT = torch.tensor([[True] * 6, [False] * 6])
    assert bool(model(random_tokens(2, 6), valid_BT=valid_BT).isfinite().all())


@torch.no_grad()
def test_cores_are_called_once_a_layer_in_order_with_rotated_keys(model: Transformer) -> None:
    calls: list[tuple[int, tuple[int, ...], tuple[int, ...]]] = []

    class Recorder:
        def __call__(self, layer: int, q_BTNH: Tensor, k_BTKH: Tensor, v_BTKH: Tensor) -> Tensor:
            calls.append((layer, tuple(q_BTNH.shape), tuple(k_BTKH.shape)))
            return CausalCore()(layer, q_BTNH, k_BTKH, v_BTKH)

    tokens_BT = random_tokens(2, 5)
    recorded = model(tokens_BT, core=Recorder())
    assert calls == [(0, (2, 5, 4, 64), (2, 5, 2, 64)), (1, (2, 5, 4, 64), (2, 5, 2, 64))]
    assert torch.equal(recorded, model(tokens_BT))
