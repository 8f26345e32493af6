"""rope_write: the model's rotation bit for bit, each token in its slot, nothing else touched."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kinds import CACHE_DTYPES, DTYPES, KINDS, any_of, dtypes, kinds, running, same
from torch import Tensor

from herd.base.errors import ConfigError
from herd.kernels.batch import Batch, plan_batch
from herd.kernels.int8_rows import dequantise, numbers_of, quantise, scales_of
from herd.kernels.rope import RopeTable, make_cache, rope_write
from herd.model.config import ModelConfig, RopeScaling
from herd.model.rope import apply_rope, rope_frequencies, rope_table


def frequencies(head_dim: int) -> Tensor:
    config = ModelConfig(
        vocab_size=8,
        hidden_size=head_dim,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
        head_dim=head_dim,
        rope_scaling=RopeScaling(),
    )
    return rope_frequencies(config)


def inputs(batch: Batch, heads: int, kv_heads: int, head_dim: int, dtype: torch.dtype, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """q, k and v as views of one product, as the engine has them."""
    width = (heads + 2 * kv_heads) * head_dim
    product = torch.randn(batch.num_tokens, width, generator=torch.Generator().manual_seed(seed)).to(dtype)
    parts = product.split([heads * head_dim, kv_heads * head_dim, kv_heads * head_dim], dim=1)
    return tuple(part.unflatten(1, (part.shape[1] // head_dim, head_dim)) for part in parts)  # type: ignore[return-value]


@settings(max_examples=40, deadline=None)
@given(
    kind=any_of(KINDS),
    dtype=st.sampled_from(DTYPES),
    cache_dtype=st.sampled_from(CACHE_DTYPES),
    head_dim=st.sampled_from([2, 8, 12, 34, 64, 128]),
    kv_heads=st.integers(1, 3),
    group=st.integers(1, 4),
    block_size=st.integers(1, 20),
    sequences=st.lists(st.tuples(st.integers(0, 40), st.integers(0, 20)), min_size=1, max_size=4),
)
def test_it_rotates_as_the_model_does_and_writes_each_slot_once(
    kind: str,
    dtype: torch.dtype,
    cache_dtype: torch.dtype,
    head_dim: int,
    kv_heads: int,
    group: int,
    block_size: int,
    sequences: list[tuple[int, int]],
) -> None:
    needed = [-(-(first + length) // block_size) for first, length in sequences]
    width, order = max([1, *needed]), torch.randperm(sum(needed) + 1, generator=torch.Generator().manual_seed(1)).tolist()
    table = [[order.pop() for _ in range(count)] + [-1] * (width - count) for count in needed]
    first, lengths = [one for one, _ in sequences], [one for _, one in sequences]
    batch = plan_batch(table, first=first, lengths=lengths, num_blocks=sum(needed) + 1, block_size=block_size)
    q, k, v = inputs(batch, kv_heads * group, kv_heads, head_dim, dtype)
    rope = rope_table(batch.positions[None], frequencies(head_dim))
    q_expected, k_expected = (apply_rope(x[None], *rope)[0] for x in (q, k))
    v_expected = v.clone()
    shape = {"num_layers": 2, "num_blocks": sum(needed) + 1, "block_size": block_size, "num_kv_heads": kv_heads, "head_dim": head_dim}
    keys, values = make_cache(**shape, dtype=cache_dtype)
    keys.fill_(7)
    values.fill_(7)
    with running(kind):
        rope_write(q, k, v, RopeTable(frequencies(head_dim)), keys[1], values[1], batch)
    assert same(q.contiguous(), q_expected) and same(v, v_expected)
    untouched = torch.ones(len(keys[1].flatten(0, 1)), dtype=torch.bool)
    untouched[batch.slots] = False
    for cache, expected in ((keys, k_expected), (values, v_expected)):
        stored = quantise(expected) if cache_dtype == torch.int8 else expected.to(cache_dtype)
        assert same(cache[1].flatten(0, 1)[batch.slots], stored)
        assert (cache[1].flatten(0, 1)[untouched] == 7).all() and (cache[0] == 7).all()


def test_a_slot_is_where_the_table_says() -> None:
    batch = plan_batch([[3, 0], [1, -1]], first=[2, 0], lengths=[4, 1], num_blocks=4, block_size=4)
    assert batch.positions.tolist() == [2, 3, 4, 5, 0]
    assert batch.slots.tolist() == [3 * 4 + 2, 3 * 4 + 3, 0, 1, 4]
    assert (batch.num_tokens, batch.num_sequences, batch.num_positions) == (5, 2, 6)


@pytest.mark.parametrize("head_dim", [8, 64, 128])
def test_a_table_row_is_the_models_whenever_it_is_computed(head_dim: int) -> None:
    grown = RopeTable(frequencies(head_dim))
    for upto in (1, 700, 5000):
        grown.upto(upto)
    cos, sin = grown.upto(5000)
    once_cos, once_sin = RopeTable(frequencies(head_dim)).upto(5000)
    assert same(cos[:5000], once_cos[:5000]) and same(sin[:5000], once_sin[:5000])
    model_cos, model_sin = rope_table(torch.arange(5000)[None], frequencies(head_dim))
    assert same(model_cos[0, :, 0, : head_dim // 2], cos[:5000]) and same(model_sin[0, :, 0, head_dim // 2 :], sin[:5000])


@kinds
def test_float16_rounds_as_torch_does(kind: str) -> None:
    numbers = torch.cat([torch.randn(500) * 10.0**power for power in range(-9, 7)]).view(-1, 1, 8)[:1000]
    extremes = torch.tensor([65504.0, 65519.9, 65520.0, -1e9, 6e-8, 2.9e-8, 3e-8, -6.1e-5]).view(1, 1, 8)
    v = torch.cat([numbers, extremes])
    batch = plan_batch([list(range(len(v)))], first=[0], lengths=[len(v)], num_blocks=len(v), block_size=1)
    keys, values = make_cache(num_layers=1, num_blocks=len(v), block_size=1, num_kv_heads=1, head_dim=8, dtype=torch.float16)
    with running(kind):
        rope_write(torch.zeros_like(v), torch.zeros_like(v), v, RopeTable(frequencies(8)), keys[0], values[0], batch)
    assert same(values[0].view(-1, 1, 8), v.half())


def written(kind: str, v: Tensor) -> Tensor:
    """Vectors [T, 1, H] as an int8 cache holds them."""
    batch = plan_batch([list(range(len(v)))], first=[0], lengths=[len(v)], num_blocks=len(v), block_size=1)
    head_dim = v.shape[-1]
    keys, values = make_cache(num_layers=1, num_blocks=len(v), block_size=1, num_kv_heads=1, head_dim=head_dim, dtype=torch.int8)
    with running(kind):
        rope_write(torch.zeros_like(v), torch.zeros_like(v), v, RopeTable(frequencies(head_dim)), keys[0], values[0], batch)
    assert not keys[:, :, :, :, :-4].any()
    return values[0].view(-1, 1, head_dim + 4)


@dtypes
@kinds
def test_a_byte_is_the_nearest_multiple_of_the_scale(kind: str, dtype: torch.dtype) -> None:
    powers = [torch.randn(200, 1, 8) * 10.0**power for power in (-44, -40, -38, -9, 0, 6, 30, 38)]
    halves = torch.tensor([[127.0, 0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 126.5], [0.0] * 8, [3e38, -3e38] * 4])[:, None]
    v = torch.cat([*powers, halves]).to(dtype)
    v = v[v.isfinite().all(-1).all(-1)]
    rows = written(kind, v)
    assert same(rows, quantise(v))
    exact = v.double()
    error = (exact - numbers_of(rows).double() * scales_of(rows).double()[..., None]).abs()
    coarse = 127.5 * 2.0**-150  # what a subnormal scale is rounded by
    assert bool((error <= exact.abs().amax(-1, keepdim=True) / 254 * (1 + 1e-5) + coarse).all())
    assert numbers_of(rows)[-3, 0].tolist() == [127, 0, 2, 2, 0, -2, -2, 126]
    assert not rows[-2].any()


@kinds
@pytest.mark.parametrize("wrong", [torch.nan, torch.inf, -torch.inf])
def test_a_vector_that_is_not_finite_stands_for_nan(kind: str, wrong: float) -> None:
    v = torch.ones(3, 1, 20)
    v[1, 0, 17] = wrong
    found = dequantise(written(kind, v))
    assert bool(found[1].isnan().all()) and found[[0, 2]].eq(1.0).all()


@dtypes
def test_an_empty_batch_does_nothing(dtype: torch.dtype) -> None:
    batch = plan_batch([[0]], first=[0], lengths=[0], num_blocks=1, block_size=4)
    q, k, v = inputs(batch, 2, 1, 8, dtype)
    keys, values = make_cache(num_layers=1, num_blocks=1, block_size=4, num_kv_heads=1, head_dim=8, dtype=dtype)
    rope_write(q, k, v, RopeTable(frequencies(8)), keys[0], values[0], batch)
    assert not keys.any()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"block_table": [[0, 4]], "first": [0], "lengths": [5]}, "block 4, number 1 of sequence 0, is not one of 0 to 3"),
        ({"block_table": [[0, -1]], "first": [0], "lengths": [5]}, "block -1, number 1 of sequence 0"),
        ({"block_table": [[0], [1]], "first": [0, 0], "lengths": [1, 5]}, "sequence 1 needs 2 blocks of 4, its row lists 1"),
        ({"block_table": [[1], [1]], "first": [2, 2], "lengths": [1, 1]}, "two tokens would be written to offset 2 of block 1"),
        ({"block_table": [[0]], "first": [-1], "lengths": [1]}, "negative"),
        ({"block_table": [[0]], "first": [0, 1], "lengths": [1]}, "expected"),
        ({"block_table": [[0]], "first": [0], "lengths": [1], "block_size": 0}, "holds nothing"),
        ({"block_table": [[0]], "first": [2**40], "lengths": [1]}, "do not fit 32 bits"),
    ],
)
def test_a_plan_that_would_write_or_read_astray_is_refused(unchecked: None, arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as refused:
        plan_batch(**{"num_blocks": 4, "block_size": 4, **arguments})  # type: ignore[arg-type]
    assert refused.value.hint


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"q": torch.zeros(3, 4, 8)}, r"q is torch.float32 \[3, 4, 8\], expected torch.float32 \[2, heads, head_dim\]"),
        ({"k": torch.zeros(2, 1, 8, dtype=torch.bfloat16)}, "k is torch.bfloat16"),
        ({"k": torch.zeros(2, 2, 8)}, r"k is \[2, 2, 8\] and v \[2, 1, 8\]"),
        ({"q": torch.zeros(2, 8, 4).transpose(1, 2)}, "heads must lie side by side|has strides"),
        ({"q": torch.zeros(1, 4, 8).expand(2, 4, 8)}, "has strides"),
        ({"table": RopeTable(torch.ones(3))}, "heads of 8 and 3 frequencies"),
        ({"key_cache": torch.zeros(4, 4, 1, 6)}, "key_cache is"),
        ({"value_cache": torch.zeros(4, 4, 1, 8).half()}, "value_cache is"),
        ({"key_cache": torch.zeros(4, 4, 1, 16)[..., ::2]}, "key_cache has strides"),
    ],
)
def test_what_does_not_fit_is_refused(unchecked: None, change: dict[str, object], message: str) -> None:
    batch = plan_batch([[1]], first=[0], lengths=[2], num_blocks=4, block_size=4)
    arguments: dict[str, object] = {"q": torch.zeros(2, 4, 8), "k": torch.zeros(2, 1, 8), "v": torch.zeros(2, 1, 8)}
    arguments |= {"table": RopeTable(torch.ones(4)), "key_cache": torch.zeros(4, 4, 1, 8), "value_cache": torch.zeros(4, 4, 1, 8)}
    with pytest.raises(ConfigError, match=message):
        rope_write(**{**arguments, **change}, batch=batch)  # type: ignore[arg-type]
