"""Who holds what, and what it takes: spans, shares, exact bytes of each rank, and steps cut into pieces."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from herd.base.errors import ConfigError, DoesNotFitError
from herd.engine.batch import RaggedBatch
from herd.engine.memory import EngineConfig, plan_memory
from herd.engine.parallel.layout import Layout, span
from herd.engine.parallel.microbatch import num_pieces, pieces
from herd.engine.parallel.plan import DraftSize, plan_ranks, weight_count
from herd.model.presets import preset

GIB = 2**30
LLAMA = preset("llama-3.1-8b")


@given(st.integers(1, 500), st.integers(1, 9))
def test_spans_follow_each_other_and_are_even(total: int, parts: int) -> None:
    spans = [span(total, parts, index) for index in range(parts)]
    assert [number for one in spans for number in one] == list(range(total))
    assert max(map(len, spans)) - min(map(len, spans)) <= 1


def test_layers_that_do_not_come_out_even_go_to_the_stages_without_a_head() -> None:
    layout = Layout(pp=3, tp=2)
    assert [len(layout.layers(LLAMA, rank)) for rank in range(6)] == [11, 11, 11, 11, 10, 10]
    assert [layout.is_first(rank) for rank in range(6)] == [True, True, False, False, False, False]
    assert list(layout.last_ranks) == [4, 5]


@pytest.mark.parametrize("layout", [Layout(tp=2), Layout(pp=4), Layout(tp=4, pp=2), Layout(tp=8)])
def test_the_ranks_weights_are_the_models_and_the_norms_that_parts_repeat(layout: Layout) -> None:
    norms = (2 * LLAMA.num_hidden_layers + 1) * LLAMA.hidden_size
    total = sum(weight_count(LLAMA, layout, rank, LLAMA.vocab_size) for rank in range(layout.size))
    assert total == LLAMA.num_parameters + (layout.tp - 1) * norms


def test_a_tied_matrix_is_held_once_a_stage_that_needs_it() -> None:
    tied = preset("llama-3.2-1b")
    assert weight_count(tied, Layout(), 0, tied.vocab_size) == tied.num_parameters
    halves = sum(weight_count(tied, Layout(pp=2), rank, tied.vocab_size) for rank in range(2))
    assert halves == tied.num_parameters + tied.vocab_size * tied.hidden_size


def test_each_rank_of_the_8b_model_by_halves() -> None:
    sizes = EngineConfig(context=8192, num_blocks=1000)
    whole = plan_memory(LLAMA, sizes, dtype="bfloat16")
    first, second = plan_ranks(LLAMA, sizes, dtype="bfloat16", layout=Layout(tp=2))
    norms = 65 * 4096 * 2
    assert first.weights_bytes == second.weights_bytes == (whole.weights_bytes + norms) // 2
    assert first.cache_bytes == second.cache_bytes == whole.cache_bytes // 2
    assert (first.score_bytes, second.score_bytes) == (64 * 128256 * 6, 64 * 128256 * 2)


def test_all_ranks_have_the_blocks_of_the_one_with_the_least_room() -> None:
    plans = plan_ranks(LLAMA, EngineConfig(context=8192, memory_bytes=12 * GIB), dtype="bfloat16", layout=Layout(pp=2))
    assert len({plan.num_blocks for plan in plans}) == 1
    assert all(plan.total_bytes <= 12 * GIB for plan in plans)
    assert 12 * GIB - max(plan.total_bytes for plan in plans) < 16 * 131_072 // 2


def test_a_draft_model_counts_against_rank_0_alone_which_then_has_the_least_room() -> None:
    sizes, small = EngineConfig(context=8192, memory_bytes=12 * GIB), preset("llama-3.2-1b")
    plain = plan_ranks(LLAMA, sizes, dtype="bfloat16", layout=Layout(pp=2))
    first, second = plan_ranks(LLAMA, sizes, dtype="bfloat16", layout=Layout(pp=2), draft=DraftSize(config=small, dtype="bfloat16"))
    assert first.num_blocks == second.num_blocks < plain[0].num_blocks
    block = 16 * small.kv_bytes_per_token(2)
    assert second.draft_bytes == 0 < first.draft_bytes - 2 * small.num_parameters - first.num_blocks * block < GIB
    # A block takes the rank's half of the model's, and the draft's whole one.
    assert 0 <= 12 * GIB - first.total_bytes < 16 * 131_072 // 2 + block
    with pytest.raises(DoesNotFitError, match="rank 0 of 4 does not fit"):
        plan_ranks(
            LLAMA,
            replace(sizes, memory_bytes=6 * GIB),
            dtype="bfloat16",
            layout=Layout(pp=4),
            draft=DraftSize(config=LLAMA, dtype="bfloat16"),
        )


def test_what_does_not_fit_is_told_with_the_ranks_figures() -> None:
    with pytest.raises(DoesNotFitError, match=r"rank 0 of 4 does not fit: .* \(3\.7 GiB of weights, 4\.0 GiB of cache\), the limit is 6"):
        plan_ranks(LLAMA, EngineConfig(memory_bytes=6 * GIB), dtype="bfloat16", layout=Layout(tp=4))


def test_a_split_that_cannot_be_is_refused_with_those_that_can() -> None:
    with pytest.raises(ConfigError, match="tp 16 does not divide num_key_value_heads 8") as caught:
        Layout(tp=16).check(LLAMA)
    assert caught.value.hint == "this model can have tp 1 or 2 or 4 or 8"
    with pytest.raises(ConfigError, match="tp 2 does not divide intermediate_size 7"):
        Layout(tp=2).check(replace(LLAMA, intermediate_size=7))


def test_steps_of_a_few_tokens_stay_whole() -> None:
    assert [num_pieces(tokens, 4) for tokens in (1, 127, 128, 200, 512)] == [1, 1, 2, 3, 4]


@given(st.lists(st.integers(1, 40), min_size=1, max_size=8), st.integers(1, 4), st.randoms(use_true_random=False))
def test_pieces_have_every_token_at_its_place(lengths: list[int], count: int, rng: random.Random) -> None:
    starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    total = int(starts[-1])
    count = min(count, total)
    first = np.asarray([rng.randrange(50) for _ in lengths], dtype=np.int32)
    batch = RaggedBatch(
        tokens_T=np.arange(total, dtype=np.int32),
        first_S=first,
        starts=starts,
        block_table_SW=np.arange(len(lengths), dtype=np.int32)[:, None],
        rows_R=np.asarray(sorted(rng.sample(range(total), rng.randint(0, total))), dtype=np.int64),
        copies=((1, 2),),
    )

    def places(part: RaggedBatch) -> list[tuple[int, int, int]]:
        """(token, sequence, position) of every token."""
        spans = zip(part.starts[:-1], part.starts[1:], part.first_S, part.block_table_SW[:, 0], strict=True)
        return [
            (int(part.tokens_T[place]), int(name), int(start + place - begin))
            for begin, end, start, name in spans
            for place in range(begin, end)
        ]

    parts = list(pieces(batch, count))
    assert [place for part in parts for place in places(part)] == places(batch)
    assert [int(part.tokens_T[row]) for part in parts for row in part.rows_R] == batch.rows_R.tolist()
    assert [part.copies for part in parts] == [((1, 2),), *[()] * (count - 1)]
