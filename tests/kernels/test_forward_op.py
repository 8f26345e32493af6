"""The whole model in one call against the ops one by one: the same bits, whatever the batch; and batches that it has to refuse."""

from __future__ import annotations

import gc
import weakref
from dataclasses import replace

import numpy as np
import pytest
import torch
from kinds import c_library, running

from herd.base.errors import ConfigError
from herd.engine.batch import RaggedBatch, block_table
from herd.engine.runner import CpuRunner
from herd.kernels import dispatch
from herd.model.config import ModelConfig
from herd.model.init import initialise
from herd.model.transformer import Transformer

VOCAB, BLOCK_SIZE, NUM_BLOCKS = 96, 4, 64
CONFIG = ModelConfig(
    vocab_size=VOCAB,
    hidden_size=48,
    intermediate_size=112,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,
    max_position_embeddings=128,
    initializer_range=0.15,
)

pytestmark = pytest.mark.skipif(dispatch.choice().library is None, reason="the C kernels do not run here")


def runner(dtype: torch.dtype, *, tied: bool, whole: bool, cache_dtype: str | None = None) -> CpuRunner:
    with torch.device("meta"):
        model = Transformer(replace(CONFIG, tie_word_embeddings=tied))
    model = initialise(model, seed=3, dtype=dtype).eval()
    made = CpuRunner(model, num_blocks=NUM_BLOCKS, block_size=BLOCK_SIZE, max_tokens=64, score_rows=5, cache_dtype=cache_dtype)
    if not whole:
        made._forward = None
    return made


def ragged(*spans: tuple[int, int], rows: list[int], seed: int) -> RaggedBatch:
    """A batch of (first position, tokens), each sequence in blocks of its own."""
    rng = np.random.default_rng(seed)
    lengths = [count for _, count in spans]
    tables = [list(range(number * 16, number * 16 + -(-(first + count) // BLOCK_SIZE))) for number, (first, count) in enumerate(spans)]
    return RaggedBatch(
        tokens_T=rng.integers(0, VOCAB, sum(lengths), dtype=np.int32),
        first_S=np.array([first for first, _ in spans], dtype=np.int32),
        starts=np.cumsum([0, *lengths], dtype=np.int32),
        block_table_SW=block_table(tables),
        rows_R=np.array(rows, dtype=np.int64),
    )


BATCHES = [
    ragged((0, 20), (0, 7), (0, 1), rows=[19, 27], seed=0),
    ragged((20, 13), (7, 1), (1, 1), rows=[], seed=1),
    ragged((33, 1), (8, 1), (2, 1), rows=[0, 1, 2], seed=2),
    ragged((34, 6), (9, 2), (3, 0), rows=[0, 1, 2, 3, 5, 6, 7], seed=3),
]


def scores(made: CpuRunner, batch: RaggedBatch) -> list[np.ndarray]:
    return [chunk.copy() for _, chunk in made.run(batch)]


@pytest.mark.parametrize("cache_dtype", [None, "float16", "int8"])
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_the_bits_of_the_ops_one_by_one(dtype: torch.dtype, tied: bool, cache_dtype: str | None) -> None:
    whole, apart = (runner(dtype, tied=tied, whole=flag, cache_dtype=cache_dtype) for flag in (True, False))
    for batch in BATCHES:
        found, expected = scores(whole, batch), scores(apart, batch)
        assert [len(chunk) for chunk in found] == [len(chunk) for chunk in expected]
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_array_equal(one, other)
    assert torch.equal(whole._ops.layers.keys, apart._ops.layers.keys)
    assert torch.equal(whole._ops.layers.values, apart._ops.layers.values)


def many(count: int, *, seed: int) -> RaggedBatch:
    """So many sequences in the middle of their answers, in blocks of their own, some with a token or two more than one."""
    rng = np.random.default_rng(seed)
    lengths = rng.choice([1, 1, 1, 2], count)
    first = rng.integers(0, 3, count)
    return RaggedBatch(
        tokens_T=rng.integers(0, VOCAB, lengths.sum(), dtype=np.int32),
        first_S=first.astype(np.int32),
        starts=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32),
        block_table_SW=np.asfortranarray(rng.permutation(NUM_BLOCKS - 1)[: 2 * count].reshape(count, 2) + 1).astype(np.int32),
        rows_R=np.sort(rng.permutation(lengths.sum())[: count // 2]).astype(np.int64),
    )


@pytest.mark.parametrize("threads", [1, 2, 3, 4])
@pytest.mark.parametrize("count", [3, 15, 16, 24, 31])
def test_a_batch_in_parts_has_the_bits_of_a_batch_in_one(count: int, threads: int) -> None:
    """A small model's batch is cut into parts of whole sequences for the threads."""
    with running("avx512bf16" if "avx512bf16" in c_library().levels else "scalar", threads=threads):
        whole, apart = (runner(torch.bfloat16, tied=True, whole=flag) for flag in (True, False))
        for batch in (many(count, seed=count), many(count, seed=count + 1), replace(many(count, seed=count), rows_R=np.empty(0, np.int64))):
            for one, other in zip(scores(whole, batch), scores(apart, batch), strict=True):
                np.testing.assert_array_equal(one, other)
        assert torch.equal(whole._ops.layers.keys, apart._ops.layers.keys)


def test_angles_that_another_user_outgrows_are_read_on() -> None:
    """An embedding's long prompt, run op by op, makes a longer table of angles; the one before it must not go while C reads it."""
    made = runner(torch.float32, tied=True, whole=True)
    before = scores(made, BATCHES[0])
    table = made._ops.layers.rope
    short = weakref.ref(table.upto(1)[0])
    longer = table.upto(5000)[0]
    gc.collect()
    kept = short()
    assert kept is not None and kept is not longer and made._forward is not None
    assert made._forward._model.cos == kept.data_ptr(), "C reads what is still there"
    for one, other in zip(before, scores(made, BATCHES[0]), strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_table_may_be_a_view_of_a_wider_one() -> None:
    batch = many(20, seed=9)
    wide = np.full((25, 9), -1, dtype=np.int32)
    wide[:20, :2] = batch.block_table_SW
    expected, found = (
        scores(runner(torch.float32, tied=False, whole=True), one) for one in (batch, replace(batch, block_table_SW=wide[:20, :2]))
    )
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)


def changed(batch: RaggedBatch, **arrays: np.ndarray) -> RaggedBatch:
    return replace(batch, **arrays)


BASE = BATCHES[0]
WRONG = {
    "a block out of range": changed(BASE, block_table_SW=np.where(BASE.block_table_SW == 17, NUM_BLOCKS, BASE.block_table_SW)),
    "a negative block": changed(BASE, block_table_SW=np.where(BASE.block_table_SW == 2, -1, BASE.block_table_SW)),
    "too few blocks": changed(BASE, block_table_SW=BASE.block_table_SW[:, :2]),
    "a negative position": changed(BASE, first_S=np.array([0, -1, 0], dtype=np.int32)),
    "a slot written twice": changed(BASE, block_table_SW=np.zeros_like(BASE.block_table_SW) + BASE.block_table_SW[:1]),
    "an id out of range": changed(BASE, tokens_T=np.full_like(BASE.tokens_T, VOCAB)),
    "a negative id": changed(BASE, tokens_T=np.full_like(BASE.tokens_T, -1)),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_batch_is_refused_and_leaves_no_trace(name: str) -> None:
    made = runner(torch.float32, tied=False, whole=True)
    keys = made._ops.layers.keys.clone()
    with pytest.raises(ConfigError):
        scores(made, WRONG[name])
    assert torch.equal(made._ops.layers.keys, keys)
    fresh = runner(torch.float32, tied=False, whole=True)
    for one, other in zip(scores(made, BASE), scores(fresh, BASE), strict=True):
        np.testing.assert_array_equal(one, other)
