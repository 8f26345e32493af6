"""Triton's paged attention against attention in float64 over the cached numbers, and its law: a token's bits depend on nothing beside it.

Runs in a process of its own with TRITON_INTERPRET=1: see tests/kernels/test_triton.py; on a GPU: see on_gpu.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pytest
import torch
from on_gpu import RUNS, SLACK, WHY
from torch import Tensor

if not RUNS:
    pytest.skip(WHY, allow_module_level=True)

from herd.kernels.caches import row_width
from herd.kernels.int8_rows import BYTE_DTYPES, dequantise, stored
from herd.kernels.triton import attention

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy's, of infinities that a GPU takes in silence
FP8 = torch.float8_e4m3fn
CASES = [
    (torch.float32, torch.float32), (torch.bfloat16, torch.bfloat16), (torch.float16, torch.float16), (torch.float32, torch.bfloat16),
    (torch.bfloat16, torch.int8), (torch.float32, torch.int8), (torch.bfloat16, FP8), (torch.float32, FP8),
]  # fmt: skip
cases = pytest.mark.parametrize(("dtype", "cache_dtype"), CASES, ids=[f"{a}-{b}".replace("torch.", "") for a, b in CASES])


@dataclass
class World:
    """Sequences of keys and values in scattered blocks; unused slots hold noise."""

    queries: list[Tensor]
    keys: Tensor
    values: Tensor
    tables: Tensor
    wanted: list[Tensor]

    def whole(self, parts: Sequence[tuple[int, int, int]]) -> list[Tensor]:
        """Outputs of parts (sequence, first, length) in one batch, as a prompt's chunks."""
        starts = [0]
        for _, _, length in parts:
            starts.append(starts[-1] + length)
        q = torch.cat([self.queries[s][first : first + length] for s, first, length in parts])
        places = {
            "tables": self.tables[[s for s, _, _ in parts]].contiguous(),
            "starts": torch.tensor(starts, dtype=torch.int32),
            "first": torch.tensor([first for _, first, _ in parts], dtype=torch.int32),
            "tiles": torch.tensor(attention.tiles_of(starts, q.shape[1] // self.keys.shape[2]), dtype=torch.int32).view(-1, 2),
        }
        out = attention.attend(q, self.keys, self.values, out=torch.empty_like(q), **places)
        return list(out.split([length for _, _, length in parts]))

    def decoding(self, rows: Sequence[tuple[int, int]], *, spare: int = 0, padding: int = 0) -> Tensor:
        """Outputs of tokens (sequence, position), as decoding, with so many parts and rows that are not needed."""
        q = torch.stack([self.queries[s][position] for s, position in rows] + [torch.ones_like(self.queries[0][0])] * padding)
        positions = torch.tensor([position for _, position in rows] + [-1] * padding)
        parts = attention.num_parts(int(positions.max()) + 1) + spare
        _, heads, head_dim = q.shape
        scratch = torch.full((attention.partial_numbers(len(q), heads, head_dim, parts),), torch.nan)
        tables = torch.cat([self.tables[[s for s, _ in rows]], torch.zeros(padding, self.tables.shape[1], dtype=torch.int32)])
        return attention.attend_decoding(
            q, self.keys, self.values, tables=tables, positions=positions, parts=parts, scratch=scratch, out=torch.empty_like(q)
        )


def world(
    lengths: Sequence[int], *, heads: int, kv_heads: int, head_dim: int, dtype: torch.dtype, cache_dtype: torch.dtype, block_size: int = 16
) -> World:
    random = torch.Generator().manual_seed(1)
    needed = [-(-length // block_size) for length in lengths]
    order = torch.randperm(sum(needed) + 2, generator=random).to(torch.int32)
    tables = torch.zeros(len(lengths), max(needed), dtype=torch.int32)
    width = row_width(head_dim, cache_dtype)
    keys, values = (
        torch.full((len(order), block_size, kv_heads, width), 127 if cache_dtype == torch.int8 else torch.nan) for _ in range(2)
    )
    keys, values = keys.to(cache_dtype), values.to(cache_dtype)
    queries, wanted = [], []
    for s, (length, count) in enumerate(zip(lengths, needed, strict=True)):
        blocks, order = order[:count], order[count:]
        tables[s, :count] = blocks
        at = torch.arange(length)
        slots = blocks.long()[at // block_size] * block_size + at % block_size
        q = torch.randn(length, heads, head_dim, generator=random).to(dtype)
        k, v = (stored(torch.randn(length, kv_heads, head_dim, generator=random).to(dtype), cache_dtype) for _ in range(2))
        for cache, rows in ((keys, k), (values, v)):
            cache.flatten(0, 1).view(torch.uint8)[slots] = rows.view(torch.uint8)
        queries.append(q)
        k, v = (dequantise(x) if cache_dtype in BYTE_DTYPES else x for x in (k, v))
        wanted.append(by_the_book(q.double(), k.double(), v.double()))
    return World(queries, keys, values, tables, wanted)


def by_the_book(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    group = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    scores = torch.einsum("tnh,snh->nts", q, k) * q.shape[2] ** -0.5
    visible = torch.ones(len(q), len(q), dtype=torch.bool).tril()
    return torch.einsum("nts,snh->tnh", scores.masked_fill(~visible, -torch.inf).softmax(-1), v)


def check(found: Tensor, wanted: Tensor, dtype: torch.dtype) -> None:
    torch.testing.assert_close(found.double(), wanted, rtol=0, atol=4 * torch.finfo(dtype).eps + 1e-6 * SLACK)


@cases
def test_both_kernels_are_attention(dtype: torch.dtype, cache_dtype: torch.dtype) -> None:
    made = world([300, 7, 65], heads=4, kv_heads=1, head_dim=16, dtype=dtype, cache_dtype=cache_dtype)
    for found, wanted in zip(made.whole([(0, 0, 300), (1, 0, 7), (2, 0, 65)]), made.wanted, strict=True):
        check(found, wanted, dtype)
    rows = [(0, 299), (1, 6), (2, 64), (0, 255), (0, 256)]
    check(made.decoding(rows), torch.stack([made.wanted[s][at] for s, at in rows]), dtype)


@cases
def test_a_token_is_the_same_however_it_is_run(dtype: torch.dtype, cache_dtype: torch.dtype) -> None:
    made = world([270, 7], heads=2, kv_heads=1, head_dim=16, dtype=dtype, cache_dtype=cache_dtype)
    (alone,) = made.whole([(0, 0, 270)])
    for cuts in ((1, 100, 257, 270),):
        begin, found = 0, []
        for end in cuts:
            found += made.whole([(1, 0, 7), (0, begin, end - begin)])[1:]
            begin = end
        assert torch.equal(torch.cat(found), alone)
    rows = [(0, at) for at in (0, 64, 255, 256)]
    together = made.decoding(rows, spare=2, padding=3)
    for number, (_, at) in enumerate(rows):
        assert torch.equal(together[number], alone[at])
        assert torch.equal(made.decoding([(1, 3), (0, at)])[1], alone[at])
    assert not together[len(rows) :].any()


@pytest.mark.parametrize(("heads", "kv_heads", "head_dim", "block_size"), [(3, 1, 24, 5), (8, 1, 64, 16), (2, 2, 128, 1)])
def test_other_shapes(heads: int, kv_heads: int, head_dim: int, block_size: int) -> None:
    kinds = {"dtype": torch.float32, "cache_dtype": torch.float32}
    made = world([70, 33], heads=heads, kv_heads=kv_heads, head_dim=head_dim, block_size=block_size, **kinds)
    found = made.whole([(0, 0, 70), (1, 0, 33)])
    for one, wanted in zip(found, made.wanted, strict=True):
        check(one, wanted, torch.float32)
    assert torch.equal(made.decoding([(1, 32), (0, 69)]), torch.stack([found[1][32], found[0][69]]))


def test_a_chunk_of_nothing() -> None:
    made = world([20], heads=2, kv_heads=1, head_dim=16, dtype=torch.float32, cache_dtype=torch.float32)
    assert [len(one) for one in made.whole([(0, 0, 0)])] == [0]
