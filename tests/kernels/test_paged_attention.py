"""paged_attention: within a bound of attention by the book, over ragged batches, head counts, block sizes and dtypes."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kinds import CACHE_DTYPES, DTYPES, KINDS, any_of, dtypes, kinds, running, same
from paged import truth, world

from herd.base.errors import ConfigError
from herd.kernels.attention import paged_attention
from herd.kernels.batch import plan_batch


def check(kind: str, parts: list[tuple[int, int]], *, threads: int | None = None, **shape: object) -> None:
    """Parts (first, length), one a sequence; unused slots of the caches hold NaN."""
    made = world([first + length for first, length in parts], **shape)  # type: ignore[arg-type]
    with running(kind, threads=threads):
        outputs = made.attend([(s, first, length) for s, (first, length) in enumerate(parts)])
    for s, (first, length) in enumerate(parts):
        expected, bound = truth(made.queries[s][first : first + length], made.keys[s], made.values[s], first)
        assert bool(((outputs[s].double() - expected).abs() <= bound).all()), (s, first, length)


@settings(max_examples=40, deadline=None)
@given(
    kind=any_of(KINDS),
    dtype=st.sampled_from(DTYPES),
    cache_dtype=st.sampled_from(CACHE_DTYPES),
    head_dim=st.sampled_from([8, 16, 20, 32, 34, 48, 64, 96, 128]),
    kv_heads=st.integers(1, 3),
    group=st.sampled_from([1, 2, 3, 4, 5, 8, 16]),
    block_size=st.sampled_from([1, 3, 8, 16, 32, 100, 300]),
    parts=st.lists(st.tuples(st.integers(0, 270), st.integers(1, 40)), min_size=1, max_size=4),
)
def test_it_is_attention_within_the_bound(
    kind: str,
    dtype: torch.dtype,
    cache_dtype: torch.dtype,
    head_dim: int,
    kv_heads: int,
    group: int,
    block_size: int,
    parts: list[tuple[int, int]],
) -> None:
    shape = {"heads": kv_heads * group, "kv_heads": kv_heads, "head_dim": head_dim, "block_size": block_size}
    check(kind, parts, **shape, dtype=dtype, cache_dtype=cache_dtype)


@pytest.mark.parametrize("cache_dtype", [torch.bfloat16, torch.int8], ids=["bfloat16", "int8"])
@pytest.mark.parametrize("kind", ["reference", "avx2", "avx512bf16"])
def test_the_edges_of_splits_tiles_and_blocks(kind: str, cache_dtype: torch.dtype) -> None:
    parts = [(0, 1), (127, 1), (128, 1), (126, 4), (0, 129), (100, 200), (383, 1), (255, 2)]
    check(kind, parts, heads=4, kv_heads=2, head_dim=32, dtype=torch.bfloat16, cache_dtype=cache_dtype)


@dtypes
@kinds
def test_bytes_at_the_shapes_of_models(kind: str, dtype: torch.dtype) -> None:
    for heads, kv_heads, head_dim in ((4, 1, 64), (8, 2, 128)):
        check(kind, [(300, 1), (128, 60)], heads=heads, kv_heads=kv_heads, head_dim=head_dim, dtype=dtype, cache_dtype=torch.int8)


def test_a_long_decode_shared_by_threads() -> None:
    for threads in (1, 4):
        check("scalar", [(3000, 1), (2500, 3)], threads=threads, heads=4, kv_heads=2, head_dim=16)


@kinds
def test_scores_that_dwarf_each_other(kind: str) -> None:
    made = world([400], heads=2, kv_heads=1, head_dim=16, dtype=torch.float32)
    made.queries[0] *= 300.0
    with running(kind):
        (out,) = made.attend([(0, 390, 10)])
    expected, _ = truth(made.queries[0][390:], made.keys[0], made.values[0], 390)
    assert bool(((out.double() - expected).abs() < 1e-2).all())


@kinds
def test_a_token_that_sees_itself_alone_gets_its_value(kind: str) -> None:
    made = world([1], heads=4, kv_heads=2, head_dim=8)
    with running(kind):
        (out,) = made.attend([(0, 0, 1)])
    assert same(out, made.values[0].repeat_interleave(2, 1))


@kinds
def test_views_empty_sequences_and_shared_prefixes(kind: str) -> None:
    made = world([40], heads=2, kv_heads=1, head_dim=8)
    with running(kind):
        expected = made.attend([(0, 20, 12)])[0]
        plan = plan_batch([made.table[0]] * 3, first=[20, 5, 32], lengths=[12, 0, 1], num_blocks=len(made.key_cache), block_size=16)
        wide = torch.zeros(13, 4, 8)
        wide[:, :2] = torch.cat([made.queries[0][20:32], made.queries[0][32:33]])
        out = torch.zeros(13, 3, 8)
        paged_attention(wide[:, :2], made.key_cache, made.value_cache, plan, out[:, 1:])
    assert same(out[:12, 1:].contiguous(), expected) and not out[:, 0].any()


def test_heads_larger_than_c_takes_run_the_reference() -> None:
    check("scalar", [(0, 5)], heads=2, kv_heads=1, head_dim=160)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"q": torch.zeros(3, 4, 8)}, r"q is torch.float32 \[3, 4, 8\], expected torch.float32 \[2, heads, head_dim\]"),
        ({"q": torch.zeros(2, 3, 8), "out": None}, "3 query heads cannot share 2 KV heads"),
        ({"out": torch.zeros(2, 4, 8, dtype=torch.bfloat16)}, "out is torch.bfloat16"),
        ({"out": torch.zeros(2, 2, 8)}, r"out is \[2, 2, 8\], q \[2, 4, 8\]"),
        ({"out": torch.zeros(1, 4, 8).expand(2, 4, 8)}, "out has strides"),
        ({"key_cache": torch.zeros(4, 8, 2, 8)}, r"key_cache is torch.float32 \[4, 8, 2, 8\], expected \[4, 4, 2, 8\]"),
        ({"value_cache": torch.zeros(4, 4, 2, 8).bfloat16()}, "value_cache is torch.bfloat16"),
        ({"value_cache": torch.zeros(4, 2, 4, 8).transpose(1, 2)}, "value_cache has strides"),
    ],
)
def test_what_does_not_fit_is_refused(unchecked: None, change: dict[str, object], message: str) -> None:
    batch = plan_batch([[1]], first=[0], lengths=[2], num_blocks=4, block_size=4)
    arguments: dict[str, object] = {"q": torch.zeros(2, 4, 8), "out": torch.zeros(2, 4, 8)}
    arguments |= {"key_cache": torch.zeros(4, 4, 2, 8), "value_cache": torch.zeros(4, 4, 2, 8)}
    with pytest.raises(ConfigError, match=message):
        paged_attention(**{**arguments, **change}, batch=batch)  # type: ignore[arg-type]
