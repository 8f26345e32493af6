"""The law: a row's result depends on that row alone. Bit for bit, in C at every level and in the reference."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kinds import DTYPES, KINDS, any_of, c_library, dtypes, kinds, running, same
from paged import world
from torch import Tensor

from herd.kernels.linear import linear, linear_swiglu, pack_gate_up, pack_linear
from herd.kernels.norm import rms_norm
from herd.kernels.swiglu import swiglu

ROWS = 70
RowOp = Callable[[Tensor], Tensor]
caches = pytest.mark.parametrize("cache_dtype", [None, torch.int8], ids=["as-stored", "int8"])
MAKERS = ["linear", "linear_residual", "linear_swiglu", "rms_norm", "swiglu"]


def random(*shape: int, dtype: torch.dtype, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def row_op(name: str, k: int, n: int, dtype: torch.dtype) -> RowOp:
    """An op of the rows of a matrix, over weights packed once."""
    w, up, gain = random(n, k, dtype=dtype, seed=1), random(n, k, dtype=dtype, seed=2), random(k, dtype=dtype, seed=3)
    if name == "linear":
        packed = pack_linear(w)
        return lambda x: linear(x, packed)
    if name == "linear_residual":
        packed = pack_linear(w)
        return lambda x: linear(x, packed, residual=x[:, :n] * 2)
    if name == "linear_swiglu":
        pair = pack_gate_up(w, up)
        return lambda x: linear_swiglu(x, pair)
    if name == "rms_norm":
        return lambda x: rms_norm(x, gain, 1e-5)
    return lambda x: swiglu(x, x.flip(0).flip(0))


@pytest.mark.parametrize("name", MAKERS)
@dtypes
@kinds
def test_a_row_alone_in_a_batch_and_anywhere_in_it(kind: str, dtype: torch.dtype, name: str) -> None:
    k, n = 301, 150
    x = random(ROWS, k, dtype=dtype, seed=0)
    order = torch.randperm(ROWS, generator=torch.Generator().manual_seed(5))
    with running(kind):
        op = row_op(name, k, n, dtype)
        whole = op(x)
        assert same(op(x[order].contiguous()), whole[order])
        for count in (1, 2, 3, 7, 8, 12, 13, 16, 17, 33, 64):
            for begin in (0, 5, ROWS - count):
                part = slice(max(0, begin), begin + count)
                assert same(op(x[part].contiguous()), whole[part]), (count, begin)
        repeated = op(x[3:4].expand(40, k).contiguous())
        assert same(repeated, whole[3:4].expand(40, -1).contiguous())
        noisy = x.clone()
        noisy[torch.arange(ROWS) != 9] *= -1e3
        assert same(op(noisy)[9], whole[9])


@pytest.mark.parametrize("name", MAKERS)
@dtypes
@kinds
def test_any_number_of_threads(kind: str, dtype: torch.dtype, name: str) -> None:
    k, n = 512, 700
    x = random(300, k, dtype=dtype, seed=0)
    results = []
    for threads in (1, 2, 5):
        with running(kind, threads=threads):
            op = row_op(name, k, k if name == "linear_residual" else n, dtype)
            results.append([op(x[:count]) for count in (1, 2, 40, 300)])
    assert all(same(a, b) for other in results[1:] for a, b in zip(results[0], other, strict=True))


@settings(max_examples=40, deadline=None)
@given(
    kind=any_of(KINDS),
    dtype=st.sampled_from(DTYPES),
    m=st.integers(2, 70),
    n=st.integers(1, 100),
    k=st.integers(1, 600),
    row=st.integers(0, 69),
)
def test_linear_of_any_shape(kind: str, dtype: torch.dtype, m: int, n: int, k: int, row: int) -> None:
    x = random(m, k, dtype=dtype, seed=m)
    row %= m
    with running(kind):
        op = row_op("linear", k, n, dtype)
        assert same(op(x[row : row + 1]), op(x)[row : row + 1])


@pytest.mark.parametrize(
    ("heads", "kv_heads", "head_dim"), [(4, 1, 64), (2, 2, 24), (8, 1, 128), (6, 2, 8)], ids=["cria", "mha", "wide", "small"]
)
@caches
@dtypes
@kinds
def test_a_prompt_in_any_chunks_is_its_tokens_one_by_one(
    kind: str, dtype: torch.dtype, cache_dtype: torch.dtype | None, heads: int, kv_heads: int, head_dim: int
) -> None:
    length = 140 if kind == "reference" else 530
    made = world([length], heads=heads, kv_heads=kv_heads, head_dim=head_dim, dtype=dtype, cache_dtype=cache_dtype)
    with running(kind):
        whole = made.attend([(0, 0, length)])[0]
        for chunk in (16, 64, 77, 512) if kind != "reference" else (16, 77):
            parts = [made.attend([(0, begin, min(chunk, length - begin))])[0] for begin in range(0, length, chunk)]
            assert same(torch.cat(parts), whole), chunk
        for position in {0, 31, 127, 128, 129, 255, 256, 400, length - 1} & set(range(length)):
            assert same(made.attend([(0, position, 1)])[0], whole[position : position + 1]), position


@caches
@dtypes
@kinds
def test_attention_of_a_sequence_among_others(kind: str, dtype: torch.dtype, cache_dtype: torch.dtype | None) -> None:
    lengths = [140, 9, 300, 1, 65]
    made = world(lengths, heads=4, kv_heads=2, head_dim=32, dtype=dtype, cache_dtype=cache_dtype)
    parts = [(0, 100, 40), (1, 8, 1), (2, 299, 1), (3, 0, 1), (4, 2, 63)]
    with running(kind):
        alone = [made.attend([part])[0] for part in parts]
        for order in ([0, 1, 2, 3, 4], [4, 2, 0, 3, 1], [2, 1], [3, 0, 2]):
            together = made.attend([parts[s] for s in order])
            assert all(same(found, alone[s]) for s, found in zip(order, together, strict=True)), order


@caches
@dtypes
@kinds
def test_attention_wherever_the_blocks_are_and_however_large(kind: str, dtype: torch.dtype, cache_dtype: torch.dtype | None) -> None:
    results = []
    for block_size, shuffle in ((16, 0), (16, 1), (7, 2), (64, 3), (200, 4)):
        places = {"block_size": block_size, "shuffle": shuffle}
        made = world([190, 20], heads=4, kv_heads=1, head_dim=16, dtype=dtype, cache_dtype=cache_dtype, **places)
        with running(kind):
            results.append(torch.cat(made.attend([(0, 150, 40), (1, 19, 1)])))
    assert all(same(results[0], other) for other in results[1:])


@caches
@dtypes
@kinds
def test_attention_with_any_number_of_threads(kind: str, dtype: torch.dtype, cache_dtype: torch.dtype | None) -> None:
    long = 270 if kind == "reference" else 2600
    made = world([long, 300, 700], heads=4, kv_heads=2, head_dim=16, dtype=dtype, cache_dtype=cache_dtype)
    results = []
    for threads in (1, 2, 3, 8):
        with running(kind, threads=threads):
            results.append(torch.cat(made.attend([(0, long - 1, 1), (1, 200, 100), (2, 697, 3)])))
            results[-1] = torch.cat([results[-1], *made.attend([(0, long - 2, 2)])])
    assert all(same(results[0], other) for other in results[1:])


@kinds
def test_keys_that_a_token_may_not_see_are_as_good_as_absent(kind: str) -> None:
    made = world([200], heads=2, kv_heads=1, head_dim=8)
    with running(kind):
        before = made.attend([(0, 0, 150)])[0]
        slots = torch.tensor(made.table[0])[torch.arange(150, 200) // 16] * 16 + torch.arange(150, 200) % 16
        made.key_cache.flatten(0, 1)[slots] = torch.nan
        made.value_cache.flatten(0, 1)[slots] = torch.inf
        assert same(made.attend([(0, 0, 150)])[0], before)


@pytest.mark.parametrize("kind", ["scalar", "avx2", "avx512", "avx512bf16"])
def test_even_a_later_token_of_the_same_chunk_that_is_no_number(kind: str) -> None:
    """In C only: the reference multiplies by exact zeros, and zero times infinity is no number."""
    made = world([150], heads=4, kv_heads=1, head_dim=8)
    with running(kind):
        before = made.attend([(0, 0, 150)])[0]
        slot = made.table[0][100 // 16] * 16 + 100 % 16
        made.key_cache.flatten(0, 1)[slot] = torch.nan
        made.value_cache.flatten(0, 1)[slot] = torch.inf
        after = made.attend([(0, 0, 150)])[0]
    assert same(after[:100], before[:100]) and after[100:].isnan().any()


@caches
@dtypes
def test_levels_with_fused_multiply_add_agree_bit_for_bit(dtype: torch.dtype, cache_dtype: torch.dtype | None) -> None:
    levels = [level for level in c_library().levels if level != "scalar"]
    if len(levels) < 2:
        pytest.skip("this processor has one such level at most")
    x = random(20, 600, dtype=dtype, seed=0)
    made = world([300], heads=4, kv_heads=1, head_dim=64, dtype=dtype, cache_dtype=cache_dtype)
    results = []
    for level in levels:
        with running(level):
            rows = [row_op(name, 600, 90, dtype)(x) for name in MAKERS]
            results.append([*rows, made.attend([(0, 200, 100)])[0], made.attend([(0, 299, 1)])[0]])
    assert all(same(a, b) for other in results[1:] for a, b in zip(results[0], other, strict=True))
